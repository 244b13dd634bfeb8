"""Entries for leaderboards, made from the results of a run.

RobustBench (Croce et al. 2021, arXiv 2010.09670) keeps a JSON file for each
model in its folder model_info/DATASET/THREAT. `robustbench` says what its
fields hold. They are those of the files themselves, of the class `ModelInfo`
in its utils.py, and of its leaderboard, which also reads `external` and
`unreliable`.
"""

import pathlib
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from tfsam.reports import diagnoses
from tfsam.reports.results import attack_name
from tfsam.support import files

# Fields that no evaluation can tell, and that a file keeps once filled in.
BY_HAND = (
    *("link", "name", "authors", "additional_data", "dataset", "venue"),
    *("architecture", "reported"),
)

# The budget of RobustBench's leaderboards, by norm and data set.
_EPSILONS = {
    ("linf", "cifar10"): 8 / 255,
    ("linf", "cifar100"): 8 / 255,
    ("linf", "imagenet"): 4 / 255,
    ("l2", "cifar10"): 0.5,
}

# The number of test images that RobustBench evaluates on.
_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}

_SAME = 1e-6

# Largest part of all images that Square Attack may break after the other stages
# (`alpha` of AutoAttack's check).
_BY_SQUARE = 0.002


def robustbench(
    results: Mapping[str, Any],
    norm: str | None = None,
    epsilon: float | None = None,
    **by_hand: Any,
) -> dict[str, Any]:
    """Makes an entry of RobustBench's leaderboards (its model_info files).

    Args:
        results: The content of a results.json, or the result of
            `tfsam.evaluate`, with a standard AutoAttack row.
        norm: "linf" or "l2". None takes the norm of RobustBench's own budget,
            or else the first that AutoAttack was run in.
        epsilon: The budget. None takes RobustBench's own (8/255, 4/255 for
            ImageNet, and 0.5 in l2), or else the largest.
        **by_hand: Fields that no evaluation can tell: `link`, `name` (the
            title of the paper), `authors`, `venue`, `architecture`, `dataset`,
            `additional_data` (a bool), `reported` (the robust accuracy of the
            paper, in percent).

    Returns:
        A dict that can be written as JSON, with RobustBench's fields:

        - `link`, `name`, `authors`, `venue`, `architecture`, `dataset`: strings
          from `by_hand` or the configuration of the run. Empty strings are to
          be filled in.
        - `additional_data`: a bool, whether other images than the training
          images were used, from `by_hand` or `--weights`.
        - `number_forward_passes`: an integer, the number of forward passes for
          a prediction: the draws of a random model, or else 1.
        - `eps`: a string such as "8/255" or "0.5".
        - `clean_acc`, `autoattack_acc`, `reported`: the natural accuracy, the
          accuracy of the row and that of the paper, in percent, strings of two
          decimals.
        - `external`: the same for the worst case, by which leaderboards rank,
          if other attacks have beaten AutoAttack.
        - `footnote`: a string, present if there is anything to note: these
          attacks, differences from RobustBench's evaluation, warnings, the
          diagnosis.
        - `unreliable`: a bool, the column "AA eval. potentially unreliable":
          whether AutoAttack's own checks raise a flag (see `raised_flags`), and
          nothing else. Without it, the leaderboard shows "unknown"; it is
          absent if the results have no warnings.

    Raises:
        TypeError: If a field of `by_hand` is unknown.
        ValueError: If there is no such row of standard AutoAttack.

    Example:
        >>> import tfsam
        >>> measured = {"n": 10_000, "interval": [0.0, 1.0]}
        >>> row = {"attack": "autoattack", "norm": "linf", "epsilon": 8 / 255,
        ...     "epsilon_text": "8/255", "accuracy": 0.5112, "standard": True}
        >>> results = {"natural": {"accuracy": 0.8532, **measured},
        ...     "robust": [row | measured]}
        >>> entry = tfsam.reports.robustbench(results, venue="ICML 2027")
        >>> entry["clean_acc"], entry["autoattack_acc"], entry["venue"]
        ('85.32', '51.12', 'ICML 2027')
    """
    _check_fields(by_hand)
    known = dict.fromkeys(BY_HAND, "") | _configured(results) | by_hand
    row = _row(results, norm, epsilon, known["dataset"])
    worst = _worst_case(results, row)
    entry = _entry(results, row, known)
    if worst is not None:
        entry["external"] = _percent(worst)
    notes = " ".join(_notes(results, row, worst, known["dataset"]))
    if notes:
        entry["footnote"] = notes
    if results.get("warnings") is not None:
        entry["unreliable"] = bool(raised_flags(results, row))
    return entry


