r"""Table 1 of the paper, is SAM alone more robust?, as a sweep that resumes.

  python -m experiments.table1 --preset=small --images=DIR --workdir=runs/small
  python -m experiments.table1 --preset=cifar100 --rows=st,sam-0.4,trades
  python -m experiments.table1 --preset=small100 --dataset=npz:FILE
  python -m experiments.table1 --preset=small --table --workdir=runs/small

A row is one of the paper's (st, sam-RHO, at-linf-E, at-l2-E, with E in 255ths)
or any method of tfsam with its flags: `trades`, `looksam:rho=0.2`,
`awp:epsilon=4/255:steps=10`, `st:network=preact_resnet8:width=64`. A row with
a seed is a cell, a run of `tfsam.run` in its own folder. The same command
resumes where it stopped, and skips finished cells. `--cells` divides the cells
among machines, which need only the folder in common. As a Slurm array of 8:

  sbatch --array=0-7 --wrap='python -m experiments.table1 --preset=cifar100 \
    --workdir=runs/cifar100 --cells=$SLURM_ARRAY_TASK_ID/8'

`--table` trains nothing: it makes table.md, table.csv and table.tex from the
finished cells, and lists the missing ones. `--keep` copies the results of each
finished cell, without its network, into a folder of the same layout.
"""

import pathlib
import sys

from absl import flags

from experiments import command
from experiments import paper_figures
from experiments import sweep_cells
from experiments import sweep_flags
from experiments import sweep_presets
from experiments import sweep_results
from experiments import sweep_rows
from experiments import sweep_runs
from experiments import tables
from tfsam.runs import settings
from tfsam.support import files

FLAGS = flags.FlagValues()
_PRESET = sweep_flags.preset(FLAGS)
_IMAGES = flags.DEFINE_string(
    "images", None, "The folder of --dataset=folder:DIR.", FLAGS
)
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "Images, instead of the preset's: npz:FILE or any other --dataset of "
    "tfsam.run. For npz:FILE the paper's figures are shown as well; the file "
    "must then hold the paper's images.",
    FLAGS,
)
_WORKDIR = sweep_flags.workdir(FLAGS)
_ROWS = sweep_flags.rows(FLAGS)
_SEEDS = flags.DEFINE_list(
    "seeds", None, "Seeds. Default: the preset's.", FLAGS
)
_CELLS = flags.DEFINE_string(
    "cells", None, "i/n: run every n-th cell from the i-th on; no table.", FLAGS
)
_BASE = sweep_flags.base(FLAGS)
_TABLE = flags.DEFINE_boolean(
    "table", False, "Make tables only; run nothing.", FLAGS
)
_KEEP = flags.DEFINE_string(
    "keep", None, "Folder for copies of the finished cells' results.", FLAGS
)
_DEVICES = flags.DEFINE_string("devices", None, "See tfsam.run --help.", FLAGS)
_JIT_COMPILE = flags.DEFINE_string(
    "jit_compile", None, "See tfsam.run --help.", FLAGS
)


def _seeds(preset):
    """Returns a function of a row to its seeds."""
    if _SEEDS.value is None:
        return preset.seeds
    if not _SEEDS.value or not all(seed.isdigit() for seed in _SEEDS.value):
        raise ValueError(
            "seeds must be whole numbers with commas between them. "
            f"Received: seeds={','.join(_SEEDS.value)}"
        )
    return lambda row: [int(seed) for seed in _SEEDS.value]


def _dataset():
    """Returns the data set that replaces the preset's, or None."""
    if _IMAGES.value and _DATASET.value:
        raise ValueError(
            "--images=DIR is short for --dataset=folder:DIR; give one of "
            f"them. Received: images={_IMAGES.value}, "
            f"dataset={_DATASET.value}"
        )
    return f"folder:{_IMAGES.value}" if _IMAGES.value else _DATASET.value


def _extra():
    """Returns the flags that every run gets unchanged."""
    extra = [
        f"--{flag.name}={flag.value}"
        for flag in (_DEVICES, _JIT_COMPILE)
        if flag.value
    ]
    if dataset := _dataset():
        extra.append(f"--dataset={dataset}")
    return extra


def main():
    """Runs the unfinished cells and makes the table."""
    preset = sweep_presets.preset(_PRESET.value)
    rows, seeds = _ROWS.value or list(preset.rows), _seeds(preset)
    for row in rows:
        sweep_rows.row_flags(row)
    if FLAGS["base"].present and _BASE.value not in rows:
        raise ValueError(
            f"base must be one of the rows {', '.join(rows)}. "
            f"Received: base={_BASE.value}"
        )
    share, shares = settings.share("cells", _CELLS.value or "0/1")
    workdir = sweep_flags.folder(_WORKDIR, _PRESET)
    if _TABLE.value and not workdir.is_dir():
        raise ValueError(
            f"workdir must be a sweep's folder. Received: workdir={workdir}"
        )
    kept = _KEEP.value and pathlib.Path(_KEEP.value)
    failed = []
    if not _TABLE.value:
        paper_figures.check_images(preset, _dataset())
        cells = sweep_cells.in_order(preset, rows, seeds)[share::shares]
        failed = sweep_runs.run_cells(preset, cells, workdir, _extra(), kept)
    if kept:  # Includes the measures that were added to finished cells.
        sweep_runs.keep(workdir, kept)
    if _TABLE.value or not _CELLS.value:
        cells, missing = sweep_results.collect(preset, rows, seeds, workdir)
        paper = paper_figures.beside(preset, workdir)
        note = paper_figures.caption(preset) if paper else None
        texts = tables.by_suffix(cells, paper, _BASE.value, note)
        for suffix, text in texts.items():
            with files.replacing(workdir / f"table.{suffix}") as temporary:
                temporary.write_text(text + "\n")
        print(texts["md"])
        for folder in missing:
            print(f"missing: {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
