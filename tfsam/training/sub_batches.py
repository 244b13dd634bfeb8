"""m-sharpness: a batch in parts, each perturbed on its own, and their mean.

Foret et al., 2021, section 4.1. In a graph the parts are the iterations of a
loop, so that the work on a part is traced, and compiled, once.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from tfsam.training import compiled_losses
from tfsam.training import matching
from tfsam.training.batch import Batch
from tfsam.training.stateless import Pass
from tfsam.training.trainer import replicas
from tfsam.weights.base import Step

# A weight for a part whose examples have none: only its regularisers have
# gradients.
_NOTHING = 1e-12

# A function (weights, state, index, batch) -> (Pass, weight) of one part.
_Part = Callable[..., tuple[Pass, tf.Tensor]]


def sharpened(
    model: Any,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    batch: Batch,
    step: Step,
) -> Pass:
    """Returns the mean of the passes of a batch's parts.

    Each part begins with the state, and with the weights that layers assign,
    as the part before it left them.

    Args:
        model: a `RobustModel`. A batch with fewer examples than `sub_batches`
            is divided into single examples.
        weights: values of the trainable variables.
        state: values of the other variables.
        batch: the whole batch.
        step: the facts of the training step; each part gets its own seed.

    Returns:
        A `Pass` of the whole batch, without the losses of its examples if it
        has several parts.
    """
    count = model.sub_batches
    if count == 1:
        found: Pass = model._sharpened(weights, state, batch, step)
        return found
    size = batch.size()
    parts = tf.clip_by_value(size, 1, count)

    def part(
        weights: Any, state: Any, index: Any, batch: Batch
    ) -> tuple[Pass, tf.Tensor]:
        # An unrolled graph may have more turns than there are parts. It then
        # computes the last part again, and gives it no weight.
        turn = tf.minimum(index, parts - 1)
        start, end = size * turn // parts, size * (turn + 1) // parts
        rows = batch.rows(lambda t: t[start:end])
        seed = tf.random.experimental.stateless_fold_in(step.seed, index)
        part_step = step._replace(seed=seed)
        found = model._sharpened(weights, state, rows, part_step)
        weight = tf.cast(_weight(model, rows, found), tf.float32)
        nothing = tf.equal(weight, 0) | (index >= parts)
        weight = tf.where(nothing, _NOTHING, weight)
        return found._replace(losses=None), weight

    # A loop cannot hold collectives.
    unroll = model.sharpness == "global" and replicas() > 1
    if tf.executing_eagerly() or unroll:
        turns = int(parts) if tf.executing_eagerly() else count
        return _unrolled(part, turns, weights, state, batch)
    return _looped(part, parts, weights, state, batch)


def _weight(model: Any, batch: Batch, found: Pass) -> tf.Tensor:
    """Returns the number that the loss of a part of a batch is divided by.

    Args:
        model: a `RobustModel`.
        batch: the part.
        found: its pass.

    Returns:
        A scalar: the number of examples, or of positions that the loss counts,
        or the sum of the sample weights if the loss is a mean by them.
    """
    size = batch.size()
    if model.objective is not None:
        return size
    masks = _masks_of_losses(model, batch, found)
    if len(masks) != 1:
        if any(mask is not None for mask in masks):
            raise ValueError(
                "sub_batches takes masks for one output alone. "
                f"Received: sub_batches={model.sub_batches}, masks of "
                f"{len(masks)} outputs"
            )
        return size
    (mask,) = masks
    weight = next(iter(tf.nest.flatten(batch.sample_weight)), None)
    if weight is None or not _is_mean_by_weight(model):
        return size if mask is None else tf.math.count_nonzero(mask)
    weight = tf.cast(weight, tf.float32)
    if mask is not None:
        mask = tf.cast(mask, weight.dtype)
        missing = mask.shape.rank - weight.shape.rank
        shape = [tf.shape(weight)[: mask.shape.rank], [1] * missing]
        weight = mask * tf.reshape(weight, tf.concat(shape, 0))
    return tf.reduce_sum(weight)


def check_reduction(model: Any) -> None:
    """Checks that the loss of a batch is a mean, if it has several parts.

    Args:
        model: a compiled `RobustModel`.

    Raises:
        ValueError: if the batch has several parts and its loss is a sum.
    """
    if model.sub_batches > 1 and compiled_losses.is_sum(model.loss):
        raise ValueError(
            "sub_batches takes the mean of the parts' losses, so the loss must "
            "be a mean over the batch, not its sum. Received: "
            f"reduction=sum, sub_batches={model.sub_batches}"
        )


def check_losses(model: Any) -> None:
    """Checks that the mean of parts' losses is the loss of the batch.

    Args:
        model: a `RobustModel` with `_outputs`.

    Raises:
        ValueError: if the losses of several outputs, or of an objective, may
            be divided by different numbers.
    """
    if model.sub_batches == 1:
        return
    several = len(model._outputs) > 1 or model.objective is not None
    if _is_mean_by_weight(model) and several:
        raise ValueError(
            "sub_batches takes a loss that is a mean by sample weights for "
            "one output alone, without an objective. Received: "
            "reduction=mean_with_sample_weight, "
            f"loss={model.loss}, objective={model.objective}"
        )
    ignored = [output.ignored for output in model._outputs]
    if any(number is not None for number in ignored) and several:
        raise ValueError(
            "sub_batches takes a loss that ignores a class for one output "
            "alone, without an objective. Received: "
            f"ignore_class={ignored}, objective={model.objective}"
        )


def _is_mean_by_weight(model: Any) -> bool:
    """Returns whether a compiled loss is divided by the sum of the weights."""
    return any(
        getattr(output.loss, "reduction", None) == "mean_with_sample_weight"
        for output in model._outputs
    )


def _masks_of_losses(model: Any, batch: Batch, found: Pass) -> list[Any]:
    """Returns the positions of each output that its loss counts, None for all.

    They combine Keras's mask of the predictions with the one of the loss,
    which a loss with an `ignore_class` has.
    """
    predictions = tf.nest.flatten(found.y_pred)
    labels = matching.labels_by_output(model, batch.y)
    if labels is None:
        return list(found.masks)
    masks = []
    for output, y, y_pred, mask in zip(
        model._outputs, labels, predictions, found.masks, strict=True
    ):
        own = compiled_losses.mask_of(output, y, y_pred)
        both = mask is not None and own is not None
        masks.append(mask & own if both else own if mask is None else mask)
    return masks


def _unrolled(
    part: _Part,
    turns: int,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    batch: Batch,
) -> Pass:
    """Runs the parts one after the other, without a loop of the graph."""
    first, weights, state = weights, list(weights), list(state)
    passes: list[Pass] = []
    shares: list[tf.Tensor] = []
    for index in range(turns):
        found, share = part(weights, state, index, batch)
        weights = found.ended(weights)
        for position, value in found.updates.items():
            state[int(position)] = value
        passes.append(found)
        shares.append(share)
    total = tf.add_n(shares)

    def mean(*values: Any) -> Any:
        if values[0] is None:
            return None
        return tf.add_n(
            [
                value * tf.cast(share / total, value.dtype)
                for value, share in zip(values, shares, strict=True)
            ]
        )

    def joined(*values: Any) -> Any:
        return None if values[0] is None else tf.concat(values, 0)

    last = passes[-1]
    return last._replace(
        loss=mean(*[found.loss for found in passes]),
        gradients=list(map(mean, *[found.gradients for found in passes])),
        y_pred=tf.nest.map_structure(
            joined, *[found.y_pred for found in passes]
        ),
        masks=list(map(joined, *[found.masks for found in passes])),
        versions={
            place: [first[int(place)], weights[int(place)]]
            for place in last.versions
        },
    )


class _Carried(NamedTuple):
    """The values that a loop carries from part to part.

    Attributes:
        total: sum of the parts' weights.
        sums: weighted sums of the loss and of the gradients.
        rows: `tf.TensorArray`s of the predictions and of their masks.
        state: other variables that the parts update, by position.
        weights: trainable variables that layers assign, by position.
    """

    total: tf.Tensor
    sums: list[tf.Tensor]
    rows: list[Any]
    state: dict[int, tf.Tensor]
    weights: dict[int, tf.Tensor]


def _looped(
    part: _Part,
    parts: tf.Tensor,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
    batch: Batch,
) -> Pass:
    """Runs the parts in a loop of the graph."""
    traced = tf.function(part, autograph=False)
    index = tf.constant(0)
    concrete = traced.get_concrete_function(weights, state, index, batch)
    spec, _ = concrete.structured_outputs

    def turn(index: tf.Tensor, carried: _Carried) -> tuple[Any, _Carried]:
        found, share = traced(
            [carried.weights.get(i, w) for i, w in enumerate(weights)],
            [carried.state.get(i, s) for i, s in enumerate(state)],
            index,
            batch,
        )
        return index + 1, _added(carried, index, found, share, weights, state)

    begun = _begun(spec, parts, weights, state)
    _, ended = tf.while_loop(
        lambda index, _: index < parts,
        turn,
        (index, begun),
        parallel_iterations=1,
    )
    return _whole(spec, begun, ended)


def _begun(
    spec: Pass,
    parts: tf.Tensor,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
) -> _Carried:
    """Returns the values that the loop begins with.

    Args:
        spec: the pass of a part, with the specs of tensors.
        parts: the number of parts.
        weights: values of the trainable variables.
        state: values of the other variables.
    """
    # A traced gradient may have unknown dimensions where its weight has none.
    shapes = [spec.loss.shape, *[weight.shape for weight in weights]]
    return _Carried(
        total=tf.zeros(()),
        sums=[
            tf.zeros(shape, s.dtype)
            for shape, s in zip(shapes, _summed(spec), strict=True)
            if s is not None
        ],
        rows=[
            tf.TensorArray(
                s.dtype,
                size=parts,
                infer_shape=False,
                element_shape=[None, *s.shape[1:]],
            )
            for s in _given(_rows(spec))
        ],
        state={int(p): state[int(p)] for p in spec.updates},
        weights={int(p): weights[int(p)] for p in spec.versions},
    )


def _added(
    carried: _Carried,
    index: tf.Tensor,
    found: Pass,
    share: tf.Tensor,
    weights: Sequence[tf.Tensor],
    state: Sequence[tf.Tensor],
) -> _Carried:
    """Returns the carried values after one more part.

    Args:
        carried: the values before it.
        index: of the part.
        found: the part's pass.
        share: the part's weight in the mean.
        weights: values of the trainable variables, for their shapes.
        state: values of the other variables, for their shapes.
    """
    values, rows = _given(_summed(found)), _given(_rows(found))
    return _Carried(
        total=carried.total + share,
        sums=[
            s + tf.ensure_shape(v, s.shape) * tf.cast(share, v.dtype)
            for s, v in zip(carried.sums, values, strict=True)
        ],
        rows=[
            array.write(index, v)
            for array, v in zip(carried.rows, rows, strict=True)
        ],
        state={
            int(p): tf.ensure_shape(value, state[int(p)].shape)
            for p, value in found.updates.items()
        },
        weights={
            int(p): tf.ensure_shape(values[-1], weights[int(p)].shape)
            for p, values in found.versions.items()
        },
    )


def _whole(spec: Pass, begun: _Carried, ended: _Carried) -> Pass:
    """Returns the pass of the whole batch.

    Args:
        spec: of a part's pass.
        begun: the values that the loop began with.
        ended: the values that it ended with.
    """
    means = [s / tf.cast(ended.total, s.dtype) for s in ended.sums]
    loss, *gradients = _filled(_summed(spec), means)
    rows = [array.concat() for array in ended.rows]
    joined = _filled(_rows(spec), rows)
    outputs = len(tf.nest.flatten(spec.y_pred))
    return spec._replace(
        loss=loss,
        losses=None,
        gradients=gradients,
        y_pred=tf.nest.pack_sequence_as(spec.y_pred, joined[:outputs]),
        masks=joined[outputs:],
        updates={str(p): value for p, value in ended.state.items()},
        versions={
            str(p): [begun.weights[p], v] for p, v in ended.weights.items()
        },
    )


def _summed(found: Pass) -> list[Any]:
    """Returns the values of a pass of which the mean is taken."""
    return [found.loss, *found.gradients]


def _rows(found: Pass) -> list[Any]:
    """Returns the values of a pass with one row an example."""
    return [*tf.nest.flatten(found.y_pred), *found.masks]


def _given(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _filled(places: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """Returns the values in turn, with None wherever a place holds None."""
    rest = iter(values)
    return [None if place is None else next(rest) for place in places]
