"""Networks from files, to be trained further."""

from collections.abc import Callable
from collections.abc import Sequence

import keras

from tfsam import registries
from tfsam.models import fitting
from tfsam.models import loading
from tfsam.models import pixel_ranges
from tfsam.models.files import formats
from tfsam.models.files import reading
from tfsam.models.networks import heads
from tfsam.models.stored_models import Stored

Log = Callable[[str], None]


def from_file(
    num_classes: int,
    *,
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    pixels: str = "auto",
    trusted: Sequence[str] = (),
    log: Log = lambda line: None,
) -> keras.Model:
    """Loads a network from a file, to train it further.

    A softmax or sigmoid at its end is removed. Its head is replaced where the
    number of classes differs, and kept where it is equal.

    Args:
        num_classes: number of logits.
        name: path of a file of a Keras model, `.keras` or HDF5.
        input_shape: (height, width, channels) of the images; None for those
            that the network takes.
        pixels: range of the pixels that the network takes, see
            `tfsam.models.load`; "auto" takes what its layers tell, or 0..1.
        trusted: names of Lambda layers whose code may run.
        log: a function of a line of text.

    Raises:
        ValueError: if the file holds no network that Keras 3 can train, or the
            network fits neither the images nor their classes.
    """
    stored = _read(name, trusted)
    network = stored.model
    before = _classes(network)
    if before not in (None, num_classes):
        network = heads.replaced(network, num_classes)
        log(
            f"{name}: its head for {before} classes is replaced by one for "
            f"{num_classes}, with new weights"
        )
    opened = loading.open_model(network)
    chosen = opened.told if pixels == "auto" else pixels
    fitted = opened.fitted(
        pixel_ranges.parse(chosen or pixel_ranges.PLAIN), input_shape
    )
    for note in (*stored.notes, *fitted.notes):
        log(f"{name}: {note}")
    if pixels == "auto":
        how = "as its layers tell" if chosen else "--pixels sets another range"
        log(f"{name}: pixels in {fitted.pixels.name} ({how})")
    if not isinstance(fitted.function, keras.Model):
        raise _untrainable(name, "its softmax or sigmoid cannot be removed")
    return fitted.function


def _read(name: str, trusted: Sequence[str] = ()) -> Stored:
    """Reads a file; refuses a SavedModel, which is a program, unread."""
    if formats.recognize(name).format == "saved_model":
        raise _untrainable(name, "it is a SavedModel, a program")
    stored = reading.read(name, trusted=tuple(trusted))
    if not isinstance(stored.model, keras.Model):
        raise _untrainable(name, f"{stored.reader} alone reads it")
    return stored


def _untrainable(name: str, why: str) -> ValueError:
    return ValueError(
        f"a network that is trained must be a model of Keras 3, and {why}: "
        "build it in Python, by --network=MODULE:FUNCTION, and give its "
        f"--weights. Received: network={name}"
    )


def _classes(network: keras.Model) -> int | None:
    """Returns the number of classes of a stored network, None if unknown."""
    outputs = getattr(network, "outputs", None) or []
    if len(outputs) != 1:
        return None
    sizes = [size for size in outputs[0].shape[1:] if size != 1]
    return 2 if not sizes else sizes[-1]


def image_size(
    spec: str, trusted: Sequence[str] = ()
) -> tuple[int, int] | None:
    """Returns the (height, width) that a network from a file takes.

    Args:
        spec: the spec of a network.
        trusted: names of Lambda layers whose code may run.

    Returns:
        The size; None if it takes any, or the network is not from a file.

    Raises:
        ValueError: if the file holds no network.
    """
    path = registries.network_file(spec)
    if path is None:
        return None
    inputs = getattr(_read(str(path), trusted).model, "inputs", None) or []
    shape = fitting.image_shape(tuple(inputs[0].shape[1:])) if inputs else None
    if shape is None or None in shape[:2]:
        return None
    return shape[0], shape[1]
