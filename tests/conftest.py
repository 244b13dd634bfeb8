"""One TensorFlow for all tests, with two logical CPU devices."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
import sklearn.datasets
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(scope="session")
def digits():
    """The reference's digits: 1200 to train, 597 to test, 200 attacked."""
    digits = sklearn.datasets.load_digits()
    images = (digits.images / 16).astype("float32")[..., None]
    return images, digits.target.astype("int64")
