"""Structures of several inputs, of which one holds the pixels.

A network with several inputs takes a list, a tuple or a dict of them, with a
row for each example in all. Attacks change a single one, and know the others
as they are.
"""

from collections.abc import Hashable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam.support.validators import Bounds

# Rank of a batch of images, at least.
_LEAST_RANK = 3


class Inputs(NamedTuple):
    """A structure of inputs, and the place of the one that is attacked.

    Attributes:
        kind: "dict", "list" or "tuple".
        keys: The keys of the inputs, or their numbers.
        attacked: The key of the input that is attacked.

    Example:
        >>> inputs = Inputs("dict", ("age", "image"), "image")
        >>> inputs.split({"age": 3, "image": 5})
        (5, (3,))
        >>> inputs.join(6, (3,))
        {'age': 3, 'image': 6}
    """

    kind: str
    keys: tuple[Hashable, ...]
    attacked: Hashable

    def split(self, whole: Any) -> tuple[Any, tuple[Any, ...]]:
        """Returns the attacked input, and the others.

        Args:
            whole: A structure of inputs.
        """
        others = tuple(whole[k] for k in self.keys if k != self.attacked)
        return whole[self.attacked], others

    def join(self, pixels: Any, others: Iterable[Any]) -> Any:
        """Returns the structure of the attacked input and the others.

        Args:
            pixels: The attacked input.
            others: The other inputs, as `split` returns them.
        """
        rest = iter(others)
        found = {
            key: pixels if key == self.attacked else next(rest)
            for key in self.keys
        }
        if self.kind == "dict":
            return found
        values = found.values()
        return tuple(values) if self.kind == "tuple" else list(values)


def inputs_of(
    whole: Any,
    attacked: str | int | None = None,
    names: Iterable[str] = (),
    bounds: Bounds = None,
) -> Inputs:
    """Finds the input that is attacked among several.

    Args:
        whole: A dict, list or tuple of arrays or tensors.
        attacked: Name or number of the input. None is the only one that looks
            like images: of floats, of rank 3 or more, and inside the bounds.
        names: The names of the inputs of the network, in their order.
        bounds: (lowest, highest) value of a pixel; None does not look at the
            values.

    Returns:
        The `Inputs`.

    Raises:
        ValueError: If there is no such input, or several look like images, or
            the structure is nested.

    Example:
        >>> x = {"age": np.zeros([2, 1]), "image": np.zeros([2, 8, 8, 1])}
        >>> inputs_of(x).attacked
        'image'
    """
    known = isinstance(whole, dict)
    kind = "dict" if known else "tuple" if type(whole) is tuple else "list"
    keys = tuple(whole) if known else tuple(range(len(whole)))
    if any(not hasattr(whole[key], "shape") for key in keys):
        raise ValueError(
            "x must be one array, or a list or dict of arrays, one for each "
            f"input. Received: {kind} of {len(keys)}"
        )
    named = dict(zip(names, keys, strict=False)) if not known else {}
    if attacked is not None:
        place = named.get(str(attacked), attacked)
        if place not in keys:
            raise ValueError(
                f"attacked must be one of the inputs, {_listed(keys, named)}. "
                f"Received: attacked={attacked}"
            )
        return Inputs(kind, keys, place)
    images = [key for key in keys if _is_image(whole[key], bounds)]
    if len(images) != 1:
        raise ValueError(
            f"{len(images)} of the inputs look like images; choose the one to "
            f"attack by attacked=, one of {_listed(keys, named)}. "
            "Received: attacked=None"
        )
    return Inputs(kind, keys, images[0])


def _listed(keys: Iterable[Hashable], named: dict[str, Hashable]) -> str:
    """Returns the keys of inputs, with their names."""
    names = {key: name for name, key in named.items()}
    return ", ".join(
        f"{key} ({names[key]})" if key in names else str(key) for key in keys
    )


def _is_image(values: Any, bounds: Bounds) -> bool:
    """Returns whether an input looks like images."""
    floating = tf.as_dtype(values.dtype).is_floating
    if not floating or len(values.shape) < _LEAST_RANK:
        return False
    if bounds is None:
        return True
    low, high = np.min(bounds[0]), np.max(bounds[1])
    array = np.asarray(values)
    return bool(array.min() >= low and array.max() <= high)
