"""Records of older versions of tfsam, converted to the form of today.

A record of tfsam 0.1.0 (schema 1), or of its development version (schema 2),
belongs to a single norm. It is read and merged, but does not describe the
evaluation well enough to be resumed. The file of a chunk holds the arrays of
all epsilons, numbered in ascending order: "0/verdict" in "00-pgd/000000.npz".
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import folder_name
from tfsam.evaluation.headers import Header

_SCHEMAS = (1, 2)
_NATURAL = "natural"


def is_old(header: Mapping[str, Any]) -> bool:
    """Returns whether the header of a record has an older form.

    Args:
        header: The content of a record.json.
    """
    return header.get("schema") in _SCHEMAS and "norm" in header


def converted(header: Mapping[str, Any]) -> Header:
    """Converts a header to the form of today; its schema remains.

    Args:
        header: The content of a record.json; entries may be absent or of wrong
            types.
    """
    found = dict(header)
    norm, epsilons = found.pop("norm"), found.pop("epsilons", None)
    surrogate = found.pop("surrogate", None)
    for key in ("surrogate_parts", "surrogate_sketch"):
        found.pop(key, None)
    attacks = found.get("attacks")
    if isinstance(attacks, list):
        budgets = {norm: epsilons} if isinstance(norm, str) else None
        place = None if surrogate is None else 0
        found["attacks"] = [
            attack | {"budgets": budgets, "surrogate": place, "identity": []}
            if isinstance(attack, dict)
            else attack
            for attack in attacks
        ]
    surrogates = [] if surrogate is None else [{"surrogate": surrogate}]
    return found | {"surrogates": surrogates}


def parts_of(
    header: Header, part: str, arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields the parts of today's form that a chunk of a record has.

    Args:
        header: The record's header, converted.
        part: Part of the chunk: its folder in the record.
        arrays: The arrays of the chunk, by name.

    Yields:
        (part, arrays): the verdicts at each epsilon; arrays that already have
        today's form are yielded as they are.
    """
    if header["schema"] not in _SCHEMAS or part == _NATURAL:
        yield part, dict(arrays)
        return
    if not header["attacks"]:  # The part of no attack.
        return
    ((norm, epsilons),) = header["attacks"][0]["budgets"].items()
    for number, epsilon in enumerate(sorted(set(epsilons))):
        found = {
            name.partition("/")[2]: array
            for name, array in arrays.items()
            if name.startswith(f"{number}/")
        }
        if found:
            yield f"{part}/{folder_name(Budget(norm, epsilon))}", found
