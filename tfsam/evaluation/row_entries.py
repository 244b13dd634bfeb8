"""Entries of a result's rows: draws, several labels, goals, and factors.

Most results have none of them: a model that is not random has no draws, and
labels are classes.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.evaluation import verdicts
from tfsam.evaluation.draws import spread
from tfsam.evaluation.headers import Header
from tfsam.evaluation.records import Arrays

# The `target` of a row whose examples have several.
EACH = "one for each example"

Row = dict[str, Any]


def of_goal(header: Mapping[str, Any]) -> Row:
    """Returns the entries of a row about the goal of its attacks.

    They are empty for attacks that aim at any wrong class.
    """
    if header.get("multi_label"):
        return {"multi_label": True}
    if "target" not in header:
        return {}
    target = header["target"]
    return {"target": target if isinstance(target, int) else EACH}


def factors_of(natural: Sequence[Arrays]) -> np.ndarray | None:
    """Returns the factors of the epsilons of each example, None without any.

    Args:
        natural: The natural arrays of the chunks.
    """
    if not all("epsilon_factors" in arrays for arrays in natural):
        return None
    return np.concatenate([arrays["epsilon_factors"] for arrays in natural])


def before_attacks(
    natural: Sequence[Arrays],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the verdicts of all chunks; see `verdicts.before_attacks`."""
    found = [verdicts.before_attacks(arrays) for arrays in natural]
    standing, wrong = zip(*found, strict=True)
    return np.concatenate(standing), np.concatenate(wrong)


def wrong_draws(held: Sequence[Arrays]) -> np.ndarray | None:
    """Returns the fraction of each example's draws that are wrong.

    None for a model that is not random.

    Args:
        held: The arrays, chunk by chunk.
    """
    if not all("wrong" in arrays for arrays in held):
        return None
    return np.concatenate([arrays["wrong"] for arrays in held])


def of_draws(
    header: Header, wrong: np.ndarray | None, broken: np.ndarray
) -> Row:
    """Returns the entries of a row of a random model; an empty dict of others.

    Args:
        header: The record's header.
        wrong: Float array (n,), the fraction of the draws that are wrong.
        broken: Bool array (n,), the verdicts.
    """
    if wrong is None:
        return {}
    return {"draws": header["draws"], "spread": spread(wrong, broken)}


def right_labels(held: Sequence[Arrays]) -> np.ndarray | None:
    """Returns which of several labels are right, None for classes.

    Args:
        held: The arrays, chunk by chunk.
    """
    if not all("right" in arrays for arrays in held):
        return None
    return np.concatenate([arrays["right"] for arrays in held])


def by_label(right: np.ndarray | None) -> Row:
    """Returns the accuracy of each of several labels; an empty dict if none."""
    if right is None:
        return {}
    return {"by_label": right.mean(axis=0, dtype=np.float64).tolist()}
