"""The sections of the page, each None where there is nothing to show."""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tfsam.evaluation import budgets
from tfsam.reports.page import corrupted
from tfsam.reports.page import curves
from tfsam.reports.page import elements
from tfsam.reports.page import labels
from tfsam.reports.page import pictures
from tfsam.reports.page import runs
from tfsam.reports.page import table
from tfsam.reports.page import trust
from tfsam.reports.page import worst_case
from tfsam.reports.page.markup import node


def all_sections(found: Sequence[runs.Run]) -> list[ElementTree.Element]:
    """Makes the sections of a page that have something to show.

    Args:
        found: a list of `runs.Run`.

    Returns:
        A list of elements, a heading first in each.
    """
    sections = [
        _warnings(found),
        _runs(found),
        worst_case.section(found),
        labels.section(found),
        trust.section(found),
        _robustness(found),
        corrupted.section(found),
        _training(found),
        _cost(found),
        _examples(found),
        _flatness(found),
        _settings(found),
    ]
    return [section for section in sections if section is not None]


def _robustness(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    if not any(any(series.points) for series in curves.all_series(found)):
        return None
    return elements.charts(
        "robustness",
        "Robustness",
        "Accuracy over the size of the perturbation, an attack a chart. "
        "Bars are 95 % intervals.",
    )


def _training(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    if not any(run.history for run in found):
        return None
    return elements.charts("training", "Training", "Epoch by epoch.")


def _cost(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    if all(table.minutes(run) is None for run in found):
        return None
    return elements.charts(
        "cost", "Cost", "Accuracy over the cost of training."
    )


def _warnings(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    """Lists each warning once, with the names of its runs."""
    found_by: dict[tuple[str, str], list[str]] = {}
    for run in found:
        for message in _messages(run):
            found_by.setdefault(message, []).append(run.name)
    if not found_by:
        return None
    return elements.section(
        "warnings",
        "Warnings",
        node(
            "ul",
            [
                node(
                    "li",
                    node("strong", what.replace("_", " ")),
                    f": {message} ",
                    node("span", ", ".join(names), class_="quiet"),
                )
                for (what, message), names in found_by.items()
            ],
            class_="warnings",
        ),
    )


def _messages(run: runs.Run) -> list[tuple[str, str]]:
    """Returns the warnings and failures of a run, each once."""
    found = []
    for part in run.parts:
        found += [
            (warning["warning"], warning["message"])
            for warning in part.results.get("warnings", [])
        ]
        found += [
            (
                f"{row['attack']} failed",
                f"{row['norm']} {row['epsilon_text']}: {row['error']}",
            )
            for row in part.results["robust"]
            if row["accuracy"] is None
        ]
    return list(dict.fromkeys(found))


def _runs(found: Sequence[runs.Run]) -> ElementTree.Element:
    toolbar = node(
        "div",
        node("span", id="selected", role="status"),
        node("button", "All", type="button", data_select="all"),
        node("button", "None", type="button", data_select="none"),
        class_="controls needs-script",
    )
    caption = (
        "Accuracy in percent, with its 95 % interval; bold is the best of a "
        "column. Runs that are selected are drawn below."
    )
    heads = [_selectable(index, run) for index, run in enumerate(found)]
    return elements.section(
        "runs",
        "Runs",
        toolbar,
        elements.sortable(heads, table.columns(found), caption),
    )


def _selectable(index: int, run: runs.Run) -> list[ElementTree.Element | None]:
    box = node(
        "input", type="checkbox", value=str(index), class_="needs-script"
    )
    swatch = node("svg", class_="swatch", aria_hidden="true")
    count = len(_messages(run))
    badge = node(
        "a",
        f"{count} {'warning' if count == 1 else 'warnings'}",
        href="#warnings",
        class_="badge",
    )
    return [
        node("label", box, swatch, elements.run_name(run)),
        badge if count else None,
    ]


def _examples(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    contents = [_gallery(run) for run in found]
    if not any(contents):
        return None
    return elements.section(
        "examples",
        "Examples",
        node(
            "p",
            "Clean image, perturbation magnified, adversarial image, with "
            "the class that the network predicts for each.",
            class_="lead",
        ),
        elements.cards(found, contents),
    )


def _gallery(run: runs.Run) -> list[ElementTree.Element]:
    if run.examples:
        attack, norm = run.examples["attack"], run.examples["norm"]
        epsilon = budgets.epsilon_text(run.examples["epsilon"])
        title = f"{attack} {curves.NORMS.get(norm, norm)} {epsilon}"
        rows = map(_example, pictures.examples(run.examples))
        return [node("p", title, class_="quiet"), *rows]
    if run.picture:
        address = pictures.data_uri(run.picture)
        text = "Clean images, perturbations, adversarial images"
        return [node("img", src=address, alt=text, class_="picture")]
    return []


def _example(
    example: tuple[str, str, str, float, str, str],
) -> ElementTree.Element:
    clean, perturbation, adversarial, factor, before, after = example
    fooled = before != after
    return node(
        "div",
        _picture(clean, "clean image", before),
        _picture(
            perturbation, "perturbation", f"\N{MULTIPLICATION SIGN}{factor:.0f}"
        ),
        _picture(
            adversarial,
            "adversarial image",
            f"\N{RIGHTWARDS ARROW} {after}",
            "fooled" if fooled else "held",
        ),
        class_="example",
    )


def _picture(
    address: str, what: str, caption: str, kind: str | None = None
) -> ElementTree.Element:
    return node(
        "figure",
        node("img", src=address, alt=f"{what}, {caption}"),
        node("figcaption", caption, class_=kind),
    )


def _flatness(found: Sequence[runs.Run]) -> ElementTree.Element | None:
    measures = _measures(found)
    surfaces = [(run.flatness or {}).get("surface") for run in found]
    drawn = [surface for surface in surfaces if surface]
    if not measures and not drawn:
        return None
    names = [elements.run_name(run) if run.flatness else None for run in found]
    caption = "Sharpness of the loss around the trained weights"
    return elements.section(
        "flatness",
        "Loss surfaces",
        elements.sortable(names, measures, caption) if measures else None,
        _surfaces(found, surfaces, pictures.Scale(drawn)) if drawn else None,
    )


def _surfaces(
    found: Sequence[runs.Run],
    surfaces: Sequence[Mapping[str, Any] | None],
    scale: pictures.Scale,
) -> list[ElementTree.Element]:
    contents = [
        _surface(surface, scale, run.name) if surface else None
        for run, surface in zip(found, surfaces, strict=True)
    ]
    return [_legend(scale), elements.cards(found, contents)]


def _measures(found: Sequence[runs.Run]) -> list[table.Column]:
    all_measures = [(run.flatness or {}).get("measures") or {} for run in found]
    names = dict.fromkeys(name for one in all_measures for name in one)
    counts = [(run.flatness or {}).get("n") for run in found]
    return [
        table.numbers(
            "",
            name.replace("_", " "),
            [one.get(name) for one in all_measures],
            "{:.4g}",
        )
        for name in names
    ] + ([table.numbers("", "n", counts)] if names else [])


def _legend(scale: pictures.Scale) -> ElementTree.Element:
    middle = math.sqrt(scale.lowest * scale.highest)
    ends = (scale.lowest, middle, scale.highest)
    return node(
        "figure",
        node("img", src=scale.bar(), alt="Colours from low to high loss"),
        node(
            "figcaption",
            [node("span", f"{loss:.3g}") for loss in ends],
        ),
        node("p", "loss, one logarithmic scale for all runs", class_="quiet"),
        class_="scale",
    )


def _surface(
    surface: Mapping[str, Any], scale: pictures.Scale, name: str
) -> list[ElementTree.Element]:
    first, *_, last = surface["coordinates"]
    losses = pictures.losses(surface)
    middle = len(losses) // 2
    text = (
        f"loss {losses[middle, middle]:.3g} at the centre, up to "
        f"{np.nanmax(losses):.3g}, both directions from {first:g} to {last:g}"
    )
    drawing = node(
        "svg",
        node(
            "image",
            href=scale.heat(surface),
            width="100",
            height="100",
            preserveAspectRatio="none",
        ),
        [
            node(
                "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            )
            for line in scale.contours(surface)
        ],
        node("path", d="M46 50h8M50 46v8", class_="halo"),
        node("path", d="M46 50h8M50 46v8"),
        viewBox="0 0 100 100",
        role="img",
        aria_label=f"Loss surface of {name}: {text}",
        class_="surface",
    )
    return [drawing, node("p", text, class_="quiet")]


def _settings(found: Sequence[runs.Run]) -> ElementTree.Element:
    """Shows the settings in which the runs differ, and the common ones."""
    columns = table.settings(found)
    shared = table.shared(found)
    common = [
        node("div", node("dt", key), node("dd", value))
        for key, value in shared.items()
    ]
    names = [elements.run_name(run) for run in found]
    caption = "Settings in which the runs differ"
    return elements.section(
        "settings",
        "Settings",
        elements.sortable(names, columns, caption) if columns else None,
        node(
            "details",
            node("summary", "Settings that all runs have in common"),
            node("dl", common),
            open=None if columns else "",
        ),
    )
