"""Trace states: everything in Python on which the trace of a function depends.

A trace by `tf.function` keeps numbers, arrays and decisions of Python as they
were, and does not repeat side effects. `read` therefore returns a key that is
equal for two functions, or for the same function at two times, only if both
have the same trace. Variables and tensors are read when a trace runs, so that
they appear in the key by their identities, not by their values.

Only functions are read whose traces provably depend on nothing else: code of
the user is accepted if it reads numbers, arrays, tensors, variables, Keras
layers and functions of TensorFlow, Keras and NumPy, and changes no object that
exists before. Anything else raises `Unreadable`. In contrast to the
descriptions of `tfsam.support.identity`, a key is valid within one process and
is cheap: no weight is read.
"""

import builtins
import dis
import enum
import functools
import hashlib
import math
import types
import weakref
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfsam.support.identity.bytecode import nested
from tfsam.support.identity.keras_objects import not_called
from tfsam.support.identity.keras_objects import read_by_users
from tfsam.support.identity.libraries import is_of_library

# Packages whose functions may be called, apart from those in _FROZEN.
_PACKAGES = {
    *("tensorflow", "keras", "tf_keras", "keras_hub", "numpy", "tfsam"),
    *("math", "cmath", "operator", "functools", "itertools", "collections"),
    *("typing", "abc", "dataclasses", "enum", "numbers", "einops"),
}

_BUILTINS = {
    *("abs", "all", "any", "bool", "callable", "complex", "dict", "divmod"),
    *("enumerate", "filter", "float", "frozenset", "getattr", "hasattr"),
    *("int", "isinstance", "issubclass", "len", "list", "map", "max", "min"),
    *("object", "pow", "property", "range", "repr", "reversed", "round"),
    *("set", "slice", "sorted", "staticmethod", "str", "sum", "super"),
    *("tuple", "type", "zip", "TypeError", "ValueError"),
}

# Names of functions that see whether they are traced, or call Python later.
_FROZEN = {
    *("executing_eagerly", "inside_function", "init_scope", "custom_gradient"),
    *("py_function", "numpy_function", "convert_to_numpy", "numpy", "item"),
    *("tolist", "get_weights", "set_weights", "get_value", "eval", "exec"),
    *("setattr", "delattr", "globals", "locals", "vars", "__dict__"),
}

# Names of methods and functions that change a list, a dict or an array.
_MUTATORS = {
    *("append", "extend", "insert", "pop", "popitem", "remove", "clear"),
    *("update", "setdefault", "add", "discard", "sort", "reverse", "fill"),
    *("put", "resize", "partition", "copyto", "place", "putmask", "itemset"),
    *("write", "appendleft", "popleft", "rotate", "out", "fill_diagonal"),
}

# Attributes of a Keras layer on which its outputs in inference do not depend.
_OF_LAYERS = {
    *("_tracker", "_tracked", "_auto_config", "build", "quantize", "name"),
    *("_inbound_nodes", "_outbound_nodes", "_losses", "_loss_ids", "_called"),
    *("_losses_override", "_call_signature", "call_signature_parameters"),
    *("_call_context_args", "_call_has_context_arg", "_build_shapes_dict"),
    *("_path", "_parent_path", "_trainable_variables", "_metrics", "_lock"),
    *("_non_trainable_variables", "_seed_generators", "_nodes"),
    *("_nodes_by_depth", "_operations_by_depth"),
}
_OF_TRAINING = ("_initializer", "_regularizer", "_constraint")

