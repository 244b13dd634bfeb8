"""Objects that Keras saves by the arguments of their constructors."""

import inspect
from collections.abc import Mapping
from typing import Any
from typing import Self


class Configurable:
    """Base class of objects that are saved by their constructor's arguments.

    A subclass keeps each argument of `__init__` as an attribute of the same
    name. It then has a readable `repr`, and can be saved and loaded as a part
    of a Keras model.

    Example:
        >>> class Scale(Configurable):
        ...     def __init__(self, factor):
        ...         self.factor = factor
        >>> Scale.from_config(Scale(2.0).get_config())
        Scale(factor=2.0)
    """

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments by name."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Constructs an object from the result of `get_config`.

        Args:
            config: The constructor's arguments by name.
        """
        return cls(**config)

    def __repr__(self) -> str:
        config = self.get_config()
        arguments = ", ".join(f"{k}={v!r}" for k, v in config.items())
        return f"{type(self).__name__}({arguments})"
