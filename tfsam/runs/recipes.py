"""The recipe of a run: augmentation, smoothed labels, images mixed in."""

import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam import data
from tfsam import registries
from tfsam.data import batches
from tfsam.data.augmentation import Augmentation
from tfsam.data.augmentation import SmoothLabels
from tfsam.data.images import copies
from tfsam.data.rows import part
from tfsam.runs import flag_types
from tfsam.runs import held_out
from tfsam.runs.settings import Settings

Log = Callable[[str], None]


def augmentations(settings: Settings) -> bool | list[Augmentation]:
    """Makes the augmentations of the training batches.

    Args:
        settings: The settings of the run.

    Returns:
        The value of `augment` of `training_batches`.

    Raises:
        ValueError: If an option is out of its range.
    """
    recipe = settings.recipe
    augment, smoothing = recipe.augment, recipe.label_smoothing
    if isinstance(augment, bool) and not smoothing:
        return augment
    specs: Sequence[str] = (
        ("shift_flip",) * augment if isinstance(augment, bool) else augment
    )
    found = [registries.AUGMENTATIONS.make(spec) for spec in specs]
    # An objective applies the smoothing itself, where its paper does.
    if smoothing and recipe.objective is None:
        found.append(SmoothLabels(smoothing))
    return found


def mixes(settings: Settings) -> bool:
    """Returns whether an augmentation mixes images of several classes.

    Args:
        settings: The settings of the run.
    """
    found = augmentations(settings)
    return not isinstance(found, bool) and any(part.mixes for part in found)


def objective(settings: Settings, steps: int) -> Any:
    """Makes the objective of a run, None without one.

    Args:
        settings: The settings of the run.
        steps: The optimizer's steps per epoch.

    Raises:
        ValueError: If labels are to be smoothed or mixed, and the objective
            does not support it.
    """
    recipe = settings.recipe
    spec, smoothing = recipe.objective, recipe.label_smoothing
    # IKL takes its class means over an epoch, as its authors have it.
    given: dict[str, Any] = {"refresh_every": steps}
    if spec and smoothing:
        if "label_smoothing" not in registries.OBJECTIVES.options(spec):
            raise ValueError(
                f"the objective {spec} does not take smoothed labels. "
                f"Received: label_smoothing={smoothing:g}"
            )
        given["label_smoothing"] = smoothing
    made = recipe.build("objective", **given)
    if registries.OBJECTIVES.fact(made, "needs_true_class") and mixes(settings):
        raise ValueError(
            f"{made} needs the true class of each image, so that images of "
            "several classes cannot be mixed. "
            f"Received: augment={flag_types.written(recipe.augment)}"
        )
    return made


def mix(
    settings: Settings,
    images: data.Images,
    cache_dir: pathlib.Path | None = None,
    log: Log = lambda line: None,
) -> batches.Examples | None:
    """Loads the images that are mixed into the training batches.

    They are the training images of their source, or all of its images if it is
    not split. Test and held-out images of the run are left out: otherwise
    accuracies on them would be accuracies on training images.

    Args:
        settings: The settings of the run.
        images: The images of the run.
        cache_dir: Folder of decoded images, or None.
        log: Function of a line of text.

    Returns:
        (images, labels), or None without any.

    Raises:
        ValueError: If they cannot be loaded, have other classes, or are all
            test images.
    """
    recipe = settings.recipe
    if recipe.mix is None:
        return None
    height, width = images.x_train.shape[1:3]
    found = data.load(
        recipe.mix,
        seed=settings.seed,
        image_size=(height, width),
        resize=settings.resize,
        bad_images=settings.bad_images,
        class_order=settings.class_order,
        part="train",
        cache_dir=cache_dir,
    )
    numbers = tuple(str(n) for n in range(len(images.class_names)))
    if found.class_names not in (images.class_names, numbers):
        raise ValueError(
            "the classes of --mix must be those of --dataset, "
            f"{_some(images.class_names)}. "
            f"Received: mix={recipe.mix} with {_some(found.class_names)}"
        )
    apart = [images.x_test]
    if recipe.holds_out:
        apart.append(held_out.split(settings, images)[1].x_train)
    x, y = found.x_train, found.y_train
    others = np.flatnonzero(~copies(x, apart))
    if not len(others):
        raise ValueError(
            "all images of --mix are test or held-out images of this run; give "
            f"another source. Received: mix={recipe.mix}"
        )
    if len(others) < len(x):
        log(
            f"{len(x) - len(others)} of {len(x)} images of {recipe.mix} are "
            "left out: they are test or held-out images"
        )
        x, y = part(x, others), y[others]
    log(
        f"{recipe.mix_fraction:g} of each batch is drawn from "
        f"{len(x)} images of {recipe.mix}"
    )
    return x, y


def _some(names: tuple[str, ...]) -> str:
    """Returns the first names of classes, and their number."""
    dots = ", ..." if len(names) > 3 else ""
    return f"{len(names)} classes ({', '.join(names[:3])}{dots})"
