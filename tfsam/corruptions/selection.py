"""Selections of corruptions, by their names and by groups."""

from collections.abc import Iterable

from tfsam.registries import CORRUPTIONS
from tfsam.support.suggestions import did_you_mean

# The groups of the benchmark, in the paper's order.
GROUPS = ("noise", "blur", "weather", "digital")

# Additional corruptions, which are no part of "all".
EXTRA = "extra"

# Corruptions of the benchmark that tfsam does not have, with the reasons.
LEFT_OUT = {"frost": "needs photographs"}

_GROUP_OF_LEFT_OUT = {"frost": "weather"}


def chosen(selection: str | Iterable[str]) -> list[str]:
    """Returns the names of the corruptions of a selection.

    Args:
        selection: Names of corruptions and groups, a list or a text with
            commas. "all" is the groups "noise", "blur", "weather" and
            "digital"; "extra" is a group that "all" leaves out. Groups hold
            tfsam's own corruptions only, so that a mean over them does not
            depend on the packages that are installed.

    Returns:
        The names, each of them once, in the order of the selection.

    Raises:
        ValueError: If a name is unknown or left out, or there is none.

    Example:
        >>> chosen("noise,fog")
        ['gaussian_noise', 'impulse_noise', 'shot_noise', 'fog']
        >>> len(chosen("all"))
        14
    """
    found: dict[str, None] = {}
    for word in canonical(selection):
        found |= dict.fromkeys(_members(word))
    return list(found)


def canonical(selection: str | Iterable[str]) -> list[str]:
    """Returns the words of a selection as they are registered.

    Args:
        selection: See `chosen`; groups stay groups, and no part is imported.

    Raises:
        ValueError: If a name is unknown or left out, or there is none.

    Example:
        >>> canonical("ALL,Fog")
        ['all', 'fog']
    """
    if isinstance(selection, str):
        selection = selection.split(",")
    found = [_known(word) for word in map(str.strip, selection) if word]
    if not found:
        raise ValueError(
            f"corruptions must be names, or {_groups()}. Received: none"
        )
    return found


def left_out(selection: str | Iterable[str]) -> dict[str, str]:
    """Returns the benchmark's corruptions that a selection lacks.

    Args:
        selection: See `chosen`.

    Returns:
        A dict from the name of a corruption of a group of the selection that
        tfsam does not have to the reason.

    Example:
        >>> left_out("weather"), left_out("fog")
        ({'frost': 'needs photographs'}, {})
    """
    words = {*canonical(selection)}
    return {
        name: reason
        for name, reason in LEFT_OUT.items()
        if words & {"all", _GROUP_OF_LEFT_OUT[name]}
    }


def _members(word: str) -> list[str]:
    """Returns the corruptions of a group, or the name of a corruption."""
    groups = GROUPS if word == "all" else (word,)
    if not {*groups} <= {*GROUPS, EXTRA}:
        return [word]
    of_kinds = {
        kind: CORRUPTIONS.fact(CORRUPTIONS.load(kind), "group")
        for kind in sorted(CORRUPTIONS.native)
    }
    return [k for group in groups for k in of_kinds if of_kinds[k] == group]


def _known(word: str) -> str:
    """Returns a group, or a corruption as it is registered."""
    groups, name = ("all", *GROUPS, EXTRA), word.casefold()
    if name in groups:
        return name
    if name in LEFT_OUT:
        raise ValueError(
            f"{name} is left out: it {LEFT_OUT[name]}. "
            f"Received: corruption={word}"
        )
    names = CORRUPTIONS.names()
    known = [known.casefold() for known in names]
    if name.partition(":")[0].strip() in known:
        return CORRUPTIONS.canonical(word)
    raise ValueError(
        f"corruption must be {_groups()}, or one of {', '.join(names)}"
        f"{did_you_mean(word, [*names, *groups])}. Received: corruption={word}"
    )


def _groups() -> str:
    return ", ".join(["all", *GROUPS, EXTRA])
