"""Models for batches of a fixed size, and models without images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam import run
from tfsam.models.loading import load_logits

pytestmark = pytest.mark.usefixtures("short_runs")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def signature(network, shape, dtype="float32"):
    @tf.function
    def function(pixels):
        return {"logits": network(tf.cast(pixels, tf.float32))}

    return function.get_concrete_function(tf.TensorSpec(shape, dtype, "pixels"))


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    """Returns a function that saves the network for inputs of a shape."""
    folder = tmp_path_factory.mktemp("saved")

    def save(shape, dtype="float32"):
        path = folder / f"{'_'.join(map(str, shape))}-{dtype}"
        if not path.exists():
            tf.saved_model.save(
                network, path, signatures=signature(network, shape, dtype)
            )
        return path

    return save


def exported(network, path, size):
    """A Keras export with one endpoint, of a fixed batch."""
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(
        "serve", network.call, [tf.TensorSpec([size, 8, 8, 1])]
    )
    archive.write_out(path, verbose=False)
    return path


def rebuilt(network, size):
    inputs = keras.Input(batch_shape=(size, 8, 8, 1))
    return keras.Model(inputs, network(inputs))


@pytest.mark.parametrize("kind", ["signature", "export", "keras"])
@pytest.mark.filterwarnings("ignore:.*is a SavedModel")
def test_a_model_of_a_fixed_batch_takes_any(
    network, saved, digits, tmp_path, kind
):
    model = {
        "signature": lambda: saved((4, 8, 8, 1)),
        "export": lambda: exported(network, tmp_path / "export", 4),
        "keras": lambda: rebuilt(network, 4),
    }[kind]()
    x = digits[0][:9]
    logits = load_logits(model)
    np.testing.assert_allclose(logits(tf.constant(x)), network(x), atol=1e-5)
    assert logits(tf.constant(x[:0])).shape == (0, 10)


@pytest.mark.filterwarnings("ignore:.*is a SavedModel")
@pytest.mark.slow
def test_a_model_of_a_fixed_batch_is_attacked_as_the_network(
    network, saved, digits
):
    found, expected = (
        tfsam.evaluate(
            model,
            (digits[0][:9], digits[1][:9]),
            [("pgd", {"steps": 3})],
            "linf",
            [0.1],
            batch_size=6,
        )
        for model in (saved((4, 8, 8, 1)), network)
    )
    assert found["natural"] == expected["natural"]
    assert found["robust"][0]["accuracy"] == expected["robust"][0]["accuracy"]


def test_gradients_flow_through_the_parts(network, saved, digits):
    with pytest.warns(UserWarning, match="is a SavedModel"):
        logits = load_logits(saved((4, 8, 8, 1)))
    x = tf.constant(digits[0][:9])

    def gradient(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.square(function(x)))
        return tape.gradient(total, x)

    expected = gradient(network)
    for function in (logits, tf.function(logits)):
        np.testing.assert_allclose(gradient(function), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is a SavedModel")
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_pixels_are_cast_to_the_model_s_floats(network, saved, digits, dtype):
    logits = load_logits(saved((None, 8, 8, 1), dtype))
    x = tf.constant(digits[0][:3])
    np.testing.assert_allclose(logits(x), network(x), atol=1e-2)


def exported_signature(path, shape, dtype):
    """A SavedModel that returns some of its pixels as logits."""
    module = tf.Module()

    @tf.function
    def function(pixels):
        flat = tf.reshape(
            tf.cast(pixels, tf.float32), [tf.shape(pixels)[0], -1]
        )
        return {"logits": 20 * flat[:, :10] - 5}

    spec = tf.TensorSpec(shape, dtype, "pixels")
    signatures = function.get_concrete_function(spec)
    tf.saved_model.save(module, path, signatures=signatures)
    return path


@pytest.mark.filterwarnings("ignore:.*is a SavedModel")
@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((None, 8, 8, 1), "uint8", "pixels in 0..255"),
        ((2, 9, 9, 1), "float32", "8x8 are resized to 9x9"),
        ((None, 64), "float32", "its outputs are logits"),
    ],
)
def test_a_model_of_other_images_gets_them(
    shape, dtype, expected, tmp_path, capsys
):
    model = exported_signature(tmp_path / "m", shape, dtype)
    assert evaluated(tmp_path, model) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*is a SavedModel")
def test_a_model_of_other_inputs_is_refused_in_one_line(tmp_path, capsys):
    model = exported_signature(tmp_path / "m", (None, 50), "float32")
    assert evaluated(tmp_path, model) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of shape (50,), which is no square image" in line


def evaluated(tmp_path, model):
    return run.main(
        [
            *(f"--evaluate={model}", "--dataset=digits", "--limit_test=20"),
            *("--attacks=pgd", "--attack_steps=1", "--linf_epsilons=0.1"),
            *("--l2_epsilons=", "--nodiagnose"),
            f"--workdir={tmp_path / 'run'}",
        ]
    )


@pytest.mark.filterwarnings("ignore:.*is a SavedModel")
def test_the_command_takes_a_fixed_batch(saved, tmp_path, capsys):
    assert evaluated(tmp_path, saved((1, 8, 8, 1))) == 0
    assert "pgd" in capsys.readouterr().out


def function_of(count_inputs, count_outputs):
    specs = [tf.TensorSpec([None, 8, 8, 1])] * count_inputs

    @tf.function(input_signature=specs)
    def function(*images):
        flat = tf.reshape(images[0], [-1, 64])[:, :10]
        return {f"out{index}": flat for index in range(count_outputs)}

    return function


@pytest.mark.filterwarnings("ignore:.*is a SavedModel")
@pytest.mark.parametrize(
    ("signatures", "message"),
    [
        ({}, "Received: no signature"),
        ({"serving_default": (2, 1)}, "takes images_0, images_1"),
        ({"serving_default": (1, 2)}, "several outputs.*out0, out1"),
    ],
)
def test_a_model_without_one_function_is_refused(tmp_path, signatures, message):
    module = tf.Module()
    functions = {name: function_of(*n) for name, n in signatures.items()}
    for name, function in functions.items():
        setattr(module, name, function)
    tf.saved_model.save(module, tmp_path / "m", signatures=functions)
    with pytest.raises(ValueError, match=message):
        load_logits(tmp_path / "m")
