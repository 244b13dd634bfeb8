"""Callbacks that measure robust accuracy while training.

The training loss does not show when adversarial training goes wrong. In robust
overfitting the robust accuracy on new images peaks and then falls, while the
loss keeps falling (Rice et al., 2020). In catastrophic overfitting a network
trained by FGSM learns within an epoch to fool this single step, and loses all
robustness against several steps (Wong et al., 2020). These callbacks detect
both by attacking some images after each epoch.

In the list of callbacks they come before the ones that record an epoch's
results or save its state, so that the measurements are included. Relative to
`EMA`, `SWA` and each other they may be in any order.
"""

import contextlib
import json
import math
import pathlib
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam import registries
from tfsam.attacks.base import check_scale
from tfsam.attacks.base import example_seeds
from tfsam.attacks.check import contract
from tfsam.attacks.logits import traced
from tfsam.evaluation import plans
from tfsam.evaluation import red_flags
from tfsam.models.functions import count_classes
from tfsam.models.functions import for_evaluation
from tfsam.models.loading import load_logits
from tfsam.support import devices
from tfsam.support import files
from tfsam.support.labels import check_classes
from tfsam.support.logit_checks import check_logits
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.training import averages
from tfsam.training import entropy_sgd

# Accuracies are multiples of 1/n; smaller differences are rounding errors.
_ROUNDING = 1e-9

Attack = Callable[..., tf.Tensor]
Array = np.ndarray[Any, Any]
State = dict[str, Array]


class _Accuracies:
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


class _Measuring(keras.callbacks.Callback):
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
        average: averages.WeightAverage | None,
        steps: int | None,
    ) -> None:
        super().__init__()
        if not callable(attack):
            raise ValueError(
                "attack must be an attack, such as tfsam.PGD(8 / 255). "
                f"Received: attack={attack}"
            )
        check_scale(attack)
        if not isinstance(average, (averages.WeightAverage, type(None))):
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
        averages.begin(self.network)
        self._accuracies = _Accuracies(
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
            averages.training_weights(self.network),
            entropy_sgd.settled_weights(optimizer),
        ):
            yield


