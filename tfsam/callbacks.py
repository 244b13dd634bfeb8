"""Callbacks of a run: it can be watched, stopped at NaN, killed and resumed."""

import csv
import io
import math
import pathlib
import re
import statistics
import time

import keras
import numpy as np

from tfsam import files


class StopAtNaN(keras.callbacks.Callback):
    """Raises a FloatingPointError at the step where the loss is not finite."""

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the loss of the epoch so far: it stays NaN once it is."""
        if not math.isfinite(float(logs["loss"])):
            raise FloatingPointError(
                f"the loss became {logs['loss']:g} at step {self._step()}"
            )

    def on_epoch_end(self, epoch, logs=None):
        """Looks at what the last step may have spoilt."""
        for variable in self.model.weights:
            if not np.isfinite(variable.numpy()).all():
                raise FloatingPointError(
                    f"{variable.path} is not finite after step {self._step()}"
                )
        loss = float((logs or {}).get("val_loss", 0))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss became {loss:g} at step {self._step()}"
            )

    def _step(self):
        return int(self.model.optimizer.iterations.numpy())


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
                **{key: float(value) for key, value in (logs or {}).items()},
            }
        )
        # Robust validation adds its columns in some epochs only.
        columns = dict.fromkeys(key for row in self.rows for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_atomically(self.path, text.getvalue())


def read_history(path):
    """The rows of a history file, numbers as floats; none without the file.

    What was not measured in an epoch is not in its row.

    Args:
        path: of the CSV file.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            {"epoch": int(row.pop("epoch"))}
            | {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole training state after each epoch; keeps the last two.

    Args:
        folder: of the checkpoints, epoch-0001.keras and so on.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = pathlib.Path(folder)

    def on_epoch_end(self, epoch, logs=None):
        """Saves, then forgets all but this checkpoint and the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"epoch-{epoch + 1:04d}.keras"
        with files.replacing(path) as temporary:
            self.model.save(temporary)
        for _, old in checkpoints(self.folder)[2:]:
            old.unlink()


def checkpoints(folder):
    """The checkpoints of a folder as (epochs done, path), the newest first.

    Args:
        folder: of the checkpoints; it need not exist.
    """
    found = [
        (int(match[1]), path)
        for path in pathlib.Path(folder).glob("epoch-*.keras")
        if (match := re.fullmatch(r"epoch-(\d+)\.keras", path.name))
    ]
    return sorted(found, reverse=True)


class Progress(keras.callbacks.Callback):
    """Says in words how far training is: each epoch, and each few seconds.

    Args:
        log: a function of a line of text.
        steps: steps an epoch.
        epochs: epochs in all.
        every: seconds between two lines.
    """

    def __init__(self, log, steps, epochs, every=10.0):
        super().__init__()
        self.log, self.steps, self.epochs, self.every = (
            log,
            steps,
            epochs,
            every,
        )

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._started = self._said = time.perf_counter()
        self._before, self._done = None, 0

    def on_train_batch_end(self, batch, logs=None):
        """Says something if it is time to."""
        self._done += 1
        if time.perf_counter() - self._said > self.every:
            self._say(f"step {batch + 1}/{self.steps}", logs)

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch, and in a resumed run where it began."""
        self._epoch = epoch
        if self._before is None:
            self._before = epoch * self.steps

    def on_epoch_end(self, epoch, logs=None):
        """Says how the epoch ended."""
        self._say("done", logs)

    def _say(self, where, logs):
        self._said = time.perf_counter()
        pace = (self._said - self._started) / self._done
        left = self.epochs * self.steps - self._before - self._done
        numbers = ", ".join(
            f"{key} {float(value):.4f}" for key, value in (logs or {}).items()
        )
        self.log(
            f"epoch {self._epoch + 1}/{self.epochs} {where}: {numbers}, "
            f"{pace * left:.0f} s left"
        )
