r"""The paper's second question: the cost of SAM's robustness, next to AT's.

  python -m experiments.costs --preset=small --workdir=runs/small \
    --figures=runs/small

For the finished cells of a sweep (`experiments.table1`), prints the natural and
robust accuracy of each row next to the cost of a training step, in passes and
in time, and marks the rows that no other row beats. With --figures it draws
costs.svg (robust accuracy over natural accuracy, passes and seconds, with the
Pareto fronts) and writes the table, costs.md. It trains nothing, and needs only
the cells' results.
"""

import pathlib
import sys
from typing import NamedTuple

from absl import flags

from experiments import command
from experiments import figures
from experiments import sweep_cells
from experiments import sweep_flags
from experiments import sweep_presets
from experiments import sweep_results
from experiments import sweep_rows
from experiments import tables
from tfsam.runs import settings
from tfsam.support import files

FLAGS = flags.FlagValues()
_PRESET = sweep_flags.preset(FLAGS)
_WORKDIR = sweep_flags.workdir(FLAGS)
_ROWS = sweep_flags.rows(FLAGS)
_FIGURES = sweep_flags.figures(FLAGS, "costs.svg and costs.md")

ROBUST = sweep_results.COLUMNS[1]


class Cost(NamedTuple):
    """A row: accuracies in percent and the cost of its training.

    Attributes:
        accuracies: means over the seeds, by column, in percent.
        passes: forward and backward passes of a step; standard training has 1.
        seconds: duration of training if all epochs were as fast as the fastest,
            the smallest over the seeds; None if it is unknown.
        seeds: number of seeds.
    """

    accuracies: dict
    passes: float
    seconds: float | None
    seeds: int


def gather(preset, rows, workdir):
    """Returns the `Cost` of each row that has finished cells.

    Args:
        preset: a `sweep_presets.Preset`.
        rows: names of rows.
        workdir: folder of the sweep, a `pathlib.Path`.
    """
    cells, _ = sweep_results.collect(
        preset, rows, sweep_cells.seeds_at(workdir), workdir
    )
    costs = {}
    for row, columns in tables.summaries(cells).items():
        if not set(columns).issuperset((sweep_results.NATURAL, ROBUST)):
            continue
        chosen = settings.from_argv(sweep_rows.row_flags(row))
        minutes = columns.get(sweep_results.MINUTES)
        costs[row] = Cost(
            {c: columns[c].mean for c in sweep_results.COLUMNS if c in columns},
            chosen.recipe.passes(),
            None if minutes is None else 60 * minutes.mean,
            columns[sweep_results.NATURAL].seeds,
        )
    return costs


def front(points):
    """Returns the names of the points that no other point beats.

    Args:
        points: a dict from name to a tuple of gains, numbers of which more is
            better. A point beats another if it is as good in all gains and
            better in one.
    """

    def beaten(point):
        return any(
            other != point
            and all(a >= b for a, b in zip(other, point, strict=True))
            for other in points.values()
        )

    return [name for name, point in points.items() if not beaten(point)]


AXES = {
    "natural": "natural accuracy, %",
    "passes": "passes a training step",
    "seconds": "seconds of training",
}


def axes_of(costs):
    """Returns the costs to compare robust accuracy with.

    Args:
        costs: the result of `gather`.

    Returns:
        A dict from each of `AXES` to a dict from row to a number.
    """
    return {
        "natural": {
            r: c.accuracies[sweep_results.NATURAL] for r, c in costs.items()
        },
        "passes": {r: c.passes for r, c in costs.items()},
        "seconds": {
            r: c.seconds for r, c in costs.items() if c.seconds is not None
        },
    }


def fronts(costs):
    """Returns the Pareto front of robust accuracy against each of `AXES`.

    Args:
        costs: the result of `gather`.
    """
    found = {}
    for axis, numbers in axes_of(costs).items():
        sign = 1 if axis == "natural" else -1  # Lower costs are gains.
        found[axis] = front(
            {
                row: (sign * number, costs[row].accuracies[ROBUST])
                for row, number in numbers.items()
            }
        )
    return found


def table(costs):
    """Returns the rows as Markdown; costs relative to standard training.

    Args:
        costs: the result of `gather`.
    """
    columns = [
        c
        for c in sweep_results.COLUMNS
        if any(c in cost.accuracies for cost in costs.values())
    ]
    ahead, unit = fronts(costs), costs["st"].seconds if "st" in costs else None
    rows = []
    for row, cost in costs.items():
        accuracies = [
            f"{cost.accuracies[c]:.1f}" if c in cost.accuracies else ""
            for c in columns
        ]
        timed = unit is not None and cost.seconds is not None
        rows.append(
            [
                *(f"`{row}`", cost.seeds, *accuracies, f"{cost.passes:.2f}"),
                f"{cost.seconds / unit:.2f}" if timed else "",
                ", ".join(a for a, names in ahead.items() if row in names),
            ]
        )
    heads = [
        *("row", "seeds", *map(tables.head, columns)),
        *("passes a step", "time, st = 1", "unbeaten in"),
    ]
    return tables.markdown(heads, rows)


def draw(costs, path):
    """Draws robust accuracy over natural accuracy, passes and seconds.

    Args:
        costs: the result of `gather`.
        path: path of the SVG file.
    """
    robust = {row: cost.accuracies[ROBUST] for row, cost in costs.items()}
    ahead = fronts(costs)
    style = figures.styles(
        costs, list(filter(sweep_rows.attacks_inputs, costs))
    )
    label = figures.labels(costs)

    def panels(axes, figure):
        pairs = zip(axes.flat, axes_of(costs).items(), strict=True)
        for one, (axis, numbers) in pairs:
            ordered = sorted(ahead[axis], key=numbers.get)
            one.plot(
                [numbers[row] for row in ordered],
                [robust[row] for row in ordered],
                color=figures.GREY,
                linestyle=":",
                zorder=1,
            )
            for row, number in numbers.items():
                marker, colour = style[row]
                one.plot(
                    number,
                    robust[row],
                    marker,
                    color=colour,
                    markersize=6,
                    label=label[row],
                )
            one.set_xlabel(AXES[axis])
            if axis != "natural":
                figures.logarithmic(one)
        axes.flat[0].set_ylabel(f"{tables.head(ROBUST)}, %")
        drawn = axes.flat[0].get_legend_handles_labels()
        figure.legend(*drawn, loc="outside right center")

    figures.draw(panels, path, 1, 3, width=3.4, height=3.2)


def main():
    """Prints the table and draws the figure."""
    preset = sweep_presets.preset(_PRESET.value)
    rows = _ROWS.value or list(preset.rows)
    workdir = sweep_flags.folder(_WORKDIR, _PRESET)
    costs = gather(preset, rows, workdir)
    if not costs:
        raise ValueError(
            f"workdir must hold finished cells. Received: workdir={workdir}"
        )
    text = table(costs)
    print(text)
    if _FIGURES.value:
        folder = pathlib.Path(_FIGURES.value)
        draw(costs, folder / "costs.svg")
        files.write_atomically(folder / "costs.md", f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
