"""Accuracy under attack, measured so that it can be trusted.

An attack is believed in nothing: what it returns is checked against the image
range and its budget, and classified again in inference mode. An example that is
misclassified without an attack counts as broken, one broken at a smaller
epsilon stays broken at a larger one, and only the others are attacked.

The examples are divided into chunks by their index. What a chunk's verdicts
depend on is the chunk, never the other chunks: so processes, devices and runs
that were cut off can share the work, and the answer stays the same to the bit.
"""

import concurrent.futures
import hashlib
import inspect
import queue
import threading
import time
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import scipy.stats
import tensorflow as tf

from tfsam import attacks as registry
from tfsam import classifiers
from tfsam import geometry
from tfsam import sanity
from tfsam import verdicts
from tfsam.attacks.base import Logits
from tfsam.attacks.check import TOLERANCE
from tfsam.attacks.check import contract
from tfsam.verdicts import MISCLASSIFIED
from tfsam.verdicts import NATURAL
from tfsam.verdicts import STANDS


class _Data(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray


class _Entry(NamedTuple):
    """An attack that was asked for."""

    name: str
    options: dict
    make: Callable


class _Plan(NamedTuple):
    """What is evaluated: all that a verdict depends on but the model."""

    data: _Data
    entries: list
    norm: str
    epsilons: list  # Ascending, each once.
    bounds: Any
    seed: int
    size: int  # Examples attacked at once.
    warm_start: bool
    keep_images: bool


class _Worker(NamedTuple):
    """A device, with the models as they run there and what was traced."""

    device: str | None
    judge: Logits  # The model that is evaluated.
    source: Logits  # The model that is attacked: the same, or a surrogate.
    predict: Callable
    traceable: bool
    runs: dict


class _Found(NamedTuple):
    """What an attack returned, checked and classified."""

    images: np.ndarray
    outputs: np.ndarray
    largest: float
    passes: np.ndarray  # Forward, gradient.


class _Reach(NamedTuple):
    """What a minimum-norm attack returned, for all epsilons."""

    distances: np.ndarray  # 0 where misclassified, infinite where not found.
    images: np.ndarray
    attacked: int
    passes: np.ndarray
    seconds: float


def evaluate(
    model,
    data,
    attacks,
    norm="linf",
    epsilons=(1 / 255, 2 / 255),
    *,
    bounds=(0.0, 1.0),
    seed=0,
    batch_size=128,
    strict=False,
    jit_compile="auto",
    progress=None,
    workdir=None,
    save_adversarial=False,
    devices=None,
    shard=(0, 1),
    surrogate=None,
    warm_start=False,
):
    """Measures natural accuracy and accuracy under each attack.

    Args:
        model: a Keras model, the path of a `.keras` file or of a SavedModel, or
            a callable from pixels to logits. A SavedModel is a program: load
            those of people you trust.
        data: (x, y) or a batched `tf.data.Dataset` of them; x float
            (n, ...) inside `bounds`, y class numbers (n,) or one-hot
            (n, classes).
        attacks: a list; an entry is a name of `tfsam.attacks.names()`, a pair
            (name, options), or a factory.
        norm: "linf" or "l2".
        epsilons: the budgets, in the units of x.
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images.
        seed: with an example's index, the key of its randomness.
        batch_size: examples attacked at once, a chunk.
        strict: raise what an attack raises, instead of giving a row with
            `error`.
        jit_compile: whether XLA compiles the network's gradients; "auto" does
            on GPUs.
        progress: a function of a line of text, called now and then.
        workdir: a folder that keeps every verdict, chunk by chunk; the same
            evaluation goes on from there. None keeps nothing.
        save_adversarial: keep the adversarial images there, too.
        devices: names of devices that share the chunks, such as
            ["GPU:0", "GPU:1"]; None is one, TensorFlow's own choice.
        shard: (i, n): evaluate every n-th chunk only, from the i-th; `merge`
            puts the shards together.
        surrogate: a model, as of `model`, that is attacked in its place: a
            transfer attack. The verdicts are those of `model`.
        warm_start: at each epsilon start from the image of the smaller one, for
            attacks that can (`pgd`); weaker starts make stronger attacks
            incomparable, so it is off.

    Returns:
        A dict: `natural` {`accuracy`, `n`, `interval`}; `robust`, a list,
        attack by attack and epsilon by epsilon in the order given: {`attack`,
        `options`, `norm`, `epsilon`, `epsilon_text`, `accuracy`, `n`,
        `interval`, `max_perturbation`, `inherited`, `attacked`,
        `forward_passes`, `gradient_passes`, `seconds`}; and `warnings`, a list
        of {`warning`, `message`}. Accuracies are fractions of all n examples,
        `interval` is Wilson's 95 % interval; `inherited` counts examples known
        broken from a smaller epsilon, `attacked` those attacked at this one,
        and the passes are what they cost on average, None where the attack does
        not tell. An ensemble's row has `broken_by`, how many examples fell to
        each stage, and `standard`; that of a minimum-norm attack has
        `median_distance` (of all examples, 0 where misclassified; None where
        half stand). A row has `error`, and accuracy None, where the attack
        failed.

    Raises:
        ValueError: if the model, the data, norm or an epsilon is bad, or
            `workdir` holds another evaluation: nothing is attacked then.
    """
    geometry.check_norm(norm)
    given = [
        geometry.check_radius("epsilon", e) for e in np.ravel(epsilons).tolist()
    ]
    geometry.check_count("batch_size", batch_size, 1)
    _check_shard(shard)
    entries = [_entry(a) for a in ([attacks] if _is_name(attacks) else attacks)]
    data = _load_data(data, bounds)
    size = min(batch_size, len(data.x))
    logits = classifiers.load_logits(model, jit_compile)
    classes = classifiers.count_classes(logits, data.x[:1])
    source = logits
    if surrogate is not None:
        source = classifiers.load_logits(surrogate, jit_compile)
        if classifiers.count_classes(source, data.x[:1]) != classes:
            raise ValueError(
                f"surrogate must have the model's {classes} outputs. Received: "
                f"{classifiers.count_classes(source, data.x[:1])} outputs"
            )
    plan = _Plan(
        data,
        entries,
        norm,
        sorted(set(given)),
        bounds,
        seed,
        size,
        warm_start,
        save_adversarial or warm_start,
    )
    probe = data.x[: classifiers.BLOCK_ROWS]
    record = verdicts.Record(
        {
            "schema": 1,
            "model": classifiers.fingerprint(model, logits, probe),
            "surrogate": None
            if surrogate is None
            else classifiers.fingerprint(surrogate, source, probe),
            "data": hashlib.sha256(
                data.x.tobytes() + data.y.tobytes()
            ).hexdigest(),
            "n": len(data.x),
            "classes": classes,
            "batch_size": size,
            "attacks": [
                {"name": e.name, "options": _plain(e.options)} for e in entries
            ],
            "norm": norm,
            "epsilons": given,
            "bounds": None if bounds is None else list(bounds),
            "seed": seed,
            "adversarial": save_adversarial,
            "warm_start": warm_start,
        },
        workdir,
    )
    chunks = range(shard[0], verdicts.chunk_count(record.header), shard[1])
    if not chunks:
        raise ValueError(
            f"shard must hold examples: there are {len(data.x)} in chunks of "
            f"{size}. Received: shard={shard[0]}/{shard[1]}"
        )
    workers = [
        _worker(device, logits, source, classes, size, data.x[:1])
        for device in devices or [None]
    ]
    _measure_natural(plan, workers, record, chunks)
    errors: dict = {}
    for number, entry in enumerate(entries):
        tell = _teller(plan, entry, len(chunks), progress)
        part = verdicts.part_of(number, entry.name)

        def work(worker, chunk, entry=entry, part=part, tell=tell):
            _attack_chunk(
                plan, entry, part, worker, record, chunk, errors, strict, tell
            )

        _spread(workers, work, chunks)
    return _result(record, chunks, errors)


def merge(folders):
    """The result of an evaluation whose shards were measured separately.

    Args:
        folders: the `workdir`s of the shards.

    Returns:
        What `evaluate` returns.

    Raises:
        ValueError: if a folder holds another evaluation, or a chunk or an
            attack was not measured by any.
    """
    record = verdicts.merged(folders)
    header = record.header
    chunks = range(verdicts.chunk_count(header))
    parts = [
        verdicts.part_of(number, attack["name"])
        for number, attack in enumerate(header["attacks"])
    ]
    count = len(set(header["epsilons"]))
    for part in [NATURAL, *parts]:
        last = "correct" if part == NATURAL else f"{count - 1}/verdict"
        missing = [
            c for c in chunks if count and last not in record.load(part, c)
        ]
        if missing:
            raise ValueError(
                "the shards together must have measured every chunk of "
                f"{header['batch_size']} examples; run the missing shard. "
                f"Received: no {part} of chunk {missing[0]}"
            )
    return _result(record, chunks, {})


def _worker(device, logits, source, classes, size, example):
    with tf.device(device):
        judge = classifiers.for_evaluation(logits, classes, size, device)
        if source is logits:
            source = judge
        else:
            source = classifiers.for_evaluation(source, classes, size, device)
        source.count_passes()
        traceable = classifiers.traceable(judge, example)
        if traceable:
            predict = tf.function(judge.predict, autograph=False)
        else:

            def predict(x, active):
                return judge.function(x)

        attackable = classifiers.traceable(source, example)
    return _Worker(device, judge, source, predict, attackable, {})


def _spread(workers, work, chunks):
    """Calls `work(worker, chunk)` for each chunk, on whoever is idle."""
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


def _measure_natural(plan, workers, record, chunks):
    """Natural verdicts into the record; refuses what are no logits."""

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
        found = {"correct": correct, "logits": outputs}
        if chunk == chunks[0]:
            right = indices[correct]
            found |= sanity.probe(
                worker.judge, plan.data.x[right], plan.data.y[right]
            )
        record.save(NATURAL, chunk, found)

    _spread(workers, work, chunks)
    _check_logits(
        np.concatenate([record.load(NATURAL, c)["logits"] for c in chunks]),
        plan.data,
    )


def _check_logits(outputs, data):
    softmax = np.allclose(outputs.sum(axis=1), 1, atol=1e-2)
    sigmoid = 0.5 < outputs.max() <= 1
    if outputs.min() >= 0 and (softmax or sigmoid):
        raise ValueError(
            "model must return logits, not probabilities: their gradients "
            "vanish, and the model looks robust. Take the softmax or sigmoid "
            "off its last layer. Received: outputs that lie in [0, 1]"
        )
    classes = outputs.shape[1]
    if data.y.ndim == 2 and data.y.shape[1] != classes:
        raise ValueError(
            f"one-hot y must have the model's number of outputs, {classes}. "
            f"Received: y of shape {data.y.shape}"
        )
    if data.labels.min() < 0 or data.labels.max() >= classes:
        raise ValueError(
            f"y must be below the model's number of outputs, {classes}. "
            f"Received: y in [{data.labels.min()}, {data.labels.max()}]"
        )


def _attack_chunk(
    plan, entry, part, worker, record, chunk, errors, strict, tell
):
    """All epsilons on one chunk, ascending; what is measured is kept."""
    indices = verdicts.chunk_indices(record.header, chunk)
    found = dict(record.load(part, chunk))
    if plan.keep_images and f"{len(plan.epsilons) - 1}/verdict" not in found:
        found = {}  # The images of the epsilons that are done are not at hand.
    correct = record.load(NATURAL, chunk)["correct"]
    verdict = np.where(correct, STANDS, MISCLASSIFIED).astype(np.int8)
    reach = images = None
    for index, epsilon in enumerate(plan.epsilons):
        if f"{index}/verdict" in found:
            verdict = found[f"{index}/verdict"]
        elif (part, index) not in errors:
            try:
                attack = entry.make(
                    epsilon=epsilon, norm=plan.norm, bounds=plan.bounds
                )
                if getattr(attack, "minimum_norm", False):
                    reach = reach or _reach(
                        plan, part, worker, attack, indices, verdict
                    )
                    new = _within(epsilon, reach, verdict, plan)
                    # The first epsilon has paid for all.
                    reach = reach._replace(
                        attacked=0, passes=0 * reach.passes, seconds=0.0
                    )
                else:
                    new, images = _attack(
                        *(plan, part, worker, attack, epsilon),
                        *(indices, verdict, images),
                    )
            except Exception as error:
                if strict:
                    raise
                errors[part, index] = f"{type(error).__name__}: {error}"
            else:
                verdict = new["verdict"]
                found |= {f"{index}/{k}": v for k, v in new.items()}
                record.save(part, chunk, found)
        tell(index, verdict)


def _attack(plan, part, worker, attack, epsilon, indices, verdict, images):
    """One epsilon on one chunk: what is saved of it, and the images."""
    started = time.perf_counter()
    verdict = verdict.copy()
    attacked = int((verdict == STANDS).sum())
    stages = getattr(attack, "stages", None) or [("", attack)]
    start = images if plan.warm_start and _can_start(attack) else None
    images = plan.data.x[indices].copy()
    largest, passes = 0.0, np.zeros(2, np.int64)
    for number, (name, stage) in enumerate(stages, 1):
        standing = np.flatnonzero(verdict == STANDS)
        if not len(standing):
            break
        found = _run(
            plan,
            (part, name),
            worker,
            stage,
            indices[standing],
            epsilon,
            start=None if start is None else start[standing],
        )
        wrong = found.outputs.argmax(1) != plan.data.labels[indices[standing]]
        verdict[standing[wrong]] = number
        images[standing] = found.images
        largest = max(largest, found.largest)
        passes += found.passes
    saved = {
        "verdict": verdict,
        "largest": np.array(largest),
        "attacked": np.array(attacked),
        "passes": passes,
        "stages": np.array([name for name, _ in stages]),
        "seconds": np.array(time.perf_counter() - started),
    }
    if plan.keep_images:
        saved["adversarial"] = images
    return saved, images


def _reach(plan, part, worker, attack, indices, verdict):
    """One run of a minimum-norm attack, for all epsilons of a chunk."""
    started = time.perf_counter()
    distances = np.where(verdict == STANDS, np.inf, 0.0)
    images = plan.data.x[indices].copy()
    standing = np.flatnonzero(verdict == STANDS)
    passes = np.zeros(2, np.int64)
    if len(standing):
        found = _run(plan, (part,), worker, attack, indices[standing])
        wrong = found.outputs.argmax(1) != plan.data.labels[indices[standing]]
        moved = (found.images - images[standing]).reshape(len(standing), -1)
        moved = np.linalg.norm(
            moved.astype(np.float64), np.inf if plan.norm == "linf" else 2, 1
        )
        distances[standing] = np.where(wrong, moved, np.inf)
        images[standing] = found.images
        passes = found.passes
    seconds = time.perf_counter() - started
    return _Reach(distances, images, len(standing), passes, seconds)


def _within(epsilon, reach, verdict, plan):
    """What a minimum-norm attack's run says of one epsilon."""
    reached = reach.distances <= epsilon * (1 + TOLERANCE) + TOLERANCE
    verdict = np.where((verdict == STANDS) & reached, 1, verdict)
    saved = {
        "verdict": verdict.astype(np.int8),
        "largest": reach.distances[reached].max(initial=0.0),
        "attacked": np.array(reach.attacked),
        "passes": reach.passes,
        "stages": np.array([""]),
        "seconds": np.array(reach.seconds),
        "distances": reach.distances,
    }
    if plan.keep_images:
        saved["adversarial"] = reach.images
    return saved


def _run(plan, key, worker, attack, indices, epsilon=None, start=None):
    """Attacks some examples of a chunk; without an epsilon, finds the nearest.

    The network sees blocks of the active examples, whatever the batch, so one
    batch does for all; attacks that do not leave examples out get the smallest
    of three batches that will do.
    """
    traced = worker.traceable and getattr(attack, "in_graph", False)
    selective = traced and attack.selective and worker.source.rows is not None
    any_epsilon = getattr(attack, "tensor_epsilon", False)
    size = plan.size if selective else _batch_size(len(indices), plan.size)
    batch = np.resize(indices, size)
    x = plan.data.x[batch]
    seeds = np.stack([np.full_like(batch, plan.seed), batch], axis=1)
    active = tf.constant(np.arange(size) < len(indices))
    logits = worker.source if worker.traceable else worker.source.function

    def run(x, y, seeds, active, radius, *start):
        made = attack.with_epsilon(radius) if any_epsilon else attack
        source = logits.only(active) if selective else logits
        call = made.closest if epsilon is None else made
        return call(source, x, y, seeds, *start)

    if traced:
        fixed = None if any_epsilon else epsilon
        key = (*key, size, start is None, fixed)
        traced_run = tf.function(run, autograph=False)
        run = worker.runs.setdefault(key, traced_run)
    worker.source.passes.assign([0, 0])
    x_adv = run(
        tf.constant(x),
        tf.constant(plan.data.y[batch]),
        tf.constant(seeds.astype(np.int32)),
        active,
        tf.constant(epsilon or 0.0, x.dtype),
        *([] if start is None else [tf.constant(np.resize(start, x.shape))]),
    )
    passes = worker.source.passes.numpy()
    allowed = np.inf if epsilon is None else epsilon
    largest = contract(x, x_adv, allowed, plan.norm, plan.bounds)
    outputs = _numpy(worker.predict(x_adv, active))
    if not np.isfinite(outputs).all():
        raise ValueError(
            "the model must return finite logits under attack. "
            "Received: NaN or infinity"
        )
    count = len(indices)
    return _Found(_numpy(x_adv)[:count], outputs[:count], largest, passes)


def _batch_size(count, largest):
    """The smallest of three sizes that holds so many examples."""
    sizes = (-(-largest // 16), -(-largest // 4), largest)
    return next(size for size in sizes if size >= count)


def _result(record, chunks, errors):
    """The result, from what the record holds of some chunks."""
    header = record.header
    natural = [record.load(NATURAL, chunk) for chunk in chunks]
    correct = np.concatenate([n["correct"] for n in natural])
    ascending = sorted(set(header["epsilons"]))
    attacks = header["attacks"]
    robust: list = []
    columns: list[dict] = [{} for _ in ascending]
    stages: dict = {}
    for number, attack in enumerate(attacks):
        part = verdicts.part_of(number, attack["name"])
        found = [record.load(part, chunk) for chunk in chunks]
        before, rows = ~correct, {}
        for index, epsilon in enumerate(ascending):
            row = {
                "attack": attack["name"],
                "options": attack["options"],
                "norm": header["norm"],
                "epsilon": epsilon,
                "epsilon_text": epsilon_text(epsilon),
            }
            inherited = int((before & correct).sum())
            if (part, index) in errors:
                row |= _accuracy(~before) | {
                    "accuracy": None,
                    "interval": None,
                    "max_perturbation": None,
                    "inherited": inherited,
                    "seconds": 0.0,
                    "error": errors[part, index],
                }
            else:
                held = [
                    {
                        k.partition("/")[2]: v
                        for k, v in arrays.items()
                        if k.startswith(f"{index}/")
                    }
                    for arrays in found
                ]
                verdict = np.concatenate([h["verdict"] for h in held])
                before = verdict != STANDS
                names = [str(name) for name in held[0]["stages"]]
                row |= _row(held, verdict, names, inherited, header)
                label = f"{number} {attack['name']}"
                stages[label] = [name or attack["name"] for name in names]
                columns[index][label] = verdict
            rows[epsilon] = row
        robust += [rows[epsilon] for epsilon in header["epsilons"]]
    warnings = sanity.of_model([n for n in natural if "probed" in n])
    warnings += sanity.of_classes(
        header["classes"], [attack["name"] for attack in attacks]
    )
    for epsilon, column in zip(ascending, columns, strict=True):
        text = f"{header['norm']} {epsilon_text(epsilon)}"
        warnings += sanity.of_verdicts(column, stages, text)
    return {
        "natural": _accuracy(correct),
        "robust": robust,
        "warnings": warnings,
    }


def _row(held, verdict, names, inherited, header):
    """The measured part of a row, from what each chunk's file says."""
    attacked = sum(int(h["attacked"]) for h in held)
    passes = sum(h["passes"] for h in held)
    counted = attacked and passes.any()
    row = _accuracy(verdict == STANDS) | {
        "max_perturbation": float(max(h["largest"] for h in held)),
        "inherited": inherited,
        "attacked": attacked,
        "forward_passes": float(passes[0] / attacked) if counted else None,
        "gradient_passes": float(passes[1] / attacked) if counted else None,
        "seconds": float(sum(h["seconds"] for h in held)),
    }
    if len(names) > 1:
        row["broken_by"] = {
            name: int((verdict == number).sum())
            for number, name in enumerate(names, 1)
        }
        row["standard"] = header["classes"] >= 4
    if "distances" in held[0]:
        median = float(
            np.median(np.concatenate([h["distances"] for h in held]))
        )
        row["median_distance"] = median if np.isfinite(median) else None
    return row


def _teller(plan, entry, chunks, progress):
    """A function that says how far an attack is, every five seconds."""
    lock = threading.Lock()
    started = said = time.perf_counter()
    counts = {epsilon: [0, 0] for epsilon in plan.epsilons}
    done = 0

    def tell(index, verdict):
        nonlocal done, said
        with lock:
            done += 1
            count = counts[plan.epsilons[index]]
            count[0] += int((verdict == STANDS).sum())
            count[1] += len(verdict)
            now = time.perf_counter()
            total = chunks * len(plan.epsilons)
            if progress is None or (now - said <= 5 and done < total):
                return
            said = now
            so_far = ", ".join(
                f"{epsilon_text(epsilon)} {stand / seen:.4f} of {seen}"
                for epsilon, (stand, seen) in counts.items()
                if seen
            )
            left = (now - started) / done * (total - done)
            progress(
                f"{entry.name} {plan.norm}: robust accuracy so far {so_far}; "
                f"{left:.0f} s left"
            )

    return tell


def _load_data(data, bounds):
    """Arrays, checked."""
    if isinstance(data, tf.data.Dataset):
        batches = [
            keras.utils.unpack_x_y_sample_weight(b)
            for b in data.as_numpy_iterator()
        ]
        if not batches:
            raise ValueError("data must hold examples. Received: none")
        data = (
            np.concatenate([b[0] for b in batches]),
            np.concatenate([b[1] for b in batches]),
        )
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise ValueError(
            "data must be (x, y) or a batched tf.data.Dataset of them. "
            f"Received: {type(data).__name__}"
        )
    x, y = (np.asarray(part) for part in data[:2])
    if x.ndim < 2 or y.ndim < 1:
        raise ValueError(
            "x must be of shape (n, ...) and y of (n,) or (n, classes); a "
            f"Dataset must be batched. Received: {x.shape} and {y.shape}"
        )
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"x must be float with values in {bounds}; divide images of 0 to "
            f"255 by 255. Received: x.dtype={x.dtype}"
        )
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            "x and y must have the same number of examples, at least one. "
            f"Received: {len(x)} and {len(y)}"
        )
    if not np.isfinite(x).all():
        raise ValueError("x must be finite. Received: x with NaN or infinity")
    if bounds is not None and (x.min() < bounds[0] or x.max() > bounds[1]):
        raise ValueError(
            f"x must lie in bounds={bounds}; normalisation belongs inside the "
            f"model. Received: x in [{x.min():g}, {x.max():g}]"
        )
    # An attack's result, rounded to float16, would leave its ball.
    x = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    if y.ndim == 2 and y.shape[1] > 1:
        return _Data(x, y, y.argmax(axis=1))
    labels = y.reshape(len(y), -1)
    if labels.shape[1] != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            "y must be integers (n,) or one-hot (n, classes). "
            f"Received: y of shape {y.shape} and dtype {y.dtype}"
        )
    labels = labels[:, 0].astype(np.int64)
    return _Data(x, labels, labels)


