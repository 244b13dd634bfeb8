"""Whose a run's folder is: which run's, and which process's.

A folder holds one run, that of its config.json. To go on with it is to want
the same run, in one process at a time, and in all workers of a cluster.
"""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import time

from tfsam import data
from tfsam import reports
from tfsam.support import devices
from tfsam.support import files
from tfsam.support import signals
from tfsam.training import checkpoints

# What runs did before there was a flag for it: those of an older tfsam go on.
_BEFORE = {"precision": "float32", "strategy": "auto"}

# What a run may change when it goes on: the results are the same.
UNBOUND = ("cache_dir", "checkpoint_steps")


def finished(workdir, config):
    """The results of the run that a folder holds, None if it has none yet.

    Args:
        workdir: the folder; it need not exist.
        config: settings, as of `tfsam.run.configuration`.

    Raises:
        ValueError: if the folder holds another run or other files, or its
            results.json is broken.
    """
    held = files.read_json(workdir / "config.json")
    if held:
        # Runs of an older tfsam have some of the files alone.
        wanted = config | (_inputs if "inputs" in held else _files)(config)
        # Not of a setting that a run by --evaluate has no use for.
        before = {k: v for k, v in _BEFORE.items() if wanted.get(k)}
        held = before | held
        changes = ", ".join(
            [
                f"{key}={wanted[key]} (it has {held.get(key)})"
                for key in wanted
                if key not in (*UNBOUND, "inputs")
                and held.get(key) != wanted[key]
            ]
            + _changed_inputs(held, wanted)
        )
        if changes:
            raise ValueError(
                f"workdir {workdir} holds a run with another configuration; "
                f"choose another --workdir. Received: {changes}"
            )
        results = reports.read(workdir / "results.json")
        # What failed is tried again; what was measured is kept.
        return None if results is None or _failed(results) else results
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


def agree(workdir, config, strategy, stop):
    """Waits for all workers, and finds whether they want the same run.

    A signal that one of them was sent until now stops all of them; a signal
    that comes later does so in training, after a step.

    Args:
        workdir: the folder, seen by `finished`.
        config: settings, as of `tfsam.run.configuration`.
        strategy: a `tf.distribute` strategy or None.
        stop: a `tfsam.support.signals.Stop`.

    Raises:
        ConnectionError: if another worker was lost.
        ValueError: if the workers do not all want the same run of one folder.
        tfsam.support.signals.Stopped: if a worker was asked to stop.
    """
    found = checkpoints.newest_first(workdir / "checkpoints")
    newest = {"checkpoint": [position for position, _ in found[:1]]}
    bound = {k: v for k, v in config.items() if k not in UNBOUND}
    with devices.losing_workers(strategy):
        devices.check_agreement(strategy, bound | newest)
        signum = devices.asked_to_stop(strategy, stop)
    if signum:
        raise signals.Stopped(signum)
    if devices.workers(strategy) == 1:
        stop.release()


@contextlib.contextmanager
def locked(workdir):
    """Within, the folder, which is made, is this process's alone.

    The lock is the kernel's and ends with the process, however that ends; the
    file, WORKDIR/lock, says who held it last.

    Args:
        workdir: the folder.

    Raises:
        ValueError: if another process has it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "lock"
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"workdir {workdir} is in use by {_who(path)}. "
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


def wait_until_free(workdir, say):
    """Returns once no process has the folder; at once where none does.

    Args:
        workdir: the folder; it need not exist.
        say: called with a line before a wait.
    """
    path = workdir / "lock"
    if not path.exists():
        return
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {_who(path)}, who has {workdir}")
            fcntl.flock(file, fcntl.LOCK_SH)


def _who(path):
    """Who has a lock, by its file."""
    holder = files.read_json(path)
    if not holder:  # It was taken this moment.
        return "another process"
    return "pid {pid} on host {host} since {since}".format(**holder)


def claim(workdir, config):
    """Makes the folder, and writes into it what run it holds.

    Args:
        workdir: the folder, seen by `finished`.
        config: settings, as of `tfsam.run.configuration`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    for folder in list(workdir.glob("**/")):
        for path in files.leftovers(folder):
            files.remove(path)
    files.write_json(workdir / "config.json", config | _inputs(config))


def _inputs(config):
    """Describes the files that a configuration names: data and models.

    Other files in the same place are another run. What is gone is not
    described: the results of a finished run can be shown without its inputs.
    """
    found = {"dataset": data.listing(config["dataset"])}
    for key in ("evaluate", "surrogate"):
        path = config[key] and files.expanded(config[key])
        if path and path.exists():
            found[key] = files.listing(files.entries(path))
    return {"inputs": {k: v for k, v in found.items() if v is not None}}


def _changed_inputs(held, wanted):
    """Says which inputs are not those that a run began with."""
    before = held.get("inputs")
    if not isinstance(before, dict):
        return []
    return [
        f"files of {key}={found} (it has {before.get(key)})"
        for key, found in wanted["inputs"].items()
        if found != before.get(key)
    ]


def _files(config):
    """Size and time of files that a configuration names, as 0.1.0 kept them."""
    kind, _, path = config["dataset"].partition(":")
    named = [
        *(config["evaluate"], config["surrogate"]),
        path if kind == "npz" else None,
    ]
    found = {}
    for name in filter(None, named):
        path = files.expanded(name)
        for file in [path, path / "saved_model.pb"]:
            if file.is_file():
                stat = file.stat()
                found[str(file)] = [stat.st_size, stat.st_mtime_ns]
    return {"files": found} if found else {}


def _failed(results):
    return any("error" in row for row in results["robust"])
