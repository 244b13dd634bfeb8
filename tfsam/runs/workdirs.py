"""The folder of a run: its identity, its lock and its files.

A folder holds one run, whose settings are in its config.json. To resume it, a
command must ask for the same run, in one process at a time, and in all workers
of a cluster.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam import data
from tfsam import registries
from tfsam import reports
from tfsam.runs import flag_types
from tfsam.runs.artifacts import ARTIFACTS
from tfsam.runs.settings import GROWING
from tfsam.runs.settings import OLDER
from tfsam.runs.settings import UNBOUND
from tfsam.runs.settings import Settings
from tfsam.runs.training_settings import Training
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import checkpoints


def finished(settings: Settings) -> dict[str, Any] | None:
    """Returns the results of the run in a folder, None if it has none yet.

    Args:
        settings: the settings of the run that is wanted; its folder need not
            exist.

    Raises:
        ValueError: if the folder holds another run or other files, or its
            results.json is damaged.
    """
    workdir = settings.workdir
    held = files.read_json(workdir / "config.json")
    if held:
        if settings.overwrite:
            _check_inputs_outside(settings)
            return None
        _check_same_run(settings, held)
        results = reports.read(workdir / "results.json")
        # An attack that failed is tried again; other results are kept.
        if (
            results is None
            or failed(results)
            or _asks_for_more(settings, results)
        ):
            return None
        return results
    if workdir.exists() and not (
        workdir.is_dir()
        and set(workdir.iterdir())
        <= {workdir / "lock", *files.temporaries(workdir)}
    ):
        raise ValueError(
            "workdir must be an empty folder or hold a run of this command. "
            f"Received: workdir={workdir}"
        )
    return None


def _asks_for_more(settings: Settings, results: Mapping[str, Any]) -> bool:
    """Returns whether results are of other attacks or epsilons than wanted."""
    measured = OLDER | (results.get("config") or {})
    return settings.grows and any(
        measured.get(key) != value
        for key, value in settings.config().items()
        if key in GROWING and key in measured
    )


def _check_same_run(settings: Settings, held: Mapping[str, Any]) -> None:
    """Raises a ValueError that names each difference to the run in a folder.

    Args:
        settings: the settings of the run that is wanted.
        held: the config.json of the folder.
    """
    # Runs of an older tfsam describe some of the files alone.
    describe = _inputs if "inputs" in held else _files
    wanted = settings.config() | describe(settings)
    # Not a setting that a run by --evaluate does not use.
    older = {k: v for k, v in OLDER.items() if wanted.get(k) is not None}
    held = older | dict(held)
    free = (*UNBOUND, *(GROWING if settings.grows else ()))
    settings_of = {
        key: value
        for key, value in wanted.items()
        if key not in (*free, "inputs", "files")
    }
    changed = {k: v for k, v in settings_of.items() if held.get(k) != v}
    words = [
        f"{key} is {_written(value)}, was {_written(held.get(key))}"
        for key, value in changed.items()
    ]
    received = [f"{key}={_written(value)}" for key, value in changed.items()]
    for name, now, before in _changed_inputs(held, wanted):
        words.append(f"{name} changed since: {now}; before: {before}")
        received.append(f"files that changed: {name}")
    if words:
        raise ValueError(
            f"workdir {settings.workdir} holds a run with another "
            f"configuration: {'; '.join(words)}. Choose another --workdir, or "
            "start again in this one with --overwrite. "
            f"Received: {', '.join(received)}"
        )


def _written(value: Any) -> str:
    """Returns the value of a setting as the command line takes it."""
    return "none" if value is None else flag_types.written(value)


def _check_inputs_outside(settings: Settings) -> None:
    """Rejects --overwrite where it would remove a model that is needed."""
    workdir = settings.workdir.resolve()
    named = {
        flag: files.expanded(path)
        for flag in ("evaluate", "surrogate")
        if (path := getattr(settings, flag))
    }
    if settings.training:
        named |= _trained_files(settings.training)
    for flag, path in named.items():
        if path.resolve().is_relative_to(workdir):
            raise ValueError(
                f"--overwrite removes the run in {settings.workdir}, and with "
                f"it the model; choose another --workdir. Received: "
                f"{flag}={path}"
            )


def agree(settings: Settings, strategy: Any, stop: signals.Stop) -> None:
    """Waits for all workers, and checks that they have the same run.

    A signal that one of them has received by now stops all of them; a signal
    that arrives later does so in training, after a step.

    Args:
        settings: the settings of the run.
        strategy: a `tf.distribute` strategy or None.
        stop: the signals that this process has received.

    Raises:
        ConnectionError: if another worker was lost.
        ValueError: if the workers have different runs or folders.
        tfsam.support.signals.Stopped: if a worker has received a signal.
    """
    found = checkpoints.newest_first(settings.workdir / "checkpoints")
    newest = {"checkpoint": [position for position, _ in found[:1]]}
    config = settings.config()
    bound = {k: v for k, v in config.items() if k not in UNBOUND}
    with devices.losing_workers(strategy):
        devices.check_agreement(strategy, bound | newest)
        signum = devices.asked_to_stop(strategy, stop)
    if signum:
        raise signals.Stopped(signum)
    if devices.workers(strategy) == 1:
        stop.release()


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Locks a folder, which is made, for this process within the context.

    The kernel releases the lock when the process ends, however it ends; the
    file WORKDIR/lock describes the last holder.

    Args:
        workdir: the folder.

    Raises:
        ValueError: if another process has locked it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "lock"
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"workdir {workdir} is in use by {_holder(path)}. "
                f"Received: workdir={workdir}"
            ) from None
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join(sys.orig_argv),
        }
        file.truncate(0)
        with files.writing(path):
            file.write(json.dumps(holder, indent=2) + "\n")
            file.flush()
        yield


def wait_until_free(workdir: pathlib.Path, say: Callable[[str], None]) -> None:
    """Waits until no process has locked the folder.

    Args:
        workdir: the folder; it need not exist.
        say: called with a line of text before a wait.
    """
    path = workdir / "lock"
    if not path.exists():
        return
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {_holder(path)}, who has {workdir}")
            fcntl.flock(file, fcntl.LOCK_SH)


def _holder(path: pathlib.Path) -> str:
    """Describes the process that holds a lock, by the lock's file."""
    holder = files.read_json(path)
    if not holder:  # The lock was taken this moment.
        return "another process"
    return "pid {pid} on host {host} since {since}".format(**holder)


