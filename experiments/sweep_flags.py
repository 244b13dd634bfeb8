"""The flags that the commands on sweeps share."""

import pathlib

from absl import flags

from experiments import sweep_presets

# In --help, a flag stands under the command that has it.
flags.disclaim_key_flags()


def preset(values, default="small"):
    """Defines --preset, the name of the sweep.

    Args:
        values: the `absl.flags.FlagValues` of the command.
        default: its default.
    """
    names = ", ".join(sweep_presets.PRESETS)
    return flags.DEFINE_string(
        "preset", default, f"The sweep: {names}.", flag_values=values
    )


def rows(values, default="the preset's"):
    """Defines --rows, the names of rows.

    Args:
        values: the `absl.flags.FlagValues` of the command.
        default: the rows without it, for its help.
    """
    return flags.DEFINE_list(
        "rows", None, f"Rows. Default: {default}.", flag_values=values
    )


def workdir(values):
    """Defines --workdir, the sweep's folder; see `folder`.

    Args:
        values: the `absl.flags.FlagValues` of the command.
    """
    text = "The sweep's folder. Default: runs/table1-PRESET."
    return flags.DEFINE_string("workdir", None, text, flag_values=values)


def folder(workdir, preset):
    """Returns the sweep's folder, a `pathlib.Path`.

    Args:
        workdir: the flag --workdir.
        preset: the flag --preset.
    """
    return pathlib.Path(workdir.value or f"runs/table1-{preset.value}")


def base(values):
    """Defines --base, the name of a row.

    Args:
        values: the `absl.flags.FlagValues` of the command.
    """
    text = "The row that the others are compared with."
    return flags.DEFINE_string("base", "st", text, flag_values=values)


def examples(values, default):
    """Defines --examples, a number of images.

    Args:
        values: the `absl.flags.FlagValues` of the command.
        default: its default.
    """
    text = "Images, of each part, to measure on."
    return flags.DEFINE_integer(
        "examples", default, text, lower_bound=1, flag_values=values
    )


def figures(values, content="figures and tables"):
    """Defines --figures, a folder.

    Args:
        values: the `absl.flags.FlagValues` of the command.
        content: what is written there, for its help.
    """
    return flags.DEFINE_string(
        "figures", None, f"Folder for {content}.", flag_values=values
    )
