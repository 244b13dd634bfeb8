"""The time of PGD-10: cleverhans as shipped, our adapter of it, our own.

  python -m experiments.benchmark_attacks --width=16

prints the median seconds to attack a batch of random images on a PreAct
ResNet-18, taken in turn so that a slow spell of the machine hits all, the ratio
to cleverhans as shipped, and the seconds of the first call, which traces and
compiles.
"""

import statistics
import time

import numpy as np
import tensorflow as tf
from absl import app
from absl import flags
from cleverhans.tf2.attacks.projected_gradient_descent import (
    projected_gradient_descent,
)

import tfsam

_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first stage.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images attacked.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Attacks timed of each kind.")

EPSILON = 8 / 255


def traced(name, logits_fn, jit_compile):
    """An attack of tfsam as `evaluate` runs it."""
    logits = tfsam.attacks.Logits(logits_fn, jit_compile)
    attack = tfsam.attacks.get(name, epsilon=EPSILON, steps=10)
    return tf.function(
        lambda x, y: attack(logits, x, y, seed=0), autograph=False
    )


def main(_):
    """Prints the table."""
    network = tfsam.networks.preact_resnet18(10, width=_WIDTH.value)
    random = np.random.default_rng(0)
    shape = (_BATCH_SIZE.value, 32, 32, 3)
    x = tf.constant(random.random(shape, dtype="float32"))
    y = tf.constant(random.integers(0, 10, _BATCH_SIZE.value))

    def logits_fn(pixels):
        return network(pixels, training=False)

    def shipped(x, y):
        return projected_gradient_descent(
            logits_fn,
            x,
            EPSILON,
            EPSILON / 4,
            10,
            np.inf,
            clip_min=0.0,
            clip_max=1.0,
            y=y,
            rand_init=True,
        )

    kinds = {
        "cleverhans as shipped": shipped,
        "cleverhans_pgd, graph": traced("cleverhans_pgd", logits_fn, False),
        "cleverhans_pgd, XLA": traced("cleverhans_pgd", logits_fn, True),
        "pgd, graph": traced("pgd", logits_fn, False),
        "pgd, XLA": traced("pgd", logits_fn, True),
    }

    def seconds(kind):
        started = time.perf_counter()
        kinds[kind](x, y).numpy()
        return time.perf_counter() - started

    first = {kind: seconds(kind) for kind in kinds}
    times = [{k: seconds(k) for k in kinds} for _ in range(_REPEATS.value)]
    base = None
    print("| PGD-10 | seconds | shipped / it | first call |")
    print("|---|---|---|---|")
    for kind in kinds:
        median = statistics.median(row[kind] for row in times)
        base = base or median
        print(
            f"| {kind} | {median:.2f} | {base / median:.2f} "
            f"| {first[kind]:.1f} |"
        )


if __name__ == "__main__":
    app.run(main)
