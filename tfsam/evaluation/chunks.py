"""Chunks of examples under attack, each on one device.

At each epsilon only the survivors of the smaller epsilons are attacked, also of
those that an earlier evaluation added to the record. The verdicts are saved
after each epsilon; see `verdicts.py`.
"""

import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.evaluation import bisection
from tfsam.evaluation import diagnosis
from tfsam.evaluation import draws
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.attack_batch import Found
from tfsam.evaluation.attack_batch import attack_batch
from tfsam.evaluation.attack_batch import kind_of
from tfsam.evaluation.attack_probes import unbroken_without_budget
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import can_start
from tfsam.evaluation.progress import FAILED
from tfsam.evaluation.progress import LOADED
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.verdicts import STANDS
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.worst_case import LENGTHS
from tfsam.evaluation.worst_case import lengths
from tfsam.evaluation.worst_case import within
from tfsam.registries import ATTACKS

Arrays = Mapping[str, np.ndarray]


class Turn(NamedTuple):
    """An attack's turn: everything that its chunks have in common.

    Attributes:
        plan: The plan of the evaluation.
        entry: The attack.
        number: Number of the attack in the record.
        norm: The norm in which it searches.
        record: The record that holds the verdicts.
        errors: Message of each failure, by (number of the attack, budget). An
            attack that failed is not tried again at this budget.
        strict: Whether exceptions of the attack are raised.
        tell: Function that logs progress; see `progress.teller`.
    """

    plan: Plan
    entry: Entry
    number: int
    norm: str
    record: verdicts.Record
    errors: dict[tuple[int, Budget], str]
    strict: bool
    tell: Callable[..., None]

    def part(self, epsilon: float) -> str:
        """Returns the part of the record that holds the verdicts."""
        part = self.record.part(self.number)
        return verdicts.part_at(part, Budget(self.norm, epsilon))


class _Reach(NamedTuple):
    """The result of a minimum-norm attack, which serves all epsilons.

    Attributes:
        distances: Float array (n,): 0 if an example is misclassified, infinity
            if the attack found no adversarial image.
        lengths: Float array (n, 3), the `lengths` of the nearest adversarial
            images.
        wrong: Float array (n,), the fraction of the draws of a random model
            that are wrong there.
        images: Float array (n, ...), these images, or None if they are not
            kept.
        attacked: Number of examples that were attacked.
        passes: Int array (2,), forward and gradient passes of the network.
        nonfinite: Number of gradients that were NaN or infinite.
        facts: Facts about the attack.
        seconds: Duration of the attack.
        diagnosed: Arrays for the diagnosis; see `diagnosis.of_row`.
    """

    distances: np.ndarray
    lengths: np.ndarray
    wrong: np.ndarray
    images: np.ndarray | None
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
    asked = turn.plan.epsilons(turn.norm)
    held = _held(turn, chunk)
    state = _Chunk(turn, worker, chunk)
    new: Mapping[float, Arrays] = {}
    if turn.plan.bisect and not held.keys() >= set(asked):
        new = _bisected(turn, state, chunk, asked)
        held |= new
    for epsilon in sorted({*asked, *held}):
        key = turn.number, Budget(turn.norm, epsilon)
        if epsilon in held:
            state.take(held[epsilon])
            if epsilon in new:
                turn.tell(epsilon, state.verdict)
            elif epsilon in asked:
                turn.tell(epsilon, state.verdict, LOADED)
        elif key in turn.errors:
            turn.tell(epsilon, state.verdict, FAILED)
        else:
            try:
                found = state.attack(epsilon)
            except Exception as error:
                if turn.strict:
                    raise
                turn.errors[key] = f"{type(error).__name__}: {error}"
                turn.tell(epsilon, state.verdict, FAILED)
            else:
                turn.record.save(turn.part(epsilon), chunk, found)
                state.take(found)
                turn.tell(epsilon, state.verdict)


