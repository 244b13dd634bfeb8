"""Labels and pixels are checked before a step is made, in one line."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((16, 6)).astype("float32")
Y = RNG.integers(0, 3, 16)
SOME = np.where(np.arange(16) % 5 == 0, -1, Y)
TAGS = (X[:, :3] > 0.5).astype("float32")
L = keras.losses
IGNORE = L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
LOGITS = L.SparseCategoricalCrossentropy(from_logits=True)
ROWS = L.CategoricalCrossentropy(from_logits=True)
PGD = tfsam.PGD(0.1, steps=2)
# A few small steps are quicker than tracing one; the slow tests use all modes.
MODES = [{"eagerly": True}, slow({}), slow({"jit_compile": True})]


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def compiled(loss, jit_compile=False, net=None, eagerly=False, **parts):
    model = tfsam.RobustModel(net or network(), seed=0, **parts)
    model.compile("sgd", loss, jit_compile=jit_compile, run_eagerly=eagerly)
    return model


def refused(model, x, y, message, **fit):
    """Training raises one line, and leaves the weights as they were."""
    before = model.network.get_weights()
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(x, y, verbose=0, **fit)
    assert "\n" not in str(caught.value)
    for old, new in zip(before, model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def seen(model, x, y):
    """The images that a step's metrics and loss are of."""
    found = []

    def spy(model, batch):
        found.append(batch.x_adv.numpy())
        y_pred = model(batch.x_adv, training=True)
        return model.compute_loss(batch.x_adv, batch.y, y_pred), y_pred

    model.objective = spy
    model.train_on_batch(x, y)
    return found[0]


@pytest.mark.parametrize(
    "labels", [SOME, SOME[:, None], SOME.astype("float32")]
)
def test_ignored_examples_are_left_alone(labels):
    model = compiled(IGNORE, eagerly=True, perturb_inputs=PGD)
    x_adv = seen(model, X, labels)
    moved = (x_adv != X).any(axis=1)
    np.testing.assert_array_equal(moved, SOME >= 0)


@pytest.mark.parametrize("mode", MODES)
def test_ignored_examples_change_nothing(mode):
    """Training equals that on the other examples, at the same batch sizes."""
    found = []
    for x in (X, np.where(SOME[:, None] < 0, 0.5, X)):
        model = compiled(IGNORE, **mode, perturb_inputs=PGD)
        model.fit(x, SOME, batch_size=8, epochs=2, shuffle=False, verbose=0)
        found.append(model.network.get_weights())
    for one, other in zip(*found, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_ignored_pixels_of_a_map_are_left_out():
    net = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 1)])
    x = RNG.random((4, 4, 4, 1)).astype("float32")
    y = RNG.integers(0, 3, (4, 4, 4))
    y[0] = y[1, 0, 0] = -1
    attack = tfsam.PGD(0.1, steps=1, random_start=False)
    model = compiled(IGNORE, net=net, eagerly=True, perturb_inputs=attack)
    moved = seen(model, x, y) != x
    assert not moved[0].any()
    assert not moved[1, 0, 0].any()
    assert moved[2:].any()


@pytest.mark.parametrize(
    "parts",
    [
        {"perturb_inputs": PGD, "objective": tfsam.TRADES()},
        {"perturb_inputs": PGD, "objective": tfsam.MART()},
        {"perturb_weights": tfsam.ESAM()},
        {"perturb_weights": tfsam.SSAM()},
    ],
)
def test_methods_that_weigh_each_example_can_leave_none_out(parts):
    refused(compiled(IGNORE, **parts), X, SOME, "ignore_class=-1")


BELOW = r"class numbers below 3, .* Received: y in \[-1, 2\]"


@pytest.mark.parametrize(
    ("loss", "y", "message", "jit_compile", "parts"),
    [
        (LOGITS, SOME, BELOW, False, {}),
        (LOGITS, SOME, BELOW, True, {}),
        (LOGITS, SOME, BELOW, True, {"perturb_inputs": PGD}),
        (LOGITS, SOME, BELOW, True, {"perturb_weights": tfsam.SAM()}),
        (LOGITS, Y + 1, r"\[\d, 3\]", False, {"perturb_inputs": PGD}),
        (IGNORE, SOME - 1, "or ignore_class=-1", False, {}),
    ],
)
def test_labels_of_no_class_are_refused_before_a_step(
    loss, y, message, jit_compile, parts
):
    refused(compiled(loss, jit_compile, **parts), X, y, message)


