"""Installed packages: recognising their code, and their versions."""

import functools
import importlib.metadata
import re
import sys
from collections.abc import Mapping
from typing import Any

LIBRARY_FOLDERS = re.compile(r"[/\\](site|dist)-packages[/\\]")

# The flag of a class that is not compiled into Python or a library.
_MADE_BY_CODE = 1 << 9


def is_of_library(cls: type) -> bool:
    """Returns whether a class belongs to an installed package.

    Args:
        cls: The class.
    """
    if not cls.__flags__ & _MADE_BY_CODE:
        return True
    # A class statement without a module gives its class that of `object`.
    module = getattr(cls, "__module__", None)
    return module != "builtins" and is_library(module)


def is_library(module: Any) -> bool:
    """Returns whether a module belongs to an installed package.

    The standard library and tfsam count as installed packages.

    Args:
        module: Name of the module; any other type gives False.

    Example:
        >>> is_library("numpy.linalg"), is_library("no_such_module")
        (True, False)
    """
    if not isinstance(module, str):
        return False
    top = module.partition(".")[0]
    if top in ("builtins", "tfsam") or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    file = file or getattr(sys.modules.get(top), "__file__", None)
    return bool(file and LIBRARY_FOLDERS.search(file))


@functools.cache
def version_of(package: str) -> str | None:
    """Returns the version of an installed package, None if there is none.

    Args:
        package: Name of the package, or the name by which it is imported.
    """
    if package == "builtins" or package in sys.stdlib_module_names:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = _distributions().get(package)
        return importlib.metadata.version(names[0]) if names else None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