# Members of a class that are not called by a trace, or belong to Python.
_NOT_CALLED = {
    *("__init__", "__post_init__", "__repr__", "__eq__", "__hash__"),
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__"),
    *("__annotations__", "__annotate_func__", "__annotations_cache__"),
    *("__abstractmethods__", "_abc_impl", "__parameters__", "__slotnames__"),
    *("__orig_bases__", "__firstlineno__", "__static_attributes__"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__"),
}

# Largest array that is read, 16 MB, which takes about 10 ms.
_MOST_BYTES = 2**24

_LOADS = {
    *("LOAD_GLOBAL", "LOAD_NAME", "LOAD_CLASSDEREF"),
    *("LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF"),
}

_CONCRETE = tf.types.experimental.ConcreteFunction
_POLYMORPHIC = tf.types.experimental.PolymorphicFunction

Owner = Any  # An object that takes weak references.


class Unreadable(ValueError):
    """A trace may depend on something that cannot be read."""


class State(NamedTuple):
    """The result of `read`.

    Attributes:
        key: A hashable value. It holds no reference to the objects that it
            names by their ids, and is valid as long as all of them exist.
        owners: The objects that it names, each of which takes weak references.
        size: Number of numbers in all tensors, variables and arrays, infinity
            if the function calls one that is traced, such as a SavedModel.
    """

    key: Hashable
    owners: list[Owner]
    size: float


def read(value: Any, without: Collection[str] = ()) -> State:
    """Reads everything in Python on which the trace of a function depends.

    Args:
        value: A function, a Keras layer, an attack or another object.
        without: Names of attributes of the object to leave out.

    Raises:
        Unreadable: If the trace may depend on something else.

    Example:
        >>> scale = 2.0
        >>> key = read(lambda x: scale * x).key
        >>> scale = 3.0
        >>> read(lambda x: scale * x).key == key
        False
    """
    reader = _Reader()
    key = reader(value, frozenset(without))
    if reader.writes and reader.contents:
        raise Unreadable(f"code that changes {reader.contents}")
    if reader.assigns and reader.objects:
        raise Unreadable(f"code that assigns attributes of {reader.objects}")
    return State(key, reader.owners, reader.size)


class _Code(NamedTuple):
    """Facts about a function's code.

    Attributes:
        names: The globals that it reads.
        imports: The modules that it imports.
        attributes: All names that it uses.
        writes: Whether it may change the content of a container.
        assigns: Whether it may assign or delete attributes.
        objection: Reason why it is rejected, or None.
    """

    names: tuple[str, ...]
    imports: tuple[str, ...]
    attributes: frozenset[str]
    writes: bool
    assigns: bool
    objection: str | None


class _Reader:
    """Reads objects that refer to each other, each of them once.

    Attributes:
        owners: The objects that are named by their ids.
        size: See `State`.
        contents: Name of a type of mutable container that was read, or "".
        objects: Name of a type of object with attributes that was read, or "".
        writes: Whether code was read that may change a container.
        assigns: Whether code was read that may assign attributes.
    """

    def __init__(self) -> None:
        self.owners: list[Owner] = []
        self.size = 0.0
        self.contents = self.objects = ""
        self.writes = self.assigns = False
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []

    def __call__(
        self, value: Any, without: frozenset[str] = frozenset()
    ) -> Hashable:
        kind = type(value)
        if kind in (type(None), bool, int, str, bytes, type(...)):
            return kind.__name__, value
        if kind in (float, complex):
            return kind.__name__, repr(value)
        number = self._seen.get(id(value))
        if number is not None:
            return "seen", number
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)  # So that ids stay unique.
        for kinds, method in self._methods:
            if isinstance(value, kinds):
                return kind.__name__, method(value)
        return kind.__name__, self._object(value, without)

    @functools.cached_property
    def _methods(self) -> tuple[tuple[Any, Callable[[Any], Hashable]], ...]:
        return (
            (keras.layers.Layer, self._layer),
            (enum.Enum, self._named),
            ((tuple, frozenset), self._items),
            ((list, set, dict), self._container),
            ((np.ndarray, np.generic), self._array),
            ((tf.DType, np.dtype, tf.TensorShape), str),
            ((tf.Tensor, tf.Variable), self._tensor),
            (keras.Variable, self._variable),
            ((_CONCRETE, _POLYMORPHIC), self._graph),
            (types.ModuleType, self._module),
            (type, self._class),
            (types.FunctionType, self._function),
            (types.MethodType, self._method),
            (functools.partial, self._partial),
            (types.CellType, self._cell),
            ((types.BuiltinFunctionType, np.ufunc), self._builtin),
            ((staticmethod, classmethod), lambda m: self(m.__func__)),
            (property, lambda p: self((p.fget, p.fset, p.fdel))),
            (functools.cached_property, lambda p: self(p.func)),
        )

    def _named(self, value: Any) -> Hashable:
        """Names an object by its id."""
        self.owners.append(value)
        return id(value)

    # Values.

    def _items(self, value: Any) -> Hashable:
        if isinstance(value, tuple):
            return self(type(value)) if type(value) is not tuple else 0, tuple(
                self(item) for item in value
            )
        return self._container(value)

    def _container(self, value: Any) -> Hashable:
        if not isinstance(value, frozenset):
            self.contents = self.contents or f"a {type(value).__name__}"
        if isinstance(value, dict):
            return tuple((self(k), self(v)) for k, v in value.items())
        if isinstance(value, (set, frozenset)):
            return frozenset(self(item) for item in value)
        return tuple(self(item) for item in value)

    def _array(self, value: Any) -> Hashable:
        array = np.asarray(value)
        if array.dtype.hasobject or array.nbytes > _MOST_BYTES:
            raise Unreadable("a large array, or one of objects")
        self.size += array.size
        self.contents = self.contents or "an array"
        content = hashlib.sha1(
            np.ascontiguousarray(array).tobytes(), usedforsecurity=False
        )
        return str(array.dtype), array.shape, content.digest()

    def _tensor(self, value: Any) -> Hashable:
        if isinstance(value, tf.Tensor) and not hasattr(value, "numpy"):
            raise Unreadable("a tensor of a graph")
        self.size += value.shape.num_elements() or 0
        return self._named(value)

    def _variable(self, value: keras.Variable) -> Hashable:
        if not isinstance(value.value, tf.Variable):
            raise Unreadable("a variable in a scope of Keras")
        return self._named(value), self(value.value)

    def _graph(self, value: Any) -> Hashable:
        self.size = math.inf
        return self._named(value)

    # Code.

    def _module(self, module: types.ModuleType) -> Hashable:
        name = module.__name__
        if name.partition(".")[0] not in _PACKAGES:
            raise Unreadable(f"the module {name}")
        return name

    def _class(self, cls: type) -> Hashable:
        top = (cls.__module__ or "").partition(".")[0]
        if cls.__module__ == "builtins":
            if cls.__name__ not in _BUILTINS:
                raise Unreadable(f"the type {cls.__name__}")
            return cls.__name__
        if top in _PACKAGES:
            return self._named(cls)
        if is_of_library(cls) or type(cls) not in (type, type(keras.Layer)):
            raise Unreadable(f"the class {cls.__qualname__}")
        for base in cls.__bases__:
            self(base)
        skipped = set(_NOT_CALLED)
        if issubclass(cls, keras.layers.Layer):
            layers = not_called() - read_by_users(cls)[1]
            skipped |= layers | {"build", "get_config", "from_config"}
        members = tuple(
            (name, self(member))
            for name, member in vars(cls).items()
            if name not in skipped
        )
        return self._named(cls), members

    def _function(self, function: Any) -> Hashable:
        if function.__name__ in _FROZEN:
            raise Unreadable(f"the function {function.__name__}")
        code = function.__code__
        top = (function.__module__ or "").partition(".")[0]
        # The code of a console or a doctest has no file.
        known = top in _PACKAGES and not code.co_filename.startswith("<")
        if known and function.__closure__ is None:
            return self._named(function)
        parts = "library" if known else self._code(function, code)
        return (
            self._named(code),
            parts,
            self(function.__defaults__),
            self(function.__kwdefaults__),
            tuple(self(cell) for cell in function.__closure__ or ()),
            tuple((k, self(v)) for k, v in vars(function).items()),
        )

    def _code(self, function: Any, code: types.CodeType) -> Hashable:
        """Reads the code of a user, with its globals."""
        found = _facts(code)
        if found.objection is not None:
            raise Unreadable(found.objection)
        self.writes |= found.writes
        self.assigns |= found.assigns
        for name in found.imports:
            if name.partition(".")[0] not in _PACKAGES:
                raise Unreadable(f"the module {name}")
        values = []
        for name in found.names:
            if name in function.__globals__:
                value = function.__globals__[name]
                _check_random(value, found)
                values.append((name, self(value)))
            elif name not in _BUILTINS and hasattr(builtins, name):
                raise Unreadable(f"the function {name}")
        return tuple(values)

    def _method(self, method: types.MethodType) -> Hashable:
        return self(method.__func__), self(method.__self__)

    def _partial(self, value: Any) -> Hashable:
        return self(value.func), self(value.args), self(dict(value.keywords))

    def _cell(self, cell: types.CellType) -> Hashable:
        try:
            return self(cell.cell_contents)
        except ValueError as error:
            if isinstance(error, Unreadable):
                raise
            return "empty"

    def _builtin(self, function: Any) -> Hashable:
        owner = getattr(function, "__self__", None)
        module = getattr(function, "__module__", None) or "numpy"
        name = function.__name__
        if module == "builtins" and name in _BUILTINS:
            return name
        known = module.partition(".")[0] in _PACKAGES
        bound = owner is not None and not isinstance(owner, types.ModuleType)
        if not known or bound or name in _FROZEN or "random" in module:
            raise Unreadable(f"the function {name}")
        return module, name

    # Objects.

    def _object(self, value: Any, without: frozenset[str]) -> Hashable:
        cls = type(value)
        top = cls.__module__.partition(".")[0]
        if top in ("tensorflow", "keras"):
            # Such as a model of tf.saved_model.load, or a policy of dtypes.
            return self._graph(value) if callable(value) else self._named(value)
        if hasattr(cls, "__trace_state__"):
            value = value.__trace_state__()
            if type(value) is not cls:
                return self(value)
        if is_of_library(cls) and top != "tfsam":
            raise Unreadable(f"an object of {cls.__qualname__}")
        if not hasattr(value, "__dict__") or hasattr(cls, "__slots__"):
            raise Unreadable(f"an object of {cls.__qualname__}")
        self.objects = self.objects or cls.__qualname__
        if top != "tfsam":
            self.contents = self.contents or f"the object {cls.__qualname__}"
        return self(cls), tuple(
            (name, self(part))
            for name, part in vars(value).items()
            if name not in without
        )

    def _layer(self, layer: keras.layers.Layer) -> Hashable:
        user = not is_of_library(type(layer))
        self.objects = self.objects or type(layer).__qualname__
        contents = self.contents
        skipped = _skipped()
        if user:
            skipped = skipped - read_by_users(type(layer))[1]
        found = tuple(
            (name, self._part_of_layer(part))
            for name, part in vars(layer).items()
            if name not in skipped
            and not name.startswith("_self_")
            and not name.endswith(_OF_TRAINING)
        )
        if not user:  # The lists of stock layers are changed by their methods.
            self.contents = contents
        return self._named(layer), self(type(layer)), found

    def _part_of_layer(self, part: Any) -> Hashable:
        if isinstance(part, keras.KerasTensor):
            return self._named(part)
        return self(part)


