"""Curves of runs: accuracy over epsilon under each attack, without HTML."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam.reports import results
from tfsam.reports.page import runs

NORMS = {"linf": "l\N{INFINITY}"}

# The name of the worst case of all attacks, beside the names of attacks.
WORST = "worst case"


@dataclasses.dataclass(frozen=True)
class Series:
    """Accuracies of runs under one attack in one norm.

    Attributes:
        attack: its name, in words.
        norm: linf or l2.
        rows: for each run a dict of rows of the results by epsilon.
        naturals: for each run the natural accuracy of the same images, None
            where the run was not attacked in this way.
    """

    attack: str
    norm: str
    rows: Sequence[dict[float, Mapping[str, Any]]]
    naturals: list[Mapping[str, Any] | None]

    @property
    def name(self) -> str:
        """Attack, norm, and the number of images."""
        sizes = {row["n"] for rows in self.rows for row in rows.values()}
        several = f"{min(sizes)}\N{EN DASH}{max(sizes)}"
        size = several if len(sizes) > 1 else str(*sizes)
        return f"{self.attack} {NORMS.get(self.norm, self.norm)}, n = {size}"

    @property
    def epsilons(self) -> dict[float, str]:
        """Texts of the epsilons by their values, in ascending order."""
        texts = {
            epsilon: row["epsilon_text"]
            for measured in self.rows
            for epsilon, row in measured.items()
        }
        return dict(sorted(texts.items()))

    @property
    def points(self) -> list[list[dict[str, Any] | None]]:
        """The points of each run's curve, or an empty list.

        It begins at epsilon 0, unless the attacks aim at a class.
        """
        curves = []
        for natural, rows in zip(self.naturals, self.rows, strict=True):
            robust = [point(rows[epsilon]) for epsilon in sorted(rows)]
            found = [one for one in robust if one]
            # With a target, the natural accuracy is of another kind.
            aims = any("target" in row for row in rows.values())
            first = [] if aims or not found else [point(natural)]
            curves.append([*first, *found])
        return curves


def point(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns an accuracy as a point of a curve, None if it was not measured.

    Args:
        row: a row of the results; the natural accuracy is at epsilon 0.
    """
    if row is None or row["accuracy"] is None:
        return None
    low, high = row["interval"]
    return {
        "epsilon": row.get("epsilon", 0),
        "accuracy": row["accuracy"],
        "low": low,
        "high": high,
        "n": row["n"],
    }


def all_series(found: Sequence[runs.Run]) -> list[Series]:
    """Collects the `Series` of runs, attacks in the order of the runs.

    The worst case comes first; see `worst_rows`.

    Args:
        found: a list of `runs.Run`.
    """
    series: dict[tuple[str, str], Series] = {}
    for index, run in enumerate(found):
        for part, row in worst_rows(run):
            key = _worst_name(row), row["norm"]
            _add(series, key, index, len(found), part, row)
    for index, run in enumerate(found):
        for part in run.parts:
            for row in part.results["robust"]:
                key = runs.attack_name(part, row), row["norm"]
                _add(series, key, index, len(found), part, row)
    return list(series.values())


def _add(
    series: dict[tuple[str, str], Series],
    key: tuple[str, str],
    index: int,
    count: int,
    part: runs.Run,
    row: Mapping[str, Any],
) -> None:
    """Adds a row of a run's part to the series of its attack and norm.

    Args:
        series: the series so far, by attack and norm.
        key: the name of the attack, and the norm.
        index: the number of the run.
        count: the number of all runs.
        part: the run, or one of its evaluations.
        row: the row.
    """
    new = Series(*key, [{} for _ in range(count)], [None] * count)
    one = series.setdefault(key, new)
    one.rows[index].setdefault(row["epsilon"], row)
    one.naturals[index] = part.results["natural"]


def _worst_name(row: Mapping[str, Any]) -> str:
    """Names the worst case of a row, with the target of its attacks."""
    target = results.target_in_words(row)
    return f"{WORST} ({target})" if target else WORST


def worst_rows(
    run: runs.Run,
) -> list[tuple[runs.Run, Mapping[str, Any]]]:
    """Returns the worst case of a run, a row for each norm and epsilon.

    Of a run and the evaluations of its network it is the lowest: each is an
    upper bound of the accuracy under all of their attacks.

    Args:
        run: a `runs.Run`.

    Returns:
        Pairs of the part that the row is from and the row.
    """
    lowest: dict[Any, tuple[runs.Run, Mapping[str, Any]]] = {}
    for part in run.parts:
        for row in part.results.get("worst_case") or []:
            key = row.get("target"), row["norm"], row["epsilon"]
            if row["accuracy"] is None:
                continue
            if (
                key not in lowest
                or row["accuracy"] < lowest[key][1]["accuracy"]
            ):
                lowest[key] = part, row
    return list(lowest.values())
