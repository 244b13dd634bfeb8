"""The arguments of `evaluate`, and the plan that is made of them."""

import dataclasses
import numbers
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.evaluation import budgets as balls
from tfsam.evaluation.budgets import Budgets
from tfsam.evaluation.goals import AllLabels
from tfsam.evaluation.goals import AnyWrongClass
from tfsam.evaluation.goals import Towards
from tfsam.evaluation.plans import Data
from tfsam.evaluation.plans import Entry
from tfsam.evaluation.plans import Plan
from tfsam.evaluation.plans import cold_entries
from tfsam.evaluation.plans import entries_of
from tfsam.evaluation.plans import load_inputs
from tfsam.evaluation.workers import known_devices
from tfsam.registries import ATTACKS
from tfsam.support import files
from tfsam.support import validators
from tfsam.support.validators import Bounds

# The default of `epsilons`.
EPSILONS = (1 / 255, 2 / 255)


@dataclasses.dataclass(frozen=True)
class What:
    """The arguments of `evaluate` that define the measurement."""

    model: Any
    data: Any
    attacks: Any
    transfer_attacks: Any
    norm: str
    epsilons: Any
    budgets: Any
    epsilon_factors: Any
    bounds: Any
    target: Any
    multi_label: bool
    attacked: str | int | None
    seed: Any
    draws: Any
    steps: int | None
    surrogate: Any
    warm_start: bool
    sweep: str
    pixels: str | None


@dataclasses.dataclass(frozen=True)
class How:
    """The arguments of `evaluate` that control the computation."""

    batch_size: Any
    strict: bool
    jit_compile: Any
    progress: Callable[[str], Any] | None
    devices: Any
    shard: Any
    diagnose: bool


@dataclasses.dataclass(frozen=True)
class Where:
    """The arguments of `evaluate` that set where verdicts are kept."""

    workdir: files.Path | None
    save_adversarial: bool
    name: str | None
    surrogate_name: str | None


def made_plan(what: What, how: How, where: Where) -> Plan:
    """Checks the arguments and reads the data.

    Args:
        what: The arguments that define the measurement.
        how: The arguments that control the computation.
        where: The arguments that set where verdicts are kept.

    Raises:
        ValueError: If an argument or the data is invalid; see `evaluate`.
    """
    batch_size = validators.check_count("batch_size", how.batch_size, 1)
    seed = validators.check_count("seed", what.seed)
    bounds = validators.check_interval("bounds", what.bounds)
    budgets = _budgets(what, bounds)
    if where.save_adversarial and where.workdir is None:
        raise ValueError(
            "save_adversarial needs a workdir to save to. Received: none"
        )
    entries = _entries(what)
    _check_sweep(what.sweep, entries, budgets, bounds, what.warm_start)
    if what.warm_start and any(budgets.values()):
        norms = [norm for norm, epsilons in budgets.items() if epsilons]
        cold = _cold(entries, norms, budgets[norms[0]][0], bounds)
        if cold:
            warnings.warn(
                f"{', '.join(cold)} cannot start from an image: warm_start "
                "applies to the other attacks only.",
                stacklevel=3,
            )
    data = load_inputs(
        what.data,
        what.attacked,
        what.model,
        bounds,
        what.steps,
        what.multi_label,
    )
    factors = _factors(what.epsilon_factors, len(data.x), budgets, bounds)
    size = min(batch_size, len(data.x))
    check_shard(how.shard, len(data.x), size)
    known_devices(how.devices)
    return Plan(
        data=data,
        entries=entries,
        budgets=budgets,
        bounds=bounds,
        seed=seed,
        size=size,
        warm_start=what.warm_start,
        bisect=what.sweep == "bisect",
        keep_images=where.save_adversarial,
        diagnose=how.diagnose,
        factors=factors,
        goal=_goal(data, what.target, what.multi_label),
    )


def _goal(data: Data, target: Any, multi_label: bool) -> AnyWrongClass:
    """Returns the goal of the attacks."""
    if multi_label and target is not None:
        raise ValueError(
            "target is a class, and several labels are none: leave it out. "
            f"Received: target={target}, multi_label=True"
        )
    if multi_label:
        return AllLabels(data.y)
    if target is None:
        return AnyWrongClass(data.y, data.labels)
    return Towards(data.y, data.labels, target)


def check_sweep(
    sweep: str,
    attacks: Any,
    budgets: Mapping[str, Sequence[float]],
    bounds: Bounds,
    warm_start: bool = False,
) -> None:
    """Checks that all attacks may be swept over epsilons in a way.

    Args:
        sweep: "full" or "bisect".
        attacks: Attacks as in `evaluate`.
        budgets: The epsilons of each norm.
        bounds: (lowest, highest) value of a pixel, or None.
        warm_start: As in `evaluate`.

    Raises:
        ValueError: If the way is unknown, or an attack or `warm_start` needs a
            full sweep.
    """
    _check_sweep(sweep, entries_of(attacks), budgets, bounds, warm_start)


