"""Layers whose weights stay as they are in training, chosen by name."""

import re

import keras

from tfsam.support.rescaling import flattened

# A share of BatchNorm statistics that is too large to be left from the start.
_SLOW = 0.1


def freeze(network: keras.Model, pattern: str) -> None:
    """Freezes the layers whose name matches, and no others.

    BatchNorm layers that are frozen are in inference mode in training, too:
    their statistics stay as they are.

    Args:
        network: a built `keras.Model`.
        pattern: a regular expression, searched for in the name of each layer,
            also inside nested models; "none" freezes no layer.

    Raises:
        ValueError: if it is no regular expression, or matches no layer with
            weights, or leaves no weights to train.

    Example:
        >>> network = keras.Sequential(
        ...     [
        ...         keras.Input((4,)),
        ...         keras.layers.Dense(3, name="features"),
        ...         keras.layers.Dense(2, name="head"),
        ...     ]
        ... )
        >>> freeze(network, "^(?!head)")
        >>> described(network)
        '8 of 23 weights are trained; 1 of 2 layers with weights is frozen'
    """
    try:
        matches = re.compile(pattern).search
    except re.error as error:
        raise ValueError(
            f"freeze must be a regular expression ({error}). "
            f"Received: freeze={pattern}"
        ) from error
    for layer in flattened(network):
        layer.trainable = True
    if pattern == "none":
        return
    layers = _with_weights(network)
    matched = [layer for layer in layers if matches(layer.name)]
    for layer in matched:
        layer.trainable = False
    if not matched or not network.trainable_variables:
        names = [layer.name for layer in layers]
        some = [*names[:2], "...", *names[-2:]] if len(names) > 5 else names
        raise ValueError(
            "freeze must match some layers and leave others to train; the "
            f"layers with weights are {', '.join(some)}. Received: "
            f"freeze={pattern}, which matches {len(matched)} of {len(layers)}"
        )


def described(network: keras.Model) -> str:
    """Returns in words how many weights and layers of a network are trained.

    Args:
        network: a built `keras.Model`; see `freeze` for an example.
    """
    layers = _with_weights(network)
    frozen = [layer for layer in layers if not layer.trainable]
    total = network.count_params()
    trained = sum(
        v.value.shape.num_elements() for v in network.trainable_variables
    )
    line = f"{trained:,} of {total:,} weights are trained"
    if not frozen:
        return line
    verb = "is" if len(frozen) == 1 else "are"
    return (
        f"{line}; {len(frozen)} of {len(layers)} layers with weights "
        f"{verb} frozen"
    )


def slow_statistics(network: keras.Model, steps: int) -> str | None:
    """Returns a line about BatchNorm statistics that training hardly moves.

    Networks that were made for long training have a momentum such as 0.999.

    Args:
        network: a built `keras.Model`.
        steps: number of training steps.

    Returns:
        The line; None where less than a tenth of each statistic will be that
        of the beginning.

    Example:
        >>> norm = keras.layers.BatchNormalization(momentum=0.999)
        >>> network = keras.Sequential([keras.Input((4,)), norm])
        >>> slow_statistics(network, 5000) is None
        True
        >>> slow_statistics(network, 100).partition(":")[0]
        'after 100 steps, 90 % of the BatchNorm statistics are as at the start'
    """
    kept = [
        layer.momentum**steps
        for layer in flattened(network)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and layer.momentum < 1
    ]
    if not kept or max(kept) < _SLOW:
        return None
    return (
        f"after {steps} steps, {max(kept):.0%} of the BatchNorm statistics are "
        "as at the start: --average=ema measures them on the images"
    ).replace("%", " %")


def _with_weights(network: keras.Model) -> list[keras.Layer]:
    """Returns the layers with weights, but not the models that hold them."""
    return [
        layer
        for layer in flattened(network)
        if layer.weights and not getattr(layer, "layers", ())
    ]
