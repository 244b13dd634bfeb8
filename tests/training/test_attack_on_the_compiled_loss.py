"""The training attack climbs the compiled loss, example by example."""

import typing

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.attacks import losses
from tfsam.training import recalibration

RNG = np.random.default_rng(0)
X = RNG.random((8, 4, 4, 1)).astype("float32")
Y = RNG.integers(0, 3, 8)
ONE_HOT = np.eye(3, dtype="float32")[Y]
TAGS = (RNG.random((8, 3)) > 0.5).astype("float32")
NUMBERS = RNG.normal(size=(8, 3)).astype("float32")
MAP = RNG.integers(0, 3, (8, 4, 4))
L = keras.losses
LOGITS = L.SparseCategoricalCrossentropy(from_logits=True)
SMOOTH = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
FOCAL = L.CategoricalFocalCrossentropy([0.1, 5.0, 1.0], from_logits=True)
EPSILON = 0.01
STEP = tfsam.PGD(EPSILON, steps=1, step_size=EPSILON, random_start=False)


def dense(outputs):
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(5, "tanh"),
            keras.layers.Dense(outputs),
        ]
    )


def segmenter():
    return keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 3, padding="same")]
    )


@pytest.fixture(scope="module")
def networks():
    return {1: dense(1), 3: dense(3), "map": segmenter()}


def attacked(network, loss, y, attack=STEP, **compile_arguments):
    """The images that a training step sees, found without training."""
    seen = []

    def spy(model, batch):
        seen.append(batch.x_adv.numpy())
        y_pred = model(batch.x, training=True)
        return 0.0 * tf.reduce_sum(tf.cast(y_pred, "float32")), y_pred

    model = tfsam.RobustModel(network, attack, objective=spy, seed=0)
    model.compile(tfsam.SGD(0.0), loss, run_eagerly=True, **compile_arguments)
    model.train_on_batch(X, y)
    return seen[0]


def by_hand(network, loss, y):
    """One step by the sign of the gradient, each example by itself."""
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = loss(tf.cast(y, "float32"), network(x))
    slopes = tape.gradient(found, x)
    return np.clip(X + EPSILON * np.sign(slopes), 0, 1)


CASES = [
    (3, L.MeanSquaredError(), NUMBERS),
    (1, L.MeanSquaredError(), NUMBERS[:, :1]),
    (1, L.BinaryCrossentropy(from_logits=True), TAGS[:, 0]),
    (3, L.BinaryCrossentropy(from_logits=True), TAGS),
    (3, SMOOTH, ONE_HOT),
    (3, FOCAL, ONE_HOT),
    (3, L.CategoricalHinge(), ONE_HOT),
    ("map", LOGITS, MAP),
    ("map", L.MeanSquaredError(), np.eye(3)[MAP]),
]


@pytest.mark.parametrize(("kind", "loss", "y"), CASES)
def test_the_attack_climbs_the_loss_that_is_trained_on(networks, kind, loss, y):
    network = networks[kind]
    wanted = by_hand(network, loss, y)
    np.testing.assert_allclose(attacked(network, loss, y), wanted, atol=1e-6)
    free = attacked(network, loss, y, tfsam.PGD(EPSILON, "l2", 2))
    assert 0 < np.abs(free - X).max() <= EPSILON


def test_weights_of_examples_and_classes_do_not_enter(networks):
    wanted = by_hand(networks[3], SMOOTH, ONE_HOT)
    found = attacked(networks[3], SMOOTH, ONE_HOT, loss_weights=[0.5])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_loss_of_the_attack_s_own_is_another(networks):
    loss = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.9)
    own = tfsam.PGD(
        EPSILON,
        steps=1,
        step_size=EPSILON,
        random_start=False,
        loss="cross_entropy",
    )
    plain = L.CategoricalCrossentropy(from_logits=True)
    wanted = by_hand(networks[3], plain, ONE_HOT)
    found = attacked(networks[3], loss, ONE_HOT, own)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_cross_entropy_is_attacked_to_the_bit_as_before():
    found = []
    for loss in (None, "cross_entropy"):
        keras.utils.set_random_seed(0)
        network = dense(3)
        model = tfsam.RobustModel(
            network, tfsam.PGD(0.1, steps=2, loss=loss), seed=0
        )
        model.compile("sgd", LOGITS, run_eagerly=True)
        model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
        found.append(network.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_lambda_of_cross_entropy_is_attacked_as_the_loss_itself(networks):
    def smoothed(y, p):
        return L.categorical_crossentropy(
            y, p, from_logits=True, label_smoothing=0.3
        )

    wanted = by_hand(networks[3], smoothed, ONE_HOT)
    found = attacked(networks[3], smoothed, ONE_HOT)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y, p: tf.reduce_mean(tf.square(y - p)),
        L.Dice(),
    ],
)
def test_a_loss_of_the_whole_batch_cannot_be_attacked(networks, loss):
    with pytest.raises(ValueError, match=r"one number an example.*Received"):
        attacked(networks[3], loss, NUMBERS)