def _check_fields(by_hand: Mapping[str, Any]) -> None:
    """Rejects fields that an entry does not have."""
    unknown = sorted(set(by_hand) - set(BY_HAND))
    if unknown:
        raise TypeError(
            f"robustbench takes the fields {', '.join(BY_HAND)}. "
            f"Received: {unknown[0]}={by_hand[unknown[0]]}"
        )


def _entry(
    results: Mapping[str, Any], row: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields that every entry has."""
    return {
        **{name: known[name] for name in ("link", "name", "authors")},
        "additional_data": known["additional_data"],
        "number_forward_passes": results["natural"].get("draws") or 1,
        **{name: known[name] for name in ("dataset", "venue", "architecture")},
        "eps": row["epsilon_text"],
        "clean_acc": _percent(results["natural"]),
        "reported": known["reported"],
        "autoattack_acc": _percent(row),
    }


def raised_flags(
    results: Mapping[str, Any], row: Mapping[str, Any]
) -> list[str]:
    """Returns which of AutoAttack's checks an evaluation fails.

    The checks are those of the authors' flags_doc.md, which RobustBench refers
    to. One of them, whether the model optimizes while it predicts, is left out:
    nothing in an evaluation tells.

    Args:
        results: The results.
        row: Their row of AutoAttack.

    Returns:
        A list of "random outputs"; "probabilities", if there are no logits;
        "zero gradients", if no gradient flows, or the gradients of all stages
        are zero for some survivors; and "square", if Square Attack lowers the
        accuracy of the stages before it by more than 0.2 %.

    Example:
        >>> row = {"n": 100, "broken_by": {"apgd_ce": 40, "square": 2}}
        >>> raised_flags({"warnings": []}, row)
        ['square']
    """
    warnings = {one["warning"] for one in results.get("warnings") or []}
    signs = {one["indicator"] for one in diagnoses.signs(row)}
    by_square = (row.get("broken_by") or {}).get("square", 0)
    flags = {
        "random outputs": "random_outputs" in warnings,
        "probabilities": "log_probabilities" in warnings,
        "zero gradients": "no_gradients" in warnings
        or "unavailable_gradients" in signs,
        "square": by_square > _BY_SQUARE * row["n"],
    }
    return [flag for flag, raised in flags.items() if raised]


def _configured(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that follow from the configuration of a run."""
    config = results.get("config") or {}
    found: dict[str, Any] = {}
    dataset = str(config.get("dataset") or "")
    # Leaderboards have names of data sets, not paths.
    if dataset and ":" not in dataset:
        found["dataset"] = _leaderboard(dataset)
    network = str(config.get("network") or "")
    if network and "/" not in network and "." not in network:
        found["architecture"] = network
    if results.get("train") and "architecture" in found:
        # The training images alone, unless weights come from others.
        found["additional_data"] = bool(config.get("weights"))
    return found


def _leaderboard(dataset: str) -> str:
    """Returns RobustBench's name of a data set, or the name as it is."""
    name = dataset.partition("/")[0].lower()
    return "imagenet" if name.startswith("imagenet20") else name


def _row(
    results: Mapping[str, Any],
    norm: str | None,
    epsilon: float | None,
    dataset: str,
) -> Mapping[str, Any]:
    """Returns the row of standard AutoAttack that an entry is about."""
    rows = [
        row
        for row in results["robust"]
        if row.get("standard") is True
        and row["accuracy"] is not None
        and row["norm"] in ("linf", "l2")
        and not row.get("surrogate")
        and norm in (None, row["norm"])
        and (epsilon is None or abs(row["epsilon"] - epsilon) < _SAME)
    ]
    if not rows:
        names = dict.fromkeys(
            f"{attack_name(row)} {row['norm']} {row['epsilon_text']}"
            for row in results["robust"]
        )
        raise ValueError(
            "an entry of RobustBench needs a result of the standard "
            "AutoAttack in linf or l2: --attacks=autoattack, on four classes "
            f"or more. Received: {', '.join(names) or 'no attack'}"
        )

    def rank(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        own = _EPSILONS.get((row["norm"], dataset))
        is_own = own is not None and abs(row["epsilon"] - own) < _SAME
        return is_own, row["norm"] == rows[0]["norm"], row["epsilon"]

    return max(rows, key=rank)


def _worst_case(
    results: Mapping[str, Any], row: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Returns the worst case in a row's ball, if it is below the row."""
    for worst in results.get("worst_case") or []:
        same = (
            worst["norm"] == row["norm"] and worst["epsilon"] == row["epsilon"]
        )
        measured = worst["accuracy"] is not None
        if same and measured and worst["accuracy"] < row["accuracy"]:
            return worst
    return None


def _notes(
    results: Mapping[str, Any],
    row: Mapping[str, Any],
    worst: Mapping[str, Any] | None,
    dataset: str,
) -> Iterator[str]:
    """Yields the sentences of the footnote."""
    if worst is not None:
        others = ", ".join(
            dict.fromkeys(
                attack_name(found)
                for found in worst["attacks"]
                if found["broken"] and found["attack"] != row["attack"]
            )
        )
        yield (
            f"{_percent(worst)}% robust accuracy is the worst case over "
            f"AutoAttack and {others or 'other budgets'}."
        )
    own = _EPSILONS.get((row["norm"], dataset))
    if own is not None and abs(row["epsilon"] - own) >= _SAME:
        yield f"Uses epsilon {row['epsilon_text']} in {row['norm']}."
    count = results["natural"]["n"]
    if count != _IMAGES.get(dataset, count):
        yield f"Evaluated on {count} of the {_IMAGES[dataset]} images."
    for warning in results.get("warnings") or []:
        yield f"Warning of the evaluation: {warning['warning']}."
    for sign in diagnoses.signs(row):
        name = sign["indicator"].replace("_", " ")
        yield f"Diagnosis of AutoAttack: {name}."


def _percent(row: Mapping[str, Any]) -> str:
    """Returns an accuracy as RobustBench writes it: in percent, a string."""
    return f"{100 * row['accuracy']:.2f}"


def write_robustbench(
    results: Mapping[str, Any], path: str | pathlib.Path
) -> list[str]:
    """Writes an entry of RobustBench's leaderboards as a JSON file.

    Fields that were filled in by hand in a file of that name are kept.

    Args:
        results: See `robustbench`.
        path: The file to write; its folder is made.

    Returns:
        Lines for the log: the fields that are still to be filled in, and
        whether RobustBench has such a leaderboard.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If there is no row of standard AutoAttack, or the file
            holds something else than an entry.

    Example:
        >>> import tempfile
        >>> import tfsam
        >>> measured = {"n": 100, "interval": [0.0, 1.0], "accuracy": 0.5}
        >>> row = {"attack": "autoattack", "norm": "linf", "epsilon": 8 / 255,
        ...     "epsilon_text": "8/255", "standard": True, **measured}
        >>> results = {"natural": measured, "robust": [row]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/Me2027Mine.json"
        ...     lines = tfsam.reports.write_robustbench(results, path)
        >>> lines[0].partition("; ")[2][:26]
        'fill in link, name, author'
    """
    path = files.expanded(path)
    kept = _kept(path)
    if "dataset" in _configured(results):
        kept.pop("dataset", None)
    entry = robustbench(results, **kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, entry)
    empty = ", ".join(name for name in BY_HAND if entry[name] == "")
    todo = f"; fill in {empty}" if empty else ""
    lines = [f"{path}: an entry of RobustBench{todo}"]
    if entry["dataset"] and entry["dataset"] not in _IMAGES:
        lines.append(
            f"RobustBench has no leaderboard of {entry['dataset']}: "
            f"{', '.join(_IMAGES)}"
        )
    return lines


def _kept(path: pathlib.Path) -> dict[str, Any]:
    """Returns the fields that were filled in by hand in a file."""
    if not path.exists():
        return {}
    held = None if path.is_dir() else files.read_json(path)
    if held is None or "autoattack_acc" not in held:
        raise ValueError(
            "robustbench must name a new file, or an entry of RobustBench to "
            f"write again. Received: robustbench={path}"
        )
    return {name: held[name] for name in BY_HAND if held.get(name, "") != ""}
