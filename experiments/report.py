"""The command `tfsam report` under the name that it had in 0.1.0."""

import sys

from tfsam.reports.command import main

if __name__ == "__main__":
    sys.exit(main())
