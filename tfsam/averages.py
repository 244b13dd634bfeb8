"""Averages of the weights: flatter minima, after the step and at little cost.

`EMA` and `SWA` look at the weights that training passes through, and change
nothing of the training: they go with every optimizer and every `RobustModel`.
The average of weights is a network whose BatchNorm statistics nobody has
measured: `recalibrate` does.
"""

import pathlib
import re
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfsam import checks
from tfsam import devices
from tfsam import files
from tfsam.attacks.base import example_seeds
from tfsam.attacks.logits import Logits
from tfsam.classifiers import use_xla
from tfsam.geometry import check_count

_ARRAY_BATCH = 128

# Networks that hold an average in the place of the weights in training.
_HOLDING: weakref.WeakSet = weakref.WeakSet()


def recalibrate(network, data, attack=None, seed=0):
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
        data: a finite `tf.data.Dataset` of batches x, (x, y) or (x, y, weight),
            or an array x or a tuple of arrays (x, y), in batches of 128.
            Weights of examples are not used.
        attack: an attack, such as `tfsam.PGD(8 / 255)`; needs y.
        seed: of the attack, an int; an example's noise is keyed by its place.

    Raises:
        ValueError: if the data is empty or infinite, or without the labels that
            the attack needs, or if a layer has batch renormalisation.
    """
    recalibration = _Recalibration(network, attack)
    values = recalibration.measure(_check_finite(data), seed)
    _assign(recalibration.variables, values)


class _Recalibration:
    """Measures the statistics of BatchNorm layers; traces once for all passes.

    Attributes:
        variables: the moving means and variances that are measured.
    """

    def __init__(self, network, attack=None):
        self.network, self.attack = network, attack
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
        self._add = tf.function(self._added, autograph=False)
        self._perturb = self._perturbed
        if getattr(attack, "in_graph", True):
            self._perturb = tf.function(self._perturbed, autograph=False)

    def measure(self, data, seed=0):
        """The variables' new values; nothing is assigned."""
        if not self.variables:
            return []
        seen = 0
        totals = [tf.zeros(v.shape, tf.float64) for v in self.variables]
        state = [tf.convert_to_tensor(v.value) for v in self._others]
        for batch in _batches(data):
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            size = tf.nest.flatten(x)[0].shape[0]
            if self.attack is not None:
                if y is None:
                    raise ValueError(
                        "data must hold labels, (x, y), for the attack. "
                        f"Received: attack={self.attack}"
                    )
                seeds = example_seeds(seed, seen + size)[seen:]
                x = self._perturb(x, y, seeds)
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

        x = checks.inside(x, getattr(self.attack, "bounds", None))
        return self.attack(Logits(predict, use_xla()), x, y, seeds)


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


def _batches(data):
    """Yields the batches of a dataset, or of arrays."""
    if isinstance(data, tf.data.Dataset):
        yield from data
        return
    for start in range(0, len(tf.nest.flatten(data)[0]), _ARRAY_BATCH):
        rows = slice(start, start + _ARRAY_BATCH)
        yield tf.nest.map_structure(
            lambda array, rows=rows: tf.convert_to_tensor(array[rows]), data
        )


def _check_finite(data):
    endless = (
        isinstance(data, tf.data.Dataset)
        and data.cardinality() == tf.data.INFINITE_CARDINALITY
    )
    if endless:
        raise ValueError(
            f"data must be finite, without repeat(). Received: data={data}"
        )
    return data


