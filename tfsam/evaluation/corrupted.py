"""Accuracy on corrupted images: noise, blur, weather and digital artefacts.

The images are divided into chunks by their index, as in `tfsam.evaluate`, and
their verdicts are saved chunk by chunk (`corrupted_verdicts.py`) and summed up
(`corrupted_results.py`). Random models are judged by draws (`draws.py`).
"""

import concurrent.futures
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.corruptions.base import SEVERITIES
from tfsam.corruptions.base import check_severity
from tfsam.corruptions.base import size_of_constants
from tfsam.corruptions.images import CorruptionFn
from tfsam.corruptions.images import corrupt_with
from tfsam.corruptions.selection import chosen
from tfsam.corruptions.selection import left_out
from tfsam.evaluation import cache_key
from tfsam.evaluation import corrupted_results
from tfsam.evaluation import corrupted_verdicts
from tfsam.evaluation import draws as judging
from tfsam.evaluation import model_probes
from tfsam.evaluation.arguments import check_shard
from tfsam.evaluation.corrupted_verdicts import Verdicts
from tfsam.evaluation.goals import AnyWrongClass
from tfsam.evaluation.opening import open_logits
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import load_data
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.records import chunk_indices
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import known_devices
from tfsam.evaluation.workers import make_worker
from tfsam.evaluation.workers import spread
from tfsam.models.functions import count_classes
from tfsam.registries import CORRUPTIONS
from tfsam.support import files
from tfsam.support.labels import check_classes
from tfsam.support.logit_checks import check_logits
from tfsam.support.validators import check_count

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]

_BOUNDS = (0.0, 1.0)


