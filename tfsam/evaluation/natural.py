"""Natural verdicts: what a model returns without an attack."""

import numpy as np
import tensorflow as tf

from tfsam.evaluation import red_flags
from tfsam.evaluation import verdicts
from tfsam.evaluation.verdicts import NATURAL
from tfsam.evaluation.workers import as_numpy
from tfsam.evaluation.workers import spread
from tfsam.support.labels import check_classes
from tfsam.support.outputs import check_logits


def measure_natural(plan, workers, record, chunks):
    """Natural verdicts into the record; refuses what are no logits.

    Args:
        plan: a `Plan`.
        workers: a list of `Worker`s.
        record: a `verdicts.Record`.
        chunks: numbers of chunks.

    Raises:
        ValueError: if the model's outputs are no logits of the data's classes.
    """

    def work(worker, chunk):
        if record.load(NATURAL, chunk):
            return
        indices = verdicts.chunk_indices(record.header, chunk)
        x = plan.data.x[np.resize(indices, plan.size)]
        active = np.arange(plan.size) < len(indices)
        outputs = as_numpy(worker.predict(tf.constant(x), tf.constant(active)))
        outputs = outputs[: len(indices)]
        if not np.isfinite(outputs).all():
            raise ValueError(
                "model must return finite logits. Received: NaN or infinity"
            )
        correct = outputs.argmax(axis=1) == plan.data.labels[indices]
        found = {
            "correct": correct,
            "logits": outputs,
            "transfer": np.array(plan.transfer),
        }
        if chunk == 0:  # The same chunk, whoever has it.
            right = np.zeros(plan.size, bool)
            right[: len(indices)] = correct
            found |= red_flags.probe_outputs(worker.judge.function, x)
            found["seen_range"] = np.array(
                red_flags.seen_range(worker.judge.function, plan.data.x)
            )
            reach = max(plan.epsilons, default=0.0)
            found |= red_flags.probe_gradients(
                worker.source,
                x,
                plan.data.y[np.resize(indices, plan.size)],
                right,
                worker.traceable,
                red_flags.pushed_to_bounds(x, plan.bounds, reach),
            )
        record.save(NATURAL, chunk, found)

    spread(workers, work, chunks)
    outputs = [record.load(NATURAL, c)["logits"] for c in chunks]
    network = getattr(workers[0].judge.function, "model", None)
    check_logits(np.concatenate(outputs), network)
    check_classes(plan.data.y, plan.data.labels, outputs[0].shape[1])
