"""Accuracy on corrupted images: noise, blur, weather and digital artefacts."""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.corruptions.base import SEVERITIES
from tfsam.corruptions.base import check_severity
from tfsam.corruptions.base import size_of_constants
from tfsam.corruptions.images import CorruptionFn
from tfsam.corruptions.images import corrupt_with
from tfsam.corruptions.selection import chosen
from tfsam.corruptions.selection import left_out
from tfsam.evaluation import cache_key
from tfsam.evaluation import corrupted_verdicts
from tfsam.evaluation import model_probes
from tfsam.evaluation.corrupted_verdicts import Verdicts
from tfsam.evaluation.intervals import accuracy_of
from tfsam.evaluation.intervals import wilson
from tfsam.evaluation.opening import open_logits
from tfsam.evaluation.plans import Data
from tfsam.evaluation.plans import load_data
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import as_numpy
from tfsam.evaluation.workers import known_devices
from tfsam.evaluation.workers import make_worker
from tfsam.evaluation.workers import spread
from tfsam.models.functions import count_classes
from tfsam.registries import CORRUPTIONS
from tfsam.support import files
from tfsam.support.labels import check_classes
from tfsam.support.logit_checks import check_logits
from tfsam.support.validators import check_count

NAME = "tfsam corruptions (not CIFAR-10-C)"

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Plan(NamedTuple):
    """Everything that the verdicts depend on, except for the model.

    Attributes:
        data: The images before they are corrupted, with their labels.
        functions: The corruptions, by their names.
        severities: The severities, ascending.
        seed: Integer >= 0.
        size: Number of images that are classified together.
    """

    data: Data
    functions: dict[str, CorruptionFn]
    severities: list[int]
    seed: int
    size: int


