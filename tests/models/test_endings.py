"""Logits of Keras models, whatever they end in."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import examples
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers

from tfsam.models.logits import probabilities
from tfsam.models.logits.endings import classifier

SHAPE = (4, 4, 3)


def pixels(count=5, shape=SHAPE):
    random = np.random.default_rng(0)
    return random.random((count, *shape)).astype("float32")


def slopes(function, x):
    """The gradient of the last logits."""
    pixels = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        last = probabilities.called(function, pixels)[:, -1]
    return tape.gradient(last, pixels).numpy()


def ended(*ending, shape=SHAPE):
    """A functional network with random biases, and an ending."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, bias_initializer="normal")(inputs)
    for layer in ending:
        x = layer(x)
    return keras.Model(inputs, x, name="theirs")


def flat(*ending, classes=3, activation="linear"):
    dense = layers.Dense(classes, activation, bias_initializer="normal")
    return ended(layers.Flatten(), dense, *ending)


def assert_right(found, model, how, ends_in, classes=3):
    """The logits are of the right shape, and give the model's own output."""
    x = pixels(shape=found.input_shape)
    assert (found.logits, found.ends_in) == (how, ends_in)
    assert probabilities.called(found.function, x).shape == (5, classes)
    np.testing.assert_array_equal(found.outputs(x), model(x))
    assert probabilities.check(found, x) <= 1e-6
    assert (slopes(found.function, x) != 0).any()


ENDINGS = {
    "activation": lambda name: flat(activation=name),
    "layer": lambda name: flat(layers.Activation(name)),
    "after pooling": lambda name: ended(
        layers.Conv2D(3, 1), layers.GlobalAveragePooling2D(),
        layers.Activation(name, name="predictions"),
    ),
    "operation": lambda name: flat(getattr(keras.ops, name)),
    "convolution": lambda name: ended(
        layers.Conv2D(3, 2, activation=name), layers.Flatten()
    ),
    "kept": lambda name: flat(
        layers.Activation(name), layers.Dropout(0.5), layers.Reshape((3, 1)),
        layers.Identity(), layers.Activation("linear"), layers.Flatten(),
        lambda x: keras.ops.cast(x, "float32"),
    ),
    "not squeezed": lambda name: ended(
        layers.Conv2D(3, 2, activation=name)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(
            kind,
            name,
            marks=[pytest.mark.slow] * (number % 2 != (name == "softmax")),
        )
        for number, kind in enumerate(ENDINGS)
        for name in ("softmax", "sigmoid")
    ],
)
def test_an_ending_is_removed(kind, name, tmp_path):
    model = ENDINGS[kind](name)
    before = [layer.name for layer in model.layers], model.get_config()
    found = classifier(model)
    assert_right(found, model, "removed_ending", name)
    assert (
        [layer.name for layer in model.layers],
        model.get_config(),
    ) == before
    found.function.save(tmp_path / "logits.keras")
    again = keras.saving.load_model(tmp_path / "logits.keras")
    np.testing.assert_array_equal(again(pixels()), found.function(pixels()))


def test_a_model_of_logits_is_returned_itself():
    model = flat()
    found = classifier(model)
    assert found.function is model
    assert_right(found, model, "exact", "logits")


def test_models_inside_models_keep_their_layers():
    """At any depth, and where the inner model has other outputs, too."""
    innermost = keras.Sequential(
        [keras.Input((2, 2, 4)), layers.Flatten(), layers.Dense(3, "softmax")],
        name="softmax",
    )
    inputs = keras.Input((2, 2, 4))
    middle = keras.Model(inputs, [inputs, innermost(inputs)], name="middle")
    inputs = keras.Input(SHAPE)
    x = middle(layers.Conv2D(4, 3)(inputs))[1]
    model = keras.Model(inputs, layers.Reshape((1, 1, 3))(x))
    outer = keras.Sequential([keras.Input(SHAPE), model, layers.Flatten()])
    found = classifier(outer)
    assert_right(found, outer, "removed_ending", "softmax")
    assert isinstance(found.function, keras.Model)


