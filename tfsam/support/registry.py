"""Parts by name: tfsam's own, and those of other packages.

A `Registry` finds the factories of one kind of part, such as attacks. It looks
up tfsam's own in a table and others among the entry points of one group, in
the metadata of installed packages. Only the part that is needed is imported.

Options may follow the name, separated by colons: "looksam:alpha=0.3:every=5".
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import operator
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from tfsam.support import option_values
from tfsam.support.factories import call
from tfsam.support.factories import check_options
from tfsam.support.factories import check_texts
from tfsam.support.suggestions import ambiguous
from tfsam.support.suggestions import did_you_mean


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
            check_texts(self.load(name), [f"{option}={text}"], name)
            value = option_values.value(text, known.get(option))
            expected = option_values.expected(known.get(option))
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
