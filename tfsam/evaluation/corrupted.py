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

import numpy as np

from tfsam.corruptions.base import SEVERITIES
from tfsam.corruptions.base import size_of_constants
from tfsam.corruptions.images import corrupt_with
from tfsam.corruptions.selection import chosen
from tfsam.corruptions.selection import left_out
from tfsam.evaluation import cache_key
from tfsam.evaluation import corrupted_results
from tfsam.evaluation import corrupted_verdicts
from tfsam.evaluation import draws as judging
from tfsam.evaluation import model_probes
from tfsam.evaluation.arguments import check_shard
from tfsam.evaluation.corrupted_plans import BOUNDS
from tfsam.evaluation.corrupted_plans import Work
from tfsam.evaluation.corrupted_plans import header_of
from tfsam.evaluation.corrupted_plans import work_of
from tfsam.evaluation.corrupted_verdicts import Verdicts
from tfsam.evaluation.opening import Models
from tfsam.evaluation.opening import draws_of
from tfsam.evaluation.opening import of_first
from tfsam.evaluation.opening import open_logits
from tfsam.evaluation.plans import load_inputs
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.records import chunk_indices
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import known_devices
from tfsam.evaluation.workers import make_worker
from tfsam.evaluation.workers import spread
from tfsam.models.functions import count_classes
from tfsam.support import files
from tfsam.support.labels import check_classes
from tfsam.support.logit_checks import check_logits

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
    attacked: str | int | None = None,
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
        attacked: Name or number of the input that is corrupted, for a model of
            several inputs; see `tfsam.evaluate`. The others do not change.

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
        to which the benchmark's constants belong, and `name` is a text that
        tells the result apart from CIFAR-10-C. `attacked`, for a model of
        several inputs, is the corrupted one. `warnings` is a list of
        {`warning`, `message`}: whether the model is random, whether its draws
        can be repeated, and whether its logits depend on the batch, so that
        they hold for this batch size only.

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
    names = chosen(selection)
    given = load_inputs(data, attacked, model, BOUNDS, steps)
    work = work_of(given, names, severities, seed, batch_size)
    x, size = work.plan.data.x, work.plan.size
    check_shard(shard, len(x), size)
    work = work._replace(chunks=range(shard[0], -(-len(x) // size), shard[1]))
    known = known_devices(devices)
    logits = open_logits(model, given, BOUNDS, pixels, jit_compile)
    classes = count_classes(of_first(logits, given, 1), x[:1])
    drawn = draws_of(draws, Models(logits, None, classes), given)
    work = work._replace(plan=work.plan._replace(draws=drawn))
    header = header_of(work, left_out(selection))
    if workdir is not None:
        described = cache_key.Model(model, logits, name)
        header |= corrupted_verdicts.described_header(described, given, known)
    record = Verdicts(header, workdir)
    others = given.given(slice(1))
    workers = [
        make_worker(d, logits, classes, x[:1], size, others=others)
        for d in known
    ]
    _measure_natural(work, workers, record, classes)
    _measure(work, workers, record, progress)
    return corrupted_results.result(
        record, work.chunks, work.asked, left_out(selection)
    )


def _measure_natural(
    work: Work, workers: Sequence[Worker], record: Verdicts, classes: int
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
            judge = of_first(worker.judge, plan.data, len(some))
            found |= model_probes.probe_outputs(judge.function, some)
            found |= judging.facts(plan)
        record.keep(NATURAL, chunk, NATURAL, found)

    spread(workers, measure, work.chunks)
    outputs = [record.load(NATURAL, chunk)["logits"] for chunk in work.chunks]
    network = getattr(workers[0].judge.function, "model", None)
    check_logits(np.concatenate(outputs), network)


def _measure(
    work: Work,
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
    work: Work,
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
    work: Work, record: Verdicts, change: Change, worker: Worker, chunk: int
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


def _verdicts(work: Work, judged: judging.Judged) -> dict[str, np.ndarray]:
    """Returns the arrays to be saved, by name."""
    found = {"correct": ~judged.broken}
    if work.plan.draws is not None:
        found["wrong"] = judged.wrong
    return found
