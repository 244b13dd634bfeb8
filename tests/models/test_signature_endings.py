"""Logits of SavedModels, of every kind that TensorFlow has written."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import examples
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfsam.models.logits import graphs
from tfsam.models.logits import probabilities
from tfsam.models.logits.endings import classifier

SHAPE = (4, 4, 1)
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(16, 3)).astype("float32")
X = RANDOM.random((5, *SHAPE)).astype("float32")


def slopes(function, x):
    """The gradient of the last logits."""
    pixels = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        last = probabilities.called(function, pixels)[:, -1]
    return tape.gradient(last, pixels).numpy()


def expected(x=X):
    return x.reshape(len(x), -1) @ WEIGHTS


def assert_right(found, how, ends_in, x=X, logits=expected):
    """The logits are right, up to a constant for each example."""
    assert (found.logits, found.ends_in) == (how, ends_in)
    values = found.function(x).numpy()
    np.testing.assert_allclose(values, logits(x), rtol=1e-4, atol=1e-5)
    assert probabilities.check(found, x) <= 1e-6
    assert (slopes(found.function, x) != 0).any()


class Module(tf.Module):
    """A linear model with attention in front, as a module."""

    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(WEIGHTS)

    def logits(self, x):
        flat = tf.reshape(x, [-1, 16])
        attention = tf.nn.softmax(flat @ tf.zeros([16, 2]))  # Of sum 1.
        return tf.reduce_sum(attention, 1, True) * (flat @ self.weights)


def loaded(*, shape=(None, *SHAPE), dtype=tf.float32, **signatures):
    """Takes the place of a loaded SavedModel, without a file."""
    module = Module()
    spec = tf.TensorSpec(shape, dtype, "pixels")

    def concrete(function):
        traced = tf.function(lambda pixels: function(module, pixels))
        return traced.get_concrete_function(spec)

    made = {name: concrete(f) for name, f in signatures.items()}
    return types.SimpleNamespace(signatures=made, module=module)


def saved(tmp_path, **signatures):
    """Saves functions of a module and the images, and loads them."""
    made = loaded(**signatures)
    path = tmp_path / "saved"
    tf.saved_model.save(made.module, path, signatures=made.signatures)
    return tf.saved_model.load(path)


def by_hand(module, x):
    z = module.logits(x)
    e = tf.exp(z - tf.reduce_max(z, -1, keepdims=True))
    return {"y": e / tf.reduce_sum(e, -1, keepdims=True)}


@tf.function
def called_function(z):
    return tf.nn.softmax(z)


SOFTMAX = {
    "softmax": lambda m, x: {"y": tf.nn.softmax(m.logits(x))},
    "kept": lambda m, x: {
        "y": tf.cast(
            tf.reshape(
                tf.identity(tf.nn.softmax(m.logits(x)[:, None])), [-1, 3, 1]
            ),
            tf.float64,
        )
    },
    "function": lambda m, x: {"y": called_function(m.logits(x))},
    "compiled": lambda m, x: {
        "y": tf.function(
            lambda x: called_function(m.logits(x)), jit_compile=True
        )(x)
    },
    "by hand": by_hand,
    "exponentials": lambda m, x: {"y": tf.exp(tf.nn.log_softmax(m.logits(x)))},
}


@pytest.mark.parametrize(
    "kind",
    [
        *sorted(SOFTMAX.keys() - {"compiled"}),
        pytest.param("compiled", marks=pytest.mark.slow),
    ],
)
def test_a_softmax_of_a_graph_is_removed(kind):
    found = classifier(loaded(serving_default=SOFTMAX[kind]))
    assert found.output_names == ("y",)
    assert_right(found, "removed_ending", "softmax")


def test_a_sigmoid_of_a_graph_is_removed():
    def several(m, x):
        return {"y": tf.sigmoid(m.logits(x))}

    def one(m, x):
        return {"y": tf.sigmoid(m.logits(x)[:, :1])}

    found = classifier(loaded(serving_default=several))
    assert_right(found, "removed_ending", "sigmoid")
    found = classifier(loaded(serving_default=one))
    assert_right(
        found,
        "removed_ending",
        "sigmoid",
        logits=lambda x: np.stack([np.zeros(5), expected(x)[:, 0]], 1),
    )


def test_an_attention_is_no_ending():
    found = classifier(loaded(serving_default=lambda m, x: {"y": m.logits(x)}))
    assert_right(found, "exact", "unknown")


def test_an_average_of_softmaxes_has_logarithms():
    def average(m, x):
        softmax = tf.nn.softmax(m.logits(x))
        return {"y": (softmax + tf.nn.softmax(m.logits(x))) / 2}

    found = classifier(loaded(serving_default=average))
    assert_right(
        found,
        "log_probabilities",
        "unknown",
        logits=lambda x: tf.nn.log_softmax(expected(x)),
    )
    assert np.isfinite(slopes(found.function, 1e4 * X)).all()
    assert "gradients vanish" in found.notes[0]


@pytest.mark.parametrize(
    "size", [2, pytest.param(None, marks=pytest.mark.slow)]
)
def test_integers_that_are_cast_take_floats(size):
    def function(m, x):
        x = tf.image.resize(tf.cast(x, tf.float32) / 255, SHAPE[:2])
        return {"y": tf.nn.softmax(m.logits(x))}

    found = classifier(
        loaded(shape=(size, *SHAPE), dtype=tf.uint8, serving_default=function)
    )
    assert found.input_dtype == "uint8"
    x = np.round(255 * X)
    assert_right(
        found, "removed_ending", "softmax", x, lambda x: expected(x / 255)
    )


def test_integers_in_the_computation_are_an_error():
    def function(m, x):
        return {"y": tf.nn.softmax(m.logits(tf.cast(x // 2, tf.float32)))}

    model = loaded(dtype=tf.uint8, serving_default=function)
    with pytest.raises(ValueError, match=r"^input dtype is uint8.*uint8$"):
        classifier(model)


def test_a_fixed_batch_takes_any():
    model = loaded(shape=(2, *SHAPE), serving_default=SOFTMAX["softmax"])
    assert_right(classifier(model), "removed_ending", "softmax")


def test_the_output_called_logits_is_taken():
    def function(m, x):
        z = m.logits(x)
        return {"probabilities": tf.nn.softmax(z), "logits": z}

    model = loaded(infer=function)
    found = classifier(model)
    assert_right(found, "exact", "logits")
    assert found.output == "logits"
    assert set(found.output_names) == {"probabilities", "logits"}
    found = classifier(model, "infer:probabilities")
    assert_right(found, "removed_ending", "softmax")
    with pytest.raises(ValueError, match=r"logits, probabilities\. Rec.*=no$"):
        classifier(model, "no")


def test_several_signatures_are_named():
    model = loaded(a=SOFTMAX["softmax"], b=SOFTMAX["by hand"])
    with pytest.raises(ValueError, match=r"--output=a .* Received: a:y, b:y$"):
        classifier(model)
    found = classifier(model, "b")
    assert found.output == "b:y"
    assert_right(found, "removed_ending", "softmax")


def test_the_largest_scores_are_not_those_of_the_classes():
    def top(m, x):
        best = tf.nn.top_k(tf.nn.softmax(m.logits(x)), 3)
        return {"scores": best.values, "classes": best.indices}

    model = loaded(serving_default=top)
    with pytest.raises(ValueError, match="Received: the largest numbers, in"):
        classifier(model)


def test_no_signature_of_images_is_one_line(tmp_path):
    module = tf.Module()
    module.decode = tf.function(
        lambda files: {"y": tf.map_fn(
            lambda f: tf.cast(tf.io.decode_jpeg(f), tf.float32), files,
            fn_output_signature=tf.float32,
        )},
        input_signature=[tf.TensorSpec([None], tf.string)],
    )  # fmt: skip
    tf.saved_model.save(module, tmp_path, signatures={"serve": module.decode})
    with pytest.raises(
        ValueError, match="Received: serve takes strings, such as encoded"
    ) as caught:
        classifier(tf.saved_model.load(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_switch_of_training_is_off(tmp_path):
    module = Module()

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *SHAPE)),
            tf.TensorSpec([], tf.bool, "is_training"),
            tf.TensorSpec([], tf.float32, "keep_prob"),
        ]
    )
    def infer(x, is_training, keep_prob):
        z = module.logits(x) / keep_prob
        z = tf.cond(is_training, lambda: 0.0 * z, lambda: z)
        return {"y": tf.nn.softmax(z)}

    tf.saved_model.save(module, tmp_path, signatures={"infer": infer})
    found = classifier(tf.saved_model.load(tmp_path))
    assert_right(found, "removed_ending", "softmax")


def test_a_model_of_tensorflow_1(tmp_path):
    """Variables are references there, and strings are served."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, [None, 16], "x")
        weights = v1.get_variable("w", initializer=WEIGHTS, use_resource=False)
        scores = tf.nn.softmax(tf.matmul(images, weights), name="y")
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def(
            {"images": images}, {"scores": scores}
        )
        builder = v1.saved_model.Builder(str(tmp_path / "v1"))
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"predict_images": signature}
        )
        builder.save()
    found = classifier(tf.saved_model.load(tmp_path / "v1"))
    assert found.input_shape == (16,)
    assert_right(found, "removed_ending", "softmax", X.reshape(5, 16))


