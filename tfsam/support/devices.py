"""Devices by the name that a command line gives them, and workers.

Workers are processes, on one machine or on several, that train one model
together. The environment variable TF_CONFIG tells each who they are and which
of them it is; the first one is the chief.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import zlib

import numpy as np
import tensorflow as tf

from tfsam.support import files
from tfsam.support import signals

STRATEGIES = ("auto", "mirrored", "multi_worker")

# Why there are no others.
_TOGETHER = (
    "replicas must take each step together, which parameter servers do not, "
    "and XLA may compile pieces of a step only, where a TPU needs all of it"
)

# What TensorFlow raises in the workers that are left when one is lost.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


class WorkerLost(ConnectionError):
    """Another worker was lost, or never came."""


def cluster_size():
    """How many workers the environment variable TF_CONFIG names; 1 without it.

    Raises:
        ValueError: if TF_CONFIG cannot be read, does not say which of them this
            is, or names parameter servers or evaluators.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return 1
    try:
        config = json.loads(text)
        cluster = config["cluster"]
        kind, index = config["task"]["type"], int(config["task"]["index"])
        known = (
            set(cluster) <= {"chief", "worker"}
            and all(_are_hosts(hosts) for hosts in cluster.values())
            and 0 <= index < len(cluster[kind])
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise ValueError(
            "TF_CONFIG must name workers, and which of them this is: "
            '{"cluster": {"worker": ["host:port", ...]}, '
            '"task": {"type": "worker", "index": 0}}. '
            f"Received: TF_CONFIG={text}"
        )
    return sum(map(len, cluster.values()))


def _are_hosts(value):
    return isinstance(value, list) and all(
        re.fullmatch(r".+:\d+", host) for host in value
    )


def make_strategy(devices, kind="auto"):
    """The `tf.distribute` strategy of a command line, None for one device.

    Of several workers it waits until all of them are there, and must come
    before anything else that TensorFlow does.

    Args:
        devices: auto, cpu, cpu:N, gpu:all or gpu:N.
        kind: "mirrored" for this process's devices alone, "multi_worker" for
            those of all workers of TF_CONFIG, "auto" for the latter if there
            are any.

    Raises:
        WorkerLost: if another worker did not come in time.
        ValueError: if there are no such devices, workers or strategies, or if
            this worker cannot start, for one since its port is taken.
    """
    if kind not in STRATEGIES:
        raise ValueError(
            f"strategy must be one of {', '.join(STRATEGIES)}: {_TOGETHER}. "
            f"Received: strategy={kind}"
        )
    count = 1 if kind == "mirrored" else cluster_size()
    if count > 1:
        return _multi_worker(devices, count)
    if kind == "multi_worker":
        raise ValueError(
            "strategy=multi_worker needs the environment variable TF_CONFIG "
            "with two workers at least. "
            f"Received: TF_CONFIG={os.environ.get('TF_CONFIG', '')}"
        )
    return _mirrored(devices)


def _multi_worker(devices, count):
    """All GPUs of all workers, or the CPU of each."""
    if devices not in ("auto", "cpu", "gpu:all"):
        raise ValueError(
            "devices must be auto, cpu or gpu:all for several workers, each of "
            f"which has the same. Received: devices={devices}"
        )
    gpus = tf.config.get_visible_devices("GPU")
    if devices == "gpu:all" and not gpus:
        raise ValueError(
            f"devices must name GPUs that are here: 0. Received: {devices}"
        )
    try:
        if devices == "cpu" and gpus:
            tf.config.set_visible_devices([], "GPU")
        print(f"waiting for all {count} workers", flush=True)
        with signals.defaulted():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (
        tf.errors.DeadlineExceededError,
        tf.errors.UnavailableError,
    ) as error:
        raise WorkerLost(
            f"another worker never came: {files.reason(error)}"
        ) from error
    except (RuntimeError, tf.errors.OpError) as error:
        raise ValueError(
            "workers must meet before TensorFlow starts, each at a port of its "
            f"own that is free ({files.reason(error)}). "
            f"Received: TF_CONFIG={os.environ['TF_CONFIG']}"
        ) from None


def _mirrored(devices):
    gpus = tf.config.get_visible_devices("GPU")
    number = r"[1-9]\d*"
    match = re.fullmatch(
        rf"(auto)|cpu(?::({number}))?|gpu:(all|{number})", devices
    )
    if not match:
        raise ValueError(
            "devices must be auto, cpu, cpu:N, gpu:all or gpu:N. "
            f"Received: devices={devices}"
        )
    if match[3] or (match[1] and gpus):
        count = int(match[3]) if (match[3] or "all") != "all" else len(gpus)
        if not 0 < count <= len(gpus):
            raise ValueError(
                f"devices must name GPUs that are here: {len(gpus)}. "
                f"Received: devices={devices}"
            )
        names = [f"GPU:{i}" for i in range(count)]
        # One GPU of several still needs to be told apart from the others.
        return tf.distribute.MirroredStrategy(names) if len(gpus) > 1 else None
    if gpus and match[0].startswith("cpu"):
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            raise ValueError(
                "devices must be set before TensorFlow starts. "
                f"Received: devices={devices}"
            ) from None
    count = int(match[2] or 1)
    if count == 1:
        return None
    with contextlib.suppress(RuntimeError):  # Already set; counted below.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
    if len(tf.config.list_logical_devices("CPU")) < count:
        raise ValueError(
            f"devices must be set before TensorFlow starts, or be those that "
            f"are here. Received: devices={devices}"
        )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)],
        # Collectives remember shapes by a key that the next strategy of the
        # process counts from the start again: a second run would fail.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def check_strategy(strategy):
    """Refuses the strategies that a `RobustModel` cannot be trained under.

    Args:
        strategy: the current `tf.distribute` strategy.

    Raises:
        ValueError: if it is one of them.
    """
    known = (
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
        tf.distribute.OneDeviceStrategy,
    )
    if tf.distribute.has_strategy() and not isinstance(strategy, known):
        raise ValueError(
            "RobustModel trains under tf.distribute.MirroredStrategy and "
            f"MultiWorkerMirroredStrategy: {_TOGETHER}. "
            f"Received: strategy={type(strategy).__name__}"
        )


