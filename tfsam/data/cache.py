"""The cache of decoded images: one file for a data set, a size and a decoder.

Decoding a large data set takes minutes. The decoded images are kept in one file
that later runs map into memory. The file is replaced when an image or a name
changes, and removed when the data set is gone and no run has used it for 30
days.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import time
import warnings
from collections.abc import Sequence

import numpy as np

from tfsam.data import decoding
from tfsam.data import resizing
from tfsam.data import stacks
from tfsam.support import files

# Of a file of decoded images; see `path_of`.
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.npy")

_GONE_FOR = 30 * 24 * 3600.0  # Seconds.


def default_folder() -> pathlib.Path:
    """Returns the folder of decoded images, `tfsam` in the user's cache."""
    # The XDG standard of freedesktop.org, which ignores relative paths.
    base = os.environ.get("XDG_CACHE_HOME")
    if not base or not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base, "tfsam")


def path_of(
    folder: pathlib.Path,
    source: pathlib.Path,
    paths: Sequence[str],
    form: tuple[resizing.Size, str, str],
) -> pathlib.Path:
    """Returns the path of the file for some images.

    The first part of its name stands for the data set and the form of the
    pixels, the second for the state of the files and the decoder.

    Args:
        folder: the folder of all decoded images.
        source: the folder or the table that names the images.
        paths: the files of the images.
        form: the size, the way of resizing, and the part that was read.
    """
    base = source if source.is_dir() else source.parent
    state = hashlib.sha256(decoding.VERSION.encode())
    for path in paths:
        inside = os.path.relpath(path, base)
        state.update(f"/{inside}\0{_stat(path)}\0".encode())
    kind = _digest(f"{source.resolve()}\0{form}")
    return folder / f"{kind}-{state.hexdigest()[:32]}.npy"


def read(
    path: pathlib.Path, source: pathlib.Path, count: int, size: resizing.Size
) -> np.ndarray | None:
    """Reads a file of decoded images, which is mapped into memory.

    Args:
        path: see `path_of`.
        source: see `path_of`.
        count: the number of images.
        size: their height and width.

    Returns:
        The stack, see `stacks.decode`; None if there is no such file, or, with
        a warning, if it is damaged.
    """
    try:
        # Pages are read when they are needed, and shared by processes;
        # writing to the array does not write to the file.
        stack = np.load(path, mmap_mode="c", allow_pickle=False)
        whole = stacks.is_stack(stack, count, size) and _fills(stack, path)
        reason = "it holds something else"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # A header can be broken in many ways.
        whole, reason = False, f"{type(error).__name__}: {error}"
    if not whole:
        warnings.warn(
            f"The decoded images in {path} cannot be read ({reason}): decoding "
            "again.",
            stacklevel=2,
        )
        return None
    with contextlib.suppress(OSError):  # Of a cache that cannot be written.
        os.utime(path)  # See `_unused`.
        _record(path, source)
    return stack


def keep(path: pathlib.Path, source: pathlib.Path, stack: np.ndarray) -> None:
    """Keeps decoded images, and removes unused files.

    Args:
        path: see `path_of`.
        source: see `path_of`.
        stack: the images.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        older = [
            *folder.glob(f"{_kind(path)}-*.npy"),
            # As tfsam 0.1.0 named them, which had another decoder.
            *folder.glob(f"{_digest(str(source.resolve()))}-*.npy"),
            *files.leftovers(folder),
            *_unused(folder),
        ]
        for other in older:
            files.remove(other)
        with files.replacing(path) as temporary:
            np.save(temporary, stack)
        _record(path, source)
    except OSError as error:
        # The images are in memory: the run can go on.
        warnings.warn(
            f"Decoded images are not kept in {folder}: {error}", stacklevel=2
        )


def _stat(path: str) -> str:
    """Returns the size and the time of a file, empty where it is missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fills(images: np.memmap, path: pathlib.Path) -> bool:
    return images.offset + images.nbytes == path.stat().st_size


def _kind(path: pathlib.Path) -> str:
    return path.name.partition("-")[0]


def _record(path: pathlib.Path, source: pathlib.Path) -> None:
    """Records the data set whose images a file holds, once."""
    record = path.parent / f"{_kind(path)}.json"
    if not record.exists():
        files.write_json(record, {"folder": str(source.resolve())})


def _unused(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists decoded images whose data set is gone, and the records of them.

    A data set may be on a disk that is not mounted now, and tfsam 0.1.0 did not
    record it: so images that a run has used within 30 days stay.
    """
    found = []
    for path in folder.glob("*-*.npy"):
        if not _NAME.fullmatch(path.name):
            continue
        record = folder / f"{_kind(path)}.json"
        source = (files.read_json(record) or {}).get("folder")
        if source is not None and os.path.exists(source):
            continue
        with contextlib.suppress(FileNotFoundError):  # Another run was faster.
            if time.time() - path.stat().st_mtime > _GONE_FOR:
                found += [path, record]
    return found
