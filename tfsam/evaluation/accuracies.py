"""Accuracies, with confidence intervals, summed up from verdicts."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import scipy.stats

from tfsam.attacks.autoattack import STAGES
from tfsam.evaluation import diagnosis
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.verdicts import STANDS

Errors = Mapping[tuple[str, int], str]
Row = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


class _Attack(NamedTuple):
    """Everything that was measured of an attack.

    Attributes:
        rows: Rows of the result, by epsilon.
        verdicts: Int8 arrays (n,), by the number of the epsilon.
        stages: Name and facts of each stage; a single stage has the attack's
            name.
    """

    rows: dict[float, Row]
    verdicts: dict[int, np.ndarray]
    stages: list[tuple[str, red_flags.Facts]]


def result(
    record: verdicts.Record, chunks: Sequence[int], errors: Errors
) -> dict[str, Any]:
    """Computes the result of `tfsam.evaluate` from a record.

    Args:
        record: The record.
        chunks: Numbers of the chunks that count.
        errors: Messages of attacks that failed, by (part, number of the
            epsilon).
    """
    header = record.header
    natural = [record.load(NATURAL, chunk) for chunk in chunks]
    correct = np.concatenate([n["correct"] for n in natural])
    attacks = [
        _attack(record, number, chunks, errors, natural)
        for number in range(len(header["attacks"]))
    ]
    robust = [
        attack.rows[epsilon]
        for attack in attacks
        for epsilon in header["epsilons"]
    ]
    return {
        "natural": _accuracy(correct),
        "robust": robust,
        "warnings": _warnings(header, natural, correct, attacks),
    }


def _attack(
    record: verdicts.Record,
    number: int,
    chunks: Sequence[int],
    errors: Errors,
    natural: Sequence[Arrays],
) -> _Attack:
    """Sums up an attack, epsilon by epsilon, ascending.

    Args:
        record: The record.
        number: Number of the attack.
        chunks: Numbers of the chunks that count.
        errors: Messages of failures.
        natural: The natural arrays of the chunks.
    """
    header = record.header
    correct = np.concatenate([arrays["correct"] for arrays in natural])
    attack = header["attacks"][number]
    part = verdicts.part_of(number, attack["name"])
    saved = [record.load(part, chunk) for chunk in chunks]
    found, before = _Attack({}, {}, []), ~correct
    for index, epsilon in enumerate(sorted(set(header["epsilons"]))):
        row: Row = {
            "attack": attack["name"],
            "options": attack["options"],
            "norm": header["norm"],
            "epsilon": epsilon,
            "epsilon_text": epsilon_text(epsilon),
        }
        inherited = int((before & correct).sum())
        if (part, index) in errors:
            row |= _failed(~before, inherited, errors[part, index])
            unattackable = diagnosis.of_model(natural)
            if unattackable:
                row["diagnosis"] = unattackable
        else:
            held = [_of_epsilon(arrays, index) for arrays in saved]
            verdict = np.concatenate([h["verdict"] for h in held])
            before = verdict != STANDS
            names = [str(name) for name in held[0]["stages"]]
            row |= _row(held, verdict, names, inherited, header)
            failures = diagnosis.of_row(attack, held, verdict, epsilon, natural)
            if failures is not None:
                row["diagnosis"] = failures
            facts = _facts(held, [facts for _, facts in found.stages])
            found.stages[:] = [
                (name or attack["name"], fact)
                for name, fact in zip(names, facts, strict=True)
            ]
            found.verdicts[index] = verdict
        found.rows[epsilon] = row
    return found


def _of_epsilon(arrays: Arrays, index: int) -> dict[str, np.ndarray]:
    """Returns the arrays of one epsilon from those of a chunk."""
    return {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.startswith(f"{index}/")
    }


def _warnings(
    header: Mapping[str, Any],
    natural: Sequence[Arrays],
    correct: np.ndarray,
    attacks: Sequence[_Attack],
) -> list[dict[str, str]]:
    """Returns all warnings about an evaluation."""
    probed = [n for n in natural if "probed" in n]
    found = red_flags.of_logits(probed, header.get("logits"))
    found += red_flags.of_model(probed)
    found += red_flags.of_accuracy(correct, header["classes"])
    for attack in attacks:
        found += red_flags.of_rows(list(attack.rows.values()))
    targets = [fact.targets for a in attacks for _, fact in a.stages]
    found += red_flags.of_classes(header["classes"], max(targets, default=0))
    # An attack on a surrogate may miss examples for other reasons than masked
    # gradients. The headers of tfsam 0.1.0 do not have the entry.
    if header.get("surrogate") or any(n.get("transfer") for n in natural):
        return found
    for index, epsilon in enumerate(sorted(set(header["epsilons"]))):
        column, stages = {}, {}
        for number, attack in enumerate(attacks):
            if index in attack.verdicts:
                column[str(number)] = attack.verdicts[index]
                stages[str(number)] = attack.stages
        text = f"{header['norm']} {epsilon_text(epsilon)}"
        found += red_flags.of_verdicts(column, stages, text)
    return found


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
        **_accuracy(survivors),
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
    row = _accuracy(verdict == STANDS) | {
        "max_perturbation": float(max(h["largest"] for h in held)),
        "inherited": inherited,
        "attacked": attacked,
        "forward_passes": float(passes[0] / attacked) if counted else None,
        "gradient_passes": float(passes[1] / attacked) if counted else None,
        "nan_gradients": sum(int(h.get("nan_gradients", 0)) for h in held),
        "seconds": float(sum(h["seconds"] for h in held)),
    }
    if len(names) > 1:
        row["broken_by"] = {
            # Two stages may have the same name.
            name if names.count(name) == 1 else f"{name} ({number})": int(
                (verdict == number).sum()
            )
            for number, name in enumerate(names, 1)
        }
        if names == list(STAGES):  # Standard AutoAttack.
            row["standard"] = header["classes"] >= 4
    if "distances" in held[0]:
        median = float(
            np.median(np.concatenate([h["distances"] for h in held]))
        )
        row["median_distance"] = median if np.isfinite(median) else None
    return row


def _accuracy(correct: np.ndarray) -> Row:
    """Returns an accuracy with Wilson's 95 % interval.

    Args:
        correct: Bool array (n,).
    """
    n, k = len(correct), int(correct.sum())
    interval = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": k / n,
        "n": n,
        "interval": [float(interval.low), float(interval.high)],
    }


def epsilon_text(epsilon: float) -> str:
    """Formats an epsilon as papers do: "8/255" if it is such a fraction.

    Args:
        epsilon: Number >= 0.

    Example:
        >>> epsilon_text(8 / 255), epsilon_text(0.3)
        ('8/255', '0.3')
    """
    of_255 = round(epsilon * 255)
    short = float(f"{epsilon:.3g}") == epsilon
    if of_255 and not short and abs(of_255 / 255 - epsilon) < 1e-9:
        return f"{of_255}/255"
    return f"{epsilon:g}"
