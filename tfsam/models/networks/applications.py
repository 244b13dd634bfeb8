"""Networks of `keras.applications`, from pixels in [0, 1] to logits."""

import contextlib
import inspect
import re
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfsam.models import fitting
from tfsam.models.pixel_ranges import PixelRange
from tfsam.support import files
from tfsam.support.factories import check_options
from tfsam.support.suggestions import did_you_mean

# Arguments of the classes that the data, other flags or tfsam itself set.
_SET = (
    *("include_top", "weights", "input_tensor", "input_shape", "pooling"),
    *("classes", "classifier_activation", "include_preprocessing", "name"),
)

_CACHE = "~/.keras/models"


def keras_application(
    num_classes: int,
    *,
    name: str = "",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    weights: str | None = None,
    **options: Any,
) -> keras.Model:
    """Builds a network of `keras.applications`, such as keras:MobileNetV2.

    Layers in front do the preprocessing of the class, so that pixels are in
    [0, 1]; gray images are repeated as red, green and blue.

    Args:
        num_classes: number of logits.
        name: name of the class, in any case: MobileNetV2, ResNet50,
            EfficientNetB0, ConvNeXtTiny, ... Without one, the error lists all.
        input_shape: (height, width, channels) of the images.
        weights: "imagenet" for the weights of ImageNet, which Keras downloads,
            under a new head: average pooling and a Dense layer. None for random
            weights and the head of the class.
        **options: arguments of the class, such as alpha=0.35.

    Returns:
        A functional `keras.Model`, whose only graph has the layers of the
        class under their own names.

    Raises:
        ValueError: if there is no such class, it has no such option, or it
            cannot be built for the images.
        OSError: if the weights cannot be downloaded.

    Example:
        >>> network = keras_application(
        ...     10, name="mobilenetv2", input_shape=(32, 32, 1), alpha=0.35
        ... )
        >>> network.input_shape, network.output_shape
        ((None, 32, 32, 1), (None, 10))
    """
    name, application = _application(name)
    settable = _settable(application)
    check_options(settable, options)
    wanted = (*input_shape[:2], 3)
    with _channels_last():
        steps = fitting.fit(input_shape, wanted, _pixels_of(application)).steps
        pixels = x = keras.Input(input_shape, name="pixels")
        for step in steps:
            x = step(x)
        head: dict[str, Any] = {
            "classes": num_classes,
            "classifier_activation": None,
        }
        if weights is not None:
            head = {"include_top": False, "pooling": "avg"}
        made = _built(
            *(name, application, weights),
            {"input_tensor": x, "input_shape": wanted, **head, **options},
        )
        logits = made.outputs[0]
        if weights is not None:
            logits = keras.layers.Dense(num_classes, name="predictions")(logits)
    # Under mixed precision, keeps the logits and the loss in float32.
    if logits.dtype != "float32":
        to_float32 = keras.layers.Activation("linear", dtype="float32")
        logits = to_float32(logits)
    return keras.Model(pixels, logits, name=made.name)


def names() -> list[str]:
    """Returns the names of all classes.

    Example:
        >>> "MobileNetV2" in names()
        True
    """
    found = vars(keras.applications)
    return sorted(n for n in found if n[0].isupper() and callable(found[n]))


def _application(given: str) -> tuple[str, Callable[..., keras.Model]]:
    """Returns the class of a name in any case, with its own name."""
    for name in names():
        if name.casefold() == given.casefold():
            return name, getattr(keras.applications, name)
    hint = did_you_mean(given, names()) or f": {', '.join(names())}"
    raise ValueError(
        "keras:NAME takes the name of a class of keras.applications"
        f"{hint}. Received: network=keras:{given}"
    )


def _settable(application: Callable[..., keras.Model]) -> Callable[..., Any]:
    """Returns a function with the options that a class leaves to the user."""
    parameters = inspect.signature(application).parameters
    free = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters.values()]

    def settable(**options: Any) -> None: ...

    settable.__name__ = application.__name__
    settable.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter for parameter in free if parameter.name not in _SET]
    )
    return settable


def _pixels_of(application: Callable[..., keras.Model]) -> PixelRange:
    """Returns the range of pixels that a class was made for.

    The `preprocess_input` of its module tells, which maps pixels in 0..255
    linearly, channel by channel, and may reverse the channels.
    """
    preprocess = sys.modules[application.__module__].preprocess_input

    def preprocessed(red: float, green: float, blue: float) -> np.ndarray:
        pixel = np.array([[[[red, green, blue]]]])
        found = preprocess(pixel, data_format="channels_last")
        return np.asarray(found, np.float64)[0, 0, 0]

    black, white = preprocessed(0, 0, 0), preprocessed(255, 255, 255)
    return PixelRange(
        application.__name__,
        scale=_alike(white - black),
        offset=_alike(black),
        reversed=bool(preprocessed(255, 0, 0)[0] == black[0]),
    )


def _alike(numbers: np.ndarray) -> tuple[float, ...]:
    """Returns numbers by channel, or a single one if they are equal."""
    found = tuple(numbers.tolist())
    return found[:1] if len({*found}) == 1 else found


def _built(
    name: str,
    application: Callable[..., keras.Model],
    weights: str | None,
    arguments: dict[str, Any],
) -> keras.Model:
    """Builds a network; any error becomes one line.

    Args:
        name: the name of the class.
        application: the class.
        weights: "imagenet" or None.
        arguments: its other arguments.
    """
    try:
        return application(weights=weights, **arguments)
    except Exception as error:  # Keras raises a bare one if a download fails.
        reason = files.reason(error)
        height, width, _ = arguments["input_shape"]
        if address := re.search(r"https?://\S+/([^/\s:]+)", str(error)):
            raise OSError(
                f"the weights of {name} cannot be downloaded: get "
                f"{address[0].rstrip(':')} on another machine, and place it in "
                f"{_CACHE} as {_cached(address[1])} ({reason}). "
                "Received: weights=imagenet"
            ) from error
        if not isinstance(error, (TypeError, ValueError)):
            raise
        raise ValueError(
            f"{name} cannot be built for images of {height}x{width} "
            f"({reason}): --image_size gives another size. "
            f"Received: network=keras:{name}"
        ) from error


def _cached(name: str) -> str:
    """Returns the name of a downloaded file in the cache of Keras."""
    if name.startswith("NASNet"):  # Elsewhere the names are equal.
        return name.lower().replace("-", "_")
    return name


@contextlib.contextmanager
def _channels_last() -> Iterator[None]:
    """Makes layers in tfsam's layout, whatever Keras's configuration is."""
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)
