"""Chunks of examples, attacked and judged, each on one device.

An attack is believed in nothing: what it returns is checked against the image
range and its budget, and classified again. Verdicts go into a record; see
`verdicts.py`.
"""

import concurrent.futures
import functools
import inspect
import queue
import threading
import time
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks.check import TOLERANCE
from tfsam.attacks.check import contract
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import traced
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.accuracies import epsilon_text
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.verdicts import STANDS
from tfsam.models import classifiers
from tfsam.support import identity
from tfsam.support.labels import check_classes
from tfsam.support.outputs import check_logits

# Told in place of a stage: the verdicts are of an earlier process, or there are
# none.
_LOADED, _FAILED = object(), object()


class Data(NamedTuple):
    """What is attacked, checked: pixels, labels, and labels as numbers."""

    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray


class Entry(NamedTuple):
    """An attack that was asked for."""

    name: str
    options: dict
    make: Callable
    source: str = "registry"  # Or "factory", or "named" by the user.


class Plan(NamedTuple):
    """What is evaluated: all that a verdict depends on but the model."""

    data: Data
    entries: list
    norm: str
    epsilons: list  # Ascending, each once.
    bounds: Any
    seed: int
    size: int  # Examples attacked at once.
    warm_start: bool
    keep_images: bool  # In the record.
    transfer: bool = False  # A surrogate is attacked.


class Worker(NamedTuple):
    """A device, with the models as they run there and what was traced."""

    device: str | None
    judge: Logits  # The model that is evaluated.
    source: Logits  # The model that is attacked: the same, or a surrogate.
    predict: Callable
    judged: bool  # Whether `judge` can be traced.
    traceable: bool  # Whether `source` can.
    runs: dict


class Turn(NamedTuple):
    """An attack's turn at a worker."""

    plan: Plan
    entry: Entry
    part: str  # Of the record, where its verdicts go.
    worker: Worker


class _Found(NamedTuple):
    """What an attack returned, checked and classified."""

    images: np.ndarray
    outputs: np.ndarray
    largest: float
    passes: np.ndarray  # Forward, gradient.
    nonfinite: int  # Gradients of examples that are not finite.
    facts: red_flags.Facts  # About the attack.


class _Reach(NamedTuple):
    """What a minimum-norm attack returned, for all epsilons."""

    distances: np.ndarray  # 0 where misclassified, infinite where not found.
    images: np.ndarray
    attacked: int
    passes: np.ndarray
    nonfinite: int
    facts: red_flags.Facts
    seconds: float


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
        judge = classifiers.for_evaluation(logits, classes, shape, device)
        transferred = source is not logits
        if transferred:
            source = classifiers.for_evaluation(source, classes, shape, device)
        else:
            source = judge
        traceable = classifiers.traceable(judge, example)
        if traceable:
            predict = traced(judge.predict)
        else:

            def predict(x, active):
                return judge.function(x)

        attackable = classifiers.traceable(source, example)
        if not attackable:  # In no blocks: they are traced.
            source = Logits(source.function, classes=classes)
        if transferred:
            source = source.as_surrogate()
        source.most = most
        source.count_passes()
    return Worker(device, judge, source, predict, traceable, attackable, {})


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


def measure_natural(plan, workers, record, chunks):
    """Natural verdicts into the record; refuses what are no logits.

    Args:
        plan: a `Plan`.
        workers: a list of `Worker`s.
        record: a `verdicts.Record`.
        chunks: numbers of chunks.

    Raises:
        ValueError: if the model's outputs are no logits of the data's classes.
    """

    def work(worker, chunk):
        if record.load(NATURAL, chunk):
            return
        indices = verdicts.chunk_indices(record.header, chunk)
        x = plan.data.x[np.resize(indices, plan.size)]
        active = np.arange(plan.size) < len(indices)
        outputs = _numpy(worker.predict(tf.constant(x), tf.constant(active)))
        outputs = outputs[: len(indices)]
        if not np.isfinite(outputs).all():
            raise ValueError(
                "model must return finite logits. Received: NaN or infinity"
            )
        correct = outputs.argmax(axis=1) == plan.data.labels[indices]
        found = {
            "correct": correct,
            "logits": outputs,
            "transfer": np.array(plan.transfer),
        }
        if chunk == 0:  # The same chunk, whoever has it.
            right = np.zeros(plan.size, bool)
            right[: len(indices)] = correct
            found |= red_flags.probe_outputs(worker.judge.function, x)
            found["seen_range"] = np.array(
                red_flags.seen_range(worker.judge.function, plan.data.x)
            )
            reach = max(plan.epsilons, default=0.0)
            found |= red_flags.probe_gradients(
                worker.source,
                x,
                plan.data.y[np.resize(indices, plan.size)],
                right,
                worker.traceable,
                red_flags.pushed_to_bounds(x, plan.bounds, reach),
            )
        record.save(NATURAL, chunk, found)

    spread(workers, work, chunks)
    outputs = [record.load(NATURAL, c)["logits"] for c in chunks]
    network = getattr(workers[0].judge.function, "model", None)
    check_logits(np.concatenate(outputs), network)
    check_classes(plan.data.y, plan.data.labels, outputs[0].shape[1])


