"""Parts by name: tfsam's own, and those of other packages.

A `Registry` finds the factories of one kind of part, such as attacks. It looks
up tfsam's own in a table and others among the entry points of one group, in
the metadata of installed packages. Only the part that is needed is imported.

Options may follow the name, separated by colons: "looksam:alpha=0.3:every=5".
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import math
import operator
import os
import re
import reprlib
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from fractions import Fraction
from typing import Any


class Part:
    """Facts about a part of any kind, and their defaults.

    Attributes:
        summary: a line about the part, for `--help` and the table of methods;
            empty for the first line of the docstring.
        source: the paper, such as "Foret et al., 2021".
        flag_names: the flag that sets an argument of the constructor, where
            their names differ: {"steps": "ascent_steps"}.
        requires: a module of another package, which must be importable, and
            the extra of tfsam that installs it; None if there is none.
    """

    summary: str = ""
    source: str = ""
    flag_names: Mapping[str, str] = types.MappingProxyType({})
    requires: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Registry:
    """Factories of one kind of part, by name.

    Names are compared without regard to case.

    Attributes:
        kind: the kind of part, for messages: "attack".
        group: the entry-point group of other packages' factories.
        native: tfsam's own factories, each as an entry point names it,
            "module:attribute", or the factory itself.
        base: the class whose attributes are the facts of a part that does not
            state them, as an entry point names it. Parts of other packages
            need not inherit from it. Empty for `Part`.
        argument: the option that a segment without "=" sets: with "attack",
            "foolbox:LinfPGD" is "foolbox:attack=LinfPGD". Empty where every
            option is named.
        given: arguments that the caller gives, which no spec may set.
        divide: divides a spec into a name and its options. Where a part may be
            given otherwise than by its name, as a network by the path of its
            file, the result has the name that stands for such parts.
    """

    kind: str
    group: str
    native: Mapping[str, str | Callable[..., Any]]
    base: str = ""
    argument: str = ""
    given: Collection[str] = ()
    divide: Callable[[str], list[str]] = operator.methodcaller("split", ":")

    def names(self) -> list[str]:
        """Returns all names, sorted; imports no part."""
        return sorted({*self.native, *self._plugins()})

    def packages(self) -> dict[str, str]:
        """Returns, for each part of another package, the package's name."""
        return {
            name: _package(points[0])
            for name, points in self._plugins().items()
        }

    def canonical(self, spec: str, flag: str = "") -> str:
        """Returns a name as it is registered, with its options.

        Args:
            spec: a name in any case, with or without options.
            flag: the flag that gives the name, for the message; empty for the
                kind of part.

        Raises:
            ValueError: if the name is unknown or ambiguous.
        """
        given, *options = map(str.strip, self.divide(spec))
        name = self._known(given, flag)
        if spec.partition(":")[0].strip() != given:
            return spec.strip()  # A path, for example, stays as it is.
        options = ["=".join(map(str.strip, o.split("=", 1))) for o in options]
        return ":".join([name, *options])

    def factory(self, spec: str) -> Callable[..., Any]:
        """Returns the factory of a part, without calling it.

        Args:
            spec: a name in any case. The options after it, if there are any,
                are bound by `functools.partial`.

        Raises:
            ValueError: if the name or an option is unknown, or two packages
                register the name.
            ImportError: if the part cannot be imported, or a library that it
                needs is not installed.
        """
        name, options = self.parse(spec)
        found = self.load(name)
        self._import_required(found, name)
        return functools.partial(found, **options) if options else found

    def options(self, spec: str) -> dict[str, inspect.Parameter]:
        """Returns the parameters of a part's constructor, by name.

        Args:
            spec: a name in any case; options after it are ignored.

        Raises:
            ValueError: if the name is unknown.
            ImportError: if the part cannot be imported.
        """
        name = self._known(self.divide(spec)[0])
        parameters = inspect.signature(self.load(name)).parameters
        return {k: p for k, p in parameters.items() if k not in self.given}

    def parse(self, spec: str) -> tuple[str, dict[str, Any]]:
        """Returns the registered name and the options that follow it.

        Args:
            spec: "NAME" or "NAME:OPTION=VALUE:...", such as
                "looksam:alpha=0.3:every=5". A value may be a fraction, as in
                "pgd:step_size=2/255".

        Raises:
            ValueError: if the name or an option is unknown, or a value is
                missing, given twice or a text instead of a number.
            ImportError: if the part has options and cannot be imported.

        Example:
            >>> from tfsam.registries import WEIGHTS
            >>> WEIGHTS.parse("LookSAM:alpha=0.3:every=5")
            ('looksam', {'alpha': 0.3, 'every': 5})
        """
        given, *segments = self.divide(str(spec))
        name = self._known(given)
        if not segments:
            return name, {}
        known = self.options(name)
        options: dict[str, Any] = {}
        for segment in segments:
            option, equals, text = segment.partition("=")
            if not equals and self.argument in known:
                option, text = self.argument, option
            option, text = option.strip(), text.strip()
            if not option or not text:
                raise ValueError(
                    f"{name} takes options as NAME:OPTION=VALUE, of "
                    f"{_listed(known)}. Received: {self.kind}={spec}"
                )
            if option in options:
                raise ValueError(
                    f"{option} is given twice. Received: {self.kind}={spec}"
                )
            if option in self.given:
                raise ValueError(
                    f"{option} is no option: the data or a flag sets it. "
                    f"Received: {option}={text}"
                )
            _check_options(self.load(name), [f"{option}={text}"], name)
            value = _value(text, known.get(option))
            expected = _expected(known.get(option))
            if expected and not isinstance(value, (int, float, type(None))):
                raise ValueError(
                    f"{option} must be {expected}. "
                    f"Received: {name}:{option}={text}"
                )
            options[option] = value
        return name, options

    def make(self, spec: str, **options: Any) -> Any:
        """Makes a part.

        Args:
            spec: a name, with or without options.
            **options: arguments of the constructor; they override those in
                `spec`.

        Raises:
            ValueError: if the name or an option is unknown, an option without
                a default is missing, or a value is out of its range.
            ImportError: see `factory`.

        Example:
            >>> from tfsam.registries import WEIGHTS
            >>> WEIGHTS.make("sam:rho=0.2", steps=2).rho
            0.2
        """
        factory = self.factory(spec)
        check_options(factory, options)
        return call(self._known(self.divide(spec)[0]), factory, **options)

    def fact(self, part: Any, name: str) -> Any:
        """Returns a fact about a part: its own attribute, or the default.

        Args:
            part: a part, or the factory of one.
            name: the name of the attribute, such as "in_graph".
        """
        part = getattr(part, "func", part)  # Of a functools.partial.
        if hasattr(part, name):
            return getattr(part, name)
        base = _imported(self.base) if self.base else Part
        owner = base if hasattr(base, name) else Part
        default = inspect.getattr_static(owner, name)
        if isinstance(default, property) and default.fget is not None:
            return default.fget(part)
        return default

    def summary(self, name: str) -> str:
        """Returns a line about a part, from its class or its docstring.

        Args:
            name: a name from `names()`.

        Raises:
            ImportError: if the part cannot be imported.
        """
        factory = self.load(name)
        said = self.fact(factory, "summary")
        bound = getattr(factory, "keywords", {})  # Of a functools.partial.
        factory = getattr(factory, "func", factory)
        line = said or (inspect.getdoc(factory) or name).splitlines()[0]
        fixed = ", ".join(f"{k}={v}" for k, v in bound.items())
        return line.rstrip(".") + (f" ({fixed})" if fixed else "")

    def describe(self, name: str) -> str:
        """Returns the help of a part: what it is, and its options.

        Args:
            name: a name from `names()`.

        Raises:
            ImportError: if the part cannot be imported.
        """
        factory = self.load(name)
        package = self.packages().get(name, "tfsam")
        head = f"{name}: {self.kind}"
        if package != "tfsam":
            head += f" of the package {package}"
        lines = [head, f"  {self.summary(name)}"]
        if source := self.fact(factory, "source"):
            lines.append(f"  {source}")
        told = _arguments(inspect.getdoc(getattr(factory, "func", factory)))
        for option, parameter in self.options(name).items():
            if parameter.kind is parameter.VAR_KEYWORD:
                option = "any other option"
            elif parameter.default is not parameter.empty:
                option += f"={parameter.default}"
            lines += textwrap.wrap(
                option + (f": {t}" if (t := told.get(parameter.name)) else ""),
                initial_indent="  ",
                subsequent_indent="    ",
                width=80,
            )
        return "\n".join(lines)

    def load(self, name: str) -> Callable[..., Any]:
        """Imports the factory that is registered under exactly this name.

        Args:
            name: a name from `names()`.

        Raises:
            ValueError: if two packages register the name, or it names neither
                a class nor a function.
            ImportError: if it cannot be imported.
        """
        points = self._plugins().get(name, [])
        if len(points) + (name in self.native) > 1:
            raise ValueError(
                f"{_claims(name, points, name in self.native)}. "
                f"Received: name={name}"
            )
        if points:
            return self._load_plugin(name, points[0])
        target = self.native[name]
        if callable(target):
            return target
        try:
            return _imported(target)
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"The {self.kind} {name!r} ({target}) cannot be imported: "
                f"{error}"
            ) from error

    def _load_plugin(
        self, name: str, point: importlib.metadata.EntryPoint
    ) -> Callable[..., Any]:
        """Imports the factory that another package registers."""
        package = _package(point)
        try:
            found = point.load()
        except Exception as error:  # The module may raise anything.
            reason = " ".join(str(error).split())
            if not isinstance(error, (ImportError, AttributeError)):
                reason = f"{type(error).__name__}: {reason}"
            raise ImportError(
                f"The {self.kind} {name!r} ({point.value} of {package}) "
                f"cannot be imported: {reason}"
            ) from error
        makes = inspect.isclass(found) or inspect.isroutine(found)
        if not makes and not isinstance(found, functools.partial):
            raise ValueError(
                f"{name} of the package {package} must be a class or a "
                "function that makes the part, not an object. "
                f"Received: {name}={point.value}"
            )
        return found

    def _import_required(self, factory: Callable[..., Any], name: str) -> None:
        """Imports the library of another package that a part requires."""
        module, extra = self.fact(factory, "requires") or (None, None)
        if module is None:
            return
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"The {self.kind} {name} needs a library that is not "
                f'installed: pip install "tfsam[{extra}]", or pip install -e '
                f'".[{extra}]" in a clone of tfsam ({error})'
            ) from error

    def _known(self, given: str, flag: str = "") -> str:
        """Returns the registered spelling of a name."""
        flag = flag or self.kind
        names = self.names()
        name = given.strip()
        if name in names:
            return name
        same = [n for n in names if n.casefold() == name.casefold()]
        if len(same) == 1:
            return same[0]
        if same:
            raise ValueError(ambiguous(flag, name, same))
        raise ValueError(
            f"{flag} must be one of {', '.join(names)}"
            f"{did_you_mean(name, names)}. Received: {flag}={given}"
        )

    def _plugins(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        """Returns entry points by name; duplicates on the path count once."""
        found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        find = importlib.metadata.entry_points
        for point in _entry_points(find, self.group, _path()):
            same_name = found.setdefault(point.name, [])
            if point.value not in [p.value for p in same_name]:
                same_name.append(point)
        return found


@functools.lru_cache(maxsize=32)
def _entry_points(
    find: Callable[..., Iterable[importlib.metadata.EntryPoint]],
    group: str,
    path: tuple[tuple[str, int], ...],
) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Finds entry points; reading the metadata of all packages takes 10 ms."""
    return tuple(find(group=group))


def _path() -> tuple[tuple[str, int], ...]:
    """Returns the folders of packages, with times that an install changes."""
    found = []
    for folder in sys.path:
        try:
            found.append((folder, os.stat(folder or ".").st_mtime_ns))
        except OSError:
            found.append((folder, 0))
    return tuple(found)


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
    _check_options(factory, given, _name(factory))


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


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a hint at the closest names, empty where none is close.

    Args:
        name: the name that is unknown.
        names: the names that are known.

    Example:
        >>> did_you_mean("loksam", ["looksam", "pgd"])
        ' (did you mean looksam?)'
    """
    by_lower_case = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, 2)
    if not close:
        return ""
    known_names = " or ".join(by_lower_case[c] for c in close)
    return f" (did you mean {known_names}?)"


