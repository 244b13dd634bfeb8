r"""The paper's question 2: what does SAM's robustness cost, beside AT's?

  python -m experiments.costs --preset=small --workdir=runs/small \
    --figures=runs/small

Of the finished cells of a sweep (`experiments.table1`) it prints each row's
natural and robust accuracy beside what a training step costs, in passes forward
and backward and in time, and which rows no other row beats; and draws
costs.svg, robust accuracy over natural accuracy, passes and seconds, with the
Pareto fronts. It runs nothing, and needs the cells' results alone.
"""

import pathlib
import statistics
import sys
from typing import NamedTuple

from absl import flags

from experiments import command
from experiments import figures
from experiments import sweep
from experiments import tables
from tfsam import methods

FLAGS = flags.FlagValues()
_PRESET = flags.DEFINE_string(
    "preset", "small", f"The sweep: {', '.join(sweep.PRESETS)}.", FLAGS
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The sweep's folder.", FLAGS)
_ROWS = flags.DEFINE_list("rows", None, "Rows. Default: the preset's.", FLAGS)
_FIGURES = flags.DEFINE_string("figures", None, "Folder for costs.svg.", FLAGS)

ROBUST = sweep.COLUMNS[1]


class Cost(NamedTuple):
    """A row: accuracies in percent, and what its training cost.

    Attributes:
        accuracies: means over the seeds, by column.
        passes: a step, forward and backward; standard training has 1.
        seconds: of training, epochs times steps of the median time.
        seeds: how many.
    """

    accuracies: dict
    passes: float
    seconds: float
    seeds: int


def gather(rows, seeds, workdir):
    """The `Cost` of each row that has finished cells.

    Args:
        rows: names of rows.
        seeds: a function of a row to its seeds.
        workdir: folder of the sweep, a `pathlib.Path`.
    """
    costs = {}
    for row in rows:
        folders = [sweep.cell_folder(workdir, row, s) for s in seeds(row)]
        found = [r for f in folders if (r := sweep.read(f)) is not None]
        if not found:
            continue
        measured = [sweep.accuracies(results) for results in found]
        config = found[0]["config"]
        steps = -(-found[0]["train"]["images"] // config["batch_size"])
        costs[row] = Cost(
            {
                column: 100 * statistics.mean(m[column] for m in measured)
                for column in sweep.COLUMNS
            },
            methods.passes(config),
            statistics.median(
                r["train"]["epochs"] * steps * r["train"]["step_seconds_median"]
                for r in found
            ),
            len(found),
        )
    return costs


def front(points):
    """The names of the points that no other beats.

    Args:
        points: a dict from name to (gain, gain): the more the better. One that
            is as good in both and better in one beats another.
    """

    def beaten(point):
        return any(
            other != point and other[0] >= point[0] and other[1] >= point[1]
            for other in points.values()
        )

    return [name for name, point in points.items() if not beaten(point)]


def axes_of(costs):
    """What robust accuracy is held against: title to a dict of row to gain."""
    return {
        "natural": {r: c.accuracies[sweep.NATURAL] for r, c in costs.items()},
        "passes": {r: -c.passes for r, c in costs.items()},
        "seconds": {r: -c.seconds for r, c in costs.items()},
    }


def fronts(costs):
    """The Pareto front of robust accuracy against each of `axes_of`."""
    return {
        title: front(
            {
                r: (gain, costs[r].accuracies[ROBUST])
                for r, gain in gains.items()
            }
        )
        for title, gains in axes_of(costs).items()
    }


def table(costs):
    """The rows as a Markdown table; costs in those of standard training.

    Args:
        costs: of `gather`.
    """
    ahead = fronts(costs)
    heads = [
        *("row", "seeds", *map(tables.head, sweep.COLUMNS)),
        *("passes a step", "time, st = 1", "unbeaten in"),
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row, cost in costs.items():
        accuracies = " | ".join(f"{a:.1f}" for a in cost.accuracies.values())
        time = (
            f"{cost.seconds / costs['st'].seconds:.2f}" if "st" in costs else ""
        )
        unbeaten = ", ".join(t for t, names in ahead.items() if row in names)
        lines.append(
            f"| `{row}` | {cost.seeds} | {accuracies} "
            f"| {cost.passes:.2f} | {time} | {unbeaten} |"
        )
    return "\n".join(lines)


def draw(costs, path):
    """Robust accuracy over natural accuracy, passes and seconds.

    Args:
        costs: of `gather`.
        path: of the SVG file.
    """
    labels = {
        "natural": "natural accuracy, %",
        "passes": "passes a training step",
        "seconds": "seconds of training",
    }

    def panels(axes, figure):
        pairs = zip(axes.flat, axes_of(costs).items(), strict=True)
        for one, (title, gains) in pairs:
            ahead = fronts(costs)[title]
            ordered = sorted(ahead, key=lambda row: abs(gains[row]))
            one.plot(
                [abs(gains[row]) for row in ordered],
                [costs[row].accuracies[ROBUST] for row in ordered],
                color=figures.GREY,
                linestyle=":",
                zorder=1,
            )
            for row, gain in gains.items():
                at = abs(gain), costs[row].accuracies[ROBUST]
                attacked = sweep.attacks_inputs(row)
                colour = figures.ORANGE if attacked else figures.BLUE
                marker = "^" if attacked else "o"
                one.plot(*at, marker, color=colour, markersize=5)
                one.annotate(
                    row.partition(":")[0],
                    at,
                    (3, 3),
                    textcoords="offset points",
                    fontsize=6.5,
                )
            one.set_xlabel(labels[title])
            if title != "natural":
                one.set_xscale("log")
        axes.flat[0].set_ylabel(f"{tables.head(ROBUST)}, %")

    figures.draw(panels, path, 1, 3, width=3.4, height=3.2)


def main():
    """Prints the table and draws the figure."""
    preset = sweep.preset(_PRESET.value)
    rows = _ROWS.value or list(preset.rows)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/table1-{_PRESET.value}")
    costs = gather(rows, preset.seeds, workdir)
    if not costs:
        raise ValueError(
            f"workdir must hold finished cells. Received: workdir={workdir}"
        )
    print(table(costs))
    if _FIGURES.value:
        draw(costs, pathlib.Path(_FIGURES.value) / "costs.svg")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
