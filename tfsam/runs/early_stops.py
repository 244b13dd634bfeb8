"""Early stops of training where the accuracy under attack collapses."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras

from tfsam import data
from tfsam.attacks import PGD
from tfsam.data.rows import part
from tfsam.runs.settings import Settings
from tfsam.support import files
from tfsam.support.validators import check_count
from tfsam.training.collapse import StopAtCollapse

Log = Callable[[str], None]


class KeepStop(keras.callbacks.Callback):
    """Records in a file that training was stopped, for a run that resumes.

    Args:
        stop: the `StopAtCollapse` to watch.
        path: the file.
        log: a function of a line of text.
    """

    def __init__(self, stop: Any, path: pathlib.Path, log: Log) -> None:
        super().__init__()
        self.stop, self.path, self.log = stop, path, log

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Writes the file before the checkpoint of the epoch."""
        if self.stop.stopped_epoch:
            files.write_json(self.path, {"epoch": self.stop.stopped_epoch})
            self.log(
                f"epoch {epoch + 1}: the accuracy under attack collapsed; the "
                "weights of the epoch before are put back, and training stops"
            )


def at_collapse(
    settings: Settings, images: data.Images, average: Any
) -> StopAtCollapse | None:
    """Makes the callback that detects catastrophic overfitting, if needed.

    Args:
        settings: the settings of the run.
        images: the images that are trained on.
        average: the callback that averages the weights, or None.
    """
    recipe = settings.recipe
    drop, epsilon, norm = recipe.collapse_drop, recipe.epsilon, recipe.norm
    if drop is None or drop >= 1 or epsilon is None or norm is None:
        return None
    some = data.sample(len(images.x_train), recipe.batch_size, settings.seed)
    return StopAtCollapse(
        (data.as_float(part(images.x_train, some)), images.y_train[some]),
        PGD(epsilon, norm, steps=5),
        drop=drop,
        average=average,
        seed=settings.seed,
    )


def stopped_epoch(workdir: pathlib.Path) -> int | None:
    """Returns the epoch after which a collapse stopped training, or None.

    Args:
        workdir: the folder of the run.
    """
    path = workdir / "stopped.json"
    if not path.exists():
        return None
    with files.reading(path, "the epoch that training stopped after"):
        return check_count("epoch", json.loads(path.read_text())["epoch"], 1)
