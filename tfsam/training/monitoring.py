"""Callbacks that log a run's progress and stop it at NaN."""

import csv
import io
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfsam import parts
from tfsam.support import files

# Numbers of an epoch by name, as Keras passes them to callbacks.
Logs = dict[str, Any]

# Steps that estimates of time leave out: the first one includes tracing.
_UNTIMED = 1


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


def _measured(logs: Logs | None) -> dict[str, float]:
    """Returns an epoch's numbers without NaN, which marks no measurement.

    (A loss of NaN stops the training before.)
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
                **_measured(logs),
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


class Progress(keras.callbacks.Callback):
    """Logs how far training is: after each epoch, and every few seconds.

    A line has the epoch's numbers, with "under attack" or "clean" beside each
    accuracy if the model is a `RobustModel` with an attack, and an estimate of
    the time left, which begins after the first step. A line at the beginning
    names the attack's norm and epsilon.

    Args:
        log: a function that takes a line of text.
        steps: number of steps in an epoch.
        epochs: number of epochs in all.
        every: seconds between two lines.
        first_step: step, in its first epoch, at which training begins.
    """

    def __init__(
        self,
        log: Callable[[str], Any],
        steps: int,
        epochs: int,
        every: float = 10.0,
        first_step: int = 0,
    ) -> None:
        super().__init__()
        self.log, self.steps, self.epochs = log, steps, epochs
        self.every = every
        self._first_step = first_step

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Starts the clock, and logs the attack."""
        self._begun = self._logged = time.perf_counter()
        self._before: int | None = None
        self._done = 0
        attack = getattr(self.model, "perturb_inputs", None)
        if attack is not None:
            self.log(f"trains under attack: {_described(attack)}")

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Records the epoch, and where a resumed run began."""
        self._epoch, self._step = epoch, 0
        if self._before is None:
            self._step = self._first_step
            self._before = epoch * self.steps + self._step

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Logs a line if it is time to."""
        self._done += 1
        self._step += 1
        now = time.perf_counter()
        if self._done == _UNTIMED:
            self._begun = now
        if now - self._logged > self.every:
            self._write(f"step {self._step}/{self.steps}", logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Logs the epoch's numbers."""
        self._write("done", logs)

    def _write(self, where: str, logs: Logs | None) -> None:
        self._logged = time.perf_counter()
        numbers = [
            f"{key} {value:.4f}{self._under(key)}"
            for key, value in _measured(logs).items()
        ]
        line = ", ".join([*numbers, *self._time_left()])
        self.log(f"epoch {self._epoch + 1}/{self.epochs} {where}: {line}")

    def _time_left(self) -> list[str]:
        """Returns an estimate as text, none before the first timed step."""
        timed = self._done - _UNTIMED
        if timed < 1:
            return []
        pace = (self._logged - self._begun) / timed
        left = self.epochs * self.steps - (self._before or 0) - self._done
        return [f"{pace * left:.0f} s left"]

    def _under(self, key: str) -> str:
        """Returns whether a number is of perturbed inputs, as a suffix."""
        attack = getattr(self.model, "perturb_inputs", None)
        if attack is None or "accuracy" not in key:
            return ""
        if "clean" in key or "robust" in key:
            return ""  # Its name includes the kind.
        objective = getattr(self.model, "objective", None)
        clean = key.startswith("val_") or parts.OBJECTIVES.fact(
            objective, "clean_statistics"
        )
        return " (clean)" if clean else " (under attack)"


def _described(attack: Any) -> str:
    """Returns an attack's name, norm and epsilon, as text."""
    name = getattr(attack, "__name__", type(attack).__name__)
    norm = getattr(attack, "norm", None)
    epsilon = getattr(attack, "epsilon", None)
    words = [name] if norm is None else [name, str(norm)]
    if isinstance(epsilon, (int, float)):
        words.append(f"epsilon {_short(epsilon, norm, attack)}")
    return ", ".join(words)


def _short(epsilon: float, norm: Any, attack: Any) -> str:
    """Returns an epsilon as text, in 255ths if that is how it was meant."""
    levels = round(255 * epsilon, 2)
    unit = getattr(attack, "bounds", None) == (0.0, 1.0)
    if unit and norm == "linf" and abs(levels / 255 - epsilon) < 1e-9:
        return f"{levels:g}/255"
    return f"{epsilon:.4g}"
