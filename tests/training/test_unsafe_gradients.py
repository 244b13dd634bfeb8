"""Layers with a gradient that writes past its memory in oneDNN."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfsam
from tfsam.support.onednn import copies_of_one
from tfsam.support.onednn import unsafe_gradients

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def strided(channels=4, size=1, strides=2, trainable=True):
    return keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            layers.Conv2D(
                4, size, strides, padding="same", trainable=trainable, name="c"
            ),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


@pytest.fixture
def onednn(monkeypatch):
    """As on a CPU with TensorFlow's default, wherever the tests run."""
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [])


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, ["c"]),
        ({"strides": (1, 3)}, ["c"]),
        ({"channels": 15}, ["c"]),
        ({"channels": 16}, []),
        ({"strides": 1}, []),
        ({"size": 3}, []),
        ({"trainable": False}, []),
    ],
)
def test_layers_with_an_unsafe_gradient_are_found(settings, found):
    network = strided(**settings)
    nested = keras.Sequential([keras.Input(network.input_shape[1:]), network])
    assert unsafe_gradients(network) == found
    assert unsafe_gradients(nested) == found


@pytest.mark.parametrize(
    ("layer", "channels", "unsafe"),
    [
        (layers.Conv2DTranspose(15, 1, 2), 32, True),
        (layers.Conv2DTranspose(16, 1, 2), 4, False),
        (layers.DepthwiseConv2D(1, 2), 1, True),
        (layers.DepthwiseConv2D(1, 2), 2, False),
        (layers.SeparableConv2D(4, 1, 2), 1, True),
        (layers.SeparableConv2D(4, 3, 2), 1, False),
        (layers.AveragePooling2D(1, 2), 4, False),
    ],
)
def test_other_kinds_of_layers_are_told_apart(layer, channels, unsafe):
    network = keras.Sequential([keras.Input((8, 8, channels)), layer])
    assert bool(unsafe_gradients(network)) == unsafe


def fitted(network, **settings):
    model = tfsam.RobustModel(network)
    model.compile("sgd", LOSS, **settings)
    model.fit(np.zeros((2, 8, 8, 4)), np.arange(2), verbose=0)


def test_training_warns_of_them_by_name(onednn):
    with pytest.warns(UserWarning, match="layers c are 1x1 conv.*ONEDNN_OPTS"):
        fitted(strided(), run_eagerly=True)


def test_a_landscape_warns_of_them(onednn):
    data = np.zeros((2, 8, 8, 4), "float32"), np.arange(2)
    with pytest.warns(UserWarning, match="layers c are"):
        tfsam.Landscape(strided(), data)


def test_training_does_not_warn_where_they_are_safe(onednn, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fitted(strided(), jit_compile=True)
        fitted(strided(size=2), run_eagerly=True)
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
        fitted(strided(), run_eagerly=True)


def test_one_example_is_repeated_where_its_gradient_is_unsafe(onednn):
    assert copies_of_one(strided(size=3)) == 1
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    copies = copies_of_one(strided())
    assert copies == threads if threads else copies >= 1