class _Work(NamedTuple):
    """What is measured, except for the model.

    Attributes:
        plan: The images before they are corrupted, and how they are judged.
        functions: The corruptions, by their names.
        severities: The severities, ascending.
        chunks: Numbers of the chunks.
    """

    plan: Plan
    functions: dict[str, CorruptionFn]
    severities: list[int]
    chunks: range

    @property
    def asked(self) -> dict[str, list[int]]:
        """The severities of each corruption."""
        return dict.fromkeys(self.functions, self.severities)


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
    draws: int | None = None,
    shard: tuple[int, int] = (0, 1),
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
            can resume, chunk by chunk, or go on with other corruptions. None
            keeps nothing. The folder is rejected if the data, the model, the
            seed, the batch size, the number of draws, the kind of device or the
            software differ.
        jit_compile: See `tfsam.evaluate`.
        devices: See `tfsam.evaluate`.
        name: See `tfsam.evaluate`.
        steps: See `tfsam.evaluate`.
        pixels: See `tfsam.evaluate`.
        draws: Number of draws of a random model by which each verdict is made,
            the same draws with and without a corruption; see `tfsam.evaluate`.
        shard: (i, n) to evaluate only every n-th chunk of `batch_size` images,
            beginning with the i-th. `tfsam.merge` combines the workdirs of all
            shards.

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
        not CIFAR-10-C. `warnings` is a list of {`warning`, `message`}: whether
        the model is random, whether its draws can be repeated, and whether its
        logits depend on the batch, so that they hold for this batch size only.

        The rows and `natural` of a random model have `draws`, the number of
        draws, and `spread`, the mean fraction of an image's draws that disagree
        with its verdict. An image whose draws are half wrong counts as wrong.
        With `shard`, all numbers are those of the shard's images.

    Raises:
        ImportError: If the package of a corruption cannot be imported.
        ValueError: If the model, the data or an argument is invalid, if there
            are no constants for the size of the images, or if `workdir` holds
            another evaluation or needs a name for the model.

    Example:
        >>> import numpy as np
        >>> import tensorflow as tf
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
    work = _work(data, selection, severities, seed, batch_size, steps, model)
    x, size = work.plan.data.x, work.plan.size
    check_shard(shard, len(x), size)
    work = work._replace(chunks=range(shard[0], -(-len(x) // size), shard[1]))
    known = known_devices(devices)
    logits = open_logits(model, work.plan.data, _BOUNDS, pixels, jit_compile)
    classes = count_classes(logits, x[:1])
    drawn = judging.planned(draws, logits, x)
    work = work._replace(plan=work.plan._replace(draws=drawn))
    header = _header(work, left_out(selection))
    if workdir is not None:
        described = cache_key.Model(model, logits, name)
        header |= corrupted_verdicts.described_header(
            described, work.plan.data, known
        )
    record = Verdicts(header, workdir)
    workers = [make_worker(d, logits, classes, x[:1], size) for d in known]
    _measure_natural(work, workers, record, classes)
    _measure(work, workers, record, progress)
    return corrupted_results.result(
        record, work.chunks, work.asked, left_out(selection)
    )


def _work(
    data: Any,
    corruptions: Any,
    severities: Iterable[int],
    seed: int,
    batch_size: int,
    steps: int | None,
    model: Any,
) -> _Work:
    """Checks the arguments, reads the data, and tries each corruption."""
    names = chosen(corruptions)
    numbers = sorted({check_severity(severity) for severity in severities})
    if not numbers:
        raise ValueError(
            "severities must be some of 1, 2, 3, 4 and 5. Received: none"
        )
    size = check_count("batch_size", batch_size, 1)
    seed = check_count("seed", seed)
    loaded = load_data(data, _BOUNDS, steps, model)
    functions = check(loaded.x[:1], names)
    plan = Plan(
        data=loaded,
        entries=[],
        budgets={},
        bounds=_BOUNDS,
        seed=seed,
        size=min(size, len(loaded.x)),
        warm_start=False,
        keep_images=False,
        goal=AnyWrongClass(loaded.y, loaded.labels),
    )
    return _Work(plan, functions, numbers, range(0))


def _header(work: _Work, left_out: dict[str, str]) -> dict[str, Any]:
    """Returns the part of a record's header that needs no model."""
    plan = work.plan
    header = {
        "schema": corrupted_verdicts.SCHEMA,
        "n": len(plan.data.x),
        "batch_size": plan.size,
        "seed": plan.seed,
        "constants": size_of_constants(plan.data.x.shape[1:]),
        "corruptions": [
            {"name": name, "severities": severities}
            for name, severities in work.asked.items()
        ],
        "left_out": left_out,
    }
    if plan.draws is not None:
        header["draws"] = plan.draws.number
    return header


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


def _measure_natural(
    work: _Work, workers: Sequence[Worker], record: Verdicts, classes: int
) -> None:
    """Saves the verdicts on the images as they are, and checks the logits."""
    plan = work.plan
    check_classes(plan.data.y, plan.data.labels, classes)

    def measure(worker: Worker, chunk: int) -> None:
        first = chunk == work.chunks[0]
        if record.holds(NATURAL, chunk, NATURAL) and (
            not first or "randomness" in record.load(NATURAL, chunk)
        ):
            return
        judged = _judged(work, record, lambda x, _: x, worker, chunk)
        found = _verdicts(work, judged) | {"logits": judged.outputs}
        if first:  # Every shard warns, and looks at the same images.
            some = plan.data.x[: min(plan.size, 16)]
            found |= model_probes.probe_outputs(worker.judge.function, some)
            found |= judging.facts(plan)
            if plan.draws is not None:
                found["together"] = np.array(plan.draws.together)
        record.keep(NATURAL, chunk, NATURAL, found)

    spread(workers, measure, work.chunks)
    outputs = [record.load(NATURAL, chunk)["logits"] for chunk in work.chunks]
    network = getattr(workers[0].judge.function, "model", None)
    check_logits(np.concatenate(outputs), network)


def _measure(
    work: _Work,
    workers: Sequence[Worker],
    record: Verdicts,
    progress: Callable[[str], Any] | None,
) -> None:
    """Saves the verdicts on the images of each kind and severity."""
    total = len(work.functions) * len(work.severities) * len(work.chunks)
    examples = sum(len(chunk_indices(record.header, c)) for c in work.chunks)
    seconds, measured, done = 0.0, 0, 0
    for name, function in work.functions.items():
        described = corrupted_verdicts.described(name, function)
        accuracies = []
        for severity in work.severities:
            part = corrupted_verdicts.part_of(name, severity)
            left = [
                chunk
                for chunk in work.chunks
                if not record.holds(part, chunk, described)
            ]
            started = time.perf_counter()
            _measure_part(work, workers, record, left, (name, severity))
            seconds += time.perf_counter() - started
            measured += len(left)
            done += len(work.chunks)
            held = [record.load(part, chunk) for chunk in work.chunks]
            correct = np.concatenate([arrays["correct"] for arrays in held])
            accuracies.append(f"{correct.mean():.4f}")
        if progress is not None:
            ahead = (total - done) * seconds / max(measured, 1)
            progress(
                f"{name}: accuracy {', '.join(accuracies)} of {examples} at "
                f"severity {', '.join(map(str, work.severities))}; "
                f"{ahead:.0f} s left"
            )


def _measure_part(
    work: _Work,
    workers: Sequence[Worker],
    record: Verdicts,
    chunks: Sequence[int],
    kind: tuple[str, int],
) -> None:
    """Saves the verdicts on some chunks under a corruption at a severity."""
    name, severity = kind
    plan, function = work.plan, work.functions[name]
    part = corrupted_verdicts.part_of(name, severity)
    described = corrupted_verdicts.described(name, function)

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

        def measure(worker: Worker, chunk: int) -> None:
            judged = _judged(work, record, change, worker, chunk)
            record.keep(part, chunk, described, _verdicts(work, judged))

        spread(workers, measure, chunks)


def _judged(
    work: _Work, record: Verdicts, change: Change, worker: Worker, chunk: int
) -> judging.Judged:
    """Judges the images of a chunk after a function has changed them."""
    plan = work.plan
    indices = chunk_indices(record.header, chunk)
    with judging.alone(plan):
        images = change(plan.data.x[indices], indices)
    # All chunks have one size, for one trace.
    x = images[np.resize(np.arange(len(indices)), plan.size)]
    judged = judging.judge(plan, worker, x, indices)
    if not np.isfinite(judged.outputs).all():
        raise ValueError(
            "model must return finite logits. Received: NaN or infinity"
        )
    return judged


def _verdicts(work: _Work, judged: judging.Judged) -> dict[str, np.ndarray]:
    """Returns the arrays to be saved, by name."""
    found = {"correct": ~judged.broken}
    if work.plan.draws is not None:
        found["wrong"] = judged.wrong
    return found
