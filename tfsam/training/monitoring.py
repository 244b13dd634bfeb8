"""Callbacks of a run: it can be watched, and is stopped at NaN."""

import csv
import io
import math
import pathlib
import statistics
import time

import keras
import numpy as np

from tfsam.support import files


class StopAtNaN(keras.callbacks.Callback):
    """Raises a FloatingPointError at the step where the loss is not finite."""

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the loss of the epoch so far: it stays NaN once it is."""
        if not math.isfinite(float(logs["loss"])):
            raise FloatingPointError(
                f"the loss became {logs['loss']:g} at step {_step(self.model)}"
            )

    def on_epoch_end(self, epoch, logs=None):
        """Looks at what the last step may have spoilt."""
        check_finite(self.model)
        loss = float((logs or {}).get("val_loss", 0))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss became {loss:g} at step "
                f"{_step(self.model)}"
            )


def check_finite(model):
    """Raises a FloatingPointError if a weight is not finite."""
    for variable in model.weights:
        if not np.isfinite(variable.numpy()).all():
            raise FloatingPointError(
                f"{variable.path} is not finite after step {_step(model)}"
            )


def _step(model):
    return int(model.optimizer.iterations.numpy())


def _measured(logs):
    """The numbers of an epoch's logs; NaN is one that was not measured.

    (A loss that is NaN has stopped the training before.)
    """
    found = {key: float(value) for key, value in (logs or {}).items()}
    return {key: value for key, value in found.items() if value == value}


class History(keras.callbacks.Callback):
    """Keeps a CSV file, one row an epoch, rewritten whole after each.

    Args:
        path: of the CSV file; a resumed run goes on from its first
            `initial_epoch` rows.
        initial_epoch: epochs already done.
    """

    def __init__(self, path, initial_epoch=0):
        super().__init__()
        self.path = pathlib.Path(path)
        self.rows = read_history(path)[:initial_epoch]

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the epoch's clocks."""
        self._steps = []
        # At the end of the epoch it would be the next one's.
        self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the step's clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Stops the step's clock."""
        self._steps.append(time.perf_counter() - self._started)

    def on_epoch_end(self, epoch, logs=None):
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

    def get_state(self):
        """What is known of the epoch so far, as arrays."""
        return {
            "steps": np.array(self._steps),
            "learning_rate": np.array(self._learning_rate),
        }

    def set_state(self, state):
        """Goes on amid an epoch.

        Args:
            state: of `get_state`.
        """
        self._steps = state["steps"].tolist()
        self._learning_rate = float(state["learning_rate"])


def read_history(path):
    """The rows of a history file, numbers as floats; none without the file.

    What was not measured in an epoch is not in its row.

    Args:
        path: of the CSV file.

    Raises:
        tfsam.support.files.Unusable: if it is damaged.
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
    """Says in words how far training is: each epoch, and each few seconds.

    Args:
        log: a function of a line of text.
        steps: steps an epoch.
        epochs: epochs in all.
        every: seconds between two lines.
        first_step: the step of its first epoch at which training begins.
    """

    def __init__(self, log, steps, epochs, every=10.0, first_step=0):
        super().__init__()
        self.log, self.steps, self.epochs, self.every = (
            log,
            steps,
            epochs,
            every,
        )
        self._first_step = first_step

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._started = self._said = time.perf_counter()
        self._before, self._done = None, 0

    def on_train_batch_end(self, batch, logs=None):
        """Says something if it is time to."""
        self._done += 1
        self._step += 1
        if time.perf_counter() - self._said > self.every:
            self._say(f"step {self._step}/{self.steps}", logs)

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch, and in a resumed run where it began."""
        self._epoch, self._step = epoch, 0
        if self._before is None:
            self._step = self._first_step
            self._before = epoch * self.steps + self._step

    def on_epoch_end(self, epoch, logs=None):
        """Says how the epoch ended."""
        self._say("done", logs)

    def _say(self, where, logs):
        self._said = time.perf_counter()
        pace = (self._said - self._started) / self._done
        left = self.epochs * self.steps - self._before - self._done
        numbers = ", ".join(
            f"{key} {value:.4f}" for key, value in _measured(logs).items()
        )
        self.log(
            f"epoch {self._epoch + 1}/{self.epochs} {where}: {numbers}, "
            f"{pace * left:.0f} s left"
        )
