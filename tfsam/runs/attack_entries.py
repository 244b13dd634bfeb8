"""The attacks of an evaluation, as the flags name them."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam import registries

# The range of the pixels, whatever the data set.
BOUNDS = (0.0, 1.0)


def entries(
    attacks: Iterable[str], steps: int | None
) -> list[tuple[str, dict[str, Any]]]:
    """Returns each attack of an evaluation with the options of the flags.

    Args:
        attacks: names, with or without options: pgd:restarts=5,
            foolbox:LinfPGD.
        steps: the number of steps of the attacks that take steps and whose
            names do not set it; None for each attack's own.
    """
    return [
        (
            spec,
            {"steps": steps}
            if steps is not None and _takes_steps(spec)
            else {},
        )
        for spec in attacks
    ]


def check(
    attacks: Sequence[str],
    steps: int | None,
    budgets: Mapping[str, Sequence[float]],
) -> None:
    """Imports each attack, and makes those with options of their own.

    So a missing library, and an option that is out of its range, are reported
    before anything is trained.

    Args:
        attacks: see `entries`.
        steps: see `entries`.
        budgets: the values of epsilon by norm.

    Raises:
        ImportError: if a library is missing.
        ValueError: if an option is wrong, or no attack takes the steps.
    """
    from tfsam.evaluation.plans import entries_of

    for entry in entries_of(attacks):
        _check_signature(entry.name)
        if registries.ATTACKS.parse(entry.name)[1]:
            _check_options(entry.make, budgets)
    takes_steps = any(map(_takes_steps, attacks))
    if steps is not None and not takes_steps:
        raise ValueError(
            f"no attack of {','.join(attacks) or 'none'} takes --attack_steps. "
            f"Received: attack_steps={steps}"
        )


def _check_signature(spec: str) -> None:
    """Refuses an attack whose factory lacks a parameter of the contract."""
    name, _ = registries.ATTACKS.parse(spec)
    known = registries.ATTACKS.options(name)
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    missing = [p for p in ("epsilon", "norm", "bounds") if p not in known]
    if missing:
        raise ValueError(
            f"the factory of the attack {name} must take epsilon, norm and "
            "bounds, see tfsam/attacks/base.py. "
            f"Received: a factory without {', '.join(missing)}"
        )


def _check_options(
    make: Callable[..., Any], budgets: Mapping[str, Sequence[float]]
) -> None:
    """Makes an attack in each norm; raises an error that all norms raise."""
    errors = []
    for norm, (epsilon, *_) in budgets.items():
        try:
            make(epsilon=epsilon, norm=norm, bounds=BOUNDS)
        except ValueError as error:
            errors.append(error)
    if errors and len(errors) == len(budgets):
        raise errors[0]


def _takes_steps(spec: str) -> bool:
    """Returns whether --attack_steps sets the steps of an attack."""
    _, options = registries.ATTACKS.parse(spec)
    return "steps" not in options and "steps" in registries.ATTACKS.options(
        spec
    )
