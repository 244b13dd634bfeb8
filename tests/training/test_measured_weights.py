"""The weights that callbacks measure, keep and leave, in any order."""

import csv
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.training import checkpoints
from tfsam.training import monitoring
from tfsam.training import progress

RNG = np.random.default_rng(0)
X = RNG.random((48, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 3))).argmax(1)
ATTACK = tfsam.FGSM(0.02)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
KEYS = ("val_clean_accuracy", "val_robust_accuracy")


def small():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dense(3),
        ]
    )


def trained(*found, optimizer=None, validation=False, epochs=3, **kwargs):
    """A small network after some epochs of three steps, and its history."""
    model = tfsam.RobustModel(small(), seed=0)
    model.compile(optimizer or tfsam.SGD(0.5), LOSS)
    history = model.fit(
        *(X, Y),
        batch_size=16,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(found),
        validation_data=(X, Y) if validation else None,
        **kwargs,
    )
    return model, history.history


def measured(history):
    return [history[key] for key in KEYS]


def assert_same_weights(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def predicted(network, x=X):
    return np.argmax(network(x, training=False), axis=1)


def accuracies(network, y=Y):
    """Computes the accuracies of the current weights by hand."""
    x_adv = ATTACK(lambda x: network(x, training=False), X, y, 0)
    clean, robust = predicted(network) == y, predicted(network, x_adv) == y
    return clean.mean(), (clean & robust).mean()


class Weights(keras.callbacks.Callback):
    """The network's variables at the end of each epoch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.model.network.get_weights())


class ByHand(keras.callbacks.Callback):
    """The accuracies at the end of each epoch, of the network as it is then."""

    def on_train_begin(self, logs=None):
        self.seen = [[], []]

    def on_epoch_end(self, epoch, logs=None):
        found = accuracies(self.model.network)
        for column, value in zip(self.seen, found, strict=True):
            column.append(value)


def in_order(first, *, validated, slow=True):
    marks = pytest.mark.slow if slow else ()
    name = f"{first}, {'validated' if validated else 'alone'}"
    return pytest.param(first, validated, marks=marks, id=name)


def orders(*fast):
    """Orders of the callbacks, with and without validation; which are fast."""
    return [
        in_order(
            first, validated=validated, slow=(first, validated) not in fast
        )
        for first in ("average", "validation")
        for validated in (False, True)
    ]


LAST = ("validation", True)


def with_average(first, validation, keep=None, average=None, named=False, y=Y):
    """Trains with an average and a robust validation, in one order."""
    average = average or tfsam.EMA(0.9, warmup=False, data=X)
    found = tfsam.RobustValidation(
        (X, y), ATTACK, keep=keep, average=average if named else None
    )
    both = [average, found] if first == "average" else [found, average]
    # Within the validation the first callback sees the average, the last never.
    averaged, plain = ByHand(), ByHand()
    model, history = trained(averaged, *both, plain, validation=validation)
    return model.network, history, found, average, (averaged, plain)


@pytest.mark.parametrize(("first", "validation"), orders(LAST))
def test_the_weights_in_training_are_measured_in_any_order(first, validation):
    _, history, _, _, (averaged, plain) = with_average(first, validation)
    assert measured(history) == plain.seen
    assert (averaged.seen != plain.seen) == validation


def test_a_named_average_is_measured_without_a_validation():
    network, history, *_ = with_average("average", False, named=True)
    assert tuple(column[-1] for column in measured(history)) == accuracies(
        network
    )


@pytest.mark.slow
@pytest.mark.parametrize(("first", "validation"), orders())
def test_a_named_average_is_measured_in_any_order(first, validation):
    _, history, *_ = with_average(first, validation, named=True)
    *_, (averaged, _) = with_average("average", True)
    assert measured(history) == averaged.seen


@pytest.mark.slow
@pytest.mark.parametrize(("first", "validation"), orders())
def test_swa_is_measured_with_the_snapshot_of_its_epoch(first, validation):
    average = tfsam.SWA(1, data=X)
    network, history, _, _, (_, plain) = with_average(
        first, validation, average=average, named=True
    )
    assert average.count == 2
    first_epoch, *_, last = zip(*measured(history), strict=True)
    assert first_epoch == tuple(column[0] for column in plain.seen)
    assert last == accuracies(network)


@pytest.mark.parametrize(
    ("named", "places"),
    [
        (True, [LAST]),
        pytest.param(True, [LAST, ("average", False)], marks=pytest.mark.slow),
        pytest.param(False, [LAST, ("average", False)], marks=pytest.mark.slow),
        pytest.param(
            *(True, [("average", True), ("validation", False)]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_best_epoch_is_what_fit_ends_with_in_any_order(named, places):
    """With the labels of its first predictions, the first epoch is the best."""
    y, ends = predicted(small()), []
    for first, validation in places:
        network, _, found, average, _ = with_average(
            first, validation, keep="robust", named=named, y=y
        )
        assert found.best["epoch"] == 1
        assert accuracies(network, y)[1] == found.best["robust"]
        assert average.count == 9
        ends.append(network.get_weights())
    assert_same_weights(ends[0], ends[-1])


@pytest.mark.slow
def test_without_a_best_epoch_fit_ends_with_the_average():
    average = tfsam.EMA(0.9, data=X)
    found = tfsam.RobustValidation((X, Y), ATTACK, keep="robust", every=5)
    for both in ((average, found), (found, average)):
        model, _ = trained(*both)
        expected = [a.numpy() for a in average.average]
        weights = [v.numpy() for v in model.network.trainable_variables]
        assert_same_weights(weights, expected)


@pytest.mark.slow
def test_training_does_not_feel_the_measuring():
    alone, found = Weights(), Weights()
    trained(alone)
    average = tfsam.EMA(0.9, data=X)
    validation = tfsam.RobustValidation((X, Y), ATTACK, average=average)
    stop = tfsam.StopAtCollapse((X, Y), ATTACK, drop=1, average=average)
    trained(validation, stop, average, found, validation=True)
    for one, other in zip(alone.seen, found.seen, strict=True):
        assert_same_weights(one, other)


def test_the_average_must_be_among_the_callbacks():
    average = tfsam.EMA(0.9, data=X)
    model = tfsam.RobustModel(small(), seed=0)
    for kind in (tfsam.RobustValidation, tfsam.StopAtCollapse):
        callback = kind((X, Y), ATTACK, average=average)
        callback.set_model(model)
        average.set_model(model)
        callback.on_train_begin()
        with pytest.raises(ValueError, match="among the callbacks"):
            callback.on_epoch_begin(0)
        average.on_train_begin()
        callback.on_epoch_begin(0)
        average.on_train_end()
        with pytest.raises(ValueError, match=r"Received: average=0\.9"):
            kind((X, Y), ATTACK, average=0.9)


@pytest.mark.parametrize(
    "first", ["checkpoint", pytest.param("average", marks=pytest.mark.slow)]
)
def test_a_checkpoint_holds_the_weights_in_training(tmp_path, first):
    weights, average = Weights(), tfsam.EMA(0.9, data=X)
    both = [average, checkpoints.Checkpoint(tmp_path)]
    if first == "checkpoint":
        both.reverse()
    trained(*both, weights, validation=True, epochs=1)
    saved = keras.saving.load_model(checkpoints.newest_first(tmp_path)[0][1])
    assert_same_weights(saved.network.get_weights(), weights.seen[-1])


# A collapse.


class Collapse(keras.callbacks.Callback):
    """Spoils the last epoch but one, as training might."""

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 2:
            network = self.model.network
            network.set_weights([-50 * w for w in network.get_weights()])

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "validation", "places"),
    [
        (tfsam.SWA, True, ["stop", "average"]),
        (tfsam.SWA, False, ["stop", "average"]),
        (tfsam.EMA, True, ["stop", "average"]),
    ],
)
def test_a_collapse_leaves_nothing_behind_in_any_order(
    kind, validation, places, tmp_path
):
    def average(folder):
        return kind(0.5 if kind is tfsam.EMA else 0, data=X, folder=folder)

    expected, _ = trained(average(tmp_path / "one"), epochs=1)
    for first in places:
        one = average(tmp_path / first)
        stop = tfsam.StopAtCollapse((X, Y), ATTACK, drop=0.1, average=one)
        both = [one, stop] if first == "average" else [stop, one]
        model, _ = trained(Collapse(), *both, validation=validation)
        assert stop.stopped_epoch == 2
        assert_same_weights(
            model.network.get_weights(), expected.network.get_weights()
        )
        count = 3 if kind is tfsam.EMA else 1
        assert one.count == count == one.read_state(2)["count"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: tfsam.EntropySGD(0.5, inner_steps=2, noise=0.0),
        lambda: tfsam.SGD(0.5, use_ema=True, ema_momentum=0.5),
    ],
    ids=["entropy_sgd", "use_ema"],
)
def test_the_optimizer_does_not_undo_what_a_collapse_puts_back(optimizer):
    stop = tfsam.StopAtCollapse((X, Y), ATTACK, drop=0.1)
    model, history = trained(Collapse(), stop, optimizer=optimizer())
    assert stop.stopped_epoch == 2
    assert accuracies(model.network)[1] == history["train_robust_accuracy"][0]


# Entropy-SGD.


def walking(*found, epochs=2, **kwargs):
    """Walks of two steps in epochs of three: some end mid-epoch."""
    optimizer = tfsam.EntropySGD(
        0.5, 0.0, inner_steps=2, noise=0.0, inner_learning_rate=2.0
    )
    return trained(*found, optimizer=optimizer, epochs=epochs, **kwargs)


class EndsOfWalks(keras.callbacks.Callback):
    """The trainable weights after each step, and each step's end of a walk."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(
            [v.numpy() for v in self.model.network.trainable_variables]
        )


