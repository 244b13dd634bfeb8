"""The rows of an attack in a result, one for each budget."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.attacks.autoattack import STAGES
from tfsam.evaluation import diagnosis
from tfsam.evaluation import red_flags
from tfsam.evaluation import row_entries
from tfsam.evaluation import verdicts
from tfsam.evaluation import worst_case
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import epsilon_text
from tfsam.evaluation.headers import Header
from tfsam.evaluation.intervals import accuracy_of
from tfsam.evaluation.records import Arrays
from tfsam.evaluation.row_entries import Row
from tfsam.evaluation.verdicts import STANDS

# The `version` of rows with a target and with several labels.
TARGETED, MULTI_LABEL = "targeted", "multi-label"

# Messages of attacks that failed, by number of the attack in the record.
Errors = Mapping[tuple[int, Budget], str]


class Measured(NamedTuple):
    """Everything that was measured of an attack.

    Attributes:
        rows: Rows of the result, by budget.
        verdicts: Int8 arrays (n,), by budget.
        stages: By norm, the name and the facts of each stage; a single stage
            has the attack's name.
        breaks: The examples that the attack broke.
    """

    rows: dict[Budget, Row]
    verdicts: dict[Budget, np.ndarray]
    stages: dict[str, list[tuple[str, red_flags.Facts]]]
    breaks: worst_case.Breaks


def measured(
    record: verdicts.Record,
    number: int,
    chunks: Sequence[int],
    errors: Errors,
    natural: Sequence[Arrays],
) -> Measured:
    """Sums up an attack at all budgets that the record holds of it.

    Args:
        record: The record.
        number: Number of the attack.
        chunks: Numbers of the chunks that count.
        errors: Messages of failures.
        natural: The natural arrays of the chunks.
    """
    attack = record.header["attacks"][number]
    standing, reached = row_entries.before_attacks(natural)
    probes = _probes(record, attack["surrogate"], chunks, natural)
    factors = row_entries.factors_of(natural)
    failed = [budget for other, budget in errors if other == number]
    breaks = worst_case.Breaks(
        attack["name"], attack["surrogate"] is not None, {}, [], failed
    )
    found = Measured({}, {}, {}, breaks)
    for norm in attack["budgets"]:
        before = ~standing
        wrong = None if row_entries.wrong_draws(natural) is None else reached
        right = row_entries.right_labels(natural)
        for budget, held, verdict in record.verdicts(number, norm, chunks):
            if budget in failed:
                continue
            inherited = int((before & standing).sum())
            names = _add(found, attack, budget, held, verdict, factors)
            row = _row(held, verdict, names, inherited, record.header)
            radii = budget.epsilon * (1.0 if factors is None else factors)
            failures = diagnosis.of_row(attack, held, verdict, radii, probes)
            diagnosed = {} if failures is None else {"diagnosis": failures}
            new = row_entries.wrong_draws(held)
            if wrong is not None and new is not None:
                wrong = np.where(before, wrong, new)
                row |= row_entries.of_draws(
                    record.header, wrong, verdict != STANDS
                )
            new = row_entries.right_labels(held)
            if right is not None and new is not None:
                right = np.where(before[:, None], right, new)
                row |= row_entries.by_label(right)
            labels = _labels(attack, budget, record.header)
            found.rows[budget] = labels | row | diagnosed
            before = verdict != STANDS
    for budget in failed:
        survives = ~worst_case.verdict_at(breaks, budget, ~standing)
        inherited = int(standing.sum() - survives.sum())
        row = _failed(survives, inherited, errors[number, budget])
        unattackable = diagnosis.of_model(probes)
        diagnosed = {"diagnosis": unattackable} if unattackable else {}
        labels = _labels(attack, budget, record.header)
        found.rows[budget] = labels | row | diagnosed
    return found


def _add(
    found: Measured,
    attack: Header,
    budget: Budget,
    held: Sequence[Arrays],
    verdict: np.ndarray,
    factors: np.ndarray | None,
) -> list[str]:
    """Adds what was measured at a budget, except for the row.

    Args:
        found: What was measured at smaller epsilons, which is changed.
        attack: The attack, an entry of the header.
        budget: The budget.
        held: The arrays of the budget, chunk by chunk.
        verdict: Int8 array (n,), the verdicts.
        factors: Float array (n,), the radii of the balls in units of epsilon;
            None if they are 1.

    Returns:
        The names of the stages.
    """
    names = [str(name) for name in held[0]["stages"]]
    before = [facts for _, facts in found.stages.get(budget.norm, [])]
    found.stages[budget.norm] = [
        (name or attack["name"], facts)
        for name, facts in zip(names, _facts(held, before), strict=True)
    ]
    found.verdicts[budget] = verdict
    found.breaks.broken[budget] = verdict != STANDS
    if all("lengths" in arrays for arrays in held):
        lengths = np.concatenate([arrays["lengths"] for arrays in held])
        if factors is not None:
            # In units of the factors, epsilon is the radius of all balls.
            lengths = _quotients(lengths, factors[:, None])
        found.breaks.lengths.append(lengths)
    return names


def _quotients(lengths: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Divides lengths by factors; 0 / 0 is 0, and others over 0 infinite."""
    beyond = np.where(lengths > 0, np.inf, 0.0)
    safe = np.where(factors > 0, factors, 1.0)
    return np.where(factors > 0, lengths / safe, beyond)


