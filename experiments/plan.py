r"""The time that a sweep will take, row by row, from runs that were measured.

  python -m experiments.table1 --preset=pilot100 --dataset=npz:FILE \
    --workdir=runs/pilot100
  python -m experiments.plan --preset=small100 --measured=runs/pilot100

The first table lists the measured runs: the part of its training images that
each network classifies correctly, in the last epoch and after it, the minutes
of its fastest epoch, and the time of an attack's gradient of an image. A run
that is still training is listed as well. The second table lists the sweep, row
by row. `--network` and `--epochs` try other settings than the preset's.

An epoch takes as long as a measured epoch of the same network for each image
and each pass, and an attack as long as the fastest on this network for each
image and each gradient. The gradients that an attack takes for an image are
counted in all measured runs, whatever their network is, and the most are taken;
a forward pass counts as half a gradient. All images that a measured network
classifies correctly are taken to survive, so an attack takes at most this long.
"""

import dataclasses
import pathlib
import sys
from typing import NamedTuple

from absl import flags

from experiments import command
from experiments import sweep_cells
from experiments import sweep_flags
from experiments import sweep_presets
from experiments import tables
from tfsam.runs import settings
from tfsam.support import files
from tfsam.training import monitoring

FLAGS = flags.FlagValues()
_PRESET = sweep_flags.preset(FLAGS, "small100")
_MEASURED = flags.DEFINE_list(
    "measured", None, "Folders of runs, with commas between them.", FLAGS
)
_ROWS = sweep_flags.rows(FLAGS)
_NETWORK = flags.DEFINE_string(
    "network", None, "Another network than the preset's.", FLAGS
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Other epochs than the preset's.", 1, flag_values=FLAGS
)


class Measured(NamedTuple):
    """A run, finished or still training.

    Attributes:
        folder: its folder.
        network: the value of its flag --network.
        images: number of training images.
        passes: forward and backward passes of a training step.
        epochs: number of epochs so far.
        seconds: duration of the fastest epoch.
        fitted: accuracy on its training images, in [0, 1]; None while it
            trains.
        trained: accuracy in the last epoch so far, while it trained.
        natural: accuracy on test images; None while it trains.
        attacks: the rows of its results.
    """

    folder: pathlib.Path
    network: str
    images: int
    passes: float
    epochs: int
    seconds: float
    fitted: float | None
    trained: float | None
    natural: float | None
    attacks: list


def measured(folder):
    """Returns the `Measured` runs below a folder.

    Args:
        folder: a `pathlib.Path`.
    """
    found = []
    for path in sorted(folder.rglob("history.csv")):
        history = monitoring.read_history(path)
        seconds = [epoch["seconds"] for epoch in history]
        results = sweep_cells.read(path.parent)
        config = (results or {}).get("config") or files.read_json(
            path.parent / "config.json"
        )
        if not seconds or not config:
            continue
        recipe = settings.from_config(config, path.parent).recipe
        trained = (results or {}).get("train") or {}
        count = trained.get("images") or (
            recipe.limit_train
            and recipe.limit_train - (recipe.validation_images or 0)
        )
        if count:
            found.append(
                Measured(
                    *(path.parent, recipe.network, count, recipe.passes()),
                    *(len(seconds), min(seconds)),
                    trained.get("natural", {}).get("accuracy"),
                    history[-1].get("accuracy"),
                    results and results["natural"]["accuracy"],
                    results["robust"] if results else [],
                )
            )
    return found


class Rates(NamedTuple):
    """Durations by which a sweep is planned.

    Attributes:
        image: seconds of a training image in an epoch of standard training.
        gradient: seconds of an attack's gradient of an image.
        natural: part of the test images that is attacked.
        gradients: gradients that an attack takes for an image that survives,
            with forward passes as halves, by the attack's name.
    """

    image: float
    gradient: float
    natural: float
    gradients: dict


def rates(runs, network):
    """Returns the `Rates` of a network.

    Args:
        runs: `Measured` runs, of any networks.
        network: the network.

    Raises:
        ValueError: if no run of the network was measured and attacked.
    """
    own = [run for run in runs if run.network == network]
    costs = [(c, a) for run in own for a in run.attacks if (c := _cost(a))]
    if not costs:
        raise ValueError(
            f"measured must hold a finished run of --network={network}, such "
            "as a row st:network=... of a pilot. Received: runs of "
            f"{', '.join(sorted({run.network for run in runs})) or 'nothing'}"
        )
    gradients: dict = {}
    # The results of AutoAttack are in a folder below the run's.
    for run in runs:
        inside = sweep_cells.read(run.folder / "autoattack") or {"robust": []}
        for attack in (*run.attacks, *inside["robust"]):
            if each := _each(attack):
                name = attack["attack"]
                gradients[name] = max(each, gradients.get(name, 0))
    return Rates(
        min(run.seconds / run.images / run.passes for run in own),
        min(cost for cost, _ in costs),
        max(run.natural for run in own if run.natural is not None),
        gradients,
    )


def _each(attack):
    """Returns an attack's gradients for an image; a forward pass is a half."""
    return (
        attack.get("gradient_passes", 0) + attack.get("forward_passes", 0) / 2
    )


def _cost(attack):
    """Returns the seconds of a gradient of an image, None if unknown."""
    total = attack.get("attacked", 0) * _each(attack)
    return attack["seconds"] / total if total else None


