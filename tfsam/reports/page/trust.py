"""The section on attacks: signs that one failed, and the way to a stronger."""

import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tfsam.reports import diagnoses
from tfsam.reports.page import curves
from tfsam.reports.page import elements
from tfsam.reports.page import runs
from tfsam.reports.page.markup import node

_LEAD = (
    "An attack that fails for reasons of its own makes a network look robust. "
    "These are signs of such failures (Pintor et al. 2022, arXiv 2106.09947), "
    "with the number of images that show each at each epsilon."
)
_HEADS = ("run", "attack", "norm", "epsilon (images)", "sign", "what to do")


def section(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    """Makes the section, None where no attack was diagnosed.

    Args:
        found: a list of `runs.Run`.
    """
    if not any("diagnosis" in row for run in found for row in _rows(run)):
        return None
    lines = [line for run in found for line in _lines(run)]
    caption = "Signs that an attack failed"
    return elements.section(
        "trust",
        "Is the attack to be trusted?",
        node("p", _LEAD, class_="lead"),
        elements.plain(caption, _HEADS, lines) if lines else None,
        _names("No sign of failure", found, diagnoses.without_findings),
        _names("Not recorded", found, diagnoses.not_recorded),
    )


def _rows(run: runs.Run) -> list[dict[str, Any]]:
    """Returns the rows of a run and of the evaluations of its network."""
    return [
        row | {"surrogate": runs.is_transfer(part, row)}
        for part in run.parts
        for row in part.results["robust"]
    ]


def _lines(run: runs.Run) -> Iterator[Sequence[Any]]:
    """Yields a line of the table for each sign in a run."""
    for one in diagnoses.findings(_rows(run)):
        yield (
            run.name,
            one.attack,
            curves.NORMS.get(one.norm, one.norm),
            one.where,
            [node("strong", one.indicator), f": {one.message}"],
            _commands(one.remedy),
        )


def _commands(text: str) -> list[Any]:
    """Marks the flags of a text, which are not divided between lines."""
    parts = re.split(r"(--\w[^\s;]*[^\s.,;])", text)
    return [
        node("code", part) if number % 2 else part
        for number, part in enumerate(parts)
    ]


def _names(
    title: str,
    found: Sequence[runs.Run],
    choose: Callable[[list[dict[str, Any]]], list[str]],
) -> ElementTree.Element | None:
    """Makes a line of the attacks that are chosen from the rows of each run."""
    chosen: dict[str, list[str]] = {}
    for run in found:
        for name in choose(_rows(run)):
            chosen.setdefault(name, []).append(run.name)
    if not chosen:
        return None
    several = len(found) > 1
    words = [
        f"{name} ({', '.join(names)})" if several else name
        for name, names in chosen.items()
    ]
    return node("p", f"{title}: {', '.join(words)}.", class_="quiet")
