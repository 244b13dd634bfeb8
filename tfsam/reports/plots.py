"""Pictures of a run: accuracy over epsilon or severity, attacked examples."""

import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.reports.results import attack_name
from tfsam.support import files

# Part of the range between gray and black or white that the largest value of a
# perturbation fills: details stay visible beside it.
_FILLED = 0.8

_FOOLED = "tab:red"

# Kinds of corruptions in a row of panels.
_KINDS_A_ROW = 5


def robustness_plot(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws accuracy over epsilon, a curve an attack, a panel a norm.

    The worst case of all attacks of a norm has a curve of its own.

    Args:
        results: the content of a results.json, or the result of
            `tfsam.evaluate`.
        path: the PNG file to write.

    Example:
    >>> import pathlib, tempfile
    >>> import tfsam
    >>> natural = {"accuracy": 0.9, "interval": [0.8, 0.95], "n": 100}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "robustness.png")
    ...     results = {"natural": natural, "robust": []}
    ...     tfsam.reports.robustness_plot(results, path)
    ...     path.exists()
    True
    """
    rows = results["robust"]
    measured = {r["norm"] for r in rows if r["accuracy"] is not None}
    norms = sorted(measured, reverse=True) or ["linf"]
    figure, panels = _figure(1, len(norms), 4.5, 3.4)
    natural = _point(0, results["natural"])
    for axes, norm in zip(panels.flat, norms, strict=True):
        for label, curve in _curves(r for r in rows if r["norm"] == norm):
            if curve:
                points = curve if _targets(results) else [natural, *curve]
                _draw(axes, points, label=label)
        worst = _worst_curve(results, norm)
        if worst:
            # With a target, the natural accuracy is of another kind.
            points = worst if _targets(results) else [natural, *worst]
            _draw(axes, points, label="worst case", **_WORST)
        axes.set(
            xlabel=f"epsilon ({norm})", ylabel="accuracy, %", ylim=(0, 100)
        )
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.tight_layout()
    _save(figure, path)


# The look of the worst case: over the curves of the attacks, so that both are
# seen where an attack is the worst case itself.
_WORST = {
    **{"color": "black", "linestyle": "--", "linewidth": 1.2},
    **{"markersize": 3, "zorder": 3},
}

_Point = tuple[float, float, float, float]


def _point(position: float, row: Mapping[str, Any]) -> _Point:
    """Returns an accuracy as a point of a curve."""
    low, high = row["interval"]
    return position, row["accuracy"], low, high


def _draw(axes: Any, points: Sequence[_Point], **look: Any) -> None:
    """Draws a curve with its intervals."""
    x, y, low, high = np.transpose(points)
    errors = 100 * np.maximum([y - low, high - y], 0)
    options = {"marker": "o", "capsize": 3} | look
    axes.errorbar(x, 100 * y, yerr=errors, **options)


def _targets(results: Mapping[str, Any]) -> bool:
    """Returns whether the attacks aim at a class that the user named."""
    return any(row.get("target") is not None for row in results["robust"])


def _worst_curve(results: Mapping[str, Any], norm: str) -> list[_Point]:
    """Returns the points of the worst case of a norm, by ascending epsilon."""
    rows = {
        row["epsilon"]: row
        for row in results.get("worst_case") or []
        if row["norm"] == norm and row["accuracy"] is not None
    }
    return [_point(epsilon, row) for epsilon, row in sorted(rows.items())]


def _curves(
    rows: Iterable[Mapping[str, Any]],
) -> list[tuple[str, list[_Point]]]:
    """Splits the rows of one norm into curves, one for each attack.

    Two attacks may have one name, with other options or even the same ones: the
    second begins where an epsilon comes again.

    Args:
        rows: of results, attack by attack.

    Returns:
        Pairs of a label and points; a point is (epsilon, accuracy, low, high),
        by ascending epsilon, without those at which the attack failed.
    """
    curves: dict[str, list[dict[float, Mapping[str, Any]]]] = {}
    last = None
    for row in rows:
        known = curves.setdefault(attack_name(row), [{}])
        # An epsilon that was given twice has its row twice.
        if row["epsilon"] in known[-1] and row != last:
            known.append({})
        known[-1][row["epsilon"]] = last = row
    return [
        (
            name if len(known) == 1 else f"{name} [{number}]",
            [
                _point(epsilon, row)
                for epsilon, row in sorted(curve.items())
                if row["accuracy"] is not None
            ],
        )
        for name, known in curves.items()
        for number, curve in enumerate(known, 1)
    ]


def corruptions_plot(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws accuracy over the severity of corruptions, a panel a kind.

    Args:
        results: the content of a results.json that has `corruptions`.
        path: the PNG file to write.

    Example:
    >>> import pathlib, tempfile
    >>> import tfsam
    >>> measured = {"accuracy": 0.9, "interval": [0.8, 0.95], "n": 100}
    >>> row = {"corruption": "fog", "severity": 1, **measured}
    >>> found = {"name": "mine", "mean_accuracy": 0.9, "rows": [row]}
    >>> results = {"natural": measured, "corruptions": found}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "corruptions.png")
    ...     tfsam.reports.corruptions_plot(results, path)
    ...     path.exists()
    True
    """
    found = results["corruptions"]
    natural = _point(0, found.get("natural") or results["natural"])
    kinds: dict[str, list[_Point]] = {}
    for row in found["rows"]:
        point = _point(row["severity"], row)
        kinds.setdefault(row["corruption"], []).append(point)
    columns = min(len(kinds), _KINDS_A_ROW)
    figure, panels = _figure(-(-len(kinds) // columns), columns, 2.4, 2.1)
    for axes in panels.flat[len(kinds) :]:
        axes.set_axis_off()
    for axes, (kind, points) in zip(panels.flat, kinds.items(), strict=False):
        _draw(axes, [natural, *sorted(points)])
        axes.set(ylim=(0, 100))
        axes.set_title(kind.replace("_", " "), fontsize=9)
        axes.grid(alpha=0.3)
    figure.supxlabel("severity (0: clean)", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    mean = 100 * found["mean_accuracy"]
    figure.suptitle(f"{found['name']}: mean accuracy {mean:.1f} %", fontsize=10)
    figure.tight_layout()
    _save(figure, path)


def examples_plot(
    images: np.ndarray,
    adversarial: np.ndarray,
    names: Sequence[tuple[str, str]],
    path: pathlib.Path,
    heading: str = "",
) -> None:
    """Draws clean image, perturbation and adversarial image, an example a row.

    All perturbations are magnified by the same factor, which the heading of
    their column gives. Misclassified adversarial images have a red frame.

    Args:
        images: float array (n, height, width, channels) in [0, 1], classified
            correctly.
        adversarial: the same images after an attack.
        names: for each image the names of its class and of the class that is
            predicted after the attack.
        path: the PNG file to write.
        heading: a line above the picture, such as "pgd, linf, epsilon 8/255".

    Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import tfsam
    >>> clean = np.full((1, 8, 8, 1), 0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "examples.png")
    ...     tfsam.reports.examples_plot(
    ...         clean, clean + 0.1, [("cat", "dog")], path, "pgd, linf 0.1"
    ...     )
    ...     path.exists()
    True
    """
    figure, panels = _figure(len(images), 3, 1.9, 1.7)
    largest = float(np.abs(adversarial - images).max())
    factor = 1.0
    for row, clean, attacked, (label, predicted) in zip(
        panels, images, adversarial, names, strict=True
    ):
        perturbation, factor = magnified(clean, attacked, largest)
        pictures = (clean, perturbation, attacked)
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(
                np.clip(picture.squeeze(), 0, 1), cmap="gray", vmin=0, vmax=1
            )
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"label: {label}", fontsize=8)
        fooled = predicted != label
        row[2].set_ylabel(
            f"predicted: {predicted}",
            fontsize=8,
            color=_FOOLED if fooled else "black",
        )
        row[2].yaxis.set_label_position("right")
        if fooled:
            for side in row[2].spines.values():
                side.set(color=_FOOLED, linewidth=2.5)
    columns = ("clean", f"perturbation x {factor:.3g}", "adversarial")
    for axes, text in zip(panels[0], columns, strict=True):
        axes.set_title(text, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=10)
    figure.tight_layout()
    _save(figure, path)


def magnified(
    clean: np.ndarray, adversarial: np.ndarray, largest: float | None = None
) -> tuple[np.ndarray, float]:
    """Shows a perturbation as an image, with gray where it is zero.

    Args:
        clean: an image in [0, 1].
        adversarial: the same image after an attack.
        largest: the largest absolute value that the image has to show; None is
            the largest of this perturbation.

    Returns:
        The image in [0.1, 0.9], so that nothing saturates, and the factor by
        which the perturbation was magnified.
    """
    perturbation = adversarial - clean
    if largest is None:
        largest = float(np.abs(perturbation).max())
    factor = _FILLED / (2 * largest) if largest else 1.0
    return 0.5 + factor * perturbation, factor


def _figure(rows: int, columns: int, width: float, height: float) -> Any:
    # A figure of its own, not pyplot's: no window system, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: pathlib.Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
