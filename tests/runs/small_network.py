"""A network of few weights, for runs in this process and in others."""

import keras


def small(num_classes, input_shape):
    """Returns a network with a convolution and with BatchNorm."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(4, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes),
        ]
    )
