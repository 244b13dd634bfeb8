"""Verdicts: which stage of an attack broke which example, kept in a record.

A record is a folder of small files, each of which is written atomically: a
header, the cache key that describes the evaluation, and a file for each chunk
of examples, for natural accuracy and for each attack. Chunks that have a file
are not measured again. Processes that evaluate different chunks may share a
folder, or use a folder each.
"""

import json
import pathlib
import re
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfsam.models import fingerprints
from tfsam.support import files
from tfsam.support import identity

__all__ = ["MISCLASSIFIED", "NATURAL", "STANDS", "load"]

Header = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

# Version of the header. Records of tfsam 0.1.0 have schema 1. They can be read
# and merged, but do not describe the evaluation well enough to be resumed.
SCHEMA = 2

# Entries of the header that change verdicts through rounding errors only.
_OF_ROUNDING = ("devices", "versions", "jit_compile")

# The verdict of an example: it survives; it is misclassified without an attack;
# or the number of the attack's stage that broke it, from 1.
STANDS = -1
MISCLASSIFIED = 0

# The part of a record that holds the natural verdicts.
NATURAL = "natural"


class Record:
    """The verdicts of an evaluation.

    Args:
        header: The cache key of the evaluation, of JSON types.
        folder: Folder that keeps the record, or None to keep it in memory.

    Raises:
        tfsam.support.files.Unusable: If the folder holds the record of another
            evaluation, or verdicts without a header.
    """

    def __init__(
        self, header: Mapping[str, Any], folder: files.Path | None = None
    ) -> None:
        self.header: Header = json.loads(json.dumps(header))
        self.folder = None if folder is None else pathlib.Path(folder)
        self._parts: dict[tuple[str, int], Arrays] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        held = files.read_json(self.folder / "record.json")
        if held is None:
            if any(self.folder.glob("*/[0-9]*.npz")):
                raise files.Unusable(
                    "the folder's record.json is missing or damaged, so it is "
                    "unknown which evaluation its verdicts belong to. "
                    f"Received: {self.folder}"
                )
            files.write_json(self.folder / "record.json", self.header)
        else:
            _check_same(held, self.header, self.folder)
            completed = _completed(held, self.header)
            if completed != held:
                files.write_json(self.folder / "record.json", completed)
        for folder in [self.folder, *self.folder.glob("*/")]:
            for path in files.leftovers(folder):
                files.remove(path)

    def load(self, part: str, chunk: int) -> Arrays:
        """Returns the saved arrays of a chunk by name; an empty dict if none.

        Images are left out.

        Args:
            part: `NATURAL`, or `part_of` an attack.
            chunk: Number of the chunk.
        """
        if (part, chunk) not in self._parts and self.folder is not None:
            found = _read_arrays(_path(self.folder, part, chunk))
            self._parts[part, chunk] = found
        return self._parts.get((part, chunk), {})

    def save(self, part: str, chunk: int, arrays: Arrays) -> None:
        """Saves the arrays of a chunk.

        Args:
            part: `NATURAL`, or `part_of` an attack.
            chunk: Number of the chunk.
            arrays: Arrays by name. They replace those that were saved before.
        """
        if self.folder is not None:
            path = _path(self.folder, part, chunk)
            path.parent.mkdir(exist_ok=True)
            files.write_arrays(path, arrays)
            # Images are kept on disk only.
            arrays = {k: v for k, v in arrays.items() if not is_image(k)}
        self._parts[part, chunk] = arrays


def merged(folders: Iterable[files.Path]) -> tuple[Record, list[str]]:
    """Merges the records of several processes into one, in memory.

    Args:
        folders: The folders of records of the same evaluation.

    Returns:
        (record, mixed): the `Record`, and the entries of the header in which
        the records differ although the evaluation is the same, such as
        "devices" or "versions".

    Raises:
        ValueError: If a folder holds no record, or the record of another
            evaluation.
    """
    record: Record | None = None
    mixed: set[str] = set()
    for folder in map(pathlib.Path, folders):
        header = files.read_json(folder / "record.json")
        if header is None or not _is_header(header):
            raise ValueError(
                f"a shard must be the folder of a record. Received: {folder}"
            )
        if record is None:
            record = Record(header)
        mixed |= _check_same(header, record.header, folder, _OF_ROUNDING)
        for path in sorted(folder.glob("*/[0-9]*.npz")):
            arrays = _read_arrays(path)
            key = path.parent.name, int(path.stem)
            # If an attack failed in a shard, another one may have more.
            if len(arrays) >= len(record.load(*key)):
                record.save(*key, arrays)
    if record is None:
        raise ValueError("merge needs folders. Received: none")
    return record, sorted(mixed)


