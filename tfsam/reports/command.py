r"""Reports several runs on one HTML page that needs no network.

  tfsam report runs/ --output=report.html

Pass folders of runs, or folders that contain them. An evaluation of a run's
network is shown with the run, wherever below the given folders it is.
"""

import sys
from collections.abc import Sequence

from absl import flags

from tfsam.reports import page


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page that a command line describes.

    Args:
        argv: the arguments, without the program's name; None takes `sys.argv`.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    values = flags.FlagValues()
    flags.DEFINE_string(
        "output", "report.html", "The file to write.", flag_values=values
    )
    flags.DEFINE_boolean("help", False, "Print this help.", flag_values=values)
    values.set_gnu_getopt(True)  # Flags may follow the folders.
    try:
        arguments = sys.argv[1:] if argv is None else argv
        folders = values(["report", *arguments])[1:]
        if values.help:
            print(f"{__doc__}\n{values.get_help()}")
            return 0
        count = page.write(folders, values.output)
    except (flags.Error, OSError, ValueError) as error:
        print(f"report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    runs = "run" if count == 1 else "runs"
    print(f"{values.output}: {count} {runs}")
    return 0
