"""Attacks on the survivors of a chunk at an epsilon, stage by stage."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfsam.evaluation import chunk_outcomes
from tfsam.evaluation import diagnosis
from tfsam.evaluation.attack_batch import kind_of
from tfsam.evaluation.attack_probes import unbroken_without_budget
from tfsam.evaluation.chunk_outcomes import Outcome
from tfsam.evaluation.chunk_state import Chunk
from tfsam.evaluation.chunk_state import stages_of
from tfsam.evaluation.plans import can_start
from tfsam.evaluation.verdicts import STANDS
from tfsam.registries import ATTACKS

Arrays = Mapping[str, np.ndarray]


def attack_stages(chunk: Chunk, attack: Any, epsilon: float) -> Arrays:
    """Attacks the survivors of a chunk.

    With a warm start, the attack starts from the images of the last epsilon.

    Args:
        chunk: The chunk, whose images are replaced.
        attack: The attack, or an ensemble.
        epsilon: The budget.

    Returns:
        The arrays to be saved, by name.
    """
    warm = chunk.turn.plan.warm_start and can_start(attack)
    outcome = outcome_of(chunk, attack, epsilon, chunk.images if warm else None)
    chunk.images = outcome.images
    return arrays_of(chunk, attack, outcome)


def outcome_of(
    chunk: Chunk,
    attack: Any,
    epsilon: float,
    start: np.ndarray | None = None,
    each: np.ndarray | None = None,
) -> Outcome:
    """Attacks the survivors, stage by stage if the attack is an ensemble.

    Args:
        chunk: The chunk, which is not changed.
        attack: The attack, or an ensemble.
        epsilon: The budget.
        start: Float array (n, ...), images to start from, or None.
        each: Float array (n,), the epsilon of each example in place of
            `epsilon`, or None.
    """
    outcome, stages = chunk.unattacked(attack), stages_of(attack)
    for number, (name, stage) in enumerate(stages, 1):
        survivors = np.flatnonzero(outcome.verdict == STANDS)
        if not len(survivors):
            break
        started = time.perf_counter()
        key = (number, kind_of(stage, epsilon))
        found = chunk.run(stage, key, survivors, epsilon, start, each)
        chunk_outcomes.add_stage(
            outcome,
            number,
            survivors,
            found,
            found.images.astype(np.float64) - chunk.x[survivors],
            chunk.turn.norm,
            time.perf_counter() - started,
        )
        diagnosis.keep(outcome.counters, number - 1, survivors, found, stage)
        if number < len(stages) and each is None:
            chunk.turn.tell(epsilon, outcome.verdict, name)
    return outcome


def arrays_of(chunk: Chunk, attack: Any, outcome: Outcome) -> dict[str, Any]:
    """Returns the arrays to be saved of an outcome, by name.

    Args:
        chunk: The chunk.
        attack: The attack that the outcome belongs to.
        outcome: The outcome.
    """
    images = {"adversarial": outcome.images}
    return {
        **chunk_outcomes.summed(outcome),
        "stages": np.array([name for name, _ in stages_of(attack)]),
        "version": np.array(ATTACKS.fact(attack, "version") or ""),
        **chunk.of_draws(attack, outcome.facts, outcome.wrong),
        **({"right": outcome.right} if outcome.right.size else {}),
        **_without_budget(chunk, outcome.verdict),
        **(images if chunk.turn.plan.keep_images else {}),
    }


def _without_budget(chunk: Chunk, verdict: np.ndarray) -> Arrays:
    """Repeats an attack without a budget if it broke few of the first chunk.

    It is repeated once for all epsilons.
    """
    turn = chunk.turn
    if not turn.plan.diagnose:
        return {}
    chosen = diagnosis.suspicious(verdict, chunk.natural)
    first = chunk.indices[0] == 0 and not chunk.worker.source.surrogate
    if first and len(chosen) and not chunk.unconstrained[0]:
        chunk.unconstrained = unbroken_without_budget(
            turn.plan,
            chunk.worker,
            turn.entry,
            (turn.number, turn.norm),
            chunk.indices[chosen],
        )
    tried = chunk.unconstrained if len(chosen) else np.zeros(2, np.int64)
    return {"unconstrained": tried}
