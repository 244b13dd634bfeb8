"""Tests of the vision transformer: by hand, in training, and from a file."""

import keras
import numpy as np
import pytest

import tfsam
from tfsam import networks

SMALL = {"width": 8, "depth": 1, "heads": 2, "input_shape": (8, 8, 3)}


def pixels(count=2, shape=(8, 8, 3)):
    return np.random.default_rng(0).random((count, *shape), dtype="float32")


def test_number_of_weights():
    network = networks.vision_transformer()
    trainable = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    assert trainable == 1_205_514


def test_patches_and_positions_by_hand():
    network = networks.vision_transformer(4, statistics="none", **SMALL)
    layer = network.get_layer("embedding")
    kernel, positions = (np.asarray(w) for w in layer.get_weights())
    x = pixels()
    found = keras.Model(network.inputs, layer.output)(x)
    assert positions.shape == (4, 8)
    for row in range(2):
        for column in range(2):
            rows = slice(4 * row, 4 * row + 4)
            patch = x[:, rows, 4 * column : 4 * column + 4].reshape(2, 48)
            token = 2 * row + column
            np.testing.assert_allclose(
                found[:, token], patch @ kernel + positions[token], atol=1e-5
            )


def test_an_example_does_not_depend_on_its_batch():
    network = networks.vision_transformer(4, **SMALL)
    x = pixels(4)
    np.testing.assert_allclose(
        network(x, training=True)[:1], network(x[:1]), atol=1e-5
    )


@pytest.mark.slow
def test_it_trains_by_sam_and_pgd():
    network = networks.vision_transformer(4, **SMALL)
    model = tfsam.RobustModel(
        network,
        perturb_inputs=tfsam.PGD(epsilon=2 / 255, steps=2),
        perturb_weights=tfsam.SAM(rho=0.05),
    )
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    y = np.arange(8) % 4
    history = model.fit(
        pixels(8), y, batch_size=8, epochs=8, shuffle=False, verbose=0
    )
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_it_loads_without_tfsam(tmp_path):
    network = networks.vision_transformer(4, **SMALL)
    network(pixels(8), training=True)
    path = tmp_path / "network.keras"
    network.save(path)
    loaded = keras.saving.load_model(path, custom_objects={}, compile=False)
    assert not any(
        type(layer).__module__.startswith("tfsam") for layer in loaded.layers
    )
    np.testing.assert_array_equal(loaded(pixels()), network(pixels()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "Received: width=8, heads=3"),
        ({"depth": 0}, "Received: depth=0"),
        ({"patch_size": 3}, "Received: patch_size=3, images of 8x8"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        networks.vision_transformer(4, **(SMALL | options))