def attack_chunk(turn, record, chunk, errors, strict, tell):
    """All epsilons on one chunk, ascending; what is measured is kept.

    Args:
        turn: a `Turn`.
        record: a `verdicts.Record`.
        chunk: number of the chunk.
        errors: a dict from (part, number of the epsilon) to the message of an
            attack that failed; it fails once.
        strict: raise what an attack raises.
        tell: called with the number of the epsilon and the verdicts; in the
            midst of an ensemble also with the stage that is done, and where
            nothing was measured with `_LOADED` or `_FAILED` in its place.
    """
    plan, part = turn.plan, turn.part
    indices = verdicts.chunk_indices(record.header, chunk)
    found = dict(record.load(part, chunk))
    count = len(plan.epsilons)
    missing = (i for i in range(count) if f"{i}/verdict" not in found)
    done = next(missing, count)
    needed = plan.keep_images or plan.warm_start or "0/distances" in found
    if done < count and needed:
        done = 0  # Images and distances of what is done are not at hand.
    # What came after one that failed knows nothing of whom that one breaks.
    found = {k: v for k, v in found.items() if int(k.split("/")[0]) < done}
    correct = record.load(NATURAL, chunk)["correct"]
    verdict = np.where(correct, STANDS, MISCLASSIFIED).astype(np.int8)
    before, images = verdict, None
    reaches: dict = {}
    for index, epsilon in enumerate(plan.epsilons):
        if f"{index}/verdict" in found:
            verdict = found[f"{index}/verdict"]
            tell(index, verdict, _LOADED)
        elif (part, index) in errors:
            tell(index, verdict, _FAILED)
        else:
            try:
                attack = turn.entry.make(
                    epsilon=epsilon, norm=plan.norm, bounds=plan.bounds
                )
                if _serves_all(turn, attack):
                    kind = _kind(attack, epsilon)
                    reach = reaches.get(kind)
                    if reach is None:
                        reach = _reach(turn, attack, kind, indices, before)
                    new = _within(
                        *(turn, attack, epsilon, indices, verdict, reach)
                    )
                    # The first epsilon has paid for all of this kind.
                    reaches[kind] = reach._replace(
                        attacked=0, passes=0 * reach.passes, seconds=0.0
                    )
                else:
                    new, images = _attack(
                        *(turn, attack, epsilon, indices, verdict, images),
                        functools.partial(tell, index),
                    )
            except Exception as error:
                if strict:
                    raise
                errors[part, index] = f"{type(error).__name__}: {error}"
                tell(index, verdict, _FAILED)
            else:
                verdict = new["verdict"]
                found |= {f"{index}/{k}": v for k, v in new.items()}
                record.save(part, chunk, found)
                tell(index, verdict)


