"""Robust accuracy of a network in training, and callbacks that measure it."""

import contextlib
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam import registries
from tfsam.attacks.check import contract
from tfsam.attacks.seeds import example_seeds
from tfsam.attacks.threat_model import check_one_epsilon
from tfsam.attacks.threat_model import check_scale
from tfsam.evaluation import plans
from tfsam.evaluation import red_flags
from tfsam.models.functions import count_classes
from tfsam.models.functions import for_evaluation
from tfsam.models.loading import load_logits
from tfsam.support.graphs import traced
from tfsam.support.labels import check_classes
from tfsam.support.logit_checks import check_logits
from tfsam.support.validators import check_count
from tfsam.training import entropy_sgd
from tfsam.training import held_weights
from tfsam.training.weight_average import WeightAverage

Attack = Callable[..., tf.Tensor]
Array = np.ndarray[Any, Any]


class Accuracies:
    """Measures the accuracy of a network before and after an attack.

    The traced functions read the network's current weights.

    Args:
        network: a `keras.Model`.
        data: labelled examples of `plans.load_data`.
        attack: see `RobustValidation`.
        batch_size: examples attacked at once.
        seed: of the attack.
    """

    def __init__(
        self,
        network: keras.Model,
        data: Any,
        attack: Attack,
        batch_size: int,
        seed: int,
    ) -> None:
        logits = load_logits(network)
        classes = count_classes(logits, data.x[:1])
        check_classes(data.y, data.labels, classes)
        outputs = logits(tf.constant(data.x[:32])).numpy()
        check_logits(outputs, network)
        logits = for_evaluation(logits, classes, data.x.shape[1:])
        logits.count_passes()

        def run(x: Any, y: Any, seeds: Any, active: Any) -> Any:
            return attack(logits.only(active), x, y, seeds)

        in_graph = registries.ATTACKS.fact(attack, "in_graph")
        self.run = traced(run) if in_graph else run
        self.predict = traced(logits.predict)
        self.logits = logits
        self.data = data
        self.attack = attack
        self.size = min(batch_size, len(data.x))
        self.seeds = example_seeds(seed, len(data.x)).numpy()

    def __call__(self) -> tuple[float, float]:
        """Returns the clean and the robust accuracy, both in [0, 1]."""
        clean = self._right(np.arange(len(self.data.x)), self._given)
        self.logits.count_passes()
        robust = self._right(np.flatnonzero(clean), self._attacked)
        nonfinite = self.logits.counted().nonfinite
        if nonfinite:
            warnings.warn(
                "the accuracy under attack is meaningless: "
                f"{nonfinite} of the attack's input gradients "
                f"were NaN or infinite. {red_flags.NAN_CAUSE}",
                stacklevel=2,
            )
        return float(clean.mean()), float(robust.mean())

    def _right(
        self, indices: Array, images: Callable[[Array, tf.Tensor], tf.Tensor]
    ) -> Array:
        """Returns which examples are classified correctly, bool (n,).

        Args:
            indices: int array, the examples to classify; the others are False.
            images: function (indices of a batch, which of them count) ->
                images for the network.
        """
        right = np.zeros(len(self.data.x), bool)
        for start in range(0, len(indices), self.size):
            part = indices[start : start + self.size]
            # All batches have one shape, so that nothing is traced twice.
            batch = np.resize(part, self.size)
            active = tf.constant(np.arange(self.size) < len(part))
            outputs = self.predict(images(batch, active), active).numpy()
            outputs = outputs[: len(part)]
            # A network that has diverged classifies nothing correctly.
            finite = np.isfinite(outputs).all(axis=1)
            correct = outputs.argmax(axis=1) == self.data.labels[part]
            right[part] = finite & correct
        return right

    def _given(self, batch: Array, active: tf.Tensor) -> tf.Tensor:
        """Returns the images of a batch."""
        return tf.constant(self.data.x[batch])

    def _attacked(self, batch: Array, active: tf.Tensor) -> tf.Tensor:
        """Returns the images of a batch after the attack, checked."""
        x, y = self.data.x[batch], self.data.y[batch]
        seeds = tf.constant(self.seeds[batch])
        x_adv = self.run(tf.constant(x), tf.constant(y), seeds, active)
        contract(
            x,
            x_adv,
            getattr(self.attack, "epsilon", np.inf),
            getattr(self.attack, "norm", "linf"),
            getattr(self.attack, "bounds", None),
        )
        return tf.convert_to_tensor(x_adv)


class Measuring(keras.callbacks.Callback):
    """Base of callbacks that measure accuracies on data of their own.

    Args:
        data: see `RobustValidation`.
        attack: see `RobustValidation`.
        batch_size: examples attacked at once, >= 1.
        seed: of the attack, >= 0.
        average: an `EMA` or `SWA` of the same training, or None.
        steps: see `RobustValidation`.
    """

    def __init__(
        self,
        data: Any,
        attack: Attack,
        batch_size: int,
        seed: int,
        average: WeightAverage | None,
        steps: int | None,
    ) -> None:
        super().__init__()
        if not callable(attack):
            raise ValueError(
                "attack must be an attack, such as tfsam.PGD(8 / 255). "
                f"Received: attack={attack}"
            )
        check_scale(attack)
        check_one_epsilon(attack)
        if not isinstance(average, (WeightAverage, type(None))):
            raise ValueError(
                "average must be a tfsam.EMA or tfsam.SWA, among the callbacks "
                f"of the same fit, or None. Received: average={average}"
            )
        self.attack = attack
        self.average = average
        self.data = plans.load_data(
            data, getattr(attack, "bounds", None), steps
        )
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.seed = check_count("seed", seed)

    @property
    def network(self) -> keras.Model:
        """The network that is attacked: a `RobustModel`'s, or the model."""
        return getattr(self.model, "network", self.model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Prepares the measurement, which is traced when it first runs."""
        held_weights.begin(self.network)
        self._accuracies = Accuracies(
            self.network, self.data, self.attack, self.batch_size, self.seed
        )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Checks that the average belongs to the same training."""
        if self.average is not None:
            self.average.check_averages(self.network)

    @contextlib.contextmanager
    def _in_training(self) -> Iterator[None]:
        """Returns a context in which the network holds the weights in training.

        They are not an average, and during a walk of Entropy-SGD they are w.
        """
        optimizer = getattr(self.model, "optimizer", None)
        with (
            held_weights.training_weights(self.network),
            entropy_sgd.settled_weights(optimizer),
        ):
            yield
