"""Descriptions of objects by which an evaluation recognises them.

Verdicts that were measured for one attack on one model must never be read as
those of another. `describe` turns an attack, a model or an option into a value
of JSON's types that is equal in two processes only if the object behaves alike
in both: a function is described by its bytecode, its defaults, the values that
it closes over and the globals that it reads; an object by its class and its
attributes; an array by a digest; a Keras model by its configuration, its graph,
its weights and the code of classes that are not Keras's own.

Code of libraries (the standard library, tfsam, and all that is installed in
site-packages) is described by its name and the version of its package. What has
no such description, such as a lock or a handle of a C library, raises
`Unknown`: only the user can tell whether it is the same, and gives it a name.

Nothing of an object is called but `get_config`, `get_weights` and the methods
by which it is pickled. A class may have a method `__identity__`, which returns
what is described in place of an object of it.
"""

import builtins
import copyreg
import dis
import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import pathlib
import platform
import re
import sys
import types
import warnings

import keras
import numpy as np
import tensorflow as tf

# Objects within objects; what is nested deeper is a loop that grows.
_DEEPEST = 60

# Longer values are shown by their digest.
_LONGEST = 60

# Of a projection's size, what rounding may change, and the part of the examples
# that must agree to it.
_ROUNDING, _MOST = 0.01, 0.75

# What tfsam's verdicts come from.
_ATTACKS = (
    "attacks/**/*.py",
    "evaluation/chunks.py",
    "models/classifiers.py",
    "geometry.py",
)

_LIBRARY_FOLDERS = re.compile(r"[/\\](site|dist)-packages[/\\]")

# Of a class: what Python keeps there for itself.
_OF_CLASSES = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__"),
    *("__annotations__", "__annotate__", "__annotate_func__"),
    *("__annotations_cache__", "__abstractmethods__", "_abc_impl"),
    *("__firstlineno__", "__static_attributes__", "__orig_bases__"),
    *("__parameters__", "__type_params__", "__slotnames__"),
    *("__dataclass_fields__", "__dataclass_params__"),
}

# Of a Keras layer's configuration: what inference does not depend on.
_OF_TRAINING = re.compile(
    "seed|.*(initializer|regularizer|constraint)|compile_config|trainable"
    "|module|registered_name|shared_object_id"
)

# Of a layer: its wrapped methods, and what depends on where it stands.
_OF_LAYERS = {"build", "quantize", "name", "_path", "_parent_path"}

# Of the flags of a class: that it was not compiled into Python or a library.
_MADE_BY_CODE = 1 << 9

_ATOMS = (type(None), bool, int, float, str)

_BUILTIN = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


class Unknown(ValueError):
    """Raised for an object that has no description, and needs a name."""


def describe(value, without=()):
    """Describes an object, so that another process can recognise it.

    Args:
        value: any object.
        without: names of attributes of the object that are left out.

    Returns:
        A value of JSON's types.

    Raises:
        Unknown: if the object, or one that it depends on, cannot be described.
    """
    return _Describer()(value, frozenset(without))


def digest(description):
    """Computes the checksum of a description, 16 hexadecimal digits.

    Args:
        description: a value of JSON's types.
    """
    return hashlib.sha256(_text(description).encode()).hexdigest()[:16]


def compact(description):
    """Shortens a description so that it can be shown.

    Args:
        description: what `describe` returns.

    Returns:
        A dict of its parts; attributes stand beside the others, and what is
        long is replaced by its digest.
    """
    if not isinstance(description, dict):
        description = {"value": description}
    parts = {k: v for k, v in description.items() if k != "attributes"}
    for name, value in description.get("attributes", {}).items():
        parts[f".{name}" if name in parts else name] = value
    return {
        name: part if len(_text(part)) <= _LONGEST else digest(part)
        for name, part in parts.items()
    }


def versions():
    """Returns the versions that verdicts depend on, by package.

    That of tfsam's attacks is a checksum of their source, which may be newer
    than the version of the package.
    """
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("tensorflow", "keras", "tfsam"):
        found[package] = importlib.metadata.version(package)
    return found | {"tfsam's attacks": _attacks_code()}


