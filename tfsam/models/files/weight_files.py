"""Files of weights, loaded into a network of the same architecture."""

import pathlib
import tempfile
from typing import Any

import h5py
import keras

from tfsam.models.files import archives
from tfsam.models.files import formats
from tfsam.models.files import hdf5_files
from tfsam.models.files import ordered_weights
from tfsam.models.files import tensorflow_checkpoints
from tfsam.support import files

# Groups of Keras 3 that are no weights of a layer.
_OTHERS = ("optimizer", "seed_generator", "loss_tracker", "compile_metrics")


def load_weights_into(network: keras.Model, path: files.Path) -> None:
    """Loads weights into a network, all of them and nothing else.

    Args:
        network: A built network. Its weights are assigned.
        path: Path of weights alone: `.weights.h5` of Keras 3, HDF5 of Keras 1
            or 2, or a TensorFlow checkpoint; or of a model in a `.keras` or
            HDF5 file, whose weights are taken.

    Raises:
        ValueError: If the file holds no weights, or they do not fit the
            network: layers, numbers or shapes differ. The message is one line
            that says what to do. The network may then have a part of the
            weights.

    Example:
        >>> def network():
        ...     return keras.Sequential(
        ...         [keras.Input((4,)), keras.layers.Dense(3)]
        ...     )
        >>> path = pathlib.Path(tempfile.mkdtemp(), "a.weights.h5")
        >>> first, second = network(), network()
        >>> first.save_weights(path)
        >>> load_weights_into(second, path)
        >>> bool((first.get_weights()[0] == second.get_weights()[0]).all())
        True
    """
    try:
        _load(network, files.expanded(path))
    except Exception as error:
        # A file can be damaged in many ways.
        raise ValueError(
            "weights must be a file of weights for this network: "
            f"{files.reason(error).rstrip('.')}. Received: weights={path}"
        ) from error


def _load(network: keras.Model, path: pathlib.Path) -> None:
    prefix = tensorflow_checkpoints.prefix(path)
    if prefix is not None:
        tensorflow_checkpoints.assign(network, prefix)
        return
    format, place = formats.look(path)
    load = {"hdf5": _hdf5, "keras": _keras, "saved_model": _no_weights}[format]
    load(network, place)


def _no_weights(network: keras.Model, path: pathlib.Path) -> None:
    raise ValueError(
        "a SavedModel without a checkpoint by layers: give a .keras or .h5 file"
    )


def _hdf5(network: keras.Model, path: pathlib.Path) -> None:
    """Loads the weights of an HDF5 file of any Keras."""
    with hdf5_files.opened(path) as file:
        group = file.get("model_weights", file)
        if hdf5_files.names(group, "layer_names"):
            ordered_weights.assign(network, group)
            return
        _check_number(network, file)
    _by_keras(network, path, ".weights.h5")


def _keras(network: keras.Model, path: pathlib.Path) -> None:
    """Loads the weights of a `.keras` file."""
    with archives.opened(path) as archive, archives.weights(archive) as place:
        with hdf5_files.opened(place) as file:
            _check_number(network, file)
        _by_keras(network, place, ".weights.h5")


def _by_keras(network: keras.Model, path: pathlib.Path, suffix: str) -> None:
    """Loads the weights by Keras, which knows formats by their suffixes."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder, f"file{suffix}")
        place.symlink_to(path.absolute())
        try:
            network.load_weights(place)
        except ValueError as error:
            # The first paragraph counts failures, the second has a reason.
            _, _, reason = str(error).partition("\n\n")
            raise ValueError(files.reason(ValueError(reason))) from error


def _check_number(network: keras.Model, file: Any) -> None:
    """Checks that the file has no more weights than the network.

    Keras checks that it has no fewer.
    """
    stored = []

    def count(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            stored.append(name)

    file.visititems(count)
    stored = [
        name for name in stored if not any(other in name for other in _OTHERS)
    ]
    if not stored:
        raise ValueError("an HDF5 file without weights of Keras")
    if len(stored) > len(network.weights):
        raise ValueError(
            f"the network has {len(network.weights)} weights, and the file "
            f"{len(stored)}"
        )
