"""Who broke which example: the record of an evaluation, on disk or in memory.

A record is a folder of small files, each of which appears whole or not at all:
a header that says what was evaluated, and, for natural accuracy and for each
attack, one file for each chunk of examples. What has a file is not measured
again; processes that evaluate different chunks may share a folder or have one
each.
"""

import json
import pathlib
import re

import numpy as np

from tfsam.models import fingerprints
from tfsam.support import files
from tfsam.support import identity

# Of a record's header. Records of tfsam 0.1.0 have schema 1: they can be read
# and merged, but do not say enough of what was evaluated to go on with.
SCHEMA = 2

# What changes verdicts by rounding alone.
_OF_ROUNDING = ("devices", "versions", "jit_compile")

# The verdict on an example: it stands; it is misclassified without an attack;
# or the number of the attack's stage that broke it, from 1.
STANDS = -1
MISCLASSIFIED = 0

NATURAL = "natural"


class Record:
    """The verdicts of one evaluation.

    Args:
        header: a dict of what was evaluated, of JSON's types.
        folder: where to keep it; None is in memory alone.

    Raises:
        tfsam.support.files.Unusable: if the folder holds the record of another
            evaluation, or verdicts without one.
    """

    def __init__(self, header, folder=None):
        self.header = json.loads(json.dumps(header))
        self.folder = None if folder is None else pathlib.Path(folder)
        self._parts: dict[tuple[str, int], dict] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        held = files.read_json(self.folder / "record.json")
        if held is None:
            if any(self.folder.glob("*/[0-9]*.npz")):
                raise files.Unusable(
                    "the folder's record.json is missing or damaged: nobody "
                    "knows what its verdicts are of. "
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

    def load(self, part, chunk):
        """What was saved, a dict of arrays; an empty one if nothing was.

        Args:
            part: `NATURAL` or `part_of` an attack.
            chunk: number of the chunk.
        """
        if (part, chunk) not in self._parts and self.folder is not None:
            found = _read_arrays(_path(self.folder, part, chunk))
            self._parts[part, chunk] = found
        return self._parts.get((part, chunk), {})

    def save(self, part, chunk, arrays):
        """Keeps a dict of arrays.

        Args:
            part: `NATURAL` or `part_of` an attack.
            chunk: number of the chunk.
            arrays: a dict of arrays; they replace what was saved.
        """
        if self.folder is not None:
            path = _path(self.folder, part, chunk)
            path.parent.mkdir(exist_ok=True)
            files.write_arrays(path, arrays)
            # Images stay on disk.
            arrays = {k: v for k, v in arrays.items() if not is_image(k)}
        self._parts[part, chunk] = arrays


def merged(folders):
    """The records of several processes as one, in memory.

    Args:
        folders: of records of one evaluation.

    Returns:
        (record, mixed): the `Record`, and a list of what is not the same in all
        of them although they are of one evaluation: kinds of devices, versions.

    Raises:
        ValueError: if one holds no record, or that of another evaluation.
    """
    record, mixed = None, set()
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
            # Of an attack that failed half-way, the shard that got further.
            if len(arrays) >= len(record.load(*key)):
                record.save(*key, arrays)
    if record is None:
        raise ValueError("merge needs folders. Received: none")
    return record, sorted(mixed)


def load(folder):
    """The verdicts of a record, example by example.

    Args:
        folder: of the record.

    Returns:
        A dict from (attack, epsilon), the attack by its name or, where a name
        comes twice, by its part's ("01-pgd"), to an int8 array (n,): `STANDS`,
        `MISCLASSIFIED`, or the number of the stage that broke the example, at
        this epsilon or a smaller one. What has not been measured yet is absent.

    Raises:
        ValueError: if the folder holds no record.
    """
    record, _ = merged([folder])
    header, found = record.header, {}
    names = [attack["name"] for attack in header["attacks"]]
    for number, name in enumerate(names):
        part = part_of(number, name)
        label = name if names.count(name) == 1 else part
        for index, epsilon in enumerate(sorted(set(header["epsilons"]))):
            chunks = [
                record.load(part, chunk).get(f"{index}/verdict")
                for chunk in range(chunk_count(header))
            ]
            if all(c is not None for c in chunks):
                found[label, epsilon] = np.concatenate(chunks)
    return found


def part_of(number, name):
    """The name of an attack's part.

    Args:
        number: its place in the list of attacks.
        name: its name.
    """
    slug = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)
    return f"{number:02d}-{slug[:200]}"


