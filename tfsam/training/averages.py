"""Averages of the weights over training: EMA and SWA.

`EMA` and `SWA` read the weights after each step or epoch and do not affect
training, so they combine with every optimizer and every `RobustModel`.
"""

import contextlib
import enum
import pathlib
import re
import types
import warnings
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

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

State = dict[str, "np.ndarray[Any, Any]"]

# For each network that currently holds an average instead of the weights in
# training, a weak reference to the callback that keeps the average.
_HOLDERS: weakref.WeakKeyDictionary[keras.Model, Any] = (
    weakref.WeakKeyDictionary()
)

# The origin of the weights that a network got at the end of the current fit.
_ENDINGS: weakref.WeakKeyDictionary[keras.Model, int] = (
    weakref.WeakKeyDictionary()
)


class Ending(enum.IntEnum):
    """Origins of the weights at the end of a fit; the largest has priority."""

    BEFORE_COLLAPSE = 1
    AVERAGE = 2
    BEST_EPOCH = 3


def begin(network: keras.Model) -> None:
    """Forgets how the previous fit ended; for `on_train_begin`.

    Args:
        network: the network that is trained.
    """
    _ENDINGS.pop(network, None)


def may_end(network: keras.Model, ending: Ending) -> bool:
    """Returns whether a callback may set the weights at the end of a fit.

    Several callbacks may try to, in any order; a larger `Ending` overrides a
    smaller one. If the callback may, its ending is recorded.

    Args:
        network: the network that was trained.
        ending: the origin of the callback's weights.
    """
    if ending < _ENDINGS.get(network, 0):
        return False
    _ENDINGS[network] = ending
    return True


