"""The line of an error's message that states the reason."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsam.models.loading import load_logits
from tfsam.support import files


class Unregistered(keras.layers.Layer):
    """A custom layer that is unknown when the file is loaded."""

    def call(self, x):
        return x


def unregistered_activation(x):
    return x


def sequential(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (lambda: sequential(Unregistered()), "Unregistered"),
        (lambda: sequential(sequential(Unregistered())), "Unregistered"),
        (
            lambda: sequential(
                keras.layers.Dense(2, activation=unregistered_activation)
            ),
            "unregistered_activation",
        ),
    ],
)
def test_an_unregistered_part_of_a_file_is_named(tmp_path, network, name):
    path = tmp_path / "model.keras"
    network().save(path)
    with pytest.raises(ValueError, match=r"not locate|not registered") as error:
        load_logits(path)
    text = str(error.value)
    assert name in text
    assert "config" not in text
    assert text.endswith(f"Received: model={path}")


def raised(function):
    with pytest.raises(Exception) as error:
        function()
    return files.reason(error.value)


def test_a_layer_that_refuses_its_input_says_why():
    network = keras.Sequential([keras.layers.Dense(2)])
    network.build((None, 4))
    found = raised(lambda: network(np.zeros((1, 5), "float32")))
    assert "expected axis -1 of input shape to have value 4" in found
    assert "\x1b" not in found


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_error_in_a_graph_says_why(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def function(x):
        return tf.reshape(x, [x[0], 2])

    found = raised(lambda: function(tf.constant([3, 1, 1, 1])))
    assert "4" in found and "6" in found
    assert "{{" not in found and "[[" not in found and "Op:" not in found


def test_an_operation_s_error_keeps_its_line():
    def divided():
        return tf.reshape(tf.zeros(5), [2, 2])

    found = raised(divided)
    assert found.startswith("Input to reshape is a tensor with 5 values")
    assert found.endswith("4")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "ValueError"),
        ("  \n\n", "ValueError"),
        ("plain", "plain"),
        ("first\nsecond", "first"),
        ("Graph execution error:\n", "Graph execution error:"),
        (
            "2 root error(s) found.\n  (0) INTERNAL: no {{node a/b}} room\n"
            "\t [[{{node a/b}}]]\n  (1) INTERNAL: other",
            "no room",
        ),
        (
            "Graph execution error:\n\nDetected at node a defined at (most "
            'recent call last):\n  File "a.py", line 1, in f\n\nreason',
            "reason",
        ),
        ("Received: x=[[1, 2], [3, 4]]", "Received: x=[[1, 2], [3, 4]]"),
    ],
)
def test_messages(text, expected):
    assert files.reason(ValueError(text)) == expected
