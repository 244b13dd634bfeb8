"""Check that a stored configuration runs no code but Keras's and the user's."""

import re
import sys
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras

# Modules of Keras with layers, and those with functions that map tensors.
# Others, such as keras.utils, have functions that fetch and write files.
_FUNCTIONS = (
    "activations|constraints|initializers|losses|metrics|ops|regularizers"
)
_CLASSES = (
    f"{_FUNCTIONS}|_legacy|applications|dtype_policies|engine|layers|legacy|"
    "mixed_precision|models|optimizers|quantizers|random"
)
_FUNCTION_MODULE = re.compile(rf"keras\.(src\.)?({_FUNCTIONS})(\.\w+)*")
_CLASS_MODULE = re.compile(rf"(tf_)?keras(\.(src\.)?({_CLASSES})(\.\w+)*)?")

# Layers that run a program stored in the configuration or named by it.
_PROGRAMS = (
    "ClassMethod",
    "FlaxLayer",
    "InstanceMethod",
    "InstanceProperty",
    "JaxLayer",
    "Lambda",
    "TFSMLayer",
    "TorchModuleWrapper",
    "__lambda__",
)
# Values without code. Keras resolves a class by its kind where an entry has no
# module.
_VALUES = (
    "__bytes__",
    "__ellipsis__",
    "__keras_tensor__",
    "__numpy__",
    "__slice__",
    "__tensor__",
)
# Functions of TensorFlow that tf_keras may call: others read and write files.
_TENSORFLOW = re.compile(
    r"(math|nn|image|linalg|signal|__operators__)\.\w+|cast|clip_by_value|"
    r"concat|expand_dims|gather|identity|one_hot|ones_like|pad|repeat|reshape|"
    r"reverse|roll|shape|split|squeeze|stack|stop_gradient|tile|transpose|"
    r"unstack|where|zeros_like"
)


class Untrusted(ValueError):
    """A model holds code that nobody has trusted or registered."""


def is_of_keras(module: Any) -> bool:
    """Returns whether a stored module is one of Keras's with layers.

    Args:
        module: The module of a class. Old configurations have none.
    """
    return module is None or bool(_CLASS_MODULE.fullmatch(str(module)))


