"""Rules for the weights that an optimizer does not decay."""

import re
import types
from collections.abc import Sequence
from typing import Any

# Flags of the command line that set arguments under other names.
FLAG_NAMES = types.MappingProxyType({"global_clipnorm": "clip_norm"})


def without_decay(variables: Sequence[Any], rule: str) -> list[Any]:
    """Returns the variables that do not decay.

    Args:
        variables: Keras variables.
        rule: "none"; "one_dimensional" for biases, and for the scales and
            offsets of normalisation; or a regular expression, searched for in
            the path of each variable.

    Raises:
        ValueError: If the rule is no regular expression, or matches no path.

    Example:
        >>> import keras
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> [v.name for v in without_decay(layer.weights, "one_dimensional")]
        ['bias']
    """
    if rule == "none":
        return []
    if rule == "one_dimensional":
        return [v for v in variables if len(v.shape) <= 1]
    found = [v for v in variables if pattern(rule).search(v.path)]
    if not found:
        paths = ", ".join(v.path for v in variables[:3])
        raise ValueError(
            "decay_exclude must match the path of a weight, such as "
            f"{paths}, or be none or one_dimensional. "
            f"Received: decay_exclude={rule}"
        )
    return found


def pattern(rule: str) -> re.Pattern[str]:
    """Returns a rule as a regular expression.

    Args:
        rule: See `without_decay`.

    Raises:
        ValueError: If the rule is no regular expression.
    """
    try:
        return re.compile(rule)
    except re.error as error:
        raise ValueError(
            "decay_exclude must be none, one_dimensional or a regular "
            f"expression ({error}). Received: decay_exclude={rule}"
        ) from error


def exclude(optimizer: Any, variables: list[Any]) -> None:
    """Excludes variables from the decay, for `build`.

    Args:
        optimizer: A Keras optimizer with an attribute `decay_exclude`.
        variables: The variables that it is built for.
    """
    rule = optimizer.decay_exclude
    if not optimizer.built and rule != "none":
        excluded = without_decay(variables, rule)
        optimizer.exclude_from_weight_decay(var_list=excluded)
