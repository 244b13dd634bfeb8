"""Pictures of a run: accuracy over epsilon, and attacked examples."""

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


def robustness_plot(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws accuracy over epsilon, a curve an attack, a panel a norm.

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
    figure.tight_layout()
    _save(figure, path)


_Point = tuple[float, float, float, float]


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
                (epsilon, row["accuracy"], *row["interval"])
                for epsilon, row in sorted(curve.items())
                if row["accuracy"] is not None
            ],
        )
        for name, known in curves.items()
        for number, curve in enumerate(known, 1)
    ]


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
