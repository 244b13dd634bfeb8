"""The tables and the figure of `experiments.margins`.

`summary` computes everything from the kept cells, as a dict of JSON types; the
others print and draw it.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import scipy.stats

from experiments import figures
from experiments import survival
from experiments import sweep_measures
from experiments import sweep_results
from experiments import sweep_rows
from experiments import tables

MEASURES = {
    "loss": ("training loss", 1),
    "linf": ("relative margin, l-inf, 1/255", 255),
    "l2": ("relative margin, l2, 1/255", 255),
    "margin": ("margin", 1),
    "gradient_l1": ("gradient, l1", 1),
    "gradient_l2": ("gradient, l2", 1),
}
# Edges of the bins of relative margins, in units of epsilon.
EDGES = (0, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, float("inf"))
STRONG, BESIDE = "autoattack", "malt"


class Attacked(NamedTuple):
    """Images that an attack attacked at a budget, on one network.

    Attributes:
        values: relative margins in units of epsilon, an array (n,).
        correct: whether the network classifies them correctly, bools (n,).
        survives: whether they survive, bools (n,).
    """

    values: np.ndarray
    correct: np.ndarray
    survives: np.ndarray

    def at(self, indices):
        """Returns (values, survives) of the correctly classified of some."""
        some = indices[self.correct[indices]]
        return self.values[some], self.survives[some]


def attacked_images(cells, attack):
    """Returns the images that an attack attacked, of each row's first seed.

    Args:
        cells: the result of `sweep_measures.gather`, of margins.json.
        attack: name of the attack.

    Returns:
        A dict from (norm, epsilon_text) to a dict from row to `Attacked`. All
        rows have the same images, those of the smallest seed. Rows that were
        attacked on another number of images are left out.
    """
    first = min((seed for _, seed in cells), default=None)
    found: dict = {}
    for (row, seed), (content, _) in cells.items():
        held = content.get("attacked")
        if not held or seed != first:
            continue
        for verdict in held["verdicts"]:
            if verdict["attack"] != attack:
                continue
            budget = verdict["norm"], verdict["epsilon_text"]
            values = np.array(held[verdict["norm"]])
            found.setdefault(budget, {})[row] = Attacked(
                values / verdict["epsilon"],
                values > 0,
                np.array(verdict["survives"]),
            )
    for budget, rows in found.items():
        count = len(next(iter(rows.values())).values)
        same = {r: a for r, a in rows.items() if len(a.values) == count}
        found[budget] = same
    return found


def compared(one, other, indices):
    """Compares the survival of some images on two networks.

    Args:
        one: the `Attacked` images of one network.
        other: the `Attacked` images of the other network.
        indices: indices of the images. An image that a network misclassifies
            does not count for that network.

    Returns:
        (difference, at equal values, log-odds): how much larger the part of the
        other's images that survives is, then the results of
        `survival.at_equal_values` in this order: the difference, and the
        log-odds. NaN if a network classifies none of them correctly.
    """
    pairs = one.at(indices), other.at(indices)
    if not all(len(values) for values, _ in pairs):
        return (float("nan"),) * 3
    values, survives = (
        np.concatenate(part) for part in zip(*pairs, strict=True)
    )
    is_other = np.repeat([False, True], [len(v) for v, _ in pairs])
    log_odds, difference = survival.at_equal_values(values, survives, is_other)
    one_part, other_part = (np.mean(s) for _, s in pairs)
    return other_part - one_part, difference, log_odds


def _of_attack(budget, rows, base):
    """Returns the summary of an attack at a budget."""
    norm, epsilon = budget
    found: dict = {"norm": norm, "epsilon_text": epsilon, "rows": {}}
    for row, images in rows.items():
        count = len(images.values)
        values, survives = images.at(np.arange(count))

        def area(indices, images=images):
            return survival.auc(*images.at(indices))

        part = {
            "correct": len(values),
            "survivors": int(survives.sum()),
            "bins": survival.binned(values, survives, EDGES),
        }
        if survives.any() and not survives.all():
            part["auc"] = survival.auc(values, survives)
            part["auc_interval"] = survival.interval(area, count).tolist()
        if row != base and base in rows and len(values):
            function = functools.partial(compared, rows[base], images)
            part["against"] = list(map(float, function(np.arange(count))))
            limits = survival.interval(function, count)
            part["against_interval"] = limits.T.tolist()
        found["rows"][row] = part
    return found


def _is_standard(row):
    return sweep_rows.row_flags(row)[0] == "--method=st"


def at_equal_loss(rows):
    """Pairs each method with the standard training of the nearest loss.

    Args:
        rows: a dict from row to a dict with "measures" and "accuracies".

    Returns:
        A list of dicts with "row" and "standard", names of rows. Rows that
        attack their inputs in training are left out: their loss is measured on
        other images.
    """
    standard = [row for row in rows if _is_standard(row)]
    pairs = []
    for row, found in rows.items():
        if (
            standard
            and row not in standard
            and not sweep_rows.attacks_inputs(row)
        ):
            loss = found["measures"]["loss"]
            nearest = min(
                standard,
                key=lambda s: abs(rows[s]["measures"]["loss"] - loss),
            )
            pairs.append({"row": row, "standard": nearest})
    return pairs


def agreement(cells):
    """Counts images on which two attacks agree, over all networks.

    Args:
        cells: the result of `sweep_measures.gather`, of margins.json.

    Returns:
        A dict from attack to the number of images that it alone breaks, with
        "images", the number of images that both attacked.
    """
    alone = {STRONG: 0, BESIDE: 0}
    total = 0
    for content, _ in cells.values():
        held = (content.get("attacked") or {}).get("verdicts", [])
        by_attack: dict = {}
        for verdict in held:
            budget = verdict["norm"], verdict["epsilon_text"]
            survives = np.array(verdict["survives"])
            by_attack.setdefault(budget, {})[verdict["attack"]] = survives
        for both in by_attack.values():
            if both.keys() >= alone.keys():
                total += len(both[STRONG])
                for one, other in ((STRONG, BESIDE), (BESIDE, STRONG)):
                    alone[one] += int(np.sum(~both[one] & both[other]))
    return {**alone, "images": total}


def summary(cells, base):
    """Computes all tables.

    Args:
        cells: the result of `sweep_measures.gather`, of margins.json.
        base: the row that others are compared with.

    Returns:
        A dict of JSON types.
    """
    counts = {row: sum(r == row for r, _ in cells) for row, _ in cells}
    rows = {
        row: {
            "seeds": counts[row],
            "measures": measures,
            "accuracies": {
                tables.head(c): 100 * value
                for c, value in accuracies.items()
                if c == sweep_results.NATURAL or len(c) == 3
            },
        }
        for row, (measures, accuracies) in sweep_measures.means(cells).items()
    }
    attacked = attacked_images(cells, STRONG)
    return {
        "n": max(content["n"] for content, _ in cells.values()),
        "base": base,
        "rows": rows,
        "at_equal_loss": at_equal_loss(rows),
        "attacks": [_of_attack(b, r, base) for b, r in attacked.items()],
        "edges": [edge for edge in EDGES if np.isfinite(edge)],
        "agreement": agreement(cells),
    }


def _columns(rows, start=""):
    """Returns the heads of accuracies that any row has, in their order."""
    heads = [h for found in rows.values() for h in found["accuracies"]]
    return [h for h in dict.fromkeys(heads) if h.startswith(start)]


def medians_table(found):
    """Returns the medians beside accuracies, and their orders, as Markdown.

    Args:
        found: the result of `summary`.
    """
    rows, columns = found["rows"], _columns(found["rows"])
    body = [
        [
            *(f"`{row}`", one["seeds"]),
            *(
                f"{scale * one['measures'][name]:.3g}"
                for name, (_, scale) in MEASURES.items()
            ),
            *(
                f"{one['accuracies'][c]:.1f}" if c in one["accuracies"] else ""
                for c in columns
            ),
        ]
        for row, one in rows.items()
    ]
    heads = [*("row", "seeds"), *(t for t, _ in MEASURES.values()), *columns]
    lines = [tables.markdown(heads, body)]
    for norm in ("linf", "l2"):
        title = MEASURES[norm][0]
        for column in _columns(rows, tables.ATTACKS[STRONG]):
            if f" {tables.NORMS[norm]} " in column:
                lines.append(_orders(rows, norm, title, column))
    return "\n\n".join(lines)


def _orders(rows, norm, title, column):
    """Returns a line that orders rows by a measure and by an accuracy."""
    known = [row for row in rows if column in rows[row]["accuracies"]]
    pairs = [
        (rows[r]["measures"][norm], rows[r]["accuracies"][column])
        for r in known
    ]
    orders = [
        " < ".join(f"`{known[i]}`" for i in np.argsort(values, kind="stable"))
        for values in zip(*pairs, strict=True)
    ]
    rank = ""
    if len(known) > 2:
        statistic = scipy.stats.spearmanr(*zip(*pairs, strict=True)).statistic
        rank = f" Rank correlation (Spearman): {statistic:+.2f}."
    return f"By {title}: {orders[0]}. By {column}: {orders[1]}.{rank}"


def equal_loss_table(found):
    """Returns methods beside standard training of the nearest training loss.

    Args:
        found: the result of `summary`.

    Returns:
        A Markdown table, or None without pairs.
    """
    rows, columns = found["rows"], _columns(found["rows"])
    body = []
    for pair in found["at_equal_loss"]:
        one, other = rows[pair["row"]], rows[pair["standard"]]
        ratios = [
            f"{one['measures'][norm] / other['measures'][norm]:.2f}"
            for norm in ("linf", "l2")
        ]
        gains = [
            f"{one['accuracies'][c] - other['accuracies'][c]:+.1f}"
            if c in one["accuracies"] and c in other["accuracies"]
            else ""
            for c in columns
        ]
        losses = [f"{o['measures']['loss']:.3f}" for o in (one, other)]
        names = [f"`{pair[key]}`" for key in ("row", "standard")]
        body.append([*names, *losses, *ratios, *gains])
    heads = [
        *("row", "standard training", "training loss", "its training loss"),
        *("ratio of relative margins, l-inf", "the same, l2"),
        *(f"gain, {c}" for c in columns),
    ]
    return tables.markdown(heads, body) if body else None


def survival_table(attack):
    """Returns how relative margins and survival are related, as Markdown.

    Args:
        attack: an entry of "attacks" in the result of `summary`.
    """
    body = []
    for row, one in attack["rows"].items():
        area = ""
        if "auc" in one:
            limits = one["auc_interval"]
            area = _with_interval(one["auc"], limits, "{:.3f}")
        texts = ["", "", ""]
        if "against" in one:
            gain, equal, log_odds = one["against"]
            limits = one["against_interval"]
            texts = [
                _with_interval(100 * gain, _times(100, limits[0])),
                _with_interval(100 * equal, _times(100, limits[1])),
                _with_interval(log_odds, limits[2]),
            ]
        counts = f"{one['survivors']} of {one['correct']}"
        body.append([f"`{row}`", counts, area, *texts])
    heads = [
        *("row", "survivors", "AUC"),
        *("minus base", "minus base at equal values", "log-odds there"),
    ]
    return tables.markdown(heads, body)


def bins_table(attack):
    """Returns the part of the images that survives, by bins, as Markdown.

    Args:
        attack: an entry of "attacks" in the result of `summary`.
    """
    body = [
        [f"`{row}`", *(f"{k} of {n}" if n else "" for k, n in one["bins"])]
        for row, one in attack["rows"].items()
    ]
    bins = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(EDGES)]
    return tables.markdown(["row", *bins], body)


def _times(factor, limits):
    return [factor * limit for limit in limits]


def _with_interval(value, limits, form="{:+.1f}"):
    texts = (form.format(number) for number in (value, *limits))
    return "{} ({} to {})".format(*texts)


def text(found):
    """Returns all tables.

    Args:
        found: the result of `summary`.
    """
    parts = [
        f"Medians over correctly classified images of {found['n']}, means over "
        "the seeds:",
        medians_table(found),
    ]
    if equal := equal_loss_table(found):
        parts += ["Beside standard training of the nearest loss:", equal]
    for attack in found["attacks"]:
        column = tables.head((STRONG, attack["norm"], attack["epsilon_text"]))
        parts += [
            f"{column}, correctly classified images of the smallest seed; "
            "AUC of the relative margin for survival; differences from "
            f"`{found['base']}` in points of survival, with 95 % intervals "
            "by resampling images:",
            survival_table(attack),
            "Survivors by relative margin, in units of epsilon:",
            bins_table(attack),
        ]
    both = found["agreement"]
    if both["images"]:
        parts.append(
            f"Of {both['images']} verdicts on an image, MALT alone breaks "
            f"{both[BESIDE]}, AutoAttack alone {both[STRONG]}."
        )
    return "\n\n".join(parts)


def draw(found, path):
    """Draws accuracy over the median, and survival over the image's value.

    Args:
        found: the result of `summary`.
        path: path of the SVG file.
    """
    rows = found["rows"]
    style = figures.styles(rows, list(filter(sweep_rows.attacks_inputs, rows)))
    label = figures.labels(style)
    attacks = found["attacks"]

    def panels(axes, figure):
        for (one, other), attack in zip(axes.T, attacks, strict=True):
            norm, epsilon = attack["norm"], attack["epsilon_text"]
            column = tables.head((STRONG, norm, epsilon))
            title, scale = MEASURES[norm]
            for row, (marker, colour) in style.items():
                accuracy = rows[row]["accuracies"].get(column)
                if accuracy is None:
                    continue
                value = scale * rows[row]["measures"][norm]
                look = {"color": colour, "label": label[row], "markersize": 5}
                one.plot(value, accuracy, marker, **look)
                if row in attack["rows"]:
                    bins = attack["rows"][row]["bins"]
                    shown = [i for i, (_, n) in enumerate(bins) if n >= _LEAST]
                    parts = [100 * bins[i][0] / bins[i][1] for i in shown]
                    other.plot(shown, parts, f"{marker}-", **look)
            one.set(xlabel=title, ylabel=f"{column}, %")
            figures.logarithmic(one)
            other.set(
                xlabel="relative margin from (to the next), epsilon",
                ylabel="correct images that survive, %",
            )
            ticks = [f"{edge:g}" for edge in EDGES[:-1]]
            other.set_xticks(range(len(ticks)), ticks)
        drawn = axes.flat[0].get_legend_handles_labels()
        figure.legend(*drawn, loc="outside right center")

    if attacks:
        figures.draw(panels, path, 2, len(attacks), width=4.0, height=2.8)


# Smallest number of images in a bin that is drawn.
_LEAST = 5
