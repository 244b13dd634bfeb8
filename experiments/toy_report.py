"""The tables and the figure of the toy model, from `experiments.toy`."""

import numpy as np

from experiments import figures
from experiments.tables import markdown
from experiments.toy_model import CENTRE
from experiments.toy_model import WEAK
from experiments.toy_model import equivalent_fraction
from experiments.toy_model import published_excess


def _number(value):
    return "" if value is None else f"{value:+.4f}"


def _measured(found):
    if found is None:
        return ""
    error = "" if found["error"] is None else f" ± {found['error']:.4f}"
    return _number(found["mean"]) + error


def _interval(found):
    mean, half = found["mean"], found["half"]
    if half is None:
        return _number(mean)
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


def _setting(row):
    return [row["p"], row["eta"], row["d"]]


def _exchange(row):
    """Returns both epsilons over eta, and whether they agree within 20 %."""
    if row["worst"] is None:
        return ["", "", ""]
    fraction = equivalent_fraction(row["worst"])
    published = equivalent_fraction(row["published"])
    holds = abs(fraction / published - 1) <= 0.2
    return [_number(fraction), _number(published), "yes" if holds else "no"]


def text(found):
    """Returns the tables as Markdown.

    Args:
        found: the result of `measure`.
    """
    where = ["p", "eta", "d"]
    kinds = ["worst", "penalty", "relative", "gaussian", "zero_one", "example"]
    parts = {
        "Excess / rho^2 as rho goes to 0 (`example`: excess / rho); published "
        "0.6667": markdown(
            where + kinds,
            [
                _setting(row) + [_number(row[kind]) for kind in kinds]
                for row in found["coefficients"]
            ],
        ),
        "Where 2/3 is right within 20 % for the worst case, as rho goes to 0, "
        "in k = eta sqrt(d)": markdown(
            ["p", "from k", "to k", "sign wrong from k", "least"],
            [
                [row["p"]]
                + [f"{row[key]:.3f}" for key in ("low", "high", "sign")]
                + [_number(row["least"])]
                for row in found["bands"]
            ],
        ),
        "The population's excess, and AT's epsilon / eta that has the same as "
        "the worst case": markdown(
            [
                *(*where, "rho", "published", "worst", "example"),
                *("epsilon / eta", "by the paper", "within 20 %"),
            ],
            [
                [*_setting(row), row["rho"]]
                + [_number(row[k]) for k in ("published", "worst", "example")]
                + _exchange(row)
                for row in found["exact"]
            ],
        ),
        "AT's excess (of samples: mean ± standard error; distance: the largest "
        "of a trained weight from its sample's optimum)": markdown(
            [
                *(*where, "epsilon / eta", "closed form", "exact"),
                *("samples' optima", "trained", "distance"),
            ],
            [
                [
                    *(*_setting(row), row["fraction"]),
                    *(_number(row[key]) for key in ("closed", "exact")),
                    *(_measured(row[key]) for key in ("samples", "trained")),
                    f"{row['distance']:.0e}",
                ]
                for row in found["adversarial"]
            ],
        ),
        "The worst case with other losses at the centre, rho 0.2": markdown(
            ["loss", "W_R*", "excess"],
            [
                [row["loss"], f"{row['ratio']:.3f}", f"{row['excess']:+.1e}"]
                for row in found["losses"]
            ],
        ),
        "Trained by full batches, and the same samples' optima (excess: mean "
        "± standard error)": markdown(
            [
                *(*where, "rho", "published", "SAM trained"),
                *("worst, expansion", "worst, exact", "example, exact"),
            ],
            [
                [*_setting(row), row["rho"]]
                + [_number(published_excess(row["rho"]))]
                + [_measured(row[k]) for k in ("sam", "expanded")]
                + [_measured(row.get("worst")), _measured(row["example"])]
                for row in found["training"]
            ],
        ),
        "Trained by small batches, against ST by the same (excess: mean and "
        "95 % interval by Student's t)": markdown(
            [
                *(*where, "batch", "rho", "published"),
                *("SAM trained", "example, the population's"),
            ],
            [
                [
                    *(*_setting(row), row["size"], row["rho"]),
                    _number(published_excess(row["rho"])),
                    *(_interval(row["excess"]), _number(row["example"])),
                ]
                for row in found["batches"]
            ],
        ),
        "Full batches at the centre, the rate kept": markdown(
            ["rate * top eigenvalue", "rho", "distance to ST", "bouncing"],
            [
                [
                    *(row["rate"], row["rho"], _measured(row["distance"])),
                    _number(row["predicted"]),
                ]
                for row in found["hovering"]
            ],
        ),
    }
    return "\n\n".join(f"{title}:\n\n{part}" for title, part in parts.items())


def draw(found, path):
    """Draws the excess over rho, a panel a setting, as SVG.

    Args:
        found: the result of `measure`.
        path: path of the file.
    """

    def panels(axes, figure):
        for one, setting in zip(axes.flat, (WEAK, CENTRE), strict=True):
            _plot_setting(one, found, setting)

    figures.draw(panels, path, 1, 2, width=4.4, height=3.4)


def _plot_setting(axes, found, setting):
    here = setting._asdict().items()

    def rows(name):
        chosen = [row for row in found[name] if here <= row.items()]
        return sorted(chosen, key=lambda row: row["rho"])

    rhos = np.linspace(0, max(row["rho"] for row in rows("exact")), 100)
    axes.plot(
        rhos,
        published_excess(rhos),
        "--",
        color=figures.INK,
        label="published",
    )
    for kind, label, colour in (
        ("worst", "worst case, exact", figures.BLUE),
        ("example", "example by example, exact", figures.ORANGE),
    ):
        exact_rows = [r for r in rows("exact") if r[kind] is not None]
        axes.plot(
            [row["rho"] for row in exact_rows],
            [row[kind] for row in exact_rows],
            "o-",
            color=colour,
            label=label,
        )
    trainings = rows("training")
    bars = {"capsize": 3, "linestyle": ""}
    axes.errorbar(
        [row["rho"] for row in trainings],
        [row["sam"]["mean"] for row in trainings],
        yerr=[row["sam"]["half"] or 0 for row in trainings],
        marker="s",
        color=figures.GREEN,
        label="trained, full batch",
        **bars,
    )
    colours = {1: figures.RED, 10: figures.PINK, 100: figures.GREY}
    for size, colour in colours.items():
        small = [row for row in rows("batches") if row["size"] == size]
        if small:
            axes.errorbar(
                [row["rho"] for row in small],
                [row["excess"]["mean"] for row in small],
                yerr=[row["excess"]["half"] or 0 for row in small],
                marker="^",
                color=colour,
                label=f"trained, batches of {size}",
                **bars,
            )
    highest = max(
        row[kind] or 0 for row in rows("exact") for kind in ("worst", "example")
    )
    axes.set(
        title=f"p {setting.p}, eta {setting.eta}, d {setting.d}",
        xlabel="rho",
        ylabel="W_R / W_R* - 1",
        ylim=(-highest, 2 * highest),
    )
    axes.legend(loc="upper left")