class RobustValidation(_Measuring):
    """A callback that measures robust accuracy and keeps the best network.

    Adversarial training overfits: after its peak the robust accuracy on new
    images falls by many points, while the training loss keeps falling (Rice et
    al., 2020, "Overfitting in adversarially robust deep learning"). The loss
    does not show the best epoch; it is chosen by an attack, as in the paper.
    Use held-out data, a part of the training set: choosing the epoch on the
    test set biases the test accuracy upwards.

    After an epoch its `logs` have `val_clean_accuracy` and
    `val_robust_accuracy`: the fraction of examples that are classified
    correctly, and the fraction that are so both before and after the attack.
    Both are NaN in epochs without a measurement. The network runs in inference
    mode, and nothing in it or in the training changes.

    The weights that are measured and kept are those in training, with or
    without validation and at any position of an `EMA` or `SWA` in the list of
    callbacks; or the averaged ones of `average`. During a walk of `EntropySGD`
    they are its w. The average of a Keras optimizer with `use_ema` is not
    measured; Keras's own validation does not see it either.

    Keras callbacks that monitor one of these accuracies need `mode="max"`, and
    take the first value for the best. No number is greater than NaN, so with
    `every` > 1 give `EarlyStopping` `start_from_epoch=every - 1` and
    `ModelCheckpoint` `initial_value_threshold=0.0`, and count `patience` in
    epochs, including those without a measurement. `ReduceLROnPlateau` has
    neither option: use it with `every=1`, or let it monitor `val_loss`.

    A run that is resumed from the checkpoint of the previous epoch ends with
    the same best network as an uninterrupted one, if there is a `path` and this
    callback comes before the one that saves checkpoints.

    Args:
        data: arrays (x, y), or a `tf.data.Dataset`, `keras.utils.PyDataset` or
            generator of them (see `tfsam.data.examples`), which is read once:
            the examples are the same in all epochs. x is float (n, ...) in the
            attack's bounds, y class numbers (n,) or one-hot (n, classes).
        attack: such as `tfsam.PGD(8 / 255)`. An attack that cannot run in a
            graph is called eagerly.
        every: number of epochs from one measurement to the next, >= 1.
        batch_size: examples attacked at once, >= 1. It affects the accuracies
            only by rounding, which can flip an example at the boundary.
        seed: of the attack, >= 0. An example's noise depends on it and on the
            example's index.
        keep: "clean" or "robust", the accuracy by which the best network is
            chosen, or None. At the end of training the network gets the weights
            of its best epoch, the earliest of equals, instead of the average of
            an `EMA` or `SWA`.
        path: path of a `.keras` file for the best network, rewritten whenever
            there is a better one. A record beside it, `path` + ".json", holds
            `best` and the file's checksum. Training from the start ignores
            existing files, a resumed run continues from them. None writes no
            file.
        average: an `EMA` or `SWA`, among the callbacks of the same `fit`, to
            measure and keep instead of the weights in training. Before its
            first snapshot the weights in training are used.
        steps: how many elements of a dataset or a generator to read; None reads
            all, and refuses endless data.

    Attributes:
        best: a dict with "epoch" (from 1), "clean" and "robust" of the best
            network, or None.

    Raises:
        ValueError: if an argument is out of its range. In `fit`, if the network
            does not return logits of the data's classes, if the attack breaks
            its contract, or if the file at `path` is damaged.

    Example:
        >>> import keras, tfsam
        >>> from sklearn.datasets import load_digits
        >>> images, labels = load_digits(return_X_y=True)
        >>> x, y = (images[:16] / 16).astype("float32"), labels[:16]
        >>> model = tfsam.RobustModel(
        ...     keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
        ... )
        >>> model.compile(
        ...     tfsam.SGD(0.1),
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> validation = tfsam.RobustValidation(
        ...     (x, y), tfsam.PGD(8 / 255, steps=2), keep="robust"
        ... )
        >>> history = model.fit(x, y, callbacks=[validation], verbose=0)
        >>> sorted(history.history)
        ['loss', 'val_clean_accuracy', 'val_robust_accuracy']
        >>> validation.best["epoch"]
        1
    """

    def __init__(
        self,
        data: Any,
        attack: Attack,
        *,
        every: int = 1,
        batch_size: int = 128,
        seed: int = 0,
        keep: str | None = None,
        path: str | pathlib.Path | None = None,
        average: averages.WeightAverage | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(data, attack, batch_size, seed, average, steps)
        self.every = check_count("every", every, 1)
        if keep not in (None, "clean", "robust"):
            raise ValueError(
                f"keep must be 'clean', 'robust' or None. Received: keep={keep}"
            )
        if path is not None and keep is None:
            raise ValueError(
                "path needs keep='clean' or 'robust', to choose the best "
                f"network by. Received: path={path}, keep=None"
            )
        if path is not None and pathlib.Path(path).suffix != ".keras":
            raise ValueError(f"path must end in .keras. Received: path={path}")
        self.keep = keep
        self.path = None if path is None else pathlib.Path(path)
        self.best: dict[str, Any] | None = None
        self._best_weights: list[Array] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Prepares; the first epoch's number shows whether a run is resumed."""
        super().on_train_begin(logs)
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Loads the best network so far, if training is resumed."""
        super().on_epoch_begin(epoch, logs)
        if self._begun:
            return
        self._begun = True
        if epoch > 0:
            self._load()
        else:
            self._forget()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Measures if it is time to, and keeps a better network."""
        clean = robust = math.nan
        if (epoch + 1) % self.every == 0:
            with self._measured():
                clean, robust = self._accuracies()
                self._keep(
                    {"epoch": epoch + 1, "clean": clean, "robust": robust}
                )
        # In all epochs: CSVLogger takes its columns from the first one.
        logs["val_clean_accuracy"] = clean
        logs["val_robust_accuracy"] = robust

    def _measured(self) -> AbstractContextManager[None]:
        """Returns a context in which the network holds measured weights."""
        if self.average is None:
            return self._in_training()
        return self.average.averaged()

    def _keep(self, found: dict[str, Any]) -> None:
        """Keeps the current network if it is the best so far."""
        if self.keep is None or (
            self.best is not None and found[self.keep] <= self.best[self.keep]
        ):
            return
        self.best = found
        self._best_weights = self.network.get_weights()
        if self.path is not None and self._is_chief():
            _write_best(self.path, self.network, found)

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the network the weights of its best epoch."""
        if not self._begun:  # The run was resumed after its last epoch.
            self._load(over=True)
        best = averages.Ending.BEST_EPOCH
        if self._best_weights is not None and averages.may_end(
            self.network, best
        ):
            self.restore()

    def restore(self) -> None:
        """Gives the network the weights of its best epoch, if there is one."""
        if self._best_weights is not None:
            self.network.set_weights(self._best_weights)

    def _forget(self) -> None:
        """Removes the record of an old run, which makes its network invalid."""
        self.best = self._best_weights = None
        if self.path is not None and self._is_chief():
            files.remove(_record_path(self.path))

    def _is_chief(self) -> bool:
        """Returns whether this process writes files."""
        return bool(devices.is_chief(self.model.distribute_strategy))

    def _load(self, over: bool = False) -> None:
        """Loads the best network from the path, if there is one.

        It may be of an epoch that will be repeated. The repetition is not
        better than the kept network, so nothing changes.

        Args:
            over: whether training has ended.
        """
        found = None if self.path is None else _read_best(self.path, over)
        if found is not None:
            self.best, self._best_weights = found


def _record_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".json")


def _write_best(
    path: pathlib.Path, network: keras.Model, best: dict[str, Any]
) -> None:
    """Writes the network, then its record, which makes it valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        network.save(temporary)
    # If the process dies before the next lines, the old record has a different
    # checksum. Then no best network is known, and the epoch that made this one,
    # which was better than all before, is repeated.
    record = best | {"checksum": files.digest(path)}
    files.write_json(_record_path(path), record)


def _read_best(
    path: pathlib.Path, over: bool
) -> tuple[dict[str, Any], list[Array]] | None:
    """Returns the best epoch and its weights; None without a valid record.

    Args:
        path: path of the network.
        over: whether training has ended. Otherwise the record may be of an
            older network.

    Raises:
        tfsam.support.files.Unusable: if the network or its record is damaged.
    """
    record_path = _record_path(path)
    if not record_path.is_file():
        return None
    with files.reading(
        path, f"the best network that {record_path.name} records"
    ):
        record = json.loads(record_path.read_text())
        network = keras.saving.load_model(path, compile=False)
        if record.pop("checksum") == files.digest(path):
            return record, network.get_weights()
        if over:
            raise ValueError("its checksum is another")
    return None


class StopAtCollapse(_Measuring):
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
        average: averages.WeightAverage | None = None,
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
        with averages.training_weights(self.network):
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
        ending = averages.Ending.BEFORE_COLLAPSE
        if self.stopped_epoch and averages.may_end(self.network, ending):
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
