"""A callback that measures robust accuracy and keeps the best network.

In robust overfitting the robust accuracy on new images peaks and then falls,
while the training loss keeps falling (Rice et al., 2020). Attacking some images
after each epoch shows it.

In the list of callbacks it comes before the ones that record an epoch's results
or save its state, so that the measurements are included. Relative to `EMA`,
`SWA` and `StopAtCollapse` it may be in any order.
"""

import json
import math
import pathlib
from contextlib import AbstractContextManager
from typing import Any

import keras

from tfsam.support import devices
from tfsam.support import files
from tfsam.support.validators import check_count
from tfsam.training import held_weights
from tfsam.training.robust_accuracy import Array
from tfsam.training.robust_accuracy import Attack
from tfsam.training.robust_accuracy import Measuring
from tfsam.training.weight_average import WeightAverage


class RobustValidation(Measuring):
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
        average: WeightAverage | None = None,
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
        best = held_weights.Ending.BEST_EPOCH
        if self._best_weights is not None and held_weights.may_end(
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
