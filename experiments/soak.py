"""Runs that are killed at random moments, compared with undisturbed runs.

  python -m experiments.soak --workdir=runs/soak --kills=40 --seed=0

Each method of CASES runs once without a disturbance. Then its runs are killed
repeatedly, at a random moment of a random phase, and the same command is
started again, until `--kills` processes were killed. Each run that finishes is
compared with the undisturbed one: weights and verdicts bit for bit, history.csv
and results.json except for times, and the names of the files, all of which must
be readable. FAULTS lists the faults. A full disk is simulated by a limit on the
size of files (RLIMIT_FSIZE) of the running process.

The table is printed and written to WORKDIR/table.md. The exit code is 1 if a
run differs or a process exits in an unexpected way.
"""

import contextlib
import functools
import itertools
import pathlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from experiments import command
from tfsam.support import files
from tfsam.support.validators import check_count
from tfsam.training import checkpoints
from tfsam.training import monitoring

CASES = {
    "sam": ("--method=sam",),
    "at": ("--method=at", "--steps=2"),
    "looksam": ("--method=looksam",),
    "ema": ("--method=sam", "--average=ema"),
    "ssam": ("--method=ssam", "--refresh_every=20"),
}

SMALL = (
    *("--limit_train=320", "--batch_size=32", "--epochs=6"),
    *("--checkpoint_steps=7", "--limit_test=60", "--attack_batch_size=5"),
    *("--attacks=pgd,fgsm", "--attack_steps=50", "--l2_epsilons="),
)

# The exit codes that each may have. Before its own handler is installed, a
# process dies of the signal.
FAULTS = {
    "SIGKILL": (-signal.SIGKILL,),
    "SIGKILL, newest checkpoint cut in half": (-signal.SIGKILL,),
    "SIGTERM": (128 + signal.SIGTERM, -signal.SIGTERM),
    "full disk": (4,),
}
_AT_START = 0.1  # The share of faults at the start of a process.
# In bytes: absl writes to the folder of temporary files at import.
_ROOM = 16
_LONGEST = 10.0  # Seconds from SIGTERM to the end.
_MOST = 8  # Faults per run, so that all methods are tested.

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", "runs/soak", "Folder.", FLAGS)
_KILLS = flags.DEFINE_integer(
    "kills", 40, "Processes to end.", flag_values=FLAGS
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the moments.", flag_values=FLAGS
)


class Fault(NamedTuple):
    """A disturbance of a process, and its moment in seconds after a phase."""

    name: str
    phase: str
    seconds: float


class Row(NamedTuple):
    """The result of a process and its fault."""

    case: str
    fault: str
    phase: str
    moment: float  # Seconds after the process began.
    code: int
    seconds: float  # From the fault to the end.
    resumed: str  # Where the next process resumed.


class Process:
    """A run of `tfsam.run` under observation.

    Args:
        arguments: arguments of the command line.

    Attributes:
        phases: when each phase began, in seconds after the process.
        lines: its output.
    """

    def __init__(self, arguments):
        self.started = time.monotonic()
        self.phases = {"start": 0.0}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tfsam.run", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if "--workdir=" in line:
                self.phases["training"] = self.age()
            elif line.startswith("attacking in linf"):
                self.phases["evaluation"] = self.age()

    def age(self):
        """Returns the seconds since its start."""
        return time.monotonic() - self.started

    def wait(self):
        """Waits for its end; returns the exit code."""
        code = self.process.wait()
        self._reader.join()
        return code

    def reaches(self, fault):
        """Waits for a fault's moment; returns whether the process runs."""
        while self.process.poll() is None:
            began = self.phases.get(fault.phase)
            if began is not None and self.age() >= began + fault.seconds:
                return True
            time.sleep(0.005)
        return False

    def phase(self):
        """Returns its current phase."""
        return list(self.phases)[-1]


def draw(rng, spans, training):
    """Draws a random fault at a random moment.

    Args:
        rng: a `random.Random`.
        spans: seconds of each phase of a whole run.
        training: whether it is to be in training, or in the evaluation. Some
            are at the process's start.
    """
    phase = "training" if training else "evaluation"
    if rng.random() < _AT_START:
        phase = "start"
    # A resumed run has less work left than a whole one.
    seconds = rng.uniform(0, 0.6 * spans[phase])
    return Fault(rng.choice(list(FAULTS)), phase, seconds)


