"""A filter for the lines that TensorFlow prints while it is imported.

TensorFlow's C++ code writes several lines of information to file descriptor 2
before its log level takes effect, so that no setting of TensorFlow or absl
silences them. They would bury the first lines of the command line.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

# The absl warning, lines of severity I and W in both of TensorFlow's formats,
# the second line of the note on CPU instructions, and the complaints of a
# build with CUDA, logged as errors, that a library registers itself twice.
_BANNER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} \d\d:\d\d:"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] "
    rb"|To enable the following instructions: "
    rb"|E\d{4} .*Unable to register cu\w+ factory"
)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Removes TensorFlow's banner from standard error within the context.

    Every other line is passed on, by a process of its own: a line is printed
    even if this process crashes during the import. Nothing is filtered where
    TensorFlow is imported already, or where the environment variable
    TF_CPP_MIN_LOG_LEVEL requests its log.
    """
    wanted = os.environ.setdefault(_LEVEL, "3") != "3"
    if wanted or "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        _pass_on(reader, kept)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)  # Closes the pipe, which ends the child.
        os.close(kept)
        os.waitpid(child, 0)


def _pass_on(reader: int, target: int) -> None:
    """Copies all lines but the banner's, and ends the process."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    try:
        with open(reader, "rb") as lines, open(target, "wb", 0) as output:
            for line in lines:
                if not _BANNER.match(line):
                    output.write(line)
    finally:
        os._exit(0)
