"""Files of rows: examples of one shape, one after another, on disk.

A file is read by `pread`, not mapped into memory: pages of a mapped file count
as the memory of the process once they are touched.
"""

import os
import pathlib
import shutil
import tempfile
import weakref
from typing import Any
from typing import BinaryIO

import numpy as np

from tfsam.data.rows import Rows
from tfsam.support import files

_SHARED = pathlib.Path("/var", "tmp")  # On disk, where /tmp may be in memory.


class Held:
    """A file that stays open as long as this object is referred to.

    Args:
        file: an open file, which may be closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.name = file.name
        self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)


def stored(
    file: Held,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    offset: int = 0,
    pitch: int | None = None,
) -> Rows:
    """Returns the rows of a file.

    Args:
        file: the file. If it is replaced, the rows are still those of the old
            one.
        shape: (n, ...), that of all rows.
        dtype: of the rows.
        offset: the position of the first row, in bytes.
        pitch: the bytes from one row to the next; None where they are adjacent.

    Raises:
        tfsam.support.files.Unusable: when rows are read, if the file was cut
            off.
    """
    row = shape[1:]
    length = int(np.prod(row)) * np.dtype(dtype).itemsize
    pitch = length if pitch is None else pitch

    def read(positions: np.ndarray) -> np.ndarray:
        found = np.empty((len(positions), *row), dtype)
        pieces = found.view(np.uint8).reshape(len(positions), length)
        for piece, position in zip(pieces, positions.tolist(), strict=True):
            at = offset + position * pitch
            if os.preadv(file.descriptor, [piece.data], at) != length:
                raise files.Unusable(
                    "a file of decoded images must not change while it is "
                    f"read. Received: {file.name}, cut off"
                )
        return found

    return Rows(read, shape, dtype)


def temporary() -> BinaryIO:
    """Opens a file that is removed when it is no longer open."""
    return tempfile.TemporaryFile(dir=_folder())


def has_room(size: int, folder: pathlib.Path | None = None) -> bool:
    """Returns whether a disk has room for a file.

    Args:
        size: its bytes; a tenth more is left free.
        folder: a folder of the disk; None for that of temporary files.
    """
    folder = _folder() if folder is None else folder
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free > size + size // 10


def _folder() -> pathlib.Path:
    """Returns the folder of temporary files: TMPDIR, or a folder on disk."""
    given = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    if not given and os.access(_SHARED, os.W_OK):
        return _SHARED
    return pathlib.Path(tempfile.gettempdir())
