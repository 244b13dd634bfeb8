"""Held-out training images, on which networks are compared and selected."""

from typing import Any

from tfsam import data
from tfsam.attacks import PGD
from tfsam.runs.settings import Settings
from tfsam.training.robust_validation import RobustValidation


def trained_on(settings: Settings, images: data.Images) -> data.Images:
    """Returns the images without those held out for validation.

    Args:
        settings: the settings of the run.
        images: the images.
    """
    if not settings.recipe.holds_out:
        return images
    return split(settings, images)[0]


def split(
    settings: Settings, images: data.Images
) -> tuple[data.Images, data.Images]:
    """Returns the images without the held-out ones, and these alone.

    Args:
        settings: the settings of the run.
        images: the images.
    """
    count = settings.recipe.validation_images
    if count is None:
        count = min(1000, len(images.x_train) // 10)
    return data.hold_out(images, count, settings.seed)


def validation(
    settings: Settings, held_out: data.Images, average: Any
) -> RobustValidation:
    """Makes the callback that attacks the held-out images.

    Args:
        settings: the settings of the run.
        held_out: the images; see `split`.
        average: the callback that averages the weights, or None.
    """
    recipe = settings.recipe
    epsilon, norm = recipe.epsilon, recipe.norm
    if epsilon is None or norm is None:  # The method has no attack.
        norm = next(iter(settings.budgets), "l2")
        epsilon = max(settings.budgets.get(norm, (0.0,)))
    keep = None if recipe.select == "last" else recipe.select
    return RobustValidation(
        (data.as_float(held_out.x_train), held_out.y_train),
        PGD(epsilon, norm, steps=recipe.validation_steps or 10),
        every=recipe.validate_every or 1,
        seed=settings.seed,
        keep=keep,
        path=settings.workdir / "best.keras" if keep else None,
        average=average,
    )
