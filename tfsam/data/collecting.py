"""Examples collected from batches: in memory while few, then in a file."""

from collections.abc import Sequence

import numpy as np

from tfsam.data import row_files
from tfsam.data import rows


class Collected:
    """Examples that come in batches.

    Args:
        name: the name of the examples, for errors.

    Attributes:
        nbytes: the bytes of all that were added.

    Example:
        >>> found = Collected("x")
        >>> for batch in (np.zeros((2, 3)), np.ones((1, 3))):
        ...     found.add(batch)
        >>> found.whole().shape
        (3, 3)
    """

    def __init__(self, name: str) -> None:
        self.nbytes = 0
        self._name = name
        self._count = 0
        self._form: np.ndarray | None = None  # A row like all others.
        self._held: list[np.ndarray] = []  # The batches that are in memory.
        self._file: row_files.Held | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, batch: np.ndarray) -> None:
        """Adds examples at the end.

        Args:
            batch: an array (n, ...), n >= 1.

        Raises:
            ValueError: if it does not have the shape of those before or, where
                they are in a file, their dtype.
        """
        form = batch[0] if self._form is None else self._form
        alike(self._name, [form, batch[0]])
        self._form = form
        self._count += len(batch)
        self.nbytes += batch.nbytes
        self._held.append(batch)
        if self.nbytes > rows.MOST_IN_MEMORY:
            if self._file is None:
                with row_files.temporary() as file:
                    self._file = row_files.Held(file)
            self._move(self._file, form.dtype)

    def whole(self) -> rows.Pixels:
        """Returns all examples: an array, or `Rows` of a temporary file."""
        if self._file is None or self._form is None:
            held = self._held
            return held[0] if len(held) == 1 else np.concatenate(held)
        shape = (self._count, *self._form.shape)
        return row_files.stored(self._file, shape, self._form.dtype)

    def _move(self, held: row_files.Held, dtype: np.dtype) -> None:
        """Moves the batches that are in memory to the file."""
        with open(held.descriptor, "ab", closefd=False) as file:
            for batch in self._held:
                if batch.dtype != dtype:
                    raise ValueError(
                        f"{self._name} must have one dtype for all examples. "
                        f"Received: {dtype} and {batch.dtype}"
                    )
                flat = np.ascontiguousarray(batch).reshape(-1)
                file.write(flat.view(np.uint8).data)
        self._held = []


def alike(name: str, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Returns arrays after checking that they have one shape.

    Args:
        name: the name of the examples, for the error.
        arrays: the arrays.

    Raises:
        ValueError: if they have several.
    """
    found = sorted({array.shape for array in arrays})
    if len(found) > 1:
        raise ValueError(
            f"{name} must have one shape for all examples. "
            f"Received: {', '.join(map(str, found[:3]))}"
        )
    return arrays
