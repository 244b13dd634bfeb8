"""Chunks of examples, attacked and judged, each on one device.

An attack is believed in nothing: what it returns is checked against the image
range and its budget, and classified again. Verdicts go into a record; see
`verdicts.py`.
"""

import functools
import time
from typing import NamedTuple

import numpy as np

from tfsam.attacks.check import TOLERANCE
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.batches import attack_batch
from tfsam.evaluation.batches import kind_of
from tfsam.evaluation.plans import can_start
from tfsam.evaluation.progress import FAILED
from tfsam.evaluation.progress import LOADED
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.verdicts import STANDS
from tfsam.parts import ATTACKS


class _Reach(NamedTuple):
    """What a minimum-norm attack returned, for all epsilons."""

    distances: np.ndarray  # 0 where misclassified, infinite where not found.
    images: np.ndarray
    attacked: int
    passes: np.ndarray
    nonfinite: int
    facts: red_flags.Facts
    seconds: float


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
            nothing was measured with `LOADED` or `FAILED` in its place.
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
            tell(index, verdict, LOADED)
        elif (part, index) in errors:
            tell(index, verdict, FAILED)
        else:
            try:
                attack = turn.entry.make(
                    epsilon=epsilon, norm=plan.norm, bounds=plan.bounds
                )
                if _serves_all(turn, attack):
                    kind = kind_of(attack, epsilon)
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
                tell(index, verdict, FAILED)
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
    stages = ATTACKS.fact(attack, "stages") or [("", attack)]
    start = images if plan.warm_start and can_start(attack) else None
    images = plan.data.x[indices].copy()
    largest, passes, nonfinite = 0.0, np.zeros(2, np.int64), 0
    facts = [red_flags.facts_of(stage) for _, stage in stages]
    for number, (name, stage) in enumerate(stages, 1):
        standing = np.flatnonzero(verdict == STANDS)
        if not len(standing):
            break
        found = attack_batch(
            turn,
            stage,
            (number, kind_of(stage, epsilon)),
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
        found = attack_batch(turn, attack, (1, kind), indices[standing])
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
    nearest = ATTACKS.fact(attack, "minimum_norm")
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
