"""What a run shows: its results, a table and two pictures."""

import json
import math
import zipfile

import numpy as np

from tfsam.support import files

_BROKEN = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError),
    *(RecursionError, TypeError, ValueError, zipfile.BadZipFile),
)


def read(path):
    """What a results.json holds, checked as far as tables and pages rely on it.

    Args:
        path: the file, a `pathlib.Path`.

    Returns:
        A dict; None if there is no such file.

    Raises:
        ValueError: if it is none that a run leaves.
    """
    return checked(_results, path) if path.exists() else None


def checked(reader, path):
    """What a reader finds in a file, any way of breaking it a ValueError.

    Args:
        reader: a function of the path.
        path: of the file.
    """
    try:
        return reader(path)
    except _BROKEN as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"expected a file as tfsam.run leaves it. Received: {path} ({why})"
        ) from error


def _results(path):
    results = json.loads(path.read_text())
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


def _check_accuracy(row):
    low, high = row["interval"]
    if not 0 <= low <= row["accuracy"] <= high <= 1 or row["n"] < 1:
        raise ValueError("an accuracy must be a fraction in its interval")


def check_texts(row, keys):
    """Raises a ValueError unless all of these entries are strings."""
    for key in keys:
        if not isinstance(row[key], str):
            raise ValueError(f"{key} must be a string, is {row[key]}")


def table(results):
    """The accuracies of a run as a Markdown table, in percent, and warnings.

    Args:
        results: what `tfsam.evaluate` or results.json holds.

    Returns:
        A string of lines, natural accuracy first.
    """
    lines = [
        "| attack | norm | epsilon | accuracy | 95 % interval | n |",
        "|---|---|---|---|---|---|",
        _table_line("none", "", "", results["natural"]),
    ]
    for row in results["robust"]:
        name = attack_name(row)
        if row.get("nan_gradients"):
            name += " (NaN gradients)"
        lines.append(_table_line(name, row["norm"], row["epsilon_text"], row))
    distances = {
        f"{row['attack']}, {row['norm']}": row["median_distance"]
        for row in results["robust"]
        if row.get("median_distance") is not None
    }
    for name, distance in distances.items():
        lines.append(f"median distance ({name}): {distance:.4g}")
    for warning in results.get("warnings", []):
        lines.append(f"warning, {warning['warning']}: {warning['message']}")
    return "\n".join(lines)


def attack_name(row):
    """An attack with its options, in words.

    Args:
        row: one of the `robust` rows of results.
    """
    name = row["attack"]
    if row.get("options"):
        options = ", ".join(f"{k}={v}" for k, v in row["options"].items())
        name += f" ({options})"
    if row.get("standard") is False:
        name += " (not standard)"
    return name


def _table_line(attack, norm, epsilon, row):
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


def robustness_plot(results, path):
    """Draws accuracy over epsilon, a curve an attack, a panel a norm.

    Args:
        results: what `tfsam.evaluate` or results.json holds.
        path: of the PNG file.
    """
    rows = results["robust"]
    measured = {r["norm"] for r in rows if r["accuracy"] is not None}
    norms = sorted(measured, reverse=True) or ["linf"]
    figure, panels = _figure(1, len(norms), 4.5, 3.4)
    natural = results["natural"]
    for axes, norm in zip(panels.flat, norms, strict=True):
        for label, curve in _curves(r for r in rows if r["norm"] == norm):
            if not curve:
                continue
            points = np.array(
                [(0, natural["accuracy"], *natural["interval"]), *curve]
            )
            errors = [points[:, 1] - points[:, 2], points[:, 3] - points[:, 1]]
            axes.errorbar(
                points[:, 0],
                100 * points[:, 1],
                yerr=100 * np.maximum(errors, 0),
                marker="o",
                capsize=3,
                label=label,
            )
        axes.set(
            xlabel=f"epsilon ({norm})", ylabel="accuracy, %", ylim=(0, 100)
        )
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    _save(figure, path)


def _curves(rows):
    """Splits the rows of one norm into curves, one for each attack.

    Two attacks may have one name, with other options or even the same ones: the
    second begins where an epsilon comes again.

    Args:
        rows: of results, attack by attack.

    Returns:
        A list of (label, points); a point is (epsilon, accuracy, low, high),
        by ascending epsilon, without those at which the attack failed.
    """
    curves: dict[str, list[dict]] = {}
    last = None
    for row in rows:
        known = curves.setdefault(attack_name(row), [{}])
        # An epsilon that was asked for twice has its row twice.
        if row["epsilon"] in known[-1] and row != last:
            known.append({})
        known[-1][row["epsilon"]] = last = row
    return [
        (
            name if len(known) == 1 else f"{name} [{number}]",
            [
                (epsilon, row["accuracy"], *row["interval"])
                for epsilon, row in sorted(curve.items())
                if row["accuracy"] is not None
            ],
        )
        for name, known in curves.items()
        for number, curve in enumerate(known, 1)
    ]


def examples_plot(images, adversarial, titles, path):
    """Draws clean image, perturbation and adversarial image, an example a row.

    Args:
        images: float array (n, height, width, channels) in [0, 1].
        adversarial: the same images after an attack.
        titles: for each image a pair of titles, before and after.
        path: of the PNG file.
    """
    figure, panels = _figure(len(images), 3, 1.7, 1.9)
    for axes in panels.flat:
        axes.axis("off")
    for row, clean, attacked, (before, after) in zip(
        panels, images, adversarial, titles, strict=True
    ):
        perturbation, factor = magnified(clean, attacked)
        for axes, image, title in (
            (row[0], clean, before),
            (row[1], perturbation, f"x {factor:.0f}"),
            (row[2], attacked, after),
        ):
            axes.imshow(
                np.clip(image.squeeze(), 0, 1), cmap="gray", vmin=0, vmax=1
            )
            axes.set_title(title, fontsize=8)
    _save(figure, path)


def magnified(clean, adversarial):
    """A perturbation as an image: gray is none, its largest value a bound.

    Args:
        clean: an image in [0, 1].
        adversarial: the same after an attack.

    Returns:
        The image in [0, 1], and how many times the perturbation was magnified
        (half of it above gray, half below).
    """
    perturbation = adversarial - clean
    largest = np.abs(perturbation).max() or 1.0
    return 0.5 + perturbation / (2 * largest), 1 / largest


def _figure(rows, columns, width, height):
    # A figure of its own, not pyplot's: no window system, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure, path):
    figure.tight_layout()
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
