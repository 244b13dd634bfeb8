"""Accuracy under attack in `fit`: measuring, keeping and stopping."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks.base import Attack
from tfsam.support import files
from tfsam.training import checkpoints
from tfsam.training import collapse
from tfsam.training import robust_validation

RNG = np.random.default_rng(0)
X = RNG.random((24, 4, 4, 1), dtype="float32")
Y = RNG.integers(0, 3, 24)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# One pixel, ten examples: 0.05, 0.15, ... 0.95, of class 1 from 0.5 on.
PIXELS = (np.arange(10, dtype="float32")[:, None] + 0.5) / 10
SIDES = (PIXELS[:, 0] > 0.5).astype("int64")
TINY = tfsam.PGD(1e-3)


def small():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def trained(*found, model=None, x=X, y=Y, run_eagerly=True, **kwargs):
    """A small model after some epochs, and its history.

    A few small steps are quicker than tracing one.
    """
    model = model or tfsam.RobustModel(small(), seed=0)
    model.compile(tfsam.SGD(0.5), LOSS, run_eagerly=run_eagerly)
    options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, callbacks=list(found), **options | kwargs)
    return model, history.history


def by_hand(network, x, y, attack, seed=0):
    """The two accuracies, by the attack alone, all examples at once."""

    def logits_fn(pixels):
        return network(pixels, training=False)

    def right(images):
        return np.argmax(logits_fn(images), axis=1) == y

    rows = np.stack([np.full(len(x), seed), np.arange(len(x))], axis=1)
    x_adv = attack(logits_fn, tf.constant(x), tf.constant(y), rows)
    clean = right(x)
    return clean.mean(), (clean & right(x_adv)).mean()


class Stub(Attack):
    """Records its calls; adds `shift` to the pixels."""

    def __init__(self, shift=0.0, in_graph=False, epsilon=0.1, bounds=None):
        super().__init__(epsilon, bounds=bounds)
        self.shift, self.in_graph = shift, in_graph
        self.calls = []

    def perturb(self, logits_fn, x, y, seeds):
        self.calls.append((getattr(logits_fn, "active", None), x, seeds))
        return x + self.shift


@pytest.mark.parametrize(
    "attack",
    [
        slow(tfsam.PGD(0.05), id="pgd"),
        pytest.param(
            tfsam.PGD(0.3, norm="l2", steps=3, early_stop=True), id="l2"
        ),
        slow(tfsam.FGSM(0.05, random_start=True), id="fgsm"),
        slow(Stub(0.1), id="eager"),
    ],
)
def test_accuracies_are_those_of_the_attack_called_by_hand(attack):
    measured = robust_validation.RobustValidation((X, Y), attack, seed=3)
    model, history = trained(measured, epochs=4)
    clean, robust = by_hand(model.network, X, Y, attack, seed=3)
    assert history["val_clean_accuracy"][-1] == clean
    assert history["val_robust_accuracy"][-1] == robust
    assert 0 < robust < clean


def test_a_plain_model_and_one_hot_labels():
    attack = tfsam.PGD(0.05)
    measured = robust_validation.RobustValidation((X, np.eye(3)[Y]), attack)
    model, history = trained(measured, model=small())
    found = (
        history["val_clean_accuracy"][-1],
        history["val_robust_accuracy"][-1],
    )
    assert found == by_hand(model, X, Y, attack)


def test_the_batch_size_changes_nothing():
    attack = tfsam.PGD(0.05)
    found = [
        robust_validation.RobustValidation((X, Y), attack, batch_size=size)
        for size in (7, 128)
    ]
    seen = []
    for measured in found:
        measured.set_model(tfsam.RobustModel(small(), seed=0))
        measured.on_train_begin()
        logs = {}
        measured.on_epoch_end(0, logs)
        seen.append(logs)
    assert seen[0] == seen[1]
    assert 0 < seen[0]["val_robust_accuracy"] < seen[0]["val_clean_accuracy"]


def test_training_does_not_notice():
    """No variable changes, BatchNorm's statistics included."""
    data, attack = (X, Y), tfsam.PGD(0.05)
    alone, history = trained()
    watched, other = trained(
        robust_validation.RobustValidation(data, attack),
        collapse.StopAtCollapse(data, attack, drop=1),
    )
    for one, two in zip(
        alone.get_weights(), watched.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    assert other["loss"] == history["loss"]


def test_other_epochs_log_nan():
    measured = robust_validation.RobustValidation(
        (PIXELS, SIDES), unchanged, every=2
    )
    _, history = scripted([0.5] * 5, measured)
    for key in ("val_clean_accuracy", "val_robust_accuracy"):
        found = np.isnan(history[key])
        assert found.tolist() == [True, False, True, False, True]


def test_an_attack_is_traced_once_and_leaves_the_misclassified_alone():
    traced, eager = Stub(in_graph=True), Stub()
    model, _ = trained(
        robust_validation.RobustValidation((X, Y), traced, batch_size=7),
        robust_validation.RobustValidation((X, Y), eager),
        epochs=3,
    )
    assert len(traced.calls) == 1
    assert len(eager.calls) == 3
    active, x, seeds = (part.numpy() for part in eager.calls[-1])
    right = np.argmax(model.network(X, training=False), axis=1) == Y
    assert 0 < right.sum() < len(X)
    np.testing.assert_array_equal(x[active], X[right])
    assert seeds[active].tolist() == [[0, i] for i in np.flatnonzero(right)]


def test_a_network_that_diverged_gets_nothing_right():
    model = tfsam.RobustModel(small(), seed=0)
    measured = robust_validation.RobustValidation((X, np.zeros_like(Y)), TINY)
    measured.set_model(model)
    measured.on_train_begin()
    weights = model.network.get_weights()
    model.network.set_weights([np.full_like(w, np.nan) for w in weights])
    logs = {}
    measured.on_epoch_end(0, logs)
    assert logs == {"val_clean_accuracy": 0.0, "val_robust_accuracy": 0.0}


def ruler():
    """Predicts class 1 where the pixel is above a threshold."""
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])


