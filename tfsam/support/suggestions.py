"""Suggestions for names that are mistyped or ambiguous."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a hint at the closest names, empty where none is close.

    Args:
        name: the name that is unknown.
        names: the names that are known.

    Example:
        >>> did_you_mean("loksam", ["looksam", "pgd"])
        ' (did you mean looksam?)'
    """
    by_lower_case = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, 2)
    if not close:
        return ""
    known_names = " or ".join(by_lower_case[c] for c in close)
    return f" (did you mean {known_names}?)"


def ambiguous(flag: str, given: str, names: Iterable[str]) -> str:
    """Returns a message about a name that differs from several in its case.

    Args:
        flag: the flag that gives the name.
        given: the name as given.
        names: the registered names.

    Example:
        >>> ambiguous("attack", "SHIFT", ["Shift", "shift"])
        'SHIFT is ambiguous: Shift, shift. Received: attack=SHIFT'
    """
    return f"{given} is ambiguous: {', '.join(names)}. Received: {flag}={given}"