def _attack(turn, attack, epsilon, indices, verdict, images, tell):
    """One epsilon on one chunk: what is saved of it, and the images."""
    plan = turn.plan
    started = time.perf_counter()
    verdict = verdict.copy()
    attacked = int((verdict == STANDS).sum())
    stages = getattr(attack, "stages", None) or [("", attack)]
    start = images if plan.warm_start and _can_start(attack) else None
    images = plan.data.x[indices].copy()
    largest, passes, nonfinite = 0.0, np.zeros(2, np.int64), 0
    facts = [red_flags.facts_of(stage) for _, stage in stages]
    for number, (name, stage) in enumerate(stages, 1):
        standing = np.flatnonzero(verdict == STANDS)
        if not len(standing):
            break
        found = _run(
            turn,
            stage,
            (number, _kind(stage, epsilon)),
            indices[standing],
            epsilon,
            start=None if start is None else start[standing],
        )
        wrong = found.outputs.argmax(1) != plan.data.labels[indices[standing]]
        verdict[standing[wrong]] = number
        images[standing] = found.images
        largest = max(largest, found.largest)
        passes += found.passes
        nonfinite += found.nonfinite
        facts[number - 1] = found.facts
        if number < len(stages):
            tell(verdict, name)
    saved = {
        "verdict": verdict,
        "largest": np.array(largest),
        "attacked": np.array(attacked),
        "passes": passes,
        "nan_gradients": np.array(nonfinite),
        "stages": np.array([name for name, _ in stages]),
        **_columns(facts),
        "seconds": np.array(time.perf_counter() - started),
    }
    if plan.keep_images:
        saved["adversarial"] = images
    return saved, images


def _reach(turn, attack, kind, indices, verdict):
    """One run of a minimum-norm attack, for all epsilons of a chunk."""
    plan = turn.plan
    started = time.perf_counter()
    distances = np.where(verdict == STANDS, np.inf, 0.0)
    images = plan.data.x[indices].copy()
    standing = np.flatnonzero(verdict == STANDS)
    passes, nonfinite = np.zeros(2, np.int64), 0
    facts = red_flags.facts_of(attack)
    if len(standing):
        found = _run(turn, attack, (1, kind), indices[standing])
        wrong = found.outputs.argmax(1) != plan.data.labels[indices[standing]]
        moved = (found.images - images[standing]).reshape(len(standing), -1)
        moved = np.linalg.norm(
            moved.astype(np.float64), np.inf if plan.norm == "linf" else 2, 1
        )
        distances[standing] = np.where(wrong, moved, np.inf)
        images[standing] = found.images
        passes, nonfinite = found.passes, found.nonfinite
        facts = found.facts
    seconds = time.perf_counter() - started
    return _Reach(
        distances, images, len(standing), passes, nonfinite, facts, seconds
    )


def _serves_all(turn, attack):
    """Returns whether one run of an attack serves every epsilon.

    The run of a minimum-norm attack does, except on a surrogate: its nearest
    points measure how robust the surrogate is.
    """
    nearest = getattr(attack, "minimum_norm", False)
    return nearest and not turn.worker.source.surrogate


def _within(turn, attack, epsilon, indices, verdict, reach):
    """What a minimum-norm attack's run says of one epsilon."""
    plan = turn.plan
    reached = reach.distances <= epsilon * (1 + TOLERANCE) + TOLERANCE
    verdict = np.where((verdict == STANDS) & reached, 1, verdict)
    saved = {
        "verdict": verdict.astype(np.int8),
        "largest": reach.distances[reached].max(initial=0.0),
        "attacked": np.array(reach.attacked),
        "passes": reach.passes,
        # The same run serves all epsilons.
        "nan_gradients": np.array(reach.nonfinite),
        "stages": np.array([""]),
        **_columns([reach.facts]),
        "seconds": np.array(reach.seconds),
        "distances": reach.distances,
    }
    if plan.keep_images:
        images = plan.data.x[indices].copy()
        images[reached] = reach.images[reached]
        saved["adversarial"] = images
    return saved


def _columns(facts):
    """Returns the facts about stages as arrays, one a fact, for a record."""
    return {
        name: np.array(column)
        for name, column in zip(
            red_flags.Facts._fields, zip(*facts, strict=True), strict=True
        )
    }


def _kind(attack, epsilon):
    """Returns a key, equal for attacks that may share a trace or a run.

    An attack that computes with a tensor for epsilon (`tensor_epsilon`), or
    whose run serves every epsilon (`minimum_norm`), is of the same kind at
    another epsilon if all of its other attributes are equal: one that derives a
    step size from its epsilon is not. Where the attributes cannot be described,
    the epsilon itself keeps the attacks apart.
    """
    shared = any(
        getattr(attack, flag, False)
        for flag in ("tensor_epsilon", "minimum_norm")
    )
    if not shared or not _at(attack, epsilon):
        return epsilon
    try:
        described = identity.describe(attack, without=["epsilon"])
    except identity.Unknown:
        return epsilon
    return identity.digest(described)


