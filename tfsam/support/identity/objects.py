"""Descriptions of objects and code by which an evaluation recognises them.

The verdicts of one attack on one model must never be taken for those of
another. `describe` converts an attack, a model or an option to a value of JSON
types that is equal in two processes only if the object behaves alike in both. A
function is described by its bytecode, its defaults, its closure and the globals
that it reads; an object by its class and its attributes; an array by a digest;
a Keras model by its configuration, its graph, its weights and the code of
custom classes.

Code of installed packages (the standard library, tfsam, and site-packages) is
described by its name and the version of its package. An object that cannot be
described, such as a lock or a handle of a C library, raises `Unknown`. Only the
user can decide whether it is the same as before, and has to name it.

Of an object, only `get_config`, `get_weights` and the methods for pickling are
called. A class may define a method `__identity__`, whose result is described in
place of the object.
"""

import builtins
import copyreg
import enum
import functools
import hashlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable
from collections.abc import Collection
from importlib.machinery import ModuleSpec
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.support.identity.bytecode import read
from tfsam.support.identity.digests import ATOMS
from tfsam.support.identity.digests import Unknown
from tfsam.support.identity.digests import digest
from tfsam.support.identity.digests import text_of
from tfsam.support.identity.keras_objects import KINDS
from tfsam.support.identity.keras_objects import KerasDescriber
from tfsam.support.identity.keras_objects import not_called
from tfsam.support.identity.keras_objects import read_by_users
from tfsam.support.identity.libraries import LIBRARY_FOLDERS
from tfsam.support.identity.libraries import is_library
from tfsam.support.identity.libraries import is_of_library
from tfsam.support.identity.libraries import version_of

# Largest depth of nested objects; deeper objects probably never end.
_DEEPEST = 60

# Members of a class that Python maintains.
_OF_CLASSES = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__"),
    *("__annotations__", "__annotate__", "__annotate_func__"),
    *("__annotations_cache__", "__abstractmethods__", "_abc_impl"),
    *("__firstlineno__", "__static_attributes__", "__orig_bases__"),
    *("__parameters__", "__type_params__", "__slotnames__"),
    *("__dataclass_fields__", "__dataclass_params__"),
}

_BUILTIN = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


def describe(value: Any, without: Collection[str] = ()) -> Any:
    """Describes an object so that another process can recognise it.

    Args:
        value: Any object.
        without: Names of attributes of the object to leave out.

    Returns:
        A value of JSON types.

    Raises:
        Unknown: If the object, or one that it depends on, cannot be described.

    Example:
        >>> describe({"a": (1, 2.0)})
        {'dict': [['a', {'tuple': [1, 2.0]}]]}
    """
    return _Describer()(value, frozenset(without))


