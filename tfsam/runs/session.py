"""One run from its settings to its results, with the text that it prints."""

import contextlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam import reports
from tfsam.runs import attacked
from tfsam.runs import fit
from tfsam.runs import inspected
from tfsam.runs import log_lines
from tfsam.runs import stages
from tfsam.runs import versions
from tfsam.runs import workdirs
from tfsam.runs.settings import Inspection
from tfsam.runs.settings import Merge
from tfsam.runs.settings import Settings
from tfsam.support import devices
from tfsam.support import signals
from tfsam.support.devices import WorkerLost

__all__ = [
    "WorkerLost",
    "begin",
    "inspect",
    "kept",
    "leads",
    "logger",
    "merge",
    "robustbench",
    "run",
]


def merge(chosen: Merge) -> None:
    """Merges shards, and prints the table of the whole."""
    results = stages.merge(chosen.folders, chosen.workdir)
    print(reports.table(results))
    for words in log_lines.corruptions(results):
        print(words)


def inspect(chosen: Inspection) -> None:
    """Looks at a model, and prints what it is.

    Raises:
        ValueError: if it cannot be read, or does not fit the images.
    """
    settings = chosen.settings
    models = attacked.opened(settings)
    examples = None
    if chosen.on_data:
        images = stages.load_images(settings, models)
        models = attacked.with_weights(settings, models, images)
        examples = attacked.examples(settings, images)
    found = attacked.examined(settings, models, examples)
    print(inspected.table(found, chosen.texts))


def begin(
    settings: Settings, stop: signals.Stop, held: contextlib.ExitStack
) -> stages.Inputs | None:
    """Checks all inputs of a run, and then claims its folder.

    Everything that can be wrong with the input is found before a file is
    written; a later error is not a fault of the input.

    Args:
        settings: the settings of the run.
        stop: the signals that have arrived.
        held: a stack of contexts, which takes the lock of the folder.

    Returns:
        The inputs; None where the run is finished and its table is printed.

    Raises:
        OSError, ValueError: if an input is missing, wrong, or does not fit.
        ConnectionError: if another worker was lost.
    """
    if _is_finished(settings):
        return None
    if devices.cluster_size() > 1:
        stop.hold()  # Until training ends: see `workdirs.agree`.
    inputs = stages.prepare(settings)
    workdirs.agree(settings, inputs.strategy, stop)
    if devices.is_chief(inputs.strategy):
        held.enter_context(workdirs.locked(settings.workdir))
        # Another process may have been at work here until now.
        if _is_finished(settings):
            return None
        workdirs.claim(settings, inputs.images.class_names)
    return inputs


def _is_finished(settings: Settings) -> bool:
    """Returns whether the folder holds this run, finished; prints its table."""
    results = workdirs.finished(settings)
    if results is None:
        return False
    print(f"{settings.workdir} holds this run, finished:")
    print(reports.table(results))
    for words in log_lines.corruptions(results):
        print(words)
    if line := versions.warning(settings, results):
        print(line)
    return True


def leads(inputs: stages.Inputs) -> bool:
    """Returns whether this process writes the files of the run."""
    return devices.is_chief(inputs.strategy)


def robustbench(settings: Settings) -> list[str]:
    """Writes the file of --robustbench, from a finished run's results.

    Args:
        settings: The settings of the run.

    Returns:
        Lines for the log; none without the flag.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the results have no row of standard AutoAttack.
    """
    if settings.robustbench is None:
        return []
    results = reports.read(settings.workdir / "results.json") or {}
    return reports.write_robustbench(results, settings.robustbench)


def logger(settings: Settings, inputs: stages.Inputs) -> Callable[[str], None]:
    """Returns the function that prints a line and adds it to log.txt."""
    return stages.logger(settings.workdir / "log.txt", inputs.strategy)


def kept(settings: Settings) -> str:
    """Returns what a run that must stop has kept, in words."""
    epochs = fit.epochs_done(settings.workdir)
    if epochs:
        return f"the checkpoint of epoch {epochs} is kept"
    return "no epoch was finished"


def run(
    settings: Settings,
    argv: Sequence[str],
    inputs: stages.Inputs,
    log: Callable[[str], None],
    stop: signals.Stop,
) -> bool:
    """Runs all stages, and prints the results.

    Args:
        settings: the settings of the run, whose folder is claimed.
        argv: the command line, for the log.
        inputs: the inputs of the run.
        log: a function of a line of text.
        stop: the signals that have arrived.

    Returns:
        Whether every attack gave a result.

    Raises:
        ConnectionError: if another worker was lost.
        FloatingPointError: if the loss became NaN.
        tfsam.support.signals.Stopped: if a signal has arrived.
    """
    images = len(inputs.images.x_train)
    opening = log_lines.opening(settings, argv, images)
    for line in [*opening, *inputs.images.notes, *inputs.notes]:
        log(line)
    for line in attacked.lines(inputs.logits, inputs.surrogate):
        log(line)
    results = stages.run(settings, inputs, log, stop)
    if results is None:
        return True
    print(reports.table(results))
    for line in log_lines.corruptions(results):
        log(line)
    return _close(settings, results, log)


def _close(
    settings: Settings,
    results: Mapping[str, Any],
    log: Callable[[str], None],
) -> bool:
    """Prints the end of a run; returns whether every attack gave a result."""
    for line in log_lines.closing(settings, results):
        print(line)
    failure = log_lines.failure(results)
    log(failure or f"done: {settings.workdir / 'results.json'}")
    return failure is None
