"""The time of a training step, with XLA and without, side by side.

  python -m experiments.benchmark_steps --network=preact_resnet8

prints, for each method, the median seconds of a step on a batch of random
images in a plain graph and with XLA, taken in turn so that a slow spell of the
machine hits both, and both relative to standard training in a graph.
"""

import statistics
import time

import keras
import numpy as np
from absl import app
from absl import flags

import tfsam

_NETWORK = flags.DEFINE_enum(
    "network",
    "preact_resnet8",
    ["preact_resnet8", "preact_resnet18"],
    "Network, for images of 32x32.",
)
_WIDTH = flags.DEFINE_integer("width", None, "Channels of its first stage.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Steps timed of each kind.")

_METHODS = flags.DEFINE_list(
    "methods", ["st", "sam", "fgsm_at", "at"], "Methods timed; at has 5 steps."
)

METHODS = {
    "st": (None, None),
    "sam": (None, tfsam.SAM(0.1)),
    "fgsm_at": (tfsam.FGSM(8 / 255, random_start=True), None),
    "at": (tfsam.PGD(8 / 255, steps=5), None),
}


def stepper(method, jit_compile):
    """A function that takes one training step."""
    make = getattr(tfsam.networks, _NETWORK.value)
    network = make(**({"width": _WIDTH.value} if _WIDTH.value else {}))
    model = tfsam.RobustModel(network, *METHODS[method])
    model.compile(
        tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    random = np.random.default_rng(0)
    x = random.random((_BATCH_SIZE.value, 32, 32, 3), dtype="float32")
    y = random.integers(0, 10, _BATCH_SIZE.value)

    def step():
        started = time.perf_counter()
        model.train_on_batch(x, y)
        return time.perf_counter() - started

    step(), step()  # Traces, compiles, and warms up.
    return step


def main(_):
    """Prints the table."""
    print(f"{_NETWORK.value}, batch {_BATCH_SIZE.value}: seconds a step")
    print("| method | graph | XLA | graph / st | XLA / st | XLA / graph |")
    print("|---|---|---|---|---|---|")
    base = None
    for method in _METHODS.value:
        steps = [stepper(method, jit_compile) for jit_compile in (False, True)]
        times = [[step() for step in steps] for _ in range(_REPEATS.value)]
        graph, xla = map(statistics.median, zip(*times, strict=True))
        base = base or graph
        print(
            f"| {method} | {graph:.3f} | {xla:.3f} | {graph / base:.2f} "
            f"| {xla / base:.2f} | {xla / graph:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
