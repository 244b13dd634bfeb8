"""Soft labels beside a loss of class numbers, and labels that are smoothed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks import losses
from tfsam.training import compiled_losses
from tfsam.training import soft_labels

RNG = np.random.default_rng(0)
X = RNG.random((16, 6), dtype="float32")
Y = RNG.integers(0, 3, 16)
ONE_HOT = np.eye(3, dtype="float32")[Y]
MIXED = (0.7 * ONE_HOT + 0.3 * ONE_HOT[::-1]).astype("float32")
WEIGHTS = RNG.random(16).astype("float32")
L = keras.losses
SPARSE = L.SparseCategoricalCrossentropy(from_logits=True)
ROWS = L.CategoricalCrossentropy(from_logits=True)
PGD = tfsam.PGD(0.1, steps=2)


def shifted(logits_fn, x, y, seed):
    """An attack that takes no time."""
    return x + 0.1 * tf.cos(30 * x)


OBJECTIVES = {
    "loss": None,
    "trades": tfsam.TRADES(),
    "ikl": tfsam.IKL(refresh_every=2),
    "mart": tfsam.MART(),
    "score": tfsam.SCORE(),
}


def network(*ending):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(5, kernel_regularizer="l2"),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
        keras.layers.Dense(3),
    ]
    return keras.Sequential([keras.Input((6,)), *layers, *ending])


def compiled(loss=SPARSE, mode="eager", net=None, **parts):
    model = tfsam.RobustModel(net or network(), seed=0, **parts)
    model.compile(
        tfsam.SGD(0.5, momentum=0.9),
        loss,
        metrics=["accuracy"],
        run_eagerly=mode == "eager",
        jit_compile=mode == "xla",
    )
    return model


def fitted(model, y, **options):
    """Trains a model for an epoch."""
    model.fit(
        *(X, y),
        sample_weight=WEIGHTS,
        batch_size=8,
        shuffle=False,
        verbose=0,
        **options,
    )
    return model


def trained(y, mode="eager", **parts):
    """Returns the numbers of an epoch, and all weights after it."""
    model = compiled(SPARSE, mode, **parts)
    fitted(model, y, validation_data=(X, Y))
    return model.history.history, model.network.get_weights()


def assert_equal(found, expected):
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("objective", "mode"),
    [
        ("trades", "eager"),
        *(slow(name, "eager") for name in OBJECTIVES if name != "trades"),
        *(slow(name, "graph") for name in ("loss", "ikl")),
        *(slow(name, "xla") for name in ("trades", "mart")),
    ],
)
def test_where_no_label_is_mixed_nothing_changes(objective, mode):
    """To the bit: the loss, the metrics, the weights, the statistics.

    Each objective eagerly; in graphs one without and one with a state, and in
    XLA, which is slow to compile, one that takes labels and one that weighs.
    """
    parts = {"perturb_inputs": PGD, "objective": OBJECTIVES[objective]}
    found = trained(ONE_HOT, mode=mode, **parts)
    expected = trained(Y, mode=mode, **parts)
    if mode == "xla":  # It may round what it fuses in another way.
        for one, other in zip(found[1], expected[1], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    else:
        assert_equal(found, expected)
    assert set(found[0]) >= {"accuracy", "val_accuracy", "loss", "val_loss"}


@pytest.mark.parametrize("loss", [SPARSE, L.SparseCategoricalCrossentropy()])
def test_the_two_forms_of_a_loss_are_equal_to_the_bit(loss):
    logits = RNG.normal(size=(64, 7), scale=5).astype("float32")
    y = RNG.integers(0, 7, 64)
    outputs = logits
    if loss is not SPARSE:
        outputs = tf.nn.softmax(logits)

    def both(loss, y):
        outputs_ = tf.convert_to_tensor(outputs)
        with tf.GradientTape() as tape:
            tape.watch(outputs_)
            value = loss(y, outputs_)
        return value, tape.gradient(value, outputs_)

    soft = soft_labels.SoftCrossEntropy(loss)
    for one, other in zip(
        both(soft, np.eye(7, dtype="float32")[y]), both(loss, y), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["loss", "trades", "ikl"])
def test_mixed_labels_train_as_with_the_categorical_loss(objective):
    parts = {"perturb_inputs": shifted, "objective": OBJECTIVES[objective]}
    found, expected, other = (
        fitted(compiled(loss, **parts), y).network.get_weights()
        for loss, y in ((SPARSE, MIXED), (ROWS, MIXED), (SPARSE, Y))
    )
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    assert np.abs(found[0] - other[0]).max() > 1e-3


def test_metrics_see_the_largest_share():
    model = compiled()
    model.fit(X, MIXED, batch_size=16, verbose=0)
    logs = model.evaluate(X, MIXED, return_dict=True, verbose=0)
    logits = model.network(X).numpy()
    expected = np.mean(logits.argmax(1) == MIXED.argmax(1))
    np.testing.assert_allclose(logs["accuracy"], expected, rtol=1e-6)
    weights = model.losses[0].numpy()
    cross = losses.cross_entropy(tf.constant(logits), tf.constant(MIXED))
    np.testing.assert_allclose(
        logs["loss"], np.mean(cross) + weights, rtol=1e-5
    )
    logs = model.evaluate(X, Y, return_dict=True, verbose=0)
    expected = np.mean(logits.argmax(1) == Y)
    np.testing.assert_allclose(logs["accuracy"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "sparse"),
    [
        ("sparse_categorical_crossentropy", True),
        (L.SparseCategoricalCrossentropy, True),
        (L.sparse_categorical_crossentropy, True),
        ([SPARSE], True),
        ({"dense": SPARSE}, True),
        ("categorical_crossentropy", False),
        (ROWS, False),
        ([SPARSE, SPARSE], False),
        (lambda y, y_pred: y_pred, False),
        (None, False),
    ],
)
def test_losses_of_class_numbers_are_recognised(loss, sparse):
    assert compiled_losses.is_sparse(loss) == sparse


@pytest.mark.parametrize(
    ("parts", "loss", "y", "message"),
    [
        (
            {"perturb_inputs": PGD, "objective": tfsam.MART()},
            *(SPARSE, MIXED, "MART needs the true class .* must not be mixed"),
        ),
        (
            {"perturb_inputs": PGD, "objective": tfsam.MART()},
            *(ROWS, MIXED, "MART needs the true class .* must not be mixed"),
        ),
        ({}, SPARSE, 2 * MIXED, "must be a distribution over the classes"),
        (
            {},
            L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2),
            *(MIXED, "takes class numbers, not one-hot or soft .*class=2"),
        ),
        (
            {
                "perturb_inputs": PGD,
                "objective": tfsam.TRADES(label_smoothing=0.1),
            },
            L.CategoricalHinge(),
            *(ONE_HOT, "label_smoothing needs a compiled loss that is a cross"),
        ),
    ],
)
def test_labels_that_do_not_suit_are_refused_in_a_line(parts, loss, y, message):
    with pytest.raises(ValueError, match=message) as caught:
        compiled(loss, **parts).fit(X, y, verbose=0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [tfsam.ESAM(sample_fraction=0.5), tfsam.SSAM(), tfsam.GSAM()]
)
def test_methods_that_weigh_examples_take_soft_labels(method):
    """By the cross-entropy with the soft label."""
    found, expected = (trained(y, perturb_weights=method) for y in (ONE_HOT, Y))
    assert_equal(found, expected)
    assert np.isfinite(trained(MIXED, perturb_weights=method)[1][0]).all()


@pytest.mark.slow
def test_parts_of_a_batch_take_soft_labels():
    parts = {"perturb_weights": tfsam.SAM(0.1), "sub_batches": 2}
    found, expected = (trained(y, mode="graph", **parts) for y in (ONE_HOT, Y))
    assert_equal(found, expected)


# Label smoothing in objectives.


@pytest.mark.parametrize("objective", [tfsam.TRADES, slow(tfsam.IKL)])
def test_a_smoothed_label_is_the_label_of_keras(objective):
    smooth = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    found, expected = (
        fitted(compiled(loss, perturb_inputs=shifted, objective=part), y)
        for loss, part, y in (
            (SPARSE, objective(label_smoothing=0.2), Y),
            (smooth, objective(), ONE_HOT),
        )
    )
    pairs = zip(found.network.weights, expected.network.weights, strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)


@pytest.mark.slow
def test_a_single_logit_has_smoothed_labels_too():
    net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    before = [w.copy() for w in net.get_weights()]
    found = []
    for loss, part in (
        (L.BinaryCrossentropy(from_logits=True), tfsam.TRADES(0, 0.2)),
        (
            L.BinaryCrossentropy(from_logits=True, label_smoothing=0.2),
            tfsam.TRADES(0),
        ),
    ):
        net.set_weights(before)
        model = compiled(loss, net=net, perturb_inputs=shifted, objective=part)
        model.fit(X, (Y > 0)[:, None].astype(int), verbose=0)
        found.append(net.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("amount", [-0.1, 1.5, "0.1"])
def test_the_amount_of_smoothing_is_checked(amount):
    for objective in (tfsam.TRADES, tfsam.IKL):
        with pytest.raises(ValueError, match="Received: label_smoothing="):
            objective(label_smoothing=amount)
