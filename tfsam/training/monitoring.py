"""Callbacks that keep the history of a training and stop it at NaN."""

import csv
import io
import math
import pathlib
import statistics
import time
from typing import Any

import keras
import numpy as np

from tfsam.support import files

# Numbers of an epoch by name, as Keras passes them to callbacks.
Logs = dict[str, Any]


class StopAtNaN(keras.callbacks.Callback):
    """Stops training with a FloatingPointError if a loss is not finite."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Checks the epoch's mean loss, which stays NaN once it is.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
        """
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss:g} at step {_step(self.model)}"
            )

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Checks the weights after the epoch's last step.

        Raises:
            FloatingPointError: if a weight or the validation loss is NaN or
                infinite.
        """
        check_finite(self.model)
        loss = float((logs or {}).get("val_loss", 0))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss became {loss:g} at step "
                f"{_step(self.model)}"
            )


def check_finite(model: keras.Model) -> None:
    """Checks that all weights are finite.

    Args:
        model: a model with an optimizer.

    Raises:
        FloatingPointError: naming a weight that is not.
    """
    for variable in model.weights:
        if not np.isfinite(variable.numpy()).all():
            raise FloatingPointError(
                f"{variable.path} is not finite after step {_step(model)}"
            )


def _step(model: keras.Model) -> int:
    return int(model.optimizer.iterations.numpy())


def measured(logs: Logs | None) -> dict[str, float]:
    """Returns an epoch's numbers without NaN, which marks no measurement.

    A loss of NaN has stopped the training before.

    Args:
        logs: the numbers of an epoch, as Keras passes them to callbacks.
    """
    found = {key: float(value) for key, value in (logs or {}).items()}
    return {key: value for key, value in found.items() if value == value}


class History(keras.callbacks.Callback):
    """Keeps a CSV file with one row an epoch, rewritten after each.

    Args:
        path: of the CSV file. A resumed run keeps its first `initial_epoch`
            rows.
        initial_epoch: number of epochs already done.

    Attributes:
        rows: a list of dicts, one an epoch, from columns to numbers.
    """

    def __init__(self, path: str | pathlib.Path, initial_epoch: int = 0):
        super().__init__()
        self.path = pathlib.Path(path)
        self.rows: list[dict[str, Any]] = read_history(path)[:initial_epoch]

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Starts the epoch's clocks."""
        self._steps: list[float] = []
        # At the end of the epoch it is already the next epoch's.
        self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_begin(
        self, batch: int, logs: Logs | None = None
    ) -> None:
        """Starts the step's clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Stops the step's clock."""
        self._steps.append(time.perf_counter() - self._started)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Adds the epoch's row."""
        self.rows.append(
            {
                "epoch": epoch + 1,
                "seconds": sum(self._steps),
                "step_seconds_median": statistics.median(self._steps),
                "learning_rate": self._learning_rate,
                **measured(logs),
            }
        )
        columns = dict.fromkeys(key for row in self.rows for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_atomically(self.path, text.getvalue())

    def get_state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the measurements of a partial epoch, as arrays."""
        return {
            "steps": np.array(self._steps),
            "learning_rate": np.array(self._learning_rate),
        }

    def set_state(self, state: dict[str, np.ndarray[Any, Any]]) -> None:
        """Continues an epoch that was interrupted.

        Args:
            state: of `get_state`.
        """
        self._steps = state["steps"].tolist()
        self._learning_rate = float(state["learning_rate"])


def read_history(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads a history file.

    Args:
        path: of the CSV file.

    Returns:
        One dict an epoch, from columns to floats, without columns that were
        not measured in that epoch; an empty list if there is no file.

    Raises:
        tfsam.support.files.Unusable: if the file is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with (
        files.reading(path, "a row of numbers for each epoch"),
        open(path, newline="") as file,
    ):
        return [
            {"epoch": int(row.pop("epoch"))}
            | {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
