"""Accuracies, with confidence intervals, summed up from verdicts."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.attacks.autoattack import STAGES
from tfsam.evaluation import diagnosis
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation import worst_case
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import Budgets
from tfsam.evaluation.budgets import ascending
from tfsam.evaluation.budgets import epsilon_text
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.budgets import together
from tfsam.evaluation.draws import spread
from tfsam.evaluation.headers import Header
from tfsam.evaluation.intervals import accuracy_of
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.verdicts import STANDS

# The `target` of a row whose examples have several, and the `version` of rows
# with a target and with several labels.
EACH, TARGETED, MULTI_LABEL = "one for each example", "targeted", "multi-label"

Row = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

# Messages of attacks that failed, by number of the attack in the record.
Errors = Mapping[tuple[int, Budget], str]


class Asked(NamedTuple):
    """The attacks and budgets of a result.

    Attributes:
        numbers: Numbers of the attacks in the record, in the order of the rows.
        budgets: The epsilons of each norm, in the order of the rows.
    """

    numbers: Sequence[int]
    budgets: Budgets


class _Measured(NamedTuple):
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
        _attack(record, number, chunks, errors, natural)
        for number in asked.numbers
    ]
    robust = [
        attack.rows[budget]
        for attack in attacks
        for budget in flat(asked.budgets)
        if budget in attack.rows
    ]
    breaks = [attack.breaks for attack in attacks]
    standing, _ = _before_attacks(natural)
    worst = worst_case.rows(standing, breaks, asked.budgets)
    union = worst_case.union(standing, breaks, asked.budgets)
    found = {
        "natural": accuracy_of(correct)
        | _of_draws(header, _wrong(natural), ~correct)
        | _by_label(_right(natural)),
        "robust": robust,
        "worst_case": [
            row | _of_goal(header) | _meaningless(attacks, [_budget(row)])
            for row in worst
        ],
        **_union(header, attacks, union),
        **{key: header[key] for key in ("attacked",) if key in header},
        "warnings": _warnings(record, chunks, natural, correct, attacks, asked),
    }
    factors = _factors(natural)
    return found if factors is None else _per_example(found, factors)


def _union(
    header: Header, attacks: Sequence[_Measured], union: Row | None
) -> Row:
    """Returns the union of the norms as an entry of the result, if any."""
    if union is None:
        return {}
    balls = [Budget(*item) for item in union["budgets"].items()]
    return {"union": union | _of_goal(header) | _meaningless(attacks, balls)}


def _budget(row: Row) -> Budget:
    return Budget(row["norm"], row["epsilon"])


def _meaningless(
    attacks: Sequence[_Measured], budgets: Sequence[Budget]
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


def _factors(natural: Sequence[Arrays]) -> np.ndarray | None:
    """Returns the factors of the epsilons of each example, None without any.

    Args:
        natural: The natural arrays of the chunks.
    """
    if not all("epsilon_factors" in arrays for arrays in natural):
        return None
    return np.concatenate([arrays["epsilon_factors"] for arrays in natural])


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


def _before_attacks(
    natural: Sequence[Arrays],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the verdicts of all chunks; see `verdicts.before_attacks`."""
    found = [verdicts.before_attacks(arrays) for arrays in natural]
    standing, wrong = zip(*found, strict=True)
    return np.concatenate(standing), np.concatenate(wrong)


def _of_goal(header: Mapping[str, Any]) -> Row:
    """Returns the entries of a row about the goal of its attacks.

    They are empty for attacks that aim at any wrong class.
    """
    if header.get("multi_label"):
        return {"multi_label": True}
    if "target" not in header:
        return {}
    target = header["target"]
    return {"target": target if isinstance(target, int) else EACH}


def _everything(header: Header) -> Asked:
    """Returns all attacks of a record, and the budgets of any of them."""
    budgets = together(attack["budgets"] for attack in header["attacks"])
    return Asked(range(len(header["attacks"])), budgets)


