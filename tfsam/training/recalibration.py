"""What the BatchNorm layers of a network measured, measured anew.

The average of weights is a network whose BatchNorm statistics nobody has
measured: `recalibrate` does.
"""

import keras
import numpy as np
import tensorflow as tf

from tfsam import parts
from tfsam.attacks.base import example_seeds
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import traced
from tfsam.data import examples
from tfsam.models.functions import use_xla
from tfsam.support.labels import class_labels
from tfsam.support.pixels import assert_inside
from tfsam.training.stateless import PureModel


def recalibrate(network, data, attack=None, seed=0, *, steps=None):
    """Measures the statistics of a network's BatchNorm layers anew.

    One pass over the data in training mode gives every layer's moving mean and
    variance: the mean over the examples of their batches' statistics, as in
    "Averaging weights leads to wider optima and better generalization"
    (Izmailov et al., 2018). Nothing else of the network moves. A layer that is
    frozen, or of momentum 1, keeps its statistics, as it does in training.

    With an attack the statistics are those of perturbed inputs. A network that
    was trained on such inputs had its statistics from them, and is judged on
    them; those of the clean images would be another network's. The attack sees
    the network in inference mode, as in training, with the statistics that it
    has now.

    Args:
        network: a built `keras.Model` that calls each of its layers once.
        data: x, (x, y) or (x, y, sample_weight): arrays, a `tf.data.Dataset`,
            a `keras.utils.PyDataset` or a generator of them (see
            `tfsam.data.examples`), which is not read into memory; x of several
            inputs as the network takes it. Arrays and single examples go in
            batches of 128. Weights of examples are not used.
        attack: an attack, such as `tfsam.PGD(8 / 255)`; needs y, labels of
            classes. Without a loss of its own it climbs the cross-entropy.
        seed: of the attack, an int; an example's noise is keyed by its place.
        steps: how many elements of a dataset or a generator to read, batches
            as a rule; None reads all, and refuses data that does not end.

    Raises:
        ValueError: if the data is empty or endless, or without the labels that
            the attack needs, or if a layer has batch renormalisation.
    """
    recalibration = Recalibration(network, attack)
    values = recalibration.measure(data, seed, steps)
    assign(recalibration.variables, values)


class Recalibration:
    """Measures the statistics of BatchNorm layers; traces once for all passes.

    Args:
        network: as of `recalibrate`.
        attack: as of `recalibrate`.
        model: the `RobustModel` that trains the network, whose compiled loss
            the attack climbs, as it does in training; None is another model.

    Attributes:
        variables: the moving means and variances that are measured.
    """

    def __init__(self, network, attack=None, model=None):
        self.network, self.attack = network, attack
        self._model = model if isinstance(model, PureModel) else None
        layers = _normalizations(network)
        self.variables = [
            variable
            for layer in layers
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        # What one update from zero takes of a batch's mean, and its variance.
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
        self._perturb = self._perturbed
        if parts.ATTACKS.fact(attack, "in_graph") is not False:
            self._perturb = traced(self._perturbed)

    def measure(self, data, seed=0, steps=None):
        """Returns the variables' new values; assigns nothing.

        Args:
            data: see `recalibrate`.
            seed: see `recalibrate`.
            steps: see `recalibrate`.
        """
        examples.check_finite(data, steps)
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

    def _added(self, x, totals, state):
        """The totals and the other state after a batch, a pure function."""
        mapping = [
            *((v, tf.zeros(v.shape, v.dtype)) for v in self.variables),
            *zip(self._others, state, strict=True),
        ]
        with keras.StatelessScope(mapping) as scope:
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

    def _perturbed(self, x, y, seeds):
        def predict(pixels):
            with keras.StatelessScope():
                return self.network(pixels, training=False)

        x = assert_inside(x, getattr(self.attack, "bounds", None))
        if self._model is None:
            return self.attack(Logits(predict, use_xla()), x, y, seeds)
        logits = Logits(predict, use_xla(), loss=self._model.example_loss())
        return self._model.attacked(self.attack, logits, x, y, seeds)


def _normalizations(network):
    """The BatchNorm layers whose statistics move in training."""
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
                "network must have no batch renormalisation: its statistics "
                f"are no averages of batches. Received: layer={layer.name}"
            )
    return found


def _tensor(part):
    return part if tf.is_tensor(part) else tf.convert_to_tensor(part)


def assign(variables, values):
    """Gives each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