class Script(keras.callbacks.Callback):
    """Gives the ruler a threshold an epoch, in place of training."""

    def __init__(self, thresholds):
        super().__init__()
        self.thresholds = thresholds

    def on_epoch_end(self, epoch, logs=None):
        set_threshold(self.model.network, self.thresholds[epoch])


def unchanged(logits_fn, x, y, seed):
    """A function that returns its images; attacks need not be an `Attack`."""
    return x


def set_threshold(network, threshold):
    network.set_weights(
        [
            np.array([[0.0, 8.0]], "float32"),
            np.array([0.0, -8 * threshold], "float32"),
        ]
    )


def threshold_of(network):
    kernel, bias = network.get_weights()
    return round(float(-bias[1] / kernel[0, 1]), 3)


def scripted(thresholds, *found, model=None, start=0.5, **kwargs):
    if model is None:
        model = tfsam.RobustModel(ruler(), seed=0)
        set_threshold(model.network, start)
    return trained(
        *(Script(thresholds), *found),
        model=model,
        epochs=len(thresholds),
        x=PIXELS,
        y=SIDES,
        batch_size=len(PIXELS),
        **kwargs,
    )


def test_closed_form():
    """Pixels farther than epsilon from the threshold are robust."""
    measured = robust_validation.RobustValidation(
        (PIXELS, SIDES), tfsam.PGD(0.12)
    )
    _, history = scripted([0.5, 0.3, 0.9], measured)
    assert history["val_clean_accuracy"] == [1.0, 0.8, 0.6]
    assert history["val_robust_accuracy"] == [0.8, 0.7, 0.5]


# Clean accuracies 0.6, 0.9, 0.9, 0.8, 0.8; robust ones are the same.
THRESHOLDS = [0.9, 0.6, 0.4, 0.7, 0.3]


