"""The types of flags: how their texts are parsed, and their values checked."""

import dataclasses
import math
import re
from collections.abc import Callable
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from absl import flags

from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# The largest numbers that TensorFlow computes with in most places: those of
# float32 and int32.
_LARGEST = 3.4e38
_LARGEST_INTEGER = 2**31 - 1

# With more epochs or steps than this, a run would never end.
MOST_REPETITIONS = 10**6


def number(text: str) -> float:
    """Parses a number, which may be a fraction such as 8/255."""
    stripped = text.replace(" ", "")
    try:
        # Fraction would write out all the zeros of 1e999999999.
        found = float(Fraction(stripped) if "/" in stripped else stripped)
    except (OverflowError, ValueError, ZeroDivisionError):
        found = math.nan
    if not abs(found) <= _LARGEST:
        raise ValueError(
            "expected a number such as 0.1 or 8/255, at most "
            f"{_LARGEST:g}. Received: {text}"
        )
    return found


def integer(text: str) -> int:
    """Parses a whole number."""
    try:
        found = int(text)
    except ValueError:
        found = _LARGEST_INTEGER + 1
    if abs(found) > _LARGEST_INTEGER:
        raise ValueError(
            f"expected a whole number, at most {_LARGEST_INTEGER}. "
            f"Received: {text}"
        )
    return found


def size(text: str) -> str:
    """Parses a size, HEIGHTxWIDTH or a side, which stays a text."""
    stripped = text.replace(" ", "").lower()
    if not re.fullmatch(r"\d+(x\d+)?", stripped):
        raise ValueError(
            "expected a side such as 32, or HEIGHTxWIDTH such as 64x48. "
            f"Received: {text}"
        )
    return stripped


def words(text: str) -> list[str]:
    """Parses words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str) -> list[float]:
    """Parses numbers separated by commas."""
    return [number(word) for word in words(text)]


def integers(text: str) -> list[int]:
    """Parses whole numbers separated by commas."""
    return [integer(word) for word in words(text)]


def words_or_none(text: str) -> list[str]:
    """Parses words separated by commas; none is no word."""
    found = words(text)
    return [] if [word.lower() for word in found] == ["none"] else found


def boolean(text: str) -> bool:
    """Parses true or false."""
    value = flags.BooleanParser().parse(text)
    return bool(value)


def boolean_or_words(text: str) -> bool | list[str]:
    """Parses true or false, or words separated by commas."""
    try:
        return boolean(text)
    except ValueError:
        return words(text)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of the command line.

    Attributes:
        group: the heading that `--help` lists it under.
        help: its description.
        parse: turns the text of the command line into the value, or raises a
            ValueError.
        choices: returns the values that are allowed; None allows any.
        least: the smallest number that is allowed, or None.
        most: the largest number that is allowed, or None.
    """

    group: str
    help: str
    parse: Callable[[str], Any] = str
    choices: Callable[[], Sequence[str]] | None = None
    least: float | None = None
    most: float | None = None

    @property
    def is_switch(self) -> bool:
        """Whether the flag may come without a value, and as --noNAME."""
        return self.parse in (boolean, boolean_or_words)

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError unless a value, or None, is allowed."""
        if value is None:
            return
        if self.choices is not None:
            check_choice(name, value, self.choices())
        if self.parse is integer and self.least is not None:
            check_count(name, value, int(self.least))
        if self.parse is number and self.least is not None:
            check_number(name, value, self.least, self.most or math.inf)
        if self.parse is integer and self.most and value > self.most:
            raise ValueError(
                f"{name} must be at most {self.most}. Received: {name}={value}"
            )


def one_of(*options: str) -> Callable[[], Sequence[str]]:
    """Returns the choices of a flag."""
    return lambda: options


def written(value: Any) -> str:
    """Returns a value as the command line takes it.

    Args:
        value: the value of a flag.

    Example:
        >>> written(8 / 255), written([1 / 255, 0.1]), written([])
        ('8/255', '1/255,0.1', 'none')
    """
    if isinstance(value, (list, tuple)):
        return ",".join(map(written, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        of_255 = round(value * 255)
        short = float(f"{value:.3g}") == value
        if of_255 and not short and abs(of_255 / 255 - value) < 1e-9:
            return f"{of_255}/255"
        return f"{value:g}"
    return str(value)