@pytest.mark.parametrize(
    ("activation", "how", "ends_in"),
    [
        ("linear", "exact", "logits"),
        ("sigmoid", "removed_ending", "sigmoid"),
        ("hard_sigmoid", "log_probabilities", "unknown"),
        pytest.param("tanh", "exact", "unknown", marks=pytest.mark.slow),
    ],
)
def test_a_single_output_is_one_of_two_classes(
    activation, how, ends_in, tmp_path
):
    model = flat(classes=1, activation=activation)
    found = classifier(model)
    assert_right(found, model, how, ends_in, classes=2)
    first = found.function(pixels())[:, 0]
    if how != "log_probabilities":
        np.testing.assert_array_equal(first, np.zeros(5))
    assert "single output is the " in found.notes[0]
    found.function.save(tmp_path / "logits.keras")
    again = keras.saving.load_model(tmp_path / "logits.keras")
    np.testing.assert_array_equal(again(pixels()), found.function(pixels()))


def test_a_softmax_of_one_output_is_rejected():
    with pytest.raises(ValueError, match=r"is 1 for a single one\. Received"):
        classifier(flat(classes=1, activation="softmax"))


def average():
    inputs = keras.Input(SHAPE)
    x = layers.Flatten()(inputs)
    members = [layers.Dense(3, "softmax")(x) for _ in range(2)]
    return keras.Model(inputs, layers.Average()(members))


LOGARITHMS = {
    "average": average,
    "pooling": lambda: ended(
        layers.Conv2D(3, 1, activation="softmax"),
        layers.GlobalAveragePooling2D(),
    ),
    "hard sigmoid": lambda: flat(activation="hard_sigmoid"),
    "another axis": lambda: flat(
        layers.Reshape((3, 2)), layers.Softmax(1), layers.Flatten(), classes=6
    ),
    "percent": lambda: flat(layers.Softmax(), layers.Rescaling(100)),
    "Lambda": lambda: flat(
        layers.Lambda(lambda x: x * x / keras.ops.sum(x * x, 1, keepdims=True))
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        *sorted(LOGARITHMS.keys() - {"another axis", "pooling"}),
        pytest.param("another axis", marks=pytest.mark.slow),
        pytest.param("pooling", marks=pytest.mark.slow),
    ],
)
def test_the_logits_of_other_probabilities_are_logarithms(kind):
    model = LOGARITHMS[kind]()
    found = classifier(model)
    classes = model.output_shape[-1]
    assert_right(found, model, "log_probabilities", "unknown", classes)
    assert isinstance(found.function, keras.Model)
    logits = found.function(pixels())
    np.testing.assert_allclose(np.exp(logits), model(pixels()), 1e-5)


def test_the_logits_of_saturated_examples_are_finite():
    model = flat(activation="hard_sigmoid")
    model.layers[-1].bias.assign([9.0, 9.0, -9.0])
    found = classifier(model)
    assert np.isfinite(found.function(pixels())).all()
    np.testing.assert_array_equal(slopes(found.function, pixels()), 0)


@keras.saving.register_keras_serializable("tests")
class OwnDense(layers.Dense):
    """A layer with an activation before the last of its operations."""

    def call(self, inputs):
        return 2 * super().call(inputs)


@keras.saving.register_keras_serializable("tests")
class OwnInitializer(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, seed=1)


class Subclassed(keras.Model):
    def __init__(self, *last, key=None):
        super().__init__()
        self.flatten = layers.Flatten()
        self.dense = layers.Dense(3, bias_initializer="normal")
        self.last = last
        self.key = key

    def call(self, x):
        x = self.dense(self.flatten(x))
        for function in self.last:
            x = function(x)
        return x if self.key is None else {self.key: x, "pixels": x[:, None]}


def test_the_activation_of_a_users_layer_is_left_alone():
    model = ended(layers.Flatten(), OwnDense(3, "softmax"))
    assert_right(classifier(model), model, "log_probabilities", "unknown")


def test_a_copied_layer_needs_no_class_of_the_users():
    model = ended(
        layers.Flatten(),
        layers.Dense(3, "softmax", kernel_initializer=OwnInitializer()),
    )
    keras.saving.get_custom_objects().pop("tests>OwnInitializer")
    assert_right(classifier(model), model, "removed_ending", "softmax")


