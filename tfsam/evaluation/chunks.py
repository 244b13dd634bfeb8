"""Chunks of examples under attack, each on one device.

At each epsilon only the survivors of the smaller epsilons are attacked. The
verdicts are saved in a record after each epsilon; see `verdicts.py`.
"""

import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam import geometry
from tfsam.attacks.check import TOLERANCE
from tfsam.evaluation import diagnosis
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.attack_batch import Found
from tfsam.evaluation.attack_batch import attack_batch
from tfsam.evaluation.attack_batch import kind_of
from tfsam.evaluation.attack_probes import unbroken_without_budget
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import can_start
from tfsam.evaluation.progress import FAILED
from tfsam.evaluation.progress import LOADED
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.verdicts import STANDS
from tfsam.evaluation.workers import Worker
from tfsam.registries import ATTACKS

Arrays = dict[str, np.ndarray]


class Turn(NamedTuple):
    """An attack's turn: everything that its chunks have in common.

    Attributes:
        plan: The plan of the evaluation.
        entry: The attack.
        part: The attack's part of the record.
        record: The record that holds the verdicts.
        errors: Message of each failure, by (part, number of the epsilon). An
            attack that failed is not tried again at this epsilon.
        strict: Whether exceptions of the attack are raised.
        tell: Function that logs progress; see `progress.teller`.
    """

    plan: Plan
    entry: Entry
    part: str
    record: verdicts.Record
    errors: dict[tuple[str, int], str]
    strict: bool
    tell: Callable[..., None]


class _Reach(NamedTuple):
    """The result of a minimum-norm attack, which serves all epsilons.

    Attributes:
        distances: Float array (n,): 0 if an example is misclassified, infinity
            if the attack found no adversarial image.
        images: Float array (n, ...), the nearest adversarial images.
        attacked: Number of examples that were attacked.
        passes: Int array (2,), forward and gradient passes of the network.
        nonfinite: Number of gradients that were NaN or infinite.
        facts: Facts about the attack.
        seconds: Duration of the attack.
        diagnosed: Arrays for the diagnosis; see `diagnosis.of_row`.
    """

    distances: np.ndarray
    images: np.ndarray
    attacked: int
    passes: np.ndarray
    nonfinite: int
    facts: red_flags.Facts
    seconds: float
    diagnosed: Arrays


def attack_chunk(turn: Turn, worker: Worker, chunk: int) -> None:
    """Attacks a chunk at all epsilons, ascending, and saves the verdicts.

    Args:
        turn: The attack's turn.
        worker: The worker on which the attack runs.
        chunk: Number of the chunk.
    """
    plan, part, record = turn.plan, turn.part, turn.record
    found = _resumed(turn, chunk)
    state = _Chunk(turn, worker, chunk)
    for index, epsilon in enumerate(plan.epsilons):
        if f"{index}/verdict" in found:
            state.verdict = found[f"{index}/verdict"]
            turn.tell(index, state.verdict, LOADED)
        elif (part, index) in turn.errors:
            turn.tell(index, state.verdict, FAILED)
        else:
            try:
                new = state.attack(index, epsilon)
            except Exception as error:
                if turn.strict:
                    raise
                turn.errors[part, index] = f"{type(error).__name__}: {error}"
                turn.tell(index, state.verdict, FAILED)
            else:
                state.verdict = new["verdict"]
                found |= {f"{index}/{k}": v for k, v in new.items()}
                record.save(part, chunk, found)
                turn.tell(index, state.verdict)


def _resumed(turn: Turn, chunk: int) -> Arrays:
    """Returns the saved arrays of a chunk from which the attack can resume."""
    found = dict(turn.record.load(turn.part, chunk))
    count = len(turn.plan.epsilons)
    missing = (i for i in range(count) if f"{i}/verdict" not in found)
    done = next(missing, count)
    needed = turn.plan.keep_images or turn.plan.warm_start
    if done < count and (needed or "0/distances" in found):
        done = 0  # The images and distances of earlier epsilons are not loaded.
    # A verdict that was measured after a smaller epsilon had failed lacks the
    # examples that this epsilon breaks.
    return {k: v for k, v in found.items() if int(k.split("/")[0]) < done}