def test_amid_a_walk_the_center_is_measured_and_kept(tmp_path):
    steps, weights = EndsOfWalks(), Weights()
    path = tmp_path / "best.keras"
    found = tfsam.RobustValidation((X, Y), ATTACK, keep="robust", path=path)
    model, history = walking(steps, found, weights, epochs=1)
    center, moved = steps.seen[1], steps.seen[2]
    assert any(
        np.abs(one - other).max() > 1e-3
        for one, other in zip(center, moved, strict=True)
    )
    # Training goes on from where it was.
    network = model.network
    trainable = [id(v) for v in network.trainable_variables]
    left = [
        w
        for w, v in zip(weights.seen[0], network.weights, strict=True)
        if id(v) in trainable
    ]
    assert_same_weights(left, moved)
    for kept in (network, keras.saving.load_model(path)):
        assert_same_weights(
            [v.numpy() for v in kept.trainable_variables], center
        )
        found = tuple(column[0] for column in measured(history))
        assert found == accuracies(kept)


@pytest.mark.slow
def test_the_walk_does_not_feel_the_measuring():
    alone, found = EndsOfWalks(), EndsOfWalks()
    walking(alone)
    validation = tfsam.RobustValidation((X, Y), ATTACK)
    stop = tfsam.StopAtCollapse((X, Y), ATTACK, drop=1)
    walking(found, validation, stop)
    for one, other in zip(alone.seen, found.seen, strict=True):
        assert_same_weights(one, other)