def _check_sweep(
    sweep: str,
    entries: Iterable[Entry],
    given: Mapping[str, Sequence[float]],
    bounds: Bounds,
    warm_start: bool,
) -> None:
    """Checks sweeps; see `check_sweep`."""
    validators.check_choice("sweep", sweep, ["full", "bisect"])
    if sweep == "full":
        return
    if warm_start:
        raise ValueError(
            "sweep='bisect' does not attack in the order of the epsilons, as "
            "warm_start needs. Received: sweep=bisect, warm_start=True"
        )
    budgets = ((norm, e) for norm, found in given.items() for e in found)
    norm, epsilon = next(budgets, ("linf", 0.0))

    def version(entry: Entry) -> Any:
        try:
            attack = entry.make(epsilon=epsilon, norm=norm, bounds=bounds)
        except Exception:
            # A factory may raise anything; the attack's own row reports it.
            return None
        return ATTACKS.fact(attack, "version")

    standard = [e.name for e in entries if version(e) == "standard"]
    if standard:
        raise ValueError(
            "standard AutoAttack attacks at every epsilon; use sweep='full', "
            f"or other attacks. Received: sweep=bisect, attack={standard[0]}"
        )


def _budgets(what: What, bounds: Bounds) -> Budgets:
    """Returns the epsilons of each norm."""
    if what.budgets is None:
        return balls.parse({what.norm: what.epsilons}, bounds)
    if what.norm != "linf" or what.epsilons is not EPSILONS:
        raise ValueError(
            "budgets takes the place of norm and epsilons: leave them out. "
            f"Received: norm={what.norm}, epsilons={what.epsilons}, "
            f"budgets={what.budgets}"
        )
    return balls.parse(what.budgets, bounds)


def _factors(
    given: Any, examples: int, budgets: Budgets, bounds: Bounds
) -> np.ndarray | None:
    """Returns the factors of the epsilons of each example, float64 (n,)."""
    if given is None:
        return None
    factors = np.asarray(given, np.float64)
    if factors.shape != (examples,):
        raise ValueError(
            f"epsilon_factors must be of shape ({examples},), one for each "
            f"example. Received: epsilon_factors of shape {factors.shape}"
        )
    if not (np.isfinite(factors).all() and factors.min() >= 0):
        raise ValueError(
            "epsilon_factors must be finite and >= 0. Received: "
            f"epsilon_factors in [{factors.min():g}, {factors.max():g}]"
        )
    for norm, epsilon in balls.flat(budgets):
        largest = epsilon * float(factors.max())
        validators.check_budget(largest, norm, bounds, "epsilon * factor")
    return factors


def _entries(what: What) -> list[Entry]:
    """Returns the attacks on the model, and those on the surrogate."""
    entries = entries_of(what.attacks)
    transfers = entries_of(what.transfer_attacks)
    if what.surrogate is None and transfers:
        raise ValueError(
            "transfer_attacks are attacks on a surrogate: pass one as "
            f"surrogate. Received: transfer_attacks={what.transfer_attacks}, "
            "surrogate=None"
        )
    if what.surrogate is not None and not transfers:
        entries, transfers = [], entries
    return [*entries, *(entry._replace(transfer=True) for entry in transfers)]


def check_warm_start(
    attacks: Any, norms: Iterable[str], epsilon: float, bounds: Bounds
) -> None:
    """Checks that at least one attack can start from a given image.

    Args:
        attacks: Attacks as in `evaluate`.
        norms: "linf", "l2" or both.
        epsilon: Budget to make the attacks with.
        bounds: (lowest, highest) value of a pixel, or None.

    Raises:
        ValueError: If none of the attacks can.
    """
    _cold(entries_of(attacks), norms, epsilon, bounds)


def _cold(
    entries: Sequence[Entry],
    norms: Iterable[str],
    epsilon: float,
    bounds: Bounds,
) -> list[str]:
    """Returns the names of the attacks to which a warm start does not apply."""
    cold = cold_entries(entries, norms, epsilon, bounds)
    if cold and len(cold) == len({entry.name for entry in entries}):
        raise ValueError(
            "warm_start needs an attack that can start from an image, such as "
            f"pgd. Received: warm_start=True, attacks={', '.join(cold)}"
        )
    return cold


def check_shard(shard: Any, examples: int, batch_size: int) -> None:
    """Checks that a shard is valid and has at least one chunk.

    Args:
        shard: (i, n), the number of the shard and the number of shards.
        examples: Number of examples.
        batch_size: Number of examples in a chunk.

    Raises:
        ValueError: If the shard is invalid or empty.
    """
    count = -(-examples // batch_size)
    pair = isinstance(shard, (tuple, list)) and len(shard) == 2
    numbered = pair and all(isinstance(n, numbers.Integral) for n in shard)
    if not numbered or not 0 <= shard[0] < min(shard[1], count):
        given = "/".join(map(str, shard)) if pair else shard
        raise ValueError(
            f"shard must be (i, n) with 0 <= i < n, and i below {count}, the "
            f"number of chunks. Received: shard={given}"
        )