class WeightAverage(keras.callbacks.Callback):
    """What `EMA` and `SWA` have in common: when the network holds the average.

    The average is of the trainable weights of `model.network`, or of the model
    itself where there is no such attribute. The training does not feel it:

    - From the beginning of the validation in `fit` to this callback's own end
      of the epoch, the network holds the averaged weights, with BatchNorm
      statistics measured on `data` (see `recalibrate`). So the validation, and
      callbacks that stand before this one in `callbacks=`, see the averaged
      network. In epochs without validation nobody does.
    - At its own end of the epoch it puts back the weights and the statistics of
      the training, to the bit. Callbacks that stand after this one, such as the
      training's checkpoints, see those.
    - At the end of the training the network gets the averaged weights for good,
      with statistics measured on `data`. `model.evaluate` afterwards is of that
      network, with this callback or without it. (What a callback that stands
      before this one restored at the end of the training is overwritten.)

    Where there is no average yet the network stays as it is. A new `fit` starts
    a new average, from the weights of the network then; but a `fit` that begins
    with a later epoch (`initial_epoch=`) goes on from the file in `folder`.

    Args:
        data: to measure BatchNorm statistics on, as of `recalibrate`; None
            leaves those of the last weights. Best a part of the training data
            in a fixed order: then a resumed run measures the same.
        attack: perturbs `data`; for networks that are trained on perturbed
            inputs. It sees the averaged weights with the training's statistics.
        folder: of this average alone; after each epoch its state is written
            there, average-0001.npz and so on, and the two newest are kept.

    Attributes:
        average: tensors, in the order of the network's trainable variables.
        count: how many weights are in it.

    Raises:
        ValueError: if an argument is out of its range; in `fit` if the network
            is not built, if `folder` does not hold the file to go on from, or
            if a second average wants the network during the validation.
    """

    def __init__(self, data=None, attack=None, folder=None):
        super().__init__()
        if attack is not None and (data is None or not callable(attack)):
            raise ValueError(
                "attack must be an attack, such as tfsam.PGD(8 / 255), and "
                "needs data. "
                f"Received: attack={attack}, data={data}"
            )
        self.data, self.attack = _check_finite(data), attack
        self.folder = folder and pathlib.Path(folder)
        self.average, self.count = [], 0
        self._training = False

    def on_train_begin(self, logs=None):
        """Starts a new average."""
        if not self._network.built:
            raise ValueError(
                "The network must be built before its weights are averaged: "
                "give it an Input, or call it on a batch. "
                f"Received: network={self._network.name}"
            )
        self._recalibration = _Recalibration(self._network, self.attack)
        if self.data is None and self._recalibration.variables:
            warnings.warn(
                "The network has BatchNormalization: the averaged weights go "
                "with the statistics of the last weights. Give "
                f"{type(self).__name__} data= to measure their own.",
                stacklevel=2,
            )
        self._move = tf.function(self._moved, autograph=False)
        self.average, self.count = self._weights(), 0
        _HOLDING.discard(self._network)
        self._training, self._first_epoch = True, True
        self._kept = self._statistics = None

    def on_epoch_begin(self, epoch, logs=None):
        """Goes on from the file, at the first epoch of a resumed run."""
        if self._first_epoch and epoch > 0 and self.folder:
            self._load(epoch)
        self._first_epoch = False

    def on_test_begin(self, logs=None):
        """Gives the network its averaged weights, if this is a validation."""
        if self._training:
            self._collect()
            self._swap_in()

    def on_epoch_end(self, epoch, logs=None):
        """Puts the weights of the training back, and saves the average."""
        self._collect()
        self._swap_out()
        if self.folder and devices.is_chief(self.model.distribute_strategy):
            self._save(epoch + 1)

    def get_state(self):
        """The average, as arrays."""
        arrays = {f"weight_{i}": a.numpy() for i, a in enumerate(self.average)}
        return arrays | {"count": np.array(self.count)}

    def set_state(self, state):
        """Goes on with an average.

        Args:
            state: of `get_state`, in the same training.
        """
        self.count = int(state["count"])
        self.average = [
            tf.constant(state[f"weight_{i}"]) for i in range(len(self.average))
        ]

    def on_train_end(self, logs=None):
        """Gives the network its averaged weights for good."""
        if self._first_epoch and self.folder is not None:
            self._load_newest()  # It was resumed after its last epoch.
        self._swap_in()
        self._training, self._kept = False, None
        _HOLDING.discard(self._network)

    @property
    def _network(self):
        return getattr(self.model, "network", self.model)

    def _collect(self):
        """Takes what an epoch gives to the average, if it does."""

    def _update(self, momentum):
        """Makes the average m * average + (1 - m) * w."""
        self.average = self._move(
            self.average, tf.constant(momentum, tf.float64)
        )
        self.count += 1
        self._statistics = None

    def _moved(self, average, momentum):
        # In this form weights that never change stay as they are, to the bit,
        # and at m = 0 the average is the weights.
        weights = self._weights()
        return [
            w + tf.cast(momentum, w.dtype) * (a - w)
            for a, w in zip(average, weights, strict=True)
        ]

    def _weights(self):
        """The weights, in float32 at least: half precision loses 1 - m."""
        return [
            # Of a variable of that dtype a cast alone returns the variable.
            tf.cast(
                tf.convert_to_tensor(v.value),
                "float64" if v.dtype == "float64" else "float32",
            )
            for v in self._network.trainable_variables
        ]

    def _swap_in(self):
        if self.count == 0 or self._kept is not None:
            return
        if self._network in _HOLDING:
            raise ValueError(
                "A fit with validation takes one average: this one would take "
                "the other's for the weights in training. "
                f"Received: a second one, {self}"
            )
        _HOLDING.add(self._network)
        self._kept = [tf.identity(part) for part in self._parts()]
        _assign(self._network.trainable_variables, self.average)
        if self.data is None:
            return
        if self._statistics is None:
            self._statistics = self._recalibration.measure(self.data)
        _assign(self._recalibration.variables, self._statistics)

    def _swap_out(self):
        if self._kept is not None:
            for part, value in zip(self._parts(), self._kept, strict=True):
                part.assign(value)
            self._kept = None
            _HOLDING.discard(self._network)

    def _parts(self):
        """All that a swap changes, each replica's own copy.

        BatchNorm statistics differ between replicas.
        """
        strategy = self.model.distribute_strategy
        return [
            part
            for variable in (
                *self._network.trainable_variables,
                *self._recalibration.variables,
            )
            for part in strategy.experimental_local_results(variable.value)
        ]

    def _save(self, epochs):
        """Writes the state, forgets all but it and the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_arrays(self._path(epochs), self.get_state())
        kept = {self._path(epochs), self._path(epochs - 1)}
        for path in self.folder.glob("average-*.npz"):
            if path not in kept and re.fullmatch(r"average-\d+", path.stem):
                path.unlink()

    def _load_newest(self):
        found = [
            int(match[1])
            for path in self.folder.glob("average-*.npz")
            if (match := re.fullmatch(r"average-(\d+)", path.stem))
        ]
        if found:
            self._load(max(found))

    def read_state(self, epochs):
        """What `folder` holds of the average, as of `get_state`.

        Args:
            epochs: after how many.

        Raises:
            tfsam.files.Unusable: if its file is missing or damaged.
        """
        path = self._path(epochs)
        if not path.exists():
            raise files.Unusable(
                f"folder must hold {path.name}, to go on after epoch {epochs}. "
                f"Received: folder={self.folder}"
            )
        with (
            files.reading(path, "the average"),
            open(path, "rb") as file,
            np.load(file) as arrays,
        ):
            return dict(arrays)

    def _load(self, epochs):
        self.set_state(self.read_state(epochs))

    def _path(self, epochs):
        return self.folder / f"average-{epochs:04d}.npz"


class EMA(WeightAverage):
    """The exponential moving average of the weights, of every step.

        average <- m * average + (1 - m) * w        after each step

    from the weights at the start of the training on (Polyak averaging; as an
    ingredient of adversarial training: "Uncovering the limits of adversarial
    training against norm-bounded adversarial examples", Gowal et al., 2020).
    `WeightAverage` says when the network holds the average.

    Args:
        momentum: m, in [0, 1]; about 1 / (1 - m) steps are remembered.
        warmup: whether m is min(momentum, (1 + t) / (10 + t)) after t steps, so
            that in a short training the random start is forgotten.
        data: as of `WeightAverage`.
        attack: as of `WeightAverage`.
        folder: as of `WeightAverage`.

    Raises:
        ValueError: if momentum is out of range; in `fit` also if the model was
            compiled with several steps per execution, for it must see each.
    """

    def __init__(
        self,
        momentum=0.999,
        *,
        warmup=True,
        data=None,
        attack=None,
        folder=None,
    ):
        super().__init__(data, attack, folder)
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"momentum must be in [0, 1]. Received: momentum={momentum}"
            )
        self.momentum, self.warmup = momentum, warmup

    def on_train_begin(self, logs=None):
        """Starts at the weights of the network."""
        if self.model.steps_per_execution > 1:
            raise ValueError(
                "EMA must see every step: compile with steps_per_execution=1. "
                "Received: steps_per_execution="
                f"{self.model.steps_per_execution}"
            )
        super().on_train_begin(logs)

    def on_train_batch_end(self, batch, logs=None):
        """Adds the step's weights."""
        momentum = self.momentum
        if self.warmup:
            momentum = min(momentum, (1 + self.count) / (10 + self.count))
        self._update(momentum)


class SWA(WeightAverage):
    """The mean of the weights at the ends of epochs.

        average <- average + (w - average) / (n + 1)      n snapshots before

    "Averaging weights leads to wider optima and better generalization"
    (Izmailov et al., 2018, algorithm 1). Snapshots are worth averaging when
    they differ: the learning rate is kept high, or goes in cycles. An epoch's
    snapshot is part of the average that is validated in this epoch; before the
    first one there is no average. `WeightAverage` says when the network holds
    the average.

    Args:
        start_epoch: the first epoch with a snapshot, counted from 0.
        every: epochs from a snapshot to the next, >= 1.
        data: as of `WeightAverage`.
        attack: as of `WeightAverage`.
        folder: as of `WeightAverage`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, start_epoch, *, every=1, data=None, attack=None, folder=None
    ):
        super().__init__(data, attack, folder)
        self.start_epoch = check_count("start_epoch", start_epoch)
        self.every = check_count("every", every, 1)

    def on_epoch_begin(self, epoch, logs=None):
        """Knows whether the epoch ends with a snapshot."""
        super().on_epoch_begin(epoch, logs)
        since = epoch - self.start_epoch
        self._due = since >= 0 and since % self.every == 0

    def _collect(self):
        if self._due:
            self._update(self.count / (self.count + 1))
            self._due = False


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
