"""Progress of a training: lines of the log, with an estimate of time."""

import time
from collections.abc import Callable
from typing import Any

import keras

from tfsam import registries
from tfsam.evaluation.budgets import epsilon_text
from tfsam.training.monitoring import Logs
from tfsam.training.monitoring import measured

# Steps that estimates of time leave out: the first one includes tracing.
_UNTIMED = 1


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
            for key, value in measured(logs).items()
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
        clean = key.startswith("val_") or registries.OBJECTIVES.fact(
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
        words.append(f"epsilon {epsilon_text(epsilon)}")
    return ", ".join(words)
