"""Checkpoints, from which an interrupted run is resumed."""

import io
import pathlib
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import held_weights
from tfsam.training import monitoring

_STATE = "state.npz"

# (epochs done, steps done of the next epoch).
Position = tuple[int, int]
State = dict[str, "np.ndarray[Any, Any]"]


class Checkpoint(keras.callbacks.Callback):
    """A callback that saves the whole training state; keeps the last two.

    It saves after each epoch, optionally every few steps, and mid-epoch when a
    signal requests the process to stop. Of several workers only the chief
    saves, and a signal to any of them stops all after the same step. In
    addition to what Keras saves, a checkpoint holds the seeds of layers such as
    Dropout and, mid-epoch, the running state of the metrics and of other
    callbacks. `Resume` restores them.

    Args:
        folder: path of the folder of the checkpoints: epoch-0001.keras and,
            after 20 steps of the next epoch, epoch-0001-step-000020.keras.
        steps: number of steps in an epoch; None saves only after epochs.
        every: number of training steps from one checkpoint to the next, >= 1;
            None saves mid-epoch only when the process is requested to stop.
        first_step: step, in its first epoch, at which training begins.
        parts: callbacks with `get_state` and `set_state`, at most one of each
            class. They must come before this one.
        stop: a `tfsam.support.signals.Stop`, or None; the same for all workers.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        steps: int | None = None,
        *,
        every: int | None = None,
        first_step: int = 0,
        parts: Sequence[Any] = (),
        stop: Any = None,
    ) -> None:
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.steps, self.every = steps, every
        self.parts, self.stop = parts, stop
        self._first_step = first_step

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts to count the epoch's steps."""
        self._epoch, self._step = epoch, self._first_step
        self._first_step = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves mid-epoch, if it is time to or the process must stop.

        Raises:
            tfsam.support.signals.Stopped: after saving, if it must stop.
        """
        self._step += 1
        if self.steps is None or self._step == self.steps:
            return  # `on_epoch_end` saves soon.
        signum = self._asked()
        done = self._epoch * self.steps + self._step
        if signum or (self.every and done % self.every == 0):
            monitoring.check_finite(self.model)
            self._save(
                f"epoch-{self._epoch:04d}-step-{self._step:06d}.keras",
                (self._epoch, self._step),
                # All workers must read it, because it is the sum of theirs.
                _metrics_state(self.model),
                self.parts,
            )
        if signum:
            raise signals.Stopped(signum)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves after the epoch.

        Raises:
            RuntimeError: if the epoch was cut short.
            tfsam.support.signals.Stopped: after saving, if the process must
                stop.
        """
        if self.steps is not None and self._step != self.steps:
            # Keras mistakes some file errors for the end of the data.
            raise RuntimeError(
                f"epoch {epoch + 1} must have {self.steps} steps. "
                f"Received: {self._step} steps"
            )
        self._save(f"epoch-{epoch + 1:04d}.keras", (epoch + 1, 0), {}, [])
        signum = self._asked()
        if signum:
            raise signals.Stopped(signum)

    def _asked(self) -> Any:
        """Returns the signal that any worker received, or None.

        If one worker stopped alone, the others would wait for it forever.
        """
        if self.stop is None:
            return None
        strategy = self.model.distribute_strategy
        return devices.asked_to_stop(strategy, self.stop)

    def _save(
        self, name: str, position: Position, state: State, parts: Sequence[Any]
    ) -> None:
        """Saves, then deletes all but this checkpoint and the previous one."""
        if not devices.is_chief(self.model.distribute_strategy):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        network = getattr(self.model, "network", self.model)
        with (
            held_weights.training_weights(network),
            files.replacing(self.folder / name) as temporary,
        ):
            self.model.save(temporary)
            state |= _parts_state(parts) | _seeds_state(self.model)
            _add_state(temporary, state)
        # Newer checkpoints are not counted. They were unreadable; otherwise
        # training would have continued from them.
        found = [c for c in newest_first(self.folder) if c[0] <= position]
        for _, old in found[2:]:
            old.unlink()


def newest_first(
    folder: str | pathlib.Path,
) -> list[tuple[Position, pathlib.Path]]:
    """Returns the checkpoints of a folder, the newest first.

    Args:
        folder: path of the folder, which may be missing.

    Returns:
        Pairs (position, path); a position is (epochs done, steps done of the
        next epoch).
    """
    pattern = r"epoch-(\d+)(?:-step-(\d+))?\.keras"
    found = [
        ((int(match[1]), int(match[2] or 0)), path)
        for path in pathlib.Path(folder).glob("epoch-*.keras")
        if (match := re.fullmatch(pattern, path.name))
    ]
    return sorted(found, reverse=True)


def _seeds(model: keras.Model) -> list[Any]:
    """Returns variables of seed generators, which are not among the weights."""
    known = {id(v) for v in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in known]


def _seeds_state(model: keras.Model) -> State:
    return {f"seeds/{i}": v.numpy() for i, v in enumerate(_seeds(model))}


def _metrics_state(model: keras.Model) -> State:
    return {
        f"metrics/{i}": v.numpy() for i, v in enumerate(model.metrics_variables)
    }


def _parts_state(parts: Sequence[Any]) -> State:
    return {
        f"{type(part).__name__}/{key}": value
        for part in parts
        for key, value in part.get_state().items()
    }


def _add_state(path: pathlib.Path, state: State) -> None:
    """Adds a file to a .keras file, a zip archive; Keras ignores it."""
    content = io.BytesIO()
    arrays: dict[str, Any] = state
    np.savez(content, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_STATE, content.getvalue())


def read_state(path: str | pathlib.Path, amid: bool = True) -> State:
    """Returns the arrays that a checkpoint holds beside the model.

    Args:
        path: path of the checkpoint.
        amid: whether it is a mid-epoch checkpoint. Others may have no arrays.
    """
    with zipfile.ZipFile(path) as archive:
        if not amid and _STATE not in archive.namelist():
            return {}
        content = io.BytesIO(archive.read(_STATE))
    with np.load(content) as arrays:
        return dict(arrays)


class Resume(keras.callbacks.Callback):
    """A callback that resumes training; it must be the first in the list.

    `fit` counts whole epochs only. To resume mid-epoch, pass data that begins
    at the right step. This callback then restores the epoch's measurements,
    after Keras has reset its metrics and the callbacks have begun the epoch,
    and ends the epoch after the remaining steps.

    Args:
        state: of `read_state`.
        parts: the callbacks whose state it includes, see `Checkpoint`.
        steps: number of remaining steps of a partial epoch, >= 1; None at the
            beginning of an epoch.
    """

    def __init__(
        self, state: State, parts: Sequence[Any], steps: int | None = None
    ) -> None:
        super().__init__()
        self.state, self.parts, self.steps = state, parts, steps

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the seeds."""
        for index, variable in enumerate(_seeds(self.model)):
            if f"seeds/{index}" in self.state:
                variable.assign(self.state[f"seeds/{index}"])

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Restores everything else, before the first step."""
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

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Ends the epoch after the remaining steps."""
        if self.steps:
            self.steps -= 1
            self.model.stop_training = self.steps == 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Lets training continue; later callbacks may still stop it."""
        if self.steps == 0:
            self.model.stop_training, self.steps = False, None
