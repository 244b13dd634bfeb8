"""Verdicts: which stage of an attack broke which example, kept in a record.

A record is a folder of small files, each of which is written atomically: a
header, the cache key that describes the evaluation, and a file for each chunk
of examples, for natural accuracy and for each attack at each budget, such as
"00-pgd/linf-0.1/000000.npz". Chunks that have a file are not measured again.

A record grows: another attack, epsilon or norm is added to the header, and only
what is new is measured. Processes that evaluate different chunks may share a
folder, or use a folder each.
"""

import json
import pathlib
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam import geometry
from tfsam.evaluation import headers
from tfsam.evaluation import old_records
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.budgets import folder_name
from tfsam.evaluation.headers import Header
from tfsam.support import files

__all__ = ["MISCLASSIFIED", "NATURAL", "STANDS", "load"]

Arrays = Mapping[str, np.ndarray]

# The verdict of an example: it survives; it is broken without an attack, that
# is, misclassified, or taken for the class that attacks aim at; or the number
# of the attack's stage that broke it, from 1.
STANDS = -1
MISCLASSIFIED = 0

# The part of a record that holds the natural verdicts.
NATURAL = "natural"

# Parts of a record that hold the gradients of models; see `natural.py`.
_GRADIENTS = "gradients"


class Record:
    """The verdicts of an evaluation.

    Args:
        header: The cache key of the evaluation, of JSON types.
        folder: Folder that keeps the record, or None to keep it in memory.
        identify: For each attack of the header, a function that describes it at
            any budget, by which a held record's attacks are recognised.

    Attributes:
        header: The cache key of everything that the record holds.
        numbers: Number of each of the evaluation's attacks in the record.
        surrogates: Number of each of its surrogates.

    Raises:
        tfsam.support.files.Unusable: If the folder holds the record of another
            evaluation, or verdicts without a header.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        folder: files.Path | None = None,
        identify: Sequence[headers.Identify] | None = None,
    ) -> None:
        self.header: Header = json.loads(json.dumps(header))
        self.folder = None if folder is None else pathlib.Path(folder)
        self.numbers = list(range(len(self.header["attacks"])))
        self.surrogates = list(range(len(self.header["surrogates"])))
        self._parts: dict[tuple[str, int], Arrays] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Another process may add an attack at the same time.
        with files.locked(self.folder):
            self._open(self.folder, identify)
        for pattern in ("", "*/", "*/*/"):
            found = self.folder.glob(pattern) if pattern else [self.folder]
            for path in [p for f in found for p in files.leftovers(f)]:
                files.remove(path)

    def _open(
        self,
        folder: pathlib.Path,
        identify: Sequence[headers.Identify] | None,
    ) -> None:
        """Adds the header to the folder's, or writes the first one."""
        path = folder / "record.json"
        held = files.read_json(path)
        if held is None and not _holds_verdicts(folder):
            files.write_json(path, self.header)
            return
        if held is not None:
            headers.check_same(held, self.header, folder)
        if held is None or not headers.is_header(held):
            raise files.Unusable(
                "the folder's record.json is missing or damaged, so it is "
                "unknown which evaluation its verdicts belong to; choose "
                f"another folder. Received: {folder}"
            )
        found = headers.grown(held, self.header, identify)
        if found.header != held:
            files.write_json(path, found.header)
        self.header, self.numbers, self.surrogates = found

    def load(self, part: str, chunk: int) -> Arrays:
        """Returns the saved arrays of a chunk by name; an empty dict if none.

        Images are left out.

        Args:
            part: `NATURAL`, or a result of `part_at`.
            chunk: Number of the chunk.
        """
        if (part, chunk) not in self._parts and self.folder is not None:
            found = _read_arrays(_path(self.folder, part, chunk))
            self._parts[part, chunk] = found
        return self._parts.get((part, chunk), {})

    def save(self, part: str, chunk: int, arrays: Arrays) -> None:
        """Saves the arrays of a chunk.

        Args:
            part: `NATURAL`, or a result of `part_at`.
            chunk: Number of the chunk.
            arrays: Arrays by name. They replace those that were saved before.
        """
        if self.folder is not None:
            path = _path(self.folder, part, chunk)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_arrays(path, arrays)
            # Images are kept on disk only.
            arrays = {k: v for k, v in arrays.items() if not is_image(k)}
        self._parts[part, chunk] = arrays

    def part(self, number: int) -> str:
        """Returns the part of an attack.

        Args:
            number: Number of the attack in the record.
        """
        return part_of(number, self.header["attacks"][number]["name"])

    def epsilons(self, number: int, norm: str) -> list[float]:
        """Returns the epsilons that the record may hold, ascending.

        Args:
            number: Number of the attack in the record.
            norm: The norm.
        """
        budgets = self.header["attacks"][number]["budgets"]
        return sorted(set(budgets.get(norm, ())))

    def held(
        self, number: int, budget: Budget, chunks: Iterable[int]
    ) -> list[Arrays]:
        """Returns an attack's arrays; an empty list if a chunk is absent.

        Args:
            number: Number of the attack in the record.
            budget: The budget.
            chunks: Numbers of the chunks.
        """
        part = part_at(self.part(number), budget)
        found = [self.load(part, chunk) for chunk in chunks]
        return found if all("verdict" in arrays for arrays in found) else []

    def verdicts(
        self, number: int, norm: str, chunks: Sequence[int]
    ) -> Iterator[tuple[Budget, list[Arrays], np.ndarray]]:
        """Yields an attack's verdicts in a norm, epsilon by epsilon, ascending.

        An example that a smaller epsilon breaks stays broken, also where the
        smaller epsilon was added to the record later.

        Args:
            number: Number of the attack in the record.
            norm: The norm.
            chunks: Numbers of the chunks. Epsilons of which one is absent are
                left out.

        Yields:
            (budget, held, verdict): the arrays of each chunk, and the verdicts
            of all of them, an int8 array (n,).
        """
        before: np.ndarray | None = None
        for epsilon in self.epsilons(number, norm):
            budget = Budget(norm, epsilon)
            held = self.held(number, budget, chunks)
            if held:
                verdict = np.concatenate([arrays["verdict"] for arrays in held])
                if before is not None:
                    verdict = inherited(verdict, before)
                before = verdict
                yield budget, held, verdict