def strike(process, fault, workdir):
    """Applies a fault to a process and waits for its end.

    Args:
        process: a `Process` that reached the fault.
        fault: the `Fault`.
        workdir: the run's folder.

    Returns:
        (exit code, seconds that it took).
    """
    struck = time.monotonic()
    if fault.name == "full disk":
        limit = resource.RLIMIT_FSIZE
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(process.process.pid, limit)
            resource.prlimit(process.process.pid, limit, (_ROOM, hard))
    elif fault.name == "SIGTERM":
        process.process.terminate()
    else:
        process.process.kill()
    code = process.wait()
    seconds = time.monotonic() - struck
    found = checkpoints.newest_first(workdir / "checkpoints")
    if "checkpoint" in fault.name and found:
        path = found[0][1]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return code, seconds


_TIMES = {"seconds", "step_seconds_median", "examples_per_second", "workdir"}


def without_times(content):
    """Returns JSON without values that differ from run to run.

    Args:
        content: a dict, a list, or a value in one.
    """
    if isinstance(content, dict):
        return {
            key: without_times(value)
            for key, value in content.items()
            if key not in _TIMES
        }
    if isinstance(content, list):
        return [without_times(value) for value in content]
    return content


def _arrays(path):
    with np.load(path) as arrays:
        return {
            key: arrays[key]
            for key in arrays.files
            if key.rpartition("/")[2] not in _TIMES
        }


def _weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def _exported(path):
    reader = tf.train.load_checkpoint(str(path.with_suffix("")))
    # Keras writes each variable twice, the second time in a set's order.
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith("variables/")
    }


_READERS: dict[str, Any] = {
    ".csv": lambda path: without_times(monitoring.read_history(path)),
    ".index": _exported,
    ".json": lambda path: without_times(files.read_json(path)),
    ".keras": _weights,
    ".npz": _arrays,
    ".png": pathlib.Path.read_bytes,
}


def _training_state(workdir):
    """Returns the position and the contents of the newest checkpoint."""
    position, path = checkpoints.newest_first(workdir / "checkpoints")[0]
    model = keras.saving.load_model(path)
    return [
        *(position, model.get_weights()),
        [variable.numpy() for variable in model.optimizer.variables],
    ]


def _names(workdir):
    """Returns files by name, except where number or name depend on chance."""
    paths = (p.relative_to(workdir) for p in workdir.rglob("*") if p.is_file())
    return {
        path
        for path in paths
        if path.parts[0] != "tensorboard"
        and not path.match("checkpoints/epoch-*")
    }