class _Describer:
    """Describes objects that refer to each other, each of them once."""

    def __init__(self) -> None:
        self._open: list[int] = []
        # The objects are kept alive, so that their ids stay unique.
        self._done: dict[int, tuple[Any, Any]] = {}
        self._keras = KerasDescriber(self)

    def __call__(
        self, value: Any, without: frozenset[str] = frozenset()
    ) -> Any:
        if type(value) in ATOMS:
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

    def _described(self, value: Any, without: frozenset[str]) -> Any:
        kind = type(value)
        if kind in (list, tuple, dict, set, frozenset, bytes, bytearray):
            return self._container(value)
        methods: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
            ((np.ndarray, np.generic), self._array),
            ((tf.Tensor, tf.Variable, keras.Variable), self._tensor),
            (types.ModuleType, self._module),
            (type, self._class),
            (types.CodeType, self._code),
            (types.FunctionType, self._function),
            (types.MethodType, self._method),
            (functools.partial, self._partial),
            (_BUILTIN, self._builtin),
        )
        for kinds, method in methods:
            if isinstance(value, kinds):
                return method(value)
        if kind in (complex, type(...), type(NotImplemented)):
            return {"constant": repr(value)}
        if isinstance(value, enum.Enum):
            return {"enum": str(value), "value": self(value.value)}
        if isinstance(value, (list, dict, set)) and _is_wrapper(kind):
            return self._container(value)
        if isinstance(value, (set, frozenset)):  # A subclass.
            return {
                "class": self(kind),
                **self._container(frozenset(value)),
                "members": self(getattr(value, "__dict__", {})),
            }
        if isinstance(value, keras.KerasTensor):
            raise Unknown("a tensor of a graph")
        if isinstance(value, keras.random.SeedGenerator):
            # Its seed differs each time a layer is made. If a seed matters in
            # inference, the sketches of the models differ.
            return {"library": self._name(kind)}
        wraps = is_library(kind.__module__) and hasattr(value, "__wrapped__")
        if wraps and not hasattr(value, "python_function"):
            return {"class": self(kind), "wraps": self(value.__wrapped__)}
        if hasattr(kind, "__identity__"):
            return self(value.__identity__())
        if isinstance(value, KINDS):
            return self._keras(value)
        return self._object(value, without)

    # Values.

    def _array(self, value: Any) -> dict[str, Any]:
        array = np.asarray(value)
        content = f"{array.dtype} {array.shape}"
        if array.dtype.hasobject:
            return {"array": content, "items": self(array.tolist())}
        if not array.shape:
            return {"number": f"{array.dtype} {array.item()!r}"}
        total = hashlib.sha256(np.ascontiguousarray(array).tobytes())
        return {"array": f"{content} {total.hexdigest()[:16]}"}

    def _tensor(self, value: Any) -> dict[str, Any]:
        try:
            return self._array(keras.ops.convert_to_numpy(value))
        except Exception as error:
            raise Unknown("a tensor of a graph") from error

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):  # Its order matters in loops.
            return {"dict": [[self(k), self(v)] for k, v in value.items()]}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": hashlib.sha256(value).hexdigest()[:16]}
        items = [self(item) for item in value]
        if isinstance(value, list):
            return items
        if isinstance(value, tuple):
            return {"tuple": items}
        return {"set": sorted(items, key=text_of)}

    # Code.

    def _name(self, value: Any) -> str:
        """Returns the name of a library's object, and the library's version."""
        module = getattr(value, "__module__", None) or "builtins"
        name = getattr(value, "__qualname__", None) or value.__name__
        version = version_of(module.partition(".")[0])
        return f"{module}.{name}" + (f" {version}" if version else "")

    def _module(
        self, module: types.ModuleType, names: frozenset[str] | None = None
    ) -> dict[str, Any]:
        """Describes a module.

        Args:
            module: The module.
            names: Names of the members by which a user's module is described.
                None means its file.
        """
        name = module.__name__
        if is_library(name):
            return {"library": name, "version": version_of(name.split(".")[0])}
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
                else self.named(name, members[name])
                for name in used
            },
        }

    def _class(self, cls: type) -> dict[str, Any]:
        if is_of_library(cls):
            return {"library": self._name(cls)}
        skipped = _OF_CLASSES
        if issubclass(cls, keras.layers.Layer):
            # A user's method may read them after all.
            skipped = skipped | (not_called() - read_by_users(cls)[1])
        members = {
            name: self.named(f"{cls.__name__}.{name}", member)
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

    def _function(self, function: Any) -> dict[str, Any]:
        if self._importable(function):
            return {"library": self._name(function)}
        code = function.__code__
        parts: dict[str, Any] = {}
        attributes = dict(vars(function))
        if is_library(function.__globals__.get("__name__")):
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
            name: self.named(name, cell)
            for name, cell in zip(
                code.co_freevars, function.__closure__ or (), strict=True
            )
        }
        parts["members"] = {
            name: self.named(name, member)
            for name, member in sorted(attributes.items())
        }
        name = function.__name__
        return {"function": name} | {k: digest(v) for k, v in parts.items()}

    def named(self, name: str, value: Any) -> Any:
        """Describes a part of an object; errors begin with the name.

        Args:
            name: Name of the part.
            value: The part.
        """
        if isinstance(value, types.CellType):
            try:
                value = value.cell_contents
            except ValueError:  # The cell is empty.
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

    def _globals(self, function: Any) -> dict[str, Any]:
        """Describes the globals that a function reads, and its imports."""
        names, imported, attributes = read(function.__code__)
        found: dict[str, Any] = {}
        for name in names:
            if name in function.__globals__:
                value = function.__globals__[name]
                if isinstance(value, types.ModuleType):
                    found[name] = self._module(value, attributes)
                else:
                    found[name] = self.named(name, value)
            elif not hasattr(builtins, name):
                found[name] = {"global": "missing"}
        for name in imported:
            found[f"import {name}"] = _imported(name)
        return found

    def _code(self, code: types.CodeType) -> str:
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

    def _method(self, method: types.MethodType) -> dict[str, Any]:
        return {
            "method": self(method.__func__),
            "of": self.named(method.__func__.__name__, method.__self__),
        }

    def _partial(self, partial: Any) -> dict[str, Any]:
        return {
            "partial": self(partial.func),
            "arguments": [self(argument) for argument in partial.args],
            "attributes": {
                name: self.named(name, argument)
                for name, argument in sorted(partial.keywords.items())
            },
        }

    def _builtin(self, function: Any) -> dict[str, Any]:
        owner = getattr(function, "__self__", None)
        owner = owner or getattr(function, "__objclass__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return {"library": self._name(function)}
        return {"method": function.__name__, "of": self(owner)}

    def _importable(self, value: Any) -> bool:
        """Returns whether a library has this object under its name."""
        name = getattr(value, "__module__", None)
        qualname = getattr(value, "__qualname__", None)
        if not is_library(name) or not isinstance(qualname, str):
            return False
        found: Any = sys.modules.get(str(name))
        for part in qualname.split("."):
            found = getattr(found, part, None)
        return found is value

    # Objects.

    def _object(self, value: Any, without: frozenset[str]) -> Any:
        if self._importable(value):  # A ufunc of NumPy, for instance.
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
            # A function, arguments and a state, by which it could be copied.
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        except Unknown:
            raise
        except Exception as error:  # Objects that cannot be copied raise.
            raise Unknown(_kind(value)) from error
        if isinstance(reduced, str):  # A name.
            if not is_library(getattr(value, "__module__", None)):
                raise Unknown(_kind(value))
            return {"library": self._name(value)}
        return self._reduced(value, reduced, without)

    def _other_model(self, model: Any) -> dict[str, Any]:
        """Describes a model of another Keras, such as tf_keras."""
        return {
            "class": self(type(model)),
            "config": digest(self._keras.config(model.get_config())),
            "weights": digest([self(w) for w in model.get_weights()]),
        }

    def _reduced(
        self, value: Any, reduced: Any, without: frozenset[str]
    ) -> dict[str, Any]:
        """Describes an object by the parts by which it could be copied."""
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
                str(name): self.named(f"{type(value).__name__}.{name}", part)
                for name, part in sorted(state.items(), key=str)
                if name not in without and not _of_tracking(value, name)
            }
        elif state is not None:
            described["state"] = self(state)
        for key, content in (("items", items), ("pairs", pairs)):
            if content is not None:
                described[key] = self(list(content))
        return described


