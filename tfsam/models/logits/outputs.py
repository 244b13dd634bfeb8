"""Outputs of models: the choice of the one that holds the classes."""

import dataclasses
import math
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """An output that a model offers.

    Attributes:
        names: names by which it can be chosen; messages use the first.
        shape: its shape (batch, ...), None for an unknown rank.
        dtype: name of its dtype.
    """

    names: tuple[str, ...]
    shape: tuple[int | None, ...] | None
    dtype: str

    @property
    def of_classes(self) -> bool:
        """Whether it may hold a number for each class."""
        if "float" not in self.dtype:
            return False
        if self.shape is None:
            return True
        wide = [size for size in self.shape[1:] if size != 1]
        return len(self.shape) > 0 and len(wide) < 2


def choose(
    outputs: Sequence[Output], wanted: str | None
) -> tuple[int, tuple[str, ...]]:
    """Chooses the output that holds the classes.

    Args:
        outputs: The outputs that a model offers.
        wanted: A name or the number of one of them. None takes the only one, or
            the only one that is called logits, or the only one of a class
            output's shape.

    Returns:
        Its position, and notes about the choice.

    Raises:
        ValueError: If there is no such output, or `wanted` is needed.
    """
    offered = ", ".join(output.names[0] for output in outputs)
    if wanted is not None:
        found = [
            position
            for position, output in enumerate(outputs)
            if wanted in output.names or str(wanted) == str(position)
        ]
        if not found:
            raise ValueError(
                "output must be the name of one of the model's outputs: "
                f"{offered}. Received: output={wanted}"
            )
        return found[0], ()
    if len(outputs) == 1:
        return 0, ()
    fitting = [
        position for position, output in enumerate(outputs) if output.of_classes
    ]
    named = [
        position
        for position in fitting
        if any("logits" in name.lower() for name in outputs[position].names)
    ]
    for found in (named, fitting):
        if len(found) == 1:
            name = outputs[found[0]].names[0]
            return found[0], (f"of the outputs {offered}, {name} was taken",)
    example = outputs[_likeliest(outputs)].names[0]
    raise ValueError(
        "the model has several outputs: choose the one with the classes, as "
        f"--output={example} or output={example!r}. "
        f"Received: outputs {offered}"
    )


def _likeliest(outputs: Sequence[Output]) -> int:
    """Returns the position of the output with the most numbers by class."""

    def size(position: int) -> int:
        output = outputs[position]
        shape = output.shape if output.of_classes else None
        return math.prod(part or 1 for part in (shape or ())[1:])

    return max(range(len(outputs)), key=size)


def describe(names: Iterable[str], tensor: Any) -> Output:
    """Describes a tensor as an output.

    Args:
        names: Its names; equal ones are dropped.
        tensor: A symbolic tensor of Keras or TensorFlow.
    """
    shape = getattr(tensor.shape, "rank", 0)
    return Output(
        names=tuple(dict.fromkeys(map(str, names))),
        shape=None if shape is None else tuple(tensor.shape),
        dtype=getattr(tensor.dtype, "name", tensor.dtype),
    )


def count_classes(shape: Any, dtype: str) -> int:
    """Returns the number of values of an example in an output.

    Args:
        shape: Its shape, (batch, classes) or with axes of size 1.
        dtype: Name of its dtype.

    Raises:
        ValueError: If it has another shape, or holds labels.

    Example:
        >>> count_classes((None, 1, 1, 10), "float32")
        10
    """
    known = getattr(shape, "rank", 1) not in (None, 0)
    sizes = tuple(shape[1:]) if known else (None,)
    wide = [size for size in sizes if size != 1]
    if None in sizes or len(wide) > 1 or "float" not in dtype:
        raise ValueError(
            "the model must return one number for each class, (batch, classes)."
            f" Received: outputs of {dtype} and shape {shape}"
        )
    return math.prod(sizes)
