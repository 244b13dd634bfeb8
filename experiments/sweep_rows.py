"""The rows of a sweep: the flags of `tfsam.run` that their names mean."""

import re

from experiments.sweep_presets import PAPER
from tfsam.runs import flags
from tfsam.runs import methods

# Steps and step size (in 255ths) of training's attack by norm and epsilon, by
# the authors' later script; the published rows' are unknown.
_TRAINING_ATTACK = {
    ("linf", 1): (5, 0.5),
    ("linf", 2): (5, 1),
    ("linf", 4): (10, 1),
    ("linf", 8): (10, 2),
}


def row_flags(row):
    """Returns the flags of `tfsam.run` for a row.

    Args:
        row: its name.

    Raises:
        ValueError: if there is no such row.
    """
    if match := re.fullmatch(r"sam-([\d.]+)", row):
        return ("--method=sam", f"--rho={match[1]}")
    if match := re.fullmatch(r"at-(linf|l2)-(\d+)", row):
        norm, epsilon = match[1], int(match[2])
        steps, size = _TRAINING_ATTACK.get((norm, epsilon), (5, epsilon / 2))
        return (
            *("--method=at", f"--norm={norm}", f"--epsilon={epsilon}/255"),
            *(f"--steps={steps}", f"--step_size={size / 255:.17g}"),
        )
    method, *given = row.split(":")
    if method not in methods.methods() or not all("=" in s for s in given):
        raise ValueError(
            f"rows must be among {', '.join(PAPER)} or METHOD:NAME=VALUE, with "
            f"the names of flags or of options. Received: {row}"
        )
    named: list[str] = []
    options = []
    for text in given:
        name = text.partition("=")[0]
        if name in flags.FLAGS:
            named.append(text)
        elif named and _takes(named[-1], name):
            named[-1] += f":{text}"
        else:
            options.append(text)
    specs = methods.with_options(method, options)
    return (
        f"--method={method}",
        *(f"--{text}" for text in named),
        *(f"--{part}={spec}" for part, spec in specs.items()),
    )


def _takes(text, option):
    """Returns whether a flag, NAME=VALUE, names a part that has an option."""
    name, _, spec = text.partition("=")
    registry = flags.REGISTRIES.get(name)
    return registry is not None and option in registry.options(spec)


def attacks_inputs(row):
    """Returns whether a row's method attacks its inputs in training.

    Args:
        row: its name.
    """
    method = row_flags(row)[0].removeprefix("--method=")
    return methods.method(method).perturb_inputs is not None
