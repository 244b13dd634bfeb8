"""Files that appear whole or not at all.

`replacing` and its relatives write beside the place and move the result there.
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

import numpy as np

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Of `replacing`: the process, a random number, and where the process runs.
_TEMPORARY = re.compile(r"^\.(\d+)(?:\.[0-9a-f]+)?_([^-]*)-")
_ABANDONED = 7 * 24 * 3600.0  # Seconds.

# How messages of Keras and TensorFlow are built; see `reason`.
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
    """A file has no room: the disk is full, or a quota or a limit is."""


class Unusable(ValueError):
    """A file that a run has kept is damaged, or of another run."""


def expanded(path):
    """A user's path, in which ~ and ~name are home folders.

    Args:
        path: text, or a path.

    Raises:
        ValueError: if nobody has the name.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            "~ at the start of a path must be a home folder "
            f"({reason(error)}). Received: {path}"
        ) from error


def reason(error):
    """Returns the line of an error's message that says what is wrong.

    Keras and TensorFlow put other lines around it: where the error was raised,
    stack traces, arguments, and the configurations of whole networks.

    Args:
        error: an exception.

    Returns:
        One line without terminal codes; the name of the exception's class if
        the message is empty.
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


def _without_details(line):
    """Strips names of graph nodes, values and configurations from a line."""
    for marker in _DETAILS:
        line = line.partition(marker)[0]
    return _NODES.sub("", line.strip()).strip()


@contextlib.contextmanager
def reading(path, expected):
    """Says which of a run's own files it was that cannot be read.

    Args:
        path: of the file that is read within.
        expected: what it should hold.

    Raises:
        Unusable: if anything is raised within.
    """
    try:
        yield
    except Exception as error:
        # A file can be broken in more ways than one knows.
        raise Unusable(
            f"{path} must hold {expected} ({reason(error)}). "
            "Received: a damaged file"
        ) from error


def no_room(error):
    """What the system said, if an error comes of a full disk; else None.

    Keras, HDF5 and TensorFlow have exceptions of their own for it, in which
    only the system's words remain.

    Args:
        error: an exception.
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
def writing(path):
    """Says which file it was that has no room.

    Args:
        path: of the file that is written within.

    Raises:
        DiskFull: if the disk is full.
    """
    try:
        yield
    except Exception as error:
        words = no_room(error)
        if words is None or isinstance(error, DiskFull):
            raise
        raise DiskFull(f"cannot write {path}: {words}") from error


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary path, and moves what was made there to `path`.

    Args:
        path: of a file or a folder; what stands there is replaced.

    Yields:
        A path beside `path` with the same ending.

    Raises:
        DiskFull: if there is no room for it; what stood there still stands.
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


def leftovers(folder):
    """Returns the temporary paths in a folder that dead processes left there.

    A process of another host or container cannot be looked up; its files count
    as left once they have not changed for a week.

    Args:
        folder: the folder of the paths given to `replacing`; it need not exist.
    """
    return [
        path
        for path in temporaries(folder)
        if _is_orphan(path, *_TEMPORARY.findall(path.name)[0])
    ]


def temporaries(folder):
    """Returns all temporary paths in a folder, whoever writes them.

    Args:
        folder: the folder of the paths given to `replacing`; it need not exist.
    """
    found = pathlib.Path(folder).glob(".*-*")
    return [path for path in found if _TEMPORARY.match(path.name)]


def _host():
    """Returns a name for where this process's number is the only one.

    Containers may share a folder and a host name, and in each of them the
    first process has number 1: so it is the host's name with the start of the
    machine and the namespace of the numbers, where the system tells them.
    """
    place = ""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
        place = f"{boot}{os.stat('/proc/self/ns/pid').st_ino}"
    name = re.sub(r"[^\w.]", "_", socket.gethostname())
    return f"{name}.{zlib.crc32(place.encode()):08x}"


def _is_orphan(path, pid, host):
    """Returns whether a temporary path's process is gone."""
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


def remove(path):
    """Removes a file or a folder, if it is there.

    Args:
        path: its path.
    """
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_atomically(path, text):
    """Writes a text file.

    Args:
        path: the file.
        text: its content.
    """
    with replacing(path) as temporary, open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path, content):
    """Writes JSON.

    Args:
        path: the file.
        content: what `json.dumps` takes.
    """
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path):
    """What a JSON file holds; None if there is no such file, or no object.

    Args:
        path: the file.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_arrays(path, arrays):
    """Writes arrays by name.

    Args:
        path: the .npz file.
        arrays: a dict of arrays.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())


def listing(entries):
    """Describes files by their names, sizes and times, without reading them.

    Args:
        entries: pairs of a file's name and what `os.stat` says of it.

    Returns:
        A line: how many there are, their bytes, and a checksum.
    """
    total, count, size = hashlib.sha256(), 0, 0
    for name, stat in sorted(entries, key=lambda entry: entry[0]):
        total.update(f"{name}\0{stat.st_size} {stat.st_mtime_ns}\0".encode())
        count, size = count + 1, size + stat.st_size
    return f"{count} files, {size} bytes, checksum {total.hexdigest()[:16]}"


def entries(path):
    """Lists a file, or all files of a folder, for `listing`.

    Args:
        path: of the file or the folder.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return [("", path.stat())]
    return [
        (file.relative_to(path).as_posix(), file.stat())
        for file in path.rglob("*")
        if file.is_file()
    ]


def digest(path):
    """A checksum of a file, or of all files of a folder and their names.

    Args:
        path: of the file or the folder.
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