def ambiguous(flag: str, given: str, names: Iterable[str]) -> str:
    """Returns a message about a name that differs from several in its case.

    Args:
        flag: the flag that gives the name.
        given: the name as given.
        names: the registered names.

    Example:
        >>> ambiguous("attack", "SHIFT", ["Shift", "shift"])
        'SHIFT is ambiguous: Shift, shift. Received: attack=SHIFT'
    """
    return f"{given} is ambiguous: {', '.join(names)}. Received: {flag}={given}"


def _package(point: importlib.metadata.EntryPoint) -> str:
    """Returns the name of the package that an entry point belongs to."""
    return point.dist.name if point.dist else point.value


def _claims(
    name: str, points: Iterable[importlib.metadata.EntryPoint], native: bool
) -> str:
    """Returns a message about a name that is registered more than once."""
    others = [f"{_package(point)} ({point.value})" for point in points]
    if native:
        return (
            f"{name!r} is registered by tfsam and by the package "
            f"{' and '.join(others)}; uninstall "
            f"{' and '.join(_package(point) for point in points)}"
        )
    return (
        f"{name!r} is registered by the packages {' and '.join(others)}; "
        "uninstall one of them"
    )


def _check_options(
    factory: Callable[..., Any], given: list[str], name: str
) -> None:
    """Raises a ValueError for the "option=value" texts that are unknown."""
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


def _value(text: str, parameter: inspect.Parameter | None) -> Any:
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
    value = _literal(text)
    is_real = float in kinds or isinstance(default, float)
    if is_real and type(value) is int:
        return float(value)
    return value


def _expected(parameter: inspect.Parameter | None) -> str:
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


def _imported(target: str) -> Any:
    """Imports the object that "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _arguments(docstring: str | None) -> dict[str, str]:
    """Returns what the section "Args:" of a docstring says, by argument."""
    found: dict[str, str] = {}
    name, inside = "", False
    for line in (docstring or "").splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and not indent:
            inside = line.strip() == "Args:"
        elif inside and (match := re.match(r" {2,4}\*{0,2}(\w+): (.*)", line)):
            name, found[match[1]] = match[1], match[2]
        elif inside and name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _listed(known: Mapping[str, Any]) -> str:
    return ", ".join(sorted(known))


def _name(factory: Callable[..., Any]) -> str:
    factory = getattr(factory, "func", factory)  # Of a functools.partial.
    return getattr(factory, "__name__", repr(factory))
