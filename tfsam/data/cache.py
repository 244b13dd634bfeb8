"""The cache of decoded images: one file for a data set, a size and a decoder.

Decoding a large data set takes minutes. The decoded images are kept in one file
that later runs read. The file is replaced when an image or a name
changes, and removed when the data set is gone and no run has used it for 30
days.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import time
import warnings
from collections.abc import Sequence

from tfsam.data import row_files
from tfsam.data import stacks
from tfsam.data.files import decoding
from tfsam.data.files import listings
from tfsam.data.files import resizing
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
        inside = listings.name_of(path, base)
        state.update(f"/{inside}\0{_stat(path)}\0".encode())
    kind = _digest(f"{source.resolve()}\0{form}")
    return folder / f"{kind}-{state.hexdigest()[:32]}.npy"


def read(
    path: pathlib.Path, source: pathlib.Path, count: int, size: resizing.Size
) -> stacks.Stack | None:
    """Reads a file of decoded images; see `stacks.opened`.

    Args:
        path: see `path_of`.
        source: see `path_of`.
        count: the number of images.
        size: their height and width.

    Returns:
        The images; None if there is no such file, or, with a warning, if it is
        damaged.
    """
    try:
        with open(path, "rb") as file:
            stack = stacks.opened(file)
        if stack.pixels.shape != (count, *size, 3):
            raise ValueError("it holds other images")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # A header can be broken in many ways.
        warnings.warn(
            f"The decoded images in {path} cannot be read "
            f"({type(error).__name__}: {error}): decoding again.",
            stacklevel=2,
        )
        return None
    with contextlib.suppress(OSError):  # Of a cache that cannot be written.
        os.utime(path)  # See `_unused`.
        _record(path, source)
    return stack


def decode(
    path: pathlib.Path, source: pathlib.Path, encoded: stacks.Encoded
) -> tuple[stacks.Stack, dict[str, str]]:
    """Decodes images, keeps them, and removes unused files.

    Args:
        path: see `path_of`.
        source: see `path_of`.
        encoded: the images.

    Returns:
        See `stacks.decode`.
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
        if not row_files.has_room(encoded.nbytes, folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with files.replacing(path) as temporary:
            with open(temporary, "w+b") as file:
                reasons = stacks.write(encoded, file)
        _record(path, source)
        with open(path, "rb") as file:
            return stacks.opened(file), reasons
    except OSError as error:
        # The run can go on without them.
        warnings.warn(
            f"Decoded images are not kept in {folder}: {error}", stacklevel=2
        )
        return stacks.decode(encoded)


def _stat(path: str) -> str:
    """Returns the size and the time of a file, empty where it is missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