@contextlib.contextmanager
def training_weights(network: keras.Model) -> Iterator[None]:
    """Returns a context in which a network holds the weights in training.

    Without it the network holds an average from the beginning of the validation
    to the end of the epoch; after the context it holds the average again.

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
    """Base of `EMA` and `SWA`: swaps the average in and out of the network.

    The average is of the trainable weights of `model.network`, or of the model
    itself if it has no such attribute. It does not affect training:

    - From the beginning of the validation in `fit` to this callback's
      `on_epoch_end`, the network holds the averaged weights, with BatchNorm
      statistics measured on `data` (see `recalibration.recalibrate`). So the
      validation, and Keras callbacks before this one in `callbacks=`, see the
      averaged network. In epochs without validation they do not.
    - Its `on_epoch_end` restores the weights and the statistics of training, to
      the bit. Callbacks after this one see them.
    - The callbacks of tfsam see the same weights at any position in the list,
      with and without validation: `RobustValidation` and `StopAtCollapse` see
      the weights in training, `RobustValidation(average=)` sees this average,
      and checkpoints hold the weights in training.
    - At the end of training the network keeps the averaged weights, with
      statistics measured on `data`. If `RobustValidation(keep=)` has a best
      epoch, the network gets the weights of that epoch instead. (Weights that a
      Keras callback before this one restores at the end of training are
      overwritten.)

    The network stays as it is while there is no average. A new `fit` starts a
    new average from the network's weights; a `fit` that begins at a later epoch
    (`initial_epoch=`) continues from the file in `folder`.

    Args:
        data: examples on which BatchNorm statistics are measured, see
            `recalibration.recalibrate`; None leaves those of the last weights.
            A part of the training data in a fixed order is best: a resumed run
            then measures the same. Batches of a generator are kept in memory.
        attack: perturbs `data`, for networks that are trained on perturbed
            inputs. It sees the averaged weights with the statistics of
            training.
        folder: path of a folder for this average alone. After each epoch its
            state is written there, average-0001.npz and so on; the two newest
            files are kept.
        steps: how many elements of `data` to read if it is a dataset or a
            generator; None reads all.

    Attributes:
        average: tensors, in the order of the network's trainable variables.
        count: number of averaged weights.

    Raises:
        ValueError: if an argument is out of its range. In `fit`, if the network
            is not built, if `folder` lacks the file to continue from, or if two
            averages would be validated in the same `fit`.
    """

    flag_names = types.MappingProxyType(
        {"momentum": "average_momentum", "start_epoch": "average_start"}
    )
    # Whether a run keeps the learning rate high while it averages.
    holds_rate = False
    # Whether this epoch's weights are added to the average at its end.
    _due = False

    def __init__(
        self,
        data: Any = None,
        attack: Callable[..., tf.Tensor] | None = None,
        folder: str | pathlib.Path | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if attack is not None and (data is None or not callable(attack)):
            raise ValueError(
                "attack must be an attack, such as tfsam.PGD(8 / 255), and "
                "needs data. "
                f"Received: attack={attack}, data={data}"
            )
        self.data = None if data is None else examples.repeatable(data, steps)
        self.attack, self.steps = attack, steps
        self.folder = pathlib.Path(folder) if folder else None
        self.average: list[tf.Tensor] = []
        self.count = 0
        self._training = False

    def on_train_begin(self, logs: Any = None) -> None:
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
                "The network has BatchNormalization, and the averaged weights "
                "are used with the statistics of the last weights. Give "
                f"{type(self).__name__} data= to measure their own.",
                stacklevel=2,
            )
        self._move = traced(self._moved)
        self.average, self.count = self._weights(), 0
        _HOLDERS.pop(self._network, None)
        begin(self._network)
        self._training, self._first_epoch = True, True
        self._kept: list[tf.Tensor] | None = None
        self._statistics: list[tf.Tensor] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Continues from the file, at the first epoch of a resumed run."""
        if self._first_epoch and epoch > 0 and self.folder:
            self._load(epoch)
        self._first_epoch = False

    def on_test_begin(self, logs: Any = None) -> None:
        """Gives the network its averaged weights, if this is a validation."""
        if self._training:
            self._collect()
            self._swap_in()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Restores the weights of training, and saves the average."""
        self._collect()
        self._swap_out()
        self._save(epoch + 1)

    def get_state(self) -> State:
        """Returns the average as arrays."""
        arrays = {f"weight_{i}": a.numpy() for i, a in enumerate(self.average)}
        return arrays | {"count": np.array(self.count)}

    def set_state(self, state: State) -> None:
        """Continues an average.

        Args:
            state: of `get_state`, in the same training.
        """
        self.count, self._statistics = int(state["count"]), None
        self.average = [
            tf.constant(state[f"weight_{i}"]) for i in range(len(self.average))
        ]

    def put_back(self, state: State, epoch: int) -> None:
        """Removes an epoch from the average, in the folder as well.

        Args:
            state: of `get_state`, at the beginning of the epoch.
            epoch: the epoch's number, from 0.
        """
        self.set_state(state)
        self._due = False
        self._save(epoch + 1)

    def check_averages(self, network: keras.Model) -> None:
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
    def averaged(self) -> Iterator[None]:
        """Returns a context in which the network holds the average.

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

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the averaged weights in the network."""
        if self._first_epoch and self.folder is not None:
            self._load_newest()  # The run was resumed after its last epoch.
        if self.count and may_end(self._network, Ending.AVERAGE):
            self._swap_in()
        self._training, self._kept = False, None
        _HOLDERS.pop(self._network, None)

    @property
    def _network(self) -> keras.Model:
        return getattr(self.model, "network", self.model)

    def _collect(self) -> None:
        """Adds the epoch's weights to the average, if it is time to."""

    def _update(self, momentum: float) -> None:
        """Makes the average m * average + (1 - m) * w."""
        self.average = self._move(
            self.average, tf.constant(momentum, tf.float64)
        )
        self.count += 1
        self._statistics = None

    def _moved(
        self, average: list[tf.Tensor], momentum: tf.Tensor
    ) -> list[tf.Tensor]:
        # In this form weights that never change are kept to the bit, and with
        # m = 0 the average equals the weights.
        weights = self._weights()
        return [
            w + tf.cast(momentum, w.dtype) * (a - w)
            for a, w in zip(average, weights, strict=True)
        ]

    def _weights(self) -> list[tf.Tensor]:
        """Returns the weights in float32 or float64: 16 bits lose 1 - m."""
        return [
            # A cast alone returns the variable itself if it has the dtype.
            tf.cast(
                tf.convert_to_tensor(v.value),
                "float64" if v.dtype == "float64" else "float32",
            )
            for v in self._network.trainable_variables
        ]

    def _swap_in(self) -> None:
        """Replaces the weights in training by the average."""
        if self.count == 0 or self._kept is not None:
            return
        if self._network in _HOLDERS:
            raise ValueError(
                "A fit with validation takes one average: this one would save "
                "the other's as the weights in training. "
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

    def _swap_out(self) -> None:
        """Restores the weights in training."""
        if self._kept is not None:
            for part, value in zip(self._parts(), self._kept, strict=True):
                part.assign(value)
            self._kept = None
            _HOLDERS.pop(self._network, None)

    def _parts(self) -> list[Any]:
        """Returns the variables that a swap changes, each replica's own copy.

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

    def _save(self, epochs: int) -> None:
        """Writes the state if this process is the chief; keeps two files."""
        chief = devices.is_chief(self.model.distribute_strategy)
        if self.folder is None or not chief:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_arrays(self._path(epochs), self.get_state())
        kept = {self._path(epochs), self._path(epochs - 1)}
        for path in self.folder.glob("average-*.npz"):
            if path not in kept and re.fullmatch(r"average-\d+", path.stem):
                path.unlink()

    def _load_newest(self) -> None:
        folder = self.folder or pathlib.Path()
        found = [
            int(match[1])
            for path in folder.glob("average-*.npz")
            if (match := re.fullmatch(r"average-(\d+)", path.stem))
        ]
        if found:
            self._load(max(found))

    def read_state(self, epochs: int) -> State:
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
                f"folder must hold {path.name}, to resume after epoch "
                f"{epochs}. "
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
                f"{path} must hold an average written by tfsam: move the "
                "file away. "
                f"Received: an archive of {', '.join(sorted(state)) or 'none'}"
            )
        return state

    def _load(self, epochs: int) -> None:
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

    def _path(self, epochs: int) -> pathlib.Path:
        folder = self.folder or pathlib.Path()
        return folder / f"average-{epochs:04d}.npz"


def _listed(shapes: list[tuple[int, ...]]) -> str:
    """Returns the first of some shapes as text."""
    return ", ".join(map(str, shapes[:3])) + ", ..." * (len(shapes) > 3)


class EMA(WeightAverage):
    """A callback that keeps an exponential moving average of the weights.

        average <- m * average + (1 - m) * w        after each step

    It begins with the weights at the start of training (Polyak averaging; in
    adversarial training: "Uncovering the limits of adversarial training against
    norm-bounded adversarial examples", Gowal et al., 2020). See `WeightAverage`
    for when the network holds the average.

    Args:
        momentum: m, in [0, 1]. The average extends over about 1 / (1 - m)
            steps.
        warmup: whether m is min(momentum, (1 + t) / (10 + t)) after t steps, so
            that a short training forgets its random start.
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
