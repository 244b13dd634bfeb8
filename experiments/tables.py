"""The tables of a sweep, as Markdown, CSV and LaTeX, and differences of rows.

Everything here is a function of the result of `sweep_results.collect`.
"""

import csv
import io
import math
import statistics
from typing import NamedTuple

import scipy.stats

from experiments.sweep_results import ATTACKED
from experiments.sweep_results import COLUMNS
from experiments.sweep_results import FITTED
from experiments.sweep_results import HELD_OUT
from experiments.sweep_results import HELD_OUT_ATTACKED
from experiments.sweep_results import MINUTES
from experiments.sweep_results import NATURAL
from experiments.sweep_results import TOOK


class Summary(NamedTuple):
    """A row's cells of a column: accuracies in percent, or minutes.

    Attributes:
        mean: over the seeds; of minutes the least, for other work on the
            machine only adds to them.
        spread: their standard deviation, None of one seed and of minutes.
        seeds: number of seeds.
    """

    mean: float
    spread: float | None
    seeds: int


def markdown(heads, rows):
    """Returns rows of texts as a Markdown table.

    Args:
        heads: a list of texts.
        rows: lists of texts.
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def summaries(cells):
    """Returns the `Summary` of each row and column.

    Args:
        cells: the result of `sweep_results.collect`.

    Returns:
        A dict from row to a dict from column.
    """
    found: dict = {}
    for row, by_seed in cells.items():
        found[row] = {}
        for column in {c for results in by_seed.values() for c in results}:
            values = [r[column].value for r in by_seed.values() if column in r]
            found[row][column] = (
                Summary(min(values), None, len(values))
                if column in (MINUTES, TOOK, ATTACKED)
                else _percent(values)
            )
    return found


def _percent(values):
    values = [100 * value for value in values]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.mean(values), spread, len(values))


def columns_of(found):
    """Returns the columns that any row has, in the table's order."""
    present = {column for row in found.values() for column in row}
    present -= {TOOK, ATTACKED}
    others = sorted(c for c in present if len(c) == 3 and c not in COLUMNS)
    last = [
        column
        for column in (HELD_OUT, HELD_OUT_ATTACKED, FITTED, MINUTES)
        if column in present
    ]
    return [*(c for c in COLUMNS if c in present), *others, *last]


_HEADS = {
    NATURAL: "natural",
    HELD_OUT: "on held-out images",
    HELD_OUT_ATTACKED: "PGD-10 on held-out images",
    FITTED: "on training images",
    MINUTES: "training, minutes",
}
ATTACKS = {
    "cleverhans_pgd": "PGD-10",
    "autoattack": "AutoAttack",
    "malt": "MALT",
}
NORMS = {"linf": "l-inf", "l2": "l2"}


def head(column):
    """Returns a column's title."""
    if column in _HEADS:
        return _HEADS[column]
    attack, norm, epsilon = column
    return f"{ATTACKS.get(attack, attack)} {NORMS[norm]} {epsilon}"


def _text(cell, plus_minus):
    if cell is None:
        return ""
    text = f"{cell.mean:.1f}"
    if cell.spread is None:
        return text
    return f"{text} {plus_minus} {cell.spread:.1f}"


def _body(found, paper, plus_minus):
    """Yields rows of texts: name, seeds, cells with the paper's figures."""
    columns = columns_of(found)
    for row, cells in found.items():
        if not cells:
            continue
        texts = []
        for column in columns:
            text = _text(cells.get(column), plus_minus)
            if row in paper and column in COLUMNS:
                text += f" ({paper[row][COLUMNS.index(column)]})"
            texts.append(text)
        seeds = max(cells[c].seeds for c in columns if c in cells)
        yield [row, seeds, *texts]


def accuracies(found, paper):
    """Returns the table as Markdown, the paper's figures in parentheses.

    Args:
        found: the result of `summaries`.
        paper: the paper's figures by row, of `Preset`.
    """
    return markdown(
        ["row", "seeds", *map(head, columns_of(found))],
        [[f"`{row}`", *texts] for row, *texts in _body(found, paper, "±")],
    )


def test_images(cells):
    """Returns a line about the number of images behind an accuracy.

    Args:
        cells: the result of `sweep_results.collect`.

    Returns:
        The line, or None if the results lack the number.
    """
    halves: dict = {}
    for by_seed in cells.values():
        for results in by_seed.values():
            for column, found in results.items():
                if found.n and found.interval and column != FITTED:
                    attack = "natural" if column == NATURAL else column[0]
                    key = ATTACKS.get(attack, attack), found.n
                    halves[key] = max(_half(found), halves.get(key, 0))
    if not halves:
        return None
    texts = [
        f"{attack} ±{half:.1f} ({n})" for (attack, n), half in halves.items()
    ]
    return (
        "By the test images alone, 95 % intervals of one seed's accuracies are "
        f"at most (of so many images): {', '.join(texts)}."
    )


def computing(cells):
    """Returns a line about the time of one seed of the rows, and of all.

    Args:
        cells: the result of `sweep_results.collect`.

    Returns:
        The line, or None where no training's time is known.
    """

    def hours(some):
        return [
            sum(results[column].value for results in some) / 60
            for column in (TOOK, MINUTES, ATTACKED)
        ]

    timed = [
        [by_seed[s] for s in sorted(by_seed) if MINUTES in by_seed[s]]
        for by_seed in cells.values()
    ]
    firsts = [results[0] for results in timed if results]
    if not firsts:
        return None
    every = [results for row in timed for results in row]
    text = (
        "{:.1f} h of training ({:.1f} h by each run's fastest epoch) and "
        "{:.1f} h of attacks"
    )
    return (
        f"One seed of {len(firsts)} rows took {text.format(*hours(firsts))}; "
        f"all {len(every)} cells {text.format(*hours(every))}."
    )


