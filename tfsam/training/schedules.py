"""Learning-rate schedules of whole training runs.

A schedule is made from the rate, the number of epochs and the steps per epoch:
`piecewise` is the paper's, `cosine` and `one_cycle` are those of the recipes of
robust networks. All are `keras.optimizers.schedules.LearningRateSchedule`s,
which Keras saves with the optimizer.
"""

import math
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule as Schedule

from tfsam.support.validators import check_count
from tfsam.support.validators import check_number


@keras.saving.register_keras_serializable(package="tfsam")
class Warmup(Schedule):
    """A linear rise of the learning rate at the start of another schedule.

    In step t of the first `steps`, counted from 0, the rate is
    (t + 1) / (steps + 1) times that of the other schedule.

    Args:
        schedule: The other schedule, of the same steps.
        steps: Number of steps of the rise, >= 0.

    Raises:
        ValueError: If `steps` is negative.

    Example:
        >>> from keras.optimizers import schedules
        >>> constant = schedules.PiecewiseConstantDecay([9], [0.8, 0.08])
        >>> rate = Warmup(constant, 3)
        >>> [round(float(rate(step)), 2) for step in range(5)]
        [0.2, 0.4, 0.6, 0.8, 0.8]
    """

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self.schedule = schedule
        self.steps = check_count("steps", steps, 0)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step."""
        rate = ops.convert_to_tensor(self.schedule(step))
        risen = (ops.cast(step, rate.dtype) + 1) / (self.steps + 1)
        return rate * ops.minimum(risen, 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Warmup":
        """Makes a schedule from the result of `get_config`."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["steps"])