def test_the_best_network_is_the_earliest_of_equals():
    measured = robust_validation.RobustValidation(
        (PIXELS, SIDES), unchanged, keep="clean"
    )
    model, history = scripted(THRESHOLDS, measured)
    assert history["val_clean_accuracy"] == [0.6, 0.9, 0.9, 0.8, 0.8]
    assert measured.best == {"epoch": 2, "clean": 0.9, "robust": 0.9}
    assert threshold_of(model.network) == 0.6


@pytest.mark.parametrize(
    ("keep", "best"),
    [
        ("clean", {"epoch": 2, "clean": 1, "robust": 4 / 6}),
        ("robust", {"epoch": 1, "clean": 5 / 6, "robust": 5 / 6}),
    ],
)
def test_the_best_is_so_by_the_accuracy_that_was_asked_for(keep, best):
    x = np.array([[0.1], [0.2], [0.45], [0.55], [0.8], [0.9]], "float32")
    measured = robust_validation.RobustValidation(
        (x, [0, 0, 0, 1, 1, 1]), tfsam.PGD(0.12), keep=keep
    )
    model, _ = scripted([0.33, 0.5, 0.9], measured)
    assert measured.best == pytest.approx(best)
    assert threshold_of(model.network) == [0.33, 0.5][best["epoch"] - 1]


def test_without_keep_the_last_network_stays():
    measured = robust_validation.RobustValidation((PIXELS, SIDES), unchanged)
    model, _ = scripted(THRESHOLDS, measured)
    assert measured.best is None
    assert threshold_of(model.network) == THRESHOLDS[-1]


class Killed(Exception):
    pass


def killer(epoch):
    def kill(now, logs):
        if now + 1 == epoch:
            raise Killed

    return keras.callbacks.LambdaCallback(on_epoch_end=kill)


# Accuracies 0.6, 0.9, 0.8, 1.0, 0.8.
RISING = [0.9, 0.6, 0.7, 0.5, 0.3]


def kept(folder, thresholds=RISING, kill=None, after=None, **kwargs):
    """A run that goes on from its newest checkpoint, if there is one."""
    measured = robust_validation.RobustValidation(
        *((PIXELS, SIDES), unchanged),
        keep="robust",
        path=folder / "best.keras",
        **kwargs,
    )
    done, model = 0, None
    if found := checkpoints.newest_first(folder):
        (done, _), path = found[0]
        model = keras.saving.load_model(path)
    found = [measured, checkpoints.Checkpoint(folder)]
    if kill is not None:
        found.insert(2 if after == "checkpoint" else 1, killer(kill))
    model, _ = scripted(thresholds, *found, model=model, initial_epoch=done)
    return measured, model