def inherited(verdict: np.ndarray, smaller: np.ndarray) -> np.ndarray:
    """Returns verdicts that include those at a smaller epsilon.

    Args:
        verdict: Int8 array (n,), the verdicts at an epsilon.
        smaller: Int8 array (n,), the verdicts at a smaller epsilon.

    Example:
        >>> inherited(np.array([-1, 1, -1]), np.array([2, 2, -1])).tolist()
        [2, 2, -1]
    """
    return np.where(smaller == STANDS, verdict, smaller)


def before_attacks(natural: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns the natural verdicts of a chunk, as attacks find them.

    Args:
        natural: The arrays of its part `NATURAL`.

    Returns:
        (standing, wrong): the examples that are not broken, a bool array (n,),
        and the fraction of the draws that break them, a float array (n,).
    """
    standing = natural.get("standing", natural["correct"])
    wrong = natural.get("reached", natural.get("wrong"))
    return standing, (~standing).astype(float) if wrong is None else wrong


def merged(folders: Iterable[files.Path]) -> tuple[Record, list[str]]:
    """Merges the records of several processes into one, in memory.

    Args:
        folders: The folders of records of the same model and data. They may
            hold different attacks and budgets.

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
    for folder in [p for f in folders for p in _records_in(pathlib.Path(f))]:
        header = _read_header(folder)
        if record is None:
            record = Record(header | {"attacks": [], "surrogates": []})
        mixed |= headers.check_same(
            header, record.header, folder, headers.OF_ROUNDING
        )
        found = headers.grown(record.header, header)
        record.header = found.header
        for part, chunk, arrays in _chunks(folder, header):
            place = _renumbered(part, header, record, found)
            if place and _is_newer(arrays, record.load(place, chunk)):
                record.save(place, chunk, arrays)
    if record is None:
        raise ValueError("merge needs folders. Received: none")
    return record, sorted(mixed)


def _records_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of records that a folder stands for.

    A run of tfsam 0.1.0 has a record for each norm, in folders beside each
    other. Its successors have one record, of which "folder/linf" is a part.
    """
    if not (folder / "record.json").exists():
        paths = [folder / norm for norm in geometry.NORMS]
        return [p for p in paths if (p / "record.json").exists()] or [folder]
    return [folder]


def _read_header(folder: pathlib.Path) -> Header:
    header = files.read_json(folder / "record.json")
    if header is not None and old_records.is_old(header):
        header = old_records.converted(header)
    if header is None or not headers.is_header(header):
        raise ValueError(
            f"a shard must be the folder of a record. Received: {folder}"
        )
    return header


def _chunks(
    folder: pathlib.Path, header: Header
) -> Iterator[tuple[str, int, Arrays]]:
    """Yields (part, number of the chunk, arrays) of all files of a record."""
    for path in sorted(folder.rglob("[0-9]*.npz")):
        part = path.parent.relative_to(folder).as_posix()
        arrays = _read_arrays(path)
        for name, found in old_records.parts_of(header, part, arrays):
            yield name, int(path.stem), found


def _renumbered(
    part: str, header: Header, record: Record, found: headers.Grown
) -> str | None:
    """Returns the part of a merged record for a part of one of the records.

    A part that the header does not name is left out.
    """
    first, _, rest = part.partition("/")
    for number, place in enumerate(found.numbers):
        if first == part_of(number, header["attacks"][number]["name"]):
            return f"{record.part(place)}/{rest}"
    for number, place in enumerate(found.surrogates):
        if part == gradients_of(number):
            return gradients_of(place)
    return part if part in (NATURAL, gradients_of(None)) else None


def _is_newer(arrays: Arrays, held: Arrays) -> bool:
    """Returns whether arrays replace others of the same part and chunk."""
    if not held:
        return bool(arrays)
    # The gradients of the largest epsilon.
    return float(arrays.get("reach", 0.0)) > float(held.get("reach", 0.0))


def load(folder: files.Path) -> dict[Any, np.ndarray]:
    """Loads the verdicts of a record, example by example.

    Args:
        folder: The `workdir` of an evaluation.

    Returns:
        A dict from (attack, epsilon), or from (attack, norm, epsilon) if the
        record has several norms, to an int8 array (n,). An entry is -1
        (`STANDS`) for a survivor, 0 (`MISCLASSIFIED`) for an example that is
        misclassified without an attack, or the number of the stage, from 1,
        that broke the example at this epsilon or a smaller one. An attack is
        identified by its name, or by its part of the record ("01-pgd") if two
        attacks have the same name. Epsilons that are not completely measured
        are absent.

        Of a run's record "evaluation", the folder "evaluation/linf" stands for
        the verdicts in l-inf alone, as in runs of tfsam 0.1.0.

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
    path, only = pathlib.Path(folder), None
    whole = path.parent / "record.json"
    if path.name in geometry.NORMS and not path.exists() and whole.exists():
        path, only = path.parent, path.name
    record, _ = merged([path])
    names = [attack["name"] for attack in record.header["attacks"]]
    chunks = range(chunk_count(record.header))
    norms = [only] if only else norms_of(record.header)
    found = {}
    for number, name in enumerate(names):
        label = name if names.count(name) == 1 else record.part(number)
        for norm in norms:
            for budget, _, verdict in record.verdicts(number, norm, chunks):
                key = budget if len(norms) > 1 else budget[1:]
                found[label, *key] = verdict
    return found


def norms_of(header: Mapping[str, Any]) -> list[str]:
    """Returns the norms of a record, in the order in which they were added.

    Args:
        header: The header of the record.
    """
    budgets = [b for a in header["attacks"] for b in flat(a["budgets"])]
    return list(dict.fromkeys(budget.norm for budget in budgets))


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


def part_at(part: str, budget: Budget) -> str:
    """Returns the name of an attack's part at a budget.

    Args:
        part: The attack's part.
        budget: The budget.

    Example:
        >>> part_at("01-pgd", Budget("linf", 0.1))
        '01-pgd/linf-0.1'
    """
    return f"{part}/{folder_name(budget)}"


def gradients_of(surrogate: int | None) -> str:
    """Returns the name of the part that holds the gradients of a model.

    Args:
        surrogate: Number of the surrogate, or None for the model.

    Example:
        >>> gradients_of(None), gradients_of(0)
        ('gradients/model', 'gradients/surrogate-00')
    """
    name = "model" if surrogate is None else f"surrogate-{surrogate:02d}"
    return f"{_GRADIENTS}/{name}"


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
    return name.rpartition("/")[2] == "adversarial"


def _holds_verdicts(folder: pathlib.Path) -> bool:
    """Returns whether a folder without a header holds files of a record."""
    patterns = (f"{NATURAL}/[0-9]*.npz", "[0-9]*-*/[0-9]*.npz")
    below = (f"{_GRADIENTS}/*/[0-9]*.npz", "[0-9]*-*/*/[0-9]*.npz")
    return any(any(folder.glob(p)) for p in (*patterns, *below))


def _path(folder: pathlib.Path, part: str, chunk: int) -> pathlib.Path:
    return folder / part / f"{chunk:06d}.npz"


def _read_arrays(path: pathlib.Path) -> Arrays:
    try:
        # np.load would leave a damaged file open.
        with open(path, "rb") as file, np.load(file) as held:
            return {k: held[k] for k in held.files if not is_image(k)}
    except FileNotFoundError:
        return {}
    except Exception:
        # A file can be damaged in many ways; the chunk is measured again.
        return {}
