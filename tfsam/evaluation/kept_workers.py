"""Workers that are kept for the next evaluation of the same network.

A worker holds the traces of a network and of the attacks on it. Tracing takes
seconds, so that the next evaluation in the same process takes the worker over,
if the network and its Python state are the same (see
`tfsam.support.trace_state`). While a worker is kept, it holds neither the
network nor its data set, and it is dropped with the network.
"""

import collections
import copy
import threading
import weakref
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.evaluation.opening import Models
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import make_worker
from tfsam.evaluation.workers import on_surrogate
from tfsam.models.functions import StatelessFunction
from tfsam.support import trace_state

# Number of workers that are kept; the oldest is dropped first.
_MOST = 4

_kept: collections.OrderedDict[Hashable, tuple[Worker, list[Any]]]
_kept = collections.OrderedDict()
# The keys and owners of workers in use, by their models.
_taken: weakref.WeakKeyDictionary[Logits, tuple[Hashable, list[Any]]]
_taken = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def workers_of(
    plan: Plan, models: Models, devices: Sequence[str | None]
) -> dict[bool, list[Worker]]:
    """Returns the workers for attacks on the model and on the surrogate.

    Workers for the model are kept from an earlier evaluation where possible.
    Workers for a surrogate are always new.

    Args:
        plan: The plan of the evaluation.
        models: The loaded models.
        devices: Names of the devices, None for TensorFlow's own choice.

    Returns:
        A dict from `Entry.transfer` to workers, one for each device.
    """
    example, classes = plan.data.x[:1], models.classes
    others = plan.data.given(slice(1))
    goal = plan.goal.head
    shapes = [(each.shape.as_list(), each.dtype.name) for each in others]
    facts = (
        *(classes, example.shape, example.dtype, plan.size),
        *(goal, plan.data.inputs, str(shapes)),
    )

    def worker(device: str | None) -> Worker:
        def make(logits: Logits) -> Worker:
            return make_worker(
                device, logits, classes, example, plan.size, goal, others
            )

        return take(make, models.judge, (device, *facts))

    found = {False: [worker(device) for device in devices]}
    if models.surrogate is not None:
        found[True] = [
            on_surrogate(
                one, models.surrogate, classes, example, plan.size, others
            )
            for one in found[False]
        ]
    return found


def take(
    make: Callable[[Logits], Worker], logits: Logits, facts: Hashable
) -> Worker:
    """Returns a worker that was kept, or makes a new one.

    No other evaluation gets the same worker at the same time.

    Args:
        make: Makes a worker of a model.
        logits: The model.
        facts: Everything else that the worker's traces depend on.
    """
    state = _state(logits)
    if state is None:
        return make(logits)
    key = (state.key, facts, *_surroundings())
    with _lock:
        worker, _ = _kept.pop(key, (None, None))
    if worker is None:
        # A function of its own, which is emptied while the worker is kept.
        own = copy.copy(logits)
        own.function = copy.copy(logits.function)
        own._traced = {}
        worker = make(own)
    else:
        vars(worker.judge.function).update(vars(logits.function))
    _taken[worker.judge] = key, state.owners
    return worker


def keep(workers: Iterable[Worker]) -> None:
    """Keeps workers as long as the objects exist on which their traces depend.

    Args:
        workers: The workers of an evaluation that succeeded. Those that `take`
            did not make, that trace nothing, or that hold a copy of the
            weights, are not kept.
    """
    for worker in workers:
        found = _taken.pop(worker.judge, None)
        copied = getattr(worker.judge.function, "values", None) is not None
        if found is not None and worker.judged and not copied:
            _keep(worker, *found)


def _state(logits: Logits) -> trace_state.State | None:
    """Reads what the traces of a model depend on; None if unknown."""
    plain = isinstance(logits.function, StatelessFunction)
    if not plain or tf.distribute.has_strategy():
        return None
    if tf.config.functions_run_eagerly():
        return None
    try:
        return trace_state.read(logits.without_traces())
    except (trace_state.Unreadable, RecursionError):
        return None


def _surroundings() -> tuple[Hashable, ...]:
    """Returns the settings of Keras that traces depend on."""
    return (
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.image_data_format(),
        keras.config.dtype_policy().name,
    )


def _keep(worker: Worker, key: Hashable, owners: list[Any]) -> None:
    """Keeps a worker, without the attacks that may hold a network."""
    for attack in [run for run in worker.runs if not run[0]]:
        del worker.runs[attack]
    vars(worker.judge.function).clear()

    def drop(_: Any) -> None:
        _kept.pop(key, None)

    unique = {id(owner): owner for owner in owners}.values()
    references = [weakref.ref(owner, drop) for owner in unique]
    with _lock:
        _kept[key] = worker, references
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
