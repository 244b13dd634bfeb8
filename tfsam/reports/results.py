"""Results of a run: reading results.json, and its accuracies as a table."""

import json
import math
import pathlib
import zipfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

# Ways in which reading a damaged file fails.
_BROKEN = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError),
    *(RecursionError, TypeError, ValueError, zipfile.BadZipFile),
)


def read(path: pathlib.Path) -> dict[str, Any] | None:
    """Reads a results.json, and checks the parts that tables and pages show.

    Args:
        path: the file.

    Returns:
        Its content, or None if there is no such file.

    Raises:
        ValueError: if the file was not written by a run, or is damaged.

    Example:
    >>> import pathlib
    >>> import tfsam
    >>> tfsam.reports.read(pathlib.Path("no_such_run/results.json")) is None
    True
    """
    return checked(_results, path) if path.exists() else None


def checked(reader: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
    """Reads a file, and turns every way of failing into a ValueError.

    Args:
        reader: a function from the path to the content.
        path: the file.

    Returns:
        The content, as `reader` returns it.

    Raises:
        ValueError: if `reader` fails.
    """
    try:
        return reader(path)
    except _BROKEN as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            "expected a file that tfsam.run has written. "
            f"Received: {path} ({why})"
        ) from error


def _results(path: pathlib.Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text())
    if results["schema"] != 1:
        raise ValueError(f"schema must be 1, is {results['schema']}")
    _check_accuracy(results["natural"])
    for row in results["robust"]:
        check_texts(row, ("attack", "norm", "epsilon_text"))
        if not math.isfinite(row["epsilon"]):
            raise ValueError(f"epsilon must be finite, is {row['epsilon']}")
        if row["accuracy"] is None:
            check_texts(row, ("error",))
        else:
            _check_accuracy(row)
    for warning in results.get("warnings", []):
        check_texts(warning, ("warning", "message"))
    for key in ("config", "train", "versions"):
        if not isinstance(results.get(key) or {}, dict):
            raise ValueError(f"{key} must be an object")
    return results


def _check_accuracy(row: Mapping[str, Any]) -> None:
    low, high = row["interval"]
    if not 0 <= low <= row["accuracy"] <= high <= 1 or row["n"] < 1:
        raise ValueError("an accuracy must be a fraction in its interval")


def check_texts(row: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Checks that entries are strings.

    Args:
        row: a row of results, or one of the warnings.
        keys: the entries to check.

    Raises:
        ValueError: if an entry is something else.
        KeyError: if an entry is missing.
    """
    for key in keys:
        if not isinstance(row[key], str):
            raise ValueError(f"{key} must be a string, is {row[key]}")


def table(results: Mapping[str, Any]) -> str:
    """Formats accuracies as a Markdown table, in percent, with the warnings.

    Args:
        results: the content of a results.json, or the result of
            `tfsam.evaluate`.

    Returns:
        Lines of text, the accuracy without an attack ("clean") first.

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
        _table_line("clean", "", "", results["natural"]),
    ]
    for row in results["robust"]:
        name = attack_name(row)
        if row.get("nan_gradients"):
            name += " (NaN gradients)"
        lines.append(_table_line(name, row["norm"], row["epsilon_text"], row))
    distances = {
        f"{attack_name(row)}, {row['norm']}": row["median_distance"]
        for row in results["robust"]
        if row.get("median_distance") is not None
    }
    for name, distance in distances.items():
        lines.append(f"median distance ({name}): {distance:.4g}")
    for warning in results.get("warnings", []):
        lines.append(f"warning, {warning['warning']}: {warning['message']}")
    return "\n".join(lines)


def attack_name(row: Mapping[str, Any]) -> str:
    """Names the attack of a row together with its options.

    Args:
        row: one of the `robust` rows of results.

    Returns:
        A name such as "pgd (steps=50)".

    Example:
    >>> import tfsam
    >>> tfsam.reports.attack_name({"attack": "pgd", "options": {"steps": 50}})
    'pgd (steps=50)'
    >>> row = {"attack": "pgd:steps=50", "options": {"steps": 50}}
    >>> tfsam.reports.attack_name(row)
    'pgd:steps=50'
    """
    name: str = row["attack"]
    options = (row.get("options") or {}).items()
    unsaid = [f"{k}={v}" for k, v in options if f":{k}=" not in name]
    if unsaid:
        name += f" ({', '.join(unsaid)})"
    if row.get("standard") is False:
        name += " (not standard)"
    return name


def _table_line(
    attack: str, norm: str, epsilon: str, row: Mapping[str, Any]
) -> str:
    if row["accuracy"] is None:
        accuracy, interval = " ".join(row["error"].split()), ""
    else:
        low, high = (100 * end for end in row["interval"])
        accuracy, interval = (
            f"{100 * row['accuracy']:.2f}",
            f"{low:.1f} to {high:.1f}",
        )
    cells = (attack, norm, epsilon, accuracy, interval, row["n"])
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
