"""Verdicts on corrupted images, chunk by chunk, kept in a record.

A record is a folder with a header, the cache key that describes the evaluation,
and a file for each chunk of examples, for the images as they are and for each
corruption at each severity, such as "fog-3/000000.npz". Chunks that have a file
are not measured again.

A record is resumed only by an evaluation whose header, the description of the
data, the model, the seed and the software, is the same. It grows: corruptions
and severities are added to the header. The verdicts of a corruption also have
the description of that corruption: with another one they are measured again.
Processes that evaluate different chunks may share a folder, or use a folder
each.
"""

import importlib.metadata
import json
import pathlib
import re
import zlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfsam.evaluation import cache_key
from tfsam.evaluation import headers
from tfsam.evaluation.plans import Data
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.verdicts import chunk_count
from tfsam.evaluation.verdicts import chunk_indices
from tfsam.evaluation.workers import kinds_of
from tfsam.models import fingerprints
from tfsam.support import files
from tfsam.support import identity

Header = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

SCHEMA = "corruptions 2"

# Entries of the header that grow; see `_grown`.
_GROWING = ("corruptions", "left_out")

# The source files whose code decides verdicts, beside those of attacks.
_DECISIVE = (
    "corruptions/*.py",
    "evaluation/corrupted.py",
)

# The packages whose functions corrupt images.
_PACKAGES = ("numpy", "scipy", "pillow")


class Verdicts:
    """The verdicts of an evaluation on corrupted images.

    Args:
        header: The cache key of the evaluation, of JSON types.
        folder: Folder that keeps the verdicts, or None to keep them in memory.

    Attributes:
        header: The cache key of everything that the record holds.

    Raises:
        tfsam.support.files.Unusable: If the folder holds the verdicts of
            another evaluation, or verdicts without a header.
    """

    def __init__(
        self, header: Header, folder: files.Path | None = None
    ) -> None:
        self.header: Header = json.loads(json.dumps(header))
        self._folder = None if folder is None else pathlib.Path(folder)
        self._parts: dict[tuple[str, int], Arrays] = {}
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # Another process may add a corruption at the same time.
        with files.locked(self._folder):
            self._open(self._folder)
        for place in (self._folder, *self._folder.glob("*/")):
            for path in files.leftovers(place):
                files.remove(path)

    def _open(self, folder: pathlib.Path) -> None:
        """Adds the header to the folder's, or writes the first one."""
        path = folder / "record.json"
        held = files.read_json(path)
        if held is None and _holds_verdicts(folder):
            raise files.Unusable(
                "the folder's record.json is missing or damaged, so it is "
                "unknown which evaluation its verdicts belong to; choose "
                f"another folder. Received: {folder}"
            )
        if held is not None:
            headers.check_same(_fixed(held), _fixed(self.header), folder)
            self.header = _grown(held, self.header)
        if self.header != held:
            files.write_json(path, self.header)

    def load(self, part: str, chunk: int) -> Arrays:
        """Returns the saved arrays of a chunk by name; an empty dict if none.

        Args:
            part: `NATURAL`, or a result of `part_of`.
            chunk: Number of the chunk.
        """
        if (part, chunk) not in self._parts and self._folder is not None:
            found = _read(self._folder, self.header, part, chunk)
            self._parts[part, chunk] = found
        return self._parts.get((part, chunk), {})

    def holds(self, part: str, chunk: int, described: str) -> bool:
        """Returns whether a chunk's verdicts are those of a corruption.

        Args:
            part: `NATURAL`, or a result of `part_of`.
            chunk: Number of the chunk.
            described: The description of the corruption.
        """
        found = self.load(part, chunk)
        return bool(found) and str(found["corruption"]) == described

    def save(
        self, part: str, chunk: int, described: str, arrays: Arrays
    ) -> None:
        """Saves the arrays of a chunk.

        Args:
            part: `NATURAL`, or a result of `part_of`.
            chunk: Number of the chunk.
            described: The description of the corruption.
            arrays: Arrays by name, among them `correct`, a bool array (n,). For
                a random model also `wrong`, a float array (n,), and for
                `NATURAL` also `logits`, a float array (n, classes).
        """
        arrays = {**arrays, "corruption": np.array(described)}
        if self._folder is not None:
            path = _path(self._folder, part, chunk)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_arrays(path, arrays)
        self._parts[part, chunk] = arrays

    def asked(self) -> dict[str, list[int]]:
        """Returns the severities of each corruption of the header."""
        return {
            kind["name"]: kind["severities"]
            for kind in self.header["corruptions"]
        }