def is_chief(strategy):
    """Whether this process is the one that writes: others leave no file.

    Args:
        strategy: a `tf.distribute` strategy or None.
    """
    return strategy is None or strategy.extended.should_checkpoint


def workers(strategy):
    """How many processes a strategy, or None, has.

    Args:
        strategy: a `tf.distribute` strategy or None.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    here = len(strategy.extended.worker_devices)
    return strategy.num_replicas_in_sync // here


@contextlib.contextmanager
def losing_workers(strategy):
    """Says in one way what TensorFlow says in many: a worker was lost.

    It finds out within about half a minute, or in the next collective.

    Args:
        strategy: a `tf.distribute` strategy or None.

    Raises:
        WorkerLost: if another worker was lost.
    """
    try:
        yield
    except _LOST as error:
        if workers(strategy) == 1:
            raise
        raise WorkerLost(
            f"another worker was lost: {files.reason(error)}"
        ) from error


def check_agreement(strategy, what):
    """Waits for all workers, and finds whether they are in the same state.

    Args:
        strategy: a `tf.distribute` strategy or None.
        what: the state by name; numbers and text.

    Raises:
        ValueError: in all workers, with what differs.
    """
    if workers(strategy) == 1:
        return
    sums = [zlib.crc32(str(value).encode()) for value in what.values()]
    found = _of_workers(strategy, sums)
    for name, column in zip(what, found.T, strict=True):
        if len(np.unique(column)) > 1:
            raise ValueError(
                f"all workers must have the same {name}: start them by the "
                "same command, with one --workdir that they share. "
                f"Received: {name}={what[name]} in this one"
            )


def of_chief(strategy, value):
    """The chief's value of a number that each worker has measured.

    What all workers decide by must be one number, or some would go on and wait
    for the others: BatchNorm's statistics, for one, differ between them.

    Args:
        strategy: a `tf.distribute` strategy or None.
        value: a number.
    """
    if workers(strategy) == 1:
        return value
    return type(value)(_of_workers(strategy, value)[0])


def anywhere(strategy, facts):
    """Which of some facts are true in one worker at least.

    It is fast enough to be asked at each step.

    Args:
        strategy: a `tf.distribute` strategy or None.
        facts: booleans, the same number of them in all workers.
    """
    if workers(strategy) == 1:
        return facts
    counts = _counter(strategy)(np.array(facts, "float32"))
    count = strategy.experimental_local_results(counts)[0].numpy()
    return (count > 0).tolist()


def asked_to_stop(strategy, stop):
    """Returns the signal that any worker was sent, or None.

    All workers must call this at the same place.

    Args:
        strategy: a `tf.distribute` strategy or None.
        stop: this worker's `tfsam.support.signals.Stop`.
    """
    found = anywhere(
        strategy, [stop.asked == signum for signum in signals.SIGNALS]
    )
    return max(itertools.compress(signals.SIGNALS, found), default=None)


@functools.cache
def _counter(strategy):
    """A function that adds up arrays; eagerly it would be traced each time."""

    def add(array):
        replica = tf.distribute.get_replica_context()
        # What is given has no device, by which TensorFlow finds the others.
        return replica.all_reduce("SUM", tf.identity(array))

    return tf.function(lambda array: strategy.run(add, args=(array,)))


def _of_workers(strategy, value):
    """An array with a row for each replica: each worker's value."""
    mine = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.array([value]))
    )
    return strategy.gather(mine, axis=0).numpy()


def names(strategy):
    """The devices of this process that a run works on."""
    if strategy is not None:
        names = strategy.extended.worker_devices
        return ["/device:" + name.rpartition("device:")[2] for name in names]
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [tf.config.list_logical_devices(kind)[0].name]
