"""A network with BatchNorm, and callbacks that record its weights."""

import keras
import numpy as np

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((24, 4)).astype("float32")
Y = RNG.integers(0, 3, 24)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Block(keras.layers.Layer):
    """A layer, no model, that holds a BatchNorm; counts its tracings."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.BatchNormalization(momentum=0.9)
        self.calls = 0

    def build(self, input_shape):
        self.norm.build(input_shape)

    def call(self, inputs, training=None):
        self.calls += 1
        return self.norm(inputs, training=training)


def network(*, batch_norm=True, dropout=0.0):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, activation="tanh")]
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    if batch_norm:
        layers += [Block(), keras.layers.Activation("tanh")]
    if batch_norm:
        inner = [keras.Input((5,)), keras.layers.BatchNormalization()]
        layers.append(keras.Sequential(inner))
    layers.append(keras.layers.Dense(3))
    return keras.Sequential([keras.Input((4,)), *layers])


def compiled(model, learning_rate=0.5, run_eagerly=True, **kwargs):
    """Compiles a model. A few small steps are quicker than tracing one."""
    model.compile(
        tfsam.SGD(learning_rate, momentum=0.9),
        LOSS,
        run_eagerly=run_eagerly,
        **kwargs,
    )
    return model


def fit(model, *callbacks, epochs=3, validation=True, **kwargs):
    return model.fit(
        X,
        Y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=(X, Y) if validation else None,
        callbacks=list(callbacks),
        **kwargs,
    )


def values(variables):
    return [v.numpy() for v in variables]


def statistics(model):
    return [v.numpy() for v in model.variables if "moving" in v.path]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(found, expected, **kwargs):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            one, other, **{"rtol": 1e-5, "atol": 1e-6} | kwargs
        )


def differ(found, expected):
    return any(
        np.abs(one - other).max() > 1e-4
        for one, other in zip(found, expected, strict=True)
    )


class Steps(keras.callbacks.Callback):
    """The trainable weights at the start and after each step."""

    def on_train_begin(self, logs=None):
        self.seen = [values(self.model.trainable_variables)]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(values(self.model.trainable_variables))


class Epochs(keras.callbacks.Callback):
    """All of the network's variables at the end of each epoch."""

    def on_train_begin(self, logs=None):
        self.network = getattr(self.model, "network", self.model)
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(values(self.network.variables))

    def trainable(self):
        """The averaged ones among them, epoch by epoch."""
        chosen = {id(v) for v in self.network.trainable_variables}
        return [
            [
                value
                for value, variable in zip(
                    epoch, self.network.variables, strict=True
                )
                if id(variable) in chosen
            ]
            for epoch in self.seen
        ]


def ema(weights, momentum):
    """The average of weights in their order, without warmup."""
    average = weights[0]
    for step in weights[1:]:
        average = [
            momentum * a + (1 - momentum) * w
            for a, w in zip(average, step, strict=True)
        ]
    return average
