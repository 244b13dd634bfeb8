"""Signatures of SavedModels: the choice of the one that classifies images."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfsam.models.logits import outputs
from tfsam.models.logits.outputs import Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """A concrete function from one batch of images to outputs.

    Attributes:
        name: its name in the SavedModel.
        function: the `tf.types.experimental.ConcreteFunction`.
        image: position of the images among its inputs.
        values: tensors for the other inputs, by position.
        outputs: its outputs, in the order of `function.outputs`.
        live: the code that was traced, None for a stored function.
    """

    name: str
    function: Any
    image: int
    values: dict[int, Any]
    outputs: tuple[Output, ...]
    live: Callable[[tf.Tensor], Any] | None = None

    @property
    def spec(self) -> tf.TensorSpec:
        """The spec of the images."""
        tensor = self.function.inputs[self.image]
        return tf.TensorSpec(tensor.shape, tensor.dtype, "images")

    def __call__(self, x: tf.Tensor, position: int) -> tf.Tensor:
        """Returns an output of the function as it was stored."""
        args = self.function.structured_input_signature
        leaves = tf.nest.flatten(args)
        tensors = [
            number
            for number, leaf in enumerate(leaves)
            if isinstance(leaf, tf.TypeSpec)
        ]
        for number, value in self.values.items():
            leaves[tensors[number]] = value
        leaves[tensors[self.image]] = tf.cast(x, self.spec.dtype)
        positional, named = tf.nest.pack_sequence_as(args, leaves)
        found = self.function(*positional, **named)
        return flat(found)[position]


def describe(
    name: str, function: Any, names: Sequence[str] | None = None
) -> Signature | str:
    """Describes a concrete function as a signature.

    Args:
        name: Its name.
        function: A `tf.types.experimental.ConcreteFunction`.
        names: Names of its outputs, None for those in what it returns.

    Returns:
        A `Signature`, or the reason for which it classifies no images.
    """
    count = len(function.inputs) - len(function.captured_inputs)
    inputs = function.inputs[:count]
    values = {
        position: tf.constant(value, tensor.dtype)
        for position, tensor in enumerate(inputs)
        if (value := _value_in_inference(tensor)) is not None
    }
    images = [p for p in range(count) if p not in values]
    if len(images) != 1:
        names = ", ".join(inputs[p].op.name for p in images) or "nothing"
        return f"takes {names}"
    tensor = inputs[images[0]]
    if tensor.dtype == tf.string:
        return "takes strings, such as encoded images"
    numeric = tensor.dtype.is_floating or tensor.dtype.is_integer
    if not numeric or (tensor.shape.rank or 2) < 2:
        return f"takes {tensor.dtype.name} of shape {tensor.shape}"
    found = tuple(
        outputs.describe([name], output)
        for name, output in zip(
            names or _names(function.structured_outputs),
            function.outputs,
            strict=True,
        )
    )
    if not any(output.of_classes for output in found):
        return "returns no numbers by class"
    return Signature(
        name=name,
        function=function,
        image=images[0],
        values=values,
        outputs=found,
    )


def _value_in_inference(tensor: Any) -> Any:
    """Returns the value of a switch in inference mode, None for other inputs.

    Switches are a boolean `training` and the rates of a dropout of TensorFlow
    1.
    """
    name = tensor.op.name.lower()
    if tensor.shape.rank not in (0, None):
        return None
    if tensor.dtype == tf.bool and ("train" in name or "learning" in name):
        return False
    if tensor.dtype.is_floating and "keep" in name:
        return 1.0
    if tensor.dtype.is_floating and ("drop" in name or "rate" in name):
        return 0.0
    return None


def _names(structure: Any) -> list[str]:
    """Returns the names of the outputs of a function."""
    count = len(flat(structure))
    if isinstance(structure, dict) and len(structure) == count:
        return [str(key) for key in sorted(structure)]
    return [f"output_{number}" for number in range(count)]


def flat(structure: Any) -> list[Any]:
    """Returns the tensors of a structure, in the order of a function's outputs.

    Args:
        structure: A structure of tensors and None.
    """
    return [leaf for leaf in tf.nest.flatten(structure) if leaf is not None]


@dataclasses.dataclass(frozen=True)
class Choice:
    """An output of a signature.

    Attributes:
        signature: the signature.
        position: position of the output.
        name: full name of the output.
        names: full names of all outputs that were offered.
        notes: notes about the choice.
    """

    signature: Signature
    position: int
    name: str
    names: tuple[str, ...]
    notes: tuple[str, ...]


def choose(loaded: Any, wanted: str | None) -> Choice:
    """Chooses a signature of a SavedModel and its output with the classes.

    Args:
        loaded: The result of `tf.saved_model.load`.
        wanted: "SIGNATURE", "SIGNATURE:OUTPUT", "OUTPUT", or None for the
            signature serving_default or the only one that classifies images.

    Raises:
        ValueError: If there is no such signature, or `wanted` is needed.
    """
    described = {
        name: describe(name, function) for name, function in _functions(loaded)
    }
    found = [s for s in described.values() if isinstance(s, Signature)]
    if not found:
        reasons = ", ".join(f"{n} {reason}" for n, reason in described.items())
        raise ValueError(
            "a SavedModel must have a signature from a batch of images to one "
            f"number for each class. Received: {reasons or 'no signature'}"
        )

    def full(signature: Signature, output: Output) -> str:
        name = output.names[0]
        return f"{signature.name}:{name}" if len(found) > 1 else name

    names = tuple(full(s, output) for s in found for output in s.outputs)
    signature, rest, notes = _signature(found, wanted, names)
    position, more = outputs.choose(signature.outputs, rest)
    name = full(signature, signature.outputs[position])
    return Choice(signature, position, name, names, (*notes, *more))


def _functions(loaded: Any) -> list[tuple[str, Any]]:
    """Returns the concrete functions of a SavedModel by their names."""
    signatures = dict(getattr(loaded, "signatures", {}))
    if signatures:
        return sorted(signatures.items())
    # Modules of TensorFlow Hub may be functions without signatures, traced for
    # training=True and False.
    traced = getattr(vars(loaded).get("__call__"), "concrete_functions", [])
    return [
        ("call", function)
        for function in traced
        if True not in tf.nest.flatten(function.structured_input_signature)
    ][:1]


def _signature(
    found: Sequence[Signature], wanted: str | None, names: Sequence[str]
) -> tuple[Signature, str | None, tuple[str, ...]]:
    """Returns the signature, the wanted output of it, and notes."""
    by_name = {signature.name: signature for signature in found}
    offered = ", ".join(names)
    if wanted is not None:
        name, _, rest = wanted.partition(":")
        if name in by_name:
            return by_name[name], rest or None, ()
        usual = _usual(found)
        if usual is not None and _offers(usual, wanted):
            return usual, wanted, ()
        offering = [s for s in found if _offers(s, wanted)]
        if len(offering) == 1:
            return offering[0], wanted, ()
        raise ValueError(
            "output must be a signature, SIGNATURE:OUTPUT or an output of "
            f"the SavedModel: {offered}. Received: output={wanted}"
        )
    usual = _usual(found)
    if usual is None:
        first = found[0].name
        raise ValueError(
            f"the SavedModel has several signatures: choose one, as --output="
            f"{first} or output={first!r}. Received: {offered}"
        )
    if usual.name in ("serving_default", "call"):
        return usual, None, ()
    return usual, None, (f"signature {usual.name} was taken",)


def _usual(found: Sequence[Signature]) -> Signature | None:
    """Returns the signature that is taken unless another one is named."""
    for signature in found:
        if signature.name == "serving_default":
            return signature
    with_logits = [
        signature
        for signature in found
        if any("logits" in o.names[0] for o in signature.outputs)
    ]
    for some in (found, with_logits):
        if len(some) == 1:
            return some[0]
    return None


def _offers(signature: Signature, name: str) -> bool:
    return any(name in output.names for output in signature.outputs)
