"""Measures of the networks of a sweep, kept beside their cells' results."""

import statistics

from experiments import sweep_cells
from experiments import sweep_results
from tfsam.support import files


def measured(preset, rows, workdir, name, measure, is_due):
    """Measures the cells that are due, and returns the measures of all cells.

    Args:
        preset: a `sweep_presets.Preset`.
        rows: names of rows.
        workdir: folder of the sweep, a `pathlib.Path`.
        name: name of the file beside a cell's results.
        measure: writes this file for a cell's folder.
        is_due: whether the cell in a folder is to be measured.

    Returns:
        The result of `gather`.

    Raises:
        ValueError: if there are no measures.
    """
    seeds = sweep_cells.seeds_at(workdir)
    for row, seed, _ in sweep_cells.in_order(preset, rows, seeds):
        folder = sweep_cells.cell_folder(workdir, row, seed)
        if is_due(folder):
            print(f"measuring {folder}", flush=True)
            measure(folder)
    cells = gather(preset, rows, workdir, name)
    if not cells:
        raise ValueError(
            "workdir must hold finished cells that were measured, or their "
            f"model.keras. Received: workdir={workdir}"
        )
    return cells


def is_measurable(folder):
    """Returns whether a cell is finished, and its network is there.

    Args:
        folder: its folder.
    """
    return (folder / "model.keras").exists() and bool(sweep_cells.read(folder))


def gather(preset, rows, workdir, name):
    """Returns the kept measures of cells.

    Args:
        preset: a `sweep_presets.Preset`.
        rows: names of rows.
        workdir: folder of the sweep, a `pathlib.Path`.
        name: name of the file beside a cell's results.

    Returns:
        A dict from (row, seed) to a pair: the content of the file, and a dict
        from column to an accuracy.
    """
    cells, _ = sweep_results.collect(
        preset, rows, sweep_cells.seeds_at(workdir), workdir
    )
    found = {}
    for row, by_seed in cells.items():
        for seed, results in by_seed.items():
            folder = sweep_cells.cell_folder(workdir, row, seed)
            flat = files.read_json(folder / name)
            if flat and sweep_results.NATURAL in results:
                accuracies = {c: r.value for c, r in results.items()}
                found[row, seed] = flat, accuracies
    return found


def means(cells):
    """Returns each row's measures and accuracies, means over its seeds.

    Args:
        cells: the result of `gather`, of files with an entry "measures".

    Returns:
        A dict from row to a pair of dicts, by measure and by column.
    """
    found = {}
    for row in dict.fromkeys(row for row, _ in cells):
        seeds = [cell for (other, _), cell in cells.items() if other == row]
        found[row] = (
            mean_by_key(flat["measures"] for flat, _ in seeds),
            mean_by_key(accuracies for _, accuracies in seeds),
        )
    return found


def mean_by_key(dicts):
    """Returns a dict of the mean of each key's values in some dicts.

    Args:
        dicts: dicts of numbers, in which keys may be missing.
    """
    values: dict = {}
    for found in dicts:
        for key, value in found.items():
            values.setdefault(key, []).append(value)
    return {key: statistics.mean(numbers) for key, numbers in values.items()}
