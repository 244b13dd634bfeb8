"""The page of runs: one HTML document that loads nothing.

Its content security policy allows the script and the style by their hashes and
nothing else, so the content of a run's file cannot become code.
"""

import base64
import hashlib
import importlib.resources
import pathlib
import string
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from tfsam.reports.page import corrupted
from tfsam.reports.page import curves
from tfsam.reports.page import runs
from tfsam.reports.page import sections
from tfsam.reports.page import table
from tfsam.reports.page.markup import node
from tfsam.reports.page.markup import to_html
from tfsam.reports.page.markup import to_json
from tfsam.support import files


def write(
    folders: Iterable[str | pathlib.Path], path: str | pathlib.Path
) -> int:
    """Writes a page of all runs in, or below, some folders.

    Args:
        folders: paths; one that holds no run is searched for runs.
        path: of the HTML file, which is replaced.

    Returns:
        The number of runs.

    Raises:
        ValueError: if a folder holds no run, or a file is broken.
        OSError: if a file cannot be read or written.

    Example:
    >>> from tfsam import page
    >>> page.write([], "report.html")
    Traceback (most recent call last):
    ValueError: expected folders of runs. Received: none
    """
    found = runs.read(folders)
    files.write_atomically(path, _page(found))
    return len(found)


def render(folders: Iterable[str | pathlib.Path]) -> str:
    """Returns the page of all runs in, or below, some folders, as ASCII text.

    Args:
        folders: paths; one that holds no run is searched for runs.

    Returns:
        The HTML of the page.

    Raises:
        ValueError: if a folder holds no run, or a file is broken.

    Example:
    >>> from tfsam import page
    >>> page.render([])
    Traceback (most recent call last):
    ValueError: expected folders of runs. Received: none
    """
    return _page(runs.read(folders))


def _page(found: Sequence[runs.Run]) -> str:
    resources = importlib.resources.files(__package__)
    template, style, script = (
        (resources / f"report.{kind}").read_text("ascii")
        for kind in ("html", "css", "js")
    )
    shown = sections.all_sections(found)
    links = [
        node("a", section.findtext("h2"), href=f"#{section.get('id')}")
        for section in shown
    ]
    text = string.Template(template).substitute(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        summary=to_html(node("p", _summary(found), class_="summary")),
        links="".join(map(to_html, links)),
        sections="\n".join(map(to_html, shown)),
        data=to_json(_data(found)),
    )
    # ASCII is the same in every encoding.
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


# The baselines are drawn first.
_FIRST = ("st", "sam", "at")


def _in_order(found: Sequence[runs.Run]) -> list[int]:
    """Returns the indices of the runs in drawing order."""

    def key(number: int) -> tuple[int, int, int]:
        run = found[number]
        method = run.results.get("method")
        rank = _FIRST.index(method) if method in _FIRST else len(_FIRST)
        return run.results.get("seed") or 0, rank, number

    return sorted(range(len(found)), key=key)


def _data(found: Sequence[runs.Run]) -> dict[str, Any]:
    """Returns the data of the curves, and everything that was read."""
    return {
        "first": _in_order(found),
        "runs": [
            {
                "name": run.name,
                "path": str(run.path),
                "results": run.results,
                "evaluations": [
                    {"path": str(part.path), "results": part.results}
                    for part in run.evaluations
                ],
                "history": run.history,
                "flatness": run.flatness,
                "minutes": table.minutes(run),
                "passes": table.passes(run),
            }
            for run in found
        ],
        "curves": [
            {
                "name": series.name,
                "epsilons": [
                    {"epsilon": 0, "text": "0"},
                    *(
                        {"epsilon": epsilon, "text": text}
                        for epsilon, text in series.epsilons.items()
                    ),
                ],
                "points": series.points,
            }
            for series in curves.all_series(found)
            if any(series.points)
        ],
        "corruptions": corrupted.curves(found),
        "accuracies": [
            {
                "name": column.name,
                "points": [curves.point(row) for row in column.rows],
            }
            for column in table.accuracy_columns(found)
        ],
    }


def _summary(found: Sequence[runs.Run]) -> str:
    """Summarizes the common settings of the runs in a line."""
    count = len(found)
    sizes = {run.results["natural"]["n"] for run in found}
    facts = [
        f"{count} {'run' if count == 1 else 'runs'}",
        _only({run.config.get("dataset") for run in found}),
        f"{_only(sizes)} test images" if len(sizes) == 1 else None,
        _only({run.config.get("network") for run in found}),
    ]
    return " \N{MIDDLE DOT} ".join(filter(None, facts))


def _only(values: set[Any]) -> str | None:
    return str(*values) if len(values) == 1 and None not in values else None