def chunk_count(header):
    """How many chunks the examples are divided into.

    Args:
        header: of a record.
    """
    return -(-header["n"] // header["batch_size"])


def chunk_indices(header, chunk):
    """The examples of a chunk, by index.

    Args:
        header: of a record.
        chunk: its number.
    """
    start = chunk * header["batch_size"]
    return np.arange(start, min(start + header["batch_size"], header["n"]))


def is_image(name):
    """Whether an array of a chunk holds images.

    Args:
        name: the array's.
    """
    return name.endswith("/adversarial")


def _is_header(header):
    """Whether a JSON object has what is read of a record's header."""
    kinds = {
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


def _path(folder, part, chunk):
    return folder / part / f"{chunk:06d}.npz"


def _read_arrays(path):
    try:
        with np.load(path) as held:
            return {k: held[k] for k in held.files if not is_image(k)}
    except FileNotFoundError:
        return {}
    except Exception:
        # Damaged from outside, in more ways than one knows: measured again.
        return {}


def _check_same(held, header, folder, allowed=()):
    """Raises an error that says in what two headers differ.

    Args:
        held: the header of the record in the folder.
        header: that of the evaluation.
        folder: of the record.
        allowed: keys that may differ; but a version of tfsam's may not.

    Returns:
        The set of what differs and may, as shown.
    """
    if held.get("schema") != header.get("schema"):
        raise files.Unusable(
            f"{folder} holds a record of another version of tfsam, which does "
            "not say enough to go on with: choose another folder. "
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


def _not_comparable(key, held, header):
    """Returns whether a difference follows from that of the examples."""
    return key.endswith("_sketch") and held.get("data") != header.get("data")


def _same(key, new, old):
    if key.endswith("_sketch"):
        return fingerprints.alike(new, old)
    if key == "attacks" and len(new or ()) == len(old or ()):
        return all(map(_same_attack, new, old))
    return _text(new) == _text(old)


def _same_attack(new, old):
    """Returns whether two attacks are equal where both could be made."""
    parts, others = new.get("identity"), old.get("identity")
    if parts and others:  # None without epsilons.
        count = max(len(parts), len(others))
        if not {len(parts), len(others)} <= {1, count}:
            return False
        pairs = zip(
            _repeated(parts, count), _repeated(others, count), strict=True
        )
        if any(None not in p and _text(p[0]) != _text(p[1]) for p in pairs):
            return False
    return _text(new | {"identity": None}) == _text(old | {"identity": None})


def _repeated(parts, count):
    return parts * (count // len(parts))


def _completed(held, header):
    """Adds to the held header the attacks that could not be made before."""
    attacks = []
    for old, new in zip(held["attacks"], header["attacks"], strict=True):
        parts, others = old.get("identity") or [], new.get("identity") or []
        unknown = None in parts and None not in others
        attacks.append(new if unknown else old)
    return held | {"attacks": attacks}


def _differing(new, old):
    """Returns the parts of two values that differ, by name."""
    new, old = _by_name(new), _by_name(old)
    if not isinstance(new, dict) or not isinstance(old, dict):
        return {"": new}, {"": old}
    found: tuple[dict, dict] = {}, {}
    for key in {**new, **old}:
        if _text(new.get(key)) != _text(old.get(key)):
            name = "" if key in ("identity", "0") else key
            for parts, part in zip(
                found, _differing(new.get(key), old.get(key)), strict=True
            ):
                for inner, value in part.items():
                    parts[f"{name} {inner}".strip()] = value
    return found


def _by_name(values):
    """Turns a list of dicts into a dict, by their names or numbers."""
    if not isinstance(values, list) or not values:
        return values
    if not all(isinstance(part, dict) for part in values):
        return values
    names = [str(part.get("name", n)) for n, part in enumerate(values)]
    if len(set(names)) < len(names):
        names = [f"{n} {name}" for n, name in enumerate(names)]
    return dict(zip(names, values, strict=True))


def _shown(parts):
    return ", ".join(
        f"{name} {identity.digest(value)}".strip()
        if isinstance(value, dict)
        else f"{name} {value}".strip()
        for name, value in parts.items()
    )


def _text(value):
    # 1, 1.0 and True are equal, and not the same.
    return json.dumps(value, sort_keys=True)
