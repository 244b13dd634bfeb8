"""Orders of a model's classes, judged by the natural accuracy under each.

A model whose folders were sorted as strings has its classes in another order
than data whose folders are sorted as numbers: 0, 1, 10, 11, and so on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize

from tfsam.data import class_orders
from tfsam.models.range_choice import Predictions
from tfsam.models.range_choice import accuracy
from tfsam.models.range_choice import far_more
from tfsam.models.range_choice import percent

# An order is worth finding from this many examples of each class, if the model
# is right about this share of them.
_EXAMPLES, _LEAST = 5, 0.5


class Other(NamedTuple):
    """Another order of the classes, in which a model is far more accurate.

    Attributes:
        names: the names in that order.
        message: what to say to the user.
        flag: the value of --class_order that gives the order; None if that is
            a file of the names.
    """

    names: tuple[str, ...]
    message: str
    flag: str | None


def accuracies(
    predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Returns the natural accuracy under each usual order of the classes.

    Args:
        predicted: Integer array (n,), the model's predictions.
        labels: Integer array (m,), the classes of the examples, n of them or
            more.
        names: The names of the classes, in the order of the labels.

    Returns:
        A dict with the keys "name" and "number", empty if both orders are
        equal.

    Example:
        >>> import numpy as np
        >>> names = [str(number) for number in range(11)]
        >>> accuracies(np.array([2, 3]), np.array([10, 2]), names)
        {'name': 1.0, 'number': 0.0}
    """
    labels = labels[: len(predicted)]
    orders = {
        order: class_orders.ordered(names, order)
        for order in (class_orders.BY_NAME, class_orders.BY_NUMBER)
    }
    if len({*orders.values()}) == 1:  # Or if there are no names.
        return {}
    return {
        key: float(np.mean(predicted == positions(names, order)[labels]))
        for key, order in orders.items()
    }


def _file_of(names: Sequence[str]) -> str:
    return f"a file with the lines {', '.join(names)}"


def _order_of(names: Sequence[str]) -> str:
    """Returns by which of the usual orders names are ordered, or "file"."""
    for order in (class_orders.BY_NAME, class_orders.BY_NUMBER):
        if class_orders.ordered(names, order) == tuple(names):
            return order
    return "file"


def positions(names: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Returns the position of each class in another order.

    Args:
        names: The names of the classes.
        order: The same names in another order.
    """
    places = {name: place for place, name in enumerate(order)}
    return np.array([places[name] for name in names])


def found(
    predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> tuple[tuple[str, ...], float] | None:
    """Finds the order of the classes that fits the predictions best.

    Args:
        predicted: Integer array (n,), the model's predictions.
        labels: Integer array (m,), the classes of the examples, n of them or
            more.
        names: The names of the classes, in the order of the labels.

    Returns:
        The names in the model's order and the natural accuracy under it; None
        if there are too few examples, or no order fits.
    """
    labels, count = labels[: len(predicted)], len(names)
    if count < 2 or (np.bincount(labels, minlength=count) < _EXAMPLES).any():
        return None
    if predicted.max() >= count:
        return None
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (predicted, labels), 1)
    outputs, classes = scipy.optimize.linear_sum_assignment(-table)
    share = float(table[outputs, classes].sum() / len(labels))
    if share < _LEAST:
        return None
    return tuple(names[position] for position in classes), share


def other_order(
    tried: Predictions,
    labels: np.ndarray,
    names: Sequence[str],
    chance: float,
    sortable: bool = True,
) -> Other | None:
    """Finds another order of the classes that is far more accurate.

    Args:
        tried: The predictions under each range of pixels.
        labels: The classes of the examples.
        names: The names of the classes, in the order of the labels.
        chance: The accuracy of guessing.
        sortable: Whether --class_order sorts the names, as those of folders.

    Returns:
        The order, if the model is near guessing in the given one under each
        range, and far more accurate in the other under one of them; else None.
    """
    given = max(accuracy(p, labels) for p in tried.values())
    known = {
        (share, order)
        for predicted in tried.values()
        for order, share in accuracies(predicted, labels, names).items()
    }
    share, order = max(known, default=(0.0, ""))
    if far_more(share, given, chance):
        by, wanted = _order_of(names), class_orders.ordered(names, order)
        remedy = order if sortable else f"FILE, {_file_of(wanted)}"
        message = (
            f"natural accuracy is {percent(given)} with classes ordered by "
            f"{by} and {percent(share)} by {order}: add "
            f"--class_order={remedy}. Received: class_order={by}"
        )
        return Other(wanted, message, order if sortable else None)
    others = [found(p, labels, names) for p in tried.values()]
    best = max(filter(None, others), key=lambda o: o[1], default=None)
    if best is None or not far_more(best[1], given, chance):
        return None
    message = (
        f"natural accuracy is {percent(given)} with classes in the data's "
        f"order and {percent(best[1])} in another: add --class_order=FILE, "
        f"{_file_of(best[0])}. "
        f"Received: classes {', '.join(names)}"
    )
    return Other(best[0], message, None)
