"""The command line of the experiments: flags, help, errors of one line."""

import sys

from absl import flags


def run(function, values, argv=None):
    """Parses the command line and calls the command's function.

    Args:
        function: takes the arguments that are no flags; returns an exit code or
            None.
        values: an `absl.flags.FlagValues` of the command's own, so that two
            commands can be imported side by side.
        argv: arguments without the program's name; None takes `sys.argv`.

    Returns:
        The exit code: the function's, 2 for bad input.
    """
    module = sys.modules[function.__module__]
    name = module.__spec__.name if module.__spec__ else module.__name__
    name = name.rpartition(".")[2]
    if "help" not in values:
        flags.DEFINE_boolean(
            "help", False, "Shows this and stops.", flag_values=values
        )
    try:
        values.unparse_flags()
        rest = values([name, *(sys.argv[1:] if argv is None else argv)])[1:]
        if values.help:
            print(f"{module.__doc__}\n{values.get_help()}")
            return 0
        return function(*rest) or 0
    except (flags.Error, OSError, TypeError, ValueError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
