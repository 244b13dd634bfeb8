"""Minimum-norm attacks on a chunk, a single run of which serves all epsilons.

The result of a run is a `Nearest`; see `nearest_images.py`.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfsam.evaluation import chunk_outcomes
from tfsam.evaluation import diagnosis
from tfsam.evaluation import red_flags
from tfsam.evaluation.attack_batch import Found
from tfsam.evaluation.attack_batch import kind_of
from tfsam.evaluation.chunk_state import Chunk
from tfsam.evaluation.nearest_images import Nearest
from tfsam.evaluation.verdicts import STANDS
from tfsam.evaluation.worst_case import LENGTHS
from tfsam.evaluation.worst_case import lengths
from tfsam.evaluation.worst_case import within

Arrays = Mapping[str, np.ndarray]


def attack_nearest(chunk: Chunk, attack: Any, epsilon: float) -> Arrays:
    """Attacks a chunk, or derives its verdicts from an earlier run.

    Args:
        chunk: The chunk, which keeps the run for other epsilons.
        attack: The minimum-norm attack.
        epsilon: The budget.

    Returns:
        The arrays to be saved, by name.
    """
    kind = kind_of(attack, epsilon)
    nearest = chunk.nearest.get(kind) or _nearest(chunk, attack, kind)
    # A kind that is a number holds at this epsilon only; see `kind_of`.
    shared = np.array(kind if isinstance(kind, str) else "")
    new = {**_within(chunk, attack, epsilon, nearest), "kind": shared}
    # The first epsilon is charged with the cost of the run.
    chunk.nearest[kind] = nearest._replace(
        attacked=0, passes=0 * nearest.passes, seconds=0.0
    )
    return new


def _nearest(chunk: Chunk, attack: Any, kind: Any) -> Nearest:
    """Runs a minimum-norm attack, whose result serves all epsilons."""
    started, norm = time.perf_counter(), chunk.turn.norm
    distances = np.where(chunk.natural == STANDS, np.inf, 0.0)
    reached = np.full((len(distances), len(LENGTHS)), np.inf)
    images, wrong = chunk.x.copy(), chunk.wrong.copy()
    right = chunk.right.copy()
    correct = np.flatnonzero(chunk.natural == STANDS)
    passes, nonfinite = np.zeros(2, np.int64), 0
    facts = red_flags.facts_of(attack)
    diagnosed = chunk.counters(1)
    if len(correct):
        found = chunk.run(attack, (1, kind), correct)
        broken = found.broken
        wrong[correct], right[correct] = found.wrong, found.right
        reached[correct[broken]] = _moved(chunk, found, correct)[broken]
        distances[correct] = reached[correct, LENGTHS.index(norm)]
        images[correct] = found.images
        passes, nonfinite = found.passes, found.nonfinite
        facts = found.facts
        diagnosis.keep(diagnosed, 0, correct, found, attack)
    if diagnosed:
        # The attack has no budget.
        tried = [len(correct), int(np.isinf(distances).sum())]
        diagnosed = {**diagnosed, "unconstrained": np.array(tried)}
    seconds = time.perf_counter() - started
    return Nearest(
        distances=distances,
        lengths=reached,
        wrong=wrong,
        right=right,
        images=images if chunk.turn.plan.keep_images else None,
        attacked=len(correct),
        passes=passes,
        nonfinite=nonfinite,
        facts=facts,
        seconds=seconds,
        diagnosed=diagnosed,
    )


def _moved(chunk: Chunk, found: Found, chosen: np.ndarray) -> np.ndarray:
    """Returns the `lengths` of the perturbations of the chosen examples."""
    images = found.images.astype(np.float64)
    return lengths(images - chunk.x[chosen])


def _within(
    chunk: Chunk, attack: Any, epsilon: float, nearest: Nearest
) -> Arrays:
    """Derives the verdicts at an epsilon from a minimum-norm attack's run.

    Returns:
        The arrays to be saved, by name.
    """
    plan = chunk.turn.plan
    reached = within(nearest.distances, plan.radii(epsilon, chunk.indices))
    survivors = chunk.verdict == STANDS
    verdict = np.where(survivors & reached, 1, chunk.verdict)
    wrong = np.where(survivors & reached, nearest.wrong, chunk.wrong)
    saved = {
        "verdict": verdict.astype(np.int8),
        "lengths": nearest.lengths,
        "largest": nearest.distances[reached].max(initial=0.0),
        "attacked": np.array(nearest.attacked),
        "passes": nearest.passes,
        # Not set to 0 after the first epsilon: the gradients of the run
        # determined the verdicts at all of them.
        "nan_gradients": np.array(nearest.nonfinite),
        "stages": np.array([""]),
        **chunk_outcomes.columns([nearest.facts]),
        **chunk.of_draws(attack, [nearest.facts], wrong),
        "seconds": np.array(nearest.seconds),
        "distances": nearest.distances,
        **nearest.diagnosed,
    }
    if plan.draws:
        saved["wrong_nearest"] = nearest.wrong
    if nearest.right.size:
        found = (survivors & reached)[:, None]
        saved["right"] = np.where(found, nearest.right, chunk.right)
        saved["right_nearest"] = nearest.right
    if nearest.images is not None:
        images = chunk.x.copy()
        images[reached] = nearest.images[reached]
        saved["adversarial"] = images
    return saved
