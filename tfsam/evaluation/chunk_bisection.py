"""Attacks on a chunk by bisection of the epsilons; see `bisection.py`."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.attacks.check import contract
from tfsam.evaluation import bisection
from tfsam.evaluation.attack_batch import judged_images
from tfsam.evaluation.attack_batch import kind_of
from tfsam.evaluation.attack_probes import steepest_images
from tfsam.evaluation.chunk_outcomes import Outcome
from tfsam.evaluation.chunk_stages import arrays_of
from tfsam.evaluation.chunk_stages import outcome_of
from tfsam.evaluation.chunk_state import Chunk
from tfsam.evaluation.chunk_state import stages_of
from tfsam.evaluation.verdicts import STANDS
from tfsam.evaluation.worst_case import lengths
from tfsam.registries import ATTACKS

Arrays = Mapping[str, np.ndarray]


def bisect(chunk: Chunk, epsilons: list[float]) -> dict[float, Arrays]:
    """Attacks a chunk by bisection.

    Args:
        chunk: The chunk.
        epsilons: The budgets, ascending.

    Returns:
        The arrays to be saved, by name, of each epsilon; none for a
        minimum-norm attack.
    """
    turn, natural = chunk.turn, chunk.natural
    made = [turn.made(epsilon) for epsilon in epsilons]
    surrogate = chunk.worker.source.surrogate
    if ATTACKS.fact(made[-1], "minimum_norm") and not surrogate:
        return {}

    together = _alike(made, epsilons)

    def attempt(numbers: np.ndarray, verdict: np.ndarray) -> Outcome:
        chunk.verdict = verdict
        number = int(numbers[verdict == STANDS].max())
        each = np.array(epsilons)[numbers] if together else None
        return outcome_of(chunk, made[number], epsilons[number], each=each)

    def rescale(
        found: Outcome, radii: np.ndarray, chosen: np.ndarray
    ) -> Outcome:
        return _rescaled(chunk, made[-1], found, radii, chosen)

    chunk.verdict = natural
    balls = [turn.plan.radii(e, chunk.indices) for e in epsilons]
    found = bisection.sweep(
        attempt,
        rescale,
        np.stack([np.broadcast_to(b, natural.shape) for b in balls]),
        chunk.unattacked(made[-1]),
        steepest_images(turn.plan, chunk.worker, chunk.indices, turn.norm),
        together,
    )
    chunk.verdict = natural
    bisected = {"sweep": np.array("bisect")}
    return {
        epsilon: arrays_of(chunk, attack, outcome) | bisected
        for epsilon, attack, outcome in zip(epsilons, made, found, strict=True)
    }


def _rescaled(
    chunk: Chunk,
    attack: Any,
    found: Outcome,
    radii: np.ndarray,
    chosen: np.ndarray,
) -> Outcome:
    """Judges the images of an outcome at other lengths.

    The last stage of an ensemble is taken to break an example that no stage
    broke at its own epsilon.

    Args:
        chunk: The chunk.
        attack: The attack.
        found: The outcome.
        radii: Float array (count,), the lengths.
        chosen: Int array (count,), the examples to judge.

    Returns:
        An outcome with the verdicts of the chosen examples.
    """
    plan, norm, x = chunk.turn.plan, chunk.turn.norm, chunk.x[chosen]
    images = bisection.rescaled(
        x, found.images[chosen], radii, norm, plan.bounds
    )
    contract(x, images, radii, norm, plan.bounds)
    judged = judged_images(
        plan,
        chunk.worker,
        np.resize(images, (plan.size, *images.shape[1:])),
        chunk.indices[chosen],
    )
    moved = lengths(images.astype(np.float64) - x)
    outcome, before = chunk.unattacked(attack), found.verdict[chosen]
    stage = np.where(before == STANDS, len(stages_of(attack)), before)
    outcome.verdict[chosen] = np.where(judged.broken, stage, STANDS)
    outcome.images[chosen], outcome.lengths[chosen] = images, moved
    outcome.wrong[chosen] = judged.wrong
    outcome.right[chosen] = judged.right
    return outcome


def _alike(attacks: Sequence[Any], epsilons: Sequence[float]) -> bool:
    """Returns whether examples may be attacked at different epsilons at once.

    They may if the attacks that were made for the epsilons differ in nothing
    else, and take an epsilon for each example.
    """
    kinds = {
        tuple(kind_of(stage, epsilon) for _, stage in stages_of(attack))
        for attack, epsilon in zip(attacks, epsilons, strict=True)
    }
    (kind, *others) = kinds
    return not others and all(
        isinstance(described, str) and ATTACKS.fact(stage, "example_epsilons")
        for described, (_, stage) in zip(
            kind, stages_of(attacks[0]), strict=True
        )
    )
