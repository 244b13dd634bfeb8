"""Verdicts on corrupted images, in a file for each kind and severity.

A folder of verdicts is resumed only by an evaluation whose header, the
description of the data, the model, the seed and the software, is the same. The
verdicts of a corruption also have the description of that corruption: with
another one they are measured again.
"""

import importlib.metadata
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfsam.evaluation import cache_key
from tfsam.evaluation import headers
from tfsam.evaluation.plans import Data
from tfsam.evaluation.workers import kinds_of
from tfsam.models import fingerprints
from tfsam.support import files
from tfsam.support import identity

Header = dict[str, Any]

# The source files whose code decides verdicts, beside those of attacks.
_DECISIVE = (
    "corruptions/*.py",
    "evaluation/corrupted.py",
)

# The packages whose functions corrupt images.
_PACKAGES = ("numpy", "scipy", "pillow")


class Verdicts:
    """The verdicts of an evaluation on corrupted images.

    Args:
        header: The description of the evaluation, of JSON types.
        folder: Folder that keeps the verdicts, or None to keep none.

    Raises:
        tfsam.support.files.Unusable: If the folder holds the verdicts of
            another evaluation, or verdicts without a header.
    """

    def __init__(self, header: Header, folder: files.Path | None) -> None:
        self._folder = None if folder is None else pathlib.Path(folder)
        self._count = header["n"]
        if self._folder is None:
            return
        header = json.loads(json.dumps(header))
        self._folder.mkdir(parents=True, exist_ok=True)
        held = files.read_json(self._folder / "record.json")
        if held is not None:
            headers.check_same(held, header, self._folder)
        elif any(self._folder.glob("*.npz")):
            raise files.Unusable(
                "the folder's record.json is missing or damaged, so it is "
                "unknown which evaluation its verdicts belong to; choose "
                f"another folder. Received: {self._folder}"
            )
        else:
            files.write_json(self._folder / "record.json", header)
        for path in files.leftovers(self._folder):
            files.remove(path)

    def load(self, name: str, described: str) -> np.ndarray | None:
        """Loads verdicts.

        Args:
            name: Name of the corruption with its severity.
            described: Description of the corruption.

        Returns:
            Bool array (n,), whether each image is classified correctly; None
            if there are no verdicts, or those of another corruption.
        """
        if self._folder is None:
            return None
        try:
            with np.load(_path(self._folder, name)) as held:
                correct, found = held["correct"], str(held["corruption"])
        except FileNotFoundError:
            return None
        except Exception:
            # A file can be damaged in many ways; it is measured again.
            return None
        whole = correct.shape == (self._count,) and correct.dtype == bool
        return correct if whole and found == described else None

    def save(self, name: str, described: str, correct: np.ndarray) -> None:
        """Saves verdicts; see `load`.

        Args:
            name: Name of the corruption with its severity.
            described: Description of the corruption.
            correct: Bool array (n,).
        """
        if self._folder is not None:
            files.write_arrays(
                _path(self._folder, name),
                {"correct": correct, "corruption": np.array(described)},
            )


def _path(folder: pathlib.Path, name: str) -> pathlib.Path:
    slug = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)
    return folder / f"{slug[:200]}.npz"


def header(
    model: cache_key.Model,
    data: Data,
    *,
    batch_size: int,
    seed: int,
    devices: Iterable[str | None],
) -> Header:
    """Describes everything that verdicts depend on, but for the corruptions.

    Args:
        model: The model.
        data: The images before they are corrupted, with their labels.
        batch_size: Number of images that are classified together.
        seed: The seed of the corruptions.
        devices: Names of devices, None for the device of TensorFlow's choice.

    Raises:
        ValueError: If the model cannot be described and has no name.
    """
    versions = {p: importlib.metadata.version(p) for p in _PACKAGES}
    versions["tfsam's corruptions"] = cache_key.source_digest(_DECISIVE)
    return {
        "schema": "corruptions 1",
        "n": len(data.x),
        "batch_size": batch_size,
        "seed": seed,
        "data": cache_key.data_digest(data),
        "model_parts": cache_key.model_identity("model", model),
        "model_sketch": fingerprints.sketch(model.logits.function, data.x[:16]),
        "jit_compile": model.logits.jit_compile,
        "devices": kinds_of(devices),
        "versions": cache_key.versions() | versions,
    }


def described(name: str, corruption: Any) -> str:
    """Describes a corruption so that another process recognises it.

    Args:
        name: The name under which it is registered, with its options.
        corruption: The corruption.

    Returns:
        A checksum.
    """
    try:
        parts = identity.describe(corruption)
    except identity.Unknown:  # The version of its package is known.
        kind = type(corruption)
        package = kind.__module__.partition(".")[0]
        parts = {
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "version": identity.version_of(package),
        }
    return identity.digest([name, parts])