def test_a_keras_export(tmp_path):
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax", use_bias=False),
        ]
    )
    model.set_weights([WEIGHTS])
    model.export(tmp_path / "export", verbose=False)
    found = classifier(tf.saved_model.load(tmp_path / "export"))
    assert_right(found, "removed_ending", "softmax")


def test_a_function_without_signatures(tmp_path):
    """As TensorFlow Hub has them, traced for training, too."""
    module = Module()

    def call(x, training=False):
        return tf.nn.softmax(module.logits(x) * (0.0 if training else 1.0))

    module.__call__ = tf.function(call, autograph=False)
    for training in (True, False):
        module.__call__.get_concrete_function(
            tf.TensorSpec((None, *SHAPE)), training=training
        )
    tf.saved_model.save(module, tmp_path)
    found = classifier(tf.saved_model.load(tmp_path))
    assert_right(found, "removed_ending", "softmax")


def loop(m, x):
    z = tf.while_loop(
        lambda i, z: i < 3, lambda i, z: (i + 1, 2 * z), [0, m.logits(x)]
    )[1]
    return tf.cond(tf.shape(x)[0] > 9, lambda: z * 0, lambda: z / 8)


@tf.custom_gradient
def doubled_gradient(z):
    return tf.identity(z), lambda upstream: 2 * upstream