class Planned(NamedTuple):
    """A row of a sweep, all of its seeds together.

    Attributes:
        row: its name.
        seeds: number of seeds.
        passes: forward and backward passes of a training step.
        training: minutes, the attacks on held-out images included.
        attacks: minutes by the attack's name, on test images; None where the
            attack was not measured.
    """

    row: str
    seeds: int
    passes: float
    training: float
    attacks: dict


def plan(preset, rows, found, extra=()):
    """Returns the `Planned` rows of a sweep.

    Args:
        preset: a `sweep_presets.Preset`.
        rows: names of rows.
        found: the `Rates` of its network.
        extra: more flags of `tfsam.run`, for training.
    """
    planned = []
    for row in rows:
        runs = _settings(preset, row, extra)
        recipe = runs[0].recipe
        seeds = len(preset.seeds(row))
        if recipe.limit_train is None:
            raise ValueError(
                "preset must limit its training images, --limit_train. "
                f"Received: row={row}"
            )
        held_out = recipe.validation_images or 0
        trained = (
            (recipe.limit_train - held_out)
            * recipe.epochs
            * recipe.passes()
            * found.image
        )
        looks = recipe.epochs // (recipe.validate_every or recipe.epochs + 1)
        steps = recipe.validation_steps or _PGD_STEPS
        looked = held_out * looks * steps * found.gradient
        attacks: dict = {}
        for number, run in enumerate(runs):
            count = seeds if number == 0 else min(seeds, preset.attacked_seeds)
            images = count * (run.limit_test or _TEST_IMAGES) * found.natural
            budgets = sum(len(epsilons) for epsilons in run.budgets.values())
            for name in run.attacks:
                each = found.gradients.get(name)
                attacks[name] = (
                    each and images * budgets * each * found.gradient / 60
                )
        minutes = seeds * (trained + looked) / 60
        planned.append(Planned(row, seeds, recipe.passes(), minutes, attacks))
    return planned


# Steps of the attack on held-out images, and the size of CIFAR's test part.
_PGD_STEPS, _TEST_IMAGES = 10, 10_000


def _settings(preset, row, extra=()):
    """Returns the settings of the runs of a row's first attacked cell."""
    changed = dataclasses.replace(preset, training=(*preset.training, *extra))
    folder = pathlib.Path("cell")
    runs = sweep_cells.commands(
        changed, row, 0, folder, attacked=preset.attacked_seeds > 0
    )
    return [settings.from_argv(arguments) for _, arguments in runs]


def runs_table(runs):
    """Returns the measured runs as Markdown.

    Args:
        runs: `Measured` runs.
    """
    rows = []
    for run in runs:
        costs = [cost for a in run.attacks if (cost := _cost(a))]
        rows.append(
            [
                f"{run.folder.parent.name}/{run.folder.name}",
                *(f"`{run.network}`", f"{run.images:,}", run.epochs),
                *map(_percent, (run.trained, run.fitted)),
                *(f"{run.passes:.2f}", f"{run.seconds / 60:.2f}"),
                f"{1000 * min(costs):.2f}" if costs else "",
            ]
        )
    heads = [
        *("run", "network", "images", "epochs", "in training, %"),
        "on training images, %",
        *("passes a step", "minutes an epoch", "ms a gradient"),
    ]
    return tables.markdown(heads, rows)


def _percent(part):
    return "" if part is None else f"{100 * part:.1f}"


def plan_table(planned):
    """Returns the rows of a sweep as Markdown, and lines on the whole.

    Args:
        planned: the result of `plan`.
    """
    names = list(dict.fromkeys(name for p in planned for name in p.attacks))

    def text(minutes):
        return "" if minutes is None else f"{minutes:.0f}"

    rows = [
        [
            *(f"`{p.row}`", p.seeds, f"{p.passes:.2f}", text(p.training)),
            *(text(p.attacks.get(name)) for name in names),
            text(_minutes(p)),
        ]
        for p in planned
    ]
    heads = [
        *("row", "seeds", "passes a step", "training, min"),
        *(f"{tables.ATTACKS.get(name, name)}, min" for name in names),
        "all, min",
    ]
    hours = sum(map(_minutes, planned)) / 60
    lines = [
        tables.markdown(heads, rows),
        f"In all {hours:.1f} h, on a machine that is as fast as the measured "
        "one, with nothing else running.",
    ]
    unknown = [
        name
        for name in names
        if any(p.attacks.get(name, 0) is None for p in planned)
    ]
    if unknown:
        lines.append(
            f"Not counted, because not measured: {', '.join(unknown)}."
        )
    return "\n\n".join(lines)


def _minutes(planned):
    """Returns the minutes of a row that are known."""
    return planned.training + sum(m or 0 for m in planned.attacks.values())


def main():
    """Prints the measured runs and the plan."""
    preset = sweep_presets.preset(_PRESET.value)
    if not _MEASURED.value:
        raise ValueError(
            "--measured=DIR must name a folder of runs. Received: measured="
        )
    runs = [
        run
        for folder in _MEASURED.value
        for run in measured(pathlib.Path(folder))
    ]
    given = {"network": _NETWORK.value, "epochs": _EPOCHS.value}
    extra = [f"--{k}={v}" for k, v in given.items() if v is not None]
    rows = _ROWS.value or list(preset.rows)
    network = _settings(preset, "st", extra)[0].recipe.network
    print(runs_table(runs), end="\n\n")
    print(plan_table(plan(preset, rows, rates(runs, network), extra)))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
