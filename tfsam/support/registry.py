"""Parts by name, and the door through which others' parts come in.

A registry knows tfsam's own parts, and the entry points of one group in the
metadata of installed packages. Only a part that is asked for is imported.
"""

import dataclasses
import importlib.metadata
import inspect
from collections.abc import Callable
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Registry:
    """Factories by name.

    Attributes:
        kind: what they make, for messages: "attack".
        group: the entry-point group of other packages' factories.
        native: tfsam's own factories.
    """

    kind: str
    group: str
    native: Mapping[str, Callable]

    def names(self):
        """The names that `factory` knows, sorted, plug-ins included."""
        return sorted({*self.native, *self._plugins()})

    def factory(self, name):
        """The factory of that name, not called yet.

        Args:
            name: one of `names()`.

        Raises:
            ValueError: if the name is unknown, or two packages claim it.
            ImportError: if a plug-in's package cannot be imported.
        """
        plugins = self._plugins().get(name, [])
        if len(plugins) + (name in self.native) > 1:
            claims = [point.value for point in plugins]
            raise ValueError(
                f"Two packages register one name, {name!r}: {claims}. "
                f"Uninstall one. Received: name={name}"
            )
        if name in self.native:
            return self.native[name]
        if not plugins:
            raise ValueError(
                f"{self.kind} must be one of {', '.join(self.names())}. "
                f"Received: {self.kind}={name}"
            )
        try:
            return plugins[0].load()
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"The {self.kind} {name!r} ({plugins[0].value}) cannot be "
                f"imported: {error}"
            ) from error

    def _plugins(self):
        """Entry points by name; the same one twice on the path counts once."""
        found: dict[str, list] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            same_name = found.setdefault(point.name, [])
            if point.value not in [p.value for p in same_name]:
                same_name.append(point)
        return found


def make(factory, **options):
    """Calls a factory, with a ValueError for an option that it does not know.

    Args:
        factory: a callable.
        **options: its keyword arguments.
    """
    known = option_names(factory)
    unknown = sorted(set(options) - known) if known is not None else []
    if unknown:
        raise ValueError(
            f"The options of {_name(factory)} are {sorted(known or ())}. "
            f"Received: {', '.join(f'{k}={options[k]}' for k in unknown)}"
        )
    return factory(**options)


def option_names(factory):
    """The keyword arguments of a factory, or None if it takes any.

    Args:
        factory: a callable.
    """
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}


def _name(factory):
    factory = getattr(factory, "func", factory)  # Of a functools.partial.
    return getattr(factory, "__name__", repr(factory))
