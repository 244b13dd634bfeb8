"""The section of the worst case: by norm and epsilon, and the attacks in it."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tfsam.reports import results
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
    if not any(table.worst_rows(run) for run in found):
        return None
    heads = [
        elements.run_name(run) if table.worst_rows(run) else None
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
        f"{table.NORMS.get(row['norm'], row['norm'])} {row['epsilon_text']}"
        for row in rows
    ]
    counts = [
        {found["attack"]: found["broken"] for found in row["attacks"]}
        for row in rows
    ]
    names = dict.fromkeys(name for row in counts for name in row)
    size = part.results["natural"]["n"]
    lines = [
        [name, *(_bar(row.get(name), size) for row in counts)] for name in names
    ]
    bounds = [results.bound_in_words(row) for row in rows]
    if any(bounds):
        lines.append(["(missing)", *bounds])
    caption = f"Images that each attack broke, of {size}, by ball"
    return elements.plain(caption, ["attack", *balls], lines)


def _bar(count: int | None, size: int) -> list[Any] | str:
    """Makes the cell of a count, over a bar of its share of all images."""
    if count is None:
        return table.NOTHING
    bar = node(
        "svg",
        node("rect", width=f"{100 * count / size:.1f}", height="4"),
        viewBox="0 0 100 4",
        preserveAspectRatio="none",
        class_="bar",
        aria_hidden="true",
    )
    return [str(count), bar]