def _bisected(
    turn: Turn, state: "_Chunk", chunk: int, epsilons: list[float]
) -> dict[float, Arrays]:
    """Attacks a chunk by bisection, and saves the verdicts of all epsilons.

    Returns:
        The saved arrays, by epsilon; none for a minimum-norm attack, whose run
        serves all epsilons, and for an attack that failed.
    """
    keys = [(turn.number, Budget(turn.norm, e)) for e in epsilons]
    if any(key in turn.errors for key in keys):
        return {}
    try:
        found = state.bisect(epsilons)
    except Exception as error:
        if turn.strict:
            raise
        for key in keys:
            turn.errors[key] = f"{type(error).__name__}: {error}"
        return {}
    for epsilon, arrays in found.items():
        turn.record.save(turn.part(epsilon), chunk, arrays)
    return found


def _held(turn: Turn, chunk: int) -> dict[float, Arrays]:
    """Returns the saved arrays of a chunk, by epsilon."""
    known = turn.record.epsilons(turn.number, turn.norm)
    found = {
        epsilon: turn.record.load(turn.part(epsilon), chunk)
        for epsilon in {*known, *turn.plan.epsilons(turn.norm)}
    }
    held = {e: arrays for e, arrays in found.items() if "verdict" in arrays}
    if turn.plan.warm_start and len(held) < len(found):
        return {}  # The images to start from are not loaded.
    return held


