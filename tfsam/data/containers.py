"""The containers of examples: their kinds, and how many elements they have."""

import itertools
import math
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.data import elements
from tfsam.support.validators import check_count

# The most elements, and the most bytes in memory, that are read of data of
# unknown length: an endless generator would otherwise never return.
MOST = 100_000
_MOST_KEPT = 4 << 30


def check_finite(data: Any, steps: int | None = None) -> None:
    """Refuses data of another kind, and data that is known to be endless.

    Args:
        data: see `examples.batches`.
        steps: see `examples.load`.

    Raises:
        ValueError: if the data is refused, or if `steps` is not an integer >= 1
            or is given for arrays.
    """
    if steps is not None:
        check_count("steps", steps, 1)
    if in_memory(data):
        if steps is not None:
            raise ValueError(
                "steps is for datasets and generators; of arrays take a part, "
                f"x[:n] and y[:n]. Received: steps={steps} with arrays"
            )
        return
    readable = isinstance(data, Iterable) or hasattr(data, "__getitem__")
    if isinstance(data, (str, bytes, type)) or not readable:
        raise ValueError(f"{elements.KINDS} Received: data={data}")
    if length(data, steps) == math.inf:
        raise ValueError(
            "data must be finite, without repeat(); or give steps=, the number "
            f"of batches to read. Received: data={data}"
        )


def repeatable(data: Any, steps: int | None = None) -> Any:
    """Returns data that can be read more than once.

    Args:
        data: see `examples.batches`.
        steps: see `examples.load`.

    Returns:
        The data itself or, where it is an iterator, which can be read once, an
        iterable of its elements in memory.

    Raises:
        ValueError: see `examples.batches`.
    """
    check_finite(data, steps)
    return _Kept(data, steps) if isinstance(data, Iterator) else data


class _Kept:
    """The elements of an iterator, in memory; see `repeatable`.

    A list of them would be read as (x, y).
    """

    def __init__(self, iterator: Iterator[Any], steps: int | None) -> None:
        self._elements, size = [], 0
        for element in itertools.islice(iterator, steps):
            self._elements.append(element)
            if steps is None:
                leaves = tf.nest.flatten(element)
                size += sum(np.asarray(leaf).nbytes for leaf in leaves)
                if len(self) > MOST or size > _MOST_KEPT:
                    amount = f"{len(self):,} elements, {size >> 20:,} MiB,"
                    raise too_long(amount, iterator)

    def __len__(self) -> int:
        return len(self._elements)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._elements)


def in_memory(data: Any) -> bool:
    """Returns whether the data is arrays, not a container of batches."""
    if isinstance(data, tf.data.Dataset):
        return False
    return isinstance(data, (tuple, list, dict)) or hasattr(data, "__array__")


def is_py_dataset(data: Any) -> bool:
    """Returns whether the data is a `PyDataset`, whose elements are batches."""
    return isinstance(data, keras.utils.PyDataset)


def length(data: Any, steps: int | None) -> float | None:
    """Returns the number of elements: None if unknown, infinity if endless."""
    if steps is not None:
        return steps
    if isinstance(data, tf.data.Dataset):
        count = int(data.cardinality())
        if count == tf.data.INFINITE_CARDINALITY:
            return math.inf
        return None if count == tf.data.UNKNOWN_CARDINALITY else count
    if is_py_dataset(data):
        return _py_dataset_length(data)
    try:
        return len(data)
    except TypeError:
        return None


def _py_dataset_length(data: Any) -> float:
    """Returns the number of batches, infinity if the data set has no length.

    Keras reads a `PyDataset` without a length for ever.
    """
    try:
        count = data.num_batches
    except NotImplementedError:  # Raised by Keras where __len__ is missing.
        count = None
    return math.inf if count is None else count


def too_long(amount: str, data: Any) -> ValueError:
    """Returns the error of data that may be endless.

    Args:
        amount: how much was read.
        data: the data.
    """
    return ValueError(
        f"data must end: {amount} were read, and its length is unknown. Give "
        f"steps=, the number of batches to read. Received: data={data}"
    )