def part_of(name: str, severity: int) -> str:
    """Returns the name of the part of a corruption at a severity.

    Args:
        name: Name of the corruption.
        severity: The severity.

    Example:
        >>> part_of("fog", 3)
        'fog-3'
    """
    return f"{name}-{severity}"


def parts_of(asked: Mapping[str, Iterable[int]]) -> list[str]:
    """Returns the names of all parts of a record.

    Args:
        asked: The severities of each corruption.

    Example:
        >>> parts_of({"fog": [1, 5]})
        ['natural', 'fog-1', 'fog-5']
    """
    return [NATURAL, *(part_of(name, s) for name in asked for s in asked[name])]


def merged(folders: Iterable[files.Path]) -> tuple[Verdicts, list[str]]:
    """Merges the records of several processes into one, in memory.

    Args:
        folders: The folders of records of the same model and data. They may
            hold different corruptions and severities.

    Returns:
        (record, mixed): the `Verdicts`, and the entries of the header in which
        the records differ although the evaluation is the same, such as
        "devices" or "versions".

    Raises:
        ValueError: If a folder holds no record, or the record of another
            evaluation, or if the verdicts of a corruption are those of two
            versions of it.
    """
    record: Verdicts | None = None
    mixed: set[str] = set()
    for folder in map(pathlib.Path, folders):
        header = files.read_json(folder / "record.json")
        if header is None or not _is_header(header):
            raise ValueError(
                "a shard must be the workdir of evaluate_corruptions, like the "
                f"others. Received: {folder}"
            )
        if record is None:
            record = Verdicts(header)
        mixed |= headers.check_same(
            _fixed(header), _fixed(record.header), folder, headers.OF_ROUNDING
        )
        record.header = _grown(record.header, header)
        for part, chunk, arrays in _chunks(folder, header):
            described = str(arrays["corruption"])
            _check_version(record, part, described, folder)
            record.save(part, chunk, described, arrays)
    if record is None:
        raise ValueError("merge needs folders. Received: none")
    return record, sorted(mixed)


def is_record(folder: files.Path) -> bool:
    """Returns whether a folder holds verdicts on corrupted images.

    Args:
        folder: The folder.
    """
    header = files.read_json(pathlib.Path(folder) / "record.json") or {}
    return str(header.get("schema")).startswith("corruptions")


def _chunks(
    folder: pathlib.Path, header: Header
) -> Iterator[tuple[str, int, Arrays]]:
    """Yields (part, number of the chunk, arrays) of all chunks of a folder."""
    kinds = {kind["name"]: kind["severities"] for kind in header["corruptions"]}
    for part in parts_of(kinds):
        for chunk in range(chunk_count(header)):
            arrays = _read(folder, header, part, chunk)
            if arrays:
                yield part, chunk, arrays


def _check_version(
    record: Verdicts, part: str, described: str, folder: pathlib.Path
) -> None:
    """Rejects verdicts of two versions of one corruption."""
    chunks = range(chunk_count(record.header))
    known = next((c for c in chunks if record.load(part, c)), None)
    if known is not None and not record.holds(part, known, described):
        raise ValueError(
            f"the shards must have one version of the corruption {part}; "
            f"evaluate it again. Received: another version in {folder}"
        )


def _fixed(header: Header) -> Header:
    """Returns the entries of a header that must not change."""
    return {k: v for k, v in header.items() if k not in _GROWING}


