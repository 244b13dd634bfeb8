"""The cache key of an evaluation: descriptions of all that verdicts depend on.

The key is the header of a record. A folder of verdicts is resumed only by an
evaluation whose key agrees with it; see `headers.py`.
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import platform
import re
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.attacks.logits import Logits
from tfsam.data import rows
from tfsam.data.rows import Pixels
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import ascending
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.budgets import together
from tfsam.evaluation.headers import SCHEMA
from tfsam.evaluation.headers import Header
from tfsam.evaluation.headers import Identify
from tfsam.evaluation.headers import grouped
from tfsam.evaluation.opening import Models
from tfsam.evaluation.opening import of_first
from tfsam.evaluation.plans import Data
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import has_epsilon
from tfsam.evaluation.red_flags import LOGARITHMS
from tfsam.evaluation.workers import kinds_of
from tfsam.models import fingerprints
from tfsam.registries import ATTACKS
from tfsam.support import identity

# The source files whose code decides verdicts.
_DECISIVE = (
    "attacks/**/*.py",
    "evaluation/attack_batch.py",
    "evaluation/attack_probes.py",
    "evaluation/batch_dependence.py",
    "evaluation/bisection.py",
    "evaluation/chunk*.py",
    "evaluation/draws.py",
    "evaluation/goals.py",
    "evaluation/model_probes.py",
    "evaluation/natural.py",
    "evaluation/nearest_images.py",
    "evaluation/plans.py",
    "evaluation/records.py",
    "evaluation/verdicts.py",
    "evaluation/workers.py",
    "evaluation/worst_case.py",
    "models/**/*.py",
    "geometry/*.py",
    "support/graphs.py",
    "support/labels.py",
    "support/pixels.py",
    "support/random_states.py",
    "support/several_inputs.py",
    "support/single_logits.py",
)


class Model(NamedTuple):
    """A model of the evaluation.

    Attributes:
        given: The model as the user gave it.
        logits: The loaded model.
        name: The user's name for the model, or None.
    """

    given: Any
    logits: Logits
    name: str | None


def undescribed(plan: Plan, models: Models) -> Header:
    """Returns a header without descriptions of the data and the models.

    Args:
        plan: The plan of the evaluation.
        models: The loaded models.
    """
    header: Header = {
        "schema": SCHEMA,
        "n": len(plan.data.x),
        "classes": models.classes,
        "batch_size": plan.size,
        "bounds": None if plan.bounds is None else list(plan.bounds),
        "seed": plan.seed,
        "adversarial": plan.keep_images,
        "warm_start": plan.warm_start,
        # The surrogate's description replaces this; see `described`.
        "surrogates": [] if models.surrogate is None else [None],
        "attacks": [
            {
                "name": entry.name,
                "options": plain_options(entry.options),
                "surrogate": 0 if entry.transfer else None,
                "budgets": together([plan.budgets]),
            }
            for entry in plan.entries
        ],
    }
    origin = models.judge.origin or {}
    if origin.get("logits") == LOGARITHMS:
        header["logits"] = LOGARITHMS
    if plan.factors is not None:
        header["epsilon_factors"] = array_digest(plan.factors)
    header |= plan.goal.header()
    if plan.data.inputs is not None:
        header["attacked"] = plan.data.inputs.attacked
    if plan.bisect:
        header["sweep"] = "bisect"
    if plan.draws is not None:
        header["draws"] = plan.draws.number
    return header


def described(
    header: Header,
    plan: Plan,
    models: Mapping[str, Model],
    devices: Iterable[str | None],
) -> Header:
    """Adds descriptions of data, models, attacks and software to a header.

    Args:
        header: The header of a record, which is not changed.
        plan: The plan of the evaluation.
        models: The models by their roles, "model" and "surrogate".
        devices: Names of devices, None for the device of TensorFlow's choice.

    Returns:
        A new header.

    Raises:
        ValueError: If a model or an attack cannot be described and has no name.
    """
    label, parts, sketch = _described_model("model", models["model"], plan)
    surrogates = header["surrogates"]
    if "surrogate" in models:
        names = ("surrogate", "parts", "sketch")
        facts = _described_model("surrogate", models["surrogate"], plan)
        surrogates = [dict(zip(names, facts, strict=True))]
    return header | {
        "data": data_digest(plan.data),
        "model": label,
        "model_parts": parts,
        "model_sketch": sketch,
        "surrogates": surrogates,
        "attacks": [
            attack | {"identity": _attack_identity(entry, plan)}
            for attack, entry in zip(
                header["attacks"], plan.entries, strict=True
            )
        ],
        "jit_compile": models["model"].logits.jit_compile,
        "devices": kinds_of(devices),
        "versions": versions(),
    }


def _described_model(
    role: str, model: Model, plan: Plan
) -> tuple[str, dict[str, Any], Any]:
    """Returns a model's label, its description, and the sketch of its outputs.

    The label is the user's name, or a checksum.
    """
    logits = model.logits
    parts = model_identity(role, model)
    if model.name is not None:
        label = str(model.name)
    elif logits.identity is not None:
        label = logits.identity["files"]
    else:
        label = identity.digest(parts)
    function = of_first(logits, plan.data, 16).function
    return label, parts, fingerprints.sketch(function, plan.data.x[:16])


def model_identity(role: str, model: Model) -> dict[str, Any]:
    """Describes a model so that another process recognises it.

    Args:
        role: "model" or "surrogate".
        model: The model.

    Raises:
        ValueError: If it cannot be described and has no name. The error
            explains how to name it.
    """
    try:
        return fingerprints.describe(model.logits, model.name)
    except identity.Unknown as error:
        argument = "name" if role == "model" else "surrogate_name"
        raise ValueError(
            f"with workdir, a {role} that cannot be described ({error}) needs "
            f"{argument}='...', a text to change whenever the {role} changes. "
            f"Received: {role}={model.given}"
        ) from error


def identifier(entry: Entry, plan: Plan) -> Identify:
    """Returns a function that describes an attack at any budget.

    Args:
        entry: The attack.
        plan: The plan of the evaluation.

    Returns:
        A function from a `Budget` to a dict of JSON types; None if the attack
        cannot be made at this budget. It raises a ValueError if the attack
        cannot be described and has no name.
    """
    if entry.source == "named":
        return lambda budget: {"named": entry.name}
    return functools.cache(functools.partial(_made_identity, entry, plan))


def _attack_identity(entry: Entry, plan: Plan) -> list[Header]:
    """Describes an attack at all budgets."""
    describe = identifier(entry, plan)
    return grouped({b: describe(b) for b in flat(ascending(plan.budgets))})


def _made_identity(
    entry: Entry, plan: Plan, budget: Budget
) -> dict[str, Any] | None:
    """Describes the attack at a budget; returns None if it cannot be made."""
    epsilon = budget.epsilon
    try:
        attack = plan.made(entry, budget)
    except Exception:
        return None  # The attack's row will report the exception.
    try:
        return describe_attack(attack, epsilon)
    except identity.Unknown as error:
        if entry.source == "registry":  # The version of its package is known.
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


def describe_attack(attack: Any, epsilon: float) -> dict[str, Any]:
    """Describes an attack so that another process recognises it.

    Args:
        attack: The attack, made by a factory.
        epsilon: Budget of the evaluation, which is left out.

    Returns:
        A dict of JSON types.

    Raises:
        tfsam.support.identity.Unknown: If the attack cannot be described.
    """

    def parts_of(attack: Any) -> Any:
        without = ["epsilon"] if has_epsilon(attack, epsilon) else []
        return identity.describe(attack, without)

    parts = identity.compact(parts_of(attack))
    stages = ATTACKS.fact(attack, "stages")
    if stages:
        parts["stages"] = identity.digest(
            [[name, parts_of(stage)] for name, stage in stages]
        )
    library = ATTACKS.fact(attack, "library")
    if isinstance(library, str):
        parts["library"] = f"{library} {identity.version_of(library)}"
    return parts


def versions() -> dict[str, str]:
    """Returns the versions of the software that verdicts depend on.

    The entry of tfsam's attacks is a checksum of their source, which may be
    newer than the version of the package.
    """
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("tensorflow", "keras", "tfsam"):
        found[package] = importlib.metadata.version(package)
    return found | {"tfsam's attacks": source_digest(_DECISIVE)}


@functools.cache
def source_digest(patterns: tuple[str, ...]) -> str:
    """Computes a checksum of some of tfsam's source files.

    Args:
        patterns: Patterns of paths in the folder of the package.
    """
    folder = pathlib.Path(__file__).parents[1]
    paths = sorted(p for pattern in patterns for p in folder.glob(pattern))
    return identity.digest([[path.name, path.read_text()] for path in paths])


def data_digest(data: Data) -> str:
    """Computes a checksum of images and labels.

    Args:
        data: The examples of an evaluation.
    """
    return array_digest(data.x, data.y, *data.others)


def array_digest(*arrays: Pixels) -> str:
    """Computes a checksum of arrays, with their dtypes and shapes.

    Args:
        *arrays: Arrays, or `Rows`.
    """
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape}".encode())
        for block in rows.blocks(array):
            total.update(np.ascontiguousarray(block).data)
    return total.hexdigest()


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the options of an attack to JSON types, to be shown.

    Args:
        options: The options by name, with values of any type.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, (str, int, float, bool, type(None))):
            return value
        if isinstance(value, (np.ndarray, np.generic)):
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            return f"{value.dtype} {value.shape} {digest}"
        # The address differs from process to process.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

    return {key: plain(value) for key, value in options.items()}