@pytest.mark.parametrize(
    "attack",
    [
        tfsam.PGD(0.1, loss="margin"),
        tfsam.PGD(0.1, loss="kl"),
        tfsam.PGD(0.1, early_stop=True),
        tfsam.PGD(0.1, restarts=2),
        tfsam.PGD(0.1, targets=1),
        tfsam.attacks.get("apgd_ce", epsilon=0.1),
    ],
)
@pytest.mark.parametrize(
    ("kind", "loss", "y"),
    [
        (1, "mse", NUMBERS[:, :1]),
        (3, "mse", NUMBERS),
        (3, L.BinaryCrossentropy(from_logits=True), TAGS),
        ("map", LOGITS, MAP),
    ],
)
def test_an_attack_on_classes_needs_classes(networks, attack, kind, loss, y):
    with pytest.raises(ValueError, match="classes") as caught:
        attacked(networks[kind], loss, y, attack)
    assert "\n" not in str(caught.value)


def test_noise_needs_no_classes(networks):
    noise = tfsam.attacks.get("noise_linf", epsilon=0.1, samples=1)
    found = attacked(networks[3], "mse", NUMBERS, noise)
    assert 0 < np.abs(found - X).max() <= 0.1 + 1e-6


PARTS = [
    {"perturb_inputs": STEP, "objective": tfsam.TRADES()},
    {"perturb_inputs": STEP, "objective": tfsam.MART()},
    {"perturb_weights": tfsam.ESAM()},
    {"perturb_weights": tfsam.SSAM()},
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    ("kind", "loss", "y"),
    [
        (1, "mse", NUMBERS[:, :1]),
        (3, L.BinaryCrossentropy(from_logits=True), TAGS),
        (3, "mse", NUMBERS),
        ("map", LOGITS, MAP),
    ],
)
def test_methods_on_classes_need_classes(networks, parts, kind, loss, y):
    model = tfsam.RobustModel(networks[kind], **parts)
    model.compile(tfsam.SGD(0.0), loss, run_eagerly=True)
    with pytest.raises(ValueError, match="classes") as caught:
        model.train_on_batch(X, y)
    assert "\n" not in str(caught.value)


def test_two_outputs_are_one_line_for_a_method_on_classes():
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(3)(inputs), keras.layers.Dense(2)(inputs)]
    network = keras.Model(inputs, outputs)
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SSAM())
    model.compile("sgd", [LOGITS, "mse"])
    with pytest.raises(ValueError, match=r"SSAM works on classes.*\(None, 2\)"):
        model.fit(X[:, 0, :, 0], [Y, NUMBERS[:, :2]], verbose=0)


@pytest.mark.parametrize(
    "y", [ONE_HOT, 0.8 * ONE_HOT + 0.2 / 3, ONE_HOT.astype("float16")]
)
def test_soft_labels_are_classes(networks, y):
    loss = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model = tfsam.RobustModel(networks[3], STEP, objective=tfsam.TRADES())
    model.compile(tfsam.SGD(0.0), loss, run_eagerly=True)
    assert np.isfinite(model.train_on_batch(X, y))


def test_an_attack_is_saved_and_shown_with_its_loss():
    for loss in (None, "cross_entropy", "dlr"):
        attack = tfsam.PGD(0.1, loss=loss)
        assert tfsam.PGD.from_config(attack.get_config()).loss == loss
        assert f"loss={loss!r}" in repr(attack)
    assert tfsam.FGSM(0.1).loss is None


def test_elsewhere_the_default_is_cross_entropy(networks):
    for given in (tfsam.attacks.Logits(networks[3]), networks[3]):
        found = STEP(given, X, Y, 0)
        wanted = by_hand(
            networks[3], lambda y, p: losses.cross_entropy(p, y), Y
        )
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def batch_normalized():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("tanh"),
            keras.layers.Dense(3),
        ]
    )


class Recorder(tfsam.attacks.Attack):
    """Keeps the loss and the labels that it is given."""

    in_graph = False  # It keeps tensors.
    needs_classes = False
    seen: typing.ClassVar[list] = []

    def perturb(self, logits_fn, x, y, seeds):
        """Returns brighter images."""
        self.seen.append((logits_fn.loss, y))
        return self.clip(x + self.epsilon)


@pytest.mark.parametrize(
    ("loss", "y", "plain"),
    [
        (L.BinaryCrossentropy(from_logits=True), TAGS, False),
        (LOGITS, Y, True),
    ],
)
def test_an_average_s_statistics_are_of_the_same_attack(loss, y, plain):
    Recorder.seen.clear()
    average = tfsam.EMA(0.9, data=(X, y), attack=Recorder(0.1))
    model = tfsam.RobustModel(batch_normalized(), STEP, seed=0)
    model.compile("sgd", loss, run_eagerly=True)
    model.fit(X, y, verbose=0, callbacks=[average])
    ((found, _),) = Recorder.seen
    assert (found is None) == plain


def test_an_average_leaves_ignored_examples_alone():
    Recorder.seen.clear()
    some = np.where(np.arange(8) == 3, -1, Y)
    average = tfsam.EMA(0.9, data=(X, some), attack=Recorder(0.1))
    loss = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model = tfsam.RobustModel(batch_normalized(), STEP, seed=0)
    model.compile("sgd", loss, run_eagerly=True)
    model.fit(X, some, verbose=0, callbacks=[average])
    ((_, labels),) = Recorder.seen
    assert labels.numpy().min() == 0
    for weight in model.network.get_weights():
        assert np.isfinite(weight).all()


def test_statistics_under_attack_need_classes():
    with pytest.raises(ValueError, match="distribution over the classes"):
        recalibration.recalibrate(batch_normalized(), (X, TAGS), STEP)
