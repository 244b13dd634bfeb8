"""The cost of a step on several devices: measured here, predicted for GPUs.

  python -m experiments.scaling
  python -m experiments.scaling --rounds=0 --gigabytes=50 --step_seconds=0.1

prints Markdown. The first table has the median seconds of a step of
`--batch_size` images on one device, on two logical devices and in two worker
processes of this machine. They share its cores, so nothing can be gained: a
ratio above 1 is the cost of sharing. Steps are timed in rounds, one of each
method. The table also compares the bytes that a step reduces over the workers,
counted in its graph, with the formula. The second table has the predictions of
the formulas for 8 and 64 GPUs; --rounds=0 prints only these.
"""

import functools
import json
import sys
import tempfile
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfsam
from experiments import benchmark_steps
from experiments import command
from experiments import workers
from tfsam.support import devices
from tfsam.training import replays

FLAGS = flags.FlagValues()
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Rounds timed; 0 for paper alone.", 0, flag_values=FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images a step, on all devices.", 2, flag_values=FLAGS
)
_STEP_SECONDS = flags.DEFINE_float(
    "step_seconds",
    0.05,
    "Assumed: seconds of a step of st on one GPU.",
    flag_values=FLAGS,
)
_WEIGHTS = flags.DEFINE_integer(
    "weights",
    11_172_170,
    "Weights of the network on paper. Default: PreActResNet-18.",
    1,
    flag_values=FLAGS,
)
_GIGABYTES = flags.DEFINE_list(
    "gigabytes",
    ["100", "10"],
    "Assumed: gigabytes a second from one GPU to the next, inside a machine "
    "and between machines.",
    flag_values=FLAGS,
)
_MICROSECONDS = flags.DEFINE_list(
    "microseconds",
    ["10", "30"],
    "Assumed: microseconds until a message arrives, inside and between.",
    flag_values=FLAGS,
)
_WORKER = flags.DEFINE_boolean(
    "worker",
    False,
    "Act as a worker, and print measurements as JSON; for internal use.",
    flag_values=FLAGS,
)

METHODS = ("st", "sam", "at", "looksam")  # Measured cells.
GPUS_A_MACHINE = 8
_FLOAT = 4  # Bytes.
_PATIENCE = 1800  # Seconds.


class Link(NamedTuple):
    """A GPU's link to the next in the ring: bytes a second, and seconds."""

    bandwidth: float
    latency: float


def reductions(method, sharpness):
    """Counts the reductions of as many numbers as there are weights.

    Once for the optimizer. With sharpness=global once for each gradient that
    perturbs, of each ascent step, and once for the perturbed one if the
    method reads it (`combine`: LookSAM, GSAM); all this for each part of a
    batch. Once for each part of a state as large as the weights (LookSAM's
    direction, SSAM's mask and its scores), which becomes the mean over
    the replicas. With sharpness=per_replica once for each of two gradients
    that a step after the optimizer's takes (`after`: WSAM).

    Args:
        method: arguments of `RobustModel`.
        sharpness: "per_replica" or "global".
    """
    perturbation = method.get("perturb_weights")
    if perturbation is None:
        return 1
    ascents = getattr(perturbation, "steps", 1)
    looked_at = ascents + (perturbation.combine is not None)
    later = 0
    if sharpness == "per_replica":
        looked_at, later = 0, 2 * (perturbation.after is not None)
    elif not perturbation.extra_passes:  # A single pass: MSAM.
        looked_at = 0
    elif perturbation.layers == "normalization":
        looked_at = 0  # A thousandth of the weights.
    parts = method.get("sub_batches", 1)
    return 1 + _state(perturbation) + parts * looked_at + later


def _state(perturbation):
    """Returns the size of a method's state relative to the weights."""
    if perturbation.init is None:
        return 0
    weights = tf.TensorSpec([1000], tf.float32)
    found = perturbation.init([weights], 0)
    return sum(np.size(value) for value in found) // 1000


def volume(method, sharpness, weights):
    """Returns the bytes that each replica puts into the reductions of a step.

    Args:
        method: see `reductions`.
        sharpness: see `reductions`.
        weights: number of trained weights.
    """
    return _FLOAT * weights * reductions(method, sharpness)


