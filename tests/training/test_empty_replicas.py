"""A last batch of fewer examples than replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam

RNG = np.random.default_rng(0)
X = RNG.random((17, 8), dtype="float32")
Y = np.arange(17) % 3
PGD = tfsam.PGD(0.1, steps=2)
KL = tfsam.PGD(0.1, steps=2, loss="kl", random_start="normal")
METHODS = {
    "standard": {},
    "pgd": {"perturb_inputs": PGD},
    "trades": {"perturb_inputs": KL, "objective": tfsam.TRADES()},
    "mart": {"perturb_inputs": PGD, "objective": tfsam.MART()},
    "sam": {"perturb_weights": tfsam.SAM(0.1)},
    "esam": {"perturb_weights": tfsam.ESAM(0.1)},
    "ssam": {"perturb_weights": tfsam.SSAM(0.1, samples=4)},
    "looksam": {"perturb_weights": tfsam.LookSAM(0.1, every=2)},
    "parts": {"perturb_weights": tfsam.SAM(0.1), "sub_batches": 4},
    "global": {
        "perturb_weights": tfsam.SAM(0.1),
        "sub_batches": 2,
        "sharpness": "global",
    },
}


def trained(wrap, jit_compile=False):
    """Two epochs of batches of 16 and 1 on two replicas."""
    keras.utils.set_random_seed(0)
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        model = wrap(
            keras.Sequential(
                [
                    keras.Input((8,)),
                    keras.layers.Dense(4, "relu", kernel_regularizer="l2"),
                    keras.layers.Dense(3),
                ]
            )
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tfsam.SGD(0.1), loss, jit_compile=jit_compile)
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    losses = model.fit(X, Y, **options).history["loss"]
    return losses, getattr(model, "network", model).get_weights()


@pytest.mark.parametrize(
    "name",
    [
        name
        if name == "standard"
        else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
    ],
)
def test_a_replica_without_examples_trains(name):
    losses, found = trained(
        lambda network: tfsam.RobustModel(network, seed=0, **METHODS[name])
    )
    assert np.isfinite(losses).all()
    assert all(np.isfinite(w).all() for w in found)
    if name == "standard":
        for one, other in zip(found, trained(lambda n: n)[1], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
