"""The cells of a sweep: their folders, their commands, and which are finished.

A row is a method with its settings, a cell a row with a seed. A cell is a run
of `tfsam.run` in WORKDIR/ROW/seedN, attacked by the paper's PGD-10, and another
run that attacks its network with AutoAttack, in WORKDIR/ROW/seedN/autoattack.
"""

import re

from experiments import sweep_rows
from tfsam.runs import settings
from tfsam.support import files


def cell_folder(workdir, row, seed):
    """Returns the folder of a cell.

    Args:
        workdir: folder of the sweep, a `pathlib.Path`.
        row: name of its row.
        seed: its seed.
    """
    return workdir / re.sub(r"[^\w.=-]+", "_", row) / f"seed{seed}"


def seeds_at(workdir):
    """Returns a function of a row to the seeds that have a folder.

    Args:
        workdir: folder of the sweep.
    """

    def seeds(row):
        folders = cell_folder(workdir, row, 0).parent.glob("seed[0-9]*")
        return sorted(int(f.name.removeprefix("seed")) for f in folders)

    return seeds


def in_order(preset, rows, seeds):
    """Returns the cells, seed by seed, so that a whole table is there early.

    Args:
        preset: a `sweep_presets.Preset`.
        rows: names of rows.
        seeds: a function of a row to its seeds.

    Returns:
        A list of (row, seed, whether AutoAttack attacks it).
    """
    cells = [
        (row, seed, place < preset.attacked_seeds)
        for row in rows
        for place, seed in enumerate(seeds(row))
    ]
    return sorted(cells, key=lambda cell: cell[1])


def commands(preset, row, seed, folder, *, attacked=True, extra=()):
    """Returns the runs of a cell in order: (folder, flags of `tfsam.run`).

    Args:
        preset: a `sweep_presets.Preset`.
        row: name of its row.
        seed: its seed.
        folder: see `cell_folder`.
        attacked: whether AutoAttack attacks it, too.
        extra: more flags of `tfsam.run`, for both.
    """
    both = (f"--preset={preset.images}", *extra, f"--seed={seed}")
    train = (
        *both,
        *preset.training,
        *preset.testing,
        *sweep_rows.row_flags(row),
    )
    attack = (
        *(*both, f"--evaluate={folder / 'model.keras'}"),
        *("--attacks=autoattack", *preset.autoattack),
    )
    found = [(folder, train)]
    if attacked:
        found.append((folder / "autoattack", attack))
    return found


# Settings that must be equal in a cell and in the command.
_BOUND = (
    *("preset", "method", "network", "epochs", "seed"),
    *("limit_train", "limit_test"),
)


def read(folder):
    """Returns the results of a run, None if it is not finished.

    A run with a failed attack is not finished: `tfsam.run` tries it again.

    Args:
        folder: folder of the run.
    """
    results = files.read_json(folder / "results.json")
    failed = results and any("error" in row for row in results["robust"])
    return None if failed else results


def finished(folder, arguments):
    """Returns the results, see `read`, of a run of the given configuration.

    Args:
        folder: folder of the run.
        arguments: the result of `tfsam.run`.

    Raises:
        ValueError: if the folder holds the results of another one.
    """
    results = read(folder)
    wanted = settings.from_argv(arguments).config()
    held = (results or {}).get("config", {})
    for key in _BOUND:
        if key in held and held[key] != wanted[key]:
            raise ValueError(
                f"{folder} must hold a run with {key}={wanted[key]}; choose "
                f"another preset or workdir. Received: {key}={held[key]}"
            )
    return results