class _Chunk:
    """A chunk of examples, at the epsilon that its attack has reached.

    Args:
        turn: The attack's turn.
        worker: The worker on which the attack runs.
        chunk: Number of the chunk.

    Attributes:
        verdict: Int8 array (n,), the verdicts at the last epsilon.
        wrong: Float array (n,), the fraction of the draws that are wrong there.
    """

    def __init__(self, turn: Turn, worker: Worker, chunk: int) -> None:
        self._turn, self._worker = turn, worker
        self._indices = verdicts.chunk_indices(turn.record.header, chunk)
        self._x = turn.plan.data.x[self._indices]
        saved = turn.record.load(NATURAL, chunk)
        correct = saved["correct"]
        natural = np.where(correct, STANDS, MISCLASSIFIED).astype(np.int8)
        self._wrong = saved.get("wrong", (~correct).astype(np.float64))
        self._natural = self.verdict = natural
        self._lengths = np.full((len(natural), len(LENGTHS)), np.inf)
        self._images: np.ndarray | None = None  # Of the last epsilon.
        self._reaches: dict[Any, _Reach] = {}
        self._unconstrained = np.zeros(2, np.int64)

    def take(self, saved: Arrays) -> None:
        """Inherits the verdicts of an epsilon.

        Args:
            saved: Its arrays, by name.
        """
        survives = self.verdict == STANDS
        self.verdict = verdicts.inherited(saved["verdict"], self.verdict)
        if "lengths" in saved:
            self._lengths[survives] = saved["lengths"][survives]
        if "wrong" in saved:
            self._wrong = np.where(survives, saved["wrong"], self._wrong)
        if str(saved.get("kind", "")) and not self._turn.plan.keep_images:
            self._reaches.setdefault(str(saved["kind"]), _reach_of(saved))

    def attack(self, epsilon: float) -> Arrays:
        """Attacks the survivors at an epsilon.

        Args:
            epsilon: The budget.

        Returns:
            The arrays to be saved, by name.
        """
        turn = self._turn
        attack = turn.plan.made(turn.entry, Budget(turn.norm, epsilon))
        # A minimum-norm attack runs once for all epsilons, except on a
        # surrogate, whose nearest images say how robust the surrogate is.
        nearest = ATTACKS.fact(attack, "minimum_norm")
        if not nearest or self._worker.source.surrogate:
            return self._attack_stages(attack, epsilon)
        kind = kind_of(attack, epsilon)
        reach = self._reaches.get(kind) or self._reach(attack, kind)
        # By a number, an attack is recognised at no other epsilon.
        shared = np.array(kind if isinstance(kind, str) else "")
        new = {**self._within(attack, epsilon, reach), "kind": shared}
        # The first epsilon is charged with the cost of the run.
        self._reaches[kind] = reach._replace(
            attacked=0, passes=0 * reach.passes, seconds=0.0
        )
        return new

    def bisect(self, epsilons: list[float]) -> dict[float, Arrays]:
        """Attacks by bisection.

        Args:
            epsilons: The budgets, ascending.

        Returns:
            The arrays to be saved, by name, of each epsilon; none for a
            minimum-norm attack.
        """
        turn, natural = self._turn, self._natural
        largest = Budget(turn.norm, epsilons[-1])
        attack = turn.plan.made(turn.entry, largest)
        surrogate = self._worker.source.surrogate
        if ATTACKS.fact(attack, "minimum_norm") and not surrogate:
            return {}

        def attempt(number: int, verdict: np.ndarray) -> Arrays:
            self.verdict = verdict
            return self.attack(epsilons[number])

        stops = bool(ATTACKS.fact(attack, "stops")) and not surrogate
        found = bisection.sweep(attempt, len(epsilons), natural, stops)
        self.verdict = natural
        return dict(zip(epsilons, found, strict=True))

    def _attack_stages(self, attack: Any, epsilon: float) -> Arrays:
        """Attacks the survivors, stage by stage if the attack is an ensemble.

        Returns:
            The arrays to be saved, by name.
        """
        plan, started = self._turn.plan, time.perf_counter()
        verdict = self.verdict.copy()
        stages = ATTACKS.fact(attack, "stages") or [("", attack)]
        warm = plan.warm_start and can_start(attack)
        start = self._images if warm else None
        images, reached = self._x.copy(), self._lengths.copy()
        wrong = self._wrong.copy()
        largest, passes, nonfinite = 0.0, np.zeros(2, np.int64), 0
        facts = [red_flags.facts_of(stage) for _, stage in stages]
        diagnosed = self._counters(len(stages))
        for number, (name, stage) in enumerate(stages, 1):
            survivors = np.flatnonzero(verdict == STANDS)
            if not len(survivors):
                break
            key = (number, kind_of(stage, epsilon))
            found = self._run(stage, key, survivors, epsilon, start)
            broken, wrong[survivors] = found.broken, found.wrong
            verdict[survivors[broken]] = number
            images[survivors] = found.images
            reached[survivors[broken]] = self._moved(found, survivors)[broken]
            largest = max(largest, found.largest)
            passes += found.passes
            nonfinite += found.nonfinite
            facts[number - 1] = found.facts
            diagnosis.keep(diagnosed, number - 1, survivors, found, stage)
            if number < len(stages):
                self._turn.tell(epsilon, verdict, name)
        self._images = images
        saved = {
            "verdict": verdict,
            "lengths": reached,
            "largest": np.array(largest),
            "attacked": np.array(int((self.verdict == STANDS).sum())),
            "passes": passes,
            "nan_gradients": np.array(nonfinite),
            "stages": np.array([name for name, _ in stages]),
            "version": np.array(ATTACKS.fact(attack, "version") or ""),
            **_columns(facts),
            **self._of_draws(attack, facts, wrong),
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
                (turn.number, turn.norm),
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
            (self._turn.number, self._turn.norm, *key),
            self._indices[chosen],
            self._turn.norm,
            epsilon,
            None if start is None else start[chosen],
        )

    def _of_draws(
        self, attack: Any, facts: Sequence[red_flags.Facts], wrong: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the arrays that are saved for random models."""
        saved = {}
        if self._turn.plan.draws is not None:
            saved["wrong"] = wrong
        if draws.follows_one(attack, facts, self._worker.source):
            saved["meaningless"] = np.array(True)
        return saved

    def _moved(self, found: Found, chosen: np.ndarray) -> np.ndarray:
        """Returns the `lengths` of the perturbations of the chosen examples."""
        images = found.images.astype(np.float64)
        return lengths(images - self._x[chosen])

    def _reach(self, attack: Any, kind: Any) -> _Reach:
        """Runs a minimum-norm attack, whose result serves all epsilons."""
        started, norm = time.perf_counter(), self._turn.norm
        distances = np.where(self._natural == STANDS, np.inf, 0.0)
        reached = np.full((len(distances), len(LENGTHS)), np.inf)
        images, wrong = self._x.copy(), self._wrong.copy()
        correct = np.flatnonzero(self._natural == STANDS)
        passes, nonfinite = np.zeros(2, np.int64), 0
        facts = red_flags.facts_of(attack)
        diagnosed = self._counters(1)
        if len(correct):
            found = self._run(attack, (1, kind), correct)
            broken = found.broken
            wrong[correct] = found.wrong
            reached[correct[broken]] = self._moved(found, correct)[broken]
            distances[correct] = reached[correct, LENGTHS.index(norm)]
            images[correct] = found.images
            passes, nonfinite = found.passes, found.nonfinite
            facts = found.facts
            diagnosis.keep(diagnosed, 0, correct, found, attack)
        if diagnosed:
            # The attack has no budget.
            tried = [len(correct), int(np.isinf(distances).sum())]
            diagnosed = {**diagnosed, "unconstrained": np.array(tried)}
        seconds = time.perf_counter() - started
        return _Reach(
            distances=distances,
            lengths=reached,
            wrong=wrong,
            images=images if self._turn.plan.keep_images else None,
            attacked=len(correct),
            passes=passes,
            nonfinite=nonfinite,
            facts=facts,
            seconds=seconds,
            diagnosed=diagnosed,
        )

    def _within(self, attack: Any, epsilon: float, reach: _Reach) -> Arrays:
        """Derives the verdicts at an epsilon from a minimum-norm attack's run.

        Returns:
            The arrays to be saved, by name.
        """
        reached = within(reach.distances, epsilon)
        survivors = self.verdict == STANDS
        verdict = np.where(survivors & reached, 1, self.verdict)
        wrong = np.where(survivors & reached, reach.wrong, self._wrong)
        saved = {
            "verdict": verdict.astype(np.int8),
            "lengths": reach.lengths,
            "largest": reach.distances[reached].max(initial=0.0),
            "attacked": np.array(reach.attacked),
            "passes": reach.passes,
            # Not set to 0 after the first epsilon: its run serves them all.
            "nan_gradients": np.array(reach.nonfinite),
            "stages": np.array([""]),
            **_columns([reach.facts]),
            **self._of_draws(attack, [reach.facts], wrong),
            "seconds": np.array(reach.seconds),
            "distances": reach.distances,
            **reach.diagnosed,
        }
        if self._turn.plan.draws:
            saved["wrong_nearest"] = reach.wrong
        if reach.images is not None:
            images = self._x.copy()
            images[reached] = reach.images[reached]
            saved["adversarial"] = images
        return saved


def _reach_of(saved: Arrays) -> _Reach:
    """Returns the result of a minimum-norm attack from its saved arrays.

    Its cost was charged to the epsilon at which it ran.
    """
    facts = [saved[name][0] for name in red_flags.Facts._fields]
    return _Reach(
        distances=saved["distances"],
        lengths=saved["lengths"],
        wrong=saved.get("wrong_nearest", np.zeros(len(saved["lengths"]))),
        images=None,
        attacked=0,
        passes=0 * saved["passes"],
        nonfinite=int(saved["nan_gradients"]),
        facts=red_flags.Facts(bool(facts[0]), bool(facts[1]), int(facts[2])),
        seconds=0.0,
        diagnosed=diagnosis.recorded(saved),
    )


def _columns(facts: Iterable[red_flags.Facts]) -> Arrays:
    """Returns the facts about all stages as arrays, one for each fact."""
    return {
        name: np.array(column)
        for name, column in zip(
            red_flags.Facts._fields, zip(*facts, strict=True), strict=True
        )
    }
