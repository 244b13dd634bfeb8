r"""The paper's first question, on trained networks: are flat networks robust?

  python -m experiments.why_robust --preset=small --workdir=runs/small \
    --figures=runs/small

measures each finished cell of a sweep (`experiments.table1`): the loss around
the weights on training images, and around the pixels on test images. Each
cell's measures are kept in flatness.json next to its results. For all measured
cells, the command then prints a table of the measures and a table of their rank
correlations with robust accuracy. With `--figures` it also writes them, as
why_robust.md, with why_robust.svg, trajectory.svg and surfaces.svg. The same
command measures only new cells; without the networks it makes the tables from
the kept measures.
"""

import pathlib
import sys
import time

import keras
import numpy as np
import scipy.stats
from absl import flags

from experiments import command
from experiments import figures
from experiments import sweep_cells
from experiments import sweep_flags
from experiments import sweep_measures
from experiments import sweep_presets
from experiments import sweep_results
from experiments import sweep_rows
from experiments import tables
from tfsam import ASAM
from tfsam import SAM
from tfsam import Landscape
from tfsam import data
from tfsam.data import cache
from tfsam.runs import held_out
from tfsam.runs import settings
from tfsam.support import files
from tfsam.training import monitoring

FLAGS = flags.FlagValues()
_PRESET = sweep_flags.preset(FLAGS)
_WORKDIR = sweep_flags.workdir(FLAGS)
_ROWS = sweep_flags.rows(FLAGS)
_EXAMPLES = sweep_flags.examples(FLAGS, 500)
_FIGURES = sweep_flags.figures(FLAGS)

FILE = "flatness.json"

# The same for all networks, so that the numbers can be compared.
RHO, STEPS, PART, RHO_ADAPTIVE = 0.1, 10, 128, 0.5

MEASURES = {
    "loss": "training loss",
    "largest_eigenvalue": "largest Hessian eigenvalue",
    "worst_rise": f"worst rise in a ball of {RHO}",
    "m_sharpness": f"{PART}-sharpness, rho {RHO}",
    "adaptive_sharpness": f"adaptive sharpness, rho {RHO_ADAPTIVE}",
    "gradient_l1": "input gradient, l1",
    "gradient_l2": "input gradient, l2",
    "alignment": "alignment with the image",
}
ROBUST = sweep_results.COLUMNS[1:]


def measure(network, training_data, test_data, *, points=15):
    """Measures a network and its loss surface.

    Args:
        network: a Keras model that returns logits.
        training_data: (x, y), for the loss around the weights.
        test_data: (x, y), for the loss around the pixels.
        points: number of points of the surface on each axis.

    Returns:
        The content of flatness.json.
    """
    began = time.perf_counter()
    weights = Landscape(network, training_data)
    pixels = Landscape(network, test_data).input_gradients()
    coordinates, losses = weights.surface(points=points)
    return {
        "n": len(training_data[0]),
        "measures": {
            "loss": float(weights.loss()),
            "largest_eigenvalue": weights.largest_eigenvalue(tolerance=1e-2),
            "worst_rise": weights.sharpness(
                # Steps longer than the ball's radius can turn on its surface.
                SAM(RHO, steps=STEPS, step_size=2.5 * RHO / STEPS)
            ),
            "m_sharpness": weights.sharpness(SAM(RHO), examples=PART),
            "adaptive_sharpness": weights.sharpness(ASAM(RHO_ADAPTIVE)),
            "gradient_l1": float(pixels["l1"].mean()),
            "gradient_l2": float(pixels["l2"].mean()),
            "alignment": float(pixels["alignment"].mean()),
        },
        "surface": {
            "coordinates": coordinates.tolist(),
            "loss": losses.tolist(),
        },
        "seconds": time.perf_counter() - began,
    }


def measure_cell(folder, count):
    """Measures the network of a run on its own images; writes flatness.json.

    Args:
        folder: folder of the run.
        count: number of images of each part.
    """
    config = sweep_cells.read(folder)["config"]
    images = data.load(
        config["dataset"],
        limit_train=config["limit_train"],
        limit_test=config["limit_test"],
        seed=config["seed"],
        cache_dir=cache.default_folder(),
    )
    images = held_out.trained_on(settings.from_config(config, folder), images)
    train = data.sample(len(images.x_train), count, config["seed"])
    test = data.sample(len(images.x_test), count, config["seed"])
    found = measure(
        keras.saving.load_model(folder / "model.keras"),
        (data.as_float(images.x_train[train]), images.y_train[train]),
        (data.as_float(images.x_test[test]), images.y_test[test]),
    )
    files.write_json(folder / FILE, found)