def evaluate_corruptions(
    model: Any,
    data: Any,
    corruptions: str | Iterable[str] = "all",
    severities: Iterable[int] = SEVERITIES,
    *,
    seed: int = 0,
    batch_size: int = 128,
    progress: Callable[[str], Any] | None = None,
    workdir: files.Path | None = None,
    jit_compile: bool | str = "auto",
    devices: str | Sequence[str] | None = None,
    name: str | None = None,
    steps: int | None = None,
    pixels: str | None = None,
) -> dict[str, Any]:
    """Measures accuracy on corrupted images, by kind and severity.

    The kinds and severities are those of Hendrycks and Dietterich, 2019 (arXiv
    1903.12261): 15 kinds in four groups, of which frost, which needs
    photographs, is left out. The images are corrupted by tfsam's own
    implementation and rounded to 8 bits. They are not those of CIFAR-10-C,
    which were made by other programs, and accuracies are close to those on it,
    not equal. To measure accuracy on CIFAR-10-C itself, give its images to
    `tfsam.evaluate`.

    Images of at most 64 pixels on the shorter side are corrupted with the
    constants of CIFAR-10-C, larger ones from 128 pixels with those of
    ImageNet-C; see `tfsam.corruptions.base`.

    Args:
        model: A model of any kind that `tfsam.evaluate` takes.
        data: Images with labels as in `tfsam.evaluate`. The images have shape
            (n, height, width, channels), where channels is 1 or 3, or (n,
            height, width), and values in [0, 1].
        corruptions: Names of `tfsam.corruptions.names()` and groups, a list or
            a text with commas: "all", "noise", "blur", "weather", "digital" or
            "extra"; see `tfsam.corruptions.chosen`.
        severities: Integers from 1 to 5.
        seed: Integer >= 0. With the index of an image, the corruption and the
            severity, it determines the random numbers for that image.
        batch_size: Number of images that are classified together.
        progress: Function that is called with a line of text after each kind.
        workdir: Folder that keeps the verdicts, so that the same evaluation
            can resume, kind by kind and severity by severity, or go on with
            others. None keeps nothing. The folder is rejected if the data, the
            model, the seed, the batch size, the kind of device or the software
            differ.
        jit_compile: See `tfsam.evaluate`.
        devices: See `tfsam.evaluate`.
        name: See `tfsam.evaluate`.
        steps: See `tfsam.evaluate`.
        pixels: See `tfsam.evaluate`.

    Returns:
        A dict. `rows` is a list of {`corruption`, `severity`, `accuracy`, `n`,
        `interval`}, kind by kind and severity by severity. `mean_accuracy` is
        the plain mean of their accuracies, as in RobustBench, `n` the number of
        images, and `interval` Wilson's 95 % interval for a fraction of n: the
        images are the sample, however often each is corrupted, so that it is
        rather too wide. `natural` is {`accuracy`, `n`, `interval`} on the
        images as they are. `severities` is the list of severities, and
        `left_out` a dict of the benchmark's corruptions that tfsam does not
        have, with the reasons. `constants` is 32 or 224, the side of the images
        to which the benchmark's constants belong, and `name` says that this is
        not CIFAR-10-C. `warnings` is a list of {`warning`, `message`}: the
        verdicts on a random model are those of a single call, and those on a
        model whose logits depend on the batch hold for this batch size only.

    Raises:
        ImportError: If the package of a corruption cannot be imported.
        ValueError: If the model, the data or an argument is invalid, if there
            are no constants for the size of the images, or if `workdir` holds
            another evaluation or needs a name for the model.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).random((6, 8, 8, 1), dtype="float32")
        >>> weights = np.random.default_rng(1).normal(size=(64, 3))
        >>> def model(x):
        ...     return x.numpy().reshape(-1, 64) @ weights
        >>> y = model(tf.constant(x)).argmax(axis=1)
        >>> result = evaluate_corruptions(model, (x, y), "contrast,fog", [1, 5])
        >>> result["natural"]["accuracy"], len(result["rows"])
        (1.0, 4)
    """
    selection = corruptions if isinstance(corruptions, str) else [*corruptions]
    plan = _plan(data, selection, severities, seed, batch_size, steps, model)
    known = known_devices(devices)
    judge = open_logits(model, plan.data, (0.0, 1.0), pixels, jit_compile)
    classes = count_classes(judge, plan.data.x[:1])
    header = {"n": len(plan.data.x)}
    if workdir is not None:
        header = corrupted_verdicts.header(
            cache_key.Model(model, judge, name),
            plan.data,
            batch_size=plan.size,
            seed=plan.seed,
            devices=known,
        )
    kept = Verdicts(header, workdir)
    workers = [
        make_worker(d, judge, classes, plan.data.x[:1], plan.size)
        for d in known
    ]
    natural = _natural(plan, workers, kept, classes)
    rows = _rows(plan, workers, kept, progress)
    mean = float(np.mean([row["accuracy"] for row in rows]))
    return {
        "name": NAME,
        "mean_accuracy": mean,
        "n": len(plan.data.x),
        "interval": wilson(mean, len(plan.data.x)),
        "natural": accuracy_of(natural),
        "severities": plan.severities,
        "rows": rows,
        "left_out": left_out(selection),
        "constants": size_of_constants(plan.data.x.shape[1:]),
        "warnings": _warnings(workers[0], plan.data.x[: min(plan.size, 16)]),
    }


def _plan(
    data: Any,
    corruptions: Any,
    severities: Iterable[int],
    seed: int,
    batch_size: int,
    steps: int | None,
    model: Any,
) -> _Plan:
    """Checks the arguments, reads the data, and tries each corruption."""
    names = chosen(corruptions)
    numbers = sorted({check_severity(severity) for severity in severities})
    if not numbers:
        raise ValueError(
            "severities must be some of 1, 2, 3, 4 and 5. Received: none"
        )
    size = check_count("batch_size", batch_size, 1)
    seed = check_count("seed", seed)
    loaded = load_data(data, (0.0, 1.0), steps, model)
    functions = check(loaded.x[:1], names)
    return _Plan(loaded, functions, numbers, seed, min(size, len(loaded.x)))


def check(image: np.ndarray, corruptions: Any) -> dict[str, CorruptionFn]:
    """Tries corruptions on an image, at all severities.

    Args:
        image: Float array (1, height, width, channels) or (1, height, width).
        corruptions: Names and groups; see `evaluate_corruptions`.

    Returns:
        The corruptions, by their names.

    Raises:
        ImportError: If the package of a corruption cannot be imported.
        ValueError: If a name is unknown, or a corruption cannot be applied.
    """
    size_of_constants(image.shape[1:])
    found = {name: CORRUPTIONS.make(name) for name in chosen(corruptions)}
    for name, function in found.items():
        for severity in SEVERITIES:
            corrupt_with(function, name, image, severity, 0, None)
    return found


