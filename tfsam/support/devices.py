"""Devices, by their names on the command line, and clusters of workers.

Workers are processes, on one or several machines, that train a model together.
The environment variable TF_CONFIG tells each process the addresses of all
workers and its own number. The first worker is the chief.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import numpy as np
import tensorflow as tf

from tfsam.support import files
from tfsam.support import signals

Number = TypeVar("Number", int, float)

STRATEGIES = ("auto", "mirrored", "multi_worker")

# The reason why no other strategies are supported.
_TOGETHER = (
    "replicas must take each step together, which parameter servers do not, "
    "and XLA may compile pieces of a step only, where a TPU needs all of it"
)

# Exceptions that TensorFlow raises in the other workers if one is lost.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


class WorkerLost(ConnectionError):
    """Another worker was lost, or never connected."""


def cluster_size() -> int:
    """Returns the number of workers in TF_CONFIG, 1 if it is not set.

    Raises:
        ValueError: If TF_CONFIG is invalid, does not name this worker, or names
            parameter servers or evaluators.
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


def _are_hosts(value: Any) -> bool:
    return isinstance(value, list) and all(
        re.fullmatch(r".+:\d+", host) for host in value
    )


def make_strategy(
    devices: str, kind: str = "auto"
) -> tf.distribute.Strategy | None:
    """Makes the `tf.distribute` strategy that the flags describe.

    With several workers, it waits until all of them have connected, and must be
    called before anything else in TensorFlow.

    Args:
        devices: auto, cpu, cpu:N, gpu:all or gpu:N.
        kind: "mirrored" for the devices of this process only, "multi_worker"
            for those of all workers in TF_CONFIG, or "auto" for the latter if
            there are any.

    Returns:
        The strategy, None for a single device.

    Raises:
        WorkerLost: If another worker did not connect in time.
        ValueError: If there are no such devices, workers or strategies, or if
            this worker cannot start, for example because its port is taken.
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


def _multi_worker(devices: str, count: int) -> tf.distribute.Strategy:
    """Makes a strategy of all GPUs of all workers, or of their CPUs."""
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
            f"another worker never connected: {files.reason(error)}"
        ) from error
    except (RuntimeError, tf.errors.OpError) as error:
        raise ValueError(
            "workers must connect before TensorFlow starts, each at a free "
            f"port of its own ({files.reason(error)}). "
            f"Received: TF_CONFIG={os.environ['TF_CONFIG']}"
        ) from None


def _mirrored(devices: str) -> tf.distribute.Strategy | None:
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
        # One of several GPUs must be selected by its name.
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
            "devices must be set before TensorFlow starts, or be those that "
            f"exist already. Received: devices={devices}"
        )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)],
        # Collectives cache shapes by a key whose counter restarts with the next
        # strategy of the process, in which they would fail.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Checks that a `RobustModel` can be trained under a strategy.

    Args:
        strategy: The current `tf.distribute` strategy.

    Raises:
        ValueError: If the strategy is not supported.
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


def is_chief(strategy: tf.distribute.Strategy | None) -> bool:
    """Returns whether this process is the chief, the only one to write files.

    Args:
        strategy: The `tf.distribute` strategy, or None.
    """
    return strategy is None or strategy.extended.should_checkpoint


def workers(strategy: tf.distribute.Strategy | None) -> int:
    """Returns the number of processes of a strategy.

    Args:
        strategy: The `tf.distribute` strategy, or None.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    here = len(strategy.extended.worker_devices)
    return strategy.num_replicas_in_sync // here


@contextlib.contextmanager
def losing_workers(
    strategy: tf.distribute.Strategy | None,
) -> Iterator[None]:
    """Converts TensorFlow's exceptions for a lost worker to `WorkerLost`.

    TensorFlow notices a lost worker within about half a minute, or in the next
    collective.

    Args:
        strategy: The `tf.distribute` strategy, or None.

    Raises:
        WorkerLost: If another worker was lost.
    """
    try:
        yield
    except _LOST as error:
        if workers(strategy) == 1:
            raise
        raise WorkerLost(
            f"another worker was lost: {files.reason(error)}"
        ) from error


def check_agreement(
    strategy: tf.distribute.Strategy | None, what: Mapping[str, Any]
) -> None:
    """Waits for all workers, and checks that they are in the same state.

    Args:
        strategy: The `tf.distribute` strategy, or None.
        what: The state, numbers and texts by name.

    Raises:
        ValueError: If the state of a worker differs, in all workers.
    """
    if strategy is None or workers(strategy) == 1:
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


def of_chief(strategy: tf.distribute.Strategy | None, value: Number) -> Number:
    """Returns the chief's value of a number that each worker has measured.

    Measurements differ between workers, because BatchNorm's statistics do. A
    common decision must depend on a single number, or some workers would wait
    for the others forever.

    Args:
        strategy: The `tf.distribute` strategy, or None.
        value: This worker's number.
    """
    if strategy is None or workers(strategy) == 1:
        return value
    return type(value)(_of_workers(strategy, value)[0])


def anywhere(
    strategy: tf.distribute.Strategy | None, facts: Sequence[bool]
) -> Sequence[bool]:
    """Returns which facts are true in at least one worker.

    It is fast enough to be called at each step.

    Args:
        strategy: The `tf.distribute` strategy, or None.
        facts: Booleans, the same number in all workers.
    """
    if strategy is None or workers(strategy) == 1:
        return facts
    counts = _counter(strategy)(np.array(facts, "float32"))
    count = strategy.experimental_local_results(counts)[0].numpy()
    return (count > 0).tolist()


def asked_to_stop(
    strategy: tf.distribute.Strategy | None, stop: signals.Stop
) -> int | None:
    """Returns the number of a signal that any worker has received, or None.

    All workers must call this at the same place.

    Args:
        strategy: The `tf.distribute` strategy, or None.
        stop: This worker's `Stop`.
    """
    found = anywhere(
        strategy, [stop.asked == signum for signum in signals.SIGNALS]
    )
    return max(itertools.compress(signals.SIGNALS, found), default=None)


@functools.cache
def _counter(strategy: tf.distribute.Strategy) -> Callable[..., Any]:
    """Returns a function that sums arrays, traced once for all calls."""

    def add(array: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        # The argument has no device, by which TensorFlow finds the others.
        return replica.all_reduce("SUM", tf.identity(array))

    return tf.function(lambda array: strategy.run(add, args=(array,)))


def _of_workers(strategy: tf.distribute.Strategy, value: Any) -> np.ndarray:
    """Returns an array with a row for each replica, its worker's value."""
    mine = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.array([value]))
    )
    return strategy.gather(mine, axis=0).numpy()


def names(strategy: tf.distribute.Strategy | None) -> list[str]:
    """Returns the names of this process's devices that a run uses.

    Args:
        strategy: The `tf.distribute` strategy, or None.
    """
    if strategy is not None:
        names = strategy.extended.worker_devices
        return ["/device:" + name.rpartition("device:")[2] for name in names]
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [tf.config.list_logical_devices(kind)[0].name]