def is_due(folder):
    """Returns whether a cell can be measured and is not measured yet.

    Args:
        folder: folder of the run.
    """
    measured = (folder / FILE).exists()
    return sweep_measures.is_measurable(folder) and not measured


def table(cells):
    """Returns each row's measures, means over its seeds, as a Markdown table.

    Args:
        cells: the result of `sweep_measures.gather`.
    """
    rows = [
        [f"`{row}`", *(f"{measures[name]:.3g}" for name in MEASURES)]
        for row, (measures, _) in sweep_measures.means(cells).items()
    ]
    return tables.markdown(["row", *MEASURES.values()], rows)


def correlations(cells):
    """Returns Spearman's rank correlations of measures with robust accuracies.

    Each row counts once, by means over its seeds: seeds of one row are close
    to each other, and would count as independent evidence.

    Args:
        cells: the result of `sweep_measures.gather`.

    Returns:
        A Markdown table: over all rows and, in parentheses, over the rows
        that do not attack their inputs in training.
    """
    found = sweep_measures.means(cells)
    alone = {k: v for k, v in found.items() if not sweep_rows.attacks_inputs(k)}
    rows = [
        [
            title,
            *(
                f"{_correlation(found, name, column)} "
                f"({_correlation(alone, name, column)})"
                for column in ROBUST
            ),
        ]
        for name, title in MEASURES.items()
    ]
    text = tables.markdown(["measure", *map(tables.head, ROBUST)], rows)
    counts = f"{len(found)} rows ({len(alone)} without an attack in training)"
    return f"{text}\n\nn: {counts}, of {len(cells)} runs."


def _correlation(found, name, column):
    """Returns Spearman's correlation as text, a dash where undefined."""
    pairs = [
        (measures[name], accuracies[column])
        for measures, accuracies in found.values()
        if column in accuracies
    ]
    one, other = zip(*pairs, strict=True) if pairs else ((), ())
    if len(set(one)) < 3 or len(set(other)) < 2:
        return "-"
    return f"{scipy.stats.spearmanr(one, other).statistic:+.2f}"


def styles(rows):
    """Returns markers and colours of rows, round without an attack."""
    return figures.styles(rows, list(filter(sweep_rows.attacks_inputs, rows)))


def draw_measures(cells, path, column=ROBUST[2]):
    """Draws robust accuracy over each measure, a point for each run.

    Args:
        cells: the result of `sweep_measures.gather`.
        path: path of the SVG file.
        column: the column of robust accuracy.
    """
    names = list(MEASURES)[1:]
    style = styles(dict.fromkeys(row for row, _ in cells))
    label = figures.labels(style)

    def panels(axes, figure):
        for one, name in zip(axes.flat, [*names, None], strict=True):
            if name is None:
                one.axis("off")
                one.legend(*axes.flat[0].get_legend_handles_labels())
                continue
            for row, (marker, colour) in style.items():
                points = [
                    (flat["measures"][name], 100 * accuracies[column])
                    for (other, _), (flat, accuracies) in cells.items()
                    if other == row and column in accuracies
                ]
                one.plot(
                    *np.transpose(points),
                    marker,
                    markersize=5,
                    color=colour,
                    label=label[row],
                )
            one.set_xlabel(MEASURES[name])
            figures.logarithmic(one)
        for one in axes[:, 0]:
            one.set_ylabel(f"{tables.head(column)}, %")

    figures.draw(panels, path, 2, 4, width=2.6, height=2.4)


def trajectories(rows, workdir):
    """Returns held-out accuracy during training, clean and under attack.

    Args:
        rows: names of rows; rows that attack their inputs are left out, because
            their held-out images are attacked at their own epsilon.
        workdir: folder of the sweep.

    Returns:
        A dict from row to (number of seeds, a dict from epoch to a dict of
        means over the seeds).
    """
    seeds, curves = sweep_cells.seeds_at(workdir), {}
    for row in rows:
        folders = [sweep_cells.cell_folder(workdir, row, s) for s in seeds(row)]
        histories = [
            monitoring.read_history(folder / "history.csv")
            for folder in folders
            if sweep_cells.read(folder)
        ]
        by_epoch: dict = {}
        for entry in (entry for history in histories for entry in history):
            if entry.get(_HELD_OUT[1]) is not None:
                by_epoch.setdefault(entry["epoch"], []).append(
                    {key: entry[key] for key in _HELD_OUT}
                )
        if by_epoch and not sweep_rows.attacks_inputs(row):
            means = {
                epoch: sweep_measures.mean_by_key(by_epoch[epoch])
                for epoch in by_epoch
            }
            curves[row] = len(histories), means
    return curves


