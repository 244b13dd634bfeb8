"""Selections of corruptions, by their names and by groups."""

from collections.abc import Iterable
from typing import Any

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
    if isinstance(selection, str):
        selection = selection.split(",")
    found: dict[str, Any] = {}
    for word in map(str.strip, selection):
        if word:
            found |= dict.fromkeys(_named(word))
    if not found:
        raise ValueError(
            f"corruptions must be names, or {_groups()}. Received: none"
        )
    return list(found)


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
    if isinstance(selection, str):
        selection = selection.split(",")
    words = {word.strip().casefold() for word in selection}
    return {
        name: reason
        for name, reason in LEFT_OUT.items()
        if words & {"all", _GROUP_OF_LEFT_OUT[name]}
    }


def _named(word: str) -> list[str]:
    """Returns the corruptions of a name or a group."""
    name = word.casefold()
    groups = GROUPS if name == "all" else [name]
    if name in ("all", EXTRA, *GROUPS):
        kinds = {
            kind: CORRUPTIONS.fact(CORRUPTIONS.load(kind), "group")
            for kind in sorted(CORRUPTIONS.native)
        }
        return [k for group in groups for k in kinds if kinds[k] == group]
    if name in LEFT_OUT:
        raise ValueError(
            f"{name} is left out: it {LEFT_OUT[name]}. "
            f"Received: corruption={word}"
        )
    try:
        return [CORRUPTIONS.canonical(word)]
    except ValueError as error:
        names = [*CORRUPTIONS.names(), "all", *GROUPS, EXTRA]
        if "ambiguous" in str(error):
            raise
        raise ValueError(
            f"corruption must be {_groups()}, or one of "
            f"{', '.join(CORRUPTIONS.names())}{did_you_mean(word, names)}. "
            f"Received: corruption={word}"
        ) from error


def _groups() -> str:
    return ", ".join(["all", *GROUPS, EXTRA])
