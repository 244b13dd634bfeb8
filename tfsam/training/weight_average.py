"""The base of averages of the weights: how they enter and leave a network."""

import contextlib
import pathlib
import re
import types
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.data import containers
from tfsam.support import devices
from tfsam.support import files
from tfsam.support.graphs import traced
from tfsam.training import held_weights
from tfsam.training import recalibration

State = dict[str, "np.ndarray[Any, Any]"]


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
        self.data = None if data is None else containers.repeatable(data, steps)
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
        held_weights.release(self._network)
        held_weights.begin(self._network)
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
            self.swap_in()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Restores the weights of training, and saves the average."""
        self._collect()
        self.swap_out()
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
        with held_weights.training_weights(self._network):
            self.swap_in()
            try:
                yield
            finally:
                self.swap_out()

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the averaged weights in the network."""
        if self._first_epoch and self.folder is not None:
            self._load_newest()  # The run was resumed after its last epoch.
        if self.count and held_weights.may_end(
            self._network, held_weights.Ending.AVERAGE
        ):
            self.swap_in()
        self._training, self._kept = False, None
        held_weights.release(self._network)

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

    def swap_in(self) -> None:
        """Replaces the weights in training by the average."""
        if self.count == 0 or self._kept is not None:
            return
        if held_weights.holds_average(self._network):
            raise ValueError(
                "A fit with validation takes one average: this one would save "
                "the other's as the weights in training. "
                f"Received: a second one, {self}"
            )
        held_weights.hold_average(self._network, self)
        self._kept = [tf.identity(part) for part in self._parts()]
        recalibration.assign(self._network.trainable_variables, self.average)
        if self.data is None:
            return
        if self._statistics is None:
            self._statistics = self._recalibration.measure(
                self.data, steps=self.steps
            )
        recalibration.assign(self._recalibration.variables, self._statistics)

    def swap_out(self) -> None:
        """Restores the weights in training."""
        if self._kept is not None:
            for part, value in zip(self._parts(), self._kept, strict=True):
                part.assign(value)
            self._kept = None
            held_weights.release(self._network)

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
