"""Progress of an evaluation, in lines of text."""

import threading
import time

from tfsam.evaluation.accuracies import epsilon_text
from tfsam.evaluation.verdicts import STANDS

# Told in place of a stage: the verdicts are of an earlier process, or there are
# none.
LOADED, FAILED = object(), object()


def teller(plan, entry, chunks, progress):
    """Makes a function that logs how far an attack is, every five seconds.

    Args:
        plan: a `Plan`.
        entry: the attack's `Entry`.
        chunks: how many.
        progress: a function of a line of text, or None.
    """
    if progress is None:
        return lambda index, verdict, stage=None: None
    lock = threading.Lock()
    log = _Log(plan, entry, chunks * len(plan.epsilons), progress)

    def tell(index, verdict, stage=None):
        with lock:
            if stage is None or stage in (LOADED, FAILED):
                log.chunk(index, verdict, stage)
            else:
                log.stage(index, verdict, stage)

    return tell


class _Log:
    """The progress of an attack, in lines of text.

    Args:
        plan: a `Plan`.
        entry: the attack's `Entry`.
        total: how many chunks there are, times the number of epsilons.
        progress: a function of a line.
    """

    def __init__(self, plan, entry, total, progress):
        self.plan, self.total, self.progress = plan, total, progress
        self.name = f"{entry.name} {plan.norm}"
        self.started = self.said = time.perf_counter()
        self.done = self.measured = 0
        self.counts = {epsilon: [0, 0] for epsilon in plan.epsilons}
        self.failed: set = set()

    def stage(self, index, verdict, stage):
        """Logs the end of an ensemble's stage in a chunk."""
        if time.perf_counter() - self.said > 5:
            self.said = time.perf_counter()
            self.progress(
                f"{self.name} {epsilon_text(self.plan.epsilons[index])}: after "
                f"{stage} {(verdict == STANDS).sum()} of {len(verdict)} stand "
                "in this chunk"
            )

    def chunk(self, index, verdict, source):
        """Logs a chunk that is done at an epsilon, if it is time to."""
        epsilon = self.plan.epsilons[index]
        self.done += 1
        if source is FAILED:
            self.failed.add(epsilon)
        else:
            self.counts[epsilon][0] += int((verdict == STANDS).sum())
            self.counts[epsilon][1] += len(verdict)
        self.measured += source is None
        now = time.perf_counter()
        if now - self.said > 5 or self.done >= self.total:
            self.said = now
            self.progress(f"{self.name}: " + "; ".join(self._news(now)))

    def _news(self, now):
        so_far = [
            f"{epsilon_text(epsilon)} {stand / seen:.4f} of {seen}"
            for epsilon, (stand, seen) in self.counts.items()
            if seen and epsilon not in self.failed
        ]
        if so_far:
            yield "robust accuracy so far " + ", ".join(so_far)
        if self.failed:
            failed = ", ".join(map(epsilon_text, sorted(self.failed)))
            yield f"failed at {failed}"
        # What was loaded took no time, and says nothing of the rest.
        left = self.total - self.done
        if self.measured or not left:
            seconds = (now - self.started) / max(self.measured, 1) * left
            yield f"{seconds:.0f} s left"
