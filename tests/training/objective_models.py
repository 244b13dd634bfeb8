"""Networks, attacks and data on which objectives are compared."""

import keras
import numpy as np
import tensorflow as tf

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((16, 6), dtype="float32")
Y = RNG.integers(0, 3, 16)
SAMPLE_WEIGHT = RNG.random(16).astype("float32")
KERNEL = RNG.normal(size=(6, 3)).astype("float32")
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)
TRADES_ATTACK = tfsam.PGD(0.1, steps=2, loss="kl", random_start="normal")
MART_ATTACK = tfsam.PGD(0.1, steps=2, random_start="normal")
OBJECTIVES = {
    "TRADES": (tfsam.TRADES(), TRADES_ATTACK),
    "MART": (tfsam.MART(), MART_ATTACK),
}


def network(batch_norm=True, regularizer=None, dropout=0.0, dtype=None):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(5, kernel_regularizer=regularizer, dtype=dtype)
    ]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(dtype=dtype))
    layers.append(keras.layers.Activation("tanh", dtype=dtype))
    if dropout:
        layers.append(keras.layers.Dropout(dropout, seed=1, dtype=dtype))
    layers.append(
        keras.layers.Dense(3, kernel_regularizer=regularizer, dtype=dtype)
    )
    return keras.Sequential([keras.Input((6,)), *layers])


def compiled(model, mode="eager", loss=SPARSE, momentum=0.9, **kwargs):
    """Compiles a model. A few small steps are quicker than tracing one."""
    model.compile(
        tfsam.SGD(0.5, momentum=momentum),
        loss,
        jit_compile=mode == "xla",
        run_eagerly=mode == "eager",
        **kwargs,
    )
    return model


def made(objective=None, attack=None, mode="eager", *, net=None, **kwargs):
    kwargs.setdefault("seed", 0)
    return compiled(
        tfsam.RobustModel(
            net or network(), attack, objective=objective, **kwargs
        ),
        mode,
    )


def fitted(model, steps=4, y=Y, sample_weight=None):
    model.fit(
        X,
        y,
        sample_weight=sample_weight,
        batch_size=8,
        epochs=steps // 2,
        shuffle=False,
        verbose=0,
    )
    return model


def trained(*args, **kwargs):
    return fitted(made(*args, **kwargs))


def difference(one, other):
    """Compares all weights, and BatchNorm's statistics."""
    return max(
        np.abs(a - b).max()
        for a, b in zip(
            getattr(one, "network", one).get_weights(),
            getattr(other, "network", other).get_weights(),
            strict=True,
        )
    )


@keras.saving.register_keras_serializable(package="test")
def shifted(logits_fn, x, y, seed):
    """An attack that is known, and cheap to trace."""
    return x + 0.3 * tf.cos(30 * x)


X_ADV = shifted(None, X, None, None).numpy()
