"""Networks to train, from a spec to a `keras.Model` that returns logits.

A spec names a registered network, a class of `keras.applications`, a file, or a
function of the user's; see `tfsam.registries.NETWORKS`.
"""

import inspect
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras

from tfsam import registries
from tfsam.models.files.weight_files import load_weights_into
from tfsam.models.networks import freezing
from tfsam.support import files
from tfsam.support.factories import call
from tfsam.support.logit_checks import check_ending

Log = Callable[[str], None]

IMAGENET = "imagenet"


def build(
    spec: str,
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    statistics: Callable[[], Any] = lambda: None,
    weights: str | None = None,
    freeze: str | None = None,
    pixels: str = "auto",
    trusted: Sequence[str] = (),
    log: Log = lambda line: None,
) -> keras.Model:
    """Builds a network for images, with its weights and frozen layers.

    Args:
        spec: the network: a name, keras:NAME, the path of a file, or
            MODULE:FUNCTION, with or without options.
        num_classes: number of classes of the images.
        input_shape: (height, width, channels) of the images.
        statistics: a function that returns the means and standard deviations
            of the channels; it is called if the network takes them.
        weights: path of a file of weights, or "imagenet" for a network of
            `keras.applications`.
        pixels: range of the pixels that a network from a file takes.
        trusted: names of Lambda layers of a file whose code may run.
        freeze: a regular expression, see `freezing.freeze`; None leaves each
            layer as it is.
        log: a function of a line of text.

    Returns:
        A built `keras.Model` from pixels in [0, 1] to logits.

    Raises:
        ImportError: if a library that the network needs is not installed.
        ValueError: if the network, its weights or the regular expression does
            not fit.

    Example:
        >>> network = build("preact_resnet8:width=8", 10, (8, 8, 1))
        >>> network.output_shape
        (None, 10)
    """
    network = made(
        spec,
        num_classes,
        input_shape,
        statistics=statistics,
        weights=weights if weights == IMAGENET else None,
        pixels=pixels,
        trusted=trusted,
        log=log,
    )
    _check_logits(network, spec, num_classes, input_shape)
    if weights is not None and weights != IMAGENET:
        load_weights_into(network, weights)
    if freeze is not None:
        if not getattr(network, "inputs", None):
            raise ValueError(
                "layers are frozen in functional and sequential networks, "
                "whose configuration says which. Received: "
                f"freeze={freeze}, network={spec}"
            )
        freezing.freeze(network, freeze)
    log(f"{network.name}: {freezing.described(network)}")
    return network


def made(
    spec: str, num_classes: int, input_shape: tuple[int, ...], **offered: Any
) -> keras.Model:
    """Makes and builds a network as its spec says, and checks nothing else.

    Args:
        spec: the network, see `build`.
        num_classes: number of classes of the images.
        input_shape: (height, width, channels) of the images.
        **offered: more arguments of `build`, of which the network gets those
            that it takes.

    Raises:
        ImportError, ValueError: see `build`.
    """
    factory = registries.NETWORKS.factory(spec)
    taken = inspect.signature(factory).parameters
    if offered.get("weights") and "weights" not in taken:
        raise ValueError(
            "the weights of ImageNet are those of --network=keras:NAME. "
            f"Received: weights={offered['weights']}, network={spec}"
        )
    offered["input_shape"] = input_shape
    arguments = {k: value for k, value in offered.items() if k in taken}
    if statistics := arguments.get("statistics"):
        arguments["statistics"] = statistics()
    network = call(spec, factory, num_classes, **arguments)
    if not isinstance(network, keras.Model):
        raise ValueError(
            "a network must be a keras.Model of Keras 3. Received: "
            f"network={spec}, which gives a "
            f"{type(network).__module__}.{type(network).__name__}"
        )
    if not network.built:  # A subclassed network is built by calling it.
        _outputs(network, spec, input_shape)
    return network


def copied(network: keras.Model) -> keras.Model:
    """Copies a network, its weights and its frozen layers.

    Args:
        network: a built `keras.Model` that can be made from its configuration.
    """
    made = type(network).from_config(network.get_config())
    if not made.built:
        made.build(network.input_shape)
    made.set_weights(network.get_weights())
    return made


def _check_logits(
    network: keras.Model,
    spec: str,
    num_classes: int,
    input_shape: tuple[int, ...],
) -> None:
    """Checks that a network maps the images to logits.

    Args:
        network: the network.
        spec: its spec, for the messages.
        num_classes: see `build`.
        input_shape: see `build`.
    """
    output = _outputs(network, spec, input_shape)
    shape = getattr(output, "shape", None)
    if shape is None or tuple(shape[1:]) != (num_classes,):
        outputs = type(output).__name__ if shape is None else tuple(shape[1:])
        raise ValueError(
            f"the network must return {num_classes} logits, one a class. "
            f"Received: network={spec}, which returns {outputs}"
        )
    check_ending(network)


def _outputs(
    network: keras.Model, spec: str, input_shape: tuple[int, ...]
) -> Any:
    """Returns the symbolic outputs of a network, and builds it if need be."""
    images = keras.Input(input_shape)
    try:
        if network.built:
            return network.compute_output_spec(images)
        return network(images)
    except Exception as error:  # Layers may be the user's code.
        raise ValueError(
            f"the network must take the images, of shape {input_shape} "
            f"({files.reason(error)}). Received: network={spec}"
        ) from error