class _Chunk:
    """A chunk of examples, at the epsilon that its attack has reached.

    Args:
        turn: The attack's turn.
        worker: The worker on which the attack runs.
        chunk: Number of the chunk.

    Attributes:
        verdict: Int8 array, the verdicts at the last epsilon.
    """

    def __init__(self, turn: Turn, worker: Worker, chunk: int) -> None:
        self._turn, self._worker = turn, worker
        self._indices = verdicts.chunk_indices(turn.record.header, chunk)
        self._x = turn.plan.data.x[self._indices]
        self._labels = turn.plan.data.labels[self._indices]
        correct = turn.record.load(NATURAL, chunk)["correct"]
        natural = np.where(correct, STANDS, MISCLASSIFIED).astype(np.int8)
        self._natural = self.verdict = natural
        self._images: np.ndarray | None = None  # Of the last epsilon.
        self._reaches: dict[Any, _Reach] = {}
        self._unconstrained = np.zeros(2, np.int64)

    def attack(self, index: int, epsilon: float) -> Arrays:
        """Attacks the survivors at an epsilon.

        Args:
            index: Number of the epsilon.
            epsilon: The budget.

        Returns:
            The arrays to be saved, by name.
        """
        plan = self._turn.plan
        attack = self._turn.entry.make(
            epsilon=epsilon, norm=plan.norm, bounds=plan.bounds
        )
        # A minimum-norm attack runs once for all epsilons, except on a
        # surrogate, whose nearest images say how robust the surrogate is.
        nearest = ATTACKS.fact(attack, "minimum_norm")
        if not nearest or self._worker.source.surrogate:
            return self._attack_stages(attack, index, epsilon)
        kind = kind_of(attack, epsilon)
        reach = self._reaches.get(kind) or self._reach(attack, kind)
        new = self._within(epsilon, reach)
        # The first epsilon is charged with the cost of the run.
        self._reaches[kind] = reach._replace(
            attacked=0, passes=0 * reach.passes, seconds=0.0
        )
        return new

    def _attack_stages(self, attack: Any, index: int, epsilon: float) -> Arrays:
        """Attacks the survivors, stage by stage if the attack is an ensemble.

        Returns:
            The arrays to be saved, by name.
        """
        plan, started = self._turn.plan, time.perf_counter()
        verdict = self.verdict.copy()
        stages = ATTACKS.fact(attack, "stages") or [("", attack)]
        warm = plan.warm_start and can_start(attack)
        start = self._images if warm else None
        images = self._x.copy()
        largest, passes, nonfinite = 0.0, np.zeros(2, np.int64), 0
        facts = [red_flags.facts_of(stage) for _, stage in stages]
        diagnosed = self._counters(len(stages))
        for number, (name, stage) in enumerate(stages, 1):
            survivors = np.flatnonzero(verdict == STANDS)
            if not len(survivors):
                break
            key = (number, kind_of(stage, epsilon))
            found = self._run(stage, key, survivors, epsilon, start)
            broken = self._misclassified(found, survivors)
            verdict[survivors[broken]] = number
            images[survivors] = found.images
            largest = max(largest, found.largest)
            passes += found.passes
            nonfinite += found.nonfinite
            facts[number - 1] = found.facts
            diagnosis.keep(diagnosed, number - 1, survivors, found, stage)
            if number < len(stages):
                self._turn.tell(index, verdict, name)
        self._images = images
        saved = {
            "verdict": verdict,
            "largest": np.array(largest),
            "attacked": np.array(int((self.verdict == STANDS).sum())),
            "passes": passes,
            "nan_gradients": np.array(nonfinite),
            "stages": np.array([name for name, _ in stages]),
            **_columns(facts),
            "seconds": np.array(time.perf_counter() - started),
            **diagnosed,
            **self._without_budget(verdict),
        }
        return saved | ({"adversarial": images} if plan.keep_images else {})

    def _counters(self, stages: int) -> Arrays:
        """Returns the arrays that a diagnosis needs; none without one."""
        plan = self._turn.plan
        if not plan.diagnose:
            return {}
        return diagnosis.counters(
            stages, len(self._x), self._worker.source.surrogate
        )

    def _without_budget(self, verdict: np.ndarray) -> Arrays:
        """Tries an attack that broke few of the first chunk without a budget.

        It is tried once for all epsilons.
        """
        turn = self._turn
        if not turn.plan.diagnose:
            return {}
        chosen = diagnosis.suspicious(verdict, self._natural)
        first = self._indices[0] == 0 and not self._worker.source.surrogate
        if first and len(chosen) and not self._unconstrained[0]:
            self._unconstrained = unbroken_without_budget(
                turn.plan,
                self._worker,
                turn.entry,
                turn.part,
                self._indices[chosen],
            )
        tried = self._unconstrained if len(chosen) else np.zeros(2, np.int64)
        return {"unconstrained": tried}

    def _run(
        self,
        attack: Any,
        key: tuple[Any, ...],
        chosen: np.ndarray,
        epsilon: float | None = None,
        start: np.ndarray | None = None,
    ) -> Found:
        """Attacks the chosen examples of the chunk."""
        return attack_batch(
            self._turn.plan,
            self._worker,
            attack,
            (self._turn.part, key),
            self._indices[chosen],
            epsilon,
            None if start is None else start[chosen],
        )

    def _misclassified(self, found: Found, chosen: np.ndarray) -> np.ndarray:
        return found.outputs.argmax(axis=1) != self._labels[chosen]

    def _reach(self, attack: Any, kind: Any) -> _Reach:
        """Runs a minimum-norm attack, whose result serves all epsilons."""
        started = time.perf_counter()
        distances = np.where(self._natural == STANDS, np.inf, 0.0)
        images = self._x.copy()
        correct = np.flatnonzero(self._natural == STANDS)
        passes, nonfinite = np.zeros(2, np.int64), 0
        facts = red_flags.facts_of(attack)
        diagnosed = self._counters(1)
        if len(correct):
            found = self._run(attack, (1, kind), correct)
            broken = self._misclassified(found, correct)
            moved = (found.images - images[correct]).reshape(len(correct), -1)
            order = geometry.FACTS[self._turn.plan.norm].order
            lengths = np.linalg.norm(moved.astype(np.float64), order, 1)
            distances[correct] = np.where(broken, lengths, np.inf)
            images[correct] = found.images
            passes, nonfinite = found.passes, found.nonfinite
            facts = found.facts
            diagnosis.keep(diagnosed, 0, correct, found, attack)
        if diagnosed:
            # The attack has no budget.
            tried = [len(correct), int(np.isinf(distances).sum())]
            diagnosed["unconstrained"] = np.array(tried)
        seconds = time.perf_counter() - started
        return _Reach(
            distances,
            images,
            len(correct),
            passes,
            nonfinite,
            facts,
            seconds,
            diagnosed,
        )

    def _within(self, epsilon: float, reach: _Reach) -> Arrays:
        """Derives the verdicts at an epsilon from a minimum-norm attack's run.

        Returns:
            The arrays to be saved, by name.
        """
        reached = reach.distances <= epsilon * (1 + TOLERANCE) + TOLERANCE
        survivors = self.verdict == STANDS
        verdict = np.where(survivors & reached, 1, self.verdict)
        saved = {
            "verdict": verdict.astype(np.int8),
            "largest": reach.distances[reached].max(initial=0.0),
            "attacked": np.array(reach.attacked),
            "passes": reach.passes,
            # Not set to 0 after the first epsilon: its run serves them all.
            "nan_gradients": np.array(reach.nonfinite),
            "stages": np.array([""]),
            **_columns([reach.facts]),
            "seconds": np.array(reach.seconds),
            "distances": reach.distances,
            **reach.diagnosed,
        }
        if self._turn.plan.keep_images:
            images = self._x.copy()
            images[reached] = reach.images[reached]
            saved["adversarial"] = images
        return saved


def _columns(facts: Iterable[red_flags.Facts]) -> Arrays:
    """Returns the facts about all stages as arrays, one for each fact."""
    return {
        name: np.array(column)
        for name, column in zip(
            red_flags.Facts._fields, zip(*facts, strict=True), strict=True
        )
    }