def version_of(package):
    """Returns the version of an installed package, None if there is none.

    Args:
        package: the name of the package, or that by which it is imported.
    """
    return _version(package)


def has_foreign_code(layer):
    """Returns whether a layer runs code that is not Keras's or tfsam's.

    Args:
        layer: a `keras.layers.Layer`.
    """
    return not is_of_library(type(layer)) or any(
        _is_foreign(part)
        for name, part in vars(layer).items()
        if name not in _OF_LAYERS | _not_called()
    )


def sketch(function, x):
    """Computes a few numbers by which a model's outputs are compared.

    They are three random projections of each example's logits, and of their
    gradient in the pixels along a random direction of the logits: models of
    equal logits may differ in the gradients that attacks follow.

    Args:
        function: pixels to logits (batch, classes).
        x: float array (batch, ...), a few examples.

    Returns:
        A dict of `logits` and `gradients`, lists of three numbers an example;
        `gradients` is None where none flow. Or None, if two calls give
        different numbers.
    """
    first, second = (_projections(function, x) for _ in range(2))
    return first if alike(first, second) else None


def alike(sketch, other):
    """Returns whether two sketches are of the same model, but for rounding.

    Another processor, or another number of threads, rounds differently, and a
    quantised network may amplify that: most of the examples decide. `None`
    is like every other one.

    Args:
        sketch: what `sketch` returned.
        other: what it returned for the same examples.
    """
    if sketch is None or other is None:
        return True
    for key in ("logits", "gradients"):
        one, two = sketch[key], other[key]
        if (one is None) != (two is None):
            return False
        if one is not None and not _mostly_close(one, two):
            return False
    return True


def is_of_library(cls):
    """Returns whether a class is a library's, and known by its version.

    Args:
        cls: a class.
    """
    if not cls.__flags__ & _MADE_BY_CODE:
        return True
    # A class statement without a module gives its class that of `object`.
    module = getattr(cls, "__module__", None)
    return module != "builtins" and _is_library(module)


