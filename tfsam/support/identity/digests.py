"""Descriptions of objects, values of JSON's types, and their checksums."""

import hashlib
import json
from typing import Any

# Types of values that are their own descriptions.
ATOMS = (type(None), bool, int, float, str)

# Length of the JSON text above which `compact` replaces a value by its digest.
_LONGEST = 60


class Unknown(ValueError):
    """An object cannot be described, so the user has to name it."""


def digest(description: Any) -> str:
    """Computes the checksum of a description, 16 hexadecimal digits.

    Args:
        description: A value of JSON types.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(text_of(description).encode()).hexdigest()[:16]


def compact(description: Any) -> dict[str, Any]:
    """Shortens a description so that it can be shown.

    Args:
        description: A result of `describe`.

    Returns:
        A dict of its parts, including those in `attributes`. Long values are
        replaced by their digests.
    """
    if not isinstance(description, dict):
        description = {"value": description}
    parts = {k: v for k, v in description.items() if k != "attributes"}
    for name, value in description.get("attributes", {}).items():
        parts[f".{name}" if name in parts else name] = value
    return {
        name: part if len(text_of(part)) <= _LONGEST else digest(part)
        for name, part in parts.items()
    }


def text_of(description: Any) -> str:
    """Formats a description as JSON; equal descriptions give equal texts.

    Args:
        description: A value of JSON types.
    """
    return json.dumps(description, sort_keys=True)
