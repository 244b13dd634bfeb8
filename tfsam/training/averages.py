"""Averages of the weights: flatter minima, after the step and at little cost.

`EMA` and `SWA` look at the weights that training passes through, and change
nothing of the training: they go with every optimizer and every `RobustModel`.
"""

import contextlib
import enum
import pathlib
import re
import types
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks.logits import traced
from tfsam.data import examples
from tfsam.support import devices
from tfsam.support import files
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.training import recalibration

# The callback, as a weak reference, whose average a network holds in the place
# of the weights in training.
_HOLDERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

# The origin of the weights that a network got at the end of the current fit.
_ENDINGS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Ending(enum.IntEnum):
    """Where the weights at the end of a fit come from; the largest wins."""

    BEFORE_COLLAPSE = 1
    AVERAGE = 2
    BEST_EPOCH = 3


def begin(network):
    """Forgets how the fit before ended; for `on_train_begin`.

    Args:
        network: the network that is trained.
    """
    _ENDINGS.pop(network, None)


def may_end(network, ending):
    """Whether a callback may give the network its weights at a fit's end.

    Several callbacks may want to, in any order. If it may, that is recorded.

    Args:
        network: the network that was trained.
        ending: the `Ending` that the callback would give it.
    """
    if ending < _ENDINGS.get(network, 0):
        return False
    _ENDINGS[network] = ending
    return True


@contextlib.contextmanager
def training_weights(network):
    """A context in which a network holds the weights in training.

    From the beginning of the validation to an average's end of the epoch it
    holds that average otherwise; it does so again after the context.

    Args:
        network: the network that is trained.
    """
    holder = _HOLDERS.get(network, lambda: None)()
    if holder is None:
        yield
        return
    holder._swap_out()
    try:
        yield
    finally:
        holder._swap_in()


