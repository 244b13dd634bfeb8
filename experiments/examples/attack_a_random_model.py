"""Attack a model that draws random numbers.

  python attack_a_random_model.py

The model is a small network for digits, which this script trains in seconds,
behind noise that is also drawn when the model is used. An attack that follows a
single draw of the noise fits its images to this draw, and most of them fail
under another one: the accuracy under attack is too high (the warning
single_draws), and that of AutoAttack has no meaning either.

An attack with eot=20 takes the mean of the gradient, the loss and the logits
over 20 draws in each step (Athalye et al., 2018); autoattack_rand is AutoAttack
for random models. The verdict for an image, natural ones too, is that of most
of 20 fresh draws (`draws`); their random numbers depend on the seed and the
index of the image alone. `spread` is the part of the draws that disagree with
their verdicts.

Draw random numbers by keras.random with a SeedGenerator, as below, or by
tf.random in a function that is not compiled: others cannot be set, so that
another run gives other verdicts (the warning draws_not_repeatable).
"""

import sys

import keras
import tensorflow as tf
from absl import app

import tfsam

# In units of the pixels.
EPSILON = 24 / 255
ATTACKS = ["pgd:steps=20", "pgd:steps=20:eot=20"]


class Noise(keras.layers.Layer):
    """Adds normal noise to the pixels, also in inference mode."""

    def __init__(self, size=0.3):
        super().__init__()
        self.size = size
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x):
        """Returns the pixels with fresh noise."""
        noise = keras.random.normal(tf.shape(x), seed=self.generator)
        return x + self.size * noise


def train(x, y):
    """Returns a network behind noise."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            Noise(),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("adam", loss)
    network.fit(x, y, epochs=30, verbose=0)
    return network


def main(argv):
    """Prints a table of two attacks, and the warnings."""
    if len(argv) != 1:
        print("usage: python attack_a_random_model.py", file=sys.stderr)
        return 2
    images = tfsam.data.load("digits", limit_train=1000, limit_test=100)
    network = train(images.x_train, images.y_train)
    result = tfsam.evaluate(
        network, (images.x_test, images.y_test), ATTACKS, epsilons=[EPSILON]
    )
    print(tfsam.reports.table(result))
    for row in result["robust"]:
        meaningless = ", which means nothing" if "meaningless" in row else ""
        print(f"{row['attack']}: {100 * row['accuracy']:.1f} %{meaningless}")
    return 0


if __name__ == "__main__":
    app.run(main)
