"""The command line: `tfsam`, `python -m tfsam` and `python -m tfsam.run`.

`tfsam --help` describes it. TensorFlow is imported once the flags are found to
be well-formed, so that help and mistyped flags are answered at once.
"""

import contextlib
import os
import pathlib
import signal
import sys
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from tfsam.runs import command_line
from tfsam.runs import help
from tfsam.runs import settings
from tfsam.support import files
from tfsam.support import import_noise
from tfsam.support import signals

# Exit codes beside 0; a signal's is 128 plus its number.
BAD_INPUT = 2
NOT_FINITE = 3
DISK_FULL = 4
WORKER_LOST = 5
ATTACK_FAILED = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments, without the program's name; None takes `sys.argv`.

    Returns:
        The exit code: 0; 2 for bad input or a damaged file of the run; 3 for a
        loss that became NaN; 4 for a full disk; 5 for a worker that was lost;
        6 for an attack that failed; 130 and 143 for SIGINT and SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["report"]:
            return _report(argv[1:])
        with contextlib.ExitStack() as held:
            held.enter_context(_warnings_in_one_line())
            chosen = _parsed(argv)
            if chosen is None:
                return 0
            stop = held.enter_context(signals.handled())
            return _main(chosen, argv, stop, held)
    except _Rejected as error:
        return _fail(error, BAD_INPUT)
    except KeyboardInterrupt as error:
        return _fail("interrupted", getattr(error, "code", 130))
    except BrokenPipeError:
        # The reader of the output, such as `head`, has ended. The interpreter
        # must not fail at flushing the output at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except files.Unusable as error:
        # A file of the run is damaged, which is not a fault of the program.
        return _fail(error, BAD_INPUT)
    except Exception as error:
        if files.no_room(error) is None:
            raise
        return _fail(
            f"{error}; with more room the same command resumes", DISK_FULL
        )


class _Rejected(Exception):
    """The command line cannot be run."""


def _fail(error: object, code: int) -> int:
    """Prints an error in one line, and returns the exit code."""
    print(f"tfsam: {' '.join(str(error).split())}", file=sys.stderr)
    return code


_Chosen = settings.Settings | settings.Merge | settings.Inspection


def _parsed(argv: Sequence[str]) -> _Chosen | None:
    """Returns the settings of a command line, None where it was answered.

    Args:
        argv: the arguments, without the program's name.

    Raises:
        _Rejected: if they are not well-formed, or a part cannot be imported.
    """
    try:
        with import_noise.silenced():
            given = command_line.parse(argv)
            text = help.answer(given)
            if text is not None:
                print(text)
                return None
            if "merge" not in given.values:
                settings.named(given)  # Rejects mistyped names at once.
            import tfsam.public  # noqa: F401 - TensorFlow, which is slow.

            return settings.from_flags(given)
    except (ImportError, ValueError) as error:
        raise _Rejected(error) from error


def _report(argv: Sequence[str]) -> int:
    """Runs `tfsam report`."""
    with import_noise.silenced():
        from tfsam.reports import command
    return command.main(argv)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Shows tfsam's own warnings like errors, and others unchanged."""
    show = warnings.showwarning
    ours = pathlib.Path(__file__).parent

    def show_ours(
        message: Any,
        category: Any,
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if pathlib.Path(filename).is_relative_to(ours):
            _fail(message, 0)
        else:
            show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show_ours
        yield


def _main(
    chosen: _Chosen,
    argv: Sequence[str],
    stop: signals.Stop,
    held: contextlib.ExitStack,
) -> int:
    """Runs what is chosen, and returns the exit code.

    Args:
        chosen: the settings.
        argv: the arguments that they were made from.
        stop: the signals that have arrived.
        held: a stack of contexts that are left when the run ends.
    """
    from tfsam.runs import session

    try:
        if isinstance(chosen, settings.Merge):
            session.merge(chosen)
            return 0
        if isinstance(chosen, settings.Inspection):
            session.inspect(chosen)
            return 0
        inputs = session.begin(chosen, stop, held)
    except (ImportError, OSError, ValueError) as error:
        if files.no_room(error):
            raise
        lost = isinstance(error, session.WorkerLost)
        return _fail(error, WORKER_LOST if lost else BAD_INPUT)
    if inputs is None:  # It is finished.
        return _robustbench(chosen, print)
    log = session.logger(chosen, inputs)
    try:
        attacked = session.run(chosen, argv, inputs, log, stop)
    except FloatingPointError as error:
        log(f"stopped: {error}; {session.kept(chosen)}")
        return NOT_FINITE
    except ConnectionError as error:
        log(f"stopped: {error}; the same command on all workers resumes")
        return WORKER_LOST
    except KeyboardInterrupt as error:
        log("interrupted; the same command resumes from here")
        return getattr(error, "code", 130)
    if not attacked:
        return ATTACK_FAILED
    return _robustbench(chosen, log) if session.leads(inputs) else 0


def _robustbench(chosen: settings.Settings, log: Callable[[str], None]) -> int:
    """Writes the file of --robustbench, if any, and returns the exit code."""
    from tfsam.runs import session

    try:
        for line in session.robustbench(chosen):
            log(line)
    except (OSError, ValueError) as error:
        if files.no_room(error):
            raise
        return _fail(error, BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
