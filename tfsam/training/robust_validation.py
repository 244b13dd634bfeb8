"""Robust accuracy while training: to choose an epoch by, and to stop in time.

The training loss does not tell when adversarial training goes wrong. In robust
overfitting the robust accuracy on new images peaks and then falls, while the
loss goes on falling (Rice et al., 2020). In catastrophic overfitting a network
trained by FGSM learns within an epoch to fool that one step, and loses all
robustness against more of them (Wong et al., 2020). Both are seen by attacking
a few images after each epoch, which is what these callbacks do.

In `fit`'s list they stand before the callbacks that write down an epoch's
results or save its state, so that those have what was measured. Beside `EMA`,
`SWA` and each other they may stand in any order.
"""

import contextlib
import json
import math
import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf

from tfsam import parts
from tfsam.attacks.base import check_scale
from tfsam.attacks.base import example_seeds
from tfsam.attacks.check import contract
from tfsam.attacks.logits import traced
from tfsam.evaluation import measure
from tfsam.evaluation import red_flags
from tfsam.models.functions import count_classes
from tfsam.models.functions import for_evaluation
from tfsam.models.loading import load_logits
from tfsam.support import devices
from tfsam.support import files
from tfsam.support.labels import check_classes
from tfsam.support.outputs import check_logits
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.training import averages
from tfsam.training import entropy_sgd

# Accuracies are multiples of 1/n; this is rounding.
_ROUNDING = 1e-9


class _Accuracies:
    """The accuracy of a network before and after an attack, at any time.

    What is traced reads the network's weights as they are when it runs.
    """

    def __init__(self, network, data, attack, batch_size, seed):
        logits = load_logits(network)
        classes = count_classes(logits, data.x[:1])
        check_classes(data.y, data.labels, classes)
        outputs = logits(tf.constant(data.x[:32])).numpy()
        check_logits(outputs, network)
        logits = for_evaluation(logits, classes, data.x.shape[1:])
        logits.count_passes()

        def run(x, y, seeds, active):
            return attack(logits.only(active), x, y, seeds)

        in_graph = parts.ATTACKS.fact(attack, "in_graph")
        self.run = traced(run) if in_graph else run
        self.predict = traced(logits.predict)
        self.logits = logits
        self.data = data
        self.attack = attack
        self.size = min(batch_size, len(data.x))
        self.seeds = example_seeds(seed, len(data.x)).numpy()

    def __call__(self):
        """The fractions that are right, and that stay right under attack."""
        clean = self._right(np.arange(len(self.data.x)), self._given)
        self.logits.count_passes()
        robust = self._right(np.flatnonzero(clean), self._attacked)
        nonfinite = self.logits.counted().nonfinite
        if nonfinite:
            warnings.warn(
                "the accuracy under attack means nothing: "
                f"{nonfinite} of the attack's input gradients "
                f"were NaN or infinite. {red_flags.NAN_CAUSE}",
                stacklevel=2,
            )
        return float(clean.mean()), float(robust.mean())

    def _right(self, indices, images):
        """Which examples are classified correctly, of those with an index.

        Args:
            indices: int array, the examples that are looked at.
            images: function of a batch's indices, and of which of them count,
                to what the network is to see.
        """
        right = np.zeros(len(self.data.x), bool)
        for start in range(0, len(indices), self.size):
            part = indices[start : start + self.size]
            # Batches of one shape: nothing is traced twice.
            batch = np.resize(part, self.size)
            active = tf.constant(np.arange(self.size) < len(part))
            outputs = self.predict(images(batch, active), active).numpy()
            outputs = outputs[: len(part)]
            # A network that diverged gets nothing right.
            finite = np.isfinite(outputs).all(axis=1)
            correct = outputs.argmax(axis=1) == self.data.labels[part]
            right[part] = finite & correct
        return right

    def _given(self, batch, active):
        return tf.constant(self.data.x[batch])

    def _attacked(self, batch, active):
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
    """A callback that measures the network's accuracies on data of its own.

    Args:
        data: see `RobustValidation`.
        attack: of the contract of `attacks/base.py`.
        batch_size: examples attacked at once.
        seed: of the attack.
        average: an `EMA` or `SWA` of the same training, or None.
        steps: see `RobustValidation`.
    """

    def __init__(self, data, attack, batch_size, seed, average, steps):
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
        self.data = measure.load_data(
            data, getattr(attack, "bounds", None), steps
        )
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.seed = check_count("seed", seed)

    @property
    def network(self):
        """The network that is attacked: a `RobustModel`'s, or the model."""
        return getattr(self.model, "network", self.model)

    def on_train_begin(self, logs=None):
        """Gets ready for this network; it is traced when first measured."""
        averages.begin(self.network)
        self._accuracies = _Accuracies(
            self.network, self.data, self.attack, self.batch_size, self.seed
        )

    def on_epoch_begin(self, epoch, logs=None):
        """Checks that the average is one of this training."""
        if self.average is not None:
            self.average.check_averages(self.network)

    @contextlib.contextmanager
    def _in_training(self):
        """A context in which the network holds the weights in training.

        No average, and Entropy-SGD's w in the midst of its walk.
        """
        optimizer = getattr(self.model, "optimizer", None)
        with (
            averages.training_weights(self.network),
            entropy_sgd.settled_weights(optimizer),
        ):
            yield


