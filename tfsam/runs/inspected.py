"""The text of `--inspect`: what a model is, and how to evaluate it."""

import shlex
from collections.abc import Mapping
from typing import Any

from tfsam.models import range_choice

_LOGITS = {
    "exact": "returns logits",
    "removed_ending": "{}, which is removed",
    "log_probabilities": (
        "{}; only probabilities can be had, so their logarithms are attacked"
    ),
}


def table(found: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Returns a short table of what `tfsam.models.inspect` found.

    Args:
        found: its result.
        texts: the flags that were given, as they were written, with "evaluate"
            for the model.
    """
    shape = ", ".join(
        "any" if n is None else str(n) for n in found["input_shape"]
    )
    rows = {
        "format": _format(found),
        "written by": found["written_by"] or "unknown",
        "SHA-256": found["sha256"] or "none",
        "input": f"({shape}) {found['input_dtype']}",
        "outputs": _outputs(found),
        "ends in": _LOGITS[found["logits"]].format(found["ends_in"]),
        "pixels": found["pixels"],
        "natural accuracy": range_choice.summary(found["natural_accuracy"])
        or "give --dataset to measure it",
    }
    if found["class_orders"]:
        rows["order of classes"] = ", ".join(
            f"{range_choice.percent(share)} by {order}"
            for order, share in found["class_orders"].items()
        )
    width = max(map(len, rows)) + 2
    lines = [f"{name:<{width}}{text}" for name, text in rows.items()]
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join([*lines, f"to evaluate it: {_command(found, texts)}"])


def _format(found: Mapping[str, Any]) -> str:
    names = {
        "hdf5": "HDF5",
        "keras": ".keras",
        "saved_model": "SavedModel",
        "weights": "weights alone",
    }
    name = names.get(found["format"], found["format"])
    return f"{name}, read by {found['reader']}"


def _outputs(found: Mapping[str, Any]) -> str:
    count = found["outputs"]
    text = "any number of classes" if count is None else f"{count} classes"
    if len(found["output_names"]) > 1:
        text += f" ({found['output']}, of {', '.join(found['output_names'])})"
    return text


def _command(found: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Returns the command that evaluates the model."""
    flags = {"evaluate": texts["evaluate"], "dataset": "folder:PATH"}
    flags |= texts
    if found["natural_accuracy"]:  # Otherwise images are to tell.
        flags["pixels"] = found["pixels"]
    if found["class_order"]:
        flags["class_order"] = found["class_order"]
    words = [f"--{name}={text}" for name, text in flags.items()]
    return shlex.join(["tfsam", *words])
