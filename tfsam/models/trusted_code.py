"""Check that a stored configuration runs no code but Keras's and the user's."""

import sys
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras

# A function may come from these modules of Keras. Others, such as keras.utils,
# have functions that fetch and write files.
_FUNCTION_MODULES = (
    "activations",
    "constraints",
    "initializers",
    "losses",
    "metrics",
    "ops",
    "regularizers",
)
# Layers that run a program stored in the configuration or named by it.
_PROGRAMS = (
    "FlaxLayer",
    "JaxLayer",
    "Lambda",
    "TFSMLayer",
    "TorchModuleWrapper",
)
_KERAS = ("keras", "tf_keras")


class Untrusted(ValueError):
    """A model holds code that nobody has trusted or registered."""


def registered(custom_objects: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the classes and functions that the user has registered.

    Args:
        custom_objects: More of them, by name.
    """
    return keras.saving.get_custom_objects() | dict(custom_objects or {})


def registered_with_tf_keras() -> dict[str, Any]:
    """Returns the classes and functions registered with tf_keras."""
    library = sys.modules.get("tf_keras")
    return library.saving.get_custom_objects() if library else {}


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

    Nothing is imported or built.

    Args:
        config: The configuration of a model.
        objects: The classes and functions that the user has registered.
        trusted: Names of layers whose code may run.

    Returns:
        Whether code of a trusted layer is needed, so that Keras's safe mode
        would refuse it.

    Raises:
        Untrusted: If it has a Lambda layer, or another layer with a program,
            that is not trusted; or a class or a function of another library
            that is not registered.
    """
    unsafe = False
    for entry, owner in _entries(config, ""):
        if owner in trusted:
            unsafe = unsafe or entry["class_name"] in (*_PROGRAMS, "__lambda__")
            continue
        if not _is_registered(entry, objects):
            _check_entry(entry, owner, objects)
    return unsafe


def _entries(config: Any, owner: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields each object of a configuration with the name of its layer."""
    stack = [(config, owner)]
    while stack:
        found, owner = stack.pop()
        if isinstance(found, dict):
            inner = found.get("config")
            if isinstance(found.get("class_name"), str):
                if isinstance(inner, dict) and isinstance(
                    inner.get("name"), str
                ):
                    owner = inner["name"]
                yield found, owner
            if isinstance(found.get("vocabulary"), str):
                raise Untrusted(
                    f"layer {owner} reads another file, "
                    f"{found['vocabulary'][:80]}"
                )
            stack += [(value, owner) for value in found.values()]
        elif isinstance(found, list):
            stack += [(value, owner) for value in found]


def _is_registered(entry: dict[str, Any], objects: Mapping[str, Any]) -> bool:
    if entry["class_name"] == "function":
        return key(entry.get("config"), objects) is not None
    return layer_key(entry, objects) is not None


def _check_entry(
    entry: dict[str, Any], owner: str, objects: Mapping[str, Any]
) -> None:
    name, module = entry["class_name"], entry.get("module")
    if name == "Lambda":
        if lambda_key(entry, objects) is None:
            raise Untrusted(
                f"layer {owner} is a Lambda layer, whose code could do "
                f"anything: add --trust={owner} if you trust the file, or "
                "register its function by --import=MODULE"
            )
        return
    if name == "__lambda__" or name in _PROGRAMS:
        raise Untrusted(
            f"layer {owner} holds a program ({name}), which could do anything: "
            f"add --trust={owner} if you trust the file"
        )
    check_place = _check_function if name == "function" else _check_class
    if name.startswith("__") and name != "__typespec__":
        return
    check_place(entry, owner, module)


def _check_function(entry: dict[str, Any], owner: str, module: Any) -> None:
    """Accepts a function of Keras that maps tensors."""
    if module in (None, "builtins"):
        return
    parts = str(module).split(".")
    inside = parts[2] if parts[1:2] == ["src"] and len(parts) > 2 else ""
    if parts[0] in _KERAS and (
        inside in _FUNCTION_MODULES
        or (len(parts) > 1 and parts[1] in _FUNCTION_MODULES)
    ):
        return
    raise Untrusted(
        _unregistered(owner, "function", f"{module}.{entry.get('config')}")
    )


def _check_class(entry: dict[str, Any], owner: str, module: Any) -> None:
    """Accepts a class of Keras, or one that is looked up by its kind."""
    name = entry["class_name"]
    if "module" not in entry:
        return
    if str(module).split(".")[0] in (*_KERAS, "keras_hub", "keras_cv"):
        if name[:1].isupper():
            return
    raise Untrusted(_unregistered(owner, "class", f"{name} ({module})"))


def _unregistered(owner: str, kind: str, name: str) -> str:
    return (
        f"layer {owner} needs the {kind} {name}, which is not registered: add "
        "--import=MODULE with the module that registers it, or pass "
        "custom_objects"
    )


def unregistered(owner: str, name: str) -> Untrusted:
    """Makes the error of a class that is not registered.

    Args:
        owner: Name of the layer.
        name: Name of the class.
    """
    return Untrusted(_unregistered(owner, "class", name))


def lambda_key(entry: dict[str, Any], objects: Mapping[str, Any]) -> str | None:
    """Returns the key of the registered function of a Lambda layer, or None.

    A function registered under the name of the layer takes the place of code
    that the file holds.

    Args:
        entry: Configuration of the layer, with its class.
        objects: The registered objects.
    """
    config = entry.get("config") or {}
    function: Any = config.get("function")
    if isinstance(function, dict):
        function = function.get("config")
    for name in (function, config.get("name")):
        found = key(name, objects)
        if found is not None:
            return found
    return None
