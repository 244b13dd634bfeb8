"""Attack a model behind a defence that has no gradient.

  python attack_a_defended_model.py

The model is a small network for digits, which this script trains in seconds.
Two defences are put in front of it, one at a time:

  quantisation  to eighths. Its gradient is zero everywhere, so that a gradient
                attack stays where it starts: the accuracy under attack looks
                high, and the warning zero_gradients gives the reason.
  JPEG          by Pillow, a program that TensorFlow cannot differentiate. The
                attack fails, with the warning no_gradients.

Neither makes the network robust. `tfsam.bpda` runs the defence in the forward
pass and the identity in the backward pass (Athalye et al., 2018), and the same
attack then breaks both. With a defence of your own, replace `DEFENCES`. If the
defence changes the size of the images, or is far from the identity, give bpda a
differentiable approximation of it as the second argument.
"""

import io
import sys

import keras
import numpy as np
import PIL.Image
import tensorflow as tf
from absl import app

import tfsam

# In units of the pixels.
EPSILONS = [8 / 255, 16 / 255, 32 / 255]


def quantisation(x):
    """Rounds pixels down to eighths; the gradient is 1 - 1."""
    return x - x % 0.125


def compress(images):
    """Compresses and decompresses images, float arrays in [0, 1]."""
    found = np.empty_like(images)
    for index, image in enumerate(images):
        pixels = np.round(255 * image[..., 0]).astype("uint8")
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=75)
        found[index, ..., 0] = np.asarray(PIL.Image.open(file)) / 255
    return found


def jpeg(x):
    """Calls the program from within TensorFlow's graphs."""
    return tf.ensure_shape(tf.numpy_function(compress, [x], x.dtype), x.shape)


DEFENCES = {"quantisation": quantisation, "JPEG": jpeg}


def train(x, y):
    """Returns a network without a defence."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("adam", loss)
    network.fit(x, y, epochs=15, verbose=0)
    return network


def main(argv):
    """Prints a table for each defence, with its own gradient and with BPDA."""
    if len(argv) != 1:
        print("usage: python attack_a_defended_model.py", file=sys.stderr)
        return 2
    images = tfsam.data.load("digits", limit_train=1000, limit_test=150)
    network = train(tfsam.data.as_float(images.x_train), images.y_train)
    data = tfsam.data.as_float(images.x_test), images.y_test

    def evaluate(defence):
        # A function from pixels to logits is attacked like any model.
        result = tfsam.evaluate(
            lambda x: network(defence(x)),
            data,
            attacks=["pgd"],
            norm="linf",
            epsilons=EPSILONS,
        )
        print(tfsam.reports.table(result))

    print("## No defence\n")
    evaluate(lambda x: x)
    for name, defence in DEFENCES.items():
        print(f"\n## {name}, with its own gradient\n")
        evaluate(defence)
        print(f"\n## {name}, with tfsam.bpda\n")
        evaluate(tfsam.bpda(defence))
    return 0


if __name__ == "__main__":
    app.run(main)