class WeightAverage(keras.callbacks.Callback):
    """What `EMA` and `SWA` have in common: when the network holds the average.

    The average is of the trainable weights of `model.network`, or of the model
    itself where there is no such attribute. The training does not feel it:

    - From the beginning of the validation in `fit` to this callback's own end
      of the epoch, the network holds the averaged weights, with BatchNorm
      statistics measured on `data` (see `recalibration.recalibrate`). So the
      validation, and Keras's callbacks that stand before this one in
      `callbacks=`, see the averaged network. In epochs without validation they
      do not.
    - At its own end of the epoch it puts back the weights and the statistics of
      the training, to the bit. Callbacks that stand after this one see those.
    - The callbacks of tfsam see the same weights wherever they stand, with and
      without validation: `RobustValidation` and `StopAtCollapse` those in
      training, and `RobustValidation(average=)` this average; checkpoints are
      of the weights in training.
    - At the end of the training the network gets the averaged weights for good,
      with statistics measured on `data`; but where `RobustValidation(keep=)`
      has a best epoch, it gets those of that epoch. `model.evaluate` afterwards
      is of that network, with this callback or without it. (Weights that a
      callback of Keras which stands before this one restored at the end of the
      training are overwritten.)

    Where there is no average yet the network stays as it is. A new `fit` starts
    a new average, from the weights of the network then; but a `fit` that begins
    with a later epoch (`initial_epoch=`) goes on from the file in `folder`.

    Args:
        data: to measure BatchNorm statistics on, see
            `recalibration.recalibrate`; None leaves those of the last weights.
            Best a part of the training data in a fixed order: then a resumed
            run measures the same. Batches of a generator are kept in memory.
        attack: perturbs `data`; for networks that are trained on perturbed
            inputs. It sees the averaged weights with the training's statistics.
        folder: of this average alone; after each epoch its state is written
            there, average-0001.npz and so on, and the two newest are kept.
        steps: how many elements of `data` to read, where that is a dataset or a
            generator; None is all.

    Attributes:
        average: tensors, in the order of the network's trainable variables.
        count: how many weights are in it.

    Raises:
        ValueError: if an argument is out of its range; in `fit` if the network
            is not built, if `folder` does not hold the file to go on from, or
            if a second average wants the network during the validation.
    """

    flag_names = types.MappingProxyType(
        {"momentum": "average_momentum", "start_epoch": "average_start"}
    )
    # Whether a run keeps the learning rate high while it averages.
    holds_rate = False
    # Whether the epoch is to give something to the average at its end.
    _due = False

    def __init__(self, data=None, attack=None, folder=None, steps=None):
        super().__init__()
        if attack is not None and (data is None or not callable(attack)):
            raise ValueError(
                "attack must be an attack, such as tfsam.PGD(8 / 255), and "
                "needs data. "
                f"Received: attack={attack}, data={data}"
            )
        self.data = None if data is None else examples.repeatable(data, steps)
        self.attack, self.steps = attack, steps
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
        self._recalibration = recalibration.Recalibration(
            self._network, self.attack, self.model
        )
        if self.data is None and self._recalibration.variables:
            warnings.warn(
                "The network has BatchNormalization: the averaged weights go "
                "with the statistics of the last weights. Give "
                f"{type(self).__name__} data= to measure their own.",
                stacklevel=2,
            )
        self._move = traced(self._moved)
        self.average, self.count = self._weights(), 0
        _HOLDERS.pop(self._network, None)
        begin(self._network)
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
        self.count, self._statistics = int(state["count"]), None
        self.average = [
            tf.constant(state[f"weight_{i}"]) for i in range(len(self.average))
        ]

    def put_back(self, state, epoch):
        """Goes back to an average from before an epoch, in the folder as well.

        Args:
            state: of `get_state`, at the beginning of the epoch.
            epoch: the epoch's number, from 0. It gives nothing to the average.
        """
        self.set_state(state)
        self._due = False
        self._save(epoch + 1)

    def check_averages(self, network):
        """Checks that this callback averages a network in the current fit.

        Args:
            network: the network that is trained.

        Raises:
            ValueError: if it does not.
        """
        if not self._training or self._network is not network:
            raise ValueError(
                "average must be among the callbacks of the same fit. "
                f"Received: average={type(self).__name__}, which is not"
            )

    @contextlib.contextmanager
    def averaged(self):
        """A context in which the network holds the average, as at the end.

        Before there is an average, it holds the weights in training.
        """
        self._collect()
        if self._kept is not None:
            yield
            return
        with training_weights(self._network):
            self._swap_in()
            try:
                yield
            finally:
                self._swap_out()

    def on_train_end(self, logs=None):
        """Gives the network its averaged weights for good."""
        if self._first_epoch and self.folder is not None:
            self._load_newest()  # It was resumed after its last epoch.
        if self.count and may_end(self._network, Ending.AVERAGE):
            self._swap_in()
        self._training, self._kept = False, None
        _HOLDERS.pop(self._network, None)

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
        if self._network in _HOLDERS:
            raise ValueError(
                "A fit with validation takes one average: this one would take "
                "the other's for the weights in training. "
                f"Received: a second one, {self}"
            )
        _HOLDERS[self._network] = weakref.ref(self)
        self._kept = [tf.identity(part) for part in self._parts()]
        recalibration.assign(self._network.trainable_variables, self.average)
        if self.data is None:
            return
        if self._statistics is None:
            self._statistics = self._recalibration.measure(
                self.data, steps=self.steps
            )
        recalibration.assign(self._recalibration.variables, self._statistics)

    def _swap_out(self):
        if self._kept is not None:
            for part, value in zip(self._parts(), self._kept, strict=True):
                part.assign(value)
            self._kept = None
            _HOLDERS.pop(self._network, None)

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
        """Writes the state, if it is this process that does; keeps two."""
        chief = devices.is_chief(self.model.distribute_strategy)
        if self.folder is None or not chief:
            return
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
        """Reads an average from `folder`.

        Args:
            epochs: the number of epochs after which it was written.

        Returns:
            A state as `get_state` returns it.

        Raises:
            tfsam.support.files.Unusable: if the file is missing or damaged, or
                holds something else.
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
            state = dict(arrays)
        names = [f"weight_{i}" for i in range(len(state) - 1)]
        if set(state) != {"count", *names} or state["count"].ndim:
            raise files.Unusable(
                f"{path} must hold an average, which tfsam wrote: move the "
                "file away. "
                f"Received: an archive of {', '.join(sorted(state)) or 'none'}"
            )
        return state

    def _load(self, epochs):
        state = self.read_state(epochs)
        found = [state[name].shape for name in state if name != "count"]
        expected = [tuple(weight.shape) for weight in self.average]
        if found != expected:
            raise files.Unusable(
                f"{self._path(epochs)} must hold an average of this network, "
                f"{len(expected)} weights of shapes {_listed(expected)}. "
                f"Received: {len(found)} weights of shapes {_listed(found)}"
            )
        self.set_state(state)

    def _path(self, epochs):
        return self.folder / f"average-{epochs:04d}.npz"


def _listed(shapes):
    """The first of some shapes, as text."""
    return ", ".join(map(str, shapes[:3])) + ", ..." * (len(shapes) > 3)


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
        data: see `WeightAverage`.
        attack: see `WeightAverage`.
        folder: see `WeightAverage`.
        steps: see `WeightAverage`.

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
        steps=None,
    ):
        super().__init__(data, attack, folder, steps)
        self.momentum = check_number("momentum", momentum, 0, 1)
        self.warmup = warmup

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
        data: see `WeightAverage`.
        attack: see `WeightAverage`.
        folder: see `WeightAverage`.
        steps: see `WeightAverage`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    # Weights that hardly move are not worth averaging.
    holds_rate = True

    def __init__(
        self,
        start_epoch,
        *,
        every=1,
        data=None,
        attack=None,
        folder=None,
        steps=None,
    ):
        super().__init__(data, attack, folder, steps)
        self.start_epoch = check_count("start_epoch", start_epoch)
        self.every = check_count("every", every, 1)

    def on_epoch_begin(self, epoch, logs=None):
        """Knows whether the epoch ends with a snapshot."""
        super().on_epoch_begin(epoch, logs)
        since = epoch - self.start_epoch
        self._due = since >= 0 and since % self.every == 0

    def on_train_end(self, logs=None):
        """Gives the network its averaged weights, if there are any."""
        super().on_train_end(logs)
        if self.count == 0:
            warnings.warn(
                "SWA took no snapshot, so the network has the weights of the "
                "training: it ended before the end of epoch start_epoch, from "
                f"0. Received: start_epoch={self.start_epoch}",
                stacklevel=2,
            )

    def _collect(self):
        if self._due:
            self._update(self.count / (self.count + 1))
            self._due = False
