"""Accuracies on corrupted images, summed up from verdicts."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.evaluation import red_flags
from tfsam.evaluation.corrupted_verdicts import Verdicts
from tfsam.evaluation.corrupted_verdicts import part_of
from tfsam.evaluation.draws import spread
from tfsam.evaluation.intervals import accuracy_of
from tfsam.evaluation.intervals import wilson
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.records import Arrays

NAME = "tfsam corruptions (not CIFAR-10-C)"


def result(
    record: Verdicts,
    chunks: Sequence[int],
    asked: Mapping[str, Sequence[int]],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Computes the result of `tfsam.evaluate_corruptions` from a record.

    Args:
        record: The record.
        chunks: Numbers of the chunks that count, all of which are measured.
        asked: The severities of each corruption, in the order of the rows.
        left_out: The benchmark's corruptions that are left out, with reasons.
    """
    natural = [record.load(NATURAL, chunk) for chunk in chunks]
    header, rows = record.header, []
    number = header.get("draws")
    for name, severities in asked.items():
        for severity in severities:
            part = part_of(name, severity)
            held = [record.load(part, chunk) for chunk in chunks]
            row = {"corruption": name, "severity": severity}
            rows.append(row | accuracy(held, number))
    mean = float(np.mean([row["accuracy"] for row in rows]))
    first = accuracy(natural, number)
    of_several = {k: header[k] for k in ("attacked",) if k in header}
    return {
        "name": NAME,
        "mean_accuracy": mean,
        "n": first["n"],
        "interval": wilson(mean, first["n"]),
        "natural": first,
        "severities": sorted({row["severity"] for row in rows}),
        "rows": rows,
        "left_out": dict(left_out),
        "constants": header["constants"],
        **of_several,
        "warnings": _warnings(natural, number),
    }


def accuracy(held: Sequence[Arrays], number: int | None) -> dict[str, Any]:
    """Sums up the verdicts of some chunks.

    Args:
        held: The arrays of the chunks, by name.
        number: Number of draws of a random model, or None.

    Returns:
        {`accuracy`, `n`, `interval`}, and `draws` and `spread` with draws.

    Example:
        >>> accuracy([{"correct": np.array([True, False])}], None)["accuracy"]
        0.5
    """
    correct = np.concatenate([arrays["correct"] for arrays in held])
    if not number:
        return accuracy_of(correct)
    wrong = np.concatenate([arrays["wrong"] for arrays in held])
    return accuracy_of(correct) | {
        "draws": number,
        "spread": spread(wrong, ~correct),
    }


def _warnings(
    natural: Sequence[Arrays], number: int | None
) -> list[dict[str, str]]:
    """Returns warnings about logits that depend on more than the image."""
    messages = {}
    for arrays in natural:
        if "randomness" not in arrays:
            continue
        noise, tolerance = arrays["randomness"], arrays["tolerance"]
        if noise > tolerance:
            messages["randomness"] = (
                f"The model is random: each image was classified by {number} "
                "draws, of which more than half must be right."
                if number and number > 1
                else "The model is random: each image was classified by a "
                "single draw. Judge it by several, draws=20 (--draws=20)."
            )
        if not arrays.get("repeatable", True):
            messages["draws_not_repeatable"] = (
                "The random numbers of the model cannot be set, so another "
                "evaluation draws others and may give other accuracies."
            )
        if red_flags.depends_on_batch(arrays):
            messages["batch_dependence"] = (
                "The logits for an image depend on the other images of its "
                "batch: with another batch size the accuracies are others."
            )
    return [
        {"warning": name, "message": message}
        for name, message in messages.items()
    ]
