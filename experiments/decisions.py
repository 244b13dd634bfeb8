r"""The choice of a method: the fronts of several sweeps, with the commands.

  python -m experiments.decisions \
    --sweeps=small:runs/small,small100:runs/small100 --figures=DIR

For each sweep, PRESET:WORKDIR (`experiments.table1`), and each epsilon of
PGD-10, a method is on the front if no other has as few passes a training step,
as much natural and as much robust accuracy, and is better in one of them. The
first table lists all methods, with a star where they are on the front. The
second table gives, for each limit on the passes, the most robust method, and
the most robust of the methods that are as accurate as standard training. Then
follow the commands of all methods on a front. Methods with one seed are marked:
their intervals account for the choice of the test images alone.

Fronts are computed from measured accuracies; a method may be on one by chance.
Nothing is trained. With --figures the page is also written, as decisions.md.
"""

import pathlib
import sys
from typing import NamedTuple

from absl import flags

from experiments import command
from experiments import costs
from experiments import sweep_cells
from experiments import sweep_presets
from experiments import sweep_results
from experiments import sweep_rows
from experiments import tables
from tfsam.support import files

FLAGS = flags.FlagValues()
_SWEEPS = flags.DEFINE_list(
    "sweeps", None, "PRESET:WORKDIR, with commas between them.", FLAGS
)
_FIGURES = flags.DEFINE_string(
    "figures", None, "Folder for decisions.md.", FLAGS
)


class Choice(NamedTuple):
    """A method of a sweep, as a user may choose it.

    Attributes:
        cost: the row's `costs.Cost`.
        halves: half the widths of the widest 95 % intervals by the test images
            alone, in points, by column; without columns of unknown intervals.
        line: the command that trains and attacks it.
    """

    cost: costs.Cost
    halves: dict
    line: str


def choices(preset, workdir):
    """Returns the `Choice` of each row that has finished cells.

    Args:
        preset: a `sweep_presets.Preset`.
        workdir: folder of the sweep, a `pathlib.Path`.
    """
    rows = list(preset.rows)
    cells, _ = sweep_results.collect(
        preset, rows, sweep_cells.seeds_at(workdir), workdir
    )
    found = {}
    for row, cost in costs.gather(preset, rows, workdir).items():
        halves: dict = {}
        for results in cells[row].values():
            for column, result in results.items():
                if result.interval:
                    low, high = result.interval
                    half = 50 * (high - low)
                    halves[column] = max(half, halves.get(column, 0))
        found[row] = Choice(cost, halves, line(preset, row))
    return found


def line(preset, row):
    """Returns the command that trains a row's network and attacks it.

    It has the flags of the sweep, but neither seed nor folder.

    Args:
        preset: a `sweep_presets.Preset`.
        row: name of the row.
    """
    given = (f"--preset={preset.images}", *preset.training)
    return " ".join(["python -m tfsam.run", *given, *sweep_rows.row_flags(row)])


def columns_of(found):
    """Returns the columns of robust accuracy that all rows have.

    Args:
        found: the result of `choices`.
    """
    return [
        column
        for column in sweep_results.COLUMNS[1:]
        if all(column in choice.cost.accuracies for choice in found.values())
    ]


def front(found, column):
    """Returns the rows that no other beats in passes and both accuracies.

    Args:
        found: the result of `choices`.
        column: the column of robust accuracy.
    """
    return costs.front(
        {
            row: (
                -choice.cost.passes,
                choice.cost.accuracies[sweep_results.NATURAL],
                choice.cost.accuracies[column],
            )
            for row, choice in found.items()
        }
    )


def best(found, column, passes, natural=0.0):
    """Returns the most robust row within bounds, None if there is none.

    Of rows that are as robust, the one with fewer passes is taken.

    Args:
        found: the result of `choices`.
        column: the column of robust accuracy.
        passes: most passes of a training step.
        natural: least natural accuracy, in percent.
    """
    within = [
        row
        for row, choice in found.items()
        if choice.cost.passes <= passes
        and choice.cost.accuracies[sweep_results.NATURAL] >= natural
    ]
    return max(
        within,
        key=lambda row: (
            found[row].cost.accuracies[column],
            -found[row].cost.passes,
        ),
        default=None,
    )


