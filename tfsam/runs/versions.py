"""Versions of the software that the results of a run depend on."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from tfsam import registries
from tfsam.runs import flags
from tfsam.runs.settings import Settings

_PACKAGES = ("tfsam", "tensorflow", "keras", "cleverhans", "numpy")


def current(settings: Settings) -> dict[str, str]:
    """Returns the versions of Python and of the packages that matter.

    Args:
        settings: the settings of the run. The packages of its parts matter.
    """
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        **of_parts(settings),
    }


def of_parts(settings: Settings) -> dict[str, str]:
    """Returns the versions of the other packages that a run's parts are from.

    Args:
        settings: the settings of the run.
    """
    values = settings.config()
    found = {}
    registered = {
        **flags.REGISTRIES,
        "corruptions": registries.CORRUPTIONS,
        "dataset": registries.SOURCES,
    }
    for flag, registry in registered.items():
        given = values.get(flag) or []
        if isinstance(given, bool):  # The augmentation that needs no name.
            continue
        packages = {k.casefold(): v for k, v in registry.packages().items()}
        for spec in [given] if isinstance(given, str) else given:
            name = spec.partition(":")[0].strip().casefold()
            package = packages.get(name)
            if package is not None and package not in _PACKAGES:
                found[package] = _version(package)
    return found


def warning(settings: Settings, results: Mapping[str, Any]) -> str | None:
    """Returns a line about packages that changed since a run, or None.

    Args:
        settings: the settings of the run.
        results: the content of its results.json.
    """
    before = results.get("versions") or {}
    changed = [
        f"{package} is {version}, was {before[package]}"
        for package, version in of_parts(settings).items()
        if before.get(package, version) != version
    ]
    if not changed:
        return None
    return (
        f"warning: these results are of another version: {'; '.join(changed)}. "
        "--overwrite starts again"
    )


def _version(package: str) -> str:
    """Returns a package's version; "unknown" where it has no metadata."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
