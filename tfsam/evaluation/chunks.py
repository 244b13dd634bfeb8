"""Chunks of examples under attack, each on one device.

At each epsilon only the survivors of the smaller epsilons are attacked, also of
those that an earlier evaluation added to the record. The verdicts are saved
after each epsilon; see `verdicts.py`.
"""

from collections.abc import Mapping

import numpy as np

from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.chunk_bisection import bisect
from tfsam.evaluation.chunk_nearest import attack_nearest
from tfsam.evaluation.chunk_stages import attack_stages
from tfsam.evaluation.chunk_state import Chunk
from tfsam.evaluation.chunk_state import Turn
from tfsam.evaluation.progress import FAILED
from tfsam.evaluation.progress import LOADED
from tfsam.evaluation.workers import Worker
from tfsam.registries import ATTACKS

Arrays = Mapping[str, np.ndarray]


def attack_chunk(turn: Turn, worker: Worker, number: int) -> None:
    """Attacks a chunk at all epsilons, ascending, and saves the verdicts.

    Args:
        turn: The attack's turn.
        worker: The worker on which the attack runs.
        number: Number of the chunk.
    """
    asked = turn.plan.epsilons(turn.norm)
    held = _held(turn, number)
    chunk = Chunk(turn, worker, number)
    new: Mapping[float, Arrays] = {}
    if turn.plan.bisect and not held.keys() >= set(asked):
        new = _bisected(turn, chunk, number, asked)
        held |= new
    for epsilon in sorted({*asked, *held}):
        key = turn.number, Budget(turn.norm, epsilon)
        if epsilon in held:
            chunk.take(held[epsilon])
            if epsilon in new:
                turn.tell(epsilon, chunk.verdict)
            elif epsilon in asked:
                turn.tell(epsilon, chunk.verdict, LOADED)
        elif key in turn.errors:
            turn.tell(epsilon, chunk.verdict, FAILED)
        else:
            try:
                found = _attack(chunk, epsilon)
            except Exception as error:
                if turn.strict:
                    raise
                turn.errors[key] = f"{type(error).__name__}: {error}"
                turn.tell(epsilon, chunk.verdict, FAILED)
            else:
                turn.record.save(turn.part(epsilon), number, found)
                chunk.take(found)
                turn.tell(epsilon, chunk.verdict)


def _attack(chunk: Chunk, epsilon: float) -> Arrays:
    """Attacks the survivors of a chunk at an epsilon.

    Returns:
        The arrays to be saved, by name.
    """
    attack = chunk.turn.made(epsilon)
    # A minimum-norm attack runs once for all epsilons, except on a surrogate,
    # whose nearest images measure the robustness of the surrogate.
    nearest = ATTACKS.fact(attack, "minimum_norm")
    if nearest and not chunk.worker.source.surrogate:
        return attack_nearest(chunk, attack, epsilon)
    return attack_stages(chunk, attack, epsilon)


def _bisected(
    turn: Turn, chunk: Chunk, number: int, epsilons: list[float]
) -> dict[float, Arrays]:
    """Attacks a chunk by bisection, and saves the verdicts of all epsilons.

    Returns:
        The saved arrays, by epsilon; none for a minimum-norm attack, whose run
        serves all epsilons, and for an attack that failed.
    """
    keys = [(turn.number, Budget(turn.norm, e)) for e in epsilons]
    if any(key in turn.errors for key in keys):
        return {}
    try:
        found = bisect(chunk, epsilons)
    except Exception as error:
        if turn.strict:
            raise
        for key in keys:
            turn.errors[key] = f"{type(error).__name__}: {error}"
        return {}
    for epsilon, arrays in found.items():
        turn.record.save(turn.part(epsilon), number, arrays)
    return found


def _held(turn: Turn, number: int) -> dict[float, Arrays]:
    """Returns the saved arrays of a chunk, by epsilon."""
    known = turn.record.epsilons(turn.number, turn.norm)
    found = {
        epsilon: turn.record.load(turn.part(epsilon), number)
        for epsilon in {*known, *turn.plan.epsilons(turn.norm)}
    }
    held = {e: arrays for e, arrays in found.items() if "verdict" in arrays}
    if turn.plan.warm_start and len(held) < len(found):
        return {}  # The images to start from are not loaded.
    return held