@pytest.mark.parametrize("key", [None, "scores"])
def test_a_subclassed_model(key):
    model = Subclassed(keras.ops.relu, key=key)
    found = classifier(model)
    assert found.function is model  # It is not built.
    model(pixels())
    found = classifier(model, key)
    assert (found.function is model) == (key is None)
    x = pixels()
    own = model(x) if key is None else model(x)["scores"]
    np.testing.assert_allclose(found.function(x), own, atol=1e-6)
    model = Subclassed(keras.ops.softmax, key=key)
    model(pixels())
    found = classifier(model, key)
    assert (found.logits, found.ends_in) == ("removed_ending", "softmax")
    assert found.input_shape == SHAPE
    assert probabilities.check(found, x) <= 1e-6
    np.testing.assert_allclose(
        found.function(x), model.dense(model.flatten(x)), atol=1e-5
    )


def heads(**more):
    inputs = keras.Input(SHAPE)
    x = layers.Flatten()(inputs)
    outputs = {
        "b": layers.Dense(3, "softmax", name="head")(x),
        "a": layers.Dense(3, name="before")(x),
    }
    return keras.Model(inputs, outputs | more)


def test_one_of_several_outputs_is_chosen():
    model = heads()
    with pytest.raises(
        ValueError, match=r"--output=a .* Received: outputs a, b$"
    ):
        classifier(model)
    for name in ("b", "head", "1"):
        found = classifier(model, name)
        assert (found.output, found.output_names) == ("b", ("a", "b"))
        assert_right(
            found, lambda x: model(x)["b"], "removed_ending", "softmax"
        )
    with pytest.raises(ValueError, match=r"outputs: a, b\. Received: output=c"):
        classifier(model, "c")


@pytest.mark.parametrize("structure", [lambda t: [t], lambda t: {"a": t}])
def test_a_list_or_dict_of_one_tensor_is_that_tensor(structure):
    inputs = keras.Input(SHAPE, name="a")
    outputs = layers.Dense(3)(layers.Flatten()(inputs))
    model = keras.Model(structure(inputs), structure(outputs))
    found = classifier(model)
    assert found.logits == "exact"
    (own,) = keras.tree.flatten(model(structure(pixels())))
    np.testing.assert_array_equal(found.function(pixels()), own)


