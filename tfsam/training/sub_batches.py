"""m-sharpness: a batch in parts, one after the other, and their mean.

Each part is perturbed on its own (Foret et al., 2021, section 4.1). In a graph
the parts are the turns of a loop: what they do is traced, and compiled, once.
"""

import tensorflow as tf

# Of a part whose examples weigh nothing: its regularisers have gradients.
_NOTHING = 1e-12


def mean_of_parts(sharpened, weigh, weights, state, batch, step, count, unroll):
    """The mean of the `Pass`es of a batch's parts.

    A part begins with the state, and with the weights where layers assign them,
    that the part before it ended with.

    Args:
        sharpened: a function (weights, state, batch, step) -> Pass.
        weigh: a function (batch, Pass) -> a scalar, by which a part counts.
        weights: values of the trainable variables.
        state: values of the other variables.
        batch: a `Batch`.
        step: a `Step`; each part has a seed of its own.
        count: the number of parts. A smaller batch has a part an example.
        unroll: whether to do without a loop, which has no collectives.

    Returns:
        A `Pass` of the whole batch, without the losses of its examples.
    """
    size = tf.shape(tf.nest.flatten(batch.x)[0])[0]
    parts = tf.clip_by_value(size, 1, count)

    def part(weights, state, index, batch):
        # Without a loop there may be more turns than parts: the last part
        # again, for nothing.
        turn = tf.minimum(index, parts - 1)
        start, end = size * turn // parts, size * (turn + 1) // parts
        rows = rows_of(batch, lambda t: t[start:end])
        seed = tf.random.experimental.stateless_fold_in(step.seed, index)
        found = sharpened(weights, state, rows, step._replace(seed=seed))
        weight = tf.cast(weigh(rows, found), tf.float32)
        nothing = tf.equal(weight, 0) | (index >= parts)
        weight = tf.where(nothing, _NOTHING, weight)
        return found._replace(losses=None), weight

    if tf.executing_eagerly() or unroll:
        turns = int(parts) if tf.executing_eagerly() else count
        return _unrolled(part, turns, weights, state, batch)
    return _looped(part, parts, weights, state, batch)


def rows_of(batch, take):
    """Part of a batch; what it does not have stays None.

    Args:
        batch: a `Batch`.
        take: a function from a tensor to some of its rows.
    """
    return tf.nest.map_structure(
        lambda t: None if t is None else take(t), batch
    )


def _unrolled(part, turns, weights, state, batch):
    weights, state, first = list(weights), list(state), weights
    passes, shares = [], []
    for index in range(turns):
        found, share = part(weights, state, index, batch)
        weights = found.ended(weights)
        for position, value in found.updates.items():
            state[int(position)] = value
        passes.append(found)
        shares.append(share)
    total = tf.add_n(shares)

    def mean(*values):
        if values[0] is None:
            return None
        return tf.add_n(
            [
                value * tf.cast(share / total, value.dtype)
                for value, share in zip(values, shares, strict=True)
            ]
        )

    def joined(*values):
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


def _looped(part, parts, weights, state, batch):
    part = tf.function(part, autograph=False)
    index = tf.constant(0)
    traced = part.get_concrete_function(weights, state, index, batch)
    spec, _ = traced.structured_outputs

    def filled(values):
        """The structure of a part's pass, with None where it has None."""
        values = iter(values)
        return [None if s is None else next(values) for s in flat(spec)]

    def flat(found):
        return [found.loss, *found.gradients]

    def rows(found):
        return [*tf.nest.flatten(found.y_pred), *found.masks]

    # What is traced may know less of a gradient's shape than its weight.
    shapes = [spec.loss.shape, *[weight.shape for weight in weights]]
    sums = [
        tf.zeros(shape, s.dtype)
        for shape, s in zip(shapes, flat(spec), strict=True)
        if s is not None
    ]
    arrays = [
        tf.TensorArray(
            s.dtype,
            size=parts,
            infer_shape=False,
            element_shape=[None, *s.shape[1:]],
        )
        for s in rows(spec)
        if s is not None
    ]
    moving = {int(p): state[int(p)] for p in spec.updates}
    assigned = {int(p): weights[int(p)] for p in spec.versions}

    def turn(index, total, sums, arrays, moving, assigned):
        found, share = part(
            [assigned.get(i, w) for i, w in enumerate(weights)],
            [moving.get(i, s) for i, s in enumerate(state)],
            index,
            batch,
        )
        values = [v for v in flat(found) if v is not None]
        parts = [v for v in rows(found) if v is not None]
        return (
            index + 1,
            total + share,
            [
                s + tf.ensure_shape(v, s.shape) * tf.cast(share, v.dtype)
                for s, v in zip(sums, values, strict=True)
            ],
            [a.write(index, v) for a, v in zip(arrays, parts, strict=True)],
            {
                int(p): tf.ensure_shape(value, state[int(p)].shape)
                for p, value in found.updates.items()
            },
            {
                int(p): tf.ensure_shape(values[-1], weights[int(p)].shape)
                for p, values in found.versions.items()
            },
        )

    _, total, sums, arrays, moving, ended = tf.while_loop(
        lambda index, *_: index < parts,
        turn,
        (index, tf.zeros(()), sums, arrays, moving, assigned),
        parallel_iterations=1,
    )
    loss, *gradients = filled(s / tf.cast(total, s.dtype) for s in sums)
    whole = iter([array.concat() for array in arrays])
    joined = [None if s is None else next(whole) for s in rows(spec)]
    outputs = len(tf.nest.flatten(spec.y_pred))
    return spec._replace(
        loss=loss,
        losses=None,
        gradients=gradients,
        y_pred=tf.nest.pack_sequence_as(spec.y_pred, joined[:outputs]),
        masks=joined[outputs:],
        updates={str(p): value for p, value in moving.items()},
        versions={str(p): [assigned[p], v] for p, v in ended.items()},
    )
