"""The results of a sweep: a value for each cell and column of its tables."""

import math
from typing import NamedTuple

from experiments import sweep_cells
from tfsam.training import monitoring

NATURAL = ("natural",)
FITTED = ("fitted",)  # On images that were trained on.
HELD_OUT = ("held out",)  # On training images held out, after the last epoch.
HELD_OUT_ATTACKED = ("held out, attacked",)
MINUTES = ("minutes",)  # Of training, if all epochs were the fastest.
TOOK = ("took",)  # Wall-clock minutes, with other work on the machine.
ATTACKED = ("attacked",)  # Minutes of attacks after it.
COLUMNS = (
    NATURAL,
    ("cleverhans_pgd", "linf", "1/255"),
    ("cleverhans_pgd", "linf", "2/255"),
    ("cleverhans_pgd", "l2", "16/255"),
    ("cleverhans_pgd", "l2", "32/255"),
)


class Result(NamedTuple):
    """A cell's value for a column.

    Attributes:
        value: an accuracy, or minutes.
        interval: its 95 % interval by the test images alone, or None.
        n: number of images, or None.
        seconds: duration of the attack, or None.
    """

    value: float
    interval: list | None = None
    n: int | None = None
    seconds: float | None = None


def collect(preset, rows, seeds, workdir):
    """Collects the results of a sweep that exist.

    Args:
        preset: a `sweep_presets.Preset`.
        rows: names of rows.
        seeds: a function of a row to its seeds.
        workdir: folder of the sweep.

    Returns:
        (cells, missing): a dict from row to a dict from seed to a dict from
        column to `Result`, and the folders of the runs that are not finished.

    Raises:
        ValueError: if a folder holds a run that is not of the sweep.
    """
    cells: dict = {row: {} for row in rows}
    missing = []
    for row, seed, attacked in sweep_cells.in_order(preset, rows, seeds):
        folder = sweep_cells.cell_folder(workdir, row, seed)
        cell = sweep_cells.commands(
            preset, row, seed, folder, attacked=attacked
        )
        for run_folder, arguments in cell:
            results = sweep_cells.finished(run_folder, arguments)
            if results is None:
                missing.append(run_folder)
            else:
                found = cells[row].setdefault(seed, {})
                before = found.get(ATTACKED, Result(0.0)).value
                found.update(_results(run_folder, results))
                if preset.held_out:
                    found.update(held_out(run_folder))
                seconds = sum(r.get("seconds", 0) for r in results["robust"])
                found[ATTACKED] = Result(before + seconds / 60)
    return cells, missing


def _results(folder, results):
    """Returns the `Result`s of a run by column."""

    def of(measured):
        return Result(
            measured["accuracy"],
            *(measured.get(key) for key in ("interval", "n", "seconds")),
        )

    found = {
        (row["attack"], row["norm"], row["epsilon_text"]): of(row)
        for row in results["robust"]
    }
    if not results["train"]:  # Its natural accuracy is that of fewer images.
        return found
    found[NATURAL] = of(results["natural"])
    if "natural" in results["train"]:
        found[FITTED] = of(results["train"]["natural"])
    if seconds := epoch_seconds(folder):
        # Other work on the machine and pauses only make an epoch longer.
        found[MINUTES] = Result(len(seconds) * min(seconds) / 60)
        found[TOOK] = Result(sum(seconds) / 60)
    return found


def held_out(folder):
    """Returns the `Result`s of the last measurement on held-out images.

    Args:
        folder: folder of the run.
    """
    measured = [
        epoch
        for epoch in monitoring.read_history(folder / "history.csv")
        if not math.isnan(epoch.get("val_robust_accuracy", math.nan))
    ]
    if not measured:
        return {}
    last = measured[-1]
    return {
        HELD_OUT: Result(last["val_clean_accuracy"]),
        HELD_OUT_ATTACKED: Result(last["val_robust_accuracy"]),
    }


def epoch_seconds(folder):
    """Returns the seconds of each epoch; empty without a history.csv.

    Args:
        folder: folder of the run.
    """
    history = monitoring.read_history(folder / "history.csv")
    return [epoch["seconds"] for epoch in history]