def registered(custom_objects: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the classes and functions that the user has registered.

    Args:
        custom_objects: More of them, by name.
    """
    return keras.saving.get_custom_objects() | dict(custom_objects or {})


def registered_with_tf_keras() -> dict[str, Any]:
    """Returns the classes and functions registered with tf_keras."""
    library = sys.modules.get("tf_keras")
    return dict(library.saving.get_custom_objects()) if library else {}


def key(name: Any, objects: Mapping[str, Any]) -> str | None:
    """Returns the key under which a name is registered, or None.

    Args:
        name: A name, with or without its package as in "Custom>Name".
        objects: The registered objects.
    """
    if not isinstance(name, str):
        return None
    if name in objects:
        return name
    bare = name.rpartition(">")[2]
    for found in objects:
        if found == bare or found.endswith(f">{bare}"):
            return found
    return None


def layer_key(
    entry: Mapping[str, Any], objects: Mapping[str, Any]
) -> str | None:
    """Returns the key under which the class of a layer is registered, or None.

    Args:
        entry: Configuration of the layer, with its class.
        objects: The registered objects.
    """
    for name in (entry.get("registered_name"), entry.get("class_name")):
        if isinstance(name, str) and name in objects:
            return name
    bare = str(entry.get("class_name")).rpartition(">")[2]
    # A class of Keras is replaced only under its full name.
    return None if hasattr(keras.layers, bare) else key(bare, objects)


def check(
    config: Any, objects: Mapping[str, Any], trusted: tuple[str, ...]
) -> bool:
    """Checks that a configuration names no code of others.

    Nothing is imported or built. Names are resolved as Keras resolves them.

    Args:
        config: The configuration of a model, as Keras will be given it.
        objects: The classes and functions that the user has registered.
        trusted: Names of layers whose code may run.

    Returns:
        Whether code of a trusted layer is needed, which Keras's safe mode
        would refuse.

    Raises:
        Untrusted: If it has a Lambda layer, or another layer with a program,
            that is neither trusted nor registered; a class or a function of
            another library that is not registered; or the path of a file.
    """
    unsafe = False
    for entry, owner in _entries(config):
        if owner in trusted:
            unsafe = unsafe or entry["class_name"] in _PROGRAMS
        elif entry["class_name"] == "function":
            _check_function(entry, owner, objects)
        else:
            _check_class(entry, owner, objects)
    return unsafe


def _entries(config: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields each object of a configuration with the name of its layer."""
    stack: list[tuple[Any, str]] = [(config, "")]
    while stack:
        found, owner = stack.pop()
        if isinstance(found, list):
            stack += [(value, owner) for value in found]
        if not isinstance(found, dict):
            continue
        if "class_name" in found:
            inner = found.get("config")
            name = inner.get("name") if isinstance(inner, dict) else None
            owner = name if isinstance(name, str) else owner
            yield found, owner
        if isinstance(found.get("vocabulary"), str):
            raise Untrusted(
                f"layer {owner} reads a file, {found['vocabulary'][:80]}"
            )
        stack += [(value, owner) for value in found.values()]


def _check_function(
    entry: dict[str, Any], owner: str, objects: Mapping[str, Any]
) -> None:
    """Accepts registered functions, and functions of Keras that map tensors."""
    name, module = entry.get("config"), entry.get("module")
    if _is_key(name, objects):
        return
    # Keras looks for a function of builtins among its activations and the like.
    if module in (None, "builtins") or _FUNCTION_MODULE.fullmatch(str(module)):
        return
    raise unregistered(owner, f"{module}.{name}", "function")


def _check_class(
    entry: dict[str, Any], owner: str, objects: Mapping[str, Any]
) -> None:
    """Accepts registered classes, and classes of Keras that hold no program."""
    name = entry["class_name"]
    if name in _VALUES or _is_key(entry.get("registered_name", name), objects):
        return
    if name in _PROGRAMS:
        if name == "Lambda" and _is_registered(entry["config"], objects):
            return
        raise Untrusted(
            f"layer {owner} holds code ({name}), which could do anything: add "
            f"--trust={owner} if you trust the file, or register its function "
            "by --import=MODULE"
        )
    if name in ("TFOpLambda", "TensorFlowOpLayer"):
        config = entry["config"]
        function = str(config.get("function", config.get("node_def")))
        if not _TENSORFLOW.fullmatch(function):
            raise Untrusted(
                f"layer {owner} calls {function[:60]} of TensorFlow, which may "
                f"read and write files: add --trust={owner} if you trust it"
            )
    module = entry.get("module", "keras")
    if str(name)[:1].isupper() and _CLASS_MODULE.fullmatch(str(module)):
        return
    raise unregistered(owner, f"{name} ({module})")


def _is_registered(config: dict[str, Any], objects: Mapping[str, Any]) -> bool:
    """Returns whether the functions of a Lambda layer are the user's own."""
    function = config.get("function")
    if isinstance(function, dict) and function["class_name"] == "function":
        function = function["config"]
    # Keras 2 stores the code of a shape as a list or as text.
    has_code = config.get("output_shape_type") == "lambda"
    return _is_key(function, objects) and not has_code


def _is_key(name: Any, objects: Mapping[str, Any]) -> bool:
    return isinstance(name, str) and name in objects


def unregistered(owner: str, name: str, kind: str = "class") -> Untrusted:
    """Makes the error of a class or function that is not registered.

    Args:
        owner: Name of the layer that needs it.
        name: Its name.
        kind: "class" or "function".
    """
    return Untrusted(
        f"layer {owner} needs the {kind} {name}, which is not registered: add "
        "--import=MODULE with the module that registers it, or pass "
        "custom_objects"
    )


def lambda_key(config: Mapping[str, Any], objects: Mapping[str, Any]) -> Any:
    """Returns the key of the registered function of a Lambda layer, or None.

    A function registered under the name of the layer takes the place of code
    that the file holds.

    Args:
        config: Configuration of the layer.
        objects: The registered objects.
    """
    function = config.get("function")
    if isinstance(function, dict):
        function = function.get("config")
    return key(function, objects) or key(config.get("name"), objects)
