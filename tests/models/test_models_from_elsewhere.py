"""Networks of other origin: wrapped, trained, attacked, exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfsam

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mobile_net():
    """A network of keras.applications with `classifier_activation=None`."""
    return keras.applications.MobileNet(
        (64, 64, 3),
        alpha=0.25,
        weights=None,
        classes=5,
        classifier_activation=None,
    )


def with_a_backbone():
    """A functional model in another, as in KerasHub and keras_cv."""
    inner = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, padding="same", use_bias=False)(inner)
    x = layers.BatchNormalization()(x)
    backbone = keras.Model(inner, layers.ReLU()(x), name="backbone")
    inputs = keras.Input((64, 64, 3))
    x = backbone(layers.Rescaling(2.0, offset=-1.0)(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5)(layers.Dropout(0.1)(x)))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A subclassed model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(4, 5, 4)
        self.normalization = layers.BatchNormalization()
        self.head = layers.Dense(5)

    def call(self, inputs, training=None):
        x = self.normalization(self.convolution(inputs), training=training)
        return self.head(keras.ops.mean(keras.ops.relu(x), axis=(1, 2)))


def from_a_file(tmp_path):
    """A user's .keras file."""
    with_a_backbone().save(tmp_path / "theirs.keras")
    return keras.saving.load_model(tmp_path / "theirs.keras")


def batch(shape, classes, count=6):
    generator = np.random.default_rng(0)
    x = generator.random((count, *shape)).astype("float32")
    return x, np.arange(count) % classes


def fitted(network, x, y, **parts):
    model = tfsam.RobustModel(network, **parts)
    model.compile(tfsam.SGD(0.01), LOSS, metrics=["accuracy"])
    history = model.fit(x, y, batch_size=3, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    return model


def assert_serves(network, x, tmp_path):
    """The file and the export return its logits without tfsam."""
    wanted = np.array(network(x, training=False))
    network.save(tmp_path / "model.keras")
    network.export(tmp_path / "saved_model", verbose=False)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    served = tf.saved_model.load(tmp_path / "saved_model")
    for found in (loaded(x, training=False), served.serve(x)):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(mobile_net, marks=pytest.mark.slow),
        pytest.param(with_a_backbone, marks=pytest.mark.slow),
        Subclassed,
        # The model with a backbone.
        pytest.param(from_a_file, marks=pytest.mark.slow),
    ],
)
def test_wrap_train_evaluate_export(make, tmp_path):
    network = make(tmp_path) if make is from_a_file else make()
    x, y = batch((64, 64, 3), 5)
    if not network.built:
        network(x[:1])
    before = [np.array(w) for w in network.get_weights()]
    fitted(network, x, y, perturb_weights=tfsam.SAM(0.05))
    fitted(network, x, y, perturb_inputs=tfsam.PGD(4 / 255, steps=2))
    after = network.get_weights()
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
    found = tfsam.evaluate(
        network, (x, y), [("pgd", {"steps": 2})], epsilons=[0.0, 4 / 255]
    )
    clean, attacked = found["robust"]
    assert clean["accuracy"] == found["natural"]["accuracy"]
    assert attacked["max_perturbation"] <= 4 / 255 + 1e-6
    assert_serves(network, x, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, classes",
    [
        ((224, 224, 3), 1000),
        ((28, 28, 1), 2),
        ((9, 7, 3), 3),
    ],
)
def test_sizes_channels_and_classes(shape, classes):
    network = keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(4, 5, 4),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        ]
    )
    x, y = batch(shape, classes, count=3)
    fitted(
        network,
        x,
        y,
        perturb_inputs=tfsam.PGD(0.01, "l2", steps=1),
        perturb_weights=tfsam.SAM(0.05),
    )
    found = tfsam.evaluate(
        network, (x, y), [("apgd_ce", {"steps": 2})], epsilons=[0.01]
    )
    assert found["natural"]["n"] == 3
    assert "error" not in found["robust"][0]


def probabilities():
    """A network with a softmax at its end."""
    network = with_a_backbone()
    outputs = layers.Softmax()(network.output)
    return keras.Model(network.input, outputs)


def test_probabilities_are_noticed():
    network = probabilities()
    x, y = batch((64, 64, 3), 5)
    with pytest.raises(ValueError, match="return logits, not probabilities"):
        tfsam.evaluate(network, (x, y), ["fgsm"])
    model = tfsam.RobustModel(network, perturb_inputs=tfsam.FGSM(0.01))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    with pytest.raises(ValueError, match="take the softmax or sigmoid off"):
        model.fit(x, y, verbose=0)


def named_outputs():
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(inputs)
    outputs = {"class": layers.Dense(5)(x), "box": layers.Dense(4)(x)}
    return keras.Model(inputs, outputs)


def test_named_outputs_are_refused_where_one_tensor_of_logits_is_needed():
    network = named_outputs()
    x, y = batch((8, 8, 3), 5)
    with pytest.raises(ValueError, match=r"one tensor of logits.*a dict of 2"):
        tfsam.evaluate(network, (x, y), ["fgsm"])
    model = tfsam.RobustModel(network, perturb_inputs=tfsam.FGSM(0.01))
    model.compile("sgd", {"class": LOSS, "box": None})
    with pytest.raises(ValueError, match="one tensor of logits"):
        model.fit(x, {"class": y, "box": np.zeros((6, 4))}, verbose=0)
    # The one that classifies is a network of its own.
    alone = keras.Model(network.input, network.output["class"])
    fitted(alone, x, y, perturb_inputs=tfsam.FGSM(0.01))


def test_named_outputs_train_with_perturbed_weights():
    model = tfsam.RobustModel(named_outputs(), perturb_weights=tfsam.SAM(0.05))
    model.compile("sgd", {"class": LOSS, "box": "mse"})
    x, y = batch((8, 8, 3), 5)
    labels = {"class": y, "box": np.zeros((6, 4), "float32")}
    losses = model.fit(x, labels, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