_HELD_OUT = ("val_clean_accuracy", "val_robust_accuracy")


def trajectory_table(curves):
    """Returns the trajectories as Markdown: clean / under attack, in %.

    Args:
        curves: the result of `trajectories`.
    """
    epochs = sorted({epoch for _, means in curves.values() for epoch in means})
    rows = [
        [
            *(f"`{row}`", count),
            *(
                " / ".join(
                    f"{100 * means[epoch][key]:.1f}" for key in _HELD_OUT
                )
                if epoch in means
                else ""
                for epoch in epochs
            ),
        ]
        for row, (count, means) in curves.items()
    ]
    heads = ["row", "seeds", *(f"epoch {epoch:.0f}" for epoch in epochs)]
    return tables.markdown(heads, rows)


def draw_trajectories(curves, path):
    """Draws the trajectories: clean on the left, under attack on the right.

    Args:
        curves: the result of `trajectories`.
        path: path of the SVG file.
    """
    style, label = styles(curves), figures.labels(curves)

    def panels(axes, figure):
        titles = "held-out images", "the same under PGD-10, largest epsilon"
        for one, key, title in zip(axes.flat, _HELD_OUT, titles, strict=True):
            for row, (count, means) in curves.items():
                one.plot(
                    list(means),
                    [100 * mean[key] for mean in means.values()],
                    color=style[row][1],
                    label=f"{label[row]} ({count})",
                )
            one.set(xlabel="epoch", ylabel="accuracy, %", title=title)
        drawn = axes.flat[0].get_legend_handles_labels()
        figure.legend(*drawn, loc="outside right center")

    figures.draw(panels, path, 1, 2, width=4.2)


def draw_surfaces(cells, rows, path):
    """Draws filter-normalized loss surfaces side by side, on one scale.

    Args:
        cells: the result of `sweep_measures.gather`.
        rows: names of rows to draw, by their first seeds; if none of them
            was measured, the first four measured rows are drawn.
        path: path of the SVG file.
    """
    first: dict = {}
    for row, seed in cells:
        first.setdefault(row, (row, seed))
    shown = [row for row in rows if row in first] or list(first)[:4]
    surfaces = {row: cells[first[row]][0]["surface"] for row in shown}
    ticks = (0.03, 0.1, 0.3, 1, 3, 10)
    levels = np.geomspace(ticks[0], ticks[-1], 12)

    def panels(axes, figure):
        for one, (row, surface) in zip(
            axes.flat, surfaces.items(), strict=True
        ):
            found = one.contourf(
                *[surface["coordinates"]] * 2,
                np.clip(surface["loss"], levels[0], levels[-1]),
                levels=levels,
                norm="log",
                cmap="viridis",
            )
            one.plot(0, 0, "+", color="white")
            one.set(title=row, aspect="equal")
        bar = figure.colorbar(found, ax=list(axes.flat), label="training loss")
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])

    figures.draw(panels, path, 1, len(shown), width=2.2, height=2.2)


def main():
    """Measures new cells, prints the tables and draws the figures."""
    preset = sweep_presets.preset(_PRESET.value)
    rows = _ROWS.value or list(preset.rows)
    workdir = sweep_flags.folder(_WORKDIR, _PRESET)
    cells = sweep_measures.measured(
        preset,
        rows,
        workdir,
        FILE,
        measure=lambda folder: measure_cell(folder, _EXAMPLES.value),
        is_due=is_due,
    )
    count = max(flat["n"] for flat, _ in cells.values())
    curves = trajectories(rows, workdir)
    text = "\n\n".join(
        [
            f"Means over the seeds, on {count} images:",
            table(cells),
            "Rank correlations (Spearman):",
            correlations(cells),
            "Held-out images while training, clean / under PGD-10 at the "
            "largest l-inf epsilon:",
            trajectory_table(curves),
        ]
    )
    print(text)
    if _FIGURES.value:
        folder = pathlib.Path(_FIGURES.value)
        draw_measures(cells, folder / "why_robust.svg")
        files.write_atomically(folder / "why_robust.md", f"{text}\n")
        if curves:
            draw_trajectories(curves, folder / "trajectory.svg")
        shown = ("st", "sam-0.1", "sam-0.4", "at-linf-1")
        draw_surfaces(cells, shown, folder / "surfaces.svg")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
