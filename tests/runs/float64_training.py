"""One training for every number of devices and workers; also their command.

  python tests/float64_training.py FOLDER

is the command of each of several workers: it trains by the methods OF_WORKERS,
and writes FOLDER/INDEX.npz, its weights. In float64 and without BatchNorm there
is no difference between a batch on one device and its parts on several.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tfsam

STEPS, BATCH = 9, 16

L2 = tfsam.PGD(0.5, norm="l2", steps=3)
METHODS = {
    "st": {"validate": True},
    "sam": {"perturb_weights": tfsam.SAM(0.3)},
    "looksam": {"perturb_weights": tfsam.LookSAM(0.3, every=3)},
    "msam": {"perturb_weights": tfsam.MSAM(0.3)},
    "wsam": {"perturb_weights": tfsam.WSAM(0.3, gamma=0.7)},
    "awp": {"perturb_inputs": L2, "perturb_weights": tfsam.AWP(0.1)},
    "sam_xla": {
        "perturb_weights": tfsam.SAM(0.3),
        "jit_compile": True,
        "validate": True,
    },
    # One step: after it the sign of a gradient near zero may jump.
    "linf": {"perturb_inputs": tfsam.PGD(0.1, steps=3), "steps": 1},
    "replicas": {"perturb_weights": tfsam.SAM(0.3), "sharpness": "per_replica"},
}

# Of SAM with a global sharpness, the one that XLA compiles is enough.
OF_WORKERS = ("st", "looksam", "wsam", "awp", "sam_xla", "linf", "replicas")


def network():
    """A network without BatchNorm, the same each time."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), dtype="float64"),
            keras.layers.Conv2D(4, 3, activation="tanh", dtype="float64"),
            keras.layers.Flatten(dtype="float64"),
            keras.layers.Dense(3, dtype="float64"),
        ]
    )


def batches(steps):
    """Batches of random images, in the order of one device."""
    random = np.random.default_rng(0)
    x = random.random((steps * BATCH, 6, 6, 1))
    y = random.integers(0, 3, steps * BATCH)
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return data.with_options(options)


def trained(
    strategy,
    *,
    steps=STEPS,
    sharpness="global",
    jit_compile=False,
    validate=False,
    **perturbations,
):
    """The weights after some steps; optionally predictions and a loss."""
    with strategy.scope():
        if "perturb_weights" in perturbations:
            perturbations["sharpness"] = sharpness
        model = tfsam.RobustModel(network(), seed=0, **perturbations)
        model.compile(
            tfsam.SGD(0.2, momentum=0.9, weight_decay=5e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=jit_compile,
        )
    data = batches(steps)
    model.fit(data, shuffle=False, verbose=0)
    weights = [v.numpy() for v in model.network.trainable_variables]
    if not validate:
        return weights
    predicted = model.predict(data.take(1), verbose=0)
    return [*weights, predicted, np.array(model.evaluate(data, verbose=0)[0])]


def main(folder):
    """Trains as one of several workers."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    found = {
        f"{name}:{index}": array
        for name in OF_WORKERS
        for index, array in enumerate(trained(strategy, **METHODS[name]))
    }
    index = strategy.cluster_resolver.task_id
    np.savez(pathlib.Path(folder) / f"{index}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