@pytest.mark.slow
def test_amid_a_walk_the_center_is_measured_on_two_devices():
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    validation = tfsam.RobustValidation((X, Y), ATTACK, keep="clean")
    with strategy.scope():
        model, history = walking(validation, epochs=1)
    found = tuple(column[0] for column in measured(history))
    assert found == accuracies(model.network)


# Epochs without a measurement.


def test_csv_logger_has_the_columns_from_the_first_epoch_on(tmp_path):
    path, said = tmp_path / "log.csv", []
    history = monitoring.History(tmp_path / "history.csv")
    _, logs = trained(
        tfsam.RobustValidation((X, Y), ATTACK, every=2),
        keras.callbacks.CSVLogger(path),
        history,
        progress.Progress(said.append, 3, 4),
        epochs=4,
    )
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for key in KEYS:
        found = [float(row[key]) for row in rows]
        assert [math.isnan(f) for f in found] == [True, False, True, False]
        np.testing.assert_array_equal(found, logs[key])
    # The history and the lines of a run leave out an accuracy that is none.
    for rows in (history.rows, monitoring.read_history(history.path)):
        assert [KEYS[0] in row for row in rows] == [False, True, False, True]
    assert ["nan" in line for line in said] == [False] * 4


@pytest.mark.slow
def test_keras_callbacks_that_monitor_see_the_measured_epochs(tmp_path):
    """The settings that the docstring of `RobustValidation` recommends."""
    monitor = {"monitor": "val_robust_accuracy", "mode": "max"}
    saved = []

    class Saving(keras.callbacks.ModelCheckpoint):
        def _save_model(self, epoch, batch, logs):
            before = self.best
            super()._save_model(epoch, batch, logs)
            if self.best != before:
                saved.append((epoch, self.best))

    early = keras.callbacks.EarlyStopping(
        **monitor, start_from_epoch=1, patience=4
    )
    saving = Saving(
        tmp_path / "best.keras",
        **monitor,
        save_best_only=True,
        initial_value_threshold=0.0,
    )
    validation = tfsam.RobustValidation((X, Y), ATTACK, every=2)
    _, history = trained(validation, early, saving, epochs=12)
    found = np.array(history["val_robust_accuracy"])
    best = int(np.nanargmax(found))
    assert early.best == found[best] and early.best_epoch == best
    assert saved[-1] == (best, found[best])
    assert (tmp_path / "best.keras").exists()
