"""Files that are written atomically, and errors of reading and writing them.

`replacing`, and the functions that use it, write a temporary file beside the
destination and move it there.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

Path = str | os.PathLike[str]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# A temporary name of `replacing`: number of the process, a random number, and
# the host of the process.
_TEMPORARY = re.compile(r"^\.(\d+)(?:\.[0-9a-f]+)?_([^-]*)-")
_ABANDONED = 7 * 24 * 3600.0  # Seconds.

# Parts of messages of Keras and TensorFlow; see `reason`.
_TERMINAL_CODES = re.compile(r"\x1b\[[\d;]*m")
_NESTED = "Exception encountered: "
_SURROUNDING = re.compile(
    r"Exception encountered when calling |Graph execution error|"
    r"Detected at node |<stack traces|Stack trace|File \"|"
    r"Arguments received by |\u2022|.*could not be deserialized properly|"
    r"Error when deserializing class |config=\{|\d+ root error\(s\) found"
)
_DETAILS = (" Full object config: {", " Received args: (", " [Op:")
_NODES = re.compile(
    r"^\(\d+\) [A-Z_]+: |\[\[\{\{.*?\]\]|\{\{(?:function_node|node) .*?\}\} ?"
)


class DiskFull(OSError):
    """A file cannot be written: the disk is full, or a quota or limit is."""


class Unusable(ValueError):
    """A file of a run is damaged, or belongs to another run."""


def expanded(path: Path) -> pathlib.Path:
    """Replaces ~ and ~name at the start of a path by home folders.

    Args:
        path: The path, as the user gave it.

    Raises:
        ValueError: If there is no user of this name.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            "~ at the start of a path must be a home folder "
            f"({reason(error)}). Received: {path}"
        ) from error


def reason(error: BaseException) -> str:
    r"""Returns the line of an error's message that states the reason.

    Keras and TensorFlow surround it with other lines: the place of the error,
    stack traces, arguments, and the configurations of whole networks.

    Args:
        error: The exception.

    Returns:
        A line without terminal codes; the name of the exception's class if the
        message is empty.

    Example:
        >>> reason(ValueError("no such layer\nArguments received by call:"))
        'no such layer'
    """
    text = _TERMINAL_CODES.sub("", str(error))
    # Keras puts the configuration of each enclosing object before the reason.
    innermost = text.rpartition(_NESTED)[2]
    found = [
        line
        for line in map(_without_details, innermost.splitlines())
        if line and not _SURROUNDING.match(line)
    ]
    if found:
        return found[0]
    lines = text.split("\n")
    return next(filter(None, map(str.strip, lines)), type(error).__name__)


