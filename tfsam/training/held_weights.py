"""The weights that a network holds: those in training, or others.

From the validation to the end of an epoch a network may hold an average, and at
the end of a fit several callbacks may set its weights.
"""

import contextlib
import enum
import weakref
from collections.abc import Iterator
from typing import Any

import keras

# For each network that currently holds an average instead of the weights in
# training, a weak reference to the callback that keeps the average.
_HOLDERS: weakref.WeakKeyDictionary[keras.Model, Any] = (
    weakref.WeakKeyDictionary()
)

# The origin of the weights that a network got at the end of the current fit.
_ENDINGS: weakref.WeakKeyDictionary[keras.Model, int] = (
    weakref.WeakKeyDictionary()
)


class Ending(enum.IntEnum):
    """Origins of the weights at the end of a fit; the largest has priority."""

    BEFORE_COLLAPSE = 1
    AVERAGE = 2
    BEST_EPOCH = 3


def begin(network: keras.Model) -> None:
    """Forgets how the previous fit ended; for `on_train_begin`.

    Args:
        network: the network that is trained.
    """
    _ENDINGS.pop(network, None)


def may_end(network: keras.Model, ending: Ending) -> bool:
    """Returns whether a callback may set the weights at the end of a fit.

    Several callbacks may try to, in any order; a larger `Ending` overrides a
    smaller one. If the callback may, its ending is recorded.

    Args:
        network: the network that was trained.
        ending: the origin of the callback's weights.
    """
    if ending < _ENDINGS.get(network, 0):
        return False
    _ENDINGS[network] = ending
    return True


@contextlib.contextmanager
def training_weights(network: keras.Model) -> Iterator[None]:
    """Returns a context in which a network holds the weights in training.

    Without it the network holds an average from the beginning of the validation
    to the end of the epoch; after the context it holds the average again.

    Args:
        network: the network that is trained.
    """
    holder = _HOLDERS.get(network, lambda: None)()
    if holder is None:
        yield
        return
    holder.swap_out()
    try:
        yield
    finally:
        holder.swap_in()


def holds_average(network: keras.Model) -> bool:
    """Returns whether a network holds an average.

    Args:
        network: the network that is trained.
    """
    return network in _HOLDERS


def hold_average(network: keras.Model, callback: Any) -> None:
    """Records that a network holds an average from now on.

    Args:
        network: the network that is trained.
        callback: the callback that keeps the average, with the methods
            `swap_in` and `swap_out`.
    """
    _HOLDERS[network] = weakref.ref(callback)


def release(network: keras.Model) -> None:
    """Records that a network holds the weights in training again.

    Args:
        network: the network that is trained.
    """
    _HOLDERS.pop(network, None)
