"""Descriptions of layers, models and other objects of Keras."""

import functools
import re
import types
import warnings
from typing import Any
from typing import Protocol

import keras

from tfsam.support.identity.bytecode import assigned
from tfsam.support.identity.bytecode import codes
from tfsam.support.identity.bytecode import read
from tfsam.support.identity.digests import ATOMS
from tfsam.support.identity.digests import Unknown
from tfsam.support.identity.digests import digest
from tfsam.support.identity.libraries import is_library
from tfsam.support.identity.libraries import is_of_library

# Entries of a layer's configuration that inference does not depend on.
_OF_TRAINING = re.compile(
    "seed|.*(initializer|regularizer|constraint)|compile_config|trainable"
    "|module|registered_name|shared_object_id"
)

# Attributes of a layer that are wrapped methods, or depend on its place.
_OF_LAYERS = {"build", "quantize", "name", "_path", "_parent_path"}

# The kinds of objects that `KerasDescriber` describes.
KINDS = (
    keras.Operation,
    *(keras.Loss, keras.Metric, keras.Optimizer, keras.Initializer),
    *(keras.Regularizer, keras.DTypePolicy),
)


class Describer(Protocol):
    """The describer of all kinds of objects."""

    def __call__(self, value: Any) -> Any:
        """Describes an object."""

    def named(self, name: str, value: Any) -> Any:
        """Describes a part of an object; errors begin with the name."""


class KerasDescriber:
    """Describes layers, models and other objects of Keras.

    Args:
        describe: The describer of all other objects.
    """

    def __init__(self, describe: Describer) -> None:
        self._describe = describe
        self._weighed: set[int] = set()

    def __call__(self, value: Any) -> dict[str, Any]:
        """Describes an object of one of the `KINDS`."""
        cls = type(value)
        described = {"class": self._describe(cls)}
        name = getattr(value, "name", None)
        if isinstance(name, str):
            described["name"] = _unnumbered(name)
        config = _real_config(value)
        if config is not None:
            described["config"] = digest(self.config(config))
        if isinstance(value, keras.layers.Layer):
            described["policy"] = value.dtype_policy.name
            weights = [w for w in value.weights if id(w) not in self._weighed]
            self._weighed |= {id(w) for w in weights}
            if weights:
                described["weights"] = digest(
                    [self._describe(w) for w in weights]
                )
        attributes = self._attributes(value, config is None)
        if attributes:
            described["attributes"] = attributes
        if hasattr(value, "operations") and hasattr(value, "_nodes"):
            described["graph"] = digest(self._graph(value))
        elif getattr(value, "_layers", None):
            described["layers"] = digest(
                [self._describe(la) for la in value._layers]
            )
        return described

    def _attributes(self, value: Any, plain: bool) -> dict[str, Any]:
        """Describes the attributes that a configuration may not include.

        Args:
            value: The object.
            plain: Whether it has no configuration.
        """
        user, read = read_by_users(type(value))
        found: dict[str, Any] = {}
        for name, part in sorted(vars(value).items()):
            skipped = name in _OF_LAYERS or name in not_called() - read
            if skipped or isinstance(part, keras.Variable):
                continue
            bookkeeping = name in _bookkeeping()
            if user and (name in read or not bookkeeping):
                try:
                    found[name] = self._describe.named(
                        f"{type(value).__name__}.{name}", part
                    )
                except Unknown:
                    if name in read:
                        raise
            elif _is_foreign(part):
                found[name] = self._describe.named(
                    f"{type(value).__name__}.{name}", part
                )
            elif (
                plain
                and not bookkeeping
                and (
                    _is_plain(part) or not isinstance(value, keras.layers.Layer)
                )
            ):
                found[name] = self._describe.named(name, part)
        return found

    def config(self, config: Any) -> Any:
        """Describes a configuration, without seeds and numbers of names.

        Args:
            config: A configuration, or a part of one.
        """
        if isinstance(config, dict):
            if config.get("class_name") == "__lambda__":
                return "lambda"  # It is described as an attribute.
            return {
                str(key): _unnumbered(part)
                if key == "name" and isinstance(part, str)
                else self.config(part)
                for key, part in sorted(config.items(), key=str)
                if not _OF_TRAINING.fullmatch(str(key))
            }
        if isinstance(config, (list, tuple)):
            return [self.config(part) for part in config]
        if isinstance(config, (keras.layers.Layer, types.FunctionType)):
            return type(config).__name__  # It is described as an attribute.
        return self._describe(config)

    def _graph(self, model: Any) -> list[Any]:
        """Describes the operations of a functional model and their inputs."""
        numbers = {id(op): n for n, op in enumerate(model.operations)}

        def place(tensor: keras.KerasTensor) -> dict[str, Any]:
            op, node, index = tensor._keras_history
            return {"tensor": [numbers[id(op)], node, index]}

        def arguments(node: Any) -> dict[str, Any]:
            given = [node.arguments.args, node.arguments.kwargs]
            return {
                "structure": str(keras.tree.map_structure(lambda _: 0, given)),
                "values": [
                    place(part)
                    if isinstance(part, keras.KerasTensor)
                    else self._describe(part)
                    for part in keras.tree.flatten(given)
                ],
            }

        operations = [
            [
                self._describe(operation),
                [
                    arguments(node)
                    for node in operation._inbound_nodes
                    # The operation may belong to other models, too.
                    if all(
                        id(tensor._keras_history[0]) in numbers
                        for tensor in node.arguments.keras_tensors
                    )
                ],
            ]
            for operation in model.operations
        ]
        ends = [
            [place(tensor) for tensor in keras.tree.flatten(tensors)]
            for tensors in (model.inputs, model.outputs)
        ]
        return [operations, ends]


