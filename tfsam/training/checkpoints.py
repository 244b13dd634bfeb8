"""Checkpoints: a run can be killed, and resumed where it was."""

import io
import pathlib
import re
import zipfile

import keras
import numpy as np

from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import averages
from tfsam.training import monitoring

_STATE = "state.npz"


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
        stop: a `tfsam.support.signals.Stop`, or None; of several workers, all
            have one or none has.
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
            monitoring.check_finite(self.model)
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
        strategy = self.model.distribute_strategy
        return devices.asked_to_stop(strategy, self.stop)

    def _save(self, name, position, state, parts):
        """Saves, then forgets all but this checkpoint and the one before."""
        if not devices.is_chief(self.model.distribute_strategy):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        network = getattr(self.model, "network", self.model)
        with (
            averages.training_weights(network),
            files.replacing(self.folder / name) as temporary,
        ):
            self.model.save(temporary)
            state |= _parts_state(parts) | _seeds_state(self.model)
            _add_state(temporary, state)
        # One that is newer could not be read, or this were not made again.
        found = [c for c in newest_first(self.folder) if c[0] <= position]
        for _, old in found[2:]:
            old.unlink()


def newest_first(folder):
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