def _probes(
    record: verdicts.Record,
    surrogate: int | None,
    chunks: Sequence[int],
    natural: Sequence[Arrays],
) -> list[Arrays]:
    """Adds the facts about a model's gradients to those of the first chunk."""
    gradients = record.load(verdicts.part_of_gradients(surrogate), 0)
    return [
        {**arrays, **gradients} if chunk == 0 else arrays
        for chunk, arrays in zip(chunks, natural, strict=True)
    ]


def _facts(
    held: Sequence[Arrays], others: Sequence[red_flags.Facts]
) -> list[red_flags.Facts]:
    """Returns the facts about an attack's stages.

    A fact that is true in any chunk or at any epsilon is true.

    Args:
        held: The arrays of one epsilon, chunk by chunk.
        others: Facts from smaller epsilons, or an empty list.
    """
    count = len(held[0]["stages"])
    # Records of tfsam 0.1.0 have fewer facts.
    found = [
        np.max([h.get(name, np.zeros(count)) for h in held], axis=0)
        for name in red_flags.Facts._fields
    ]
    if others:
        found = list(np.maximum(found, np.transpose(others)))
    free, follows, targets = found
    return [
        red_flags.Facts(bool(one and not other), bool(other), int(number))
        for one, other, number in zip(free, follows, targets, strict=True)
    ]


def _labels(attack: Header, budget: Budget, header: Header) -> Row:
    """Returns the entries that identify a row."""
    return {
        "attack": attack["name"],
        "options": attack["options"],
        **row_entries.of_goal(header),
        **({} if attack["surrogate"] is None else {"surrogate": True}),
        **budget._asdict(),
        "epsilon_text": epsilon_text(budget.epsilon),
    }


def _row(
    held: Sequence[Arrays],
    verdict: np.ndarray,
    names: list[str],
    inherited: int,
    header: Mapping[str, Any],
) -> Row:
    """Returns the measured part of a row.

    Args:
        held: The arrays of one epsilon, chunk by chunk.
        verdict: Int8 array (n,).
        names: Names of the stages.
        inherited: Number of examples broken at smaller epsilons.
        header: The record's header.
    """
    attacked = sum(int(h["attacked"]) for h in held)
    passes = np.sum([h["passes"] for h in held], axis=0)
    counted = attacked and passes.any()
    row = accuracy_of(verdict == STANDS) | {
        "max_perturbation": float(max(h["largest"] for h in held)),
        "inherited": inherited,
        "attacked": attacked,
        "forward_passes": float(passes[0] / attacked) if counted else None,
        "gradient_passes": float(passes[1] / attacked) if counted else None,
        "nan_gradients": sum(int(h.get("nan_gradients", 0)) for h in held),
        "seconds": float(sum(h["seconds"] for h in held)),
    }
    if "sweep" in held[0]:
        row["sweep"] = str(held[0]["sweep"])
    if len(names) > 1:
        row["broken_by"] = {
            # Two stages may have the same name.
            name if names.count(name) == 1 else f"{name} ({number})": int(
                (verdict == number).sum()
            )
            for number, name in enumerate(names, 1)
        }
        # Records of tfsam 0.1.0 have no versions.
        standard = "standard" if names == list(STAGES) else ""
        version = str(held[0].get("version", standard))
        usual = not row_entries.of_goal(header)
        if version:
            other = MULTI_LABEL if header.get("multi_label") else TARGETED
            row["version"] = version if usual else other
        if version == "standard":
            row["standard"] = usual and header["classes"] >= 4
    if any(h.get("meaningless") for h in held):
        row["meaningless"] = True
    if "distances" in held[0]:
        median = float(
            np.median(np.concatenate([h["distances"] for h in held]))
        )
        row["median_distance"] = median if np.isfinite(median) else None
    return row


def _failed(survivors: np.ndarray, inherited: int, error: str) -> Row:
    """Returns the rest of the row of an attack that failed."""
    unknown = (
        *("accuracy", "interval", "max_perturbation", "attacked"),
        *("forward_passes", "gradient_passes", "nan_gradients"),
    )
    return {
        **accuracy_of(survivors),
        **dict.fromkeys(unknown),
        "inherited": inherited,
        "seconds": 0.0,
        "error": error,
    }