class RobustValidation(_Measuring):
    """Measures accuracy under attack while training; keeps the best network.

    Adversarial training overfits: after its peak the robust accuracy on new
    images falls by many points, while the training loss goes on falling (Rice
    et al., 2020, "Overfitting in adversarially robust deep learning"). The best
    epoch cannot be told from the loss; it is chosen here, as there, by an
    attack. Choose on held-out data, a part of the training set: an epoch that
    was chosen on the test set makes the test accuracy too high.

        validation = tfsam.training.robust_validation.RobustValidation(
            (x_val, y_val), tfsam.PGD(8 / 255), keep="robust"
        )
        model.fit(train, callbacks=[validation])

    An epoch's `logs` get `val_clean_accuracy` and `val_robust_accuracy`, the
    fractions of the examples that are classified correctly, and that are so
    both before and after the attack; both are NaN in epochs without a
    measurement. The network is in inference mode, and nothing of it or of the
    training changes.

    The weights that are measured, and kept, are those in training, whether
    `fit` validates or not and wherever an `EMA` or `SWA` stands in its list of
    callbacks; or the averaged ones of `average`. In the midst of a walk of
    `EntropySGD` they are its w. The average of a Keras optimizer with `use_ema`
    is not measured, nor does Keras's own validation see it.

    A callback of Keras that monitors one of the accuracies takes the first
    value that it gets for the best, and no number is greater than NaN. So with
    `every` > 1 give `EarlyStopping` start_from_epoch=every - 1, and
    `ModelCheckpoint` initial_value_threshold=0.0.

    A run that is resumed from a checkpoint of the epoch before ends with the
    same best network as one that was never interrupted, if there is a `path`
    and this callback stands before the one that saves checkpoints.

    Args:
        data: arrays (x, y), or a `tf.data.Dataset`, `keras.utils.PyDataset` or
            generator of them (see `tfsam.data.examples`), which is read once:
            the examples are the same in all epochs. x float (n, ...) inside the
            attack's bounds, y class numbers (n,) or one-hot (n, classes).
        attack: such as `tfsam.PGD(8 / 255)`; one that cannot run in a graph
            is called eagerly.
        every: epochs from one measurement to the next, >= 1.
        batch_size: examples attacked at once, >= 1; the accuracies depend on
            it by rounding alone, which can move an example at the boundary.
        seed: >= 0; with an example's index, the key of its randomness.
        keep: "clean" or "robust", the accuracy that the best network has the
            most of, or None. At the end of training the network gets the
            weights of its best epoch, the earliest of equals, also where an
            `EMA` or `SWA` would give it its average.
        path: of a `.keras` file, which holds the best network whenever there
            is a better one; beside it stands a record, `path` + ".json", with
            `best` and the file's checksum. Training from the start forgets
            what they held; a resumed one goes on from it. None is no file.
        average: the `EMA` or `SWA`, among the callbacks of the same `fit`, that
            is measured and kept; before its first snapshot it is the weights in
            training. None is the weights in training.
        steps: how many elements of a dataset or a generator to read; None reads
            all, and refuses data that does not end.

    Attributes:
        best: {"epoch" (from 1), "clean", "robust"} of the best network, or
            None.

    Raises:
        ValueError: if an argument is out of its range; in `fit`, if the network
            returns no logits of the data's classes, the attack breaks its
            contract, or the file at `path` is damaged.
    """

    def __init__(
        self,
        data,
        attack,
        *,
        every=1,
        batch_size=128,
        seed=0,
        keep=None,
        path=None,
        average=None,
        steps=None,
    ):
        super().__init__(data, attack, batch_size, seed, average, steps)
        self.every = check_count("every", every, 1)
        if keep not in (None, "clean", "robust"):
            raise ValueError(
                f"keep must be 'clean', 'robust' or None. Received: keep={keep}"
            )
        if path is not None and keep is None:
            raise ValueError(
                "path needs keep='clean' or 'robust', to know the best network "
                f"by. Received: path={path}, keep=None"
            )
        if path is not None and pathlib.Path(path).suffix != ".keras":
            raise ValueError(f"path must end in .keras. Received: path={path}")
        self.keep = keep
        self.path = None if path is None else pathlib.Path(path)
        self.best: dict | None = None
        self._best_weights: list | None = None

    def on_train_begin(self, logs=None):
        """Gets ready; the first epoch will tell whether training is resumed."""
        super().on_train_begin(logs)
        self._begun = False

    def on_epoch_begin(self, epoch, logs=None):
        """Goes on from the best network so far, if training is resumed."""
        super().on_epoch_begin(epoch, logs)
        if self._begun:
            return
        self._begun = True
        if epoch > 0:
            self._load()
        else:
            self._forget()

    def on_epoch_end(self, epoch, logs=None):
        """Measures if it is time to, and keeps a network that is better."""
        clean = robust = math.nan
        if (epoch + 1) % self.every == 0:
            with self._measured():
                clean, robust = self._accuracies()
                self._keep(
                    {"epoch": epoch + 1, "clean": clean, "robust": robust}
                )
        # In all epochs: CSVLogger takes the columns of the first.
        logs["val_clean_accuracy"] = clean
        logs["val_robust_accuracy"] = robust

    def _measured(self):
        """A context in which the network holds the weights to measure."""
        if self.average is None:
            return self._in_training()
        return self.average.averaged()

    def _keep(self, found):
        """Keeps the network as it is now, if it is the best so far."""
        if self.keep is None or (
            self.best is not None and found[self.keep] <= self.best[self.keep]
        ):
            return
        self.best = found
        self._best_weights = self.network.get_weights()
        if self._writes():
            _write_best(self.path, self.network, found)

    def on_train_end(self, logs=None):
        """Gives the network the weights of its best epoch."""
        if not self._begun:  # It was resumed after its last epoch.
            self._load(over=True)
        best = averages.Ending.BEST_EPOCH
        if self._best_weights is not None and averages.may_end(
            self.network, best
        ):
            self.restore()

    def restore(self):
        """Gives the network the weights of its best epoch, if there is one."""
        if self._best_weights is not None:
            self.network.set_weights(self._best_weights)

    def _forget(self):
        """Without its record, an old network is not taken for this run's."""
        self.best = self._best_weights = None
        if self._writes():
            files.remove(_record_path(self.path))

    def _writes(self):
        """Whether there is a file, and this is the process that writes it."""
        chief = devices.is_chief(self.model.distribute_strategy)
        return self.path is not None and chief

    def _load(self, over=False):
        """Goes on from the best network of the path, if there is one.

        It may be of an epoch that is to be done again: that one will not be
        better than itself.
        """
        found = None if self.path is None else _read_best(self.path, over)
        if found is not None:
            self.best, self._best_weights = found


