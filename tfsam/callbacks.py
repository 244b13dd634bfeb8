"""Callbacks of a run: it can be watched, stopped at NaN, killed and resumed."""

import csv
import io
import itertools
import math
import pathlib
import re
import statistics
import time
import zipfile

import keras
import numpy as np

from tfsam import devices
from tfsam import files
from tfsam import signals


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
        _check_finite(self.model)
        loss = float((logs or {}).get("val_loss", 0))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss became {loss:g} at step "
                f"{_step(self.model)}"
            )


def _check_finite(model):
    for variable in model.weights:
        if not np.isfinite(variable.numpy()).all():
            raise FloatingPointError(
                f"{variable.path} is not finite after step {_step(model)}"
            )


def _step(model):
    return int(model.optimizer.iterations.numpy())


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
        tfsam.files.Unusable: if it is damaged.
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


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole training state after each epoch; keeps the last two.

    Amid an epoch it does so every few steps, if that is asked for, and when a
    signal asks the process to stop. Of several workers the chief alone saves,
    and a signal to any stops all after the same step. Beside the model, which
    Keras saves without the seeds of layers such as Dropout, a checkpoint holds
    those; and amid an epoch the metrics' running state and that of other
    callbacks. `Resume` puts them back.

    Args:
        folder: of the checkpoints, epoch-0001.keras and, after 20 steps of the
            next epoch, epoch-0001-step-000020.keras.
        steps: steps an epoch; None saves after epochs alone.
        every: training steps from a checkpoint to the next, >= 1; None saves
            amid an epoch only when the process is asked to stop.
        first_step: the step of its first epoch at which training begins.
        parts: callbacks with `get_state` and `set_state`, one of a class; they
            stand before this one.
        stop: a `tfsam.signals.Stop`, or None; of several workers, all have one
            or none has.
    """

    def __init__(
        self,
        folder,
        steps=None,
        *,
        every=None,
        first_step=0,
        parts=(),
        stop=None,
    ):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.steps, self.every, self.parts, self.stop = (
            steps,
            every,
            parts,
            stop,
        )
        self._first_step = first_step

    def on_epoch_begin(self, epoch, logs=None):
        """Starts to count the epoch's steps."""
        self._epoch, self._step = epoch, self._first_step
        self._first_step = 0

    def on_train_batch_end(self, batch, logs=None):
        """Saves amid the epoch, if it is time to or the process is to stop."""
        self._step += 1
        if self.steps is None or self._step == self.steps:
            return  # The epoch's own checkpoint comes soon.
        signum = self._asked()
        done = self._epoch * self.steps + self._step
        if signum or (self.every and done % self.every == 0):
            _check_finite(self.model)
            self._save(
                f"epoch-{self._epoch:04d}-step-{self._step:06d}.keras",
                (self._epoch, self._step),
                # All workers read it, for it is the sum of theirs.
                _metrics_state(self.model),
                self.parts,
            )
        if signum:
            raise signals.Stopped(signum)

    def on_epoch_end(self, epoch, logs=None):
        """Saves; leaves if the process is to stop."""
        if self.steps is not None and self._step != self.steps:
            # Keras takes some errors of files for the end of the data.
            raise RuntimeError(
                f"epoch {epoch + 1} must have {self.steps} steps. "
                f"Received: {self._step} steps"
            )
        self._save(f"epoch-{epoch + 1:04d}.keras", (epoch + 1, 0), {}, [])
        signum = self._asked()
        if signum:
            raise signals.Stopped(signum)

    def _asked(self):
        """The signal that any worker was sent, or None.

        A worker that stopped by itself would leave the others waiting for it.
        """
        if self.stop is None:
            return None
        found = devices.anywhere(
            self.model.distribute_strategy,
            [self.stop.asked == signum for signum in signals.SIGNALS],
        )
        return max(itertools.compress(signals.SIGNALS, found), default=None)

    def _save(self, name, position, state, parts):
        """Saves, then forgets all but this checkpoint and the one before."""
        if not devices.is_chief(self.model.distribute_strategy):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.replacing(self.folder / name) as temporary:
            self.model.save(temporary)
            state |= _parts_state(parts) | _seeds_state(self.model)
            _add_state(temporary, state)
        # One that is newer could not be read, or this were not made again.
        found = [c for c in checkpoints(self.folder) if c[0] <= position]
        for _, old in found[2:]:
            old.unlink()


