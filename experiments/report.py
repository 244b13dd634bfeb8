r"""Runs side by side, on one HTML page that needs no network.

  python -m experiments.report runs/ --output=report.html

takes folders of runs of `tfsam.run`, or folders that hold such folders. An
evaluation of a run's network, in a folder below the run's or anywhere else in
those given, is shown with the run.
"""

import sys

from absl import flags

from experiments import command
from tfsam.reports import page

FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", "report.html", "The page.", FLAGS)


def main(*folders):
    """Writes the page."""
    count = page.write(folders, _OUTPUT.value)
    print(f"{_OUTPUT.value}: {count} {'run' if count == 1 else 'runs'}")


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
