"""The parts that sections of the page are made of: frames, tables, cards."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tfsam.reports.page import runs
from tfsam.reports.page import table
from tfsam.reports.page.markup import node


def section(name: str, heading: str, *children: Any) -> ElementTree.Element:
    """Makes a section of the page.

    Args:
        name: its id.
        heading: its heading.
        *children: its content; see `node`.
    """
    return node(
        "section",
        node("h2", heading, id=f"{name}-heading"),
        *children,
        id=name,
        aria_labelledby=f"{name}-heading",
    )


def charts(
    name: str, heading: str, text: str, *children: Any
) -> ElementTree.Element:
    """Makes a section in which the script draws.

    Args:
        name: its id, by which the script knows it.
        heading: its heading.
        text: a line below the heading.
        *children: what follows the charts.
    """
    return section(
        name,
        heading,
        node("p", text, class_="lead"),
        node("ul", class_="legend", aria_label="Runs that are drawn"),
        node("div", class_="controls"),
        node("div", class_="panels"),
        *children,
    )


def run_name(run: runs.Run) -> ElementTree.Element:
    """Returns the name of a run, with its path as the tooltip.

    Args:
        run: a `runs.Run`.
    """
    return node("span", run.name, class_="name", title=str(run.path))


def sortable(
    heads: Sequence[Any], columns: Sequence[table.Column], caption: str
) -> ElementTree.Element:
    """Makes a sortable table in a frame that scrolls instead of the page.

    Args:
        heads: for each run the content of its first column; None for no row.
        columns: a list of `table.Column`.
        caption: the caption of the table.
    """
    top = [_head("run", 0, False, "2")]
    below: list[ElementTree.Element] = []
    group = ""
    for position, column in enumerate(columns, 1):
        row = below if column.group else top
        span = None if column.group else "2"
        if column.group and column.group == group:
            top[-1].set("colspan", str(int(top[-1].attrib["colspan"]) + 1))
        elif column.group:
            title = node("span", column.group)
            top.append(node("th", title, scope="colgroup", colspan="1"))
        row.append(_head(column.label, position, column.is_numeric, span))
        group = column.group
    rows = [
        node(
            "tr",
            node("th", head, scope="row"),
            [_cell(column, column.cells[index]) for column in columns],
            data_run=str(index),
        )
        for index, head in enumerate(heads)
        if head is not None
    ]
    return _framed(
        caption,
        node("thead", node("tr", top), node("tr", below)),
        node("tbody", rows),
    )


def _framed(caption: str, *parts: Any) -> ElementTree.Element:
    """Makes a table in a frame that scrolls instead of the page."""
    return node(
        "div",
        node("table", node("caption", caption), *parts),
        class_="scroller",
        tabindex="0",
        role="region",
        aria_label=caption.partition(",")[0].partition(";")[0],
    )


def plain(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]
) -> ElementTree.Element:
    """Makes a table that is read from top to bottom.

    Args:
        caption: the caption of the table.
        heads: the heads of its columns.
        rows: the cells of each row, the first its head; a number is aligned
            to the right.
    """
    return _framed(
        caption,
        node(
            "thead",
            node(
                "tr",
                [node("th", h, scope="col", class_="words") for h in heads],
            ),
        ),
        node("tbody", [node("tr", _plain_cells(row)) for row in rows]),
    )


def _plain_cells(row: Sequence[Any]) -> list[ElementTree.Element]:
    """Makes the cells of a row, the first a head."""
    first, *others = row
    return [
        node("th", first, scope="row"),
        *(
            node("td", str(cell))
            if isinstance(cell, int)
            else node("td", cell, class_="words prose")
            for cell in others
        ),
    ]


def _head(
    label: str, position: int, is_numeric: bool, rowspan: str | None
) -> ElementTree.Element:
    return node(
        "th",
        node("button", label, node("span", class_="arrow"), type="button"),
        scope="col",
        rowspan=rowspan,
        class_=None if is_numeric else "words",
        aria_sort="none",
        data_position=str(position),
        data_kind="number" if is_numeric else "text",
    )


def _cell(column: table.Column, cell: table.Cell) -> ElementTree.Element:
    text: Any = cell.text
    if column.is_best(cell):
        text = node("b", text, title="best")
    return node(
        "td",
        text,
        node("small", cell.detail) if cell.detail else None,
        class_=None if column.is_numeric else "words",
        title=cell.title or None,
        data_value=cell.value,
    )


def cards(
    found: Sequence[runs.Run], contents: Sequence[Any], is_wide: bool = False
) -> ElementTree.Element:
    """Makes a card for each run that has contents.

    Args:
        found: a list of `runs.Run`.
        contents: the content of the card of each, None for no card.
        is_wide: whether the cards hold tables.
    """
    return node(
        "div",
        [
            node(
                "article",
                node("h3", run.name),
                content,
                class_="card",
                data_run=str(index),
            )
            for index, (run, content) in enumerate(
                zip(found, contents, strict=True)
            )
            if content
        ],
        class_="cards wide" if is_wide else "cards",
    )
