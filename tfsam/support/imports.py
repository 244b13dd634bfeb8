"""Imports of modules and functions that a user names."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from tfsam.support import files


def module(flag: str, name: str) -> Any:
    """Imports a module, from the working directory too.

    Args:
        flag: Name of the flag or argument that names it, for the error.
        name: Name of the module.

    Raises:
        ValueError: If it cannot be imported.

    Example:
        >>> module("import", "math").pi > 3
        True
    """
    here = os.getcwd()
    if not {here, ""} & {*sys.path}:
        # It stays there, because functions may import more when called.
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # The module may raise anything.
        raise ValueError(
            f"{flag} must name a module that can be imported, of an installed "
            f"package or of the working directory ({files.reason(error)}). "
            f"Received: {flag}={name}"
        ) from error


def attribute(flag: str, name: str) -> Callable[..., Any]:
    """Imports a function.

    Args:
        flag: Name of the flag or argument that names it, for the error.
        name: Its name, as "MODULE:FUNCTION".

    Raises:
        ValueError: If there is no such function.

    Example:
        >>> attribute("pixels", "math:sqrt")(4.0)
        2.0
    """
    path, _, inner = name.partition(":")
    found = module(flag, path)
    for part in inner.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(
            f"{flag} must be MODULE:FUNCTION with a function of the module. "
            f"Received: {flag}={name}"
        )
    return found
