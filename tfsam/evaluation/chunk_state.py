"""The state of a chunk of examples under attack, on one device."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.evaluation import chunk_outcomes
from tfsam.evaluation import diagnosis
from tfsam.evaluation import draws
from tfsam.evaluation import records
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.attack_batch import Found
from tfsam.evaluation.attack_batch import attack_batch
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.chunk_outcomes import Outcome
from tfsam.evaluation.nearest_images import Nearest
from tfsam.evaluation.nearest_images import nearest_of
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import STANDS
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.worst_case import LENGTHS
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

    def made(self, epsilon: float) -> Any:
        """Makes the attack for an epsilon."""
        return self.plan.made(self.entry, Budget(self.norm, epsilon))


class Chunk:
    """A chunk of examples, at the epsilon that its attack has reached.

    Args:
        turn: The attack's turn.
        worker: The worker on which the attack runs.
        number: Number of the chunk.

    Attributes:
        turn: The attack's turn.
        worker: The worker on which the attack runs.
        indices: Int array (n,), the indices of the examples.
        x: Float array (n, ...), the examples.
        natural: Int8 array (n,), the verdicts without an attack.
        verdict: Int8 array (n,), the verdicts at the last epsilon.
        lengths: Float array (n, 3), the `lengths` of the perturbations that
            broke the examples.
        wrong: Float array (n,), the fraction of the draws that are wrong there.
        right: Bool array (n, labels), which of several labels are right there.
        images: Float array (n, ...), the images at the last epsilon, or None.
        nearest: The results of minimum-norm attacks, by their kinds.
        unconstrained: Int array (2,): the number of examples on which the
            attack was repeated without a budget, and the number of those that
            it did not break.
    """

    def __init__(self, turn: Turn, worker: Worker, number: int) -> None:
        self.turn, self.worker = turn, worker
        self.indices = records.chunk_indices(turn.record.header, number)
        self.x = turn.plan.data.x[self.indices]
        saved = turn.record.load(NATURAL, number)
        standing, self.wrong = verdicts.before_attacks(saved)
        natural = np.where(standing, STANDS, MISCLASSIFIED).astype(np.int8)
        self.right = saved.get("right", np.zeros((len(natural), 0), bool))
        self.natural = self.verdict = natural
        self.lengths = np.full((len(natural), len(LENGTHS)), np.inf)
        self.images: np.ndarray | None = None
        self.nearest: dict[Any, Nearest] = {}
        self.unconstrained = np.zeros(2, np.int64)

    def take(self, saved: Arrays) -> None:
        """Inherits the verdicts of an epsilon.

        Args:
            saved: Its arrays, by name.
        """
        survives = self.verdict == STANDS
        self.verdict = verdicts.inherited(saved["verdict"], self.verdict)
        if "lengths" in saved:
            self.lengths[survives] = saved["lengths"][survives]
        if "wrong" in saved:
            self.wrong = np.where(survives, saved["wrong"], self.wrong)
        if "right" in saved:
            chosen = survives[:, None]
            self.right = np.where(chosen, saved["right"], self.right)
        if str(saved.get("kind", "")) and not self.turn.plan.keep_images:
            self.nearest.setdefault(str(saved["kind"]), nearest_of(saved))

    def run(
        self,
        attack: Any,
        key: tuple[Any, ...],
        chosen: np.ndarray,
        epsilon: float | None = None,
        start: np.ndarray | None = None,
        each: np.ndarray | None = None,
    ) -> Found:
        """Attacks some examples of the chunk.

        Args:
            attack: The attack, or a stage of an ensemble.
            key: Key of its trace within the turn; see `attack_batch`.
            chosen: Int array (count,), the examples.
            epsilon: The budget, or None for the nearest images.
            start: Float array (n, ...), images to start from, or None.
            each: Float array (n,), the epsilon of each example, or None.
        """
        return attack_batch(
            self.turn.plan,
            self.worker,
            attack,
            (self.turn.number, self.turn.norm, *key),
            self.indices[chosen],
            self.turn.norm,
            epsilon,
            None if start is None else start[chosen],
            None if each is None else each[chosen],
        )

    def unattacked(self, attack: Any) -> Outcome:
        """Returns the outcome before an attack."""
        stages = stages_of(attack)
        return chunk_outcomes.unattacked(
            self.x,
            self.verdict,
            self.lengths,
            self.wrong,
            self.right,
            self.counters(len(stages)),
            [red_flags.facts_of(stage) for _, stage in stages],
        )

    def counters(self, stages: int) -> dict[str, np.ndarray]:
        """Returns the arrays that a diagnosis needs, if there is one."""
        if not self.turn.plan.diagnose:
            return {}
        return diagnosis.counters(
            stages, len(self.x), self.worker.source.surrogate
        )

    def of_draws(
        self, attack: Any, facts: Sequence[red_flags.Facts], wrong: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the arrays that are saved for random models."""
        saved = {}
        if self.turn.plan.draws is not None:
            saved["wrong"] = wrong
        if draws.follows_one(attack, facts, self.worker.source):
            saved["meaningless"] = np.array(True)
        return saved


def stages_of(attack: Any) -> Sequence[tuple[str, Any]]:
    """Returns the (name, attack) of an ensemble's stages, or of an attack.

    Args:
        attack: The attack, made by a factory.
    """
    return ATTACKS.fact(attack, "stages") or [("", attack)]
