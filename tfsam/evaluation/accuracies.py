"""What verdicts add up to: accuracies, row by row, with intervals."""

import numpy as np
import scipy.stats

from tfsam.attacks.autoattack import STAGES
from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.verdicts import STANDS


def result(record, chunks, errors):
    """What `tfsam.evaluate` returns, from what a record holds of some chunks.

    Args:
        record: a `verdicts.Record`.
        chunks: their numbers.
        errors: a dict from (part, number of the epsilon) to a message.
    """
    header = record.header
    natural = [record.load(NATURAL, chunk) for chunk in chunks]
    correct = np.concatenate([n["correct"] for n in natural])
    ascending = sorted(set(header["epsilons"]))
    attacks = header["attacks"]
    robust: list = []
    of_rows: list = []
    columns: list[dict] = [{} for _ in ascending]
    stages: dict = {}
    targets = 0
    for number, attack in enumerate(attacks):
        part = verdicts.part_of(number, attack["name"])
        found = [record.load(part, chunk) for chunk in chunks]
        before, rows = ~correct, {}
        for index, epsilon in enumerate(ascending):
            row = {
                "attack": attack["name"],
                "options": attack["options"],
                "norm": header["norm"],
                "epsilon": epsilon,
                "epsilon_text": epsilon_text(epsilon),
            }
            inherited = int((before & correct).sum())
            if (part, index) in errors:
                row |= _failed(~before, inherited, errors[part, index])
            else:
                held = [
                    {
                        k.partition("/")[2]: v
                        for k, v in arrays.items()
                        if k.startswith(f"{index}/")
                    }
                    for arrays in found
                ]
                verdict = np.concatenate([h["verdict"] for h in held])
                before = verdict != STANDS
                names = [str(name) for name in held[0]["stages"]]
                row |= _row(held, verdict, names, inherited, header)
                label = f"{number} {attack['name']}"
                facts = _facts(held, [f for _, f in stages.get(label, [])])
                stages[label] = [
                    (name or attack["name"], fact)
                    for name, fact in zip(names, facts, strict=True)
                ]
                columns[index][label] = verdict
                targets = max(targets, *(fact.targets for fact in facts))
            rows[epsilon] = row
        robust += [rows[epsilon] for epsilon in header["epsilons"]]
        of_rows += red_flags.of_rows(list(rows.values()))
    warnings = red_flags.of_model([n for n in natural if "probed" in n])
    warnings += red_flags.of_accuracy(correct, header["classes"])
    warnings += of_rows
    warnings += red_flags.of_classes(header["classes"], targets)
    # What attacks on a surrogate miss says nothing about these gradients.
    # Records of an older tfsam have it in their header.
    transfer = header.get("surrogate") or any(
        n.get("transfer") for n in natural
    )
    if not transfer:
        for epsilon, column in zip(ascending, columns, strict=True):
            text = f"{header['norm']} {epsilon_text(epsilon)}"
            warnings += red_flags.of_verdicts(column, stages, text)
    return {
        "natural": _accuracy(correct),
        "robust": robust,
        "warnings": warnings,
    }


def _facts(held, others):
    """Returns the `Facts` of an attack's stages: true in any chunk is true.

    Args:
        held: what the files of the chunks have of one epsilon.
        others: the facts that other epsilons told, or an empty list.
    """
    count = len(held[0]["stages"])
    # Verdicts of an older tfsam tell less.
    found = [
        np.max([h.get(name, np.zeros(count)) for h in held], axis=0)
        for name in red_flags.Facts._fields
    ]
    if others:
        found = np.maximum(found, np.transpose(others))
    free, follows, targets = found
    return [
        red_flags.Facts(bool(one and not other), bool(other), int(number))
        for one, other, number in zip(free, follows, targets, strict=True)
    ]


def _failed(standing, inherited, error):
    """Returns the rest of a row of an attack that failed."""
    unknown = (
        *("accuracy", "interval", "max_perturbation", "attacked"),
        *("forward_passes", "gradient_passes", "nan_gradients"),
    )
    return {
        **_accuracy(standing),
        **dict.fromkeys(unknown),
        "inherited": inherited,
        "seconds": 0.0,
        "error": error,
    }


def _row(held, verdict, names, inherited, header):
    """The measured part of a row, from what each chunk's file says."""
    attacked = sum(int(h["attacked"]) for h in held)
    passes = sum(h["passes"] for h in held)
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
            # Two stages may have one name.
            name if names.count(name) == 1 else f"{name} ({number})": int(
                (verdict == number).sum()
            )
            for number, name in enumerate(names, 1)
        }
        if names == list(STAGES):  # Those of standard AutoAttack.
            row["standard"] = header["classes"] >= 4
    if "distances" in held[0]:
        median = float(
            np.median(np.concatenate([h["distances"] for h in held]))
        )
        row["median_distance"] = median if np.isfinite(median) else None
    return row


def _accuracy(correct):
    """Accuracy of boolean verdicts, with Wilson's 95 % interval."""
    n, k = len(correct), int(correct.sum())
    interval = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": k / n,
        "n": n,
        "interval": [float(interval.low), float(interval.high)],
    }


def epsilon_text(epsilon):
    """An epsilon as people write it: "8/255" where it is one, else a number.

    Args:
        epsilon: a number >= 0.
    """
    of_255 = round(epsilon * 255)
    short = float(f"{epsilon:.3g}") == epsilon
    if of_255 and not short and abs(of_255 / 255 - epsilon) < 1e-9:
        return f"{of_255}/255"
    return f"{epsilon:g}"