def _kind(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"an object of {name}"


def _is_pair_of_dicts(state: Any) -> bool:
    return (
        isinstance(state, tuple)
        and len(state) == 2
        and isinstance(state[0], (dict, type(None)))
        and isinstance(state[1], dict)
    )


def _is_wrapper(kind: type) -> bool:
    """Returns whether a framework wraps containers in this class."""
    return kind.__module__.partition(".")[0] in ("keras", "tensorflow")


def _imported(name: str) -> dict[str, Any]:
    """Describes a module that code imports when it runs."""
    top = name.partition(".")[0]
    if is_library(top):
        return {"library": name, "version": version_of(top)}
    try:
        spec = importlib.util.find_spec(name) if name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return {"module": name, "version": version_of(top)}
    if spec.origin and LIBRARY_FOLDERS.search(spec.origin):
        return {"library": name, "version": version_of(top)}
    return {"module": name, "file": _file(spec)}


def _file(spec: ModuleSpec | None) -> str:
    """Computes the checksum of a module's source."""
    try:
        if spec is None or spec.origin is None:
            raise Unknown("a module without a file")
        content = pathlib.Path(spec.origin).read_bytes()
    except OSError as error:
        raise Unknown("a module without a file") from error
    return hashlib.sha256(content).hexdigest()[:16]


def _of_tracking(value: Any, name: Any) -> bool:
    """Returns whether TensorFlow uses an attribute for its tracking."""
    return isinstance(value, tf.Module) and str(name).startswith(
        ("_self_", "_name", "_tf_api", "_scope_name")
    )
