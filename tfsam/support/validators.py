"""Arguments in their ranges: each check names what it expected and received.

A check returns the value, so that it can be kept where it is made:
`self.rho = check_number("rho", rho)`.
"""

import math
import numbers

# Of the difference of two bounds, relative.
_ROUNDING = 1e-6


def check_number(name, value, least=0, most=math.inf):
    """Returns `value` as a float; raises a ValueError if it is not in range.

    Args:
        name: the argument's name, for the message.
        value: a finite number.
        least: the smallest that is allowed.
        most: the largest.
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


def check_fraction(name, value):
    """Returns `value` as a float; raises a ValueError unless in (0, 1].

    Args:
        name: the argument's name, for the message.
        value: a number.
    """
    if not 0 < check_number(name, value) <= 1:
        raise ValueError(f"{name} must be in (0, 1]. Received: {name}={value}")
    return float(value)


def check_count(name, value, least=0):
    """Returns `value`; raises a ValueError unless it is an integer >= least.

    Args:
        name: the argument's name, for the message.
        value: a number.
        least: the smallest that is allowed.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"{name} must be an integer >= {least}. Received: {name}={value}"
        )
    return int(value)


def check_interval(name, value):
    """Returns (lowest, highest) as floats, or None.

    Args:
        name: the argument's name, for the message.
        value: a pair of numbers, the lower first, or None.

    Raises:
        ValueError: if it is neither.
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


def check_budget(epsilon, norm, bounds, name="epsilon"):
    """Refuses an l-inf epsilon that is larger than the range of the pixels.

    Such an attack may return any image, so this is a mistake of the unit. In
    other norms a large epsilon can be meant, and is never refused.

    Args:
        epsilon: the budget of an attack, >= 0; anything but a number, such as
            a tensor, is let through.
        norm: of the attack.
        bounds: (lowest, highest) value of the pixels, or None.
        name: the argument's name, for the message.

    Raises:
        ValueError: if it is larger than the width of the bounds.
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


def check_choice(name, value, choices):
    """Returns `value`; raises a ValueError if it is not one of some.

    Args:
        name: the argument's name, for the message.
        value: a string.
        choices: the strings that are allowed.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}. "
            f"Received: {name}={value}"
        )
    return value