def _at(attack, epsilon):
    """Returns whether an attack has no epsilon but the evaluation's."""
    own = getattr(attack, "epsilon", None)
    return own is None or own == epsilon


def describe(attack, epsilon):
    """Describes an attack so that another process recognises it.

    Args:
        attack: what a factory made.
        epsilon: of the evaluation; it is not part of the description.

    Returns:
        A dict of JSON's types.

    Raises:
        tfsam.support.identity.Unknown: if the attack cannot be described.
    """

    def described(attack):
        without = ["epsilon"] if _at(attack, epsilon) else []
        return identity.describe(attack, without)

    parts = identity.compact(described(attack))
    stages = getattr(attack, "stages", None)
    if stages:
        parts["stages"] = identity.digest(
            [[name, described(stage)] for name, stage in stages]
        )
    library = getattr(attack, "library", None)
    if isinstance(library, str):
        parts["library"] = f"{library} {identity.version_of(library)}"
    return parts


def _run(turn, attack, trace, indices, epsilon=None, start=None):
    """Attacks some examples of a chunk; without an epsilon, finds the nearest.

    The network sees blocks of the active examples, whatever the batch, so one
    batch does for all; attacks that do not leave examples out get the smallest
    of three batches that will do.

    An attack that runs in a graph is traced once for all chunks. `trace` says
    which trace is its own: the position in an ensemble, from 1, for two stages
    may have one name, and the attack's `_kind`.
    """
    plan, worker = turn.plan, turn.worker
    in_graph = worker.traceable and getattr(attack, "in_graph", False)
    asks_for = getattr(attack, "selective", False)
    selective = in_graph and asks_for and worker.source.rows is not None
    any_epsilon = (
        getattr(attack, "tensor_epsilon", False)
        and epsilon is not None
        and _at(attack, epsilon)
    )
    size = plan.size if selective else _batch_size(len(indices), plan.size)
    batch = np.resize(indices, size)
    x = plan.data.x[batch]
    seeds = np.stack([np.full_like(batch, plan.seed), batch], axis=1)
    active = tf.constant(np.arange(size) < len(indices))
    logits: Any = worker.source
    if not worker.traceable:  # A plain function: nothing may be traced.
        logits = functools.partial(worker.source)
        logits.surrogate = worker.source.surrogate

    def run(x, y, seeds, active, radius, *start):
        made = attack.with_epsilon(radius) if any_epsilon else attack
        source = logits.only(active) if selective else logits
        call = made.closest if epsilon is None else made
        return call(source, x, y, seeds, *start)

    if in_graph:
        key = (turn.part, trace, size, start is None, epsilon is None)
        run = worker.runs.setdefault(key, traced(run))
    worker.source.count_passes()
    x_adv = run(
        tf.constant(x),
        tf.constant(plan.data.y[batch]),
        tf.constant(seeds.astype(np.int32)),
        active,
        tf.constant(epsilon or 0.0, x.dtype),
        *([] if start is None else [tf.constant(np.resize(start, x.shape))]),
    )
    passes, nonfinite, taken = worker.source.counted()
    steps = max(passes[1] / (len(indices) if selective else size), taken / size)
    uncounted = in_graph and not passes.any()
    if uncounted and not red_flags.facts_of(attack).gradient_free:
        # Gradients by tapes of its own cannot be counted in a graph.
        steps = np.inf
        red_flags.look_at_slopes(worker.source, x, plan.data.y[batch])
        nonfinite = worker.source.counted().nonfinite
    allowed = np.inf if epsilon is None else epsilon
    try:
        largest = contract(x, x_adv, allowed, plan.norm, plan.bounds)
    except ValueError as error:
        if not nonfinite:
            raise
        raise ValueError(
            "the network's input gradients are NaN or infinite, which the "
            f"warning nan_gradients explains, and {error}"
        ) from error
    outputs = _numpy(worker.predict(x_adv, active))
    if not np.isfinite(outputs).all():
        raise ValueError(
            "the model must return finite logits under attack. "
            "Received: NaN or infinity"
        )
    count = len(indices)
    return _Found(
        _numpy(x_adv)[:count],
        outputs[:count],
        largest,
        passes,
        nonfinite,
        red_flags.facts_of(attack, steps),
    )


