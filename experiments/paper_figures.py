"""The paper's figures: whether they apply, and how our runs differ."""

import pathlib
import re

import numpy as np

from experiments import sweep_cells
from tfsam import data
from tfsam.networks.pixel_statistics import CIFAR100_STATISTICS
from tfsam.runs import settings

# The published means have four digits.
_ROUNDED = 1e-4


def check_images(preset, dataset):
    """Rejects a file whose images are not those of the paper, CIFAR-100.

    Args:
        preset: a `sweep_presets.Preset`.
        dataset: value of --dataset, or None.

    Raises:
        ValueError: if the preset has the paper's figures, and the training
            images of an npz file have other means of their channels than
            CIFAR-100.
    """
    if not preset.paper or not (dataset or "").startswith("npz:"):
        return
    means, _ = data.statistics(data.load(dataset).x_train)
    wanted, _ = CIFAR100_STATISTICS
    if len(means) != len(wanted) or not np.allclose(
        means, wanted, rtol=0, atol=_ROUNDED
    ):
        raise ValueError(
            "dataset must hold CIFAR-100, whose channels have the means "
            f"{wanted}; --preset=cifar10 takes other images. Received: "
            f"dataset={dataset} with {tuple(round(m, 4) for m in means)}"
        )


def beside(preset, workdir):
    """Returns the paper's figures if all finished cells use its data set.

    An npz file counts as its data set; see `check_images`.

    Args:
        preset: a `sweep_presets.Preset`.
        workdir: folder of the sweep.
    """
    config = settings.from_argv([f"--preset={preset.images}"]).config()
    found = map(
        sweep_cells.read, (p.parent for p in workdir.rglob("results.json"))
    )
    others = [
        results
        for results in found
        if results
        and not re.fullmatch(
            rf"npz:.*|{config['dataset']}",
            results.get("config", config)["dataset"],
        )
    ]
    return {} if others else preset.paper


def caption(preset):
    """Returns a line on how our runs differ from those of the paper's figures.

    Args:
        preset: a `sweep_presets.Preset`.

    Returns:
        The line, or None if the preset has no figures.
    """
    if not preset.paper:
        return None
    theirs = _recipe((f"--preset={preset.images}", "--method=st"))
    ours = _recipe(
        sweep_cells.commands(preset, "st", 0, pathlib.Path("st"))[0][1]
    )
    changed = [name for name in ours if ours[name] != theirs[name]]
    text = "In parentheses: the paper's figures."
    if changed:
        words = [", ".join(one[n] for n in changed) for one in (theirs, ours)]
        text = (
            "In parentheses: the paper's figures, on the same data set by "
            "{}. Here: {}.".format(*words)
        )
    return (
        f"{text} Steps and step sizes of the paper's AT in training are "
        "unknown; those of its authors' later script stand in for them."
    )


def _recipe(arguments):
    """Describes the training of a run in words, by the name of a setting."""
    recipe = settings.from_argv(arguments).recipe
    held_out = recipe.validation_images or 0
    count = recipe.limit_train and recipe.limit_train - held_out
    augmented = "random crops and flips" if recipe.augment else "none"
    return {
        "network": f"{recipe.network}",
        "epochs": f"{recipe.epochs} epochs",
        "images": f"{count:,} images" if count else "all training images",
        "augment": f"augmentation: {augmented}",
    }
