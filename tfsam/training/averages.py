"""Averages of the weights over training: EMA and SWA.

`EMA` and `SWA` read the weights after each step or epoch and do not affect
training, so they combine with every optimizer and every `RobustModel`.
"""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.training.weight_average import WeightAverage


class EMA(WeightAverage):
    """A callback that keeps an exponential moving average of the weights.

        average <- m * average + (1 - m) * w        after each batch

    The optimizer makes one step for a batch, except that `tfsam.FreeAT` makes
    several, and gradient accumulation makes one for several batches. The
    average begins with the weights at the start of training (Polyak averaging;
    in adversarial training: "Uncovering the limits of adversarial training
    against norm-bounded adversarial examples", Gowal et al., 2020). See
    `WeightAverage` for when the network holds the average.

    Args:
        momentum: m, in [0, 1]. The average extends over about 1 / (1 - m)
            batches.
        warmup: whether m is min(momentum, (1 + t) / (10 + t)) after t batches,
            so that a short training forgets its random start.
        data: see `WeightAverage`.
        attack: see `WeightAverage`.
        folder: see `WeightAverage`.
        steps: see `WeightAverage`.

    Raises:
        ValueError: if momentum is out of range. In `fit` also if the model is
            compiled with several steps per execution, because the average needs
            every step.

    Example:
        >>> import keras, tfsam
        >>> from sklearn.datasets import load_digits
        >>> images, labels = load_digits(return_X_y=True)
        >>> model = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model.compile("sgd", "mse")
        >>> average = tfsam.EMA(momentum=0.99)
        >>> history = model.fit(
        ...     images[:16] / 16, keras.utils.to_categorical(labels[:16], 10),
        ...     batch_size=4, callbacks=[average], verbose=0
        ... )
        >>> average.count
        4
    """

    def __init__(
        self,
        momentum: float = 0.999,
        *,
        warmup: bool = True,
        data: Any = None,
        attack: Callable[..., tf.Tensor] | None = None,
        folder: str | pathlib.Path | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(data, attack, folder, steps)
        self.momentum = check_number("momentum", momentum, 0, 1)
        self.warmup = warmup

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts with the weights of the network."""
        if self.model.steps_per_execution > 1:
            raise ValueError(
                "EMA must see every step: compile with steps_per_execution=1. "
                "Received: steps_per_execution="
                f"{self.model.steps_per_execution}"
            )
        super().on_train_begin(logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Adds the step's weights."""
        momentum = self.momentum
        if self.warmup:
            momentum = min(momentum, (1 + self.count) / (10 + self.count))
        self._update(momentum)


class SWA(WeightAverage):
    """A callback that averages the weights at the ends of epochs.

        average <- average + (w - average) / (n + 1)      n snapshots before

    "Averaging weights leads to wider optima and better generalization"
    (Izmailov et al., 2018, algorithm 1). Averaging helps if the snapshots
    differ: keep the learning rate high, or cycle it. An epoch's snapshot is
    part of the average that is validated in this epoch; before the first one
    there is no average. See `WeightAverage` for when the network holds the
    average.

    Args:
        start_epoch: the first epoch with a snapshot, from 0.
        every: number of epochs from one snapshot to the next, >= 1.
        data: see `WeightAverage`.
        attack: see `WeightAverage`.
        folder: see `WeightAverage`.
        steps: see `WeightAverage`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import keras, tfsam
        >>> from sklearn.datasets import load_digits
        >>> images, labels = load_digits(return_X_y=True)
        >>> model = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model.compile("sgd", "mse")
        >>> average = tfsam.SWA(start_epoch=1)
        >>> history = model.fit(
        ...     images[:16] / 16, keras.utils.to_categorical(labels[:16], 10),
        ...     epochs=3, callbacks=[average], verbose=0
        ... )
        >>> average.count  # After the second epoch and the third.
        2
    """

    # Weights that hardly move are not worth averaging.
    holds_rate = True

    def __init__(
        self,
        start_epoch: int,
        *,
        every: int = 1,
        data: Any = None,
        attack: Callable[..., tf.Tensor] | None = None,
        folder: str | pathlib.Path | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(data, attack, folder, steps)
        self.start_epoch = check_count("start_epoch", start_epoch)
        self.every = check_count("every", every, 1)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Decides whether the epoch ends with a snapshot."""
        super().on_epoch_begin(epoch, logs)
        since = epoch - self.start_epoch
        self._due = since >= 0 and since % self.every == 0

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the averaged weights in the network, if there are any."""
        super().on_train_end(logs)
        if self.count == 0:
            warnings.warn(
                "SWA took no snapshot, so the network has the last weights of "
                "training: it ended before the end of epoch start_epoch, "
                f"counted from 0. Received: start_epoch={self.start_epoch}",
                stacklevel=2,
            )

    def _collect(self) -> None:
        if self._due:
            self._update(self.count / (self.count + 1))
            self._due = False
