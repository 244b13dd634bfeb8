"""Checks of arguments, whose errors name the expected and the received value.

A check returns the value, so that it can be used in an assignment:
`self.rho = check_number("rho", rho)`.
"""

import math
import numbers
from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

# Relative tolerance for the width of the bounds.
_ROUNDING = 1e-6


def check_number(
    name: str, value: Any, least: float = 0, most: float = math.inf
) -> float:
    """Checks that a value is a finite number in a range.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        least: Smallest allowed value.
        most: Largest allowed value.

    Returns:
        The value as a float.

    Raises:
        ValueError: If it is not a finite number in [least, most].

    Example:
        >>> check_number("rho", 1)
        1.0
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= most:
        expected = (
            f"a finite number >= {least}"
            if math.isinf(most)
            else f"a number in [{least}, {most}]"
        )
        raise ValueError(f"{name} must be {expected}. Received: {name}={value}")
    return float(value)


def check_fraction(name: str, value: Any) -> float:
    """Checks that a value is a number in (0, 1].

    Args:
        name: Name of the argument, for the message.
        value: The value to check.

    Returns:
        The value as a float.

    Raises:
        ValueError: If it is not a number in (0, 1].

    Example:
        >>> check_fraction("sample_fraction", 0.5)
        0.5
    """
    if not 0 < check_number(name, value) <= 1:
        raise ValueError(f"{name} must be in (0, 1]. Received: {name}={value}")
    return float(value)


def check_count(name: str, value: Any, least: int = 0) -> int:
    """Checks that a value is an integer of at least a given size.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        least: Smallest allowed value.

    Returns:
        The value as an int.

    Raises:
        ValueError: If it is not an integer >= least.

    Example:
        >>> check_count("steps", 10)
        10
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"{name} must be an integer >= {least}. Received: {name}={value}"
        )
    return int(value)


def check_interval(name: str, value: Any) -> tuple[float, float] | None:
    """Checks that a value is None or a pair of numbers, the lower first.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.

    Returns:
        The value as a tuple (lowest, highest) of floats, or None.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> check_interval("bounds", [0, 255])
        (0.0, 255.0)
    """
    if value is None:
        return None
    try:
        lowest, highest = (float(number) for number in value)
    except (TypeError, ValueError):
        lowest = highest = math.nan
    if not lowest < highest:
        raise ValueError(
            f"{name} must be (lowest, highest) or None. "
            f"Received: {name}={value}"
        )
    return lowest, highest


def check_budget(
    epsilon: Any,
    norm: str | None,
    bounds: Sequence[float] | None,
    name: str = "epsilon",
) -> None:
    """Rejects an l-inf epsilon that is larger than the width of the bounds.

    Within such an epsilon an attack may return any image; most likely epsilon
    is in other units than the pixels. In other norms a large epsilon may be
    intended and is not rejected.

    Args:
        epsilon: Budget of an attack, >= 0. Values that are not numbers, such as
            tensors, are not checked.
        norm: Norm of the attack, or None.
        bounds: (lowest, highest) value of the pixels, or None.
        name: Name of the argument, for the message.

    Raises:
        ValueError: If epsilon is larger than the width of the bounds.

    Example:
        >>> check_budget(8 / 255, "linf", (0.0, 1.0))
    """
    if (
        bounds is None
        or norm != "linf"
        or not isinstance(epsilon, numbers.Real)
    ):
        return
    width = float(bounds[1]) - float(bounds[0])
    if epsilon <= width * (1 + _ROUNDING):
        return
    guess = (
        f"{epsilon:g}/255"
        if width == 1
        else f"{float(epsilon) / 255 * width:g}"
    )
    raise ValueError(
        f"{name} must be at most {width:g}, the width of the bounds, in linf; "
        f"epsilon is in units of the pixels: {guess}? "
        f"Received: {name}={epsilon:g}, bounds={tuple(bounds)}"
    )


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Checks that a value is one of several strings.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        choices: The allowed strings.

    Returns:
        The value.

    Raises:
        ValueError: If it is not one of the choices.

    Example:
        >>> check_choice("mask", "fisher", ("fisher", "dynamic"))
        'fisher'
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}. "
            f"Received: {name}={value}"
        )
    return value
