"""Diagnoses of attacks: signs that an attack failed, over several epsilons."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from tfsam.reports.results import attack_name

# The diagnosis of an attack whose path cannot be recorded.
NOT_RECORDED = "not recorded"

# The entry of a diagnosis that was made without the attack's path.
_WITHOUT_PATH = "not_recorded"


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
        for one in signs(row):
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


def signs(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the signs of failure in the diagnosis of a row.

    Args:
        row: One of the `robust` rows of results.
    """
    found = row.get("diagnosis") or []
    if isinstance(found, str):
        return []
    return [one for one in found if one["indicator"] != _WITHOUT_PATH]


def without_findings(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names the attacks that were diagnosed and show no sign of failure.

    Args:
        rows: The `robust` rows of results.
    """
    rows = list(rows)
    others = {attack_name(row) for row in rows if row.get("diagnosis")}
    names = [attack_name(row) for row in rows if row.get("diagnosis") == []]
    return [name for name in dict.fromkeys(names) if name not in others]


def not_recorded(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names the attacks whose diagnosis needs a path that was not recorded.

    Args:
        rows: The `robust` rows of results.
    """
    names = [attack_name(row) for row in rows if _has_no_path(row)]
    return list(dict.fromkeys(names))


def _has_no_path(row: Mapping[str, Any]) -> bool:
    """Returns whether a row was diagnosed without the attack's path."""
    found = row.get("diagnosis") or []
    if isinstance(found, str):
        return found == NOT_RECORDED
    return any(one["indicator"] == _WITHOUT_PATH for one in found)