def checkpoints(folder):
    """The checkpoints of a folder as (position, path), the newest first.

    A position is (epochs done, steps done of the next).

    Args:
        folder: of the checkpoints; it need not exist.
    """
    pattern = r"epoch-(\d+)(?:-step-(\d+))?\.keras"
    found = [
        ((int(match[1]), int(match[2] or 0)), path)
        for path in pathlib.Path(folder).glob("epoch-*.keras")
        if (match := re.fullmatch(pattern, path.name))
    ]
    return sorted(found, reverse=True)


_STATE = "state.npz"


def _seeds(model):
    """The state of the layers' seed generators, which are no weights."""
    known = {id(v) for v in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in known]


def _seeds_state(model):
    return {f"seeds/{i}": v.numpy() for i, v in enumerate(_seeds(model))}


def _metrics_state(model):
    return {
        f"metrics/{i}": v.numpy() for i, v in enumerate(model.metrics_variables)
    }


def _parts_state(parts):
    return {
        f"{type(part).__name__}/{key}": value
        for part in parts
        for key, value in part.get_state().items()
    }


def _add_state(path, state):
    """A .keras file is a zip archive: Keras reads what it knows of it."""
    content = io.BytesIO()
    np.savez(content, **state)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_STATE, content.getvalue())


def read_state(path, amid=True):
    """What a checkpoint holds beside the model, as arrays.

    Args:
        path: of the checkpoint.
        amid: whether it is one amid an epoch; after an epoch there may be none.
    """
    with zipfile.ZipFile(path) as archive:
        if not amid and _STATE not in archive.namelist():
            return {}
        content = io.BytesIO(archive.read(_STATE))
    with np.load(content) as arrays:
        return dict(arrays)


class Resume(keras.callbacks.Callback):
    """Goes on from a checkpoint. It must be the first of the callbacks.

    `fit` knows whole epochs only. Amid one the data has to begin at the right
    step; this puts back what was measured of the epoch so far, once Keras has
    reset its metrics and the callbacks have begun the epoch, and it ends the
    epoch after the steps that are left.

    Args:
        state: of `read_state`.
        parts: the callbacks whose state it is, as of `Checkpoint`.
        steps: how many are left of the epoch, one at least, if it was begun;
            else None.
    """

    def __init__(self, state, parts, steps=None):
        super().__init__()
        self.state, self.parts, self.steps = state, parts, steps

    def on_train_begin(self, logs=None):
        """Puts the seeds back."""
        for index, variable in enumerate(_seeds(self.model)):
            if f"seeds/{index}" in self.state:
                variable.assign(self.state[f"seeds/{index}"])

    def on_train_batch_begin(self, batch, logs=None):
        """Puts all else back, before the first step."""
        if self.steps is None or not self.state:
            return
        for index, variable in enumerate(self.model.metrics_variables):
            variable.assign(self.state[f"metrics/{index}"])
        for part in self.parts:
            start = f"{type(part).__name__}/"
            part.set_state(
                {
                    key.removeprefix(start): value
                    for key, value in self.state.items()
                    if key.startswith(start)
                }
            )
        self.state = {}

    def on_train_batch_end(self, batch, logs=None):
        """Ends the epoch."""
        if self.steps:
            self.steps -= 1
            self.model.stop_training = self.steps == 0

    def on_epoch_end(self, epoch, logs=None):
        """Lets training go on; callbacks that come later may still stop it."""
        if self.steps == 0:
            self.model.stop_training, self.steps = False, None


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
            f"{key} {float(value):.4f}" for key, value in (logs or {}).items()
        )
        self.log(
            f"epoch {self._epoch + 1}/{self.epochs} {where}: {numbers}, "
            f"{pace * left:.0f} s left"
        )
