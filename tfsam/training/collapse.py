"""A callback that stops training when robustness collapses.

In catastrophic overfitting a network trained by FGSM learns within an epoch to
fool this single step, and loses all robustness against several steps (Wong et
al., 2020). The training loss does not show it.

In the list of callbacks it comes before the ones that record an epoch's results
or save its state.
"""

import math
from typing import Any

import numpy as np

from tfsam.support import devices
from tfsam.support.validators import check_number
from tfsam.training import held_weights
from tfsam.training.robust_accuracy import Array
from tfsam.training.robust_accuracy import Attack
from tfsam.training.robust_accuracy import Measuring
from tfsam.training.weight_average import State
from tfsam.training.weight_average import WeightAverage

# Accuracies are multiples of 1/n; smaller differences are rounding errors.
_ROUNDING = 1e-9


class StopAtCollapse(Measuring):
    """A callback that stops training when robustness collapses.

    FGSM training is fast and, for a while, as good as PGD training. Then,
    within an epoch or less, the network learns to fool this single step, and
    its accuracy under PGD falls to zero. Stopping there makes FGSM training
    safe (Wong et al., 2020, "Fast is better than free"): the accuracy under PGD
    on a batch of training images is compared from epoch to epoch. After a
    collapse the network gets all of its weights of the previous epoch back,
    including BatchNorm statistics.

    An average of the weights would include the collapsed epoch: pass it as
    `average`, and it is restored as well. The accuracy is that of the weights
    in training, at any position of an average in the list of callbacks, and of
    w during a walk of `EntropySGD`.

    After an epoch its `logs` have `train_robust_accuracy`, of the weights at
    its end. The first epoch is compared with the weights with which training
    began or was resumed.

    Args:
        data: see `RobustValidation`; a batch of training images is enough.
        attack: an attack of several steps, such as
            `tfsam.PGD(epsilon, steps=5)`. The network learns to fool a single
            step.
        drop: in [0, 1]. Training stops if the accuracy is lower than that of
            the previous epoch by more than this.
        average: the `tfsam.EMA` or `tfsam.SWA` of the same `fit`, or None.
        batch_size: examples attacked at once, >= 1.
        seed: of the attack, >= 0; see `RobustValidation`.
        steps: see `RobustValidation`.

    Attributes:
        stopped_epoch: number of the epoch of the collapse (from 1), or None.

    Raises:
        ValueError: see `RobustValidation`.

    Example:
        >>> import keras, tfsam
        >>> from sklearn.datasets import load_digits
        >>> images, labels = load_digits(return_X_y=True)
        >>> x, y = (images[:16] / 16).astype("float32"), labels[:16]
        >>> model = tfsam.RobustModel(
        ...     keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)]),
        ...     perturb_inputs=tfsam.FGSM(8 / 255),
        ... )
        >>> model.compile(
        ...     tfsam.SGD(0.1),
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> stop = tfsam.StopAtCollapse(
        ...     (x, y), tfsam.PGD(8 / 255, steps=2), drop=1.0
        ... )
        >>> history = model.fit(x, y, callbacks=[stop], verbose=0)
        >>> "train_robust_accuracy" in history.history
        True
        >>> print(stop.stopped_epoch)
        None
    """

    def __init__(
        self,
        data: Any,
        attack: Attack,
        *,
        drop: float = 0.2,
        average: WeightAverage | None = None,
        batch_size: int = 128,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        super().__init__(data, attack, batch_size, seed, average, steps)
        self.drop = check_number("drop", drop, 0, 1)
        self.stopped_epoch: int | None = None
        self._before = math.nan
        self._weights_before: list[Array] = []
        self._average_before: State = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Measures the weights with which the first epoch is compared."""
        super().on_train_begin(logs)
        self.stopped_epoch = None
        with self._in_training():
            self._remember(self._robust_accuracy())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keeps the average, which a resumed run has loaded only now."""
        super().on_epoch_begin(epoch, logs)
        if self.average is not None:
            self._average_before = self.average.get_state()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compares the accuracy with that of the previous epoch."""
        with self._in_training():
            accuracy = logs["train_robust_accuracy"] = self._robust_accuracy()
            collapsed = self._before - accuracy > self.drop + _ROUNDING
            if not collapsed:
                self._remember(accuracy)
        if collapsed:
            self._go_back(epoch)

    def _go_back(self, epoch: int) -> None:
        """Restores the weights of the previous epoch, and stops training."""
        with held_weights.training_weights(self.network):
            # An optimizer that walks around the weights must end its walk, or
            # it would overwrite them with those of the collapsed epoch.
            self.model.optimizer.finalize_variable_values(
                self.model.trainable_variables
            )
            self.network.set_weights(self._weights_before)
            if self.average is not None:
                self.average.put_back(self._average_before, epoch)
        self.stopped_epoch = epoch + 1
        self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Restores the weights once more, if the optimizer overwrote them."""
        ending = held_weights.Ending.BEFORE_COLLAPSE
        if self.stopped_epoch and held_weights.may_end(self.network, ending):
            self.network.set_weights(self._weights_before)

    def get_state(self) -> State:
        """Returns the previous epoch's accuracy and weights, as arrays."""
        return {"before": np.array(self._before)} | {
            f"weight_{i}": w for i, w in enumerate(self._weights_before)
        }

    def set_state(self, state: State) -> None:
        """Continues an epoch that was interrupted.

        Args:
            state: of `get_state`, in the same training.
        """
        self._before = float(state["before"])
        self._weights_before = [
            state[f"weight_{i}"] for i in range(len(self._weights_before))
        ]

    def _robust_accuracy(self) -> float:
        strategy = self.model.distribute_strategy
        return devices.of_chief(strategy, self._accuracies()[1])

    def _remember(self, accuracy: float) -> None:
        self._before = accuracy
        self._weights_before = self.network.get_weights()
