"""The section of corrupted images: a table of kinds, curves by severity."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from tfsam.reports import results
from tfsam.reports.page import elements
from tfsam.reports.page import runs
from tfsam.reports.page import table
from tfsam.reports.page.curves import point
from tfsam.reports.page.markup import node


def section(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    """Makes the section, None where no run has corruptions.

    Args:
        found: a list of `runs.Run`.
    """
    held = [measured(run) for run in found]
    if not any(held):
        return None
    names = ", ".join(dict.fromkeys(one["name"] for one in held if one))
    heads = [
        elements.run_name(run) if one else None
        for run, one in zip(found, held, strict=True)
    ]
    caption = "Accuracy in percent, the mean over severities; mean of all first"
    return elements.charts(
        "corruptions",
        "Corruptions",
        f"{names}: accuracy over severity, a kind a chart; 0 is the clean "
        f"image. Bars are 95 % intervals.{_left_out(held)}",
        elements.sortable(heads, _columns(held), caption),
        *(
            node("p", f"{run.name}: {note}", class_="quiet")
            for run, one in zip(found, held, strict=True)
            if one
            for note in _notes(one)
        ),
    )


def _notes(one: Mapping[str, Any]) -> Iterator[str]:
    """Yields sentences about how far accuracies are to be trusted."""
    words = results.draws_in_words(one.get("natural") or {})
    if words:
        yield f"Verdicts on clean images: {words}."
    for warning in one.get("warnings") or []:
        yield str(warning["message"])


def measured(run: runs.Run) -> Mapping[str, Any] | None:
    """Returns the corruptions of a run or of an evaluation of its network.

    Args:
        run: a `runs.Run`.
    """
    parts = (part.results.get("corruptions") for part in run.parts)
    return next(filter(None, parts), None)


def _left_out(held: Sequence[Mapping[str, Any] | None]) -> str:
    """Returns a sentence about the kinds that were not measured."""
    reasons = {
        f"{kind.replace('_', ' ')} ({reason})": None
        for one in held
        if one
        for kind, reason in (one.get("left_out") or {}).items()
    }
    return f" Left out: {', '.join(reasons)}." if reasons else ""


def kinds(held: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Lists the kinds of corruptions of runs.

    Args:
        held: for each run its corruptions, or None.
    """
    rows = [row for one in held if one for row in one["rows"]]
    return list(dict.fromkeys(row["corruption"] for row in rows))


def _columns(held: Sequence[Mapping[str, Any] | None]) -> list[table.Column]:
    """Returns the columns of the table: the mean of all kinds, then each."""
    every = [100 * one["mean_accuracy"] if one else None for one in held]
    columns = [table.numbers("", "mean", every, "{:.1f}", max)]
    for kind in kinds(held):
        means = [_mean(one, kind) if one else None for one in held]
        label = kind.replace("_", " ")
        columns.append(table.numbers("kind", label, means, "{:.1f}", max))
    return columns


def _mean(one: Mapping[str, Any], kind: str) -> float | None:
    """Returns the mean accuracy over the severities of a kind, in percent."""
    found = [r["accuracy"] for r in one["rows"] if r["corruption"] == kind]
    return 100 * sum(found) / len(found) if found else None


def curves(found: Sequence[runs.Run]) -> list[dict[str, Any]]:
    """Returns the curves that the script draws, by kind.

    Args:
        found: a list of `runs.Run`.

    Returns:
        A list of {`name`, `points`}: for each run a list of points with a
        `severity`, which begins with the clean images, or an empty list.
    """
    held = [measured(run) for run in found]
    return [
        {
            "name": kind.replace("_", " "),
            "points": [
                _points(run, one, kind) if one else []
                for run, one in zip(found, held, strict=True)
            ],
        }
        for kind in kinds(held)
    ]


def _points(
    run: runs.Run, one: Mapping[str, Any], kind: str
) -> list[dict[str, Any]]:
    """Returns the points of a run's curve of a kind."""
    rows = {r["severity"]: r for r in one["rows"] if r["corruption"] == kind}
    if not rows:
        return []
    rows[0] = one.get("natural") or run.results["natural"]
    return [
        (point(row) or {}) | {"severity": severity}
        for severity, row in sorted(rows.items())
    ]
