"""The runs of a sweep, a process for each, and copies of their small files."""

import shutil
import signal
import subprocess
import sys

from experiments import sweep_cells
from tfsam.runs import workdirs
from tfsam.support import files
from tfsam.support import signals


def run_cells(preset, cells, workdir, extra=(), kept=None):
    """Runs the unfinished runs of some cells, a process for each.

    Args:
        preset: a `sweep_presets.Preset`.
        cells: the result of `sweep_cells.in_order`.
        workdir: folder of the sweep.
        extra: more flags of `tfsam.run`.
        kept: see `keep`, called after each run; None calls nothing.

    Returns:
        The folders of the runs that failed.

    Raises:
        SystemExit: with a run's exit code, if a signal ended it.
        ValueError: if a folder holds a run that is not of the sweep.
    """
    failed = []
    for number, (row, seed, attacked) in enumerate(cells):
        folder = sweep_cells.cell_folder(workdir, row, seed)
        runs = sweep_cells.commands(
            preset, row, seed, folder, attacked=attacked, extra=extra
        )
        for run_folder, arguments in runs:
            note = f"cell {number + 1} of {len(cells)}"
            code = run(run_folder, arguments, note)
            if code in _INTERRUPTED:
                raise SystemExit(code)
            if code:
                failed.append(run_folder)
                break
            if kept:
                keep(workdir, kept)
    return failed


def run(folder, arguments, note="run"):
    """Runs `tfsam.run` in a process, unless its run is finished.

    Args:
        folder: folder of the run.
        arguments: flags of `tfsam.run` without --workdir.
        note: beginning of the line that announces it.

    Returns:
        The exit code, 0 for a finished run.

    Raises:
        ValueError: if the folder holds a run of other settings.
    """
    # A killed sweep may have left a running process behind.
    workdirs.wait_until_free(folder, _say)
    if sweep_cells.finished(folder, arguments):
        return 0
    command = [*arguments, f"--workdir={folder}"]
    _say(f"{note}: {' '.join(['python -m tfsam.run', *command])}")
    code = _run(command)
    if code and code not in _INTERRUPTED:
        _say(f"failed with exit code {code}: {folder}")
    return code


def _say(line):
    print(line, flush=True)


# Exit codes of a run that a signal ended, with its checkpoint.
_INTERRUPTED = [128 + number for number in signals.SIGNALS]


def _run(arguments):
    """Returns the exit code of `tfsam.run`, passing signals on to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tfsam.run", *arguments],
        # Otherwise it would get the terminal's signals twice.
        start_new_session=True,
    )

    def pass_on(number, frame):
        process.send_signal(number)

    before = {
        number: signal.signal(number, pass_on)
        for number in signals.SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        code = process.wait()
        # Negative if the signal came before the run's handler was installed.
        return 128 - code if code < 0 else code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_KEPT = ("results.json", "flatness.json", "margins.json", "history.csv")


def keep(workdir, folder):
    """Copies the small files of finished runs.

    Args:
        workdir: folder of the sweep.
        folder: where to; the layout is the same.
    """
    for name in _KEPT:
        for path in sorted(workdir.rglob(name)):
            if not (path.parent / "results.json").exists():
                continue
            target = folder / path.relative_to(workdir)
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(target) as temporary:
                shutil.copyfile(path, temporary)
