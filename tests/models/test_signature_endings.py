"""Logits of SavedModels, of every kind that TensorFlow has written."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsam.models import probabilities
from tfsam.models.endings import classifier

SHAPE = (4, 4, 1)
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(16, 3)).astype("float32")
X = RANDOM.random((5, *SHAPE)).astype("float32")


def slopes(function, x):
    @tf.function(autograph=False)
    def compute(x):
        return tf.gradients(probabilities.called(function, x)[:, -1], x)[0]

    return compute(tf.constant(x)).numpy()


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


def saved(tmp_path, *, batch=None, dtype=tf.float32, **signatures):
    """Saves functions of a module and the images, and loads them."""
    module = Module()
    spec = tf.TensorSpec((batch, *SHAPE), dtype, "pixels")

    def concrete(function):
        traced = tf.function(lambda pixels: function(module, pixels))
        return traced.get_concrete_function(spec)

    made = {name: concrete(f) for name, f in signatures.items()}
    tf.saved_model.save(module, tmp_path / "saved", signatures=made)
    return tf.saved_model.load(tmp_path / "saved")


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


@pytest.mark.parametrize("kind", SOFTMAX)
def test_a_softmax_of_a_graph_is_removed(kind, tmp_path):
    found = classifier(saved(tmp_path, serving_default=SOFTMAX[kind]))
    assert found.output_names == ("y",)
    assert_right(found, "removed_ending", "softmax")


def test_a_sigmoid_of_a_graph_is_removed(tmp_path):
    def several(m, x):
        return {"y": tf.sigmoid(m.logits(x))}

    def one(m, x):
        return {"y": tf.sigmoid(m.logits(x)[:, :1])}

    found = classifier(saved(tmp_path / "n", serving_default=several))
    assert_right(found, "removed_ending", "sigmoid")
    found = classifier(saved(tmp_path / "1", serving_default=one))
    assert_right(
        found,
        "removed_ending",
        "sigmoid",
        logits=lambda x: np.stack([np.zeros(5), expected(x)[:, 0]], 1),
    )


def test_an_attention_is_no_ending(tmp_path):
    found = classifier(
        saved(tmp_path, serving_default=lambda m, x: {"y": m.logits(x)})
    )
    assert_right(found, "exact", "unknown")


def test_an_average_of_softmaxes_has_logarithms(tmp_path):
    def average(m, x):
        softmax = tf.nn.softmax(m.logits(x))
        return {"y": (softmax + tf.nn.softmax(m.logits(x))) / 2}

    found = classifier(saved(tmp_path, serving_default=average))
    assert_right(
        found,
        "log_probabilities",
        "unknown",
        logits=lambda x: tf.nn.log_softmax(expected(x)),
    )
    assert probabilities.saturated(found, X) == 0
    assert probabilities.saturated(found, 1e4 * X) == 5
    assert "gradients vanish" in found.notes[0]


@pytest.mark.parametrize("batch", [None, 2])
def test_integers_that_are_cast_take_floats(batch, tmp_path):
    def function(m, x):
        x = tf.image.resize(tf.cast(x, tf.float32) / 255, SHAPE[:2])
        return {"y": tf.nn.softmax(m.logits(x))}

    loaded = saved(
        tmp_path, batch=batch, dtype=tf.uint8, serving_default=function
    )
    found = classifier(loaded)
    assert found.input_dtype == "uint8"
    x = np.round(255 * X)
    assert_right(
        found, "removed_ending", "softmax", x, lambda x: expected(x / 255)
    )


def test_integers_in_the_computation_are_an_error(tmp_path):
    def function(m, x):
        return {"y": tf.nn.softmax(m.logits(tf.cast(x // 2, tf.float32)))}

    loaded = saved(tmp_path, dtype=tf.uint8, serving_default=function)
    with pytest.raises(ValueError, match=r"^input dtype is uint8.*uint8$"):
        classifier(loaded)


def test_a_fixed_batch_takes_any(tmp_path):
    loaded = saved(tmp_path, batch=2, serving_default=SOFTMAX["softmax"])
    assert_right(classifier(loaded), "removed_ending", "softmax")


def test_the_output_called_logits_is_taken(tmp_path):
    def function(m, x):
        z = m.logits(x)
        return {"probabilities": tf.nn.softmax(z), "logits": z}

    loaded = saved(tmp_path, infer=function)
    found = classifier(loaded)
    assert_right(found, "exact", "logits")
    assert found.output == "logits"
    assert set(found.output_names) == {"probabilities", "logits"}
    found = classifier(loaded, "infer:probabilities")
    assert_right(found, "removed_ending", "softmax")
    with pytest.raises(ValueError, match=r"logits, probabilities\. Rec.*=no$"):
        classifier(loaded, "no")


def test_several_signatures_are_named(tmp_path):
    loaded = saved(tmp_path, a=SOFTMAX["softmax"], b=SOFTMAX["by hand"])
    with pytest.raises(ValueError, match=r"--output=a .* Received: a:y, b:y$"):
        classifier(loaded)
    found = classifier(loaded, "b")
    assert found.output == "b:y"
    assert_right(found, "removed_ending", "softmax")


def test_the_largest_scores_are_not_those_of_the_classes(tmp_path):
    def top(m, x):
        best = tf.nn.top_k(tf.nn.softmax(m.logits(x)), 3)
        return {"scores": best.values, "classes": best.indices}

    loaded = saved(tmp_path, serving_default=top)
    with pytest.raises(ValueError, match="Received: the largest numbers, in"):
        classifier(loaded)


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
    """As TensorFlow Hub has them."""
    module = Module()
    call = tf.function(
        lambda x, training=False: tf.nn.softmax(module.logits(x)),
        autograph=False,
    )
    call.get_concrete_function(tf.TensorSpec((None, *SHAPE)), training=False)
    module.__call__ = call
    tf.saved_model.save(module, tmp_path)
    found = classifier(tf.saved_model.load(tmp_path))
    assert_right(found, "removed_ending", "softmax")