@pytest.mark.parametrize(
    "values",
    [
        loop,
        lambda m, x: tf.nn.silu(m.logits(x)),
        lambda m, x: tf.identity(doubled_gradient(m.logits(x))),
    ],
    ids=["loop and condition", "lost gradient", "stored gradient"],
)
def test_gradients_flow_through(values, tmp_path):
    """Gradients of a loaded function are right, also if they are not stored."""
    model = saved(
        tmp_path,
        serving_default=lambda m, x: {"y": tf.nn.softmax(values(m, x))},
    )
    found = classifier(model)
    module = Module()
    assert_right(
        found, "removed_ending", "softmax", logits=lambda x: values(module, x)
    )
    own = slopes(lambda x: values(module, x), X)
    np.testing.assert_allclose(slopes(found.function, X), own, rtol=1e-4)


def test_numbers_without_an_axis_of_classes_are_those_of_class_1():
    def function(m, x):
        return {"y": tf.sigmoid(m.logits(x)[:, 0])}

    found = classifier(loaded(serving_default=function))
    assert_right(
        found,
        "removed_ending",
        "sigmoid",
        logits=lambda x: np.stack([np.zeros(5), expected(x)[:, 0]], 1),
    )


def test_shapes_that_the_graph_does_not_tell():
    def function(m, x):
        z = m.logits(x)
        return {"y": tf.reshape(tf.nn.softmax(z), tf.shape(z) * tf.size([1]))}

    found = classifier(loaded(serving_default=function))
    assert_right(found, "removed_ending", "softmax")


def test_images_of_an_unknown_rank():
    found = classifier(loaded(shape=None, serving_default=SOFTMAX["softmax"]))
    assert found.input_shape == ()
    assert_right(found, "removed_ending", "softmax")


def test_half_precision_has_its_tolerance():
    def function(m, x):
        z = m.logits(tf.cast(x, tf.float32))
        return {"y": tf.nn.softmax(tf.cast(z, tf.float16))}

    found = classifier(loaded(dtype=tf.float16, serving_default=function))
    assert found.function(X).dtype == tf.float32
    difference = probabilities.check(found, X)
    assert difference <= probabilities.tolerance(found) <= 0.01


