"""Times of functions that are called in turn, and the flags of benchmarks."""

import time

from absl import flags


def define_flags(values, images, parts):
    """Defines the flags that the benchmarks of attacks share.

    Args:
        values: the `absl.flags.FlagValues` of the command.
        images: the default of --images.
        parts: the parts of the command that take --model, for its help.

    Returns:
        The flags width, batch_size, repeats, model, dataset and images.
    """
    return (
        flags.DEFINE_integer(
            "width", 16, "Channels of the first stage.", flag_values=values
        ),
        flags.DEFINE_integer(
            "batch_size", 128, "Images attacked at once.", flag_values=values
        ),
        flags.DEFINE_integer(
            "repeats", 5, "Calls timed of each kind.", flag_values=values
        ),
        flags.DEFINE_string(
            "model", None, f"A trained model, for {parts}.", flag_values=values
        ),
        flags.DEFINE_string(
            "dataset", "digits", "Images of the model.", flag_values=values
        ),
        flags.DEFINE_integer(
            "images", images, "Number of images.", flag_values=values
        ),
    )


def timed(function):
    """Returns the wall-clock and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def in_turn(kinds, repeats):
    """Returns the times of each kind: of the first call, and of the others.

    Args:
        kinds: a dict of functions without arguments.
        repeats: number of calls of each after the first.

    Returns:
        (first, later), a dict from kinds to the results of `timed`, and a list
        of such dicts.
    """
    first, *later = (
        {kind: timed(function) for kind, function in kinds.items()}
        for _ in range(1 + repeats)
    )
    return first, later
