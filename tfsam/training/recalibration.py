"""BatchNorm statistics of a network, measured again.

Averaged weights make a network for which no BatchNorm statistics have been
measured; `recalibrate` measures them.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam import registries
from tfsam.attacks.logits import Logits
from tfsam.attacks.seeds import example_seeds
from tfsam.data import containers
from tfsam.data import examples
from tfsam.models.functions import use_xla
from tfsam.support.graphs import traced
from tfsam.support.labels import class_labels
from tfsam.support.pixels import assert_inside
from tfsam.support.single_logits import of_two_classes
from tfsam.training.scope import PureScope
from tfsam.training.stateless import PureModel


def recalibrate(
    network: keras.Model,
    data: Any,
    attack: Callable[..., tf.Tensor] | None = None,
    seed: int = 0,
    *,
    steps: int | None = None,
) -> None:
    """Measures the statistics of a network's BatchNorm layers again.

    One pass over the data in training mode gives each layer's moving mean and
    variance: the mean over the examples of their batches' statistics, as in
    "Averaging weights leads to wider optima and better generalization"
    (Izmailov et al., 2018). Nothing else in the network changes. Layers that
    are frozen or have momentum 1 keep their statistics, as in training.

    With an attack the statistics are those of perturbed inputs: a network that
    was trained on perturbed inputs needs the statistics of such inputs. The
    attack sees the network in inference mode with its current statistics, as
    in training.

    Args:
        network: a built `keras.Model` that calls each of its layers once.
        data: x, (x, y) or (x, y, sample_weight): arrays, a `tf.data.Dataset`,
            a `keras.utils.PyDataset` or a generator, see `tfsam.data.examples`;
            datasets are not read into memory. x is as the network takes it.
            Arrays and single examples are put into batches of 128. Sample
            weights are not used.
        attack: an attack such as `tfsam.PGD(8 / 255)`; needs labels y of
            classes. Without a loss of its own it maximizes the cross-entropy.
        seed: of the attack, an int. An example's noise depends on its position.
        steps: how many elements of a dataset or a generator to read, usually
            batches; None reads all, and refuses endless data.

    Raises:
        ValueError: if the data is empty or endless, or lacks the labels that
            the attack needs, or if a layer uses batch renormalization.

    Example:
        >>> import keras, numpy as np
        >>> from tfsam.training.recalibration import recalibrate
        >>> layers = [keras.Input((2,)), keras.layers.BatchNormalization()]
        >>> network = keras.Sequential(layers)
        >>> recalibrate(network, np.array([[0.0, 1.0], [2.0, 3.0]], "float32"))
        >>> np.asarray(network.layers[0].moving_mean)
        array([1., 2.], dtype=float32)
    """
    recalibration = Recalibration(network, attack)
    values = recalibration.measure(data, seed, steps)
    assign(recalibration.variables, values)


class Recalibration:
    """Measures BatchNorm statistics, with one trace for all measurements.

    Args:
        network: see `recalibrate`.
        attack: see `recalibrate`.
        model: the model that trains the network. If it is a `RobustModel`, the
            attack maximizes its compiled loss, as in training.

    Attributes:
        variables: the moving means and variances that are measured.
    """

    def __init__(
        self,
        network: keras.Model,
        attack: Callable[..., tf.Tensor] | None = None,
        model: Any = None,
    ) -> None:
        self.network, self.attack = network, attack
        self._model = model if isinstance(model, PureModel) else None
        layers = _normalizations(network)
        self.variables = [
            variable
            for layer in layers
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        # The weight of a batch's statistics in an update of the moving ones.
        self._shares = [
            1 - layer.momentum for layer in layers for _ in range(2)
        ]
        measured = {id(variable) for variable in self.variables}
        self._others = [
            variable
            for variable in network.non_trainable_variables
            if id(variable) not in measured and variable.dtype != "string"
        ]
        self._add = traced(self._added)
        self._perturb: Callable[..., Any] = self._perturbed
        if registries.ATTACKS.fact(attack, "in_graph") is not False:
            self._perturb = traced(self._perturbed)

    def measure(
        self, data: Any, seed: int = 0, steps: int | None = None
    ) -> list[tf.Tensor]:
        """Returns new values for `variables`; assigns nothing.

        Args:
            data: see `recalibrate`.
            seed: see `recalibrate`.
            steps: see `recalibrate`.
        """
        containers.check_finite(data, steps)
        if not self.variables:
            return []
        seen = 0
        totals = [tf.zeros(v.shape, tf.float64) for v in self.variables]
        state = [tf.convert_to_tensor(v.value) for v in self._others]
        for x, y, _ in examples.batches(
            data, steps=steps, network=self.network
        ):
            x = tf.nest.map_structure(_tensor, x)
            size = tf.nest.flatten(x)[0].shape[0]
            if self.attack is not None:
                if y is None:
                    raise ValueError(
                        "data must hold labels, (x, y), for the attack. "
                        f"Received: attack={self.attack}"
                    )
                if self._model is None and np.ndim(y) == 2:
                    class_labels(np.asarray(y))
                seeds = example_seeds(seed, seen + size)[seen:]
                x = self._perturb(x, _tensor(y), seeds)
            totals, state = self._add(x, totals, state)
            seen += size
        if not seen:
            raise ValueError(
                f"data must hold at least one example. Received: data={data}"
            )
        return [total / seen for total in totals]

    def _added(
        self, x: Any, totals: list[tf.Tensor], state: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the totals and the other state after a batch.

        A pure function. The moving statistics begin at zero, so that their
        update is the batch's statistics times a layer's share.
        """
        begin = [tf.zeros(v.shape, v.dtype) for v in self.variables]
        with PureScope(
            (),
            [
                *zip(self.variables, begin, strict=True),
                *zip(self._others, state, strict=True),
            ],
        ) as scope:
            self.network(x, training=True)
        size = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float64)
        found = [scope.get_current_value(v) for v in self.variables]
        totals = [
            total + size * tf.cast(value / share, tf.float64)
            for total, value, share in zip(
                totals, found, self._shares, strict=True
            )
        ]
        return totals, [scope.get_current_value(v) for v in self._others]

    def _perturbed(
        self, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Returns x after the attack."""

        def predict(pixels: tf.Tensor) -> tf.Tensor:
            with keras.StatelessScope():
                y_pred = self.network(pixels, training=False)
            if self._model is None:
                return of_two_classes(y_pred)
            return self._model.attacked_logits(y_pred)

        x = assert_inside(x, getattr(self.attack, "bounds", None))
        attack: Any = self.attack
        if self._model is None:
            return attack(Logits(predict, use_xla()), x, y, seeds)
        logits = Logits(predict, use_xla(), loss=self._model.example_loss())
        return self._model.attacked(attack, logits, x, y, seeds)


def _normalizations(network: keras.Model) -> list[Any]:
    """Returns the BatchNorm layers whose statistics change in training."""
    found = [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and layer.momentum < 1
    ]
    for layer in found:
        if getattr(layer, "renorm", False):
            raise ValueError(
                "network must have no batch renormalisation, whose statistics "
                f"are not averages of batches. Received: layer={layer.name}"
            )
    return found


def _tensor(part: Any) -> tf.Tensor:
    return part if tf.is_tensor(part) else tf.convert_to_tensor(part)


def assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assigns a value to each variable.

    Args:
        variables: Keras variables.
        values: tensors or arrays of their shapes.
    """
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
