"""Verdicts: which stage of an attack broke which example, kept in a record.

The parts of the record (see `records.py`) are those of natural accuracy and of
each attack at each budget, such as "00-pgd/linf-0.1/000000.npz". Another
attack, epsilon or norm is added to the header.
"""

import pathlib
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Self

import numpy as np

from tfsam import geometry
from tfsam.evaluation import headers
from tfsam.evaluation import old_records
from tfsam.evaluation import records
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.budgets import folder_name
from tfsam.evaluation.headers import Header
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.records import Arrays
from tfsam.support import files

__all__ = ["MISCLASSIFIED", "NATURAL", "STANDS", "load"]

# The verdict of an example: it survives; it is broken without an attack, that
# is, misclassified, or taken for the class that attacks aim at; or the number
# of the attack's stage that broke it, from 1.
STANDS = -1
MISCLASSIFIED = 0

# Parts of a record that hold the gradients of models; see `natural.py`.
_GRADIENTS = "gradients"


class Record(records.Record):
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

    growing = headers.GROWING
    patterns = (
        *(f"{NATURAL}/[0-9]*.npz", "[0-9]*-*/[0-9]*.npz"),
        *(f"{_GRADIENTS}/*/[0-9]*.npz", "[0-9]*-*/*/[0-9]*.npz"),
    )

    def __init__(
        self,
        header: Mapping[str, Any],
        folder: files.Path | None = None,
        identify: Sequence[headers.Identify] | None = None,
    ) -> None:
        self.numbers = list(range(len(header["attacks"])))
        self.surrogates = list(range(len(header["surrogates"])))
        self._identify = identify
        super().__init__(header, folder)

    def _resume(self, held: Header, folder: pathlib.Path) -> None:
        if not headers.is_header(held):
            raise records.damaged(folder)
        self.header, self.numbers, self.surrogates = headers.grown(
            held, self.header, self._identify
        )

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

    @classmethod
    def _known(cls, held: Header | None, folder: pathlib.Path) -> Header:
        if held is not None and old_records.is_old(held):
            held = old_records.converted(held)
        if held is None or not headers.is_header(held):
            raise ValueError(
                "a shard must be the folder of a record. "
                f"Received: folder={folder}"
            )
        return held

    @classmethod
    def _without_parts(cls, header: Header) -> Self:
        return cls(header | {"attacks": [], "surrogates": []})

    def _absorb(self, header: Header, folder: pathlib.Path) -> None:
        found = headers.grown(self.header, header)
        self.header = found.header
        for part, chunk, arrays in _chunks(folder, header):
            place = _renumbered(part, header, self, found)
            if place and _is_newer(arrays, self.load(place, chunk)):
                self.save(place, chunk, arrays)


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
        (record, mixed); see `records.Record.merged`.

    Raises:
        ValueError: If a folder holds no record, or the record of another
            evaluation.
    """
    given = map(pathlib.Path, folders)
    return Record.merged(p for folder in given for p in _records_in(folder))


def _records_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of records that a folder stands for.

    A run of tfsam 0.1.0 has a record for each norm, in folders beside each
    other. Its successors have one record, of which "folder/linf" is a part.
    """
    if not (folder / "record.json").exists():
        paths = [folder / norm for norm in geometry.NORMS]
        return [p for p in paths if (p / "record.json").exists()] or [folder]
    return [folder]


def _chunks(
    folder: pathlib.Path, header: Header
) -> Iterator[tuple[str, int, Arrays]]:
    """Yields (part, number of the chunk, arrays) of all files of a record."""
    for path in sorted(folder.rglob("[0-9]*.npz")):
        part = path.parent.relative_to(folder).as_posix()
        arrays = records.read_arrays(path)
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
        if part == part_of_gradients(number):
            return part_of_gradients(place)
    return part if part in (NATURAL, part_of_gradients(None)) else None


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
    chunks = range(records.chunk_count(record.header))
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


def part_of_gradients(surrogate: int | None) -> str:
    """Returns the name of the part that holds the gradients of a model.

    Args:
        surrogate: Number of the surrogate, or None for the model.

    Example:
        >>> part_of_gradients(None), part_of_gradients(0)
        ('gradients/model', 'gradients/surrogate-00')
    """
    name = "model" if surrogate is None else f"surrogate-{surrogate:02d}"
    return f"{_GRADIENTS}/{name}"
