"""The tables of a sweep: Markdown, CSV and LaTeX, and rows against a row.

Everything here is a function of what `sweep.collect` finds.
"""

import csv
import io
import statistics

import scipy.stats

from experiments.sweep import COLUMNS
from experiments.sweep import NATURAL


def statistics_of(cells):
    """(mean, standard deviation or None, count) of each row and column.

    Args:
        cells: of `collect`.

    Returns:
        A dict from row to a dict from column; accuracies in percent.
    """
    found: dict = {}
    for row, by_seed in cells.items():
        columns = {c for values in by_seed.values() for c in values}
        found[row] = {}
        for column in columns:
            scale = 1 if column == ("minutes",) else 100
            values = [
                scale * v[column]
                for v in by_seed.values()
                if v.get(column) is not None
            ]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                found[row][column] = (
                    statistics.mean(values),
                    spread,
                    len(values),
                )
    return found


def columns_of(found):
    """The columns that any row has, in the table's order."""
    present = {column for row in found.values() for column in row}
    others = sorted(c for c in present if len(c) == 3 and c not in COLUMNS)
    last = [c for c in (("fitted",), ("minutes",)) if c in present]
    return [*(c for c in COLUMNS if c in present), *others, *last]


_HEADS = {
    NATURAL: "natural",
    ("fitted",): "on training images",
    ("minutes",): "training, minutes",
}
_ATTACKS = {"cleverhans_pgd": "PGD-10", "autoattack": "AutoAttack"}
_NORMS = {"linf": "l-inf", "l2": "l2"}


def head(column):
    """A column's title."""
    if column in _HEADS:
        return _HEADS[column]
    attack, norm, epsilon = column
    return f"{_ATTACKS.get(attack, attack)} {_NORMS[norm]} {epsilon}"


def _cell_text(cell, plus_minus):
    if cell is None:
        return ""
    mean, spread, _ = cell
    text = f"{mean:.1f}"
    return text if spread is None else f"{text} {plus_minus} {spread:.1f}"


def _body(found, paper, plus_minus, beside):
    """Rows of texts: name, seeds, cells with the paper's figures beside."""
    columns = columns_of(found)
    for row, cells in found.items():
        if not cells:
            continue
        texts = []
        for column in columns:
            text = _cell_text(cells.get(column), plus_minus)
            if row in paper and column in COLUMNS:
                text += beside.format(paper[row][COLUMNS.index(column)])
            texts.append(text)
        yield row, max(count for _, _, count in cells.values()), texts


def markdown(found, paper):
    """The table in Markdown; the paper's figure in parentheses.

    Args:
        found: of `statistics_of`.
        paper: the paper's figures by row, of `Preset`.
    """
    heads = ["row", "seeds", *map(head, columns_of(found))]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row, count, texts in _body(found, paper, "±", " ({})"):
        lines.append(f"| `{row}` | {count} | {' | '.join(texts)} |")
    return "\n".join(lines)


def latex(found, paper):
    """The table in LaTeX, with booktabs.

    Args:
        found: of `statistics_of`.
        paper: the paper's figures by row, of `Preset`.
    """
    heads = ["row", "seeds", *map(head, columns_of(found))]
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        " & ".join(heads).replace("_", "\\_") + " \\\\",
        "\\midrule",
    ]
    for row, count, texts in _body(found, paper, "$\\pm$", " ({})"):
        name = row.replace("_", "\\_")
        lines.append(" & ".join([name, str(count), *texts]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def comma_separated(found, paper):
    """The table as CSV: a line a row and column.

    Args:
        found: of `statistics_of`.
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


def by_suffix(cells, paper):
    """All of them, by the suffix of their files: md, csv and tex.

    Args:
        cells: of `collect`.
        paper: the paper's figures by row, of `Preset`.
    """
    found = statistics_of(cells)
    paired = differences(cells) if "st" in cells else None
    return {
        "md": "\n\n".join(filter(None, [markdown(found, paper), paired])),
        "csv": comma_separated(found, paper),
        "tex": latex(found, paper),
    }


def differences(cells, base="st"):
    """Each row against another one, seed by seed, as a Markdown table.

    A seed chooses images and initial weights of both, so the differences are
    paired: mean and 95 % interval by Student's t over the seeds.

    Args:
        cells: of `collect`.
        base: the other row.

    Returns:
        The table, or None where no row shares two seeds with it.
    """
    columns = [c for c in COLUMNS if any(c in v for v in cells[base].values())]
    lines = []
    for row, by_seed in cells.items():
        seeds = sorted(set(by_seed) & set(cells[base]))
        if row == base or len(seeds) < 2:
            continue
        texts = []
        for column in columns:
            gains = [
                100 * (by_seed[s][column] - cells[base][s][column])
                for s in seeds
            ]
            mean = statistics.mean(gains)
            error = statistics.stdev(gains) / len(gains) ** 0.5
            half = scipy.stats.t.ppf(0.975, len(gains) - 1) * error
            texts.append(
                f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
            )
        lines.append(f"| `{row}` | {len(seeds)} | {' | '.join(texts)} |")
    if not lines:
        return None
    heads = [f"minus {base}", "seeds", *map(head, columns)]
    rule = "|---" * len(heads) + "|"
    return "\n".join([f"| {' | '.join(heads)} |", rule, *lines])
