"""Rows: an array of examples that is read when it is indexed.

Large data stays where it is, on disk as a rule. `Rows` look like an array of
it, of which every reader takes as many rows at a time as it needs.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np

# Data of more bytes is kept on disk.
MOST_IN_MEMORY = 256 << 20

_BLOCK = 32 << 20  # Bytes read at once where all rows are passed through.


class Rows:
    """An array whose rows are read when they are indexed.

    `rows[key]` is the NumPy array that `np.asarray(rows)[key]` is, where the
    first index is an integer, a slice, or an array of integers or bools, and
    the others are integers and slices. Nothing that is read is kept.

    Args:
        read: function from positions, int64 (k,), to a new array of these rows.
        shape: (n, ...), that of all rows.
        dtype: of the rows.

    Example:
        >>> squares = Rows(lambda positions: positions**2, (5,), np.int64)
        >>> squares[1:4].tolist(), int(squares[-1])
        ([1, 4, 9], 16)
        >>> squares.of([4, 0])[:].tolist()
        [16, 0]
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        dtype: Any,
    ) -> None:
        self._read = read
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """The bytes that all rows would take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Rows(shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: Any) -> np.ndarray:
        """Reads rows."""
        first, *others = key if isinstance(key, tuple) and key else (key,)
        if first is Ellipsis:
            first, others = slice(None), [Ellipsis, *others]
        for other in others:
            if not isinstance(other, (int, np.integer, slice, type(...))):
                raise TypeError(
                    "rows take an index of rows, and integers and slices "
                    "after it; np.asarray(rows) takes any index. "
                    f"Received: {key}"
                )
        chosen = np.arange(len(self))[first]
        found = self._read(np.ravel(chosen))
        found = found.reshape((*np.shape(chosen), *self.shape[1:]))
        return found[(slice(None),) * np.ndim(chosen) + (*others,)]

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in blocks(self):
            yield from block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Reads all rows."""
        if copy is False:
            raise ValueError("rows are read into a new array: use copy=None")
        found = np.empty(self.shape, self.dtype if dtype is None else dtype)
        start = 0
        for block in blocks(self):
            found[start : start + len(block)] = block
            start += len(block)
        return found

    def of(self, chosen: Any) -> "Rows":
        """Returns some of the rows, without reading them.

        Args:
            chosen: a slice, or an array of integers or bools.
        """
        positions = np.arange(len(self))[chosen]
        shape = (len(positions), *self.shape[1:])
        return Rows(lambda at: self._read(positions[at]), shape, self.dtype)

    def mapped(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        row: tuple[int, ...] | None = None,
        dtype: Any = None,
    ) -> "Rows":
        """Returns rows that a function changes whenever they are read.

        Args:
            function: from an array of some rows to an array of as many.
            row: the shape of a row that it returns; None for that of these.
            dtype: the dtype that it returns; None for that of these.
        """
        return Rows(
            lambda at: function(self._read(at)),
            (len(self), *(self.shape[1:] if row is None else row)),
            self.dtype if dtype is None else dtype,
        )


# Examples in memory, or read when they are indexed.
Pixels = np.ndarray | Rows


def part(examples: Any, chosen: Any) -> Any:
    """Returns some examples: of `Rows` without reading them.

    Args:
        examples: an array, or `Rows`.
        chosen: a slice, or an array of integers or bools.
    """
    if isinstance(examples, Rows):
        return examples.of(chosen)
    return examples[chosen]


def changed(
    examples: Any,
    function: Callable[[np.ndarray], np.ndarray],
    dtype: Any = None,
) -> Any:
    """Returns examples that a function changes: `Rows` when they are read.

    Args:
        examples: an array, or `Rows`.
        function: see `Rows.mapped`.
        dtype: see `Rows.mapped`.
    """
    if isinstance(examples, Rows):
        return examples.mapped(function, dtype=dtype)
    return function(examples)


def blocks(examples: Any, most: int | None = None) -> Iterator[np.ndarray]:
    """Yields all examples in their order, many at a time.

    Args:
        examples: an array (n, ...), or `Rows`.
        most: the number of examples in a block; None is as many as fit into 32
            MiB.
    """
    count = len(examples)
    if most is None:
        most = max(_BLOCK * count // max(examples.nbytes, 1), 1)
    for start in range(0, count, most):
        yield examples[start : start + most]


def extremes(examples: Any) -> np.ndarray:
    """Returns the lowest and the highest value, NaN if any value is NaN.

    Args:
        examples: an array (n, ...), or `Rows`, which is not empty.
    """
    found = [(block.min(), block.max()) for block in blocks(examples)]
    lowest, highest = zip(*found, strict=True)
    return np.array([np.min(lowest), np.max(highest)], examples.dtype)
