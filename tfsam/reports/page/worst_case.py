"""The section of the worst case: by norm and epsilon, and the attacks in it."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tfsam.reports import results
from tfsam.reports.page import curves
from tfsam.reports.page import elements
from tfsam.reports.page import runs
from tfsam.reports.page import table
from tfsam.reports.page.markup import node

_LEAD = (
    "An image counts as robust only if no attack of the evaluation broke it "
    "in this ball: at this epsilon or a smaller one, or in another norm by an "
    "image that lies within. "
)


def section(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    """Makes the section, None where no run has a worst case.

    Args:
        found: a list of `runs.Run`.
    """
    if not any(curves.worst_rows(run) for run in found):
        return None
    heads = [
        elements.run_name(run) if curves.worst_rows(run) else None
        for run in found
    ]
    caption = "Accuracy in the worst case, in percent, with its 95 % interval"
    return elements.section(
        "worst-case",
        "Worst case",
        node("p", _LEAD, class_="lead"),
        elements.sortable(heads, table.worst_columns(found), caption),
        elements.cards(found, [_card(run) for run in found], is_wide=True),
    )


def _card(run: runs.Run) -> list[ElementTree.Element]:
    """Makes the tables of the attacks that broke images, a part a table."""
    return [
        _broken(part, rows)
        for part in run.parts
        if (rows := part.results.get("worst_case"))
    ]


def _broken(
    part: runs.Run, rows: Sequence[Mapping[str, Any]]
) -> ElementTree.Element:
    """Makes a table of how many images each attack broke in each ball."""
    balls = [
        f"{curves.NORMS.get(row['norm'], row['norm'])} {row['epsilon_text']}"
        for row in rows
    ]
    size = part.results["natural"]["n"]
    lines: list[list[Any]] = [
        [name, *(_bar(row["attacks"][place]["broken"], size) for row in rows)]
        for place, name in enumerate(_names(part, rows))
    ]
    bounds = [results.bound_in_words(row) for row in rows]
    if any(bounds):
        lines.append(["(missing)", *bounds])
    caption = f"Images that each attack broke, of {size}, by ball"
    return elements.plain(caption, ["attack", *balls], lines)


def _names(part: runs.Run, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the attacks of the worst case, with their options.

    Two attacks may differ in their options alone, which the worst case lacks.
    """
    robust = part.results["robust"]
    names = dict.fromkeys(runs.attack_name(part, row) for row in robust)
    listed = rows[0]["attacks"]
    if len(names) == len(listed):
        return list(names)
    return [results.attack_name(found) for found in listed]


def _bar(count: int, size: int) -> list[Any]:
    """Makes the cell of a count, over a bar of its share of all images."""
    bar = node(
        "svg",
        node("rect", width=f"{100 * count / size:.1f}", height="4"),
        viewBox="0 0 100 4",
        preserveAspectRatio="none",
        class_="bar",
        aria_hidden="true",
    )
    return [str(count), bar]
