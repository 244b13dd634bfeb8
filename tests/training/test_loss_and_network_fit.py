"""Losses of logits fit logits, losses of probabilities probabilities."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.support import final_activations
from tfsam.training import compiled_losses

RNG = np.random.default_rng(0)
X = RNG.random((8, 6)).astype("float32")
Y = RNG.integers(0, 3, 8)
ONE_HOT = np.eye(3, dtype="float32")[Y]
K = keras.layers
L = keras.losses
LOGITS = L.SparseCategoricalCrossentropy(from_logits=True)
SCE = L.sparse_categorical_crossentropy
MSE = L.mean_squared_error
PGD = tfsam.PGD(0.05, steps=1)


class Own(L.SparseCategoricalCrossentropy):
    """A subclass of one of Keras's losses."""


class Softmaxed(keras.Model):
    """A subclass: its layers do not show the kind of its outputs."""

    def __init__(self):
        super().__init__()
        self.dense = K.Dense(3)

    def call(self, x):
        return tf.nn.softmax(self.dense(x))


def network(*endings):
    inputs = keras.Input((6,))
    x = K.Dense(3)(inputs)
    for ending in endings:
        x = ending(x)
    return keras.Model(inputs, x)


def step(net, loss, y=Y, x=X, **arguments):
    model = tfsam.RobustModel(net, seed=0, **arguments)
    model.compile("sgd", loss)
    model.train_on_batch(x, y)
    return model


SPARSE = [
    "SparseCategoricalCrossentropy",
    "sparse_categorical_crossentropy",
    "crossentropy",
    L.SparseCategoricalCrossentropy(),
    Own(),
    SCE,
    functools.partial(SCE, ignore_class=None),
    lambda y, p: SCE(y, p),
    lambda y, p: L.SparseCategoricalCrossentropy(reduction="none")(y, p),
    ["sparse_categorical_crossentropy"],
]
ROWS = [
    "CategoricalCrossentropy",
    "categorical_focal_crossentropy",
    "BinaryCrossentropy",
    "bce",
    "BinaryFocalCrossentropy",
    L.CategoricalCrossentropy(label_smoothing=0.1),
    L.CategoricalFocalCrossentropy(),
    L.BinaryFocalCrossentropy(apply_class_balancing=True),
    functools.partial(L.binary_crossentropy, label_smoothing=0.1),
    lambda y, p: L.categorical_crossentropy(y, p),
    lambda y, p: 2 * L.binary_crossentropy(y, p),
    "kl_divergence",
]


@pytest.mark.parametrize(
    ("loss", "y"), [(s, Y) for s in SPARSE] + [(r, ONE_HOT) for r in ROWS]
)
def test_a_loss_of_probabilities_is_refused_on_logits(loss, y):
    with pytest.raises(ValueError, match="from_logits=True") as caught:
        step(network(), loss, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "arguments"),
    [((), {}), ((K.Lambda(abs),), {"perturb_inputs": PGD})],
)
def test_a_loss_without_from_logits_is_not_told_of_it_alone(ending, arguments):
    with pytest.raises(ValueError, match="take another"):
        step(network(*ending), "kl_divergence", ONE_HOT, **arguments)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (LOGITS, Y),
        (Own(from_logits=True), Y),
        (functools.partial(SCE, from_logits=True), Y),
        (lambda y, p: SCE(y, p, from_logits=True), Y),
        (L.BinaryFocalCrossentropy(from_logits=True), ONE_HOT),
        (lambda y, p: L.categorical_crossentropy(y, tf.nn.softmax(p)), ONE_HOT),
        ("mse", X[:, :3]),
        (lambda y, p: MSE(y, tf.clip_by_value(p, 0, 1)), X[:, :3]),
        ("categorical_hinge", ONE_HOT),
    ],
)
def test_losses_of_logits_and_regressions_are_fine(loss, y):
    model = tfsam.RobustModel(network())
    model.compile("sgd", loss)
    model.build_for((X, y))
    (output,) = model._outputs
    assert output.takes in ("logits", None)


def test_each_of_several_outputs_has_a_loss_of_its_own():
    inputs = keras.Input((6,))
    logits = K.Dense(3, name="logits")(inputs)
    chances = K.Dense(3, "softmax", name="chances")(inputs)
    both = keras.Model(inputs, {"logits": logits, "chances": chances})
    labels = {"logits": Y, "chances": Y}
    right = {"logits": LOGITS, "chances": "SparseCategoricalCrossentropy"}
    step(both, right, labels)
    wrong = {"chances": LOGITS, "logits": "SparseCategoricalCrossentropy"}
    with (
        pytest.raises(ValueError, match="from_logits=True"),
        pytest.warns(UserWarning, match="from_logits=True"),
    ):
        step(both, wrong, labels)


