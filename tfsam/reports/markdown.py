"""The table of a run's accuracies, as Markdown."""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from tfsam.evaluation.budgets import epsilon_text
from tfsam.reports import diagnoses
from tfsam.reports.results import attack_name
from tfsam.reports.results import bound_in_words
from tfsam.reports.results import draws_in_words
from tfsam.reports.results import target_in_words


def table(results: Mapping[str, Any]) -> str:
    """Formats accuracies as a Markdown table, in percent, with the warnings.

    Args:
        results: The content of a results.json, or the result of
            `tfsam.evaluate`.

    Returns:
        Lines of text: the accuracy without an attack ("clean"), the accuracy
        under each attack, and the worst case of all attacks; below them
        distances, diagnoses of the attacks, and warnings.

    Example:
    >>> import tfsam
    >>> natural = {"accuracy": 0.875, "interval": [0.83, 0.91], "n": 200}
    >>> print(tfsam.reports.table({"natural": natural, "robust": []}))
    | attack | norm | epsilon | accuracy, % | 95 % interval | n |
    |---|---|---|---|---|---|
    | clean |  |  | 87.50 | 83.0 to 91.0 | 200 |
    """
    lines = [
        "| attack | norm | epsilon | accuracy, % | 95 % interval | n |",
        "|---|---|---|---|---|---|",
        _line("clean", "", "", results["natural"]),
    ]
    for row in results["robust"]:
        name = attack_name(row)
        if row.get("nan_gradients"):
            name += " (NaN gradients)"
        lines.append(_line(name, row["norm"], row["epsilon_text"], row))
    lines += _worst_cases(results)
    if "attacked" in results:
        lines.append(f"attacked input: {results['attacked']}")
    lines += _by_label(results)
    lines += _distances(results)
    lines += _diagnoses(results)
    for warning in results.get("warnings", []):
        lines.append(f"warning, {warning['warning']}: {warning['message']}")
    return "\n".join(lines)


def _worst_cases(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the worst case, and of the union of all norms."""
    for row in results.get("worst_case") or []:
        name = _noted("worst case", target_in_words(row))
        name = _noted(name, bound_in_words(row))
        yield _line(name, row["norm"], row["epsilon_text"], row)
    union = results.get("union")
    if union:
        name = _noted("worst case, any norm", target_in_words(union))
        name = _noted(name, bound_in_words(union))
        epsilons = map(epsilon_text, union["budgets"].values())
        yield _line(
            name, ", ".join(union["budgets"]), ", ".join(epsilons), union
        )


def _noted(text: str, note: str) -> str:
    """Returns a text with a note in brackets, unless that is empty."""
    return f"{text} ({note})" if note else text


def _by_label(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the accuracy of each of several labels."""
    rows = {"clean": results["natural"]}
    for row in results["robust"]:
        name = f"{attack_name(row)}, {row['norm']} {row['epsilon_text']}"
        rows[name] = row
    for name, row in rows.items():
        if row.get("by_label"):
            shares = (f"{100 * share:.2f}" for share in row["by_label"])
            yield f"accuracy by label, % ({name}): {', '.join(shares)}"


def _distances(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the median distances of minimum-norm attacks."""
    distances = {
        f"{attack_name(row)}, {row['norm']}": row["median_distance"]
        for row in results["robust"]
        if row.get("median_distance") is not None
    }
    for name, distance in distances.items():
        yield f"median distance ({name}): {distance:.4g}"


def _diagnoses(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each sign that an attack failed."""
    rows = results["robust"]
    for found in diagnoses.findings(rows):
        yield (
            f"diagnosis, {found.attack}, {found.norm} {found.where}: "
            f"{found.indicator}: {found.message} {found.remedy}"
        )
    unknown = diagnoses.not_recorded(rows)
    if unknown:
        yield f"diagnosis not recorded: {', '.join(unknown)}"


def _line(attack: str, norm: str, epsilon: str, row: Mapping[str, Any]) -> str:
    """Returns a line of the table."""
    if row["accuracy"] is None:
        error = row.get("error") or "not measured"
        accuracy, interval = " ".join(error.split()), ""
    else:
        low, high = (100 * end for end in row["interval"])
        accuracy = _noted(f"{100 * row['accuracy']:.2f}", draws_in_words(row))
        interval = f"{low:.1f} to {high:.1f}"
    cells = (attack, norm, epsilon, accuracy, interval, row["n"])
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
