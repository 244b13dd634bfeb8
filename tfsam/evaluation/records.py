"""Records: results of an evaluation, kept chunk by chunk in a folder.

A record is a folder of small files, each of which is written atomically: a
header, the cache key that describes the evaluation, and a file of arrays for
each chunk of examples in each part of the evaluation, such as
"fog-3/000000.npz". Chunks that have a file are not measured again. `verdicts`
are the records of attacks, and `corrupted_verdicts` those of corruptions.

A record is resumed only by an evaluation whose header agrees with its own. Some
entries of a header grow instead, and only the new parts are measured. Processes
that evaluate different chunks may share a folder, or use a folder each.
"""

import abc
import json
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import ClassVar
from typing import Self

import numpy as np

from tfsam.evaluation import headers
from tfsam.evaluation.headers import Header
from tfsam.support import files

Arrays = Mapping[str, np.ndarray]

# The part of a record that holds the natural verdicts.
NATURAL = "natural"

_HEADER = "record.json"


class Record(abc.ABC):
    """Arrays of an evaluation, by part and chunk, with a header.

    Args:
        header: The cache key of the evaluation, of JSON types.
        folder: Folder that keeps the record, or None to keep it in memory.

    Attributes:
        header: The cache key of everything that the record holds.
        folder: The folder, or None.
        growing: Entries of the header that grow.
        patterns: Patterns of the files that a folder of such a record holds.

    Raises:
        tfsam.support.files.Unusable: If the folder holds the record of another
            evaluation, or files of a record without a header.
    """

    growing: ClassVar[tuple[str, ...]]
    patterns: ClassVar[tuple[str, ...]]

    def __init__(
        self, header: Mapping[str, Any], folder: files.Path | None = None
    ) -> None:
        self.header: Header = json.loads(json.dumps(header))
        self.folder = None if folder is None else pathlib.Path(folder)
        self._parts: dict[tuple[str, int], Arrays] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Another process may add to the header at the same time.
        with files.locked(self.folder):
            self._open(self.folder)
        below = (self.folder.glob(pattern) for pattern in ("*/", "*/*/"))
        for place in (
            self.folder,
            *(path for paths in below for path in paths),
        ):
            for path in files.leftovers(place):
                files.remove(path)

    def _open(self, folder: pathlib.Path) -> None:
        """Adds the header to the folder's, or writes the first one."""
        held = files.read_json(folder / _HEADER)
        if held is None and any(any(folder.glob(p)) for p in self.patterns):
            raise damaged(folder)
        if held is not None:
            headers.check_same(held, self.header, folder, growing=self.growing)
            self._resume(held, folder)
        if self.header != held:
            files.write_json(folder / _HEADER, self.header)

    def load(self, part: str, chunk: int) -> Arrays:
        """Returns the saved arrays of a chunk by name; an empty dict if none.

        Images are left out.

        Args:
            part: Name of the part.
            chunk: Number of the chunk.
        """
        if (part, chunk) not in self._parts and self.folder is not None:
            found = self._read(self.folder, part, chunk)
            self._parts[part, chunk] = found
        return self._parts.get((part, chunk), {})

    def save(self, part: str, chunk: int, arrays: Arrays) -> None:
        """Saves the arrays of a chunk.

        Args:
            part: Name of the part.
            chunk: Number of the chunk.
            arrays: Arrays by name. They replace those that were saved before.
        """
        if self.folder is not None:
            path = self._path(self.folder, part, chunk)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_arrays(path, arrays)
            # Images are kept on disk only.
            arrays = {k: v for k, v in arrays.items() if not is_image(k)}
        self._parts[part, chunk] = arrays

    @classmethod
    def merged(cls, folders: Iterable[files.Path]) -> tuple[Self, list[str]]:
        """Merges the records of several processes into one, in memory.

        Args:
            folders: The folders of records of the same model and data, which
                may hold different parts.

        Returns:
            (record, mixed): the record, and the entries of the header in which
            the records differ although the evaluation is the same, such as
            "devices" or "versions".

        Raises:
            ValueError: If a folder holds no record, or the record of another
                evaluation.
        """
        record: Self | None = None
        mixed: set[str] = set()
        for folder in map(pathlib.Path, folders):
            held = files.read_json(folder / _HEADER)
            header = cls._known(held, folder)
            if record is None:
                record = cls._without_parts(header)
            mixed |= headers.check_same(
                header,
                record.header,
                folder,
                headers.OF_ROUNDING,
                cls.growing,
            )
            record._absorb(header, folder)
        if record is None:
            raise ValueError(
                "folders must name at least one record. Received: none"
            )
        return record, sorted(mixed)

    @abc.abstractmethod
    def _resume(self, held: Header, folder: pathlib.Path) -> None:
        """Adds the header to the one that a folder holds.

        Args:
            held: The folder's header, which agrees with the record's own except
                for the entries that grow.
            folder: The folder.
        """

    @classmethod
    @abc.abstractmethod
    def _known(cls, held: Header | None, folder: pathlib.Path) -> Header:
        """Returns the header of a record to be merged, in the current format.

        Args:
            held: The content of its record.json, or None.
            folder: Its folder.

        Raises:
            ValueError: If it is not the header of such a record.
        """

    @classmethod
    @abc.abstractmethod
    def _without_parts(cls, header: Header) -> Self:
        """Makes the record, in memory, into which others are merged.

        Args:
            header: The header of the first of them.
        """

    @abc.abstractmethod
    def _absorb(self, header: Header, folder: pathlib.Path) -> None:
        """Adds the header and the chunks of another record.

        Args:
            header: The header of the other record.
            folder: Its folder.
        """

    def _path(
        self, folder: pathlib.Path, part: str, chunk: int
    ) -> pathlib.Path:
        """Returns the path of a chunk."""
        return folder / self._place(part) / f"{chunk:06d}.npz"

    def _place(self, part: str) -> str:
        """Returns the path of a part in the record's folder."""
        return part

    def _read(self, folder: pathlib.Path, part: str, chunk: int) -> Arrays:
        """Returns the arrays of a chunk in a folder, empty without a file."""
        return read_arrays(self._path(folder, part, chunk))