def _is_name(attack):
    return isinstance(attack, str) or callable(attack)


def _entry(attack):
    """A name, (name, options) or factory as an `_Entry`."""
    options = {}
    if isinstance(attack, (tuple, list)) and len(attack) == 2:
        attack, options = attack[0], dict(attack[1])
    if isinstance(attack, str):
        name = attack

        def make(**arguments):
            return registry.get(name, **arguments, **options)

    elif callable(attack):
        function = getattr(attack, "func", attack)  # Of a functools.partial.
        name = getattr(function, "__name__", type(function).__name__)

        def make(**arguments):
            return registry.make(attack, **arguments, **options)

    else:
        raise ValueError(
            "an attack must be a name, (name, options) or a factory. "
            f"Received: {attack}"
        )
    return _Entry(name, options, make)


def _check_shard(shard):
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(
            "shard must be i/n with 0 <= i < n. "
            f"Received: shard={index}/{count}"
        )


def _can_start(attack):
    call = getattr(attack, "perturb", attack)
    return "start" in inspect.signature(call).parameters


def _numpy(tensor):
    return tf.convert_to_tensor(tensor).numpy()


def _plain(options):
    """Options as JSON has them, for comparing."""
    return {
        k: v if isinstance(v, (str, int, float, bool, type(None))) else repr(v)
        for k, v in options.items()
    }


def _accuracy(correct):
    """Accuracy of boolean verdicts, with Wilson's 95 % interval."""
    n, k = len(correct), int(correct.sum())
    interval = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": k / n,
        "n": n,
        "interval": [float(interval.low), float(interval.high)],
    }


def epsilon_text(epsilon):
    """An epsilon as people write it: "8/255" where it is one, else a number.

    Args:
        epsilon: a number >= 0.
    """
    of_255 = round(epsilon * 255)
    short = float(f"{epsilon:.3g}") == epsilon
    if of_255 and not short and abs(of_255 / 255 - epsilon) < 1e-9:
        return f"{of_255}/255"
    return f"{epsilon:g}"