def averaged(x):
    return K.Average()([keras.ops.softmax(x), keras.ops.softmax(2 * x)])


ENDINGS = [
    [K.Softmax()],
    [keras.ops.softmax],
    [keras.ops.sigmoid],
    [keras.activations.softmax],
    [keras.ops.softmax, K.Activation("linear")],
    [keras.ops.softmax, K.Identity()],
    [K.Softmax(), K.Reshape((1, 3)), K.Flatten()],
    [K.Softmax(), K.Dropout(0.5)],
    [lambda x: keras.ops.cast(keras.ops.softmax(x), "float64")],
    [lambda x: keras.ops.clip(keras.ops.softmax(x), 1e-7, 1)],
    [averaged],
    [K.Dense(3, activation=K.Softmax())],
    [keras.Sequential([K.Dense(3), keras.Sequential([K.Softmax()])])],
    [K.Reshape((1, 3)), K.TimeDistributed(K.Softmax())],
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_in_probabilities_is_read_off_the_layers(ending):
    assert final_activations.in_probabilities(network(*ending)) == [True]


@pytest.mark.parametrize(
    ("ending", "known"),
    [
        ([], False),
        ([K.Flatten(), K.Activation("linear")], False),
        ([K.Dense(3, "relu")], None),
        ([K.Lambda(tf.nn.softmax)], None),
        ([keras.ops.log_softmax], None),
        ([lambda x: 2 * keras.ops.softmax(x)], None),
    ],
)
def test_logits_and_programs_are_not_taken_for_probabilities(ending, known):
    assert final_activations.in_probabilities(network(*ending)) == [known]


PARTS = [
    {"perturb_inputs": PGD},
    {"perturb_inputs": PGD, "objective": tfsam.TRADES()},
    {"perturb_inputs": PGD, "objective": tfsam.MART()},
    {"perturb_weights": tfsam.ESAM()},
    {"perturb_weights": tfsam.SSAM()},
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("loss", [L.SparseCategoricalCrossentropy(), LOGITS])
def test_a_softmax_is_refused_where_logits_are_needed(parts, loss):
    """The message names both remedies: no ending, or from_logits=True."""
    message = "take the softmax or sigmoid off .* from_logits=True, both"
    with pytest.raises(ValueError, match=message):
        step(network(keras.ops.softmax), loss, **parts)


@pytest.mark.parametrize(
    ("parts", "jit_compile"),
    [
        (PARTS[0], False),
        (PARTS[3], False),
        *(
            pytest.param(parts, jit_compile, marks=pytest.mark.slow)
            for parts in PARTS
            for jit_compile in (False, True)
        ),
    ],
)
def test_a_softmax_that_no_layer_tells_is_found_by_its_values(
    parts, jit_compile
):
    net = Softmaxed()
    model = tfsam.RobustModel(net, seed=0, **parts)
    model.compile("sgd", LOGITS, jit_compile=jit_compile)
    net(X)
    before = net.get_weights()
    with pytest.raises(ValueError, match="take the softmax") as caught:
        model.fit(X, Y, verbose=0)
    assert "\n" not in str(caught.value)
    for old, new in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # No step was made.


def test_following_half_of_the_advice_is_not_accepted():
    with pytest.raises(ValueError, match=r"take a softmax .* from_logits"):
        step(Softmaxed(), L.SparseCategoricalCrossentropy(), perturb_inputs=PGD)
    with pytest.raises(ValueError, match="take the softmax"):
        step(Softmaxed(), LOGITS, perturb_inputs=PGD)


def test_without_an_attack_a_softmax_may_stay_with_a_loss_that_fits():
    step(network(keras.ops.softmax), "SparseCategoricalCrossentropy")
    step(Softmaxed(), "SparseCategoricalCrossentropy")
    with pytest.warns(UserWarning, match="ends in a softmax"):
        step(network(K.Softmax()), LOGITS)


def test_a_loss_is_tried_but_its_errors_are_left_to_the_data():
    def fussy(y, p):
        if tf.executing_eagerly():
            raise RuntimeError("not with numbers that are made up")
        return MSE(y, p)

    model = tfsam.RobustModel(network())
    model.compile("sgd", fussy)
    model.fit(X, X[:, :3], verbose=0)
    assert model._outputs[0].takes is None
    assert compiled_losses.example_loss(model._outputs[0]) is not None
