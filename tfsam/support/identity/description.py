"""Descriptions of objects, values of JSON's types, and their checksums."""

import hashlib
import json

# Types of values that are their own descriptions.
ATOMS = (type(None), bool, int, float, str)

# Longer values are shown by their digest.
_LONGEST = 60


class Unknown(ValueError):
    """Raised for an object that has no description, and needs a name."""


def digest(description):
    """Computes the checksum of a description, 16 hexadecimal digits.

    Args:
        description: a value of JSON's types.
    """
    return hashlib.sha256(text_of(description).encode()).hexdigest()[:16]


def compact(description):
    """Shortens a description so that it can be shown.

    Args:
        description: what `describe` returns.

    Returns:
        A dict of its parts; attributes stand beside the others, and what is
        long is replaced by its digest.
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


def text_of(description):
    """Returns a description as JSON, the same for equal descriptions.

    Args:
        description: a value of JSON's types.
    """
    return json.dumps(description, sort_keys=True)
