"""Names of runs: short ones that differ where the flags differ."""

import pathlib
import re
import zlib

from tfsam import registries
from tfsam.runs import command_line
from tfsam.runs import flags
from tfsam.runs import presets

# Flags that do not belong to a run's identity.
_LEFT_OUT = (
    *("workdir", "overwrite", "cache_dir", "checkpoint_steps", "robustbench"),
    *("preset", "dataset", "evaluate"),
)

# Flags whose values say enough without the flag's name.
_BARE = ("method", "attacks")

_ABBREVIATED = {
    "linf_epsilons": "linf",
    "l2_epsilons": "l2",
    "l1_epsilons": "l1",
    "transfer_attacks": "transfer",
}

# Files and folders that a run gives to its network.
_NETWORKS = ("model.keras", "best.keras", "saved_model")

_LONGEST = 80


def of_run(given: command_line.Given) -> str:
    """Returns a name for the run that a command line describes.

    The name begins with the data set, or with "eval-" and the name of the run
    or model that is evaluated; the flags follow as they are written, with "_"
    for characters such as "/". A digest follows where the name alone does not
    tell two command lines apart: where it is cut, and where a path is
    replaced by its last part.

    Args:
        given: the flags of the command line.
    """
    words, whole = _subject(given)
    for flag in [f for f in flags.FLAGS if f in {*given.texts} - {*_LEFT_OUT}]:
        text = given.texts[flag]
        if flag in ("surrogate", "weights") or (
            flag == "network" and registries.network_file(text)
        ):
            whole = whole and "/" not in text
            text = _model(text)
        elif flag == "freeze":
            whole = whole and _slug(text) == text
        text = _slug(text)
        label = _ABBREVIATED.get(flag, flag)
        words.append(text if flag in _BARE else f"{label}={text}")
    name = "-".join(words)
    if whole and len(name) <= _LONGEST:
        return name
    identity = sorted(set(given.texts) - {*_LEFT_OUT[:5]})
    text = "\n".join(f"{flag}={given.texts[flag]}" for flag in identity)
    return f"{name[:_LONGEST]}-{zlib.crc32(text.encode()):08x}"


def _subject(given: command_line.Given) -> tuple[list[str], bool]:
    """Returns the first words of a name, and whether they are unambiguous."""
    preset = given.texts.get("preset", presets.DEFAULT)
    own = presets.defaults(preset)["dataset"]
    dataset = given.texts.get("dataset", own)
    data = _slug(dataset.rstrip("/").rpartition("/")[2].rpartition(":")[2])
    words, whole = [data], data == dataset
    if "preset" in given.texts and preset != dataset:
        words.append(preset)
    evaluated = given.texts.get("evaluate")
    if evaluated is None:
        return words, whole
    name = _model(evaluated)
    whole = whole and evaluated == f"runs/{name}/model.keras"
    if "dataset" not in given.texts and "preset" not in given.texts:
        words = []
    return [f"eval-{name}", *words], whole


def _model(path: str) -> str:
    """Returns the name of the run that a model belongs to, or the model's."""
    parts = pathlib.PurePath(path).parts or ("model",)
    if len(parts) > 1 and parts[-1] in _NETWORKS:
        return _slug(parts[-2])
    return _slug(pathlib.PurePath(parts[-1]).stem)


def _slug(text: str) -> str:
    """Returns a text with every character that a file name may lack replaced.

    Spaces are removed, since the parsers ignore them.
    """
    slug = re.sub(r"[^\w.,+=-]+", "_", text.replace(" ", ""))
    return slug.strip("_.") or "none"
