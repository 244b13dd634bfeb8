"""The parsing of the command line: which flags were given.

Nothing here imports TensorFlow, so that a mistyped flag is reported at once.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from absl import flags

from tfsam.runs import flags as declared
from tfsam.support.suggestions import did_you_mean


class Given(NamedTuple):
    """The flags of a command line.

    Attributes:
        values: the values by flag, parsed; flags that are not given are left
            out.
        texts: the same values as they were written.
    """

    values: dict[str, Any]
    texts: dict[str, str]


class _Parser(flags.ArgumentParser[Any]):
    """Adapts a function of a text to absl."""

    def __init__(self, function: Callable[[str], Any]) -> None:
        self._function = function

    def parse(self, argument: Any) -> Any:
        """Parses a text."""
        return self._function(str(argument))

    def flag_type(self) -> str:
        """Returns a description for absl's messages."""
        return "value"


class _Flag(flags.Flag[Any]):
    """A flag of absl's that keeps the text of its value."""

    text = ""

    def parse(self, argument: Any) -> None:
        """Parses a text."""
        self.text = str(argument)
        super().parse(argument)


def parse(argv: Sequence[str]) -> Given:
    """Parses command-line arguments; imports no TensorFlow.

    Args:
        argv: the arguments, without the program's name.

    Raises:
        ValueError: if a flag is unknown, or has no such value.
    """
    values = flags.FlagValues()
    for name, flag in declared.FLAGS.items():
        serializer: flags.ArgumentSerializer[Any] = flags.ArgumentSerializer()
        made = _Flag(_Parser(flag.parse), serializer, name, None, flag.help)
        # A flag that may come without a value; its text is "true" then.
        made.boolean = flag.is_switch or name == "help"
        flags.DEFINE_flag(made, values)
    try:
        rest = values(["tfsam", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, declared.FLAGS)
        raise ValueError(
            f"expected a flag that --help shows{hint}. "
            f"Received: --{error.flagname}"
        ) from None
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if rest:
        hint = ""
        if values["help"].value == "true":
            hint = f" (did you mean --help={rest[0]}?)"
        raise ValueError(
            f"expected flags only{hint}. Received: {' '.join(rest)}"
        )
    given = {
        name: defined
        for name in declared.FLAGS
        if (defined := values[name]).present and defined.value is not None
    }
    return Given(
        {name: defined.value for name, defined in given.items()},
        {
            name: defined.text
            for name, defined in given.items()
            if isinstance(defined, _Flag)
        },
    )
