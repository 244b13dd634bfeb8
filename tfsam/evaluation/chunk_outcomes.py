"""Outcomes of attacks on a chunk, example by example.

The cost of a call is divided equally among its examples. The outcomes of
several calls can therefore be put together, and summed up.
"""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.evaluation.attack_batch import Found
from tfsam.evaluation.red_flags import Facts
from tfsam.evaluation.worst_case import LENGTHS
from tfsam.evaluation.worst_case import lengths

# The fields of an `Outcome` that say what was found, and not at what cost.
FOUND = ("verdict", "images", "lengths", "wrong", "right")


class Outcome(NamedTuple):
    """What is known about the examples of a chunk after an attack.

    Attributes:
        verdict: Int8 array (n,), the verdicts.
        images: Float array (n, ...), the images that the attack returned; the
            clean ones of examples that were not attacked.
        lengths: Float array (n, 3), the `lengths` of the perturbations that
            broke examples; infinite for survivors.
        wrong: Float array (n,), the fraction of the draws of a random model
            that are wrong.
        right: Bool array (n, labels), which of several labels are right.
        attacked: Bool array (n,), the examples that were attacked.
        largest: Float array (n,), the length of the longest perturbation that
            any stage returned, in the attack's norm.
        passes: Float array (n, 2), forward and gradient passes of the network.
        nonfinite: Float array (n,), the number of gradients that were NaN or
            infinite.
        seconds: Float array (n,), the duration of the attack.
        counters: Arrays for the diagnosis, (stages, n) or (n,), by name.
        facts: The facts about each stage.
    """

    verdict: np.ndarray
    images: np.ndarray
    lengths: np.ndarray
    wrong: np.ndarray
    right: np.ndarray
    attacked: np.ndarray
    largest: np.ndarray
    passes: np.ndarray
    nonfinite: np.ndarray
    seconds: np.ndarray
    counters: dict[str, np.ndarray]
    facts: list[Facts]


def unattacked(
    x: np.ndarray,
    verdict: np.ndarray,
    lengths: np.ndarray,
    wrong: np.ndarray,
    right: np.ndarray,
    counters: dict[str, np.ndarray],
    facts: Sequence[Facts],
) -> Outcome:
    """Returns the outcome before an attack, whose arrays may be changed.

    Args:
        x: Float array (n, ...), the images.
        verdict: Int8 array (n,), the verdicts so far.
        lengths: Float array (n, 3), the lengths so far.
        wrong: Float array (n,), the fraction of wrong draws so far.
        right: Bool array (n, labels), the labels that are right so far.
        counters: Arrays in which nothing is recorded; they are copied.
        facts: Facts about the stages, before they have run.
    """
    n = len(verdict)
    return Outcome(
        verdict=verdict.copy(),
        images=x.copy(),
        lengths=lengths.copy(),
        wrong=wrong.copy(),
        right=right.copy(),
        attacked=np.zeros(n, bool),
        largest=np.zeros(n),
        passes=np.zeros((n, 2)),
        nonfinite=np.zeros(n),
        seconds=np.zeros(n),
        counters={name: values.copy() for name, values in counters.items()},
        facts=list(facts),
    )


def add_stage(
    outcome: Outcome,
    number: int,
    chosen: np.ndarray,
    found: Found,
    moved: np.ndarray,
    norm: str,
    seconds: float,
) -> None:
    """Adds what a stage of an attack found.

    Args:
        outcome: The outcome, which is changed.
        number: Number of the stage, from 1.
        chosen: Int array (count,), the examples that the stage attacked.
        found: The result of the stage.
        moved: Float array (count, ...), the perturbations.
        norm: The attack's norm.
        seconds: Duration of the stage.
    """
    count, broken = len(chosen), found.broken
    reached = lengths(moved)
    outcome.verdict[chosen[broken]] = number
    outcome.images[chosen] = found.images
    outcome.lengths[chosen[broken]] = reached[broken]
    outcome.wrong[chosen] = found.wrong
    outcome.right[chosen] = found.right
    outcome.attacked[chosen] = True
    outcome.largest[chosen] = np.maximum(
        outcome.largest[chosen], reached[:, LENGTHS.index(norm)]
    )
    outcome.passes[chosen] += found.passes / count
    outcome.nonfinite[chosen] += found.nonfinite / count
    outcome.seconds[chosen] += seconds / count
    outcome.facts[number - 1] = found.facts


def put(
    outcome: Outcome,
    other: Outcome,
    chosen: np.ndarray,
    fields: Sequence[str] | None = None,
) -> None:
    """Replaces an outcome by another one for some examples.

    Args:
        outcome: The outcome, which is changed.
        other: The other outcome, of the same examples.
        chosen: Int array (count,), the examples.
        fields: Names of the arrays to replace. None replaces all of them, the
            counters and the facts.
    """
    for name in fields or Outcome._fields[:-2]:
        getattr(outcome, name)[chosen] = getattr(other, name)[chosen]
    if fields is None:
        for name, values in outcome.counters.items():
            values[..., chosen] = other.counters[name][..., chosen]
        outcome.facts[:] = other.facts


def summed(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome as the arrays of a record, except for images.

    Args:
        outcome: The outcome.

    Returns:
        Arrays by name: `verdict` and `lengths` by example, `largest`,
        `attacked`, `passes`, `nan_gradients` and `seconds` of all, a column of
        each fact, and the counters of the diagnosis.
    """
    return {
        "verdict": outcome.verdict,
        "lengths": outcome.lengths,
        "largest": np.array(outcome.largest.max(initial=0.0)),
        "attacked": np.array(int(outcome.attacked.sum())),
        "passes": np.rint(outcome.passes.sum(axis=0)).astype(np.int64),
        # Rounded up, so that a single gradient is not lost.
        "nan_gradients": np.array(int(np.ceil(outcome.nonfinite.sum() - 1e-6))),
        "seconds": np.array(outcome.seconds.sum()),
        **columns(outcome.facts),
        **outcome.counters,
    }


def columns(facts: Iterable[Facts]) -> dict[str, np.ndarray]:
    """Returns the facts about all stages as arrays, one for each fact.

    Args:
        facts: The facts about each stage.
    """
    return {
        name: np.array(column)
        for name, column in zip(
            Facts._fields, zip(*facts, strict=True), strict=True
        )
    }