def read_arrays(path: files.Path) -> Arrays:
    """Reads the arrays of a chunk, except for images.

    Args:
        path: Path of the file.

    Returns:
        Arrays by name; an empty dict if there is no file, or a damaged one. The
        chunk is then measured again.
    """
    try:
        # np.load would leave a damaged file open.
        with open(path, "rb") as file, np.load(file) as held:
            return {k: held[k] for k in held.files if not is_image(k)}
    except FileNotFoundError:
        return {}
    except Exception:  # A file can be damaged in many ways.
        return {}


def damaged(folder: files.Path) -> files.Unusable:
    """Returns the error about a folder whose header is missing or damaged.

    Args:
        folder: The folder.
    """
    return files.Unusable(
        f"the folder's {_HEADER} is missing or damaged, so it is unknown which "
        "evaluation its verdicts belong to; choose another folder. "
        f"Received: folder={folder}"
    )


def is_image(name: str) -> bool:
    """Returns whether an array of a chunk holds images.

    Args:
        name: Name of the array.

    Example:
        >>> is_image("adversarial"), is_image("verdict")
        (True, False)
    """
    return name.rpartition("/")[2] == "adversarial"


def chunk_count(header: Mapping[str, Any]) -> int:
    """Returns the number of chunks.

    Args:
        header: The header of a record.

    Example:
        >>> chunk_count({"n": 5, "batch_size": 2})
        3
    """
    return -(-int(header["n"]) // int(header["batch_size"]))


def chunk_indices(header: Mapping[str, Any], chunk: int) -> np.ndarray:
    """Returns the indices of a chunk's examples.

    Args:
        header: The header of a record.
        chunk: Number of the chunk.

    Example:
        >>> chunk_indices({"n": 5, "batch_size": 2}, 2).tolist()
        [4]
    """
    start = chunk * header["batch_size"]
    return np.arange(start, min(start + header["batch_size"], header["n"]))
