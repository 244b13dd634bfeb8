"""The worst case: accuracy under all attacks of an evaluation together.

An example is robust at a budget only if no attack broke it there. An attack
breaks an example at a budget by its verdict at this epsilon or a smaller one
of the norm, or by any of its images that lies in the ball, whichever norm and
epsilon the image was made for. RobustBench ranks networks by this number (Croce
et al., "RobustBench: a standardized adversarial robustness benchmark", 2021).
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam import geometry
from tfsam.attacks.check import TOLERANCE
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import Budgets
from tfsam.evaluation.budgets import epsilon_text
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.intervals import accuracy_of

Row = dict[str, Any]

# The norms in which the perturbations of adversarial images are measured.
LENGTHS = ("l1", "l2", "linf")


class Breaks(NamedTuple):
    """The examples that an attack broke.

    Attributes:
        name: Name of the attack in results.
        surrogate: Whether the attack was computed on a surrogate.
        broken: Bool arrays (n,) by budget, the examples that are broken there,
            including those that are misclassified without an attack.
        lengths: Float arrays (n, 3), the `lengths` of adversarial images.
        failed: The budgets at which the attack raised an exception.
    """

    name: str
    surrogate: bool
    broken: dict[Budget, np.ndarray]
    lengths: list[np.ndarray]
    failed: Collection[Budget] = ()


def lengths(perturbations: np.ndarray) -> np.ndarray:
    """Measures perturbations in the l1, l2 and linf norm.

    Args:
        perturbations: Float array (n, ...).

    Returns:
        Float64 array (n, 3).

    Example:
        >>> lengths(np.array([[3.0, -4.0]])).tolist()
        [[7.0, 5.0, 4.0]]
    """
    flat = perturbations.reshape(len(perturbations), -1).astype(np.float64)
    orders = [geometry.FACTS[norm].order for norm in LENGTHS]
    return np.stack([np.linalg.norm(flat, p, axis=1) for p in orders], axis=1)


def within(length: np.ndarray, epsilon: Any) -> np.ndarray:
    """Returns which perturbations lie in a ball, but for rounding errors.

    Args:
        length: Float array (n,), the norms of perturbations.
        epsilon: Radius of the ball, a number or a float array (n,).
    """
    return length <= epsilon * (1 + TOLERANCE) + TOLERANCE


def broken_by(attack: Breaks, budget: Budget, n: int) -> np.ndarray:
    """Returns which examples an attack broke within a budget.

    Args:
        attack: The attack.
        budget: The budget.
        n: Number of examples.

    Returns:
        Bool array (n,).

    Example:
        >>> image = lengths(np.array([[0.1, 0.0], [0.1, 0.1]]))
        >>> attack = Breaks("pgd", False, {}, [image])
        >>> broken_by(attack, Budget("l2", 0.12), n=2).tolist()
        [True, False]
    """
    found = verdict_at(attack, budget, np.zeros(n, bool))
    if budget.norm in LENGTHS:
        column = LENGTHS.index(budget.norm)
        for measured in attack.lengths:
            found |= within(measured[:, column], budget.epsilon)
    return found


def verdict_at(
    attack: Breaks, budget: Budget, misclassified: np.ndarray
) -> np.ndarray:
    """Returns which examples are broken by verdict, at this epsilon or below.

    Args:
        attack: The attack.
        budget: The budget.
        misclassified: Bool array (n,), examples that are broken in any case.
    """
    found = misclassified.copy()
    for (norm, epsilon), broken in attack.broken.items():
        if norm == budget.norm and epsilon <= budget.epsilon:
            found |= broken
    return found


def rows(
    correct: np.ndarray, attacks: Sequence[Breaks], budgets: Budgets
) -> list[Row]:
    """Computes the accuracy under all attacks together, budget by budget.

    Args:
        correct: Bool array (n,), the examples that are not broken without an
            attack.
        attacks: The attacks.
        budgets: The epsilons of each norm.

    Returns:
        A list of {`norm`, `epsilon`, `epsilon_text`, `accuracy`, `n`,
        `interval`, `attacks`, `missing`, `upper_bound`}, empty if there are no
        attacks. `attacks` is a list of {`attack`, `broken`}, the number of
        correctly classified examples that each attack broke in this ball; an
        attack on a surrogate also has `surrogate`, true. `missing` is a list of
        the names of the attacks that failed at this budget. If there are any,
        `upper_bound` is true: they might have broken more examples.
    """
    if not attacks:
        return []
    return [_row(correct, attacks, budget) for budget in flat(budgets)]


def _row(correct: np.ndarray, attacks: Sequence[Breaks], budget: Budget) -> Row:
    broken = [correct & broken_by(a, budget, len(correct)) for a in attacks]
    return {
        **budget._asdict(),
        "epsilon_text": epsilon_text(budget.epsilon),
        **accuracy_of(correct & ~np.any(broken, axis=0)),
        "attacks": [
            {"attack": attack.name, "broken": int(found.sum())}
            | ({"surrogate": True} if attack.surrogate else {})
            for attack, found in zip(attacks, broken, strict=True)
        ],
        **_missing(attacks, [budget]),
    }


def union(
    correct: np.ndarray, attacks: Sequence[Breaks], budgets: Budgets
) -> Row | None:
    """Computes the accuracy under all attacks at the largest budgets of norms.

    An example is robust only if no attack broke it in any of the balls (Tramèr
    and Boneh, "Adversarial Training and Robustness for Multiple Perturbations",
    2019).

    Args:
        correct: Bool array (n,), the examples that are not broken without an
            attack.
        attacks: The attacks.
        budgets: The epsilons of each norm.

    Returns:
        {`accuracy`, `n`, `interval`, `budgets`, `missing`, `upper_bound`}, as
        in `rows`; `budgets` is the epsilon of each norm. None if there are
        fewer than two norms, or no attacks.
    """
    largest = {norm: max(values) for norm, values in budgets.items() if values}
    if len(largest) < 2 or not attacks:
        return None
    balls = [Budget(*item) for item in largest.items()]
    survives = correct.copy()
    for attack in attacks:
        for budget in balls:
            survives &= ~broken_by(attack, budget, len(correct))
    return {
        **accuracy_of(survives),
        "budgets": largest,
        **_missing(attacks, balls),
    }


def _missing(attacks: Iterable[Breaks], budgets: Iterable[Budget]) -> Row:
    budgets = set(budgets)
    names = [a.name for a in attacks if budgets & set(a.failed)]
    missing = list(dict.fromkeys(names))
    return {"missing": missing, "upper_bound": bool(missing)}
