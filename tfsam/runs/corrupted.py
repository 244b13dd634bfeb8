"""The corruptions of a run: accuracy on corrupted test images."""

from collections.abc import Callable
from typing import Any

from tfsam import attacks
from tfsam import data
from tfsam.corruptions.base import SEVERITIES
from tfsam.evaluation import corrupted
from tfsam.evaluation import corrupted_plans
from tfsam.runs.settings import Settings
from tfsam.support import devices


def check(settings: Settings, images: data.Images) -> None:
    """Tries the corruptions of a run on an image.

    Args:
        settings: the settings of the run.
        images: the images.

    Raises:
        ValueError: if a corruption cannot be applied to the images.
    """
    if settings.corruptions:
        corrupted_plans.check(
            data.as_float(images.x_test[:1]), settings.corruptions
        )


def measured(
    settings: Settings,
    model: attacks.Logits,
    images: data.Images,
    strategy: Any,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Measures accuracy on corrupted test images.

    Args:
        settings: the settings of the run.
        model: the model to evaluate.
        images: the images.
        strategy: a `tf.distribute` strategy, or None for one device.
        log: a function of a line of text.

    Returns:
        The entry `corruptions` of results.json, where there is one; see
        `tfsam.evaluate_corruptions`.
    """
    if not settings.corruptions:
        return {}
    log(f"corrupting the images by {', '.join(settings.corruptions)}")
    found = corrupted.evaluate_corruptions(
        model,
        (data.as_float(images.x_test), images.y_test),
        settings.corruptions,
        settings.severities or SEVERITIES,
        seed=settings.seed,
        batch_size=settings.attack_batch_size,
        progress=log,
        workdir=settings.workdir / "corruptions",
        devices=strategy and devices.names(strategy),
        draws=settings.draws,
        shard=settings.shard or (0, 1),
    )
    return {"corruptions": found}