def test_one_image_without_a_batch_is_rejected():
    def function(m, x):
        return {"y": tf.nn.softmax(m.logits(x))}

    model = loaded(shape=SHAPE, serving_default=function)
    with pytest.raises(ValueError, match=r"outputs of shape \(.*, 3\)$"):
        classifier(model)


def test_a_graph_that_cannot_be_inlined_has_logarithms(monkeypatch):
    def fail(*args):
        raise RuntimeError("not this graph")

    monkeypatch.setattr(graphs.tf_optimizer, "OptimizeGraph", fail)
    model = loaded(serving_default=SOFTMAX["function"])
    found = classifier(model)
    assert_right(
        found,
        "log_probabilities",
        "unknown",
        logits=lambda x: tf.nn.log_softmax(expected(x)),
    )
    assert "not this graph" in found.notes[0]


# Functions from logits, the kind of ending that they are, and the logits that
# remain.
STEPS = {
    "softmax": tf.nn.softmax,
    "sigmoid": tf.sigmoid,
    "exp": tf.exp,
    "log_softmax": tf.nn.log_softmax,
    "half": lambda z: z / 2,
    "identity": tf.identity,
    "column": lambda z: z[..., None] if len(z.shape) == 2 else z,
    "row": lambda z: z[:, None] if len(z.shape) == 2 else z,
    "flat": lambda z: tf.reshape(z, [-1, 3]),
    "double": lambda z: tf.cast(z, tf.float64),
    "first": lambda z: z[:, :1],
    "square": lambda z: z[:, None] * z[:, :, None],
    "label": lambda z: tf.argmax(z, -1),
}


@settings(max_examples=examples(2))
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=5))
@example(["exp", "exp", "exp", "sigmoid"])
def test_the_logits_are_right_or_the_error_is_one_line(steps):
    def function(m, x):
        z = m.logits(x)
        for step in steps:
            z = STEPS[step](z)
        return {"y": z}

    try:
        model = loaded(serving_default=function)
    except (ValueError, TypeError, tf.errors.OpError):
        return  # TensorFlow itself rejects the steps.
    try:
        found = classifier(model)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    z = found.function(X)
    own = np.reshape(found.outputs(X), (5, -1))
    assert z.shape == (5, max(own.shape[1], 2))
    if not np.isfinite(own).all():
        return  # The model's own fault.
    if np.isinf(z).any():
        # They overflow before the sigmoid, which hides it.
        assert np.isin(own[np.isinf(z[:, -own.shape[1] :])], [0, 1]).all()
        return
    assert np.isfinite(z).all()
    assert probabilities.check(found, X) <= 1e-6
    if own.shape[1] > 1:
        chosen = np.take_along_axis(own, np.argmax(z, 1)[:, None], 1)
        np.testing.assert_allclose(chosen[:, 0], own.max(1), rtol=1e-6)
    last = [step for step in steps if step in ("softmax", "sigmoid")]
    if found.ends_in in ("softmax", "sigmoid") and last:
        assert found.ends_in == last[-1]


@pytest.mark.parametrize(
    ("shape", "axis", "result"),
    [
        ((None, 3), -1, True),
        ((None, 3), 1, True),
        ((None, 1, 3), [-1], True),
        ((None, 3, 1), 1, True),
        ((None, 3, 1), -1, False),  # It is 1 everywhere.
        ((None, 3), 0, False),
        ((3, 3), 0, False),
        ((None, 2, 3), -1, False),  # The classes are six.
        ((None, None), -1, False),
        ((None, 3), (0, 1), False),
        ((None, 3), None, False),
    ],
)
def test_a_softmax_is_over_all_classes_or_stays(shape, axis, result):
    assert graphs.over_classes(shape, axis, 3) == result


def test_a_quotient_by_another_sum_is_no_softmax():
    def function(m, x):
        e = tf.exp(m.logits(x))
        return {"y": e / (1 + tf.reduce_sum(e, -1, keepdims=True))}

    found = classifier(loaded(serving_default=function))
    assert found.logits != "removed_ending"

    def other(m, x):
        z = m.logits(x)
        return {"y": tf.exp(z) / tf.reduce_sum(tf.exp(2 * z), 1, True)}

    found = classifier(loaded(serving_default=other))
    assert found.logits != "removed_ending"
