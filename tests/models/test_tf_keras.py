"""Mended models against tf_keras itself, the library of Keras 2."""

import importlib

import numpy as np
import pytest
import tensorflow as tf

from tfsam.models.files import reading

pytestmark = [pytest.mark.needs("tf_keras"), pytest.mark.slow]


@pytest.fixture(scope="module")
def k():
    return importlib.import_module("tf_keras")


def classifier(k, *layers, shape=(12, 12, 3)):
    last = [k.layers.Flatten(), k.layers.Dense(4, activation="softmax")]
    return k.Sequential([k.Input(shape), *layers, *last])


def on_images(k, function):
    inputs = k.Input((12, 12, 3))
    x = k.layers.Flatten()(function(inputs))
    return k.Model(inputs, k.layers.Dense(4)(x))


def transfer(k):
    """Transfer learning: preprocessing, a frozen backbone and a new head."""
    inputs = k.Input((32, 32, 3))
    x = k.applications.mobilenet_v2.preprocess_input(inputs)
    backbone = k.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None
    )
    backbone.trainable = False
    x = k.layers.GlobalAveragePooling2D()(backbone(x, training=False))
    return k.Model(inputs, k.layers.Dense(5, activation="softmax")(x))


def activations(k):
    layers = k.layers
    return classifier(
        k,
        layers.Conv2D(4, 3, activation=layers.LeakyReLU(0.1)),
        layers.PReLU(shared_axes=[1, 2]),
        layers.ThresholdedReLU(0.1),
        layers.Dense(3, activation="swish"),
        layers.Dense(3, activation="gelu"),
    )


def normalizations(k):
    layers = k.layers
    return classifier(
        k,
        layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]),
        layers.Conv2D(4, 3),
        layers.BatchNormalization(scale=False),
        layers.LayerNormalization(axis=[1, 2]),
        layers.GroupNormalization(2),
    )


def convolutions(k):
    layers = k.layers
    return classifier(
        k,
        layers.SeparableConv2D(4, 3, depth_multiplier=2),
        layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
        layers.Conv2D(4, 3, dilation_rate=2, padding="same", groups=2),
        layers.DepthwiseConv2D(3),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.AveragePooling2D(3, 2, "same"),
    )


def augmented(k):
    layers = k.layers
    flips = [layers.RandomFlip(), layers.RandomHeight(0.1)]
    return classifier(k, k.Sequential(flips), layers.Resizing(12, 12))


def attention(k):
    layers = k.layers

    def attended(x):
        x = layers.Reshape((12, 36))(x)
        return layers.MultiHeadAttention(2, 4)(x, value=x, key=x)

    return on_images(k, attended)


def shared(k):
    layers = k.layers
    inner = k.Sequential(
        [k.Input((12, 12, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    )
    return on_images(
        k, lambda x: layers.Concatenate()([inner(x), inner(layers.ReLU()(x))])
    )


def frozen_inside(k):
    layers = k.layers
    inner = [layers.Conv2D(4, 1), layers.BatchNormalization()]
    inner += [layers.Conv2D(4, 1), layers.BatchNormalization()]
    inner[1].trainable = inner[2].trainable = False
    return classifier(k, k.Sequential(inner), layers.ReLU())


def recurrent(k):
    layers = k.layers
    return k.Sequential(
        [
            k.Input((12, 12)),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.TimeDistributed(layers.Dense(3)),
            layers.GRU(3, reset_after=False),
        ]
    )


def several_outputs(k):
    inputs = k.Input((12, 12, 3))
    x = k.layers.Flatten()(inputs)
    outputs = {"a": k.layers.Dense(3)(x), "b": k.layers.Dense(4)(x)}
    return k.Model(inputs, outputs)


def application(name, size=32):
    def make(k):
        return getattr(k.applications, name)(
            weights=None, classes=4, input_shape=(size, size, 3)
        )

    return make


def randomized(model):
    """Weights such that no two layers are alike."""
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if "float" not in weight.dtype.name:
            continue
        value = weight.numpy()
        if "variance" in weight.name:
            weight.assign(generator.uniform(0.5, 1.5, value.shape))
        else:
            weight.assign(value + generator.normal(0, 0.02, value.shape))
    return model


@pytest.mark.parametrize(
    "make",
    [
        transfer,
        activations,
        normalizations,
        convolutions,
        augmented,
        attention,
        shared,
        frozen_inside,
        recurrent,
        several_outputs,
        application("DenseNet121"),
        application("MobileNetV3Small"),
        application("EfficientNetB0"),
    ],
)
def test_the_same_function(make, k, tmp_path):
    """In both formats, which hold the same layers: large networks in one."""
    model = randomized(make(k))
    x = np.random.default_rng(1).random((2, *model.input_shape[1:]), "float32")
    wanted = model(x, training=False)
    wanted = wanted if isinstance(wanted, dict) else {"": wanted}
    for suffix in ("keras",) if len(model.layers) > 50 else ("h5", "keras"):
        path = tmp_path / f"model.{suffix}"
        model.save(path)
        found = reading.read(path.rename(tmp_path / suffix))
        assert found.reader == "keras"
        outputs = found.model(x, training=False)
        outputs = outputs if isinstance(outputs, dict) else {"": outputs}
        for name, value in wanted.items():
            np.testing.assert_allclose(
                outputs[name], value, rtol=1e-4, atol=1e-5, err_msg=suffix
            )


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_layers_that_only_keras_2_has(suffix, k, tmp_path):
    model = classifier(
        k,
        k.layers.LocallyConnected2D(2, 3),
        k.layers.Activation("hard_sigmoid"),
    )
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    found = reading.read(path)
    assert found.reader == "tf_keras"
    assert found.notes[0].startswith("tf_keras read it, not Keras 3: layer ")
    x = np.random.default_rng(1).random((2, 12, 12, 3), "float32")
    np.testing.assert_allclose(found.model(x), model(x), rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_saved_models(momentum, k, tmp_path):
    model = classifier(k, k.layers.Conv2D(2, 3), k.layers.BatchNormalization())
    model.compile(k.optimizers.legacy.SGD(0.1, momentum), "mse")
    model.fit(np.zeros((4, 12, 12, 3)), np.zeros((4, 4)), verbose=0)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="is a SavedModel"):
        found = reading.read(tmp_path / "model").model
    x = np.random.default_rng(1).random((2, 12, 12, 3), "float32")
    (served,) = found.signatures["serving_default"](tf.constant(x)).values()
    np.testing.assert_allclose(served, model(x), rtol=1e-5)
