"""The cache key of an evaluation: all that its verdicts depend on.

A folder of verdicts is resumed only by an evaluation of the same cache key.
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import re

import numpy as np

from tfsam.evaluation.plans import has_epsilon
from tfsam.evaluation.workers import kinds_of
from tfsam.models import fingerprints
from tfsam.parts import ATTACKS
from tfsam.support import identity

# What tfsam's verdicts come from.
_ATTACKS = (
    "attacks/**/*.py",
    "evaluation/batches.py",
    "evaluation/chunks.py",
    "evaluation/natural.py",
    "evaluation/workers.py",
    "models/functions.py",
    "models/loading.py",
    "geometry.py",
)


def recognised(header, plan, models, devices):
    """Adds to a header by what the evaluation is recognised.

    Args:
        header: a dict, which is not changed.
        plan: an `attacking.Plan`.
        models: a dict from "model" and "surrogate" to the model as the user
            gave it, its `Logits`, and its name or None.
        devices: names of devices, None for TensorFlow's choice.

    Raises:
        ValueError: if a model or an attack cannot be described and has no name.
    """
    found = {"data": _digest(plan.data.x, plan.data.y)}
    for role in ("model", "surrogate"):
        found |= dict.fromkeys([role, f"{role}_parts", f"{role}_sketch"])
        if role in models:
            given, logits, name = models[role]
            parts = _described(role, given, logits, name)
            if name is not None:
                found[role] = str(name)
            elif logits.identity is not None:
                found[role] = logits.identity["files"]
            else:
                found[role] = identity.digest(parts)
            found[f"{role}_parts"] = parts
            found[f"{role}_sketch"] = fingerprints.sketch(
                logits.function, plan.data.x[:16]
            )
    return header | {
        **found,
        "attacks": [
            attack | {"identity": _attack_identity(entry, plan)}
            for attack, entry in zip(
                header["attacks"], plan.entries, strict=True
            )
        ],
        "jit_compile": models["model"][1].jit_compile,
        "devices": kinds_of(devices),
        "versions": versions(),
    }


def _described(role, given, logits, name):
    """Describes a model; an error asks for a name."""
    try:
        return fingerprints.describe(logits, name)
    except identity.Unknown as error:
        argument = "name" if role == "model" else "surrogate_name"
        raise ValueError(
            f"with workdir, a {role} that cannot be described ({error}) needs "
            f"{argument}='...', a text to change whenever the {role} changes. "
            f"Received: {role}={given}"
        ) from error


def _attack_identity(entry, plan):
    """Describes an attack at each epsilon, or once for all of them."""
    if entry.source == "named":
        return [{"named": entry.name}]
    found = [_made_identity(entry, plan, epsilon) for epsilon in plan.epsilons]
    return found[:1] if all(parts == found[0] for parts in found) else found


def _made_identity(entry, plan, epsilon):
    """Describes the attack at an epsilon; None where making it fails."""
    try:
        attack = entry.make(epsilon=epsilon, norm=plan.norm, bounds=plan.bounds)
    except Exception:
        return None  # What was raised will be in the attack's row.
    try:
        return describe_attack(attack, epsilon)
    except identity.Unknown as error:
        if entry.source == "registry":  # A package's: it has a version.
            kind = type(attack)
            package = kind.__module__.partition(".")[0]
            return {
                "class": f"{kind.__module__}.{kind.__qualname__}",
                "version": identity.version_of(package),
            }
        raise ValueError(
            f"with workdir, an attack that cannot be described ({error}) needs "
            "a name, ('...', factory), to change whenever the attack changes. "
            f"Received: {entry.name}"
        ) from error


def describe_attack(attack, epsilon):
    """Describes an attack so that another process recognises it.

    Args:
        attack: what a factory made.
        epsilon: of the evaluation; it is not part of the description.

    Returns:
        A dict of JSON's types.

    Raises:
        tfsam.support.identity.Unknown: if the attack cannot be described.
    """

    def described(attack):
        without = ["epsilon"] if has_epsilon(attack, epsilon) else []
        return identity.describe(attack, without)

    parts = identity.compact(described(attack))
    stages = ATTACKS.fact(attack, "stages")
    if stages:
        parts["stages"] = identity.digest(
            [[name, described(stage)] for name, stage in stages]
        )
    library = ATTACKS.fact(attack, "library")
    if isinstance(library, str):
        parts["library"] = f"{library} {identity.version_of(library)}"
    return parts


def versions():
    """Returns the versions that verdicts depend on, by package.

    That of tfsam's attacks is a checksum of their source, which may be newer
    than the version of the package.
    """
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("tensorflow", "keras", "tfsam"):
        found[package] = importlib.metadata.version(package)
    return found | {"tfsam's attacks": _attacks_code()}


@functools.cache
def _attacks_code():
    folder = pathlib.Path(__file__).parents[1]
    paths = sorted(p for pattern in _ATTACKS for p in folder.glob(pattern))
    return identity.digest([[path.name, path.read_text()] for path in paths])


def _digest(*arrays):
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def plain_options(options):
    """Options as JSON has them, to be shown."""

    def plain(value):
        if isinstance(value, (str, int, float, bool, type(None))):
            return value
        if isinstance(value, (np.ndarray, np.generic)):
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            return f"{value.dtype} {value.shape} {digest}"
        # Without the address, which is another one in every process.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

    return {key: plain(value) for key, value in options.items()}