def _attack(
    record: verdicts.Record,
    number: int,
    chunks: Sequence[int],
    errors: Errors,
    natural: Sequence[Arrays],
) -> _Measured:
    """Sums up an attack at all budgets that the record holds of it.

    Args:
        record: The record.
        number: Number of the attack.
        chunks: Numbers of the chunks that count.
        errors: Messages of failures.
        natural: The natural arrays of the chunks.
    """
    attack = record.header["attacks"][number]
    standing, reached = _before_attacks(natural)
    probes = _probes(record, attack["surrogate"], chunks, natural)
    factors = _factors(natural)
    failed = [budget for other, budget in errors if other == number]
    breaks = worst_case.Breaks(
        attack["name"], attack["surrogate"] is not None, {}, [], failed
    )
    found = _Measured({}, {}, {}, breaks)
    for norm in attack["budgets"]:
        before = ~standing
        wrong = None if _wrong(natural) is None else reached
        right = _right(natural)
        for budget, held, verdict in record.verdicts(number, norm, chunks):
            if budget in failed:
                continue
            inherited = int((before & standing).sum())
            names = _add(found, attack, budget, held, verdict, factors)
            row = _row(held, verdict, names, inherited, record.header)
            radii = budget.epsilon * (1.0 if factors is None else factors)
            failures = diagnosis.of_row(attack, held, verdict, radii, probes)
            diagnosed = {} if failures is None else {"diagnosis": failures}
            new = _wrong(held)
            if wrong is not None and new is not None:
                wrong = np.where(before, wrong, new)
                row |= _of_draws(record.header, wrong, verdict != STANDS)
            new = _right(held)
            if right is not None and new is not None:
                right = np.where(before[:, None], right, new)
                row |= _by_label(right)
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
    found: _Measured,
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


def _wrong(held: Sequence[Arrays]) -> np.ndarray | None:
    """Returns the fraction of each example's draws that are wrong.

    None for a model that is not random.

    Args:
        held: The arrays, chunk by chunk.
    """
    if not all("wrong" in arrays for arrays in held):
        return None
    return np.concatenate([arrays["wrong"] for arrays in held])


def _of_draws(
    header: Header, wrong: np.ndarray | None, broken: np.ndarray
) -> Row:
    """Returns the entries of a row of a random model; an empty dict of others.

    Args:
        header: The record's header.
        wrong: Float array (n,), the fraction of the draws that are wrong.
        broken: Bool array (n,), the verdicts.
    """
    if wrong is None:
        return {}
    return {"draws": header["draws"], "spread": spread(wrong, broken)}


def _right(held: Sequence[Arrays]) -> np.ndarray | None:
    """Returns which of several labels are right, None for classes.

    Args:
        held: The arrays, chunk by chunk.
    """
    if not all("right" in arrays for arrays in held):
        return None
    return np.concatenate([arrays["right"] for arrays in held])


def _by_label(right: np.ndarray | None) -> Row:
    """Returns the accuracy of each of several labels; an empty dict if none."""
    if right is None:
        return {}
    return {"by_label": right.mean(axis=0, dtype=np.float64).tolist()}


def _labels(attack: Header, budget: Budget, header: Header) -> Row:
    """Returns the entries that identify a row."""
    return {
        "attack": attack["name"],
        "options": attack["options"],
        **_of_goal(header),
        **({} if attack["surrogate"] is None else {"surrogate": True}),
        **budget._asdict(),
        "epsilon_text": epsilon_text(budget.epsilon),
    }


def _warnings(
    record: verdicts.Record,
    chunks: Sequence[int],
    natural: Sequence[Arrays],
    correct: np.ndarray,
    attacks: Sequence[_Measured],
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
    if not _of_goal(header):
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
    attacks: Sequence[_Measured], budget: Budget
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
        usual = not _of_goal(header)
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
