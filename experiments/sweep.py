"""A sweep over methods and seeds: its cells and its runs.

A row is a method with its settings, a cell a row with a seed. A cell is a run
of `tfsam.run` in WORKDIR/ROW/seedN, attacked by the paper's PGD-10, and another
run that attacks its network with AutoAttack, in WORKDIR/ROW/seedN/autoattack.
"""

import dataclasses
import math
import re
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

from tfsam.runs import flags
from tfsam.runs import methods
from tfsam.runs import settings
from tfsam.runs import workdirs
from tfsam.support import files
from tfsam.support import signals
from tfsam.support.validators import check_choice
from tfsam.training import monitoring

PAPER = {
    "st": (76.9, 13.6, 1.7, 44.5, 21.2),
    "sam-0.1": (78.0, 19.6, 3.0, 51.5, 27.2),
    "sam-0.2": (78.5, 23.1, 4.2, 54.2, 31.3),
    "sam-0.4": (78.7, 28.3, 6.5, 57.0, 36.2),
    "at-linf-1": (73.1, 60.4, 46.6, 67.4, 61.5),
    "at-linf-2": (70.1, 60.3, 50.6, 65.7, 60.6),
    "at-linf-4": (66.2, 59.3, 52.0, 62.8, 58.9),
    "at-linf-8": (60.4, 55.1, 50.4, 57.0, 54.3),
    "at-l2-16": (74.8, 52.8, 31.4, 66.3, 57.7),
    "at-l2-32": (73.2, 57.4, 40.6, 67.1, 61.0),
    "at-l2-64": (70.7, 58.1, 45.9, 66.1, 60.7),
    "at-l2-128": (67.4, 58.2, 48.7, 63.9, 60.4),
}
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