def _same(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _same(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, np.ndarray):
        floats = one.dtype.kind == "f"  # NaN marks missing measurements.
        return one.dtype == other.dtype and np.array_equal(
            one, other, equal_nan=floats
        )
    return one == other


def differences(workdir, whole):
    """Returns the differences between a killed run and an undisturbed one.

    Args:
        workdir: its folder.
        whole: the other's.

    Returns:
        A list of texts, empty if there are no differences.
    """
    names, wanted = _names(workdir), _names(whole)
    found = [f"{name} is in one alone" for name in sorted(names ^ wanted)]
    for name in sorted(names & wanted):
        read = _READERS.get(name.suffix)
        if read and not _same(read(workdir / name), read(whole / name)):
            found.append(f"{name} differs")
    if not _same(_training_state(workdir), _training_state(whole)):
        found.append("the last checkpoint differs")
    return found


def _start(case, workdir):
    return Process([*SMALL, *CASES[case], f"--workdir={workdir}"])


def run_whole(case, workdir):
    """Runs a case without a fault; returns the seconds of each phase.

    Args:
        case: its name in `CASES`.
        workdir: the run's folder.

    Raises:
        ValueError: if it fails.
    """
    process = _start(case, workdir)
    code = process.wait()
    if code:
        raise ValueError(
            "a run without faults must end well. "
            f"Received: exit code {code}, {process.lines[-1:]}"
        )
    starts = [*process.phases.values(), process.age()]
    return dict(zip(process.phases, np.diff(starts).tolist(), strict=True))


def _resumed(lines):
    """Returns the point where a process resumed, from its output."""
    for line in lines:
        if line.startswith("resuming after "):
            return line.removeprefix("resuming after ")
        if line.startswith("epoch 1/"):
            return "the beginning"
        if line.endswith("holds this run, finished:"):
            return "its end"
    return "ended before it said so" if lines else "ended at its start"


def run_with_faults(case, workdir, spans, rng, most):
    """Applies faults to a run until it finishes.

    Args:
        case: its name in `CASES`.
        workdir: the run's folder.
        spans: the result of `run_whole`.
        rng: a `random.Random`.
        most: largest number of faults.

    Yields:
        (a `Row`, a list of texts about its problems), fault by fault.

    Raises:
        ValueError: if the last process, which has no fault, fails.
    """
    row, wrong = None, []
    for number in itertools.count():
        process = _start(case, workdir)
        trained = (workdir / "saved_model").exists()
        fault = draw(rng, spans, not trained and number < most / 2)
        alone = number >= most or not process.reaches(fault)
        moment, phase = process.age(), process.phase()
        if alone:
            code = process.wait()
        else:
            code, seconds = strike(process, fault, workdir)
        if row:
            yield row._replace(resumed=_resumed(process.lines)), wrong
        if alone and code:
            raise ValueError(
                f"a run in {workdir} must come to its end. "
                f"Received: exit code {code}, {process.lines[-1:]}"
            )
        if alone:
            return
        row, wrong = Row(case, fault.name, phase, moment, code, seconds, ""), []
        if code not in (0, *FAULTS[fault.name]):
            wrong.append(f"exit code {code} of {row}: {process.lines[-1:]}")
        if fault.name == "SIGTERM" and seconds > _LONGEST:
            wrong.append(f"{seconds:.1f} s to leave: {row}")


def soak(workdir, kills, seed, log):
    """Applies faults to processes, and compares the results of their runs.

    Args:
        workdir: a folder that does not exist yet.
        kills: number of processes to kill.
        seed: seed of the faults.
        log: a function of a line of text.

    Returns:
        (rows, runs, problems): a list of `Row`s, the number of runs, and a list
        of texts.
    """
    rng, spans = random.Random(seed), {}
    rows: list[Row] = []
    problems: list[str] = []
    for number, case in enumerate(itertools.cycle(CASES)):
        if len(rows) >= kills:
            return rows, number, problems
        whole, run = workdir / "whole" / case, workdir / f"{number:03d}-{case}"
        if case not in spans:
            spans[case] = run_whole(case, whole)
            log(f"{case}, whole: {_seconds(spans[case])}")
        most = min(kills - len(rows), _MOST)
        for row, wrong in run_with_faults(case, run, spans[case], rng, most):
            rows.append(row)
            problems += wrong
            log(_line(row))
        found = [f"{run.name}: {text}" for text in differences(run, whole)]
        problems += found
        log(f"{run.name}: {'; '.join(found) or 'equal'}")


def _seconds(spans):
    return ", ".join(f"{phase} {s:.1f} s" for phase, s in spans.items())


def _line(row):
    return (
        f"| {row.case} | {row.fault} | {row.phase} | {row.moment:.1f} | "
        f"{row.code} | {row.seconds:.1f} | {row.resumed} |"
    )


def table(rows, runs, problems):
    """Returns the table and the verdict, as Markdown.

    Args:
        rows: from the result of `soak`.
        runs: from the result of `soak`.
        problems: from the result of `soak`.
    """
    verdict = "; ".join(problems) or (
        "each equal to a run without faults: weights, optimizer, history, "
        "verdicts, results but for times; no file is missing or cut off"
    )
    return "\n".join(
        [
            "| method | fault | phase | moment, s | exit code "
            "| seconds to exit | resumed after |",
            "|---|---|---|---|---|---|---|",
            *map(_line, rows),
            "",
            f"{len(rows)} faults in {runs} runs: {verdict}.",
        ]
    )


def main():
    """Runs the soak and prints its table."""
    workdir = pathlib.Path(_WORKDIR.value)
    kills, seed = check_count("kills", _KILLS.value, 1), _SEED.value
    if workdir.exists():
        raise ValueError(
            f"workdir must not exist yet. Received: workdir={workdir}"
        )
    started = time.monotonic()
    log = functools.partial(print, flush=True)
    rows, runs, problems = soak(workdir, kills, seed, log)
    text = table(rows, runs, problems)
    files.write_atomically(workdir / "table.md", text + "\n")
    print(f"\n{text}\n{time.monotonic() - started:.0f} s in all")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
