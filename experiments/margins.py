r"""Relative margins: is SAM's robustness more than a smaller gradient?

  python -m experiments.table1 --preset=small100 --dataset=npz:FILE \
    --workdir=runs/small100 --rows=st,sam-0.2,st:weight_decay=0.002,st:epochs=12
  python -m experiments.margins --preset=small100 --workdir=runs/small100 \
    --figures=runs/small100

The measure of an image is its relative margin: the difference between the
label's logit and the largest other logit, over the dual norm of its gradient at
the pixels (l1 for l-inf, l2 for l2). No scaling of the logits changes it. It is
the distance to the decision boundary of the linearised margin, exact for a
linear network with two classes.

For each finished cell of the sweep, the command keeps the medians over
correctly classified test images, the loss on training images, and the values of
the images that AutoAttack attacked with its verdicts, in margins.json next to
the cell's results. For all measured cells it then prints tables: the medians
beside robust accuracy; each method beside the standard training of the nearest
training loss; how well the relative margin predicts survival (AUC); and
survival at equal values, against the row --base. With --figures it also writes
them, as margins.md and margins.json, with margins.svg. Run again, the command
measures new cells only. Without the networks it makes the tables from the kept
values.

Rows of standard training with more weight decay or fewer epochs are compared
with SAM at an equal training loss. In `st:epochs=12` the learning rate falls
within the 12 epochs; `st:epochs=12:schedule=cosine:final=0.1` is a run of more
epochs, stopped before its learning rate falls.
"""

import functools
import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from experiments import command
from experiments import margin_tables
from experiments import sweep_cells
from experiments import sweep_flags
from experiments import sweep_measures
from experiments import sweep_presets
from tfsam import Landscape
from tfsam import data
from tfsam.attacks.logits import traced
from tfsam.attacks.losses import margin
from tfsam.data import cache
from tfsam.evaluation import verdicts
from tfsam.geometry import TINY
from tfsam.runs import held_out
from tfsam.runs import settings
from tfsam.support import files

FLAGS = flags.FlagValues()
_PRESET = sweep_flags.preset(FLAGS, "small100")
_WORKDIR = sweep_flags.workdir(FLAGS)
_ROWS = sweep_flags.rows(FLAGS, "the preset's, and those of `CONTROLS`")
_BASE = sweep_flags.base(FLAGS)
_EXAMPLES = sweep_flags.examples(FLAGS, 2000)
_FIGURES = sweep_flags.figures(FLAGS, "the figure and the tables")

# Standard training that fits its images less.
CONTROLS = (
    *("st:weight_decay=0.002", "st:weight_decay=0.005"),
    *("st:epochs=8", "st:epochs=12", "st:epochs=16"),
)
FILE = "margins.json"


def of_images(logits_fn, x, y, *, batch_size=250):
    """Computes margins, their gradients' norms, and relative margins.

    Args:
        logits_fn: a function of pixels (batch, ...) to logits (batch, classes).
        x: float array (n, ...).
        y: class numbers (n,).
        batch_size: number of images that are processed together.

    Returns:
        A dict of float64 arrays (n,): "margin", the label's logit minus the
        largest other one, <= 0 for misclassified images; "gradient_l1" and
        "gradient_l2", the norms of its gradient at the pixels; and the relative
        margins "linf" and "l2", the margin over the l1 and the l2 norm.
    """

    @traced
    def of_batch(images, labels):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            margins = -margin(logits_fn(images), labels)
        slopes = tf.reshape(
            tape.gradient(margins, images), (tf.shape(images)[0], -1)
        )
        return margins, tf.norm(slopes, 1, axis=1), tf.norm(slopes, axis=1)

    parts = [
        of_batch(
            tf.constant(x[start : start + batch_size]),
            tf.constant(y[start : start + batch_size]),
        )
        for start in range(0, len(x), batch_size)
    ]
    margins, l1, l2 = (
        np.concatenate(column).astype(float)
        for column in zip(*parts, strict=True)
    )
    return {
        **{"margin": margins, "gradient_l1": l1, "gradient_l2": l2},
        "linf": margins / np.maximum(l1, TINY),
        "l2": margins / np.maximum(l2, TINY),
    }


def medians(found):
    """Returns the medians over correctly classified images, by measure.

    Args:
        found: the result of `of_images`.
    """
    correct = found["margin"] > 0
    if not correct.any():
        return dict.fromkeys(found, float("nan"))
    return {name: float(np.median(v[correct])) for name, v in found.items()}