def assert_kept(folder, measured, model, epoch, accuracy, threshold):
    best = {"epoch": epoch, "clean": accuracy, "robust": accuracy}
    assert measured.best == best
    assert threshold_of(model.network) == threshold
    record = files.read_json(folder / "best.keras.json")
    assert record.pop("checksum") == files.digest(folder / "best.keras")
    assert record == best
    saved = keras.saving.load_model(folder / "best.keras")
    for one, two in zip(
        saved.get_weights(), model.network.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_the_best_network_is_in_a_file(tmp_path):
    assert_kept(tmp_path, *kept(tmp_path), 4, 1.0, 0.5)


@pytest.mark.parametrize(
    ("kill", "after"),
    [
        slow(1, "record"),  # Starts again.
        (3, "checkpoint"),
        (4, "network"),  # The pair does not match.
        slow(4, "record"),  # The best epoch is repeated.
        slow(4, "checkpoint"),
        slow(5, "checkpoint"),  # Nothing is left to train.
    ],
)
def test_a_killed_run_that_is_resumed_keeps_the_same_network(
    tmp_path, monkeypatch, kill, after
):
    if after == "network":
        write = files.write_json

        def write_json(path, content):
            if content["epoch"] == kill:
                raise Killed
            write(path, content)

        monkeypatch.setattr(files, "write_json", write_json)
    with pytest.raises(Killed):
        kept(tmp_path, kill=kill, after=after)
    monkeypatch.undo()
    assert_kept(tmp_path, *kept(tmp_path), 4, 1.0, 0.5)


@pytest.mark.parametrize("damage", [slow("cut"), "other", "record"])
def test_a_file_that_is_not_its_record_s_is_refused(tmp_path, damage):
    """Without the file a worse network would be taken for the best."""
    kept(tmp_path)
    path = tmp_path / "best.keras"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "other":
        shutil.copy(checkpoints.newest_first(tmp_path)[0][1], path)
    else:
        (tmp_path / "best.keras.json").write_text("{")
    with pytest.raises(files.Unusable, match=r"best\.keras must hold"):
        kept(tmp_path)  # Nothing is left to train.


def test_a_new_run_forgets_the_file_of_another(tmp_path):
    kept(tmp_path)
    for _, path in checkpoints.newest_first(tmp_path):
        path.unlink()
    run = {"thresholds": [0.5, 0.9], "every": 2}
    with pytest.raises(Killed):
        kept(tmp_path, kill=1, after="checkpoint", **run)
    assert_kept(tmp_path, *kept(tmp_path, **run), 2, 0.6, 0.9)


def test_the_same_callback_goes_on_without_a_file():
    measured = robust_validation.RobustValidation(
        (PIXELS, SIDES), unchanged, keep="robust"
    )
    model, _ = scripted([0.5, 0.6], measured)
    scripted([0, 0, 0.4, 0.9], measured, model=model, initial_epoch=2)
    assert measured.best["epoch"] == 1
    assert threshold_of(model.network) == 0.5
    scripted([0.4, 0.9], measured, model=model)
    assert measured.best["epoch"] == 1
    assert threshold_of(model.network) == 0.4


def test_a_collapse_stops_and_an_allowed_fall_does_not():
    """0.9 to 0.7 is a drop of 0.2, although not in float64."""
    stop = collapse.StopAtCollapse((PIXELS, SIDES), unchanged)
    model, history = scripted([0.4, 0.2, 0.5, 0.2, 0.5], stop)
    assert history["train_robust_accuracy"] == [0.9, 0.7, 1.0, 0.7]
    assert stop.stopped_epoch == 4
    assert threshold_of(model.network) == 0.5


@pytest.mark.parametrize("done", [0, 2])
def test_the_first_epoch_is_compared_with_the_start(done):
    """A resumed run stops at the epoch of an uninterrupted one."""
    stop = collapse.StopAtCollapse((PIXELS, SIDES), unchanged)
    thresholds = [0.4] * done + [0.1, 0.5]
    model, history = scripted(thresholds, stop, start=0.4, initial_epoch=done)
    assert history["train_robust_accuracy"] == [0.6]
    assert stop.stopped_epoch == done + 1
    assert threshold_of(model.network) == 0.4


def test_a_collapse_leaves_nothing_in_an_average(tmp_path):
    """0.45 is the mean of the earlier thresholds; accuracy drops to 0.5."""
    swa = tfsam.SWA(0, folder=tmp_path)
    stop = collapse.StopAtCollapse((PIXELS, SIDES), unchanged, average=swa)
    model, _ = scripted([0.4, 0.5, 0.0, 0.5], swa, stop)
    assert stop.stopped_epoch == 3
    assert threshold_of(model.network) == 0.45
    # So it is in the file that a run would go on from, and in a resumed one.
    assert swa.read_state(3)["count"] == 2
    model, _ = scripted([0.4, 0.5, 0.0], swa, stop, initial_epoch=2)
    assert stop.stopped_epoch == 3
    assert threshold_of(model.network) == 0.45


def test_an_average_that_goes_back_measures_its_statistics_anew():
    swa = tfsam.SWA(0, data=X)
    trained(swa, epochs=1)
    assert swa._statistics is not None
    swa.set_state(swa.get_state())
    assert swa._statistics is None


def test_without_a_collapse_nothing_is_put_back():
    stop = collapse.StopAtCollapse((PIXELS, SIDES), unchanged, drop=0.5)
    model, _ = scripted([0.1, 0.5, 0.0], stop)
    assert stop.stopped_epoch is None
    assert threshold_of(model.network) == 0.0


def test_all_weights_are_put_back():
    """The variables at the end of epoch 2, BatchNorm's statistics included."""
    before = []

    def wreck(epoch, logs):
        network = model.network
        if epoch < 2:
            before[:] = network.get_weights()
            return
        weights = [w + 1 for w in network.get_weights()]
        weights[-1] = np.array([0, 0, 1e6], "float32")  # Class 2 for all.
        network.set_weights(weights)

    model = tfsam.RobustModel(small(), seed=0)
    stop = collapse.StopAtCollapse((X[Y < 2], Y[Y < 2]), TINY, drop=0.3)
    script = keras.callbacks.LambdaCallback(on_epoch_end=wreck)
    _, history = trained(script, stop, model=model, epochs=4)
    assert history["train_robust_accuracy"][2:] == [0.0]
    assert stop.stopped_epoch == 3
    for one, two in zip(model.network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)


# By default a run on two devices averages and evaluates.
@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_two_devices(inside):
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    attack = tfsam.PGD(0.05)
    with strategy.scope():
        model = tfsam.RobustModel(small(), seed=0)
        model.compile(tfsam.SGD(0.5), LOSS)
    measured = robust_validation.RobustValidation((X, Y), attack, keep="robust")
    last = []
    found = [
        measured,
        collapse.StopAtCollapse((X, Y), attack, drop=1),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: last.append(
                by_hand(model.network, X, Y, attack)
            )
        ),
    ]

    def fit():
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        return model.fit(data, epochs=3, callbacks=found, verbose=0).history

    if inside:
        with strategy.scope():
            history = fit()
    else:
        history = fit()
    clean, robust = zip(*last, strict=True)
    assert history["val_clean_accuracy"] == list(clean)
    assert history["val_robust_accuracy"] == list(robust)
    assert history["train_robust_accuracy"] == list(robust)
    assert len(set(robust)) > 1
    assert measured.best["robust"] == max(robust)
    assert by_hand(model.network, X, Y, attack)[1] == max(robust)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Stub(0.2), "left its ball of radius 0.1"),
        (Stub(0.2, in_graph=True), "left its ball of radius 0.1"),
        (Stub(0.2, epsilon=1.0, bounds=(0, 1)), "left the image range"),
        (Stub(np.nan), "finite pixels"),
    ],
)
def test_an_attack_that_breaks_its_contract(attack, message):
    with pytest.raises(ValueError, match=message):
        scripted(
            [0.5], robust_validation.RobustValidation((PIXELS, SIDES), attack)
        )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(24, 3), "class numbers below 3.*Received.*from 3 to 3"),
        (np.full(24, -1), "class numbers below 3"),
        (np.eye(4)[Y], "class numbers below 3.*Received"),
    ],
)
def test_labels_that_do_not_fit_the_network(labels, message):
    with pytest.raises(ValueError, match=message):
        trained(robust_validation.RobustValidation((X, labels), TINY))


def test_probabilities_are_refused():
    network = keras.Sequential([small(), keras.layers.Softmax()])
    network.compile("sgd", "sparse_categorical_crossentropy")
    measured = robust_validation.RobustValidation((X, Y), TINY)
    with pytest.raises(ValueError, match=r"tfsam.models.load.*Received"):
        network.fit(X, Y, callbacks=[measured], verbose=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attack": "pgd"},
        {"data": X},
        {"data": (X[:0], Y[:0])},
        {"data": (X[:3], Y)},
        {"data": (X * 2, Y)},
        {"data": ((X * 255).astype("uint8"), Y)},
        {"every": 0},
        {"batch_size": 0},
        {"seed": -1},
        {"keep": "best"},
        {"path": "best.keras"},
        {"keep": "clean", "path": "best.h5"},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="Received"):
        robust_validation.RobustValidation(
            **{"data": (X, Y), "attack": TINY} | arguments
        )


@pytest.mark.parametrize("drop", [-0.1, 1.1, np.nan])
def test_bad_drop(drop):
    with pytest.raises(ValueError, match="Received: drop="):
        collapse.StopAtCollapse((X, Y), TINY, drop=drop)
