"""Workers: devices, with the models as they run there."""

import concurrent.futures
import queue
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import traced
from tfsam.models.functions import for_evaluation
from tfsam.models.functions import traceable


class Worker(NamedTuple):
    """A device, with the models as they run there and what was traced."""

    device: str | None
    judge: Logits  # The model that is evaluated.
    source: Logits  # The model that is attacked: the same, or a surrogate.
    predict: Callable
    judged: bool  # Whether `judge` can be traced.
    traceable: bool  # Whether `source` can.
    runs: dict


def known_devices(names):
    """The devices that share the chunks, a list; [None] is TensorFlow's choice.

    TensorFlow itself would put what is to run on an unknown one elsewhere.

    Args:
        names: names of devices, one alone, or None.

    Raises:
        ValueError: if there is no such device.
    """
    names = [names] if isinstance(names, str) else list(names or [])
    known = tf.config.list_logical_devices()
    kinds = [(d.device_type, int(d.name.rpartition(":")[2])) for d in known]
    for name in names:
        try:
            spec = tf.DeviceSpec.from_string(name)
            found = spec.device_type, spec.device_index or 0
        except (AttributeError, TypeError, ValueError):
            found = None
        if found not in kinds:
            there = ", ".join(f"{kind}:{index}" for kind, index in kinds)
            raise ValueError(
                f"devices must be among {there}. Received: devices={names}"
            )
    return names or [None]


def kinds_of(devices):
    """The kinds of devices that an evaluation runs on, such as "CPU, GPU".

    Args:
        devices: a list of names; None is the device of TensorFlow's choice.
    """
    kinds = set()
    for name in devices:
        with tf.device(name):
            device = tf.identity(tf.zeros([])).device
        kinds.add(tf.DeviceSpec.from_string(device).device_type)
    return ", ".join(sorted(kinds))


def make_worker(device, logits, source, classes, example, most=None):
    """Puts the models on a device.

    Args:
        device: its name, None for TensorFlow's own choice.
        logits: the `Logits` that is evaluated.
        source: the `Logits` that is attacked.
        classes: number of logits.
        example: float array (1, ...), one example.
        most: how many examples the networks may see at once.
    """
    with tf.device(device):
        shape = example.shape[1:]
        judge = for_evaluation(logits, classes, shape, device)
        transferred = source is not logits
        if transferred:
            source = for_evaluation(source, classes, shape, device)
        else:
            source = judge
        judged = traceable(judge, example)
        if judged:
            predict = traced(judge.predict)
        else:

            def predict(x, active):
                return judge.function(x)

        attackable = traceable(source, example)
        if not attackable:  # In no blocks: they are traced.
            source = Logits(source.function, classes=classes)
        if transferred:
            source = source.as_surrogate()
        source.most = most
        source.count_passes()
    return Worker(device, judge, source, predict, judged, attackable, {})


def spread(workers, work, chunks):
    """Calls `work(worker, chunk)` for each chunk, on whoever is idle.

    Args:
        workers: a list of `Worker`s.
        work: the function.
        chunks: numbers of chunks.
    """
    idle: queue.SimpleQueue = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(chunk):
        worker = idle.get()
        try:
            with tf.device(worker.device):
                work(worker, chunk)
        finally:
            idle.put(worker)

    if len(workers) == 1:
        for chunk in chunks:
            one(chunk)
        return
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        done = [pool.submit(one, chunk) for chunk in chunks]
        try:
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def as_numpy(tensor):
    """Returns a tensor, or what converts to one, as an array."""
    return tf.convert_to_tensor(tensor).numpy()