def _projections(function, x):
    random = np.random.default_rng(0)
    pixels = tf.convert_to_tensor(x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(pixels)
        logits = tf.convert_to_tensor(function(pixels))
        upstream = tf.constant(random.normal(size=logits.shape), logits.dtype)
        total = tf.reduce_sum(logits * upstream)
    try:
        slopes = tape.gradient(total, pixels)
    except Exception:  # Whatever somebody else's model raises.
        slopes = None
    return {
        key: None if values is None else _projected(values, random)
        for key, values in (("logits", logits), ("gradients", slopes))
    }


def _projected(values, random):
    values = np.reshape(values, (len(values), -1)).astype(np.float64)
    directions = random.normal(size=(values.shape[1], 3))
    found = values @ directions / np.sqrt(len(directions))
    # JSON has no NaN and no infinity.
    found = np.where(np.isfinite(found), found, 0.0)
    return [[float(f"{number:.6g}") for number in row] for row in found]


def _mostly_close(one, two):
    one, two = np.array(one), np.array(two)
    if one.shape != two.shape:
        return False
    largest = np.maximum(abs(one), abs(two)).max(axis=1, keepdims=True)
    close = (abs(one - two) <= _ROUNDING * largest).all(axis=1)
    return bool(close.mean() >= _MOST)


class _Describer:
    """Describes objects that refer to each other, each of them once."""

    def __init__(self):
        self._open: list[int] = []
        # The objects are held, so that no other one gets their id.
        self._done: dict[int, tuple] = {}
        self._weighed: set[int] = set()

    def __call__(self, value, without=frozenset()):
        if type(value) in _ATOMS:
            return value
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._open:
            return {"outer": len(self._open) - self._open.index(key)}
        if len(self._open) >= _DEEPEST:
            raise Unknown("objects nested without end")
        self._open.append(key)
        try:
            described = self._described(value, without)
        finally:
            self._open.pop()
        self._done[key] = value, described
        return described

    def _described(self, value, without):
        kind = type(value)
        if kind in (list, tuple, dict, set, frozenset, bytes, bytearray):
            return self._container(value)
        for kinds, method in (
            ((np.ndarray, np.generic), self._array),
            ((tf.Tensor, tf.Variable, keras.Variable), self._tensor),
            (types.ModuleType, self._module),
            (type, self._class),
            (types.CodeType, self._code),
            (types.FunctionType, self._function),
            (types.MethodType, self._method),
            (functools.partial, self._partial),
            (_BUILTIN, self._builtin),
        ):
            if isinstance(value, kinds):
                return method(value)
        if kind in (complex, type(...), type(NotImplemented)):
            return {"constant": repr(value)}
        if isinstance(value, enum.Enum):
            return {"enum": str(value), "value": self(value.value)}
        if isinstance(value, (list, dict, set)) and _is_wrapper(kind):
            return self._container(value)
        if isinstance(value, (set, frozenset)):  # Of no order.
            return {
                "class": self(kind),
                **self._container(frozenset(value)),
                "members": self(getattr(value, "__dict__", {})),
            }
        if isinstance(value, keras.KerasTensor):
            raise Unknown("a tensor of a graph")
        if isinstance(value, keras.random.SeedGenerator):
            # Drawn anew each time a layer is made. Where a seed matters in
            # inference, the model's sketch has other numbers.
            return {"library": self._name(kind)}
        wraps = _is_library(kind.__module__) and hasattr(value, "__wrapped__")
        if wraps and not hasattr(value, "python_function"):
            return {"class": self(kind), "wraps": self(value.__wrapped__)}
        if hasattr(kind, "__identity__"):
            return self(value.__identity__())
        if isinstance(value, (keras.Operation, *_KERAS)):
            return self._keras(value)
        return self._object(value, without)

    # Values.

    def _array(self, value):
        array = np.asarray(value)
        content = f"{array.dtype} {array.shape}"
        if array.dtype.hasobject:
            return {"array": content, "items": self(array.tolist())}
        if not array.shape:
            return {"number": f"{array.dtype} {array.item()!r}"}
        total = hashlib.sha256(np.ascontiguousarray(array).tobytes())
        return {"array": f"{content} {total.hexdigest()[:16]}"}

    def _tensor(self, value):
        try:
            return self._array(keras.ops.convert_to_numpy(value))
        except Exception as error:
            raise Unknown("a tensor of a graph") from error

    def _container(self, value):
        if isinstance(value, dict):  # A loop over it goes by its order.
            return {"dict": [[self(k), self(v)] for k, v in value.items()]}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": hashlib.sha256(value).hexdigest()[:16]}
        items = [self(item) for item in value]
        if isinstance(value, list):
            return items
        if isinstance(value, tuple):
            return {"tuple": items}
        return {"set": sorted(items, key=_text)}

    # Code.

    def _name(self, value):
        """Returns the name that a library gives something, and its version."""
        module = getattr(value, "__module__", None) or "builtins"
        name = getattr(value, "__qualname__", None) or value.__name__
        version = _version(module.partition(".")[0])
        return f"{module}.{name}" + (f" {version}" if version else "")

    def _module(self, module, names=None):
        """Describes a module; a user's by its members of these names."""
        name = module.__name__
        if _is_library(name):
            return {"library": name, "version": _version(name.split(".")[0])}
        if names is None:
            return {"module": name, "file": _file(module.__spec__)}
        members = vars(module)
        used = sorted(names & set(members))
        return {
            "module": name,
            "members": {
                name: self._module(members[name], names)
                if isinstance(members[name], types.ModuleType)
                and members[name] is not module
                else self._named(name, members[name])
                for name in used
            },
        }

    def _class(self, cls):
        if is_of_library(cls):
            return {"library": self._name(cls)}
        skipped = _OF_CLASSES
        if issubclass(cls, keras.layers.Layer):
            # Unless `call` needs it after all.
            skipped = skipped | (_not_called() - _read_by_users(cls)[1])
        members = {
            name: self._named(f"{cls.__name__}.{name}", member)
            for name, member in sorted(vars(cls).items())
            if name not in skipped
            and not isinstance(member, types.MemberDescriptorType)
        }
        code = {
            "bases": [self(base) for base in cls.__bases__],
            "made by": self(type(cls)),
            "members": members,
        }
        return {"class": cls.__name__, "code": digest(code)}

    def _function(self, function):
        if self._importable(function):
            return {"library": self._name(function)}
        code, parts = function.__code__, {}
        attributes = dict(vars(function))
        if _is_library(function.__globals__.get("__name__")):
            parts["library"] = self._name(function)
            attributes = {
                k: v for k, v in attributes.items() if k == "__wrapped__"
            }
        else:
            parts["code"] = self._code(code)
            parts["globals"] = self._globals(function)
        parts["defaults"] = self(function.__defaults__)
        parts["keywords"] = self(function.__kwdefaults__)
        parts["closure"] = {
            name: self._named(name, cell)
            for name, cell in zip(
                code.co_freevars, function.__closure__ or (), strict=True
            )
        }
        parts["members"] = {
            name: self._named(name, member)
            for name, member in sorted(attributes.items())
        }
        name = function.__name__
        return {"function": name} | {k: digest(v) for k, v in parts.items()}

    def _named(self, name, value):
        """Describes a part of something; an error says which one it was."""
        if isinstance(value, types.CellType):
            try:
                value = value.cell_contents
            except ValueError:  # How Python says so of an empty one.
                return {"cell": "empty"}
        if isinstance(value, (staticmethod, classmethod)):
            value = {type(value).__name__: value.__func__}
        elif isinstance(value, property):
            value = {"property": [value.fget, value.fset, value.fdel]}
        elif isinstance(value, functools.cached_property):
            value = {"property": [value.func]}
        try:
            return self(value)
        except Unknown as error:
            raise Unknown(f"{name}: {error}") from error

    def _globals(self, function):
        """Describes the globals that a function reads, and its imports."""
        names, imported, attributes = _read(function.__code__)
        found = {}
        for name in names:
            if name in function.__globals__:
                value = function.__globals__[name]
                if isinstance(value, types.ModuleType):
                    found[name] = self._module(value, attributes)
                else:
                    found[name] = self._named(name, value)
            elif not hasattr(builtins, name):
                found[name] = {"global": "missing"}
        for name in imported:
            found[f"import {name}"] = _imported(name)
        return found

    def _code(self, code):
        return digest(
            [
                code.co_code.hex(),
                [self(constant) for constant in code.co_consts],
                [code.co_names, code.co_varnames, code.co_freevars],
                [code.co_cellvars, code.co_flags, code.co_argcount],
                [code.co_posonlyargcount, code.co_kwonlyargcount],
                code.co_exceptiontable.hex(),
            ]
        )

    def _method(self, method):
        return {
            "method": self(method.__func__),
            "of": self._named(method.__func__.__name__, method.__self__),
        }

    def _partial(self, partial):
        return {
            "partial": self(partial.func),
            "arguments": [self(argument) for argument in partial.args],
            "attributes": {
                name: self._named(name, argument)
                for name, argument in sorted(partial.keywords.items())
            },
        }

    def _builtin(self, function):
        owner = getattr(function, "__self__", None)
        owner = owner or getattr(function, "__objclass__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return {"library": self._name(function)}
        return {"method": function.__name__, "of": self(owner)}

    def _importable(self, value):
        """Returns whether a library has this very object under its name."""
        name = getattr(value, "__module__", None)
        qualname = getattr(value, "__qualname__", None)
        if not _is_library(name) or not isinstance(qualname, str):
            return False
        found = sys.modules.get(str(name))
        for part in qualname.split("."):
            found = getattr(found, part, None)
        return found is value

    # Objects.

    def _object(self, value, without=frozenset()):
        if self._importable(value):  # A ufunc of NumPy's, for instance.
            return {"library": self._name(value)}
        if callable(getattr(value, "python_function", None)):
            return {
                "graph": self(value.python_function),
                "options": self(
                    [
                        getattr(value, "_jit_compile", None),
                        getattr(value, "_autograph", None),
                    ]
                ),
            }
        try:
            if hasattr(value, "get_config") and hasattr(value, "get_weights"):
                return self._other_model(value)
            # How it would be copied: by a function, arguments and a state.
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        except Unknown:
            raise
        except Exception as error:  # Objects refuse to be copied in any way.
            raise Unknown(_kind(value)) from error
        if isinstance(reduced, str):  # It is known by its name alone.
            if not _is_library(getattr(value, "__module__", None)):
                raise Unknown(_kind(value))
            return {"library": self._name(value)}
        return self._reduced(value, reduced, without)

    def _other_model(self, model):
        """Describes a model of another Keras, such as tf_keras."""
        return {
            "class": self(type(model)),
            "config": digest(self._config(model.get_config())),
            "weights": digest([self(w) for w in model.get_weights()]),
        }

    def _reduced(self, value, reduced, without):
        make, arguments, state, items, pairs = (*reduced, *[None] * 3)[:5]
        if _is_pair_of_dicts(state):  # Of a class with slots.
            state = {**(state[0] or {}), **state[1]}
        described = {"class": self(type(value))}
        if make is not copyreg.__newobj__:  # type: ignore[attr-defined]
            described["made by"] = self(make)
        if len(arguments) > 1 or arguments[:1] != (type(value),):
            described["arguments"] = [self(a) for a in arguments]
        if isinstance(state, dict):
            described["attributes"] = {
                str(name): self._named(f"{type(value).__name__}.{name}", part)
                for name, part in sorted(state.items(), key=str)
                if name not in without and not _of_tracking(value, name)
            }
        elif state is not None:
            described["state"] = self(state)
        for key, content in (("items", items), ("pairs", pairs)):
            if content is not None:
                described[key] = self(list(content))
        return described

    # Keras.

    def _keras(self, value):
        cls = type(value)
        described = {"class": self(cls)}
        name = getattr(value, "name", None)
        if isinstance(name, str):
            described["name"] = _unnumbered(name)
        config = _real_config(value)
        if config is not None:
            described["config"] = digest(self._config(config))
        if isinstance(value, keras.layers.Layer):
            described["policy"] = value.dtype_policy.name
            weights = [w for w in value.weights if id(w) not in self._weighed]
            self._weighed |= {id(w) for w in weights}
            if weights:
                described["weights"] = digest([self(w) for w in weights])
        attributes = self._keras_attributes(value, config is None)
        if attributes:
            described["attributes"] = attributes
        if hasattr(value, "operations") and hasattr(value, "_nodes"):
            described["graph"] = digest(self._graph(value))
        elif getattr(value, "_layers", None):
            described["layers"] = digest([self(la) for la in value._layers])
        return described

    def _keras_attributes(self, value, plain):
        """Describes what a configuration may leave out."""
        user, read = _read_by_users(type(value))
        found = {}
        for name, part in sorted(vars(value).items()):
            skipped = name in _OF_LAYERS or name in _not_called() - read
            if skipped or isinstance(part, keras.Variable):
                continue
            bookkeeping = name in _bookkeeping()
            if user and (name in read or not bookkeeping):
                try:
                    found[name] = self._named(
                        f"{type(value).__name__}.{name}", part
                    )
                except Unknown:
                    if name in read:
                        raise
            elif _is_foreign(part):
                found[name] = self._named(
                    f"{type(value).__name__}.{name}", part
                )
            elif (
                plain
                and not bookkeeping
                and (
                    _is_plain(part) or not isinstance(value, keras.layers.Layer)
                )
            ):
                found[name] = self._named(name, part)
        return found

    def _config(self, config):
        """Describes a configuration without numbered names and seeds."""
        if isinstance(config, dict):
            if config.get("class_name") == "__lambda__":
                return "lambda"  # The layer has it as an attribute.
            return {
                str(key): _unnumbered(part)
                if key == "name" and isinstance(part, str)
                else self._config(part)
                for key, part in sorted(config.items(), key=str)
                if not _OF_TRAINING.fullmatch(str(key))
            }
        if isinstance(config, (list, tuple)):
            return [self._config(part) for part in config]
        if isinstance(config, (keras.layers.Layer, types.FunctionType)):
            return type(config).__name__  # An attribute, too.
        return self(config)

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
                    else self(part)
                    for part in keras.tree.flatten(given)
                ],
            }

        operations = [
            [
                self(operation),
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


_KERAS = (
    *(keras.Loss, keras.Metric, keras.Optimizer, keras.Initializer),
    *(keras.Regularizer, keras.DTypePolicy),
)


def _text(description):
    return json.dumps(description, sort_keys=True)


def _kind(value):
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"an object of {name}"


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return type(value) in _ATOMS


def _is_pair_of_dicts(state):
    return (
        isinstance(state, tuple)
        and len(state) == 2
        and isinstance(state[0], (dict, type(None)))
        and isinstance(state[1], dict)
    )


def _is_wrapper(kind):
    """Returns whether a container is only how a framework tracks its items."""
    return kind.__module__.partition(".")[0] in ("keras", "tensorflow")


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
        if not _is_library(value.__globals__.get("__name__")):
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
        for code in _codes(cls)
        for name in _assigned(code)
    )


@functools.cache
def _not_called():
    """Returns the names of what serves training and saving alone."""
    names = set(dir(keras.Model)) - set(dir(keras.layers.Layer))
    trainers = [c for c in keras.Model.__mro__ if "trainer" in c.__module__]
    return frozenset(names).union(
        name
        for cls in trainers
        for code in _codes(cls)
        for name in _assigned(code)
    )


def _read_by_users(cls):
    """Returns whether a class is a user's, and the names that it reads."""
    codes = [
        code
        for owner in cls.__mro__
        if not is_of_library(owner)
        for code in _codes(owner, skip={"__init__", *_not_called()})
    ]
    names = {name for code in codes for name in _read(code)[2]}
    return not is_of_library(cls), names


def _codes(cls, skip=frozenset()):
    """Yields the code of a class's methods."""
    for name, member in vars(cls).items():
        if name in skip:
            continue
        for part in ("fget", "fset", "func", "__func__", None):
            function = getattr(member, part, None) if part else member
            if callable(function):
                code = getattr(inspect.unwrap(function), "__code__", None)
                if code is not None:
                    yield code


def _assigned(code):
    for each in _nested(code):
        for instruction in dis.get_instructions(each):
            if instruction.opname == "STORE_ATTR":
                yield instruction.argval


@functools.cache
def _read(code):
    """Returns the globals, imports and attributes that code reads."""
    names, imported, attributes = set(), set(), set()
    for each in _nested(code):
        for instruction in dis.get_instructions(each):
            name = instruction.opname
            if name in (
                *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"),
                "LOAD_CLASSDEREF",
            ):
                names.add(instruction.argval)
            elif name == "IMPORT_NAME":
                imported.add(instruction.argval)
        attributes |= set(each.co_names)
    return sorted(names), sorted(imported), frozenset(attributes)


def _nested(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _is_library(module):
    """Returns whether a module is a package's, not the user's."""
    if not isinstance(module, str):
        return False
    top = module.partition(".")[0]
    if top in ("builtins", "tfsam") or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    file = file or getattr(sys.modules.get(top), "__file__", None)
    return bool(file and _LIBRARY_FOLDERS.search(file))


@functools.cache
def _attacks_code():
    folder = pathlib.Path(__file__).parents[1]
    paths = sorted(p for pattern in _ATTACKS for p in folder.glob(pattern))
    return digest([[path.name, path.read_text()] for path in paths])


@functools.cache
def _version(package):
    """Returns the version of a package, by the name of its import."""
    if package == "builtins" or package in sys.stdlib_module_names:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = _distributions().get(package)
        return importlib.metadata.version(names[0]) if names else None


@functools.cache
def _distributions():
    return importlib.metadata.packages_distributions()


def _imported(name):
    """Describes a module that code imports when it runs."""
    top = name.partition(".")[0]
    if _is_library(top):
        return {"library": name, "version": _version(top)}
    try:
        spec = importlib.util.find_spec(name) if name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return {"module": name, "version": _version(top)}
    if spec.origin and _LIBRARY_FOLDERS.search(spec.origin):
        return {"library": name, "version": _version(top)}
    return {"module": name, "file": _file(spec)}


def _file(spec):
    """Computes the checksum of a module's source."""
    try:
        with open(spec.origin, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except (AttributeError, OSError, TypeError) as error:
        raise Unknown("a module without a file") from error


def _of_tracking(value, name):
    """Returns whether TensorFlow keeps an attribute for its tracking."""
    return isinstance(value, tf.Module) and str(name).startswith(
        ("_self_", "_name", "_tf_api", "_scope_name")
    )
