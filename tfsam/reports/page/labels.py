"""The section of networks with several labels: the accuracy of each label."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tfsam.reports.page import curves
from tfsam.reports.page import elements
from tfsam.reports.page import runs
from tfsam.reports.page.markup import node

_LEAD = (
    "An image counts as right for a label if the label is right on the image "
    "that the attack found. As an attack aims at any label, another one may "
    "break more of each."
)


def section(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    """Makes the section, None where no run has several labels.

    Args:
        found: a list of `runs.Run`.
    """
    if not any(_rows(part) for run in found for part in run.parts):
        return None
    return elements.section(
        "labels",
        "Label by label",
        node("p", _LEAD, class_="lead"),
        elements.cards(found, [_card(run) for run in found], is_wide=True),
    )


def _card(run: runs.Run) -> list[ElementTree.Element]:
    """Makes a table of each part of a run that has several labels."""
    return [_table(rows) for part in run.parts if (rows := _rows(part))]


def _rows(part: runs.Run) -> dict[str, Mapping[str, Any]]:
    """Returns the rows with an accuracy by label, by their names."""
    rows = {"natural": part.results["natural"]}
    for row in part.results["robust"]:
        norm = curves.NORMS.get(row["norm"], row["norm"])
        name = f"{runs.attack_name(part, row)} {norm} {row['epsilon_text']}"
        rows[name] = row
    return {name: row for name, row in rows.items() if row.get("by_label")}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> ElementTree.Element:
    """Makes a table with a line for each label, and a column for each row."""
    columns = [row["by_label"] for row in rows.values()]
    lines = [
        [f"label {number}", *(f"{100 * share:.1f}" for share in shares)]
        for number, shares in enumerate(zip(*columns, strict=True))
    ]
    caption = "Accuracy of each label, in percent"
    return elements.plain(caption, ["label", *rows], lines)
