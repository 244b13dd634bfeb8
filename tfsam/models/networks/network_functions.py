"""Networks that functions of the user build."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from tfsam import registries
from tfsam.support import files
from tfsam.support import imports
from tfsam.support.factories import call
from tfsam.support.factories import check_options
from tfsam.support.suggestions import did_you_mean


def from_function(
    num_classes: int,
    *,
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    statistics: Any = None,
    **options: Any,
) -> keras.Model:
    """Calls a function of the user's that builds a network.

    Args:
        num_classes: number of logits; its argument num_classes, or its first.
        name: MODULE:FUNCTION, a function that returns a `keras.Model` from
            pixels in [0, 1] to logits. The module is installed or in the
            working directory.
        input_shape: (height, width, channels), where the function takes it.
        statistics: means and standard deviations of the channels, likewise.
        **options: its other arguments, as in MODULE:FUNCTION:width=8.

    Raises:
        ValueError: if there is no such function, it does not take the
            arguments, or it returns anything but a Keras model that can be
            saved.
    """
    function = _imported(name)
    check_options(function, options)
    taken = inspect.signature(function).parameters
    offered = {
        "num_classes": num_classes,
        "input_shape": input_shape,
        "statistics": statistics,
    }
    given = {k: value for k, value in offered.items() if k in taken}
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        given |= {"num_classes": num_classes, "input_shape": input_shape}
    first = [num_classes] if taken and "num_classes" not in given else []
    try:
        network = call(name, function, *first, **given, **options)
    except Exception as error:  # It is the user's code.
        raise ValueError(
            f"the function {name} cannot build a network for images of shape "
            f"{input_shape} ({files.reason(error)}). Received: network={name}"
        ) from error
    _check_saved(network, name)
    return network


def _imported(name: str) -> Callable[..., Any]:
    """Imports a function; a name like that of a registered part gets a hint."""
    try:
        return imports.attribute("network", name)
    except ValueError as error:
        prefix = name.partition(":")[0]
        hint = did_you_mean(prefix, registries.NETWORKS.names())
        if not hint:
            raise
        raise ValueError(
            f"no network and no module is called {prefix}{hint}. "
            f"Received: network={name}"
        ) from error


def _check_saved(network: Any, name: str) -> None:
    """Checks that a network can be made from its configuration.

    Otherwise a run could write checkpoints, and not read them.
    """
    if not isinstance(network, keras.Model):
        return
    saving = keras.saving
    try:
        config = saving.serialize_keras_object(network)
        saving.deserialize_keras_object(config)
    except Exception as error:  # Layers may be the user's code.
        raise ValueError(
            "the network must be one that Keras can save and load: give its "
            "own layers get_config and "
            "keras.saving.register_keras_serializable "
            f"({files.reason(error)}). Received: network={name}"
        ) from error