def load(folder: files.Path) -> dict[tuple[str, float], np.ndarray]:
    """Loads the verdicts of a record, example by example.

    Args:
        folder: The `workdir` of an evaluation.

    Returns:
        A dict from (attack, epsilon) to an int8 array (n,). An entry is -1
        (`STANDS`) for a survivor, 0 (`MISCLASSIFIED`) for an example that is
        misclassified without an attack, or the number of the stage, from 1,
        that broke the example at this epsilon or a smaller one. An attack is
        identified by its name, or by its part of the record ("01-pgd") if two
        attacks have the same name. Epsilons that are not completely measured
        are absent.

    Raises:
        ValueError: If the folder holds no record.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import tfsam
        >>> x = np.random.default_rng(0).random((6, 4), dtype="float32")
        >>> weights = 9 * np.eye(4, 3, dtype="float32")
        >>> data, folder = (x, np.arange(6) % 3), tempfile.mkdtemp()
        >>> result = tfsam.evaluate(
        ...     lambda x: x @ weights,
        ...     data,
        ...     ["fgsm"],
        ...     epsilons=[0.1],
        ...     workdir=folder,
        ... )
        >>> survives = load(folder)["fgsm", 0.1] == STANDS
        >>> float(survives.mean()) == result["robust"][0]["accuracy"]
        True
    """
    record, _ = merged([folder])
    header, found = record.header, {}
    names = [attack["name"] for attack in header["attacks"]]
    for number, name in enumerate(names):
        part = part_of(number, name)
        label = name if names.count(name) == 1 else part
        for index, epsilon in enumerate(sorted(set(header["epsilons"]))):
            columns = [
                record.load(part, chunk).get(f"{index}/verdict")
                for chunk in range(chunk_count(header))
            ]
            measured = [column for column in columns if column is not None]
            if len(measured) == len(columns):
                found[label, epsilon] = np.concatenate(measured)
    return found


def part_of(number: int, name: str) -> str:
    """Returns the name of an attack's part of a record.

    Args:
        number: Number of the attack.
        name: Name of the attack.

    Example:
        >>> part_of(1, "foolbox:LinfPGD")
        '01-foolbox-LinfPGD'
    """
    slug = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)
    return f"{number:02d}-{slug[:200]}"


