"""The texts that the command line prints about itself.

`--help` and `--version` are answered from declarations and from the metadata of
installed packages, without TensorFlow; `--help=NAME` and `--methods` import the
parts that they describe.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

import tfsam
from tfsam import registries
from tfsam.runs import command_line
from tfsam.runs import flag_types
from tfsam.runs import flags
from tfsam.runs import method_table
from tfsam.runs import methods
from tfsam.runs import presets
from tfsam.runs.flag_types import Flag
from tfsam.support.suggestions import did_you_mean
from tfsam.support.validators import check_choice

_WIDTH = 79


def answer(given: command_line.Given) -> str | None:
    """Returns the answer to `--help`, `--methods` or `--version`, or None.

    Args:
        given: the flags of the command line.

    Raises:
        ValueError: if `--help=NAME` names no part.
    """
    asked = given.values.get("help", "false")
    if asked == "true":
        return _help(given.values)
    if asked != "false":
        return _help_of(asked)
    if given.values.get("methods"):
        return method_table.table()
    if given.values.get("version"):
        return f"tfsam {tfsam.__version__}"
    return None


_USAGE = """\
Train, attack, export and report, from one command.

  tfsam --method=sam --rho=0.2
  tfsam --preset=cifar100 --method=at --epsilon=1/255
  tfsam --evaluate=model.keras --dataset=npz:data.npz \\
    --attacks=autoattack --linf_epsilons=1/255,2/255,4/255
  tfsam --inspect=model.h5 --dataset=folder:images
  tfsam report runs/

`python -m tfsam` is the same as `tfsam`. A preset sets every flag, and a flag
overrides its preset. A method is a choice of parts; --perturb_inputs,
--perturb_weights, --objective, --optimizer and --average replace a part. The
same command again resumes a run that was stopped, and prints the table of a
run that is finished.

Exit codes: 0 finished; 2 bad input; 3 the loss became NaN; 4 the disk is full;
5 a worker was lost; 6 an attack failed; 130 and 143 stopped by SIGINT or
SIGTERM.
"""


def _help(values: Mapping[str, Any]) -> str:
    """Returns the text of `--help`, with the preset's values."""
    preset = values.get("preset", presets.DEFAULT)
    check_choice("preset", preset, presets.PRESETS)
    defaults = presets.defaults(preset, values.get("dataset"))
    defaults["preset"] = presets.DEFAULT
    known = {
        "attacks": ", ".join(registries.ATTACKS.names()),
        "corruptions": ", ".join(registries.CORRUPTIONS.names()),
        "augmentations": ", ".join(registries.AUGMENTATIONS.names()),
        "networks": ", ".join(registries.NETWORKS.names()),
        "objectives": ", ".join(registries.OBJECTIVES.names()),
        "optimizers": ", ".join(registries.OPTIMIZERS.names()),
        "schedules": ", ".join(registries.SCHEDULES.names()),
        "sources": ", ".join(registries.SOURCES.names()),
    }
    lines = [_USAGE, f"Defaults are those of --preset={preset}."]
    for group in flags.GROUPS:
        lines += ["", f"{group}:"]
        for name, flag in flags.FLAGS.items():
            if flag.group == group:
                lines += _lines_of(name, flag, defaults.get(name), known)
    lines += ["", "Methods:"]
    for name, row in methods.methods().items():
        source = f" ({row.source})" if row.source else ""
        lines += _in_columns(name, f"{row.help}{source}")
    return "\n".join(lines)


def _lines_of(
    name: str, flag: Flag, default: Any, known: Mapping[str, str]
) -> list[str]:
    """Returns the lines of `--help` about a flag."""
    text = flag.help.format(**known) if "{" in flag.help else flag.help
    if flag.choices is not None:
        text = f"{text.rstrip('.')}: {', '.join(flag.choices())}."
    if default is not None:
        text += f" Default: {flag_types.written(default)}."
    switch = "[no]" if flag.is_switch else ""
    return _in_columns(f"--{switch}{name}", text)


def _in_columns(name: str, text: str) -> list[str]:
    """Returns a name and, beside or below it, a text, as lines."""
    indent = " " * 24
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent
    )
    first = f"  {name}"
    if len(first) >= len(indent):
        return [first, *lines]
    return [f"{first:<{len(indent)}}{lines[0].lstrip()}", *lines[1:]]


def _help_of(name: str) -> str:
    """Returns the description of a method, or of the parts of a name.

    Args:
        name: the name, in any case; options after it are ignored.
    """
    name = name.partition(":")[0].strip()
    rows = methods.methods()
    found = []
    for method in [n for n in rows if n.casefold() == name.casefold()]:
        row = methods.method(method)
        source = f" ({row.source})" if row.source else ""
        found.append(f"{method}: method\n  {row.help}{source}")
    known = {n for registry in registries.ALL for n in registry.names()}
    if name.casefold() in {n.casefold() for n in known}:
        found.append(registries.describe(name))
    if not found:
        hint = did_you_mean(name, [*rows, *known])
        raise ValueError(
            "--help=NAME takes the name of a method, an attack or another "
            f"part{hint}. Received: help={name}"
        )
    return "\n\n".join(found)
