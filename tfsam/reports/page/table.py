"""Columns of the measurements of runs, without HTML."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam.evaluation import budgets
from tfsam.reports import results
from tfsam.reports.page import curves
from tfsam.reports.page import runs

NOTHING = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the text that it shows.
        value: its sort key, a number or a string; None comes last.
        detail: a smaller line below the text.
        title: the tooltip.
    """

    text: str
    value: float | str | None = None
    detail: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table, a cell a run.

    Attributes:
        group: the heading above the labels of neighbouring columns.
        label: its own label.
        cells: a `Cell` for each run.
        best: `max`, `min`, or None where no value is better than another.
        rows: for an accuracy, the rows of the results, None where a run has
            none.
    """

    group: str
    label: str
    cells: Sequence[Cell]
    best: Any = None
    rows: Sequence[Mapping[str, Any] | None] = ()

    @property
    def is_numeric(self) -> bool:
        """True if it is sorted by numbers."""
        return not any(isinstance(cell.value, str) for cell in self.cells)

    @property
    def name(self) -> str:
        """Its group and its label."""
        return ", ".join(filter(None, (self.group, self.label)))

    def is_best(self, cell: Cell) -> bool:
        """Returns whether no other cell has a better value."""
        values = [c.value for c in self.cells if c.value is not None]
        return bool(
            self.best and len(values) > 1 and cell.value == self.best(values)
        )


def columns(found: Sequence[runs.Run]) -> list[Column]:
    """Returns the columns of the table of runs, except the names of the runs.

    Args:
        found: a list of `runs.Run`.

    Returns:
        A list of `Column`: the method, accuracies, distances, cost, n, seed.
    """
    return [
        Column("", "method", [_words(text) for text in method_names(found)]),
        *accuracy_columns(found),
        *_distances(found),
        *_training(found),
        numbers("", "n", [run.results["natural"]["n"] for run in found]),
        numbers("", "seed", [run.results.get("seed") for run in found]),
    ]


def accuracy_columns(found: Sequence[runs.Run]) -> list[Column]:
    """Returns the columns of accuracies: natural, then by attack and epsilon.

    Args:
        found: a list of `runs.Run`.
    """
    fitted = [run.train.get("natural") for run in found]
    robust = [
        _accuracies(
            one.name, text, [measured.get(epsilon) for measured in one.rows]
        )
        for one in curves.all_series(found)
        for epsilon, text in one.epsilons.items()
    ]
    return [
        _accuracies("", "natural", [run.results["natural"] for run in found]),
        *(
            [_accuracies("", "on training images", fitted, best=None)]
            if any(fitted)
            else []
        ),
        *_unions(found),
        *robust,
    ]


def _unions(found: Sequence[runs.Run]) -> list[Column]:
    """Returns a column for each union of norms in which runs were attacked."""
    unions = [
        {
            budgets_text(part.results["union"]): part.results["union"]
            for part in reversed(run.parts)
            if part.results.get("union")
        }
        for run in found
    ]
    return [
        _accuracies(
            f"{curves.WORST}, any norm", text, [one.get(text) for one in unions]
        )
        for text in dict.fromkeys(text for one in unions for text in one)
    ]


def budgets_text(union: Mapping[str, Any]) -> str:
    """Formats the budgets of a union of norms, such as "linf 8/255, l2 0.5".

    Args:
        union: the `union` of results.
    """
    texts = [
        f"{curves.NORMS.get(norm, norm)} {budgets.epsilon_text(epsilon)}"
        for norm, epsilon in union["budgets"].items()
    ]
    return ", ".join([*texts, *filter(None, [results.target_in_words(union)])])


def worst_columns(found: Sequence[runs.Run]) -> list[Column]:
    """Returns the columns of the worst case: natural, by epsilon, any norm.

    Args:
        found: a list of `runs.Run`.
    """
    names = {
        one.name
        for one in curves.all_series(found)
        if one.attack.startswith(curves.WORST)
    }
    return [
        column
        for column in accuracy_columns(found)
        if column.label == "natural"
        or column.group in names
        or column.group.startswith(f"{curves.WORST}, any")
    ]


def _accuracies(
    group: str,
    label: str,
    rows: Sequence[Mapping[str, Any] | None],
    best: Any = max,
) -> Column:
    return Column(group, label, list(map(_accuracy, rows)), best, rows)


def _accuracy(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell(NOTHING)
    if row["accuracy"] is None:
        return Cell("failed", None, title=row.get("error") or "not measured")
    low, high = (100 * end for end in row["interval"])
    bound, drawn = results.bound_in_words(row), results.draws_in_words(row)
    sign = "\N{LESS-THAN OR EQUAL TO} " if bound else ""
    notes = [f"n = {row['n']}", *filter(None, (bound, drawn))]
    return Cell(
        f"{sign}{100 * row['accuracy']:.1f}",
        row["accuracy"],
        ", ".join(filter(None, (f"{low:.1f}\N{EN DASH}{high:.1f}", drawn))),
        f"{100 * row['accuracy']:.2f} %, 95 % interval {low:.2f} to "
        f"{high:.2f} %, {', '.join(notes)}",
    )


def _distances(found: Sequence[runs.Run]) -> Iterator[Column]:
    """Yields columns of the median distances of minimum-norm attacks."""
    for one in curves.all_series(found):
        medians = [
            next((row.get("median_distance") for row in rows.values()), None)
            for rows in one.rows
        ]
        if any(median is not None for median in medians):
            yield numbers(one.name, "median distance", medians, "{:.3g}", max)


def _training(found: Sequence[runs.Run]) -> list[Column]:
    """Returns the columns of the cost of training, where runs trained."""
    trains = [run.train for run in found]
    epochs = [train.get("epochs") for train in trains]
    steps = [train.get("passes") for train in trains]
    seconds = [train.get("step_seconds_median") for train in trains]
    milliseconds = [_times(1000, one) for one in seconds]
    every = list(map(minutes, found))
    group = "training"
    all_columns = [
        numbers(group, "epochs", epochs),
        numbers(group, "passes a step", steps, "{:.3g}", min),
        numbers(group, "minutes", every, "{:.2f}", min),
        numbers(group, "ms a step", milliseconds, "{:.1f}", min),
    ]
    return [
        column
        for column in all_columns
        if any(cell.value is not None for cell in column.cells)
    ]


def numbers(
    group: str,
    label: str,
    values: Sequence[float | None],
    style: str = "{}",
    best: Any = None,
) -> Column:
    """Makes a column of numbers.

    Args:
        group: the heading above the labels of neighbouring columns.
        label: its own label.
        values: a number, or None, for each run.
        style: their format.
        best: see `Column`.
    """
    cells = [
        Cell(NOTHING) if value is None else Cell(style.format(value), value)
        for value in values
    ]
    return Column(group, label, cells, best)


def _words(text: str) -> Cell:
    return Cell(text, text)


def _times(factor: float, number: float | None) -> float | None:
    return None if number is None else factor * number


def minutes(run: runs.Run) -> float | None:
    """Returns the minutes of training, None if nothing was trained.

    Args:
        run: a `runs.Run`.
    """
    return _times(1 / 60, run.train.get("seconds"))


def passes(run: runs.Run) -> float | None:
    """Returns the cost of training in standard epochs, None if unknown.

    Args:
        run: a `runs.Run`.
    """
    step, epochs = run.train.get("passes"), run.train.get("epochs")
    return None if step is None or epochs is None else step * epochs


def method_names(found: Sequence[runs.Run]) -> list[str]:
    """Names the methods, with the settings that tell their runs apart.

    Args:
        found: a list of `runs.Run`.
    """
    named = [run.results.get("method") or "evaluation" for run in found]
    texts = []
    for run, name in zip(found, named, strict=True):
        alike = [r for r, n in zip(found, named, strict=True) if n == name]
        told = [
            f"{key}={setting(key, run.config[key])}"
            for key in _differing(alike)
            # The seed has a column, and the path of a network is long.
            if key in run.config and key not in ("evaluate", "seed")
        ]
        texts.append(" ".join([name, *told]))
    return texts


def settings(found: Sequence[runs.Run]) -> list[Column]:
    """Returns a column for each setting in which runs differ.

    Args:
        found: a list of `runs.Run`.
    """
    return [
        Column(
            "",
            key,
            [_setting(key, run.settings.get(key)) for run in found],
        )
        for key in _differing(found)
    ]


def shared(found: Sequence[runs.Run]) -> dict[str, str]:
    """Returns the used settings that all runs have in common, as texts.

    Args:
        found: a list of `runs.Run`.
    """
    others = _differing(found)
    return {
        key: setting(key, value)
        for key, value in found[0].settings.items()
        if key not in others and value not in (None, [])
    }


def _differing(found: Sequence[runs.Run]) -> list[str]:
    """Lists the settings in which runs differ."""
    keys = dict.fromkeys(key for run in found for key in run.settings)
    first = found[0].settings
    return [
        key
        for key in keys
        if any(run.settings.get(key) != first.get(key) for run in found)
    ]


def _setting(key: str, value: Any) -> Cell:
    text = setting(key, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(text, value)
    return Cell(text, None if value is None or value == [] else text)


def setting(key: str, value: Any) -> str:
    """Formats a setting of a run, epsilons as fractions.

    Args:
        key: its name.
        value: its value in the configuration.
    """
    if value is None or value == []:
        return NOTHING
    if isinstance(value, list):
        return ", ".join(setting(key, item) for item in value)
    if isinstance(value, float) and ("epsilon" in key or key == "step_size"):
        return budgets.epsilon_text(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
