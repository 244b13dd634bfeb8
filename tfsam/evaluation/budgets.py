"""Budgets of evaluations: the balls that attacks search, by norm and radius."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam import geometry
from tfsam.support import validators
from tfsam.support.validators import Bounds

# The epsilons of each norm, in the order in which they were given.
Budgets = Mapping[str, list[float]]


class Budget(NamedTuple):
    """A ball around an image.

    Attributes:
        norm: The norm, such as "linf".
        epsilon: The radius, >= 0, in the units of the pixels.
    """

    norm: str
    epsilon: float


def parse(given: Any, bounds: Bounds) -> Budgets:
    """Checks the epsilons of each norm.

    Args:
        given: A mapping from norms to an epsilon or a list of epsilons.
        bounds: (lowest, highest) value of a pixel, or None.

    Raises:
        ValueError: If `given` is not such a mapping, or a norm or an epsilon is
            invalid.

    Example:
        >>> parse({"linf": [0.2, 0.1], "l2": 0.5}, bounds=(0.0, 1.0))
        {'linf': [0.2, 0.1], 'l2': [0.5]}
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            'budgets must give the epsilons of each norm, as {"linf": [0.1]}. '
            f"Received: budgets={given}"
        )
    return {
        geometry.check_norm(norm): [
            _checked(epsilon, norm, bounds)
            for epsilon in np.ravel(epsilons).tolist()
        ]
        for norm, epsilons in given.items()
    }


def _checked(given: Any, norm: str, bounds: Bounds) -> float:
    epsilon = validators.check_number("epsilon", given)
    validators.check_budget(epsilon, norm, bounds)
    return epsilon


def ascending(budgets: Budgets) -> dict[str, list[float]]:
    """Sorts the epsilons of each norm, and drops repeated ones.

    Args:
        budgets: The epsilons of each norm.

    Example:
        >>> ascending({"linf": [0.2, 0.1, 0.2]})
        {'linf': [0.1, 0.2]}
    """
    return {norm: sorted(set(values)) for norm, values in budgets.items()}


def flat(budgets: Budgets) -> Iterator[Budget]:
    """Yields each budget, norm by norm.

    Args:
        budgets: The epsilons of each norm.
    """
    for norm, epsilons in budgets.items():
        for epsilon in epsilons:
            yield Budget(norm, epsilon)


def together(several: Iterable[Budgets]) -> dict[str, list[float]]:
    """Joins budgets; the order is that of the first occurrence.

    Args:
        several: The budgets.

    Example:
        >>> together([{"linf": [0.2]}, {"linf": [0.1, 0.2], "l2": [1.0]}])
        {'linf': [0.2, 0.1], 'l2': [1.0]}
    """
    found: dict[str, list[float]] = {}
    for budget in (budget for budgets in several for budget in flat(budgets)):
        epsilons = found.setdefault(budget.norm, [])
        if budget.epsilon not in epsilons:
            epsilons.append(budget.epsilon)
    return found


def folder_name(budget: Budget) -> str:
    """Returns the name of a budget's folder in a record.

    Args:
        budget: The budget.

    Example:
        >>> folder_name(Budget("linf", 0.1))
        'linf-0.1'
    """
    return f"{budget.norm}-{budget.epsilon!r}"


def epsilon_text(epsilon: float) -> str:
    """Formats an epsilon as papers do: "8/255" if it is such a fraction.

    Args:
        epsilon: Number >= 0.

    Example:
        >>> epsilon_text(8 / 255), epsilon_text(0.3)
        ('8/255', '0.3')
    """
    of_255 = round(epsilon * 255)
    short = float(f"{epsilon:.3g}") == epsilon
    if of_255 and not short and abs(of_255 / 255 - epsilon) < 1e-9:
        return f"{of_255}/255"
    return f"{epsilon:g}"
