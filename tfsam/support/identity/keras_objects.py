"""Descriptions of layers, models and other objects of Keras."""

import functools
import re
import types
import warnings

import keras

from tfsam.support.identity.bytecode import assigned
from tfsam.support.identity.bytecode import codes
from tfsam.support.identity.bytecode import read
from tfsam.support.identity.description import ATOMS
from tfsam.support.identity.description import Unknown
from tfsam.support.identity.description import digest
from tfsam.support.identity.libraries import is_library
from tfsam.support.identity.libraries import is_of_library

# Of a Keras layer's configuration: what inference does not depend on.
_OF_TRAINING = re.compile(
    "seed|.*(initializer|regularizer|constraint)|compile_config|trainable"
    "|module|registered_name|shared_object_id"
)

# Of a layer: its wrapped methods, and what depends on where it stands.
_OF_LAYERS = {"build", "quantize", "name", "_path", "_parent_path"}

# The kinds of objects that `KerasDescriber` describes.
KINDS = (
    keras.Operation,
    *(keras.Loss, keras.Metric, keras.Optimizer, keras.Initializer),
    *(keras.Regularizer, keras.DTypePolicy),
)


class KerasDescriber:
    """Describes layers, models and other objects of Keras.

    Args:
        describe: the describer of all other objects.
    """

    def __init__(self, describe):
        self._describe = describe
        self._weighed: set[int] = set()

    def __call__(self, value):
        """Describes an object of Keras, one of `KINDS`."""
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

    def _attributes(self, value, plain):
        """Describes what a configuration may leave out."""
        user, read = read_by_users(type(value))
        found = {}
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

    def config(self, config):
        """Describes a configuration without numbered names and seeds."""
        if isinstance(config, dict):
            if config.get("class_name") == "__lambda__":
                return "lambda"  # The layer has it as an attribute.
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
            return type(config).__name__  # An attribute, too.
        return self._describe(config)

    def _graph(self, model):
        """Describes the operations of a functional model and their inputs."""
        numbers = {id(op): n for n, op in enumerate(model.operations)}

        def place(tensor):
            op, node, index = tensor._keras_history
            return {"tensor": [numbers[id(op)], node, index]}

        def arguments(node):
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
                    # It may have been called in another model, too.
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


def has_foreign_code(layer):
    """Returns whether a layer runs code that is not Keras's or tfsam's.

    Args:
        layer: a `keras.layers.Layer`.
    """
    return not is_of_library(type(layer)) or any(
        _is_foreign(part)
        for name, part in vars(layer).items()
        if name not in _OF_LAYERS | not_called()
    )


@functools.cache
def not_called():
    """Returns the names of what serves training and saving alone."""
    names = set(dir(keras.Model)) - set(dir(keras.layers.Layer))
    trainers = [c for c in keras.Model.__mro__ if "trainer" in c.__module__]
    return frozenset(names).union(
        name
        for cls in trainers
        for code in codes(cls)
        for name in assigned(code)
    )


def read_by_users(cls):
    """Returns whether a class is a user's, and the names that it reads."""
    methods = [
        code
        for owner in cls.__mro__
        if not is_of_library(owner)
        for code in codes(owner, skip={"__init__", *not_called()})
    ]
    names = {name for code in methods for name in read(code)[2]}
    return not is_of_library(cls), names


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return type(value) in ATOMS


def _unnumbered(name):
    """Removes the number that Keras adds to the names of layers."""
    return re.sub(r"_\d+$", "", name)


def _is_foreign(value):
    """Returns whether a layer of Keras holds code that is not Keras's here."""
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


def _real_config(value):
    """Returns an object's configuration, None where it has none."""
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
        # Of somebody else's layer, or of one that holds such a layer.
        return None


@functools.cache
def _bases_of_layers():
    """Returns the classes that layers and models have in common."""
    # Names, so that Keras does not count these among the user's.
    x = keras.Input((1,), name="x")
    y = keras.layers.Identity(name="y")(x)
    functional = type(keras.Model(x, y, name="functional"))
    classes = {*keras.Sequential.__mro__, *functional.__mro__}
    return frozenset(classes)


@functools.cache
def _bookkeeping():
    """Returns the attributes that those classes assign."""
    return frozenset(
        name
        for cls in _bases_of_layers()
        for code in codes(cls)
        for name in assigned(code)
    )