# Steps and step size (in 255ths) of training's attack by norm and epsilon, by
# the authors' later script; the published rows' are unknown.
_TRAINING_ATTACK = {
    ("linf", 1): (5, 0.5),
    ("linf", 2): (5, 1),
    ("linf", 4): (10, 1),
    ("linf", 8): (10, 2),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A sweep.

    Attributes:
        images: `--preset` of `tfsam.run`.
        rows: a dict from row to its number of seeds.
        training: more flags of `tfsam.run`, for training.
        testing: for the attack by PGD.
        autoattack: for AutoAttack, and for attacks beside it.
        attacked_seeds: number of a row's seeds that AutoAttack attacks.
        paper: the paper's figures, where the data set is the paper's.
        held_out: whether the tables have the accuracies on training images
            that were held out, by which settings are chosen.
    """

    images: str
    rows: dict[str, int]
    training: tuple[str, ...] = ()
    testing: tuple[str, ...] = ()
    autoattack: tuple[str, ...] = ()
    attacked_seeds: int = 3
    paper: dict[str, tuple[float, ...]] = dataclasses.field(
        default_factory=dict
    )
    held_out: bool = False

    def seeds(self, row):
        """Returns a row's seeds; of an unknown row, the fewest of any row."""
        return range(self.rows.get(row, min(self.rows.values())))


# For two cores: 10,000 images to train on, without augmentation, so that
# standard training fits them, and 500 to measure robustness in training.
_SMALL = (
    *("--network=preact_resnet8", "--noaugment", "--limit_train=10500"),
    "--validation_images=500",
)
# Radii of the methods after SAM: once, twice and four times the default.
_RADII = {
    "vasso": (0.2, 0.4, 0.8),
    "msam": (0.3, 0.6, 1.2),
    "wsam": (0.05, 0.1, 0.2),
    "friendly_sam": (0.2, 0.4, 0.8),
    "sam_on": (0.5, 1, 2),
}

PRESETS = {
    "cifar100": Preset("cifar100", dict.fromkeys(PAPER, 3), paper=PAPER),
    "cifar10": Preset("cifar10", dict.fromkeys(PAPER, 3)),
    "small": Preset(
        "cifar10",
        {
            **dict.fromkeys(("st", "sam-0.1", "sam-0.2", "sam-0.4"), 3),
            **dict.fromkeys(
                (
                    *("at-linf-1", "at-linf-4", "at-l2-32", "at-l2-128"),
                    *("looksam:rho=0.2", "looksam:rho=0.2:alpha=0.3"),
                    *("asam", "esam:rho=0.2", "fgsm_at:epsilon=1/255"),
                    "awp:epsilon=4/255",
                ),
                1,
            ),
        },
        training=(*_SMALL, "--epochs=30", "--validate_every=3"),
        testing=("--limit_test=5000",),
        autoattack=(
            *("--limit_test=200", "--linf_epsilons=1/255"),
            "--l2_epsilons=16/255",
        ),
        attacked_seeds=1,
    ),
    # A third of the epochs of "small", to choose radii for it: PGD-10 at l-inf
    # 1/255 on the held-out images. A run ends with an attack on test images;
    # this one is short, and nothing is chosen by it.
    "small_radii": Preset(
        "cifar10",
        {
            f"{method}:rho={rho}": 1
            for method, radii in _RADII.items()
            for rho in radii
        },
        training=(*_SMALL, "--epochs=10", "--validate_every=10"),
        testing=(
            *("--attacks=fgsm", "--limit_test=100", "--linf_epsilons=1/255"),
            "--l2_epsilons=",
        ),
        attacked_seeds=0,
        held_out=True,
    ),
    # A first try, in which standard training does not fit the images.
    "augmented": Preset(
        "cifar10",
        {
            **dict.fromkeys(("st", "sam-0.1", "sam-0.2", "sam-0.4"), 1),
            "at:epsilon=1/255": 1,
        },
        training=(
            *("--network=preact_resnet8", "--epochs=12"),
            "--limit_train=20000",
        ),
        testing=("--limit_test=2000", "--attack_steps=10"),
        attacked_seeds=0,
    ),
    # The paper's data set, for two cores: a network that fits 20,000 images in
    # standard training without augmentation.
    "small100": Preset(
        "cifar100",
        {
            **dict.fromkeys(("st", "sam-0.2"), 2),
            **dict.fromkeys(
                (
                    *("sam-0.1", "sam-0.4", "at-linf-1", "at-linf-4"),
                    *("at-l2-16", "at-l2-128", "fgsm_at:epsilon=1/255"),
                    *("friendly_sam", "msam"),
                    # The attack of at-linf-1 in training.
                    "trades:epsilon=1/255:steps=5:step_size=1/510",
                ),
                1,
            ),
        },
        training=(
            *("--network=preact_resnet8:width=32", "--epochs=20"),
            *("--noaugment", "--limit_train=20500"),
            *("--validation_images=500", "--validate_every=5"),
        ),
        autoattack=(
            *("--attacks=autoattack,malt", "--limit_test=200"),
            *("--linf_epsilons=1/255", "--l2_epsilons=16/255"),
        ),
        attacked_seeds=1,
        paper=PAPER,
    ),
    # Networks for these images, to compare their fit and the time of epochs and
    # attacks: at this epsilon MALT breaks almost nothing, and takes its full
    # time.
    "pilot100": Preset(
        "cifar100",
        {
            f"st:network={network}": 1
            for network in (
                *("preact_resnet8:width=16", "preact_resnet8:width=32"),
                *("preact_resnet18:width=16", "preact_resnet8:width=64"),
            )
        },
        training=("--epochs=20", "--noaugment", "--limit_train=20000"),
        testing=("--limit_test=5000",),
        autoattack=(
            *("--attacks=malt", "--limit_test=100", "--l2_epsilons="),
            "--linf_epsilons=1/2550",
        ),
        attacked_seeds=1,
    ),
}


def preset(name):
    """Returns the sweep of a name; raises ValueError if there is none.

    Args:
        name: a key of `PRESETS`.
    """
    return PRESETS[check_choice("preset", name, PRESETS)]


def row_flags(row):
    """Returns the flags of `tfsam.run` for a row.

    Args:
        row: its name.

    Raises:
        ValueError: if there is no such row.
    """
    if match := re.fullmatch(r"sam-([\d.]+)", row):
        return ("--method=sam", f"--rho={match[1]}")
    if match := re.fullmatch(r"at-(linf|l2)-(\d+)", row):
        norm, epsilon = match[1], int(match[2])
        steps, size = _TRAINING_ATTACK.get((norm, epsilon), (5, epsilon / 2))
        return (
            *("--method=at", f"--norm={norm}", f"--epsilon={epsilon}/255"),
            *(f"--steps={steps}", f"--step_size={size / 255:.17g}"),
        )
    method, *given = row.split(":")
    if method not in methods.methods() or not all("=" in s for s in given):
        raise ValueError(
            f"rows must be among {', '.join(PAPER)} or METHOD:NAME=VALUE, with "
            f"the names of flags or of options. Received: {row}"
        )
    named: list[str] = []
    options = []
    for text in given:
        name = text.partition("=")[0]
        if name in flags.FLAGS:
            named.append(text)
        elif named and _takes(named[-1], name):
            named[-1] += f":{text}"
        else:
            options.append(text)
    specs = methods.with_options(method, options)
    return (
        f"--method={method}",
        *(f"--{text}" for text in named),
        *(f"--{part}={spec}" for part, spec in specs.items()),
    )


def _takes(text, option):
    """Returns whether a flag, NAME=VALUE, names a part that has an option."""
    name, _, spec = text.partition("=")
    registry = flags.REGISTRIES.get(name)
    return registry is not None and option in registry.options(spec)


def attacks_inputs(row):
    """Returns whether a row's method attacks its inputs in training.

    Args:
        row: its name.
    """
    method = row_flags(row)[0].removeprefix("--method=")
    return methods.method(method).perturb_inputs is not None


def cell_folder(workdir, row, seed):
    """Returns the folder of a cell.

    Args:
        workdir: folder of the sweep, a `pathlib.Path`.
        row: name of its row.
        seed: its seed.
    """
    return workdir / re.sub(r"[^\w.=-]+", "_", row) / f"seed{seed}"


def in_order(preset, rows, seeds):
    """Returns the cells, seed by seed, so that a whole table is there early.

    Args:
        preset: a `Preset`.
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
        preset: a `Preset`.
        row: name of its row.
        seed: its seed.
        folder: see `cell_folder`.
        attacked: whether AutoAttack attacks it, too.
        extra: more flags of `tfsam.run`, for both.
    """
    both = (f"--preset={preset.images}", *extra, f"--seed={seed}")
    train = (*both, *preset.training, *preset.testing, *row_flags(row))
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


def seeds_at(workdir):
    """Returns a function of a row to the seeds that have a folder.

    Args:
        workdir: folder of the sweep.
    """

    def seeds(row):
        folders = cell_folder(workdir, row, 0).parent.glob("seed[0-9]*")
        return sorted(int(f.name.removeprefix("seed")) for f in folders)

    return seeds


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
        preset: a `Preset`.
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
    for row, seed, attacked in in_order(preset, rows, seeds):
        folder = cell_folder(workdir, row, seed)
        cell = commands(preset, row, seed, folder, attacked=attacked)
        for run_folder, arguments in cell:
            results = finished(run_folder, arguments)
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


_KEPT = ("results.json", "flatness.json", "margins.json", "history.csv")


def keep(workdir, folder):
    """Copies the small files of finished runs.

    Args:
        workdir: folder of the sweep.
        folder: where to; the layout is the same.
    """
    for name in _KEPT:
        for path in sorted(workdir.rglob(name)):
            if not (path.parent / "results.json").exists():
                continue
            target = folder / path.relative_to(workdir)
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(target) as temporary:
                shutil.copyfile(path, temporary)


def run_cells(preset, cells, workdir, extra=(), kept=None):
    """Runs the unfinished runs of some cells, a process for each.

    Args:
        preset: a `Preset`.
        cells: the result of `in_order`.
        workdir: folder of the sweep.
        extra: more flags of `tfsam.run`.
        kept: see `keep`, called after each run; None calls nothing.

    Returns:
        The folders of the runs that failed.

    Raises:
        SystemExit: with a run's exit code, if a signal ended it.
        ValueError: if a folder holds a run that is not of the sweep.
    """
    failed = []
    for number, (row, seed, attacked) in enumerate(cells):
        folder = cell_folder(workdir, row, seed)
        runs = commands(
            preset, row, seed, folder, attacked=attacked, extra=extra
        )
        for run_folder, arguments in runs:
            # A killed sweep may have left a running process behind.
            workdirs.wait_until_free(run_folder, _say)
            if finished(run_folder, arguments):
                continue
            command = [*arguments, f"--workdir={run_folder}"]
            line = " ".join(["python -m tfsam.run", *command])
            _say(f"cell {number + 1} of {len(cells)}: {line}")
            code = _run(command)
            if code in _INTERRUPTED:
                raise SystemExit(code)
            if code:
                _say(f"failed with exit code {code}: {run_folder}")
                failed.append(run_folder)
                break
            if kept:
                keep(workdir, kept)
    return failed


def _say(line):
    print(line, flush=True)


# Exit codes of a run that a signal ended, with its checkpoint.
_INTERRUPTED = [128 + number for number in signals.SIGNALS]


def _run(arguments):
    """Returns the exit code of `tfsam.run`, passing signals on to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tfsam.run", *arguments],
        # Otherwise it would get the terminal's signals twice.
        start_new_session=True,
    )

    def pass_on(number, frame):
        process.send_signal(number)

    before = {
        number: signal.signal(number, pass_on)
        for number in signals.SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        code = process.wait()
        # Negative if the signal came before the run's handler was installed.
        return 128 - code if code < 0 else code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