def _without_details(line: str) -> str:
    """Removes names of graph nodes, values and configurations from a line."""
    for marker in _DETAILS:
        line = line.partition(marker)[0]
    return _NODES.sub("", line.strip()).strip()


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Names the file in errors that are raised while it is read.

    Args:
        path: Path of the file, one of a run's own.
        expected: Description of the content that it should have.

    Raises:
        Unusable: If the block raises any exception.
    """
    try:
        yield
    except Exception as error:
        # A file can be damaged in many ways.
        raise Unusable(
            f"{path} must hold {expected} ({reason(error)}). "
            "Received: a damaged file"
        ) from error


def no_room(error: BaseException) -> str | None:
    """Returns the system's message if a full disk caused an error, else None.

    Keras, HDF5 and TensorFlow raise exceptions of their own, which contain only
    the system's message.

    Args:
        error: The exception.
    """
    cause: BaseException | None = error
    while cause is not None:
        for code in _NO_ROOM:
            words = os.strerror(code)
            if getattr(cause, "errno", None) == code or words in str(cause):
                return words
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file if the disk is full while it is written.

    Args:
        path: Path of the file.

    Raises:
        DiskFull: If the disk is full.
    """
    try:
        yield
    except Exception as error:
        words = no_room(error)
        if words is None or isinstance(error, DiskFull):
            raise
        raise DiskFull(f"cannot write {path}: {words}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Replaces a file or a folder atomically.

    Args:
        path: Path of the file or the folder, which need not exist.

    Yields:
        A temporary path beside `path` with the same suffix. The file or folder
        made there is moved to `path` at the end of the block.

    Raises:
        DiskFull: If the disk is full. The old file or folder is kept.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "notes.txt")
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("done")
        >>> path.read_text()
        'done'
    """
    path = pathlib.Path(path)
    mine = f"{os.getpid()}.{secrets.token_hex(4)}_{_host()}"
    temporary = path.with_name(f".{mine}-{path.name}")
    try:
        with writing(path):
            yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        remove(temporary)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process has locked a folder, and locks it.

    The kernel releases the lock when the process ends, however it ends. Windows
    has no such lock; there, nothing is locked.

    Args:
        folder: The folder, which must exist.

    Example:
        >>> import tempfile
        >>> with locked(tempfile.mkdtemp()):
        ...     pass
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def leftovers(folder: Path) -> list[pathlib.Path]:
    """Returns the temporary paths that processes left behind when they ended.

    A process of another host or container cannot be looked up. Its files count
    as leftovers if they have not changed for a week.

    Args:
        folder: Folder of paths given to `replacing`; it need not exist.
    """
    return [
        path
        for path in temporaries(folder)
        if _is_orphan(path, *_TEMPORARY.findall(path.name)[0])
    ]


def temporaries(folder: Path) -> list[pathlib.Path]:
    """Returns all temporary paths in a folder, of any process.

    Args:
        folder: Folder of paths given to `replacing`; it need not exist.
    """
    found = pathlib.Path(folder).glob(".*-*")
    return [path for path in found if _TEMPORARY.match(path.name)]


def _host() -> str:
    """Returns a name of the host in which process numbers are unique.

    Containers may share a folder and a host name, and in each of them the first
    process has number 1. The name therefore includes a checksum of the boot and
    of the namespace of process numbers, if the system reports them.
    """
    place = ""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
        place = f"{boot}{os.stat('/proc/self/ns/pid').st_ino}"
    name = re.sub(r"[^\w.]", "_", socket.gethostname())
    return f"{name}.{zlib.crc32(place.encode()):08x}"


def _is_orphan(path: pathlib.Path, pid: str, host: str) -> bool:
    """Returns whether the process of a temporary path has ended."""
    if host != _host():
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > _ABANDONED
        return False
    try:
        os.kill(int(pid), 0)
    except (OverflowError, ProcessLookupError):
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder, if it exists.

    Args:
        path: Its path.
    """
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Args:
        path: Path of the file.
        text: Its content.
    """
    with replacing(path) as temporary, open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically.

    Args:
        path: Path of the file.
        content: Value of JSON types.
    """
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; returns None if there is no such file, or no object.

    Args:
        path: Path of the file.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an .npz file atomically.

    Args:
        path: Path of the file.
        arrays: Arrays by name.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())


def listing(entries: Iterable[tuple[str, os.stat_result]]) -> str:
    """Describes files by their names, sizes and times, without reading them.

    Args:
        entries: Pairs of the name and the status of a file.

    Returns:
        A line with the number of files, their bytes, and a checksum.
    """
    total, count, size = hashlib.sha256(), 0, 0
    for name, stat in sorted(entries, key=lambda entry: entry[0]):
        total.update(f"{name}\0{stat.st_size} {stat.st_mtime_ns}\0".encode())
        count, size = count + 1, size + stat.st_size
    return f"{count} files, {size} bytes, checksum {total.hexdigest()[:16]}"


def entries(path: Path) -> list[tuple[str, os.stat_result]]:
    """Lists a file, or all files of a folder, for `listing`.

    Args:
        path: Path of the file or the folder.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return [("", path.stat())]
    return [
        (file.relative_to(path).as_posix(), file.stat())
        for file in path.rglob("*")
        if file.is_file()
    ]


def checksum(path: Path) -> str:
    """Computes the SHA-256 of a file; of a folder, the `digest`.

    Args:
        path: Path of the file or the folder.

    Returns:
        64 hexadecimal digits.
    """
    if pathlib.Path(path).is_dir():
        return digest(path)
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digest(path: Path) -> str:
    """Computes a checksum of a file, or of a folder's files and their names.

    Args:
        path: Path of the file or the folder.

    Returns:
        64 hexadecimal digits.
    """
    path = pathlib.Path(path)
    if path.is_file():
        files = [path]
    else:
        files = sorted(p for p in path.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as content:
            part = hashlib.file_digest(content, "sha256")
        total.update(part.digest())
    return total.hexdigest()
