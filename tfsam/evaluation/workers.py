"""Workers: devices, each with its own copy of the models."""

import concurrent.futures
import queue
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks.context import Context
from tfsam.attacks.logits import Logits
from tfsam.attacks.recorder import Recorder
from tfsam.models.functions import for_evaluation
from tfsam.models.functions import traceable
from tfsam.support.graphs import traced

# The inputs of a model other than the pixels, tensors (batch, ...).
Others = tuple[tf.Tensor, ...]


class Worker(NamedTuple):
    """A device, with the models and the traced functions that it runs.

    Attributes:
        device: Name of the device, None for TensorFlow's own choice.
        judge: The model that is evaluated.
        source: The model that is attacked: `judge`, or a surrogate.
        aimed: The same with the logits that attacks see; see
            `tfsam.attacks.goals`.
        predict: Returns the logits (batch, classes) of `judge` for a batch of
            images, a bool tensor (batch,), the examples that are needed, and
            the other inputs of the batch.
        judged: Whether `tf.function` can trace `judge`.
        traceable: Whether `tf.function` can trace `source`.
        runs: The traced attacks by their keys, each with the objects that its
            key names. The first item of a key is whether the trace may be kept
            for another evaluation.
        recorders: The recorders of paths, by the shape and dtype of a batch,
            the norm and the bounds.
    """

    device: str | None
    judge: Logits
    source: Logits
    aimed: Logits
    predict: Callable[..., tf.Tensor]
    judged: bool
    traceable: bool
    runs: dict[Any, tuple[Callable[..., Any], list[Any]]]
    recorders: dict[Any, Recorder]


def known_devices(
    names: str | Iterable[str] | None,
) -> Sequence[str | None]:
    """Checks the names of the devices that share the chunks.

    Without this check TensorFlow would silently run the work of an unknown
    device on another one.

    Args:
        names: Names of devices, a single name, or None.

    Returns:
        The names, a list; [None] stands for the device of TensorFlow's choice.

    Raises:
        ValueError: If there is no device of a name.
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


def kinds_of(devices: Iterable[str | None]) -> str:
    """Returns the kinds of the devices, such as "CPU, GPU".

    Args:
        devices: Names of devices, None for the device of TensorFlow's choice.
    """
    kinds = set()
    for name in devices:
        with tf.device(name):
            device = tf.identity(tf.zeros([])).device
        kinds.add(tf.DeviceSpec.from_string(device).device_type)
    return ", ".join(sorted(kinds))


def make_worker(
    device: str | None,
    logits: Logits,
    classes: int,
    example: np.ndarray,
    most: int | None = None,
    goal: Callable[..., Any] | None = None,
    others: Others = (),
) -> Worker:
    """Puts a model on a device, to be attacked and to judge the images.

    Args:
        device: Name of the device, None for TensorFlow's own choice.
        logits: The model.
        classes: Number of its logits.
        example: Float array (1, ...), an example.
        most: Number of examples that the network may process together, or None.
        goal: A function of `tfsam.attacks.goals`, or None.
        others: The other inputs of the example, tensors (1, ...).
    """
    context = Context(inputs=others)
    with tf.device(device):
        judge = for_evaluation(logits, classes, example.shape[1:], device)
        judged = traceable(judge.given(context), example)
        predict = _predict(judge) if judged else _eagerly(judge)
        source = _attacked(judge, judged, classes, most)
    aimed = source.aimed_at(goal) if goal else source
    return Worker(device, judge, source, aimed, predict, judged, judged, {}, {})


def on_surrogate(
    worker: Worker,
    surrogate: Logits,
    classes: int,
    example: np.ndarray,
    most: int | None = None,
    others: Others = (),
) -> Worker:
    """Returns a worker that attacks a surrogate, and has the same judge.

    Args:
        worker: The worker of the model that is evaluated.
        surrogate: The surrogate.
        classes: Number of its logits.
        example: Float array (1, ...), an example.
        most: Number of examples that the network may process together, or None.
        others: The other inputs of the example, tensors (1, ...).
    """
    context = Context(inputs=others)
    shape, device = example.shape[1:], worker.device
    with tf.device(device):
        source = for_evaluation(surrogate, classes, shape, device)
        attackable = traceable(source.given(context), example)
        source = source.as_surrogate()
        source = _attacked(source, attackable, classes, most)
    goal = worker.aimed.goal
    return worker._replace(
        source=source,
        aimed=source.aimed_at(goal) if goal else source,
        traceable=attackable,
        runs={},
        recorders={},
    )


def _attacked(
    source: Logits, attackable: bool, classes: int, most: int | None
) -> Logits:
    """Returns the model as attacks see it, which counts passes."""
    if not attackable:  # Blocks would be traced.
        surrogate = source.surrogate
        blocks = source
        source = Logits(source.function, classes=classes)
        source.together, source.random = blocks.together, blocks.random
        source = source.as_surrogate() if surrogate else source
    source.most = most
    source.count_passes()
    return source


def _predict(judge: Logits) -> Callable[..., tf.Tensor]:
    """Returns the traced `Worker.predict` of a model."""

    def predict(
        x: tf.Tensor, active: tf.Tensor, others: Others = ()
    ) -> tf.Tensor:
        return judge.given(Context(inputs=others)).predict(x, active)

    made: Callable[..., tf.Tensor] = traced(predict)
    return made


def _eagerly(judge: Logits) -> Callable[..., Any]:
    """Returns a `Worker.predict` that calls the model as it is."""

    def predict(x: tf.Tensor, active: tf.Tensor, others: Others = ()) -> Any:
        return judge.function(x, *others)

    return predict


def attacked_predict(worker: Worker) -> Callable[..., Any]:
    """Returns the logits function of the attacked model, like `predict`.

    Args:
        worker: The worker. Without a surrogate, this is its own `predict`.
    """
    source = worker.source
    if not source.surrogate:
        return worker.predict
    if not worker.traceable:
        return _eagerly(source)
    key = False, "predict"
    return worker.runs.setdefault(key, (_predict(source), []))[0]


def spread(
    workers: Sequence[Worker],
    work: Callable[[Worker, int], None],
    chunks: Iterable[int],
) -> None:
    """Calls `work(worker, chunk)` for each chunk, on the next idle worker.

    Args:
        workers: The workers.
        work: The function to call.
        chunks: Numbers of the chunks.
    """
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(chunk: int) -> None:
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


def as_numpy(tensor: Any) -> np.ndarray:
    """Converts a tensor, or anything that TensorFlow converts, to an array."""
    return tf.convert_to_tensor(tensor).numpy()
