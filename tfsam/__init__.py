"""Sharpness-aware minimization, adversarial training and their evaluation.

    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM(rho=0.2))
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(train)
    result = tfsam.evaluate(network, (x, y), attacks=["cleverhans_pgd"],
                            norm="linf", epsilons=[1 / 255, 2 / 255])

The public names live in `tfsam.public`. They are imported at once, because
Keras can only load classes that are registered; but the command line, which
answers `--help` and mistyped flags without TensorFlow, imports them later.
"""

import importlib.util
import pathlib
import sys
from typing import Any

__version__ = "0.2.0"


def _is_the_command() -> bool:
    """Whether this process is `tfsam`, `python -m tfsam` or `-m tfsam.run`."""
    if sys.argv[:1] == ["-m"]:  # Python is about to run a module.
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        return module in ("tfsam", "tfsam.run", "tfsam.__main__")
    program = pathlib.Path(sys.argv[0]) if sys.argv[:1] else pathlib.Path()
    return program.parent.name in ("bin", "Scripts") and program.stem == "tfsam"


if not _is_the_command():
    from tfsam.public import *  # noqa: F403
    from tfsam.public import __all__  # noqa: F401


def __getattr__(name: str) -> Any:
    """Imports a submodule or a public name that is not imported yet."""
    if name.startswith("_"):
        raise AttributeError(f"module 'tfsam' has no attribute {name!r}")
    if importlib.util.find_spec(f"tfsam.{name}"):
        return importlib.import_module(f"tfsam.{name}")
    return getattr(importlib.import_module("tfsam.public"), name)
