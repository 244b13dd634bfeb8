"""Values of options that are given as text, such as "8/255" or "true"."""

import ast
import inspect
import math
import types
import typing
from fractions import Fraction
from typing import Any


def value(text: str, parameter: inspect.Parameter | None) -> Any:
    """Returns the value of an option that is given as text.

    Args:
        text: the text, such as "0.3", "8/255", "true", "none" or "fisher".
        parameter: the parameter of the constructor, whose annotation and
            default tell the type; None where the constructor takes any option.
            A value of another type is left to the constructor to reject.
    """
    annotation = default = inspect.Parameter.empty
    if parameter is not None:
        annotation, default = parameter.annotation, parameter.default
    kinds = _types(annotation)
    if isinstance(default, str) and not kinds - {str, type(None)}:
        return text
    if kinds and kinds <= {str, type(None)} and text.lower() != "none":
        return text
    found = _literal(text)
    is_real = float in kinds or isinstance(default, float)
    if is_real and type(found) is int:
        return float(found)
    return found


def expected(parameter: inspect.Parameter | None) -> str:
    """Returns the kind of value that a parameter takes, for a message.

    Args:
        parameter: a parameter whose annotation or, without one, whose default
            tells the type.

    Returns:
        Empty if the parameter may take text, or there is nothing to tell.
    """
    if parameter is None:
        return ""
    kinds = _types(parameter.annotation) - {type(None)}
    if parameter.annotation is parameter.empty:
        kinds = {type(parameter.default)}
    if not kinds or not kinds <= {bool, int, float}:
        return ""
    return "true or false" if kinds == {bool} else "a number"


# Types by their names in annotations that are not evaluated.
_NAMED = {kind.__name__: kind for kind in (bool, int, float, str)} | {
    "None": type(None)
}


def _types(annotation: Any) -> set[Any]:
    """Returns the types that an annotation names; empty without one."""
    if annotation is inspect.Parameter.empty:
        return set()
    if isinstance(annotation, str):
        words = {word.strip() for word in annotation.split("|")}
        known = words <= {*_NAMED}
        return {_NAMED[word] for word in words} if known else set()
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return {type(member) for member in typing.get_args(annotation)}
    if origin in (typing.Union, types.UnionType):
        return set(typing.get_args(annotation))
    return {annotation}


def _literal(text: str) -> Any:
    """Returns a number, a truth value, None, an interval, or the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    low, dots, high = text.partition("..")
    if dots:
        ends = _literal(low), _literal(high)
        if all(type(end) in (int, float) for end in ends):
            return ends
    try:
        if "/" in text:
            number = float(Fraction(text))
        else:
            number = ast.literal_eval(text)
    except (ValueError, SyntaxError, ZeroDivisionError, OverflowError):
        return text
    if type(number) not in (int, float) or not math.isfinite(number):
        return text
    return number