def _natural(
    plan: _Plan, workers: Sequence[Worker], kept: Verdicts, classes: int
) -> np.ndarray:
    """Measures the verdicts on the images as they are, and checks logits."""
    check_classes(plan.data.y, plan.data.labels, classes)
    found = kept.load("natural", "natural")
    if found is None:
        logits = _logits(plan, workers, lambda x, _: x)
        network = getattr(workers[0].judge.function, "model", None)
        check_logits(logits, network)
        found = logits.argmax(axis=1) == plan.data.labels
        kept.save("natural", "natural", found)
    return found


def _warnings(worker: Worker, x: np.ndarray) -> list[dict[str, str]]:
    """Returns warnings about logits that depend on more than the image."""
    found = model_probes.probe_outputs(worker.judge.function, x)
    messages = {
        "randomness": "The model is random: each image was classified by a "
        "single call, and another evaluation gives other accuracies.",
        "batch_dependence": "The logits for an image depend on the other images"
        " of its batch: with another batch size the accuracies are others.",
    }
    warnings = [
        {"warning": name, "message": message}
        for name, message in messages.items()
        if found[name] > found["tolerance"]
    ]
    return warnings[:1]  # Random logits seem to depend on the batch, too.


def _rows(
    plan: _Plan,
    workers: Sequence[Worker],
    kept: Verdicts,
    progress: Callable[[str], Any] | None,
) -> list[dict[str, Any]]:
    """Measures the accuracy of each kind and severity."""
    rows: list[dict[str, Any]] = []
    total = len(plan.functions) * len(plan.severities)
    seconds, measured = 0.0, 0
    for name, function in plan.functions.items():
        described = corrupted_verdicts.described(name, function)
        accuracies = []
        for severity in plan.severities:
            part = f"{name}-{severity}"
            correct = kept.load(part, described)
            if correct is None:
                started = time.perf_counter()
                correct = _verdicts(plan, workers, name, severity)
                kept.save(part, described, correct)
                seconds += time.perf_counter() - started
                measured += 1
            row = {"corruption": name, "severity": severity}
            rows.append(row | accuracy_of(correct))
            accuracies.append(f"{correct.mean():.4f}")
        if progress is not None:
            left = (total - len(rows)) * seconds / max(measured, 1)
            progress(
                f"{name}: accuracy {', '.join(accuracies)} of "
                f"{len(plan.data.x)} at severity "
                f"{', '.join(map(str, plan.severities))}; {left:.0f} s left"
            )
    return rows


def _verdicts(
    plan: _Plan, workers: Sequence[Worker], name: str, severity: int
) -> np.ndarray:
    """Returns whether each image is classified correctly, corrupted."""
    function = plan.functions[name]

    def alone(image: np.ndarray, index: int) -> np.ndarray:
        images, indices = image[None], [index]
        return corrupt_with(
            function, name, images, severity, plan.seed, indices
        )[0]

    # Small images cost little more than Python's own work, which threads
    # cannot share.
    many = size_of_constants(plan.data.x.shape[1:]) > 32
    with concurrent.futures.ThreadPoolExecutor() as pool:

        def change(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
            mapped = pool.map if many else map
            return np.stack(list(mapped(alone, images, indices.tolist())))

        logits = _logits(plan, workers, change)
    return logits.argmax(axis=1) == plan.data.labels


def _logits(
    plan: _Plan, workers: Sequence[Worker], change: Change
) -> np.ndarray:
    """Returns the logits (n, classes) for images that a function changes."""
    count = len(plan.data.x)
    found: dict[int, np.ndarray] = {}
    work = functools.partial(_classify, plan, change, found)
    spread(workers, work, range(-(-count // plan.size)))
    return np.concatenate([found[chunk] for chunk in sorted(found)])


def _classify(
    plan: _Plan,
    change: Change,
    found: dict[int, np.ndarray],
    worker: Worker,
    chunk: int,
) -> None:
    """Adds the logits of a chunk to those found."""
    start = chunk * plan.size
    indices = np.arange(start, min(start + plan.size, len(plan.data.x)))
    images = change(plan.data.x[indices], indices)
    # All chunks have one size, for one trace.
    x = images[np.resize(np.arange(len(indices)), plan.size)]
    active = np.arange(plan.size) < len(indices)
    outputs = as_numpy(worker.predict(tf.constant(x), tf.constant(active)))
    outputs = outputs[: len(indices)]
    if not np.isfinite(outputs).all():
        raise ValueError(
            "model must return finite logits. Received: NaN or infinity"
        )
    found[chunk] = outputs