def _name(found, row):
    """Returns a row's name, with a mark if it has one seed."""
    return f"`{row}`" + (" (one seed)" if found[row].cost.seeds == 1 else "")


def _accuracy(choice, column):
    half = choice.halves.get(column)
    text = f"{choice.cost.accuracies[column]:.1f}"
    return text if half is None else f"{text} ± {half:.1f}"


def fronts_table(found):
    """Returns all rows with their accuracies, stars where on a front.

    Args:
        found: the result of `choices`.
    """
    columns = columns_of(found)
    ahead = {column: front(found, column) for column in columns}
    ordered = sorted(found, key=lambda row: found[row].cost.passes)
    body = [
        [
            *(_name(found, row), f"{found[row].cost.passes:.2f}"),
            _accuracy(found[row], sweep_results.NATURAL),
            *(
                _accuracy(found[row], column) + " \\*" * (row in ahead[column])
                for column in columns
            ),
        ]
        for row in ordered
    ]
    heads = ["method", "passes a step", "natural", *map(tables.head, columns)]
    return tables.markdown(heads, body)


def answers_table(found, base="st"):
    """Returns the most robust rows by passes and natural accuracy.

    Args:
        found: the result of `choices`.
        base: the row whose natural accuracy is the least that the second half
            of the table allows. If the row is missing, so is that half.
    """
    columns = columns_of(found)
    body = []
    needs = {"any": 0.0}
    if base in found:
        accuracy = found[base].cost.accuracies[sweep_results.NATURAL]
        needs[f"at least {base}'s, {accuracy:.1f}"] = accuracy
    for need, natural in needs.items():
        before = None
        for passes in sorted({c.cost.passes for c in found.values()}):
            rows = [best(found, column, passes, natural) for column in columns]
            if rows == before:  # More passes do not help.
                continue
            before = rows
            texts = [
                f"{_name(found, row)} {_accuracy(found[row], column)}"
                if row
                else ""
                for row, column in zip(rows, columns, strict=True)
            ]
            body.append([need, f"{passes:.2f}", *texts])
    heads = ["natural accuracy", "passes from", *map(tables.head, columns)]
    return tables.markdown(heads, body)


def page(title, found):
    """Returns the tables and the commands of a sweep, as Markdown.

    Args:
        title: the sweep's name and data set.
        found: the result of `choices`.
    """
    columns = columns_of(found)
    ahead = {row for column in columns for row in front(found, column)}
    lines = [found[row].line for row in found if row in ahead]
    return "\n\n".join(
        [
            f"## {title}",
            "All methods; a star marks those on the front of passes, natural "
            "accuracy and this column, ± half the 95 % interval by the test "
            "images alone:",
            fronts_table(found),
            "The most robust method, from so many passes a step on:",
            answers_table(found),
            "Commands of the methods on a front:",
            "\n".join(f"    {text}" for text in lines),
        ]
    )


def _sweep(text):
    """Parses PRESET:WORKDIR."""
    name, colon, folder = text.partition(":")
    path = pathlib.Path(folder)
    if not colon or not path.is_dir():
        raise ValueError(
            "sweeps must be PRESET:WORKDIR, where WORKDIR is the folder of a "
            f"sweep. Received: {text}"
        )
    return name, sweep_presets.preset(name), path


def main():
    """Prints the page."""
    if not _SWEEPS.value:
        raise ValueError(
            "--sweeps=PRESET:WORKDIR,... is missing. "
            f"Received: sweeps={_SWEEPS.value}"
        )
    parts = []
    for text in _SWEEPS.value:
        name, preset, workdir = _sweep(text)
        found = choices(preset, workdir)
        if not found:
            raise ValueError(
                f"workdir must hold finished cells. Received: workdir={workdir}"
            )
        parts.append(page(f"{name} ({preset.images})", found))
    text = "\n\n".join(parts)
    print(text)
    if _FIGURES.value:
        path = pathlib.Path(_FIGURES.value) / "decisions.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
