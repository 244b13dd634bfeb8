"""The command line as `python -m tfsam`."""

import sys

from tfsam.run import main

if __name__ == "__main__":
    sys.exit(main())
