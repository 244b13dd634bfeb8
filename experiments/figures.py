"""The style of the experiments' figures: small, reproducible SVG files."""

import collections

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullLocator
from matplotlib.ticker import StrMethodFormatter

from tfsam.support import files

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    # The same figure is the same file.
    "svg.hashsalt": "tfsam",
}

# Okabe and Ito's colours, which differ for the colour-blind, too.
INK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, RED, PINK, GREY = "#0072b2", "#d55e00", "#cc79a7", "#999999"
_COLOURS = (INK, SKY, BLUE, PINK, GREEN, GREY, ORANGE, RED)


def styles(names, triangles):
    """Returns a marker and a colour for each name.

    Args:
        names: the names to draw.
        triangles: the names drawn as triangles; the others are circles.

    Returns:
        A dict from name to (marker, colour). Circles take the colours from the
        front, triangles from the back.
    """
    found, counts = {}, {"^": 0, "o": 0}
    for name in names:
        marker = "^" if name in triangles else "o"
        palette = _COLOURS[::-1] if marker == "^" else _COLOURS
        found[name] = marker, palette[counts[marker] % len(palette)]
        counts[marker] += 1
    return found


def labels(names):
    """Returns the names of rows, without settings where that is unambiguous.

    Args:
        names: names of rows of `experiments.table1`.

    Returns:
        A dict from name to label.
    """
    methods = {name: name.partition(":")[0] for name in names}
    alone = collections.Counter(methods.values())
    return {n: m if alone[m] == 1 else n for n, m in methods.items()}


def logarithmic(axes):
    """Makes the x axis logarithmic, with plain numbers.

    Args:
        axes: Matplotlib axes with all curves.
    """
    axes.set_xscale("log")
    lowest, highest = axes.get_xlim()
    subs = (1, 2, 5) if highest > 8 * lowest else (1, 2, 3, 5, 7)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def draw(function, path, rows=1, columns=1, *, width=3.2, height=2.6):
    """Draws a figure into an SVG file, in the common style.

    Args:
        function: takes an array (rows, columns) of axes, and the figure.
        path: path of the file.
        rows: number of rows of panels.
        columns: number of columns of panels.
        width: width of a panel, in inches.
        height: height of a panel, in inches.
    """
    with rc_context(_STYLE):
        # A figure of its own, not pyplot's: no window system, no global state.
        figure = Figure(
            figsize=(width * columns, height * rows), layout="constrained"
        )
        FigureCanvasSVG(figure)
        function(figure.subplots(rows, columns, squeeze=False), figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
