"""Accuracies, with confidence intervals, summed up from verdicts."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.evaluation import attack_rows
from tfsam.evaluation import red_flags
from tfsam.evaluation import row_entries
from tfsam.evaluation import verdicts
from tfsam.evaluation import worst_case
from tfsam.evaluation.attack_rows import Errors
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import Budgets
from tfsam.evaluation.budgets import ascending
from tfsam.evaluation.budgets import epsilon_text
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.budgets import together
from tfsam.evaluation.headers import Header
from tfsam.evaluation.intervals import accuracy_of
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.records import Arrays
from tfsam.evaluation.row_entries import Row


class Asked(NamedTuple):
    """The attacks and budgets of a result.

    Attributes:
        numbers: Numbers of the attacks in the record, in the order of the rows.
        budgets: The epsilons of each norm, in the order of the rows.
    """

    numbers: Sequence[int]
    budgets: Budgets


def result(
    record: verdicts.Record,
    chunks: Sequence[int],
    errors: Errors,
    asked: Asked | None = None,
) -> dict[str, Any]:
    """Computes the result of `tfsam.evaluate` from a record.

    Args:
        record: The record.
        chunks: Numbers of the chunks that count.
        errors: Messages of attacks that failed, by (number of the attack,
            budget).
        asked: The attacks and budgets of the rows; None for all of them.
    """
    header = record.header
    natural = [record.load(NATURAL, chunk) for chunk in chunks]
    correct = np.concatenate([n["correct"] for n in natural])
    asked = asked or _everything(header)
    attacks = [
        attack_rows.measured(record, number, chunks, errors, natural)
        for number in asked.numbers
    ]
    robust = [
        attack.rows[budget]
        for attack in attacks
        for budget in flat(asked.budgets)
        if budget in attack.rows
    ]
    breaks = [attack.breaks for attack in attacks]
    standing, _ = row_entries.before_attacks(natural)
    worst = worst_case.rows(standing, breaks, asked.budgets)
    union = worst_case.union(standing, breaks, asked.budgets)
    found = {
        "natural": accuracy_of(correct)
        | row_entries.of_draws(
            header, row_entries.wrong_draws(natural), ~correct
        )
        | row_entries.by_label(row_entries.right_labels(natural)),
        "robust": robust,
        "worst_case": [
            row
            | row_entries.of_goal(header)
            | _meaningless(attacks, [_budget(row)])
            for row in worst
        ],
        **_union(header, attacks, union),
        **{key: header[key] for key in ("attacked",) if key in header},
        "warnings": _warnings(record, chunks, natural, correct, attacks, asked),
    }
    factors = row_entries.factors_of(natural)
    return found if factors is None else _per_example(found, factors)


def _union(
    header: Header, attacks: Sequence[attack_rows.Measured], union: Row | None
) -> Row:
    """Returns the union of the norms as an entry of the result, if any."""
    if union is None:
        return {}
    balls = [Budget(*item) for item in union["budgets"].items()]
    return {
        "union": union
        | row_entries.of_goal(header)
        | _meaningless(attacks, balls)
    }


def _budget(row: Row) -> Budget:
    return Budget(row["norm"], row["epsilon"])


def _meaningless(
    attacks: Sequence[attack_rows.Measured], budgets: Sequence[Budget]
) -> Row:
    """Returns the entry `meaningless` of a worst case, if it has one.

    A worst case has it if the rows of all attacks that were measured do.

    Args:
        attacks: The attacks.
        budgets: The balls of the worst case.
    """
    rows = [a.rows[b] for a in attacks for b in budgets if b in a.rows]
    measured = [row for row in rows if "error" not in row]
    if measured and all(row.get("meaningless") for row in measured):
        return {"meaningless": True}
    return {}


def _per_example(result: dict[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """Marks a result that was measured with an epsilon for each example."""
    for row in [*result["robust"], *result["worst_case"]]:
        if "per_example" in row:  # An epsilon that was given twice.
            continue
        row["epsilon_text"] += " per example"
        row["per_example"] = True
        if "standard" in row:
            row["standard"] = False
    if "union" in result:
        result["union"]["per_example"] = True
    extremes = {
        "lowest": float(factors.min()),
        "highest": float(factors.max()),
        "mean": float(factors.mean()),
    }
    return result | {"epsilon_factors": extremes}


def _everything(header: Header) -> Asked:
    """Returns all attacks of a record, and the budgets of any of them."""
    budgets = together(attack["budgets"] for attack in header["attacks"])
    return Asked(range(len(header["attacks"])), budgets)


def _warnings(
    record: verdicts.Record,
    chunks: Sequence[int],
    natural: Sequence[Arrays],
    correct: np.ndarray,
    attacks: Sequence[attack_rows.Measured],
    asked: Asked,
) -> list[dict[str, str]]:
    """Returns all warnings about an evaluation."""
    header = record.header
    probed = [n for n in natural if "randomness" in n]
    gradients = [n for n in natural if "probed" in n]  # Of tfsam 0.1.0.
    if 0 in chunks:
        gradients += _gradients(record, asked)
    found = red_flags.of_logits(gradients, header.get("logits"))
    found += red_flags.of_model(probed, gradients)
    if not header.get("multi_label"):
        found += red_flags.of_accuracy(correct, header["classes"])
    budgets = list(flat(asked.budgets))
    for attack in attacks:
        for norm in asked.budgets:
            rows = [attack.rows[b] for b in budgets if b in attack.rows]
            rows = [row for row in rows if row["norm"] == norm]
            found += red_flags.of_rows(rows)
            found += red_flags.of_single_draws(rows)
    stages = [s for a in attacks for norm in a.stages for s in a.stages[norm]]
    targets = [facts.targets for _, facts in stages]
    if not row_entries.of_goal(header):
        most = max(targets, default=0)
        found += red_flags.of_classes(header["classes"], most)
    for budget in flat(ascending(asked.budgets)):
        found += _masked(attacks, budget)
    return found


def _gradients(record: verdicts.Record, asked: Asked) -> list[Arrays]:
    """Returns facts about the gradients of the models that are attacked."""
    attacks = record.header["attacks"]
    sources = [attacks[number]["surrogate"] for number in asked.numbers]
    if not sources:  # Without an attack, all that were examined.
        sources = [None, *range(len(record.header["surrogates"]))]
    parts = [verdicts.part_of_gradients(s) for s in dict.fromkeys(sources)]
    found = [record.load(part, 0) for part in parts]
    return [facts for facts in found if facts]


def _masked(
    attacks: Sequence[attack_rows.Measured], budget: Budget
) -> list[dict[str, str]]:
    """Returns the warnings about masked gradients at a budget.

    An attack on a surrogate is left out: it may miss examples for other reasons
    than masked gradients.
    """
    column, stages = {}, {}
    for number, attack in enumerate(attacks):
        if budget in attack.verdicts and not attack.breaks.surrogate:
            column[str(number)] = attack.verdicts[budget]
            stages[str(number)] = attack.stages[budget.norm]
    text = f"{budget.norm} {epsilon_text(budget.epsilon)}"
    return red_flags.of_verdicts(column, stages, text)