def claim(settings: Settings, class_names: Sequence[str] = ()) -> None:
    """Makes the folder of a run, and writes its config.json.

    With --overwrite the files of the run before are removed first.

    Args:
        settings: the settings of the run, checked by `finished`.
        class_names: the names of the classes of its images.
    """
    workdir = settings.workdir
    workdir.mkdir(parents=True, exist_ok=True)
    if settings.overwrite:
        for artifact in ARTIFACTS:
            files.remove(workdir / artifact.name)
    for folder in list(workdir.glob("**/")):
        for path in files.leftovers(folder):
            files.remove(path)
    names = {"class_names": list(class_names)}
    content = settings.config() | names | _inputs(settings)
    files.write_json(workdir / "config.json", content)


def _inputs(settings: Settings) -> dict[str, Any]:
    """Describes the files of the data and the models, by kind.

    Other files in the same place are another run. A missing file is not
    described: the results of a finished run can be shown without its inputs.
    """
    found = {"dataset": data.listing(settings.dataset)}
    for key in ("evaluate", "surrogate", "class_order"):
        name = getattr(settings, key)
        path = name and files.expanded(name)
        if path and path.exists():
            found[key] = files.listing(files.entries(path))
    if settings.training and settings.training.mix:
        found["mix"] = data.listing(settings.training.mix)
    if settings.training:
        for key, path in _trained_files(settings.training).items():
            if path.exists():
                found[key] = f"SHA-256 {files.checksum(path)}"
    return {"inputs": {k: v for k, v in found.items() if v is not None}}


def _trained_files(training: Training) -> dict[str, pathlib.Path]:
    """Returns the files that training begins with, by their flags."""
    network = registries.network_file(training.network)
    weights = training.weights and files.expanded(training.weights)
    named = {"network": network, "weights": weights}
    return {flag: path for flag, path in named.items() if path}


# The inputs of a run in words.
_IN_WORDS = {
    "dataset": "the files of the data set",
    "evaluate": "the model file",
    "surrogate": "the surrogate's model file",
    "class_order": "the file of class names",
    "network": "the file of the network",
    "weights": "the file of weights",
    "mix": "the files of the images that are mixed in",
}


def _changed_inputs(
    held: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Returns (name, now, before) of each input that changed since a run."""
    if "inputs" not in wanted:  # A run of tfsam 0.1.0.
        now, kept = wanted.get("files"), held.get("files")
        return [] if now in (None, kept) else [("an input file", now, kept)]
    before = held.get("inputs")
    if not isinstance(before, dict):
        return []
    return [
        (_IN_WORDS[key], found, before.get(key))
        for key, found in wanted["inputs"].items()
        if found != before.get(key)
    ]


def _files(settings: Settings) -> dict[str, Any]:
    """Describes files as runs of tfsam 0.1.0 did: by their size and time."""
    kind, _, path = settings.dataset.partition(":")
    named = [
        *(settings.evaluate, settings.surrogate),
        path if kind == "npz" else None,
    ]
    found = {}
    for name in filter(None, named):
        expanded = files.expanded(name)
        for file in [expanded, expanded / "saved_model.pb"]:
            if file.is_file():
                stat = file.stat()
                found[str(file)] = [stat.st_size, stat.st_mtime_ns]
    return {"files": found} if found else {}


def failed(results: Mapping[str, Any]) -> bool:
    """Returns whether an attack failed.

    Args:
        results: the content of results.json.
    """
    return any("error" in row for row in results["robust"])