def latex(found, paper):
    """Returns the table in LaTeX, with booktabs.

    Args:
        found: the result of `summaries`.
        paper: the paper's figures by row, of `Preset`.
    """
    heads = ["row", "seeds", *map(head, columns_of(found))]
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        " & ".join(heads).replace("_", "\\_") + " \\\\",
        "\\midrule",
    ]
    for row, *texts in _body(found, paper, "$\\pm$"):
        name = row.replace("_", "\\_")
        lines.append(" & ".join([name, *map(str, texts)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def comma_separated(found, paper):
    """Returns the table as CSV: a line a row and column.

    Args:
        found: the result of `summaries`.
        paper: the paper's figures by row, of `Preset`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["row", "column", "mean", "standard_deviation", "seeds", "paper"]
    )
    for row, cells in found.items():
        for column in columns_of(found):
            if column in cells:
                mean, spread, count = cells[column]
                known = row in paper and column in COLUMNS
                figure = paper[row][COLUMNS.index(column)] if known else ""
                deviation = "" if spread is None else f"{spread:.4f}"
                writer.writerow(
                    [row, head(column), f"{mean:.4f}", deviation, count, figure]
                )
    return text.getvalue().rstrip("\n")


def beside_autoattack(cells, attack="malt"):
    """Returns a line that compares an attack with AutoAttack, cell by cell.

    Args:
        cells: the result of `sweep_results.collect`.
        attack: name of the attack.

    Returns:
        The line, or None where no cell was attacked by both.
    """
    pairs = [
        (result, results[attack, *column[1:]])
        for by_seed in cells.values()
        for results in by_seed.values()
        for column, result in results.items()
        if column[0] == "autoattack" and (attack, *column[1:]) in results
    ]
    if not pairs:
        return None
    gaps = [100 * (other.value - one.value) for one, other in pairs]
    apart = [gap for gap in gaps if gap]
    text = (
        f"{ATTACKS.get(attack, attack)} leaves as many images as AutoAttack in "
        f"{len(gaps) - len(apart)} of {len(gaps)} attacks"
    )
    if apart:
        text += (
            f"; the others differ by {min(apart):+.1f} to {max(apart):+.1f} "
            "points"
        )
    text += "."
    if all(result.seconds for pair in pairs for result in pair):
        one, other = (
            sum(r.seconds for r in part) for part in zip(*pairs, strict=True)
        )
        text += f" It takes {other / one:.2f} of the time."
    return text


def by_suffix(cells, paper, base="st", caption=None):
    """Returns all tables, by the suffix of their files: md, csv and tex.

    Args:
        cells: the result of `sweep_results.collect`.
        paper: the paper's figures by row, of `Preset`.
        base: the row that `differences` compares with.
        caption: a line about the paper's figures, or None.
    """
    found = summaries(cells)
    texts = [
        accuracies(found, paper),
        caption,
        test_images(cells),
        beside_autoattack(cells),
        computing(cells),
        differences(cells, base),
    ]
    return {
        "md": "\n\n".join(filter(None, texts)),
        "csv": comma_separated(found, paper),
        "tex": latex(found, paper),
    }


def differences(cells, base="st"):
    """Compares each row with another, seed by seed, as Markdown.

    A seed chooses images and initial weights of both, so the differences are
    paired: mean and 95 % interval by Student's t over the seeds. Of a single
    seed the interval is that of the test images, as if the two rows had been
    tested on different ones, and does not cover other seeds.

    Args:
        cells: the result of `sweep_results.collect`.
        base: the other row.

    Returns:
        The table and a line on it, or None where no row shares a seed.
    """
    against = cells.get(base, {})
    present = {c for results in against.values() for c in results}
    columns = [
        c for c in columns_of({base: present}) if len(c) == 3 or c == NATURAL
    ]
    rows = []
    for row, by_seed in cells.items():
        if row == base or not set(by_seed) & set(against):
            continue
        pairs = [(by_seed[s], against[s]) for s in against if s in by_seed]
        texts = [_difference(pairs, column) for column in columns]
        rows.append([f"`{row}`", len(pairs), *texts])
    heads = [f"minus {base}", "seeds", *map(head, columns)]
    if not rows:
        return None
    return f"{markdown(heads, rows)}\n\n{_INTERVALS}"


_INTERVALS = (
    "In points, with 95 % intervals: over the seeds, paired, by Student's t; "
    "where there is one seed, of the test images alone, not paired."
)


def _difference(pairs, column):
    """Returns mean and interval of a difference as text, in points."""
    pairs = [
        (one[column], other[column])
        for one, other in pairs
        if column in one and column in other
    ]
    gains = [100 * (one.value - other.value) for one, other in pairs]
    if len(gains) > 1:
        error = statistics.stdev(gains) / len(gains) ** 0.5
        half = scipy.stats.t.ppf(0.975, len(gains) - 1) * error
    elif gains and all(cell.interval for cell in pairs[0]):
        half = math.hypot(*(_half(cell) for cell in pairs[0]))
    else:
        return ""
    mean = statistics.mean(gains)
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def _half(cell):
    """Returns the half of the width of a cell's interval, in points."""
    low, high = cell.interval
    return 50 * (high - low)
