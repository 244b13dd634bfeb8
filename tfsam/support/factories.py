"""Factories: calls of them, with options that are checked first."""

import inspect
import reprlib
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from tfsam.support.suggestions import did_you_mean


def make(factory: Callable[..., Any], **options: Any) -> Any:
    """Calls a factory; an unknown option is a ValueError.

    Args:
        factory: a callable.
        **options: its keyword arguments.

    Raises:
        ValueError: if the factory has no such option, needs another, or raises
            a TypeError.

    Example:
        >>> make(lambda steps: f"an attack of {steps} steps", steps=10)
        'an attack of 10 steps'
    """
    check_options(factory, options)
    return call(_name(factory), factory, **options)


def call(
    part: str, factory: Callable[..., Any], /, *arguments: Any, **options: Any
) -> Any:
    """Calls a factory; a TypeError becomes a ValueError that names the part.

    Args:
        part: the name of the part, for the message.
        factory: a callable.
        *arguments: its positional arguments.
        **options: its keyword arguments.

    Raises:
        ValueError: if an argument without a default is missing, or the factory
            raises a TypeError.

    Example:
        >>> call("shift", lambda epsilon: epsilon)
        Traceback (most recent call last):
            ...
        ValueError: shift needs epsilon. Received: nothing
    """
    shown = [*map(reprlib.repr, arguments)]
    shown += [f"{k}={reprlib.repr(v)}" for k, v in options.items()]
    received = f"Received: {', '.join(shown) or 'nothing'}"
    try:
        signature = inspect.signature(factory)
        given = signature.bind_partial(*arguments, **options).arguments
        missing = [
            p.name
            for p in signature.parameters.values()
            if p.default is p.empty
            and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name not in given
        ]
        if not missing:
            return factory(*arguments, **options)
    except TypeError as error:
        raise ValueError(
            f"{part} cannot be made: {error}. {received}"
        ) from error
    raise ValueError(f"{part} needs {', '.join(missing)}. {received}")


def check_options(
    factory: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Checks that a factory knows each of the options; does not call it.

    Args:
        factory: a callable.
        options: keyword arguments for it.

    Raises:
        ValueError: if it has no such option.
    """
    given = [f"{name}={value}" for name, value in options.items()]
    check_texts(factory, given, _name(factory))


def option_names(factory: Callable[..., Any]) -> set[str] | None:
    """Returns the keyword arguments of a factory, or None if it takes any.

    Args:
        factory: a callable.

    Example:
        >>> sorted(option_names(lambda epsilon, norm="linf": None))
        ['epsilon', 'norm']
    """
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def check_texts(
    factory: Callable[..., Any], given: list[str], name: str
) -> None:
    """Checks that a factory knows each of the options in some texts.

    Args:
        factory: a callable.
        given: texts such as "steps=10".
        name: the name of the factory, for the message.

    Raises:
        ValueError: if it has no such option.
    """
    known = option_names(factory)
    if known is None:
        return
    unknown = sorted(t for t in given if t.partition("=")[0] not in known)
    if unknown:
        hint = did_you_mean(unknown[0].partition("=")[0], known)
        raise ValueError(
            f"The options of {name} are {sorted(known)}{hint}. "
            f"Received: {', '.join(unknown)}"
        )


def _name(factory: Callable[..., Any]) -> str:
    factory = getattr(factory, "func", factory)  # Of a functools.partial.
    return getattr(factory, "__name__", repr(factory))
