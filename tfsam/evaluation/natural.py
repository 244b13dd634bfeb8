"""Natural verdicts: the classification of examples that are not attacked.

The first chunk is also used to examine the model, and the gradients of each
model that is attacked; see `model_probes.py`.
"""

import functools
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.evaluation import draws
from tfsam.evaluation import model_probes
from tfsam.evaluation import records
from tfsam.evaluation import verdicts
from tfsam.evaluation.attack_probes import changes_of_loss
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.records import NATURAL
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import spread
from tfsam.support.logit_checks import check_logits


def measure_natural(
    plan: Plan,
    workers: Sequence[Worker],
    record: verdicts.Record,
    chunks: Iterable[int],
) -> None:
    """Saves the natural verdicts of some chunks in the record.

    Args:
        plan: The plan of the evaluation.
        workers: The workers that share the chunks.
        record: The record. Chunks that it holds are not measured again.
        chunks: Numbers of the chunks.

    Raises:
        ValueError: If the model's outputs are not finite logits of the data's
            classes.
    """
    chunks = list(chunks)
    spread(workers, functools.partial(_measure_chunk, plan, record), chunks)
    outputs = [record.load(NATURAL, chunk)["logits"] for chunk in chunks]
    network = getattr(workers[0].judge.function, "model", None)
    check_logits(np.concatenate(outputs), network)
    plan.goal.check_labels(outputs[0].shape[1])


def _measure_chunk(
    plan: Plan, record: verdicts.Record, worker: Worker, chunk: int
) -> None:
    """Saves the natural verdicts of a chunk, unless the record holds them."""
    if record.load(NATURAL, chunk):
        return
    indices = records.chunk_indices(record.header, chunk)
    x = plan.data.x[np.resize(indices, plan.size)]
    judged = draws.judge(plan, worker, x, indices)
    if not np.isfinite(judged.outputs).all():
        raise ValueError(
            "model must return finite logits. Received: NaN or infinity"
        )
    found = {"correct": 2 * judged.mistaken < 1, "logits": judged.outputs}
    if plan.factors is not None:
        found["epsilon_factors"] = plan.factors[indices]
    if plan.draws is not None:
        found["wrong"] = judged.mistaken
    if plan.goal.head is not None:
        found |= {"standing": ~judged.broken, "reached": judged.wrong}
    if judged.right.size:
        found["right"] = judged.right
    if chunk == 0:  # Always the same chunk, whichever process measures it.
        others = plan.data.given(np.resize(indices, plan.size))
        judge: Any = worker.judge.function
        judge = judge.given(*others) if others else judge
        found |= model_probes.probe_outputs(judge, x)
        found |= draws.facts(plan)
        found["seen_range"] = np.array(
            model_probes.seen_range(judge, plan.data.ends)
        )
    record.save(NATURAL, chunk, found)


def measure_gradients(
    plan: Plan, worker: Worker, record: verdicts.Record, surrogate: int | None
) -> None:
    """Saves facts about the gradients that attacks of a model will follow.

    The images are pushed to the bounds as far as the largest epsilon of any
    norm allows. They are examined again if a larger one is added to the record.

    Args:
        plan: The plan of the evaluation.
        worker: A worker whose source is the model.
        record: The record, which holds the natural verdicts of the first chunk.
        surrogate: Number of the surrogate in the record, or None for the model
            that is evaluated.
    """
    part = verdicts.part_of_gradients(surrogate)
    reach = max((budget.epsilon for budget in flat(plan.budgets)), default=0.0)
    if plan.factors is not None:
        reach *= float(plan.factors.max())
    held = record.load(part, 0)
    found: dict[str, np.ndarray] = {}
    indices = records.chunk_indices(record.header, 0)
    correct = record.load(NATURAL, 0)["correct"]
    with tf.device(worker.device):
        if plan.diagnose and "changes" not in held:
            found["changes"] = changes_of_loss(plan, worker, indices[correct])
        if float(held.get("reach", -1.0)) < reach:
            found |= _gradients(plan, worker, indices, correct, reach)
    if found:
        record.save(part, 0, {**held, **found})


def _gradients(
    plan: Plan,
    worker: Worker,
    indices: np.ndarray,
    correct: np.ndarray,
    reach: float,
) -> dict[str, np.ndarray]:
    """Returns facts about the gradients of the examples of the first chunk."""
    batch = np.resize(indices, plan.size)
    x = plan.data.x[batch]
    right = np.zeros(plan.size, bool)
    right[: len(indices)] = correct
    found = model_probes.probe_gradients(
        worker.aimed.given(plan.context(batch)),
        x,
        plan.goal.labels(batch),
        right,
        worker.traceable,
        model_probes.pushed_to_bounds(x, plan.bounds, reach),
    )
    return found | {"reach": np.array(reach)}
