"""What runs measured, in columns and curves: numbers and words, no HTML."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam.evaluation import accuracies
from tfsam.reports.page import runs

NORMS = {"linf": "l\N{INFINITY}"}
NOTHING = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        value: what it is sorted by, a number or a string; None comes last.
        detail: what stands below the text, smaller.
        title: what a pointer finds out.
    """

    text: str
    value: float | str | None = None
    detail: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table, a cell a run.

    Attributes:
        group: what stands above the labels of neighbouring columns.
        label: its own label.
        cells: a `Cell` for each run.
        best: `max`, `min`, or None where no value is better than another.
        rows: for an accuracy, the rows of the results, None where there is
            none.
    """

    group: str
    label: str
    cells: Sequence[Cell]
    best: Any = None
    rows: Sequence[Mapping | None] = ()

    @property
    def is_numeric(self):
        """Whether it is sorted by numbers."""
        return not any(isinstance(cell.value, str) for cell in self.cells)

    @property
    def name(self):
        """Its label where its group does not stand above."""
        return ", ".join(filter(None, (self.group, self.label)))

    def is_best(self, cell):
        """Whether no other cell has a better value."""
        values = [c.value for c in self.cells if c.value is not None]
        return bool(
            self.best and len(values) > 1 and cell.value == self.best(values)
        )


@dataclasses.dataclass(frozen=True)
class Series:
    """What runs measured by one attack in one norm.

    Attributes:
        attack: its name, in words.
        norm: linf or l2.
        rows: for each run a dict of rows of the results by epsilon.
        naturals: for each run the natural accuracy of the same images, None
            where the run was not attacked so.
    """

    attack: str
    norm: str
    rows: Sequence[dict]
    naturals: list

    @property
    def name(self):
        """Attack, norm, and on how many images."""
        sizes = {row["n"] for rows in self.rows for row in rows.values()}
        several = f"{min(sizes)}\N{EN DASH}{max(sizes)}"
        size = several if len(sizes) > 1 else str(*sizes)
        return f"{self.attack} {NORMS.get(self.norm, self.norm)}, n = {size}"

    @property
    def epsilons(self):
        """Each epsilon's text by its value, from the smallest on."""
        texts = {
            epsilon: row["epsilon_text"]
            for measured in self.rows
            for epsilon, row in measured.items()
        }
        return dict(sorted(texts.items()))

    @property
    def points(self):
        """The curve of each run: points from epsilon 0 on, or none."""
        curves = []
        for natural, rows in zip(self.naturals, self.rows, strict=True):
            robust = [point(rows[epsilon]) for epsilon in sorted(rows)]
            found = [one for one in robust if one]
            curves.append([point(natural), *found] if found else [])
        return curves


def point(row):
    """An accuracy as a point of a curve, None where nothing was measured.

    Args:
        row: of the results; the natural one is at epsilon 0.
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


def all_series(found):
    """The `Series` of some runs, attacks in the order of the runs.

    Args:
        found: a list of `runs.Run`.
    """
    series: dict = {}
    for index, run in enumerate(found):
        for part in run.parts:
            for row in part.results["robust"]:
                key = runs.attack_name(part, row), row["norm"]
                none: list = [None] * len(found)
                empty: list = [{} for _ in found]
                one = series.setdefault(key, Series(*key, empty, none))
                one.rows[index].setdefault(row["epsilon"], row)
                one.naturals[index] = part.results["natural"]
    return list(series.values())


def columns(found):
    """The columns of the table of runs, less the runs' names.

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


def accuracy_columns(found):
    """The columns of accuracies: natural, then every attack and epsilon.

    Args:
        found: a list of `runs.Run`.
    """
    fitted = [run.train.get("natural") for run in found]
    robust = [
        _accuracies(
            one.name, text, [measured.get(epsilon) for measured in one.rows]
        )
        for one in all_series(found)
        for epsilon, text in one.epsilons.items()
    ]
    return [
        _accuracies("", "natural", [run.results["natural"] for run in found]),
        *(
            [_accuracies("", "on training images", fitted, best=None)]
            if any(fitted)
            else []
        ),
        *robust,
    ]


def _accuracies(group, label, rows, best=max):
    return Column(group, label, list(map(_accuracy, rows)), best, rows)


def _accuracy(row):
    if row is None:
        return Cell(NOTHING)
    if row["accuracy"] is None:
        return Cell("failed", None, title=row["error"])
    low, high = (100 * end for end in row["interval"])
    return Cell(
        f"{100 * row['accuracy']:.1f}",
        row["accuracy"],
        f"{low:.1f}\N{EN DASH}{high:.1f}",
        f"{100 * row['accuracy']:.2f} %, 95 % interval {low:.2f} to "
        f"{high:.2f} %, n = {row['n']}",
    )


def _distances(found):
    """Median distances, which minimum-norm attacks find."""
    for one in all_series(found):
        medians = [
            next((row.get("median_distance") for row in rows.values()), None)
            for rows in one.rows
        ]
        if any(median is not None for median in medians):
            yield numbers(one.name, "median distance", medians, "{:.3g}", max)


def _training(found):
    """What training cost, where anything was trained."""
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


def numbers(group, label, values, style="{}", best=None):
    """A column of numbers.

    Args:
        group: what stands above the labels of neighbouring columns.
        label: its own label.
        values: a number, or None, for each run.
        style: a format of them.
        best: as of `Column`.
    """
    cells = [
        Cell(NOTHING) if value is None else Cell(style.format(value), value)
        for value in values
    ]
    return Column(group, label, cells, best)


def _words(text):
    return Cell(text, text)


def _times(factor, number):
    return None if number is None else factor * number


def minutes(run):
    """Minutes of training, None where nothing was trained.

    Args:
        run: a `runs.Run`.
    """
    return _times(1 / 60, run.train.get("seconds"))


def passes(run):
    """What training cost in epochs of standard training; None if not known.

    Args:
        run: a `runs.Run`.
    """
    step, epochs = run.train.get("passes"), run.train.get("epochs")
    return None if step is None or epochs is None else step * epochs


def method_names(found):
    """The methods, with the settings that tell runs of one method apart.

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
            # The seed has a column; a network's path says less than a name.
            if key in run.config and key not in ("evaluate", "seed")
        ]
        texts.append(" ".join([name, *told]))
    return texts


def settings(found):
    """The settings in which runs differ, a column each.

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


def shared(found):
    """The settings that all runs have in common, as texts; unused ones not.

    Args:
        found: a list of `runs.Run`.
    """
    others = _differing(found)
    return {
        key: setting(key, value)
        for key, value in found[0].settings.items()
        if key not in others and value not in (None, [])
    }


def _differing(found):
    """The settings in which runs differ."""
    keys = dict.fromkeys(key for run in found for key in run.settings)
    first = found[0].settings
    return [
        key
        for key in keys
        if any(run.settings.get(key) != first.get(key) for run in found)
    ]


def _setting(key, value):
    text = setting(key, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(text, value)
    return Cell(text, None if value is None or value == [] else text)


def setting(key, value):
    """A setting of a run as people write it.

    Args:
        key: its name.
        value: what the configuration holds.
    """
    if value is None or value == []:
        return NOTHING
    if isinstance(value, list):
        return ", ".join(setting(key, item) for item in value)
    if isinstance(value, float) and ("epsilon" in key or key == "step_size"):
        return accuracies.epsilon_text(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
