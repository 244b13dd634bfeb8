"""Drawings of a run: accuracy over epsilon, and attacked images."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam import attacks
from tfsam import data
from tfsam import registries
from tfsam import reports
from tfsam.attacks import goals
from tfsam.runs.settings import Settings
from tfsam.support import files

# Images of which some are drawn, and how many are drawn.
_CANDIDATES = 200
_DRAWN = 5


def draw(
    settings: Settings,
    model: attacks.Logits,
    images: data.Images,
    surrogate: attacks.Logits | None,
    results: Mapping[str, Any],
    log: Callable[[str], None],
) -> None:
    """Draws robustness.png, and examples.png at the largest linf epsilon.

    examples.npz holds the images of examples.png.

    Args:
        settings: the settings of the run.
        model: the model that was attacked.
        images: the images of the run.
        surrogate: the model that attacks are computed on, or None.
        results: the result of `stages.attack`.
        log: a function of a line of text.
    """
    workdir = settings.workdir
    reports.robustness_plot(results, workdir / "robustness.png")
    rows = [r for r in results["robust"] if r["accuracy"] is not None]
    if not rows:
        return
    row = max(rows, key=lambda r: (r["norm"] == "linf", r["epsilon"]))
    x, y, before = _correct_examples(settings, model, images)
    if not len(x):
        return
    try:
        name, x_adv = _attacked(settings, model, surrogate, row, x, y)
    except Exception as error:  # The attack may be another package's.
        log(f"no examples.png: {type(error).__name__}: {error}")
        return
    after = np.argmax(model(tf.constant(x_adv)), axis=1)
    known = len(images.class_names)
    # A network may have more outputs than the data has classes.
    others = range(known, 1 + max(*before, *after))
    names = np.array([*images.class_names, *map(str, others)])
    reports.examples_plot(
        x,
        x_adv,
        list(zip(names[before], names[after], strict=True)),
        workdir / "examples.png",
        heading=f"{name}, {row['norm']}, epsilon {row['epsilon_text']}",
    )
    arrays = {
        "clean": x,
        "adversarial": x_adv,
        "before": names[before],
        "after": names[after],
        "attack": name,
        "norm": row["norm"],
        "epsilon": row["epsilon"],
    }
    files.write_arrays(workdir / "examples.npz", arrays)


def _correct_examples(
    settings: Settings, model: attacks.Logits, images: data.Images
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (images, labels, predictions) of some correct predictions."""
    some = data.sample(len(images.x_test), _CANDIDATES, settings.seed)
    x, y = data.as_float(images.x_test[some]), images.y_test[some]
    before = np.argmax(model(tf.constant(x)), axis=1)
    shown = np.flatnonzero(before == y)[:_DRAWN]
    return x[shown], y[shown], before[shown]


def _attacked(
    settings: Settings,
    model: attacks.Logits,
    surrogate: attacks.Logits | None,
    row: Mapping[str, Any],
    x: np.ndarray,
    y: np.ndarray,
) -> tuple[str, np.ndarray]:
    """Attacks images like a row of results.

    Args:
        settings: the settings of the run.
        model: the model to attack.
        surrogate: the model that attacks are computed on, or None.
        row: the row; of an ensemble the first stage is used, since the whole
            takes minutes.
        x: the images.
        y: their labels.

    Returns:
        The name of the attack, and the attacked images.
    """
    name = row["attack"]
    attack = attacks.get(
        name, epsilon=row["epsilon"], norm=row["norm"], **row["options"]
    )
    stages = registries.ATTACKS.fact(attack, "stages")
    if stages:
        name, attack = stages[0]
    source = model
    if surrogate is not None and row.get("surrogate"):
        source = surrogate.as_surrogate()

    pixels, labels = tf.constant(x), tf.constant(y)
    if settings.target is not None:
        source, labels = goals.aimed(source, pixels, labels, settings.target)

    def attacked() -> Any:
        return attack(source, pixels, labels, settings.seed)

    if registries.ATTACKS.fact(
        attack, "in_graph"
    ):  # Eagerly it would take long.
        attacked = tf.function(attacked, autograph=False)
    return name, tf.convert_to_tensor(attacked()).numpy()