def test_labels_of_no_class_are_refused_in_a_later_batch():
    y = np.concatenate([Y[:8], SOME[:8]])
    model = compiled(LOGITS, perturb_inputs=PGD)
    with pytest.raises(ValueError, match="class numbers below 3"):
        model.fit(X, y, batch_size=8, shuffle=False, verbose=0)


@pytest.mark.parametrize(
    "parts",
    [
        {"perturb_inputs": PGD, "objective": tfsam.TRADES()},
        {"perturb_inputs": tfsam.PGD(0.1, loss="cross_entropy")},
        {"perturb_weights": tfsam.ESAM()},
        {"perturb_weights": tfsam.SSAM()},
    ],
)
@pytest.mark.parametrize("y", [TAGS, X[:, :3], 2 * np.eye(3)[Y], -TAGS])
def test_rows_that_are_no_distribution_are_refused(parts, y):
    model = compiled(ROWS, eagerly=True, **parts)
    refused(model, X, y, "distribution over the classes")


ABOVE = np.nextafter(np.float32(1), np.float32(2))


@pytest.mark.parametrize("mode", MODES)
def test_rounding_beyond_the_bounds_is_clipped_in_a_step(mode):
    found = []
    for white in (np.float32(1), ABOVE + 2 * np.spacing(np.float32(1))):
        x = np.where(X > 0.8, white, X)
        model = compiled(LOGITS, **mode, perturb_inputs=PGD)
        model.fit(x, Y, batch_size=8, shuffle=False, verbose=0)
        found.append(model.network.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_unit_is_that_of_the_data_s_own_type():
    """Keras makes arrays of halves float32 before a step sees them."""
    above = np.nextafter(np.float16(1), np.float16(2))
    x = np.where(X > 0.8, above, X.astype("float16"))
    model = compiled(LOGITS, perturb_inputs=PGD)
    model.fit(x, Y, verbose=0)  # Another type is traced again:
    refused(model, x.astype("float32"), Y, r"Received: x in \[.*, 1\.0009766\]")


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (np.where(X > 0.8, np.float32(1.00001), X), r"1\.00001"),
        (X - 0.5, r"\[-0\."),
        (255 * X, "normalisation is a layer"),
        (np.where(X > 0.8, np.nan, X), "Received: x"),
    ],
)
def test_pixels_beyond_the_bounds_are_refused_before_a_step(x, shown):
    refused(compiled(LOGITS, eagerly=True, perturb_inputs=PGD), x, Y, shown)


def test_one_line_is_the_error_that_it_was_too():
    """Code that catches TensorFlow's error still catches it."""
    model = compiled(LOGITS, perturb_inputs=PGD)
    with pytest.raises(tf.errors.InvalidArgumentError, match="bounds"):
        model.train_on_batch(255 * X, Y)


class ActivityLoss(keras.layers.Layer):
    """Adds a loss, the only one of its network."""

    def call(self, inputs):
        self.add_loss(tf.reduce_mean(inputs**2))
        return inputs


@pytest.mark.parametrize("parts", [{}, {"perturb_weights": tfsam.SAM(0.0)}])
def test_a_network_trains_without_labels_by_losses_of_its_layers(parts):
    results = []
    for robust in (False, True):
        keras.utils.set_random_seed(0)
        net = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(3), ActivityLoss()]
        )
        model = compiled(None, net=net, **parts) if robust else net
        model.compile("sgd", jit_compile=False)
        model.fit(X, batch_size=16, verbose=0)
        results.append(net.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("parts", [{}, {"perturb_inputs": PGD}])
def test_data_without_labels_is_refused_where_a_loss_needs_them(parts):
    refused(compiled(LOGITS, **parts), X, None, "data must hold labels y")
