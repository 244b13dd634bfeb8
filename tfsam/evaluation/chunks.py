"""Chunks of examples under attack, each on one device.

At each epsilon only the survivors of the smaller epsilons are attacked, also of
those that an earlier evaluation added to the record. The verdicts are saved
after each epsilon; see `verdicts.py`.
"""

import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.attacks.check import contract
from tfsam.evaluation import bisection
from tfsam.evaluation import diagnosis
from tfsam.evaluation import draws
from tfsam.evaluation import outcomes
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.attack_batch import Found
from tfsam.evaluation.attack_batch import attack_batch
from tfsam.evaluation.attack_batch import judged_images
from tfsam.evaluation.attack_batch import kind_of
from tfsam.evaluation.attack_probes import steepest_images
from tfsam.evaluation.attack_probes import unbroken_without_budget
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.outcomes import Outcome
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import can_start
from tfsam.evaluation.progress import FAILED
from tfsam.evaluation.progress import LOADED
from tfsam.evaluation.reaches import Reach
from tfsam.evaluation.reaches import reach_of
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
        standing, self._wrong = verdicts.before_attacks(saved)
        natural = np.where(standing, STANDS, MISCLASSIFIED).astype(np.int8)
        self._right = saved.get("right", np.zeros((len(natural), 0), bool))
        self._natural = self.verdict = natural
        self._lengths = np.full((len(natural), len(LENGTHS)), np.inf)
        self._images: np.ndarray | None = None  # Of the last epsilon.
        self._reaches: dict[Any, Reach] = {}
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
        if "right" in saved:
            chosen = survives[:, None]
            self._right = np.where(chosen, saved["right"], self._right)
        if str(saved.get("kind", "")) and not self._turn.plan.keep_images:
            self._reaches.setdefault(str(saved["kind"]), reach_of(saved))

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
        made = [
            turn.plan.made(turn.entry, Budget(turn.norm, epsilon))
            for epsilon in epsilons
        ]
        surrogate = self._worker.source.surrogate
        if ATTACKS.fact(made[-1], "minimum_norm") and not surrogate:
            return {}

        together = _alike(made, epsilons)

        def attempt(numbers: np.ndarray, verdict: np.ndarray) -> Outcome:
            self.verdict = verdict
            number = int(numbers[verdict == STANDS].max())
            each = np.array(epsilons)[numbers] if together else None
            return self._outcome(made[number], epsilons[number], each=each)

        def rescale(
            found: Outcome, radii: np.ndarray, chosen: np.ndarray
        ) -> Outcome:
            return self._rescaled(made[-1], found, radii, chosen)

        self.verdict = natural
        balls = [turn.plan.radii(e, self._indices) for e in epsilons]
        found = bisection.sweep(
            attempt,
            rescale,
            np.stack([np.broadcast_to(b, natural.shape) for b in balls]),
            self._unattacked(made[-1]),
            steepest_images(turn.plan, self._worker, self._indices, turn.norm),
            together,
        )
        self.verdict = natural
        bisected = {"sweep": np.array("bisect")}
        return {
            epsilon: self._arrays(attack, outcome) | bisected
            for epsilon, attack, outcome in zip(
                epsilons, made, found, strict=True
            )
        }

    def _attack_stages(self, attack: Any, epsilon: float) -> Arrays:
        """Attacks the survivors.

        Returns:
            The arrays to be saved, by name.
        """
        warm = self._turn.plan.warm_start and can_start(attack)
        outcome = self._outcome(attack, epsilon, self._images if warm else None)
        self._images = outcome.images
        return self._arrays(attack, outcome)

    def _unattacked(self, attack: Any) -> Outcome:
        """Returns the outcome before an attack."""
        stages = _stages(attack)
        return outcomes.unattacked(
            self._x,
            self.verdict,
            self._lengths,
            self._wrong,
            self._right,
            self._counters(len(stages)),
            [red_flags.facts_of(stage) for _, stage in stages],
        )

    def _outcome(
        self,
        attack: Any,
        epsilon: float,
        start: np.ndarray | None = None,
        each: np.ndarray | None = None,
    ) -> Outcome:
        """Attacks the survivors, stage by stage if the attack is an ensemble.

        Args:
            attack: The attack.
            epsilon: The budget.
            start: Float array (n, ...), images to start from, or None.
            each: Float array (n,), the epsilon of each example in place of
                `epsilon`, or None.
        """
        outcome, stages = self._unattacked(attack), _stages(attack)
        for number, (name, stage) in enumerate(stages, 1):
            survivors = np.flatnonzero(outcome.verdict == STANDS)
            if not len(survivors):
                break
            started = time.perf_counter()
            key = (number, kind_of(stage, epsilon))
            found = self._run(stage, key, survivors, epsilon, start, each)
            outcomes.add_stage(
                outcome,
                number,
                survivors,
                found,
                found.images.astype(np.float64) - self._x[survivors],
                self._turn.norm,
                time.perf_counter() - started,
            )
            diagnosis.keep(
                outcome.counters, number - 1, survivors, found, stage
            )
            if number < len(stages) and each is None:
                self._turn.tell(epsilon, outcome.verdict, name)
        return outcome

    def _rescaled(
        self,
        attack: Any,
        found: Outcome,
        radii: np.ndarray,
        chosen: np.ndarray,
    ) -> Outcome:
        """Judges the images of an outcome at other lengths.

        The last stage of an ensemble is taken to break an example that no stage
        broke at its own epsilon.

        Args:
            attack: The attack.
            found: The outcome.
            radii: Float array (count,), the lengths.
            chosen: Int array (count,), the examples to judge.

        Returns:
            An outcome with the verdicts of the chosen examples.
        """
        plan, norm, x = self._turn.plan, self._turn.norm, self._x[chosen]
        images = bisection.rescaled(
            x, found.images[chosen], radii, norm, plan.bounds
        )
        contract(x, images, radii, norm, plan.bounds)
        judged = judged_images(
            plan,
            self._worker,
            np.resize(images, (plan.size, *images.shape[1:])),
            self._indices[chosen],
        )
        moved = lengths(images.astype(np.float64) - x)
        outcome, before = self._unattacked(attack), found.verdict[chosen]
        stage = np.where(before == STANDS, len(_stages(attack)), before)
        outcome.verdict[chosen] = np.where(judged.broken, stage, STANDS)
        outcome.images[chosen], outcome.lengths[chosen] = images, moved
        outcome.wrong[chosen] = judged.wrong
        outcome.right[chosen] = judged.right
        return outcome

    def _arrays(self, attack: Any, outcome: Outcome) -> dict[str, Any]:
        """Returns the arrays to be saved of an outcome, by name."""
        images = {"adversarial": outcome.images}
        return {
            **outcomes.summed(outcome),
            "stages": np.array([name for name, _ in _stages(attack)]),
            "version": np.array(ATTACKS.fact(attack, "version") or ""),
            **self._of_draws(attack, outcome.facts, outcome.wrong),
            **({"right": outcome.right} if outcome.right.size else {}),
            **self._without_budget(outcome.verdict),
            **(images if self._turn.plan.keep_images else {}),
        }

    def _counters(self, stages: int) -> dict[str, np.ndarray]:
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
        each: np.ndarray | None = None,
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
            None if each is None else each[chosen],
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

    def _reach(self, attack: Any, kind: Any) -> Reach:
        """Runs a minimum-norm attack, whose result serves all epsilons."""
        started, norm = time.perf_counter(), self._turn.norm
        distances = np.where(self._natural == STANDS, np.inf, 0.0)
        reached = np.full((len(distances), len(LENGTHS)), np.inf)
        images, wrong = self._x.copy(), self._wrong.copy()
        right = self._right.copy()
        correct = np.flatnonzero(self._natural == STANDS)
        passes, nonfinite = np.zeros(2, np.int64), 0
        facts = red_flags.facts_of(attack)
        diagnosed = self._counters(1)
        if len(correct):
            found = self._run(attack, (1, kind), correct)
            broken = found.broken
            wrong[correct], right[correct] = found.wrong, found.right
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
        return Reach(
            distances=distances,
            lengths=reached,
            wrong=wrong,
            right=right,
            images=images if self._turn.plan.keep_images else None,
            attacked=len(correct),
            passes=passes,
            nonfinite=nonfinite,
            facts=facts,
            seconds=seconds,
            diagnosed=diagnosed,
        )

    def _within(self, attack: Any, epsilon: float, reach: Reach) -> Arrays:
        """Derives the verdicts at an epsilon from a minimum-norm attack's run.

        Returns:
            The arrays to be saved, by name.
        """
        radii = self._turn.plan.radii(epsilon, self._indices)
        reached = within(reach.distances, radii)
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
            **outcomes.columns([reach.facts]),
            **self._of_draws(attack, [reach.facts], wrong),
            "seconds": np.array(reach.seconds),
            "distances": reach.distances,
            **reach.diagnosed,
        }
        if self._turn.plan.draws:
            saved["wrong_nearest"] = reach.wrong
        if reach.right.size:
            found = (survivors & reached)[:, None]
            saved["right"] = np.where(found, reach.right, self._right)
            saved["right_nearest"] = reach.right
        if reach.images is not None:
            images = self._x.copy()
            images[reached] = reach.images[reached]
            saved["adversarial"] = images
        return saved


def _alike(attacks: Sequence[Any], epsilons: Sequence[float]) -> bool:
    """Returns whether examples may be attacked at different epsilons at once.

    They may if the attacks that were made for the epsilons differ in nothing
    else, and take an epsilon for each example.
    """
    kinds = {
        tuple(kind_of(stage, epsilon) for _, stage in _stages(attack))
        for attack, epsilon in zip(attacks, epsilons, strict=True)
    }
    (kind, *others) = kinds
    return not others and all(
        isinstance(described, str) and ATTACKS.fact(stage, "example_epsilons")
        for described, (_, stage) in zip(kind, _stages(attacks[0]), strict=True)
    )


def _stages(attack: Any) -> Sequence[tuple[str, Any]]:
    """Returns the (name, attack) of an ensemble's stages, or of an attack."""
    return ATTACKS.fact(attack, "stages") or [("", attack)]