def has_foreign_code(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer runs code that is not Keras's or tfsam's.

    Args:
        layer: The layer.

    Example:
        >>> has_foreign_code(keras.layers.Dense(2))
        False
    """
    return not is_of_library(type(layer)) or any(
        _is_foreign(part)
        for name, part in vars(layer).items()
        if name not in _OF_LAYERS | not_called()
    )


@functools.cache
def not_called() -> frozenset[str]:
    """Returns the names of members that only training and saving use."""
    names = set(dir(keras.Model)) - set(dir(keras.layers.Layer))
    trainers = [c for c in keras.Model.__mro__ if "trainer" in c.__module__]
    return frozenset(names).union(
        name
        for cls in trainers
        for code in codes(cls)
        for name in assigned(code)
    )


def read_by_users(cls: type) -> tuple[bool, set[str]]:
    """Returns whether a class is a user's, and the attributes that it reads.

    Args:
        cls: The class.
    """
    methods = [
        code
        for owner in cls.__mro__
        if not is_of_library(owner)
        for code in codes(owner, skip={"__init__", *not_called()})
    ]
    names = {name for code in methods for name in read(code)[2]}
    return not is_of_library(cls), names


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return type(value) in ATOMS


def _unnumbered(name: str) -> str:
    """Removes the number that Keras adds to the names of layers."""
    return re.sub(r"_\d+$", "", name)


def _is_foreign(value: Any) -> bool:
    """Returns whether an attribute of a Keras layer holds a user's code."""
    if isinstance(value, (list, tuple, set)):
        return any(_is_foreign(item) for item in value)
    if isinstance(value, dict):
        return any(_is_foreign(item) for item in value.values())
    if isinstance(value, types.FunctionType):
        if not is_library(value.__globals__.get("__name__")):
            return True
        cells = [
            cell.cell_contents
            for cell in value.__closure__ or ()
            if cell != types.CellType()
        ]
        return any(
            isinstance(c, types.FunctionType) and _is_foreign(c) for c in cells
        )
    if isinstance(value, types.MethodType):
        return _is_foreign(value.__func__)
    if isinstance(value, functools.partial):
        return True
    if callable(getattr(value, "python_function", None)):
        return _is_foreign(value.python_function)
    return not isinstance(value, (type, types.ModuleType)) and not (
        is_of_library(type(value))
    )


def _real_config(value: Any) -> Any:
    """Returns an object's configuration, None if it has none."""
    owners = (c for c in type(value).__mro__ if "get_config" in vars(c))
    owner = next(owners, None)
    if owner is None or owner in _bases_of_layers():
        return None
    try:
        with warnings.catch_warnings():
            # Keras warns that functions are not safe to load again.
            warnings.simplefilter("ignore")
            return value.get_config()
    except Exception:
        # A user's layer, or a layer that holds one, may raise anything.
        return None


@functools.cache
def _bases_of_layers() -> frozenset[type]:
    """Returns the classes that layers and models have in common."""
    # With names, so that Keras does not number the user's layers differently.
    x = keras.Input((1,), name="x")
    y = keras.layers.Identity(name="y")(x)
    functional = type(keras.Model(x, y, name="functional"))
    classes = {*keras.Sequential.__mro__, *functional.__mro__}
    return frozenset(classes)


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Returns the attributes that the bases of layers assign."""
    return frozenset(
        name
        for cls in _bases_of_layers()
        for code in codes(cls)
        for name in assigned(code)
    )