def measure_cell(folder, count):
    """Measures the network of a run on its own images; writes margins.json.

    Args:
        folder: folder of the run.
        count: number of images of each part.
    """
    began = time.perf_counter()
    config = sweep_cells.read(folder)["config"]
    network = keras.saving.load_model(folder / "model.keras")
    logits_fn = functools.partial(network, training=False)
    images = _images(config)
    own = held_out.trained_on(settings.from_config(config, folder), images)
    train = data.sample(len(own.x_train), count, config["seed"])
    test = data.sample(len(images.x_test), count, config["seed"])
    trained_on = data.as_float(own.x_train[train]), own.y_train[train]
    found = of_images(
        logits_fn, data.as_float(images.x_test[test]), images.y_test[test]
    )
    loss = float(Landscape(network, trained_on).loss())
    content = {
        "n": len(test),
        "measures": {"loss": loss, **medians(found)},
        "attacked": _attacked(folder / "autoattack", logits_fn),
        "seconds": time.perf_counter() - began,
    }
    files.write_json(folder / FILE, content)


# Settings that choose the images of a run.
_CHOICE = (
    *("limit_train", "limit_test", "seed", "image_size", "resize"),
    *("test_fraction", "bad_images", "class_order"),
)


def _images(config):
    """Loads the images of a run by its results' config."""
    return data.load(
        config["dataset"],
        **{key: config[key] for key in _CHOICE if key in config},
        cache_dir=cache.default_folder(),
        part="test" if config.get("evaluate") else "all",
    )


def _attacked(folder, logits_fn):
    """Returns relative margins of attacked images with all verdicts.

    Args:
        folder: folder of a run of AutoAttack.
        logits_fn: the network that it attacked.

    Returns:
        A dict, or None if there is no finished run: "linf" and "l2", lists of
        a number for each image, and "verdicts", a list of dicts whose entry
        "survives" is a list of a bool for each image.

    Raises:
        ValueError: if the verdicts belong to other images.
    """
    results = sweep_cells.read(folder)
    if results is None or not (folder / "evaluation").exists():
        return None
    images = _images(results["config"])
    found = of_images(logits_fn, data.as_float(images.x_test), images.y_test)
    held = verdicts.load(folder / "evaluation")
    rows = []
    for row in results["robust"]:
        name, norm, epsilon = row["attack"], row["norm"], row["epsilon"]
        # A record of a single norm does not name it.
        verdict = held.get((name, norm, epsilon), held.get((name, epsilon)))
        if verdict is None:
            raise ValueError(
                "each attack of a run must have verdicts; run the sweep again. "
                f"Received: folder={folder}, attack={name}, epsilon={epsilon}"
            )
        wrong = verdict == verdicts.MISCLASSIFIED
        if len(wrong) != len(found["margin"]) or _MOST_DIFFERENT < np.mean(
            wrong != (found["margin"] <= 0)
        ):
            raise ValueError(
                "the data set must hold the images that were attacked. "
                f"Received: dataset={results['config']['dataset']}, "
                f"folder={folder}"
            )
        keys = ("attack", "norm", "epsilon", "epsilon_text")
        survives = (verdict == verdicts.STANDS).tolist()
        rows.append({k: row[k] for k in keys} | {"survives": survives})
    values = {
        norm: [float(f"{value:.6g}") for value in found[norm]]
        for norm in ("linf", "l2")
    }
    return {**values, "verdicts": rows}


# Largest part of the images whose class may differ by rounding.
_MOST_DIFFERENT = 0.02


def is_due(folder):
    """Returns whether a cell can be measured and is not measured yet.

    A cell that was measured before AutoAttack attacked it is measured again.

    Args:
        folder: folder of the run.
    """
    if not sweep_measures.is_measurable(folder):
        return False
    held = files.read_json(folder / FILE)
    if held is None:
        return True
    attacked = folder / "autoattack"
    there = (attacked / "evaluation").exists() and sweep_cells.read(attacked)
    return held["attacked"] is None and bool(there)


def main():
    """Measures new cells, prints the tables and draws the figure."""
    preset = sweep_presets.preset(_PRESET.value)
    rows = _ROWS.value or [*preset.rows, *CONTROLS]
    workdir = sweep_flags.folder(_WORKDIR, _PRESET)
    cells = sweep_measures.measured(
        preset,
        rows,
        workdir,
        FILE,
        measure=lambda folder: measure_cell(folder, _EXAMPLES.value),
        is_due=is_due,
    )
    found = margin_tables.summary(cells, _BASE.value)
    text = margin_tables.text(found)
    print(text)
    if _FIGURES.value:
        folder = pathlib.Path(_FIGURES.value)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(folder / "margins.md", f"{text}\n")
        files.write_json(folder / FILE, found)
        margin_tables.draw(found, folder / "margins.svg")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