def ring_seconds(size, gpus, link):
    """Returns the seconds of a ring all-reduce: 2 (N - 1) messages of size / N.

    Args:
        size: bytes.
        gpus: N.
        link: the slowest `Link` of the ring.
    """
    messages = 2 * (gpus - 1)
    return messages * (size / gpus / link.bandwidth + link.latency)


def predicted(compute, method, sharpness, weights, gpus, link):
    """Returns the seconds of a step that waits for each of its reductions.

    Args:
        compute: seconds of a replica's passes.
        method: see `reductions`.
        sharpness: see `reductions`.
        weights: see `volume`.
        gpus: number of GPUs.
        link: the slowest `Link` between them.
    """
    times = reductions(method, sharpness)
    return compute + times * ring_seconds(_FLOAT * weights, gpus, link)


def _options(name, sharpness):
    return benchmark_steps.METHODS[name].options | {"sharpness": sharpness}


def _step(name, sharpness, strategy, batch_size):
    """Returns a method's model and its step, traced and warm."""
    x, y = benchmark_steps.images(batch_size)
    method = benchmark_steps.METHODS[name]
    with strategy.scope():
        model = tfsam.RobustModel(
            tfsam.networks.preact_resnet8(10, input_shape=(32, 32, 3)),
            **_options(name, sharpness),
        )
        model.compile(
            tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    data = data.with_options(options)
    model.fit(data, shuffle=False, verbose=0)
    (batch,) = strategy.experimental_distribute_dataset(data)
    clock = functools.partial(_seconds, model, batch, method.steps)
    clock()  # Warms up.
    return model, batch, clock


def _seconds(model, batch, times):
    """Returns the mean seconds of steps, until the last loss is known."""
    started = time.perf_counter()
    for _ in range(times):
        logs = model.train_function([batch])
    float(logs["loss"])
    return (time.perf_counter() - started) / times


def counted(model, batch):
    """Counts the bytes of reductions over workers in the graph of a step.

    Args:
        model: a `RobustModel` that was trained under
            `MultiWorkerMirroredStrategy`.
        batch: one of its batches.
    """
    strategy = model.distribute_strategy
    step = tf.function(
        lambda batch: strategy.run(model.train_step, (batch,)), autograph=False
    )
    graph = step.get_concrete_function(batch).graph
    return sum(
        operation.inputs[0].shape.num_elements()
        * operation.inputs[0].dtype.size
        for operation in graph.get_operations()
        if operation.type.startswith("CollectiveReduce")
    )


def _cells(names=METHODS):
    found = []
    for name in names:
        options = benchmark_steps.METHODS[name].options
        if replays.of(options.get("perturb_inputs")):
            continue  # Free training takes a single device.
        found.append((name, "per_replica"))
        if "perturb_weights" in options:
            found.append((name, "global"))
    return found


def measure_devices(rounds, batch_size):
    """Times one device and two, by (name, sharpness, count), in rounds.

    Args:
        rounds: number of rounds.
        batch_size: images a step, in all.
    """
    strategies = {
        2: devices.make_strategy("cpu:2", "mirrored"),
        1: tf.distribute.get_strategy(),
    }
    clocks = {
        (*cell, count): _step(*cell, strategy, batch_size)[2]
        for cell in _cells()
        for count, strategy in strategies.items()
        if count > 1 or cell[1] == "per_replica"
    }
    return benchmark_steps.in_turn(clocks, rounds)


def measure_as_worker(rounds, batch_size):
    """Measures seconds and bytes as one of the workers, cell by cell.

    Args:
        rounds: number of rounds.
        batch_size: images a step, in all.
    """
    strategy = devices.make_strategy("cpu", "multi_worker")
    steps = {cell: _step(*cell, strategy, batch_size) for cell in _cells()}
    clocks = {cell: clock for cell, (_, _, clock) in steps.items()}
    timed = benchmark_steps.in_turn(clocks, rounds)
    return [
        {
            "cell": cell,
            "seconds": benchmark_steps.median(timed, cell),
            "bytes": counted(model, batch),
            "weights": sum(
                v.shape.num_elements() for v in model.trainable_variables
            ),
        }
        for cell, (model, batch, _) in steps.items()
    ]


def measure_workers(rounds, batch_size):
    """Returns the chief's measurements of two workers, by cell.

    Args:
        rounds: number of rounds.
        batch_size: images a step, in all.

    Raises:
        ChildProcessError: if a worker fails.
    """
    line = [sys.executable, "-m", "experiments.scaling", "--worker"]
    line += [f"--rounds={rounds}", f"--batch_size={batch_size}"]
    with tempfile.TemporaryFile("w+") as output:
        started = workers.start([line, line], stdout=output)
        codes = workers.wait(started, _PATIENCE)
        if any(codes):
            raise ChildProcessError(f"workers failed: exit codes {codes}")
        output.seek(0)
        rows = json.loads(output.readlines()[-1])
    return {tuple(row.pop("cell")): row for row in rows}


def measured_table(rounds, found):
    """Returns the measurements as Markdown.

    Args:
        rounds: the result of `measure_devices`.
        found: the result of `measure_workers`.
    """
    lines = [
        "| method | sharpness | 1 device, s | 2 devices, s | 2 workers, s "
        "| 2 devices / 1 | 2 workers / 1 | bytes in the graph | by formula |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in _cells():
        name, sharpness = cell
        one, two = (name, "per_replica", 1), (*cell, 2)
        alone = benchmark_steps.median(rounds, one)
        row = found[cell]
        size = volume(_options(*cell), sharpness, row["weights"])
        lines.append(
            f"| {name} | {sharpness} | {alone:.3f} "
            f"| {benchmark_steps.median(rounds, two):.3f} "
            f"| {row['seconds']:.3f} "
            f"| {benchmark_steps.ratio(rounds, two, one):.2f} "
            f"| {row['seconds'] / alone:.2f} | {row['bytes']:,} | {size:,} |"
        )
    return "\n".join(lines)


def paper_table(step_seconds, weights, links):
    """Returns the predictions as Markdown, for both ways to share a batch.

    Args:
        step_seconds: seconds of a step of st on one GPU.
        weights: number of trained weights.
        links: `Link`s by number of GPUs.
    """
    lines = [
        "| method | sharpness | reductions | megabytes a step | "
        + " | ".join(
            f"{n} GPUs, ms | efficiency | with the batch of one" for n in links
        )
        + " |",
        "|" + "---|" * (4 + 3 * len(links)),
    ]
    for name, sharpness in _cells(benchmark_steps.METHODS):
        options = _options(name, sharpness)
        alone = step_seconds * benchmark_steps.METHODS[name].ideal
        cells = [
            *(name, sharpness, f"{reductions(options, sharpness)}"),
            f"{volume(options, sharpness, weights) / 1e6:.0f}",
        ]
        for gpus, link in links.items():
            given = (options, sharpness, weights, gpus, link)
            weak = predicted(alone, *given)
            strong = predicted(alone / gpus, *given)
            cells += [
                f"{1000 * weak:.1f}",
                f"{alone / weak:.0%}",
                f"{alone / gpus / strong:.0%}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _links():
    """Returns the slowest links of 8 and of 64 GPUs, given by the flags."""
    pairs = zip(_GIGABYTES.value, _MICROSECONDS.value, strict=True)
    inside, between = (Link(1e9 * float(g), 1e-6 * float(u)) for g, u in pairs)
    return {GPUS_A_MACHINE: inside, 8 * GPUS_A_MACHINE: between}


def main():
    """Prints the tables, or acts as one of the workers."""
    rounds, batch_size = _ROUNDS.value, _BATCH_SIZE.value
    if _WORKER.value:
        print(json.dumps(measure_as_worker(rounds, batch_size)), flush=True)
        return
    links = _links()
    if rounds:
        found = measure_workers(rounds, batch_size)
        timed = measure_devices(rounds, batch_size)
        print(measured_table(timed, found), "\n", flush=True)
    print(paper_table(_STEP_SECONDS.value, _WEIGHTS.value, links))


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
