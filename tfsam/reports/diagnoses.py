"""Diagnoses of attacks: signs that an attack failed, over several epsilons."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from tfsam.reports.results import attack_name

# The diagnosis of an attack whose path cannot be recorded.
NOT_RECORDED = "not recorded"


class Finding(NamedTuple):
    """A sign that an attack failed in one norm.

    Attributes:
        attack: The name of the attack, with its options.
        norm: The norm.
        indicator: The name of the sign, in words.
        counts: The number of examples that show it, by epsilon ("8/255"); None
            where it was not counted.
        message: A sentence about it, of the epsilon at which it is clearest.
        remedy: The way to a stronger attack, with its command.
    """

    attack: str
    norm: str
    indicator: str
    counts: dict[str, int | None]
    message: str
    remedy: str

    @property
    def where(self) -> str:
        """The values of epsilon, with the number of examples at each."""
        return ", ".join(
            epsilon if count is None else f"{epsilon} ({count})"
            for epsilon, count in self.counts.items()
        )


def findings(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Collects the diagnoses of rows, a finding an attack, norm and indicator.

    Args:
        rows: The `robust` rows of results.
    """
    found: dict[tuple[str, str, str], Finding] = {}
    most: dict[tuple[str, str, str], int] = {}
    for row in rows:
        for one in recorded(row) or ():
            count: int | None = one.get("count")
            indicator = one["indicator"].replace("_", " ")
            key = attack_name(row), row["norm"], indicator
            texts = one["message"], one["remedy"]
            known = found.setdefault(key, Finding(*key, {}, *texts))
            known.counts[row["epsilon_text"]] = count
            if (count or 0) > most.setdefault(key, count or 0):
                most[key] = count or 0
                found[key] = Finding(*key, known.counts, *texts)
    return list(found.values())


def recorded(row: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Returns the diagnosis of a row, None where there is none.

    Args:
        row: One of the `robust` rows of results.
    """
    found = row.get("diagnosis")
    return None if isinstance(found, str) else found


def without_findings(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names the attacks that were diagnosed and show no sign of failure.

    Args:
        rows: The `robust` rows of results.
    """
    rows = list(rows)
    signs = {attack_name(row) for row in rows if recorded(row)}
    names = [attack_name(row) for row in rows if recorded(row) == []]
    return [name for name in dict.fromkeys(names) if name not in signs]


def not_recorded(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names the attacks whose diagnosis needs a path that was not recorded.

    Args:
        rows: The `robust` rows of results.
    """
    names = [
        attack_name(r) for r in rows if isinstance(r.get("diagnosis"), str)
    ]
    return list(dict.fromkeys(names))