@keras.saving.register_keras_serializable(package="tfsam")
class OneCycle(Schedule):
    """A rise of the learning rate, and a longer fall (Smith and Topin, 2018).

    Both are halves of a cosine, as in PyTorch's `OneCycleLR`: from
    rate / 25 to the rate, and on to rate / 250,000. The momentum stays as it
    is.

    Args:
        learning_rate: The largest rate, >= 0.
        steps: Number of steps, >= 1.
        warmup: Part of the steps in which the rate rises, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> rate = OneCycle(0.2, steps=100, warmup=0.1)
        >>> f"{float(rate(0)):.3f} {float(rate(9)):.3f} {float(rate(99)):.1e}"
        '0.008 0.200 8.0e-07'
    """

    _START = 1 / 25
    _END = _START / 10_000

    def __init__(
        self, learning_rate: float, steps: int, warmup: float = 0.025
    ) -> None:
        self.learning_rate = check_number("learning_rate", learning_rate)
        self.steps = check_count("steps", steps, 1)
        self.warmup = check_number("warmup", warmup, 0, 1)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step."""
        step = ops.cast(step, "float32")
        # The positions of the highest and of the last rate; neither rise nor
        # fall is shorter than a step.
        top = max(self.warmup * self.steps - 1, 0)
        last = max(self.steps - 1, top + 1)
        rise = self._between(self._START, 1, step / max(top, 1))
        fall = self._between(1, self._END, (step - top) / (last - top))
        return self.learning_rate * ops.where(step < top, rise, fall)

    @staticmethod
    def _between(start: float, end: float, part: Any) -> Any:
        """Returns a value that moves from start to end along a cosine."""
        turned = ops.cos(math.pi * ops.clip(part, 0, 1))
        return end + (start - end) / 2 * (1 + turned)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup": self.warmup,
        }


def warmed_up(
    schedule: Schedule,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
) -> Schedule:
    """Returns a schedule with a linear rise at its start.

    Args:
        schedule: The schedule of the whole run.
        epochs: Number of epochs, >= 1.
        steps_per_epoch: Number of steps of an epoch, >= 1.
        warmup_epochs: Epochs of the rise; see `Warmup`. Without any, the
            schedule itself is returned.

    Raises:
        ValueError: If the rise is as long as the run, or longer.

    Example:
        >>> from keras.optimizers import schedules
        >>> constant = schedules.PiecewiseConstantDecay([9], [0.8, 0.08])
        >>> warmed_up(constant, 10, 1) is constant
        True
    """
    rise = _warmup_steps(warmup_epochs, epochs, steps_per_epoch)
    return Warmup(schedule, rise) if rise else schedule


def piecewise(
    learning_rate: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
    *,
    drop: float = 10,
) -> Schedule:
    """Makes the paper's schedule: a smaller rate after 75 % and 90 %.

    Args:
        learning_rate: The rate of the first epochs, >= 0.
        epochs: Number of epochs, >= 1.
        steps_per_epoch: Number of steps of an epoch, >= 1.
        warmup_epochs: Epochs of a linear rise; see `Warmup`.
        drop: Number by which the rate is divided each time, >= 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> rate = piecewise(0.1, epochs=20, steps_per_epoch=10)
        >>> [round(float(rate(epoch * 10)), 3) for epoch in (0, 14, 15, 18)]
        [0.1, 0.1, 0.01, 0.001]
    """
    check_number("drop", drop, 1)
    bounds = [
        round(epochs * part) * steps_per_epoch - 1 for part in (0.75, 0.9)
    ]
    rates = [learning_rate, learning_rate / drop, learning_rate / drop**2]
    made = keras.optimizers.schedules.PiecewiseConstantDecay(bounds, rates)
    return warmed_up(made, epochs, steps_per_epoch, warmup_epochs)


def cosine(
    learning_rate: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
    *,
    final: float = 0.0,
) -> Schedule:
    """Makes a schedule that falls along a cosine (Loshchilov and Hutter, 2017).

    Args:
        learning_rate: The largest rate, > 0.
        epochs: Number of epochs, >= 1.
        steps_per_epoch: Number of steps of an epoch, >= 1.
        warmup_epochs: Epochs of a linear rise; the fall begins after them.
        final: The rate at the end, between 0 and `learning_rate`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> rate = cosine(0.1, epochs=10, steps_per_epoch=10, final=0.02)
        >>> [round(float(rate(step)), 3) for step in (0, 50, 100)]
        [0.1, 0.06, 0.02]
    """
    warmup = _warmup_steps(warmup_epochs, epochs, steps_per_epoch)
    check_number("learning_rate", learning_rate)
    check_number("final", final, 0, learning_rate)
    rise: dict[str, Any] = {}
    first = learning_rate
    if warmup:
        first = learning_rate / (warmup + 1)
        rise = {"warmup_target": learning_rate, "warmup_steps": warmup}
    return keras.optimizers.schedules.CosineDecay(
        first,
        epochs * steps_per_epoch - warmup,
        alpha=final / learning_rate if learning_rate else 0.0,
        **rise,
    )


def one_cycle(
    learning_rate: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0,
    *,
    warmup: float = 0.025,
) -> Schedule:
    """Makes a schedule of a short rise and a long fall; see `OneCycle`.

    Args:
        learning_rate: The largest rate, >= 0.
        epochs: Number of epochs, >= 1.
        steps_per_epoch: Number of steps of an epoch, >= 1.
        warmup_epochs: Epochs of the rise; 0 takes `warmup`.
        warmup: Part of the steps in which the rate rises, in [0, 1]. The
            default is that of Wang et al., 2023, "Better diffusion models
            further improve adversarial training".

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> rate = one_cycle(0.2, epochs=40, steps_per_epoch=10)
        >>> round(float(rate(9)), 2)
        0.2
    """
    steps = _warmup_steps(warmup_epochs, epochs, steps_per_epoch)
    if steps:
        warmup = steps / (epochs * steps_per_epoch)
    return OneCycle(learning_rate, epochs * steps_per_epoch, warmup)


def _warmup_steps(
    warmup_epochs: float, epochs: int, steps_per_epoch: int
) -> int:
    """Returns the number of steps of the rise, fewer than those of the run."""
    check_number("warmup_epochs", warmup_epochs)
    if warmup_epochs and warmup_epochs >= epochs:
        raise ValueError(
            f"warmup_epochs must be below epochs={epochs}. "
            f"Received: warmup_epochs={warmup_epochs}"
        )
    return round(warmup_epochs * steps_per_epoch)
