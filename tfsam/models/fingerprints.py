"""Fingerprints by which a model is recognised in another process.

A model from files is recognised by their checksum, any other model by the
description of its code and weights. In addition, a sketch holds a few numbers
by which the outputs of two models are compared.
"""

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.attacks.logits import Logits
from tfsam.support import files
from tfsam.support import identity
from tfsam.support.graphs import traced
from tfsam.support.rescaling import flattened

Sketch = dict[str, list[list[float]] | None]

# How a `.keras` file marks an object that several layers share.
_SHARED = re.compile(rb'("shared_object_id": )(\d+)')

# Keras marks a policy that layers share when they were made, but not when they
# were loaded from a file. It is the same policy either way.
_POLICY = re.compile(
    rb'("class_name": "DTypePolicy", "config": \{[^{}]*\}, '
    rb'"registered_name": null), "shared_object_id": \d+'
)

# Tolerance for rounding, relative to a projection, and the share of the
# examples that must agree within it.
_ROUNDING, _MOST = 0.01, 0.75


def describe(logits: Logits, name: str | None = None) -> dict[str, Any]:
    """Describes a model so that another process recognises it.

    A name given by the user replaces the description. A model from files is
    described by their checksum, the way it was loaded, and the code of custom
    layers, which is not in the files. Any other model is described by
    `identity.describe`.

    Args:
        logits: The loaded model.
        name: The user's name, or None.

    Returns:
        A dict of JSON types.

    Raises:
        tfsam.support.identity.Unknown: If the model cannot be described and has
            no name.
    """
    if name is not None:
        return {"named": str(name)}
    if logits.identity is None:
        return identity.compact(identity.describe(logits))
    network = getattr(logits.function, "model", None)
    if network is None or not any(
        identity.has_foreign_code(layer) for layer in flattened(network)
    ):
        return dict(logits.identity)
    try:
        code = identity.digest(identity.describe(network))
    except identity.Unknown:
        return dict(logits.identity)  # Nothing is known but the files.
    return logits.identity | {"network": code}


def from_file(path: Any, format: str) -> dict[str, Any]:
    """Describes a model by its files, for the `identity` of a `Logits`.

    Args:
        path: Path of the file or the folder.
        format: "keras" or "saved_model", the way in which it was loaded.

    Returns:
        A dict of JSON types.
    """
    checksum = files.digest(path)
    if zipfile.is_zipfile(path):
        checksum = _digest_of_archive(path)
    return {"files": checksum, "loading": {"format": format}}


def _digest_of_archive(path: Any) -> str:
    """Computes a checksum of a `.keras` file that saving again does not change.

    The archive holds times, in its directory and in metadata.json, and
    addresses of shared objects, in config.json. metadata.json is left out,
    because a record has versions of its own, and the addresses are replaced by
    the order in which they appear.

    Args:
        path: Path of the archive.
    """
    total = hashlib.sha256()
    seen: dict[bytes, int] = {}

    def numbered(match: re.Match[bytes]) -> bytes:
        return match[1] + b"%d" % seen.setdefault(match[2], len(seen))

    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name == "metadata.json":
                continue
            content = archive.read(name)
            if name == "config.json":
                content = _POLICY.sub(rb"\1", content)
                content = _SHARED.sub(numbered, content)
            part = hashlib.sha256(content)
            total.update(name.encode() + b"\0" + part.digest())
    return total.hexdigest()


def sketch(function: Callable[..., Any], x: np.ndarray) -> Sketch | None:
    """Computes a few numbers by which the outputs of models are compared.

    They are three random projections of each example's logits, and of the
    gradient of a random combination of the logits with respect to the pixels.
    Models with equal logits may differ in the gradients that attacks follow.

    Args:
        function: Function from pixels to logits (batch, classes).
        x: Float array (batch, ...), a few examples.

    Returns:
        A dict of `logits` and `gradients`, lists of three numbers for each
        example; `gradients` is None if no gradient flows. None if two calls
        differ.
    """
    first, second = (_projections(function, x) for _ in range(2))
    return first if alike(first, second) else None


def alike(sketch: Sketch | None, other: Sketch | None) -> bool:
    """Returns whether two sketches agree but for rounding.

    Another processor, or another number of threads, rounds differently, and a
    quantised network may amplify the difference. Therefore only most of the
    examples must agree. None agrees with every sketch.

    Args:
        sketch: A result of `sketch`.
        other: A result of `sketch` for the same examples.
    """
    if sketch is None or other is None:
        return True
    for key in ("logits", "gradients"):
        one, two = sketch[key], other[key]
        if one is None or two is None:
            if one is not two:
                return False
        elif not _mostly_close(np.array(one), np.array(two)):
            return False
    return True


def _projections(function: Callable[..., Any], x: np.ndarray) -> Sketch:
    random = np.random.default_rng(0)
    pixels = tf.convert_to_tensor(x)
    logits = tf.convert_to_tensor(function(pixels))
    upstream = tf.constant(random.normal(size=logits.shape), logits.dtype)
    slopes = _slopes(function, pixels, upstream)
    return {
        key: None if values is None else _projected(values, random)
        for key, values in (("logits", logits), ("gradients", slopes))
    }


def _slopes(
    function: Callable[..., Any], pixels: tf.Tensor, upstream: tf.Tensor
) -> tf.Tensor | None:
    """Returns the gradient at the pixels, None if none flows."""

    def compute(pixels: tf.Tensor) -> tf.Tensor | None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pixels)
            logits = tf.convert_to_tensor(function(pixels))
        return tape.gradient(logits, pixels, upstream)

    # A graph leaves out the gradients of the weights, which may be unsafe (see
    # `support.onednn`). Some functions cannot be traced.
    for way in (traced(compute), compute):
        # A user's model may raise anything, also where no gradient flows.
        with contextlib.suppress(Exception):
            return way(pixels)
    return None


def _projected(
    values: tf.Tensor, random: np.random.Generator
) -> list[list[float]]:
    array = np.reshape(values, (len(values), -1)).astype(np.float64)
    directions = random.normal(size=(array.shape[1], 3))
    found = array @ directions / np.sqrt(len(directions))
    # JSON has neither NaN nor infinity.
    found = np.where(np.isfinite(found), found, 0.0)
    return [[float(f"{number:.6g}") for number in row] for row in found]


def _mostly_close(one: np.ndarray, two: np.ndarray) -> bool:
    if one.shape != two.shape:
        return False
    largest = np.maximum(abs(one), abs(two)).max(axis=1, keepdims=True)
    close = (abs(one - two) <= _ROUNDING * largest).all(axis=1)
    return bool(close.mean() >= _MOST)
