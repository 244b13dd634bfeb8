"""HDF5 files of Keras, opened only if they refer to nothing outside."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from tfsam.support import files

# A dataset may be much larger than its bytes on the disk only if it is small.
_LARGEST = 1 << 28
_RATIO = 1000


@contextlib.contextmanager
def opened(path: files.Path) -> Iterator[Any]:
    """Opens an HDF5 file and checks that it is whole and stands alone.

    Args:
        path: Path of the file.

    Yields:
        The `h5py.File`.

    Raises:
        ValueError: If the file is damaged; refers to another file by a link,
            external storage or a virtual dataset; or declares a dataset far
            larger than its stored bytes.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"a truncated or damaged HDF5 file ({files.reason(error)})"
        ) from error
    with file:
        _check(file)
        yield file


def _check(file: Any) -> None:
    """Rejects references to other files, and sizes that are not stored."""
    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(
                    f"an HDF5 file with a link ({type(link).__name__} {name}), "
                    "which may lead to another file"
                )
            found = group[name]
            if isinstance(found, h5py.Group):
                groups.append(found)
            elif isinstance(found, h5py.Dataset):
                _check_dataset(name, found)


def _check_dataset(name: str, dataset: Any) -> None:
    if dataset.external:
        raise ValueError(
            f"an HDF5 file whose dataset {name} is stored in another file"
        )
    if dataset.is_virtual:
        raise ValueError(
            f"an HDF5 file whose dataset {name} is made of other files"
        )
    if dataset.shape is None:
        return
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if declared > max(_LARGEST, _RATIO * stored):
        raise ValueError(
            f"an HDF5 file whose dataset {name} declares {declared} bytes and "
            f"stores {stored}"
        )


def text(value: Any) -> str:
    """Decodes an attribute, which is text or bytes.

    Args:
        value: The attribute.
    """
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else value.tobytes()
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def names(group: Any, key: str) -> list[str]:
    """Reads an attribute that lists names.

    Keras splits it over `key0`, `key1`, ... where it exceeds HDF5's limit.

    Args:
        group: The group.
        key: Name of the attribute.
    """
    parts = [key] if key in group.attrs else []
    while not parts or parts != [key]:
        part = f"{key}{len(parts)}"
        if part not in group.attrs:
            break
        parts.append(part)
    return [text(name) for part in parts for name in group.attrs[part]]


def weights(group: Any) -> list[tuple[str, Any]]:
    """Reads the weights of a layer in the order in which they were stored.

    Args:
        group: The group of a layer.

    Returns:
        Pairs of a name and a dataset.
    """
    found = []
    for name in names(group, "weight_names"):
        dataset = group[name]
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"an HDF5 file whose weight {name} is no dataset")
        found.append((name, dataset))
    return found


def layers(group: Any) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Reads the weights of all layers that have any, in their stored order.

    Args:
        group: The group `model_weights`, or a file of weights.

    Returns:
        Pairs of a layer's name and its weights.
    """
    found = [
        (name, weights(group[name])) for name in names(group, "layer_names")
    ]
    return [(name, stored) for name, stored in found if stored]
