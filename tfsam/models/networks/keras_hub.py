"""Networks of KerasHub, from pixels in [0, 1] to logits."""

import importlib
from typing import Any

import keras

from tfsam.models import loading
from tfsam.models.pixel_ranges import PixelRange
from tfsam.support import files


def keras_hub_preset(
    num_classes: int,
    *,
    name: str = "",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    load_weights: bool = True,
) -> keras.Model:
    """Builds an image classifier of KerasHub from a preset.

    The scale and offset of the preset's pixels are layers in front, so that
    pixels are in [0, 1]; gray images are repeated as red, green and blue.

    Args:
        num_classes: number of logits; the preset's head is replaced.
        name: a preset of keras_hub.models.ImageClassifier: its name, such as
            resnet_50_imagenet, an address such as hf://user/name, or a folder.
        input_shape: (height, width, channels) of the images.
        load_weights: whether to load the preset's weights, which KerasHub
            downloads, or to begin with random ones.

    Returns:
        A functional `keras.Model`.

    Raises:
        ImportError: if keras_hub is not installed.
        OSError: if the preset cannot be downloaded.
        ValueError: if there is no such preset, or it cannot be built.
    """
    hub = importlib.import_module("keras_hub")
    try:
        made = hub.models.ImageClassifier.from_preset(
            name, load_weights=load_weights, num_classes=num_classes
        )
    except Exception as error:  # The libraries of several hosts raise theirs.
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(
            "kerashub:PRESET takes a preset of keras_hub.models.ImageClassifier"
            f" that can be downloaded, or a folder ({files.reason(error)}). "
            f"Received: network=kerashub:{name}"
        ) from error
    converter = getattr(made.preprocessor, "image_converter", None)
    pixels = PixelRange(
        name,
        scale=_numbers(getattr(converter, "scale", None), 1.0, 255.0),
        offset=_numbers(getattr(converter, "offset", None), 0.0),
    )
    plain = keras.Model(made.inputs, made.outputs, name=made.name)
    fitted = loading.open_model(plain).fitted(pixels, input_shape)
    network: keras.Model = fitted.function
    return network


keras_hub_preset.requires = (  # type: ignore[attr-defined]
    *("keras_hub", "kerashub"),
)


def _numbers(given: Any, default: float, unit: float = 1) -> tuple[float, ...]:
    """Returns a converter's number, or those by channel, in other units."""
    numbers = default if given is None else given
    listed = numbers if isinstance(numbers, (list, tuple)) else [numbers]
    return tuple(unit * float(number) for number in listed)
