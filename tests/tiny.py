"""A network for tests that are not about networks."""

import keras


def tiny(classes, input_shape, statistics=None):
    """A network that is traced in no time, with state of every kind."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(classes),
        ]
    )
