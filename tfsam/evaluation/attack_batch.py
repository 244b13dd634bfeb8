"""Batches under attack: an attack is run, and its result checked and judged.

No attack's output is trusted. It is checked against the bounds of the pixels
and the budget, and classified again by the model that is evaluated.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.attacks.check import contract
from tfsam.attacks.context import Context
from tfsam.attacks.recorder import Path
from tfsam.attacks.recorder import Recorder
from tfsam.evaluation import draws
from tfsam.evaluation import model_probes
from tfsam.evaluation import red_flags
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import has_epsilon
from tfsam.evaluation.workers import Worker
from tfsam.evaluation.workers import as_numpy
from tfsam.evaluation.workers import attacked_predict
from tfsam.registries import ATTACKS
from tfsam.support import identity
from tfsam.support import trace_state
from tfsam.support.graphs import traced
from tfsam.support.validators import Bounds
from tfsam.support.validators import check_interval


class Found(NamedTuple):
    """The result of an attack, checked and classified.

    Attributes:
        images: Float array (count, ...), the adversarial images.
        outputs: Float array (count, classes), their logits, or the means over
            the draws of a random model.
        wrong: Float array (count,), the fraction of the draws that reach the
            goal of the attack.
        broken: Bool array (count,), the verdicts.
        right: Bool array (count, labels), which of several labels are right.
        largest: Norm of the largest perturbation.
        passes: Int array (2,), forward and gradient passes of the network.
        nonfinite: Number of gradients that were NaN or infinite.
        facts: Facts about the attack.
        path: The counters of the attack's path, or None if it is not recorded.
        fools: Bool array (count,), the examples whose images a surrogate
            misclassifies; None if there is none, or nothing is recorded.
    """

    images: np.ndarray
    outputs: np.ndarray
    wrong: np.ndarray
    broken: np.ndarray
    right: np.ndarray
    largest: float
    passes: np.ndarray
    nonfinite: int
    facts: red_flags.Facts
    path: Path | None = None
    fools: np.ndarray | None = None


class _Batch(NamedTuple):
    """A batch of examples, filled up with copies of them.

    Attributes:
        x: Float array (size, ...).
        y: Labels of the logits that the attack sees, an array (size, ...).
        context: The context of the examples.
        seeds: Int32 array (size, 2), the seed and the index of each example.
        radius: The epsilon of all examples, or a float array (size,), that of
            each; infinite without a budget.
        active: Bool tensor (size,), true for the examples, false for copies.
        attacked: Number of examples for which the attack computes.
    """

    x: np.ndarray
    y: np.ndarray
    context: Context
    seeds: np.ndarray
    radius: Any
    active: tf.Tensor
    attacked: int

    def tensors(self) -> list[Any]:
        """Returns the arguments of the functions of `_function`."""
        return [
            tf.constant(self.x),
            tf.constant(self.y),
            tf.constant(self.seeds),
            self.active,
            tf.constant(self.radius, self.x.dtype),
            self.context,
        ]


def attack_batch(
    plan: Plan,
    worker: Worker,
    attack: Any,
    key: tuple[Any, ...],
    indices: np.ndarray,
    norm: str,
    epsilon: float | None = None,
    start: np.ndarray | None = None,
    each: np.ndarray | None = None,
) -> Found:
    """Attacks some examples of a chunk.

    An attack that leaves inactive examples out is given the whole chunk. Other
    attacks are given a batch of one of three sizes, the smallest that fits, so
    that an attack which runs in a graph is traced at most three times.

    Args:
        plan: The plan of the evaluation.
        worker: The worker on which the attack runs.
        attack: The attack, or a stage of an ensemble.
        key: Key of the trace: the same for two calls only if the attack's
            computation is the same but for a tensor epsilon.
        indices: Int array (count,), the indices of the examples.
        norm: Norm of the budget.
        epsilon: The budget, or None to search for the nearest adversarial
            image of each example with a minimum-norm attack.
        start: Float array (count, ...), images to start from, or None.
        each: Float array (count,), the epsilon of each example in place of
            `epsilon`, the attack's own; None if it is that of all.

    Raises:
        ValueError: If the result breaks the contract of attacks, the model
            returns NaN or infinity for it, or the attack takes no epsilons of
            each example.
    """
    in_graph = worker.traceable and ATTACKS.fact(attack, "in_graph")
    # Only a network that runs in blocks processes fewer examples for it.
    selective = (
        in_graph
        and ATTACKS.fact(attack, "selective")
        and worker.source.rows is not None
    )
    batch = _batch(plan, indices, selective, epsilon if each is None else each)
    _check_radii(attack, batch, epsilon)
    recorder = _recorder(plan, worker, batch, norm)
    # The data was checked when it was loaded.
    inside = _has_bounds(attack, plan.bounds)
    run = _function(worker, attack, selective, epsilon, recorder, inside)
    if in_graph:
        depends_on = (
            *(selective, inside, recorder and id(recorder)),
            *(len(batch.x), start is None, epsilon is None),
        )
        run = _traced_once(worker, attack, epsilon, key, depends_on, run)
    worker.source.count_passes()
    with draws.alone(plan):
        x_adv = run(*batch.tensors(), *_starts(start, batch))
    path = None if recorder is None else recorder.path()
    counts, facts = _measured(worker, attack, batch, in_graph)
    largest = _checked(plan, batch, x_adv, norm, counts.nonfinite)
    judged = judged_images(plan, worker, x_adv, indices)
    return Found(
        as_numpy(x_adv)[: len(indices)],
        judged.outputs,
        judged.wrong,
        judged.broken,
        judged.right,
        largest,
        counts.passes,
        counts.nonfinite,
        facts,
        path and Path(*(values[: len(indices)] for values in path)),
        _fools(plan, worker, x_adv, batch, indices),
    )


def judged_images(
    plan: Plan, worker: Worker, images: Any, indices: np.ndarray
) -> draws.Judged:
    """Judges adversarial images of some examples.

    Args:
        plan: The plan of the evaluation.
        worker: The worker that runs the model.
        images: Float array or tensor (size, ...), the images, filled up with
            any others to a size that the model was traced for.
        indices: Int array (count,), the indices of the examples.

    Raises:
        ValueError: If the model returns NaN or infinity.
    """
    judged = draws.judge(plan, worker, images, indices)
    if not np.isfinite(judged.outputs).all():
        raise ValueError(
            "the model must return finite logits under attack. "
            "Received: NaN or infinity"
        )
    return judged


def _has_bounds(attack: Any, bounds: Bounds) -> bool:
    """Returns whether the bounds of an attack are those of the evaluation."""
    try:
        own = check_interval("bounds", getattr(attack, "bounds", None))
    except ValueError:
        return False
    return own == bounds


def _check_radii(attack: Any, batch: _Batch, epsilon: float | None) -> None:
    """Checks that an attack takes the epsilons of the examples of a batch."""
    each = ATTACKS.fact(attack, "example_epsilons")
    takes = each and _any_epsilon(attack, epsilon)
    if np.ndim(batch.radius) and not takes:
        raise ValueError(
            "the attack takes one epsilon for all examples; leave "
            "epsilon_factors out. "
            f"Received: attack={type(attack).__name__}, epsilon_factors"
        )


def _batch(
    plan: Plan,
    indices: np.ndarray,
    selective: bool,
    epsilon: Any,
) -> _Batch:
    """Makes a batch of some examples; see `attack_batch` for the arguments."""
    count = len(indices)
    size = plan.size if selective else _batch_size(count, plan.size)
    batch = np.resize(indices, size)
    if np.ndim(epsilon):
        epsilon = np.resize(epsilon, size)
    seeds = np.stack([np.full_like(batch, plan.seed), batch], axis=1)
    return _Batch(
        x=plan.data.x[batch],
        y=plan.goal.labels(batch),
        context=plan.context(batch),
        seeds=seeds.astype(np.int32),
        radius=np.inf if epsilon is None else plan.radii(epsilon, batch),
        active=tf.constant(np.arange(size) < count),
        attacked=count if selective else size,
    )


def _batch_size(count: int, largest: int) -> int:
    """Returns the smallest of three batch sizes that holds `count` examples."""
    sizes = (-(-largest // 16), -(-largest // 4), largest)
    return next(size for size in sizes if size >= count)


def _recorder(
    plan: Plan, worker: Worker, batch: _Batch, norm: str
) -> Recorder | None:
    """Returns a recorder that is ready for a batch, None if nothing is."""
    if not plan.diagnose:
        return None
    key = batch.x.shape, batch.x.dtype, norm, plan.bounds
    if key not in worker.recorders:
        worker.recorders[key] = Recorder(
            batch.x.shape,
            batch.x.dtype,
            norm,
            plan.bounds,
            worker.source.rounding,
        )
    recorder = worker.recorders[key]
    recorder.start(batch.x, batch.y)
    return recorder


def _fools(
    plan: Plan, worker: Worker, x_adv: Any, batch: _Batch, indices: np.ndarray
) -> np.ndarray | None:
    """Returns which adversarial images reach the goal on the surrogate."""
    if not plan.diagnose or not worker.source.surrogate:
        return None
    predict, others = attacked_predict(worker), batch.context.inputs
    outputs = as_numpy(predict(x_adv, batch.active, others))
    found: np.ndarray = plan.goal.reached(outputs[: len(indices)], indices)
    return found


def _starts(start: np.ndarray | None, batch: _Batch) -> list[tf.Tensor]:
    if start is None:
        return []
    return [tf.constant(np.resize(start, batch.x.shape))]


def _function(
    worker: Worker,
    attack: Any,
    selective: bool,
    epsilon: float | None,
    recorder: Recorder | None,
    inside: bool,
) -> Callable[..., Any]:
    """Returns the attack as a function of tensors, to be traced if possible."""
    logits = worker.aimed.recorded(recorder)
    if worker.traceable and inside:
        logits = logits.on_checked()
    any_epsilon = _any_epsilon(attack, epsilon)

    def run(
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
        active: tf.Tensor,
        radius: tf.Tensor,
        context: Context,
        *start: tf.Tensor,
    ) -> tf.Tensor:
        made = attack.with_epsilon(radius) if any_epsilon else attack
        source: Any = logits.given(context)
        if selective:
            source = source.only(active)
        if not worker.traceable:
            source = source.untraced()
        call = made.closest if epsilon is None else made
        return call(source, x, y, seeds, *start)

    return run


def _any_epsilon(attack: Any, epsilon: float | None) -> bool:
    """Returns whether the trace of the attack takes epsilon as a tensor."""
    return bool(
        ATTACKS.fact(attack, "tensor_epsilon")
        and epsilon is not None
        and has_epsilon(attack, epsilon)
    )


def _traced_once(
    worker: Worker,
    attack: Any,
    epsilon: float | None,
    key: tuple[Any, ...],
    facts: tuple[Any, ...],
    run: Callable[..., Any],
) -> Callable[..., Any]:
    """Returns the traced function of an attack, which the worker keeps.

    All attacks of the same state share it, also those of later evaluations. An
    attack whose state cannot be read, or that holds a network or tensors, which
    a trace must not keep longer than an evaluation, has the given key.

    Args:
        worker: The worker.
        attack: The attack.
        epsilon: The budget, or None.
        key: Key of the attack within the evaluation.
        facts: Everything else that the trace depends on.
        run: The function to trace.
    """
    any_epsilon = _any_epsilon(attack, epsilon)
    owners: list[Any] = []
    try:
        state = trace_state.read(attack, ["epsilon"] if any_epsilon else [])
    except (trace_state.Unreadable, RecursionError):
        known = False
    else:
        known = not state.size
    if known:
        key, owners = (state.key, any_epsilon), state.owners
    made = worker.runs.setdefault((known, key, facts), (traced(run), owners))
    return made[0]


def _measured(
    worker: Worker, attack: Any, batch: _Batch, in_graph: bool
) -> tuple[Any, red_flags.Facts]:
    """Returns the counts of passes, and the facts about an attack that ran."""
    counts = worker.source.counted()
    steps = max(counts.passes[1] / batch.attacked, counts.taken / len(batch.x))
    uncounted = in_graph and not counts.passes.any()
    if uncounted and not red_flags.facts_of(attack).gradient_free:
        # Gradients by tapes of the attack's own are not counted in a graph.
        steps = np.inf
        aimed = worker.aimed.given(batch.context)
        model_probes.look_at_slopes(aimed, batch.x, batch.y)
        counts = counts._replace(nonfinite=worker.source.counted().nonfinite)
    return counts, red_flags.facts_of(attack, steps)


def _checked(
    plan: Plan,
    batch: _Batch,
    x_adv: Any,
    norm: str,
    nonfinite: int,
) -> float:
    """Checks the contract of attacks; returns the largest perturbation."""
    try:
        return contract(batch.x, x_adv, batch.radius, norm, plan.bounds)
    except ValueError as error:
        if not nonfinite:
            raise
        raise ValueError(
            "the network's input gradients are NaN or infinite, which the "
            f"warning nan_gradients explains, and {error}"
        ) from error


def kind_of(attack: Any, epsilon: float) -> Any:
    """Returns a key, equal for attacks that may share a trace or a run.

    An attack that computes with a tensor epsilon (`tensor_epsilon`), or whose
    run serves every epsilon (`minimum_norm`), has the same key at another
    epsilon if all its other attributes are equal. An attack that derives a step
    size from its epsilon therefore has another key. If the attributes cannot be
    described, the key is the epsilon itself.

    Args:
        attack: The attack, or a stage of an ensemble.
        epsilon: Budget of the evaluation.
    """
    shared = any(
        ATTACKS.fact(attack, flag)
        for flag in ("tensor_epsilon", "minimum_norm")
    )
    if not shared or not has_epsilon(attack, epsilon):
        return epsilon
    try:
        described = identity.describe(attack, without=["epsilon"])
    except identity.Unknown:
        return epsilon
    return identity.digest(described)
