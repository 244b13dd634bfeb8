"""Installed packages: which code is theirs, and their versions."""

import functools
import importlib.metadata
import re
import sys

LIBRARY_FOLDERS = re.compile(r"[/\\](site|dist)-packages[/\\]")

# Of the flags of a class: that it was not compiled into Python or a library.
_MADE_BY_CODE = 1 << 9


def is_of_library(cls):
    """Returns whether a class is a library's, and known by its version.

    Args:
        cls: a class.
    """
    if not cls.__flags__ & _MADE_BY_CODE:
        return True
    # A class statement without a module gives its class that of `object`.
    module = getattr(cls, "__module__", None)
    return module != "builtins" and is_library(module)


def is_library(module):
    """Returns whether a module is a package's, not the user's."""
    if not isinstance(module, str):
        return False
    top = module.partition(".")[0]
    if top in ("builtins", "tfsam") or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    file = file or getattr(sys.modules.get(top), "__file__", None)
    return bool(file and LIBRARY_FOLDERS.search(file))


@functools.cache
def version_of(package):
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
