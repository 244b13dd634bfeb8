"""A scope in which the random numbers of Keras are a function of a key.

All random numbers of Keras come from seed generators, each of which keeps its
state in a variable. In a `KeyedScope` these states are derived from a key, so
that the same key gives the same numbers in any process, whichever calls came
before, and another key gives others.
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

# The name that `keras.random.SeedGenerator` gives the variable of its state.
_STATE = "seed_generator_state"

# States are at least 0, and smaller than the number with which Keras reduces
# them to the range of int32.
_BELOW = 2**31 - 2


class KeyedScope(keras.StatelessScope):
    """A `keras.StatelessScope` whose seed generators depend on a key.

    A generator is told from others by the order in which the generators are
    first read, whether they belong to a model's layers, to a callable, or to
    Keras itself (for random numbers that are drawn without a seed).

    Args:
        mapping: Pairs of a `keras.Variable` and the tensor in its place.
        key: int32 tensor (2,).

    Example:
        >>> import numpy as np
        >>> def noise(key):
        ...     with KeyedScope((), tf.constant(key)):
        ...         return keras.random.normal((3,)).numpy()
        >>> bool(np.array_equal(noise([1, 2]), noise([1, 2])))
        True
        >>> bool(np.array_equal(noise([1, 2]), noise([1, 3])))
        False
    """

    def __init__(
        self, mapping: Iterable[tuple[Any, tf.Tensor]], key: tf.Tensor
    ) -> None:
        super().__init__(list(mapping))
        self._key = key
        self._seeded: set[int] = set()

    def get_current_value(self, variable: Any) -> Any:
        """Returns the tensor in a variable's place, None for its own value.

        Args:
            variable: A `keras.Variable`.
        """
        if id(variable) not in self._seeded and _is_state(variable):
            number = len(self._seeded)
            self._seeded.add(id(variable))
            state = tf.random.stateless_uniform(
                [2],
                fold_in(self._key, number),
                minval=0,
                maxval=_BELOW,
                dtype=tf.int32,
                alg="philox",
            )
            self.state_mapping[id(variable)] = tf.cast(state, variable.dtype)
        return super().get_current_value(variable)


def _is_state(variable: Any) -> bool:
    return variable.name == _STATE and tuple(variable.shape) == (2,)


def fold_in(key: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Derives another key from a key and a number.

    Args:
        key: int32 tensor (2,).
        number: An int or a scalar int32 tensor.

    Returns:
        int32 tensor (2,).

    Example:
        >>> fold_in(tf.constant([1, 2]), 3).shape.as_list()
        [2]
    """
    derived: tf.Tensor = tf.random.experimental.stateless_fold_in(
        key, number, alg="philox"
    )
    return derived
