"""Checks of arguments, whose errors name the expected and the received value.

A check returns the value, so that it can be used in an assignment:
`self.rho = check_number("rho", rho)`.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np

# (lowest, highest), or None. Each of the two is a float, or nested tuples of
# floats that broadcast against an image.
Bounds = tuple[Any, Any] | None

# Relative tolerance for the width of the bounds.
_ROUNDING = 1e-6

# Largest number of bounds that a message shows.
_SHOWN = 16


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


def check_interval(name: str, value: Any) -> Bounds:
    """Checks that a value is None, or (lowest, highest), the lower first.

    Each of the two is a number, or an array or nested list of numbers that
    broadcasts against an image, such as one number for each channel.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.

    Returns:
        None, or a tuple (lowest, highest). Each is a float, or a nested tuple
        of floats, so that bounds can be compared, hashed and written as JSON.
        An array of equal numbers becomes a float.

    Raises:
        ValueError: If it is neither, or a lowest value is not below its
            highest.

    Example:
        >>> check_interval("bounds", [0, 255])
        (0.0, 255.0)
        >>> check_interval("bounds", ([-2.1, -2.0], [2.2, 2.4]))
        ((-2.1, -2.0), (2.2, 2.4))
    """
    if value is None:
        return None
    try:
        lowest, highest = (np.asarray(end, np.float64) for end in value)
        below = np.less(lowest, highest)
    except (TypeError, ValueError):
        below = np.zeros(1, bool)
    if not below.size or not below.all():
        raise ValueError(
            f"{name} must be (lowest, highest) or None. "
            f"Received: {name}={bounds_text(value)}"
        )
    return _plain(lowest), _plain(highest)


def _plain(end: np.ndarray[Any, Any]) -> Any:
    """Converts an array to a float or to nested tuples of floats."""
    if (end == end.flat[0]).all():
        return float(end.flat[0])

    def nested(values: Any) -> Any:
        if isinstance(values, list):
            return tuple(map(nested, values))
        return values

    return nested(end.tolist())


def bounds_text(bounds: Any) -> str:
    """Returns bounds as a text, which shows long ones by their shape.

    Args:
        bounds: (lowest, highest), or another value.

    Example:
        >>> bounds_text((0.0, 1.0))
        '(0.0, 1.0)'
        >>> bounds_text((0.0, tuple(range(1, 100))))
        '(0.0, numbers of shape (99,))'
    """
    if not isinstance(bounds, (tuple, list, np.ndarray)):
        return str(bounds)
    return f"({', '.join(map(_end_text, bounds))})"


def _end_text(end: Any) -> str:
    """Returns one of two bounds as a text."""
    shown = end.tolist() if isinstance(end, np.ndarray) else end
    try:
        shape = np.shape(shown)
    except ValueError:  # A ragged list.
        return str(shown)
    if math.prod(shape) > _SHOWN:
        return f"numbers of shape {shape}"
    return str(shown)


def check_budget(
    epsilon: Any,
    norm: str | None,
    bounds: Bounds,
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
        bounds: (lowest, highest) value of the pixels, or None. Of bounds per
            pixel or channel, the widest count.
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
    width = float(np.max(np.subtract(bounds[1], bounds[0])))
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
        f"Received: {name}={epsilon:g}, bounds={bounds_text(bounds)}"
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