def test_a_name_can_be_that_of_an_inner_layer():
    model = flat(layers.Activation("tanh"), layers.Dense(2))
    name = model.layers[-3].name
    found = classifier(model, name)
    assert found.output == name
    assert probabilities.called(found.function, pixels()).shape == (5, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: ended(), r"one number for each class.*\(None, 2, 2, 4\)"),
        (lambda: flat(lambda x: keras.ops.argmax(x, -1)), "outputs of int32"),
        (
            lambda: keras.Model(
                i := [keras.Input(SHAPE), keras.Input(SHAPE)],
                layers.Dense(3)(layers.Flatten()(layers.Add()(i))),
            ),
            "one batch of images, and nothing else. Received: inputs",
        ),
        (
            lambda: keras.Sequential(
                [
                    keras.Input((4,), dtype="uint8"),
                    layers.Embedding(256, 2),
                    layers.Flatten(),
                    layers.Dense(3),
                ]
            ),
            "input dtype is uint8",
        ),
        (
            lambda: keras.Sequential([layers.Dense(3, "softmax", name="d")]),
            "must be built, to remove its softmax",
        ),
        (lambda: 3, "Received: model=3"),
    ],
)
def test_other_models_are_rejected_in_one_line(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        classifier(model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nested", [False, True])
def test_integers_take_floats_where_a_layer_casts(nested):
    inputs = keras.Input(SHAPE, dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Dense(3, "softmax")(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    if nested:
        inputs = keras.Input(SHAPE, dtype="uint8")
        model = keras.Model(inputs, model(inputs))
    found = classifier(model)
    assert found.input_dtype == "uint8"
    assert isinstance(found.function, keras.Model) != nested
    x = np.round(255 * pixels())
    assert probabilities.check(found, x) <= 1e-6
    assert (slopes(found.function, x) != 0).any()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_has_its_tolerance(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = flat(activation="softmax")
        last = flat(layers.Activation("softmax", dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    for network in (model, last):
        found = classifier(network)
        assert found.logits == "removed_ending"
        difference = probabilities.check(found, pixels())
        assert difference <= probabilities.tolerance(found) <= 0.05


def test_dropout_and_batch_normalization_are_in_inference_mode():
    model = flat(
        layers.BatchNormalization(), layers.Dropout(0.5), layers.Softmax(),
        layers.Dropout(0.5),
    )  # fmt: skip
    assert_right(classifier(model), model, "removed_ending", "softmax")


def test_a_free_size_and_a_fixed_batch():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(inputs))
    model = keras.Model(inputs, layers.Softmax()(x))
    found = classifier(model)
    assert found.input_shape == (None, None, 3)
    assert probabilities.check(found, pixels()) <= 1e-6
    inputs = keras.Input(batch_shape=(2, *SHAPE))
    model = keras.Model(inputs, flat(activation="softmax")(inputs))
    found = classifier(model)
    assert probabilities.called(found.function, pixels()).shape == (5, 3)
    assert probabilities.check(found, pixels()) <= 1e-6


def test_names_are_not_used_twice():
    """The softmax's layer also attends to the pixels."""
    inputs = keras.Input((3,))
    shared = layers.Dense(3, "softmax", name="dense")
    x = layers.Dense(3, name="dense_logits")(inputs * shared(inputs))
    model = keras.Model(inputs, shared(x))
    found = classifier(model)
    x = np.random.default_rng(0).random((5, 3)).astype("float32")
    assert found.logits == "removed_ending"
    assert probabilities.check(found, x) <= 1e-6


def test_a_callable_is_taken_for_logits():
    def function(x):
        return x

    found = classifier(function)
    assert found.function is function
    assert (found.logits, found.ends_in) == ("exact", "unknown")


# Layers that may follow a dense layer of three outputs.
STEPS = {
    "softmax": lambda: layers.Activation("softmax"),
    "sigmoid": lambda: layers.Activation("sigmoid"),
    "wrong axis": lambda: layers.Softmax(axis=1),
    "log_softmax": lambda: layers.Activation("log_softmax"),
    "hard_sigmoid": lambda: layers.Activation("hard_sigmoid"),
    "relu": lambda: layers.ReLU(),
    "dense": lambda: layers.Dense(3, "softmax"),
    "one": lambda: layers.Dense(1, "sigmoid"),
    "normalization": lambda: layers.BatchNormalization(),
    "dropout": lambda: layers.Dropout(0.5),
    "reshape": lambda: layers.Reshape((-1, 1)),
    "flat": lambda: layers.Flatten(),
    "pooling": lambda: layers.GlobalMaxPooling1D(),
    "half": lambda: layers.Rescaling(0.5),
    "nested": None,
}


def nested(shape, steps):
    """Puts layers after a dense layer, and those before "nested" in a model."""
    network = [keras.Input(shape), layers.Dense(3, bias_initializer="normal")]
    for step in steps:
        if step == "nested":
            network = [keras.Input(shape), keras.Sequential(network)]
        else:
            network.append(STEPS[step]())
    return keras.Sequential(network)


@settings(max_examples=examples(2))
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=5))
def test_the_logits_are_right_or_the_error_is_one_line(steps):
    keras.utils.set_random_seed(0)
    try:
        model = nested((4,), steps)
    except ValueError:
        return  # Keras itself rejects the layers.
    x = pixels(shape=(4,))
    own = np.asarray(model(x))
    try:
        found = classifier(model)
    except ValueError as error:
        assert "\n" not in str(error)
        assert own.ndim > 2 or own.shape[1] == 1
        return
    own = own.reshape(5, -1)
    z = np.asarray(found.function(x))
    assert z.shape == (5, max(own.shape[1], 2))
    assert np.isfinite(z).all()
    assert probabilities.check(found, x) <= 1e-6
    if own.shape[1] > 1:
        chosen = np.take_along_axis(own, np.argmax(z, 1)[:, None], 1)
        np.testing.assert_allclose(chosen[:, 0], own.max(1), rtol=1e-6)
    if found.logits == "exact" and own.any():
        sums = own.sum(axis=1)
        assert own.min() < 0 or own.shape[1] == 1 or sums.min() < sums.max()