@functools.cache
def _skipped() -> frozenset[str]:
    """Returns the attributes of a layer that inference does not depend on."""
    return not_called() | _OF_LAYERS


def _check_random(value: Any, code: _Code) -> None:
    """Rejects code that draws random numbers of NumPy, which a trace keeps."""
    numpy = isinstance(value, types.ModuleType) and value.__name__ == "numpy"
    if numpy and "random" in code.attributes:
        raise Unreadable("random numbers of NumPy")


_known: weakref.WeakKeyDictionary[types.CodeType, _Code] = (
    weakref.WeakKeyDictionary()
)


def _facts(code: types.CodeType) -> _Code:
    """Returns the facts about code, which are kept as long as the code."""
    found = _known.get(code)
    if found is None:
        found = _known[code] = _examined(code)
    return found


def _examined(code: types.CodeType) -> _Code:
    """Examines code, including the code that is nested in it."""
    names: set[str] = set()
    imports: set[str] = set()
    attributes: set[str] = set()
    writes = assigns = False
    objection = None
    for each in nested(code):
        attributes |= set(each.co_names)
        for instruction in dis.get_instructions(each):
            name, argument = instruction.opname, instruction.argval
            if name in _LOADS:
                names.add(argument)
            elif name == "IMPORT_NAME":
                imports.add(argument)
            elif name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                objection = f"code that assigns {argument}"
            elif name in ("STORE_DEREF", "DELETE_DEREF"):
                if argument in each.co_freevars:
                    objection = f"code that assigns {argument}"
            elif name in ("STORE_ATTR", "DELETE_ATTR"):
                assigns = True
            elif name in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
                writes = True
            elif name == "BINARY_OP" and instruction.argrepr.endswith("="):
                writes = True
    frozen = sorted(attributes & _FROZEN)
    if frozen:
        objection = f"code that uses {frozen[0]}"
    return _Code(
        tuple(sorted(names)),
        tuple(sorted(imports)),
        frozenset(attributes),
        writes or bool(attributes & _MUTATORS),
        assigns,
        objection,
    )
