"""Results of a run: reading results.json, and names of its rows."""

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
    for row in [results["natural"], *results["robust"]]:
        _check_labels(row.get("by_label"))
    for row in results["robust"]:
        check_texts(row, ("attack", "norm", "epsilon_text"))
        if not math.isfinite(row["epsilon"]):
            raise ValueError(f"epsilon must be finite, is {row['epsilon']}")
        if row["accuracy"] is None:
            check_texts(row, ("error",))
        else:
            _check_accuracy(row)
        _check_diagnosis(row.get("diagnosis"))
    for row in _worst_cases(results):
        if row.get("accuracy") is not None:
            _check_accuracy(row)
    for warning in results.get("warnings", []):
        check_texts(warning, ("warning", "message"))
    _check_corruptions(results.get("corruptions"))
    for key in ("config", "train", "versions"):
        if not isinstance(results.get(key) or {}, dict):
            raise ValueError(f"{key} must be an object")
    return results


def _worst_cases(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Checks the texts of the worst case; returns its rows and the union."""
    rows = list(results.get("worst_case") or [])
    for row in rows:
        check_texts(row, ("norm", "epsilon_text"))
        for found in row["attacks"]:
            check_texts(found, ("attack",))
            if not isinstance(found["broken"], int):
                raise ValueError(f"broken must be a number, is {found}")
        if len(row["attacks"]) != len(rows[0]["attacks"]):
            raise ValueError("worst cases must be of the same attacks")
        if not math.isfinite(row["epsilon"]):
            raise ValueError(f"epsilon must be finite, is {row['epsilon']}")
    union = results.get("union")
    if union is None:
        return rows
    if not all(map(math.isfinite, union["budgets"].values())):
        raise ValueError(f"budgets must be finite, are {union['budgets']}")
    return [*rows, union]


def _check_labels(found: Any) -> None:
    """Checks the accuracies of several labels; None has none."""
    for share in [] if found is None else found:
        if not 0 <= share <= 1:
            raise ValueError(f"by_label must hold fractions, has {share}")


def _check_diagnosis(found: Any) -> None:
    """Checks the diagnosis of a row: None, a text, or a list of findings."""
    if isinstance(found, str | None):
        return
    for finding in found:
        check_texts(finding, ("indicator", "message", "remedy"))


def _check_corruptions(found: Mapping[str, Any] | None) -> None:
    """Checks the accuracies on corrupted images; None has none."""
    if found is None:
        return
    check_texts(found, ("name",))
    _check_accuracy({**found, "accuracy": found["mean_accuracy"]})
    for row in found["rows"]:
        check_texts(row, ("corruption",))
        if not math.isfinite(row["severity"]):
            raise ValueError(f"severity must be finite, is {row['severity']}")
        _check_accuracy(row)
    for kind in found.get("left_out") or {}:
        check_texts(found["left_out"], (kind,))
    for warning in found.get("warnings") or []:
        check_texts(warning, ("message",))


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
    if row.get("target") is not None:
        name += f" ({target_in_words(row)})"
    notes = {
        "all labels right": row.get("multi_label"),
        "not standard": row.get("standard") is False,
        "transfer": row.get("surrogate"),
        "sweep by bisection": row.get("sweep") == "bisect",
        "means nothing: a random model": row.get("meaningless"),
    }
    return name + "".join(f" ({note})" for note in notes if notes[note])


def target_in_words(row: Mapping[str, Any]) -> str:
    """Says what attacks aim at, or returns an empty text for any wrong class.

    Args:
        row: one of the rows of results, or their `union`.

    Example:
    >>> target_in_words({"target": 3})
    'towards class 3: the share that does not reach it'
    """
    target = row.get("target")
    if target is None:
        return ""
    known = isinstance(target, int)
    aim = f"class {target}" if known else "a class of each image"
    return f"towards {aim}: the share that does not reach it"


def bound_in_words(row: Mapping[str, Any]) -> str:
    """Returns why a worst case is an upper bound, or an empty text.

    The worst case of a random model means nothing if all of its attacks follow
    single draws.

    Args:
        row: one of the `worst_case` rows of results, or their `union`.

    Example:
    >>> bound_in_words({"upper_bound": True, "missing": ["fab_t"]})
    'upper bound: fab_t failed'
    """
    if row.get("meaningless"):
        return "means nothing: a random model"
    if not row.get("upper_bound") and not row.get("missing"):
        return ""
    missing = ", ".join(dict.fromkeys(row.get("missing") or []))
    return f"upper bound: {missing or 'an attack'} failed"


def draws_in_words(row: Mapping[str, Any]) -> str:
    """Says how the verdicts of a random model came about, or returns "".

    Args:
        row: `natural`, or one of the `robust` rows of results.

    Example:
    >>> draws_in_words({"draws": 20, "spread": 0.031})
    '20 draws, spread 3.1 %'
    """
    if not row.get("draws") or (row["draws"] == 1 and not row.get("spread")):
        return ""
    text = f"{row['draws']} draws"
    if row.get("spread") is not None:
        text += f", spread {100 * row['spread']:.1f} %"
    return text
