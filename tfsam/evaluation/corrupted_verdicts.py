"""Verdicts on corrupted images, kept in a record.

The parts of the record (see `records.py`) are those of the images as they are
and of each corruption at each severity, such as "fog-3/000000.npz". Corruptions
and severities are added to the header. The verdicts of a corruption also have
the description of that corruption: with another one they are measured again.
"""

import importlib.metadata
import pathlib
import re
import zlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Self

import numpy as np

from tfsam.evaluation import cache_key
from tfsam.evaluation import records
from tfsam.evaluation.headers import Header
from tfsam.evaluation.opening import of_first
from tfsam.evaluation.plans import Data
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.records import Arrays
from tfsam.evaluation.records import chunk_count
from tfsam.evaluation.records import chunk_indices
from tfsam.evaluation.workers import kinds_of
from tfsam.models import fingerprints
from tfsam.support import files
from tfsam.support import identity

SCHEMA = "corruptions 2"

# Entries of the header that grow; see `_grown`.
_GROWING = ("corruptions", "left_out")

# The source files whose code decides verdicts, beside those of attacks.
_DECISIVE = (
    "corruptions/*.py",
    "evaluation/corrupted*.py",
    "evaluation/records.py",
)

# The packages whose functions corrupt images.
_PACKAGES = ("numpy", "scipy", "pillow")


class Verdicts(records.Record):
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

    growing = _GROWING
    patterns = ("*.npz", "*/[0-9]*.npz")

    def _resume(self, held: Header, folder: pathlib.Path) -> None:
        self.header = _grown(held, self.header)

    @classmethod
    def _known(cls, held: Header | None, folder: pathlib.Path) -> Header:
        if held is None or not _is_header(held):
            raise ValueError(
                "a shard must be the workdir of evaluate_corruptions, like the "
                f"others. Received: folder={folder}"
            )
        return held

    @classmethod
    def _without_parts(cls, header: Header) -> Self:
        return cls(header)

    def _absorb(self, header: Header, folder: pathlib.Path) -> None:
        self.header = _grown(self.header, header)
        kinds = header["corruptions"]
        asked = {kind["name"]: kind["severities"] for kind in kinds}
        for part in parts_of(asked):
            for chunk in range(chunk_count(header)):
                arrays = self._read(folder, part, chunk)
                if arrays:
                    described = str(arrays["corruption"])
                    _check_version(self, part, described, folder)
                    self.save(part, chunk, arrays)

    def _place(self, part: str) -> str:
        slug = re.sub(r"[^a-zA-Z0-9_.-]+", "-", part)[:200]
        if slug != part:  # Two names must not share a folder.
            slug += f"-{zlib.crc32(part.encode()):08x}"
        return slug

    def _read(self, folder: pathlib.Path, part: str, chunk: int) -> Arrays:
        found = super()._read(folder, part, chunk)
        names = ["correct"]
        names += ["wrong"] if self.header.get("draws") else []
        names += ["logits"] if part == NATURAL else []
        count = len(chunk_indices(self.header, chunk))
        whole = all(
            name in found and found[name].shape[:1] == (count,)
            for name in names
        )
        return found if whole and "corruption" in found else {}

    def holds(self, part: str, chunk: int, described: str) -> bool:
        """Returns whether a chunk's verdicts are those of a corruption.

        Args:
            part: `NATURAL`, or a result of `part_of`.
            chunk: Number of the chunk.
            described: The description of the corruption.
        """
        found = self.load(part, chunk)
        return bool(found) and str(found["corruption"]) == described

    def keep(
        self, part: str, chunk: int, described: str, arrays: Arrays
    ) -> None:
        """Saves the arrays of a chunk, with the description of a corruption.

        Args:
            part: `NATURAL`, or a result of `part_of`.
            chunk: Number of the chunk.
            described: The description of the corruption.
            arrays: Arrays by name, among them `correct`, a bool array (n,). For
                a random model also `wrong`, a float array (n,), and for
                `NATURAL` also `logits`, a float array (n, classes).
        """
        self.save(part, chunk, {**arrays, "corruption": np.array(described)})

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


def is_record(folder: files.Path) -> bool:
    """Returns whether a folder holds verdicts on corrupted images.

    Args:
        folder: The folder.
    """
    header = files.read_json(pathlib.Path(folder) / "record.json") or {}
    return str(header.get("schema")).startswith("corruptions")


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
    function = of_first(model.logits, data, 16).function
    return {
        "data": cache_key.data_digest(data),
        "model_parts": cache_key.model_identity("model", model),
        "model_sketch": fingerprints.sketch(function, data.x[:16]),
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