def _batch_size(count, largest):
    """The smallest of three sizes that holds so many examples."""
    sizes = (-(-largest // 16), -(-largest // 4), largest)
    return next(size for size in sizes if size >= count)


def teller(plan, entry, chunks, progress):
    """Makes a function that logs how far an attack is, every five seconds.

    Args:
        plan: a `Plan`.
        entry: the attack's `Entry`.
        chunks: how many.
        progress: a function of a line of text, or None.
    """
    if progress is None:
        return lambda index, verdict, stage=None: None
    lock = threading.Lock()
    log = _Log(plan, entry, chunks * len(plan.epsilons), progress)

    def tell(index, verdict, stage=None):
        with lock:
            if stage is None or stage in (_LOADED, _FAILED):
                log.chunk(index, verdict, stage)
            else:
                log.stage(index, verdict, stage)

    return tell


class _Log:
    """The progress of an attack, in lines of text.

    Args:
        plan: a `Plan`.
        entry: the attack's `Entry`.
        total: how many chunks there are, times the number of epsilons.
        progress: a function of a line.
    """

    def __init__(self, plan, entry, total, progress):
        self.plan, self.total, self.progress = plan, total, progress
        self.name = f"{entry.name} {plan.norm}"
        self.started = self.said = time.perf_counter()
        self.done = self.measured = 0
        self.counts = {epsilon: [0, 0] for epsilon in plan.epsilons}
        self.failed: set = set()

    def stage(self, index, verdict, stage):
        """Logs the end of an ensemble's stage in a chunk."""
        if time.perf_counter() - self.said > 5:
            self.said = time.perf_counter()
            self.progress(
                f"{self.name} {epsilon_text(self.plan.epsilons[index])}: after "
                f"{stage} {(verdict == STANDS).sum()} of {len(verdict)} stand "
                "in this chunk"
            )

    def chunk(self, index, verdict, source):
        """Logs a chunk that is done at an epsilon, if it is time to."""
        epsilon = self.plan.epsilons[index]
        self.done += 1
        if source is _FAILED:
            self.failed.add(epsilon)
        else:
            self.counts[epsilon][0] += int((verdict == STANDS).sum())
            self.counts[epsilon][1] += len(verdict)
        self.measured += source is None
        now = time.perf_counter()
        if now - self.said > 5 or self.done >= self.total:
            self.said = now
            self.progress(f"{self.name}: " + "; ".join(self._news(now)))

    def _news(self, now):
        so_far = [
            f"{epsilon_text(epsilon)} {stand / seen:.4f} of {seen}"
            for epsilon, (stand, seen) in self.counts.items()
            if seen and epsilon not in self.failed
        ]
        if so_far:
            yield "robust accuracy so far " + ", ".join(so_far)
        if self.failed:
            failed = ", ".join(map(epsilon_text, sorted(self.failed)))
            yield f"failed at {failed}"
        # What was loaded took no time, and says nothing of the rest.
        left = self.total - self.done
        if self.measured or not left:
            seconds = (now - self.started) / max(self.measured, 1) * left
            yield f"{seconds:.0f} s left"


def _can_start(attack):
    call = getattr(attack, "perturb", attack)
    return "start" in inspect.signature(call).parameters


def cold(entries, norms, epsilon, bounds):
    """Returns the names of attacks that cannot start from an image.

    Args:
        entries: a list of `Entry`.
        norms: "linf", "l2" or both; an attack is named if it can start in none
            of those in which it can be made.
        epsilon: the budget to make the attacks with.
        bounds: (lowest, highest) pixel value, or None.

    Returns:
        A list. An attack that cannot be made is not in it: its row has an
        error.
    """

    def starts(entry, norm):
        try:
            attack = entry.make(epsilon=epsilon, norm=norm, bounds=bounds)
            return _can_start(attack)
        except Exception:
            # Whatever a factory raises, the attack's own row reports it.
            return None

    found = {e.name: [starts(e, norm) for norm in norms] for e in entries}
    return [
        name
        for name, facts in found.items()
        if False in facts and True not in facts
    ]


def _numpy(tensor):
    return tf.convert_to_tensor(tensor).numpy()