def _record_path(path):
    return path.with_name(path.name + ".json")


def _write_best(path, network, best):
    """Writes the network, then its record, which makes it valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        network.save(temporary)
    # If the process dies before this, the old record has another checksum: then
    # no best network is known, and the epoch that made this one, which was
    # better than all before, is done again.
    record = best | {"checksum": files.digest(path)}
    files.write_json(_record_path(path), record)


def _read_best(path, over):
    """The best epoch and its weights; None without a record of the network.

    Args:
        path: of the network.
        over: whether training is. Else its record may be an older one's.

    Raises:
        tfsam.support.files.Unusable: if the network or its record is damaged.
    """
    record_path = _record_path(path)
    if not record_path.is_file():
        return None
    with files.reading(path, f"the best network, as {record_path.name} says"):
        record = json.loads(record_path.read_text())
        network = keras.saving.load_model(path, compile=False)
        if record.pop("checksum") == files.digest(path):
            return record, network.get_weights()
        if over:
            raise ValueError("its checksum is another")
    return None


class StopAtCollapse(_Measuring):
    """Stops training when robustness collapses, with the weights from before.

    FGSM training is fast and, for a while, as good as PGD training; then,
    within an epoch or less, the network learns to fool that one step, and its
    accuracy under PGD falls to nothing. Stopping there makes it safe (Wong et
    al., 2020, "Fast is better than free"): from epoch to epoch the accuracy
    under PGD is compared, on a batch of training images. Where it collapsed,
    all of the network's weights of the epoch before are put back, BatchNorm
    statistics included.

        stop = tfsam.training.robust_validation.StopAtCollapse(
            (x_train[:256], y_train[:256]), tfsam.PGD(8 / 255, steps=5)
        )

    An average of the weights takes the collapsed epoch's, too: name it here.
    What it was before the epoch is put back with the weights. The accuracy is
    of the weights in training, wherever an average stands in `fit`'s list of
    callbacks, and in the midst of a walk of `EntropySGD` of its w.

    An epoch's `logs` get `train_robust_accuracy`, of the weights that it ended
    with. The first epoch is compared with the weights that training began, or
    was resumed, with.

    Args:
        data: see `RobustValidation`; a batch of training images will do.
        attack: one with several steps, for a single step is what the network
            learns to fool; `tfsam.PGD(epsilon, steps=5)` will do.
        drop: in [0, 1]; training stops where the accuracy is more than this
            below that of the epoch before.
        average: the `tfsam.EMA` or `tfsam.SWA` of this training, or None.
        batch_size: examples attacked at once, >= 1.
        seed: >= 0; with an example's index, the key of its randomness.
        steps: see `RobustValidation`.

    Attributes:
        stopped_epoch: the epoch of the collapse (from 1), or None.

    Raises:
        ValueError: see `RobustValidation`.
    """

    def __init__(
        self,
        data,
        attack,
        *,
        drop=0.2,
        average=None,
        batch_size=128,
        seed=0,
        steps=None,
    ):
        super().__init__(data, attack, batch_size, seed, average, steps)
        self.drop = check_number("drop", drop, 0, 1)
        self.stopped_epoch = None
        self._weights_before: list = []
        self._average_before: dict = {}

    def on_train_begin(self, logs=None):
        """Measures the weights that the first epoch is compared with."""
        super().on_train_begin(logs)
        self.stopped_epoch = None
        with self._in_training():
            self._remember(self._robust_accuracy())

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the average, which a resumed run has only now."""
        super().on_epoch_begin(epoch, logs)
        if self.average is not None:
            self._average_before = self.average.get_state()

    def on_epoch_end(self, epoch, logs=None):
        """Compares with the epoch before."""
        with self._in_training():
            accuracy = logs["train_robust_accuracy"] = self._robust_accuracy()
            collapsed = self._before - accuracy > self.drop + _ROUNDING
            if not collapsed:
                self._remember(accuracy)
        if collapsed:
            self._go_back(epoch)

    def _go_back(self, epoch):
        """Puts the weights of the epoch before back, and stops training."""
        with averages.training_weights(self.network):
            # An optimizer that walks around the weights ends its walk, or it
            # would put the end of the collapsed epoch in their place.
            self.model.optimizer.finalize_variable_values(
                self.model.trainable_variables
            )
            self.network.set_weights(self._weights_before)
            if self.average is not None:
                self.average.put_back(self._average_before, epoch)
        self.stopped_epoch = epoch + 1
        self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Puts them back once more, if the optimizer put others there."""
        ending = averages.Ending.BEFORE_COLLAPSE
        if self.stopped_epoch and averages.may_end(self.network, ending):
            self.network.set_weights(self._weights_before)

    def get_state(self):
        """What the epoch will be compared with, as arrays."""
        return {"before": np.array(self._before)} | {
            f"weight_{i}": w for i, w in enumerate(self._weights_before)
        }

    def set_state(self, state):
        """Goes on amid an epoch.

        Args:
            state: of `get_state`, in the same training.
        """
        self._before = float(state["before"])
        self._weights_before = [
            state[f"weight_{i}"] for i in range(len(self._weights_before))
        ]

    def _robust_accuracy(self):
        strategy = self.model.distribute_strategy
        return devices.of_chief(strategy, self._accuracies()[1])

    def _remember(self, accuracy):
        self._before = accuracy
        self._weights_before = self.network.get_weights()
