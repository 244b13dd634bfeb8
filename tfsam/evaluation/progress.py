"""Progress of an evaluation, logged in lines of text."""

import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.evaluation.budgets import epsilon_text
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.verdicts import STANDS

# Passed in place of a stage: the verdicts were loaded from the record, or the
# attack failed.
LOADED, FAILED = object(), object()

# Seconds between two lines.
_INTERVAL = 5


def teller(
    plan: Plan,
    entry: Entry,
    norm: str,
    chunks: int,
    progress: Callable[[str], Any] | None,
) -> Callable[..., None]:
    """Makes a function that logs an attack's progress every five seconds.

    Args:
        plan: The plan of the evaluation.
        entry: The attack.
        norm: The norm in which it searches.
        chunks: Number of chunks that this process evaluates.
        progress: Function that takes a line of text, or None.

    Returns:
        A function `tell(epsilon, verdict, stage=None)`, to be called with the
        epsilon and the verdicts of a chunk when the chunk is
        done. After a stage of an ensemble, `stage` is its name. If nothing was
        measured, it is `LOADED` or `FAILED`.
    """
    lock = threading.Lock()
    epsilons = plan.epsilons(norm)
    log = _Log(f"{entry.name} {norm}", epsilons, chunks, progress or str)

    def tell(epsilon: float, verdict: np.ndarray, stage: Any = None) -> None:
        if progress is None:
            return
        with lock:
            if stage is None or stage in (LOADED, FAILED):
                log.chunk(epsilon, verdict, stage)
            else:
                log.stage(epsilon, verdict, stage)

    return tell


class _Log:
    """The progress of an attack.

    Args:
        name: Name of the attack, and its norm.
        epsilons: The epsilons, ascending.
        chunks: Number of chunks.
        progress: Function that takes a line of text.
    """

    def __init__(
        self,
        name: str,
        epsilons: Sequence[float],
        chunks: int,
        progress: Callable[[str], Any],
    ) -> None:
        self._name, self._progress = name, progress
        self._total = chunks * len(epsilons)
        self._started = self._logged = time.perf_counter()
        self._done = self._measured = 0
        # Survivors and examples seen.
        self._counts = {epsilon: [0, 0] for epsilon in epsilons}
        self._failed: set[float] = set()

    def stage(self, epsilon: float, verdict: np.ndarray, stage: str) -> None:
        """Logs the end of an ensemble's stage in a chunk, if it is time to."""
        if time.perf_counter() - self._logged > _INTERVAL:
            self._logged = time.perf_counter()
            self._progress(
                f"{self._name} {epsilon_text(epsilon)}: after {stage} "
                f"{(verdict == STANDS).sum()} of {len(verdict)} survive in "
                "this chunk"
            )

    def chunk(
        self, epsilon: float, verdict: np.ndarray, source: object
    ) -> None:
        """Logs that a chunk is done at an epsilon, if it is time to."""
        self._done += 1
        if source is FAILED:
            self._failed.add(epsilon)
        else:
            self._counts[epsilon][0] += int((verdict == STANDS).sum())
            self._counts[epsilon][1] += len(verdict)
        self._measured += source is None
        now = time.perf_counter()
        if now - self._logged > _INTERVAL or self._done >= self._total:
            self._logged = now
            self._progress(f"{self._name}: " + "; ".join(self._news(now)))

    def _news(self, now: float) -> Iterator[str]:
        so_far = [
            f"{epsilon_text(epsilon)} {survivors / seen:.4f} of {seen}"
            for epsilon, (survivors, seen) in self._counts.items()
            if seen and epsilon not in self._failed
        ]
        if so_far:
            yield "robust accuracy so far " + ", ".join(so_far)
        if self._failed:
            failed = ", ".join(map(epsilon_text, sorted(self._failed)))
            yield f"failed at {failed}"
        # Loaded chunks took no time, so they say nothing about the others.
        left = self._total - self._done
        if self._measured or not left:
            seconds = (now - self._started) / max(self._measured, 1) * left
            yield f"{seconds:.0f} s left"