def _grown(held: Header, added: Header) -> Header:
    """Adds the corruptions and severities of a header to another one."""
    if not _is_header(held):
        return added
    kinds = {kind["name"]: kind["severities"] for kind in held["corruptions"]}
    for kind in added["corruptions"]:
        known = kinds.get(kind["name"], [])
        kinds[kind["name"]] = sorted({*known, *kind["severities"]})
    return held | {
        "corruptions": [
            {"name": name, "severities": found} for name, found in kinds.items()
        ],
        "left_out": held["left_out"] | added["left_out"],
    }


def _is_header(header: Header) -> bool:
    """Returns whether a JSON object has the entries that records need."""
    counts = [header.get(key) for key in ("n", "batch_size")]
    kinds, left_out = (header.get(key) for key in _GROWING)
    return (
        header.get("schema") == SCHEMA
        and all(type(count) is int and count > 0 for count in counts)
        and type(header.get("constants")) is int
        and type(header.get("draws")) in (int, type(None))
        and type(left_out) is dict
        and type(kinds) is list
        and all(_is_kind(kind) for kind in kinds)
    )


def _is_kind(kind: Any) -> bool:
    return (
        type(kind) is dict
        and type(kind.get("name")) is str
        and type(kind.get("severities")) is list
        and all(type(severity) is int for severity in kind["severities"])
    )


def _holds_verdicts(folder: pathlib.Path) -> bool:
    """Returns whether a folder without a header holds files of a record."""
    return any(
        any(folder.glob(pattern)) for pattern in ("*.npz", "*/[0-9]*.npz")
    )


def _path(folder: pathlib.Path, part: str, chunk: int) -> pathlib.Path:
    slug = re.sub(r"[^a-zA-Z0-9_.-]+", "-", part)[:200]
    if slug != part:  # Two names must not share a folder.
        slug += f"-{zlib.crc32(part.encode()):08x}"
    return folder / slug / f"{chunk:06d}.npz"


def _read(
    folder: pathlib.Path, header: Header, part: str, chunk: int
) -> Arrays:
    """Returns the arrays of a file; none if there is no file, or a damaged one.

    A damaged chunk is measured again.
    """
    try:
        # np.load would leave a damaged file open.
        with (
            open(_path(folder, part, chunk), "rb") as file,
            np.load(file) as held,
        ):
            found = {name: held[name] for name in held.files}
    except FileNotFoundError:
        return {}
    except Exception:  # A file can be damaged in many ways.
        return {}
    names = ["correct"]
    names += ["wrong"] if header.get("draws") else []
    names += ["logits"] if part == NATURAL else []
    count = len(chunk_indices(header, chunk))
    whole = all(
        name in found and found[name].shape[:1] == (count,) for name in names
    )
    return found if whole and "corruption" in found else {}


def described_header(
    model: cache_key.Model, data: Data, devices: Iterable[str | None]
) -> Header:
    """Describes everything that verdicts depend on, but for the corruptions.

    Args:
        model: The model.
        data: The images before they are corrupted, with their labels.
        devices: Names of devices, None for the device of TensorFlow's choice.

    Raises:
        ValueError: If the model cannot be described and has no name.
    """
    digest = cache_key.source_digest(_DECISIVE)
    return {
        "data": cache_key.data_digest(data),
        "model_parts": cache_key.model_identity("model", model),
        "model_sketch": fingerprints.sketch(model.logits.function, data.x[:16]),
        "jit_compile": model.logits.jit_compile,
        "devices": kinds_of(devices),
        "versions": cache_key.versions() | {"tfsam's corruptions": digest},
        # Other versions of these corrupt an image in another way.
        "packages": {p: importlib.metadata.version(p) for p in _PACKAGES},
    }


def described(name: str, corruption: Any) -> str:
    """Describes a corruption so that another process recognises it.

    Args:
        name: The name under which it is registered, with its options.
        corruption: The corruption.

    Returns:
        A checksum.
    """
    try:
        parts = identity.describe(corruption)
    except identity.Unknown:  # The version of its package is known.
        kind = type(corruption)
        package = kind.__module__.partition(".")[0]
        parts = {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "version": identity.version_of(package),
        }
    return identity.digest([name, parts])