def chunk_count(header: Mapping[str, Any]) -> int:
    """Returns the number of chunks.

    Args:
        header: The header of a record.
    """
    return -(-int(header["n"]) // int(header["batch_size"]))


def chunk_indices(header: Mapping[str, Any], chunk: int) -> np.ndarray:
    """Returns the indices of a chunk's examples.

    Args:
        header: The header of a record.
        chunk: Number of the chunk.
    """
    start = chunk * header["batch_size"]
    return np.arange(start, min(start + header["batch_size"], header["n"]))


def is_image(name: str) -> bool:
    """Returns whether an array of a chunk holds images.

    Args:
        name: Name of the array.
    """
    return name.endswith("/adversarial")


def _is_header(header: Mapping[str, Any]) -> bool:
    """Returns whether a JSON object has the entries that `load` reads."""
    kinds: dict[str, type] = {
        **dict.fromkeys(("n", "batch_size", "classes"), int),
        **dict.fromkeys(("attacks", "epsilons"), list),
        "norm": str,
    }
    return (
        all(type(header.get(key)) is kind for key, kind in kinds.items())
        and min(header["n"], header["batch_size"]) > 0
        and all(type(epsilon) is float for epsilon in header["epsilons"])
        and all(
            type(attack) is dict
            and type(attack.get("name")) is str
            and type(attack.get("options")) is dict
            for attack in header["attacks"]
        )
    )


def _path(folder: pathlib.Path, part: str, chunk: int) -> pathlib.Path:
    return folder / part / f"{chunk:06d}.npz"


def _read_arrays(path: pathlib.Path) -> Arrays:
    try:
        with np.load(path) as held:
            return {k: held[k] for k in held.files if not is_image(k)}
    except FileNotFoundError:
        return {}
    except Exception:
        # A file can be damaged in many ways; the chunk is measured again.
        return {}


def _check_same(
    held: Header,
    header: Header,
    folder: pathlib.Path,
    allowed: Collection[str] = (),
) -> set[str]:
    """Checks that two headers describe the same evaluation.

    Args:
        held: Header of the record in the folder.
        header: Header of the evaluation.
        folder: Folder of the record.
        allowed: Entries that may differ, except for tfsam's version.

    Returns:
        The allowed entries that differ.

    Raises:
        tfsam.support.files.Unusable: If other entries differ. The message lists
            them.
    """
    if held.get("schema") != header.get("schema"):
        raise files.Unusable(
            f"{folder} holds a record of another version of tfsam, which "
            "cannot be resumed: choose another folder. "
            f"Received: schema={header.get('schema')} "
            f"(it has {held.get('schema')})"
        )
    changes, accepted = [], set()
    for key in {**held, **header}:
        new, old = header.get(key), held.get(key)
        if _same(key, new, old) or _not_comparable(key, held, header):
            continue
        new, old = _differing(new, old)
        if key in allowed and not any("tfsam" in part for part in new):
            accepted.add(key)
        elif key.endswith("_sketch"):
            changes.append(f"{key}=other logits or gradients")
        else:
            changes.append(f"{key}={_shown(new)} (it has {_shown(old)})")
    if changes:
        raise files.Unusable(
            f"{folder} holds the record of another evaluation; choose another "
            f"folder. Received: {', '.join(changes)}"
        )
    return accepted


def _not_comparable(key: str, held: Header, header: Header) -> bool:
    """Returns whether a difference follows from that of the examples."""
    return key.endswith("_sketch") and held.get("data") != header.get("data")


def _same(key: str, new: Any, old: Any) -> bool:
    if key.endswith("_sketch"):
        return fingerprints.alike(new, old)
    if key == "attacks" and len(new or ()) == len(old or ()):
        return all(map(_same_attack, new, old))
    return _text(new) == _text(old)


def _same_attack(new: Header, old: Header) -> bool:
    """Returns whether two attacks are equal at all epsilons of both."""
    parts, others = new.get("identity"), old.get("identity")
    if parts and others:  # Both are None without epsilons.
        count = max(len(parts), len(others))
        if not {len(parts), len(others)} <= {1, count}:
            return False
        pairs = zip(
            _repeated(parts, count), _repeated(others, count), strict=True
        )
        if any(None not in p and _text(p[0]) != _text(p[1]) for p in pairs):
            return False
    return _text(new | {"identity": None}) == _text(old | {"identity": None})


def _repeated(parts: list[Any], count: int) -> list[Any]:
    return parts * (count // len(parts))


def _completed(held: Header, header: Header) -> Header:
    """Adds the attacks that could not be made before to the held header."""
    attacks = []
    for old, new in zip(held["attacks"], header["attacks"], strict=True):
        parts, others = old.get("identity") or [], new.get("identity") or []
        unknown = None in parts and None not in others
        attacks.append(new if unknown else old)
    return held | {"attacks": attacks}


def _differing(new: Any, old: Any) -> tuple[Header, Header]:
    """Returns the parts of two values that differ, by name."""
    new, old = _by_name(new), _by_name(old)
    if not isinstance(new, dict) or not isinstance(old, dict):
        return {"": new}, {"": old}
    found: tuple[Header, Header] = {}, {}
    for key in {**new, **old}:
        if _text(new.get(key)) != _text(old.get(key)):
            name = "" if key in ("identity", "0") else key
            for parts, part in zip(
                found, _differing(new.get(key), old.get(key)), strict=True
            ):
                for inner, value in part.items():
                    parts[f"{name} {inner}".strip()] = value
    return found


def _by_name(values: Any) -> Any:
    """Converts a list of dicts to a dict, by their names or numbers."""
    if not isinstance(values, list) or not values:
        return values
    if not all(isinstance(part, dict) for part in values):
        return values
    names = [str(part.get("name", n)) for n, part in enumerate(values)]
    if len(set(names)) < len(names):
        names = [f"{n} {name}" for n, name in enumerate(names)]
    return dict(zip(names, values, strict=True))


def _shown(parts: Header) -> str:
    return ", ".join(
        f"{name} {identity.digest(value)}".strip()
        if isinstance(value, dict)
        else f"{name} {value}".strip()
        for name, value in parts.items()
    )


def _text(value: Any) -> str:
    # As JSON, 1, 1.0 and True differ, although they are equal in Python.
    return json.dumps(value, sort_keys=True)
