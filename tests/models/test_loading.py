"""Models from files, as functions from pixels in [0, 1] to logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfsam
from tfsam.models import pixel_ranges
from tfsam.models.fingerprints import from_file
from tfsam.models.loading import load_logits
from tfsam.models.loading import open_model


def small(activation=None, first=()):
    keras.utils.set_random_seed(0)
    parts = [layers.Flatten(), layers.Dense(3, activation)]
    return keras.Sequential([keras.Input((8, 8, 1)), *first, *parts])


def images(count=5):
    return np.random.default_rng(0).random((count, 8, 8, 1), dtype="float32")


@pytest.fixture(params=[".keras", ".h5", ".model"])
def saved(request, tmp_path):
    """A function that saves a model under a name, and returns the path."""

    def save(model):
        path = tmp_path / f"saved{request.param}"
        written = path.with_suffix(
            ".h5" if path.suffix != ".keras" else ".keras"
        )
        model.save(written)
        return written.rename(path)

    return save


@pytest.mark.parametrize("pixels", ["0..1", "0..255", "-1..1", "0.3/0.2"])
@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_a_file_gives_logits_of_pixels(saved, pixels, tmp_path):
    model = small("softmax")
    loaded = tfsam.models.load(saved(model), pixels)
    x = tf.constant(images())
    given = x
    for step in pixel_ranges.parse(pixels).steps():
        given = step(given)
    logits = loaded(x)
    assert logits.shape == (5, 3)
    np.testing.assert_allclose(tf.nn.softmax(logits), model(given), atol=1e-6)
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(again(x), logits, rtol=1e-5, atol=1e-5)


def test_a_layer_tells_the_range_where_none_is_given():
    for first, scale in ([], 1), ([layers.Rescaling(1 / 255)], 255):
        model = small(first=first)
        found = tfsam.models.load(model)(images())
        np.testing.assert_allclose(found, model(scale * images()), rtol=1e-5)


def test_a_model_in_memory_is_left_alone():
    model = small("softmax")
    x, before = images(), model(images())
    loaded = tfsam.models.load(model)
    assert isinstance(loaded, keras.Model) and loaded is not model
    np.testing.assert_array_equal(model(x), before)
    result = tfsam.evaluate(loaded, (x, np.arange(5) % 3), [])
    assert "model" not in result


@pytest.mark.parametrize("given", [3, None, len])
def test_other_things_are_refused(given):
    with pytest.raises(ValueError, match="a path or a Keras model"):
        tfsam.models.load(given)


def loading_of(path, pixels="0..1", shape=None, output=None):
    opened = open_model(path, output)
    return opened.fitted(pixel_ranges.parse(pixels), shape).identity()


def test_cache_keys(saved):
    """Plain files have the keys of 0.1.0; other options change the key."""
    plain = saved(small())
    assert loading_of(plain) == from_file(plain, "keras")
    assert load_logits(plain).identity == from_file(plain, "keras")
    found = [
        loading_of(plain),
        loading_of(plain, "0..255"),
        loading_of(plain, "-1..1"),
        loading_of(plain, "tensorflow:identity"),
        loading_of(plain, shape=(16, 16, 1)),
        loading_of(plain, shape=(8, 8, 3)),
    ]
    assert all(found.count(key) == 1 for key in found)
    softmax = loading_of(saved(small("softmax")))
    assert softmax["loading"]["logits"] == "removed_ending"


def test_outputs_have_keys_of_their_own(tmp_path):
    inputs = keras.Input((8, 8, 1))
    flat = layers.Flatten()(inputs)
    heads = [layers.Dense(n, name=f"of_{n}")(flat) for n in (3, 4)]
    keras.Model(inputs, heads).save(tmp_path / "two.keras")
    first, second = (
        loading_of(tmp_path / "two.keras", output=name)
        for name in ("of_3", "of_4")
    )
    assert first != second
    loaded = tfsam.models.load(tmp_path / "two.keras", output="of_4")
    assert loaded(images()).shape == (5, 4)
