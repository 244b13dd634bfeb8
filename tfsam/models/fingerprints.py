"""Fingerprints by which a model is recognised in another process.

A model from files is recognised by their checksum, any other model by the
description of its code and weights. In addition, a sketch holds a few numbers
by which the outputs of two models are compared.
"""

import hashlib
import re
import zipfile

import numpy as np
import tensorflow as tf

from tfsam.support import files
from tfsam.support import identity
from tfsam.support.layers import flattened

# How a `.keras` file marks an object that several layers share.
_SHARED = re.compile(rb'("shared_object_id": )(\d+)')

# Of a projection's size, what rounding may change, and the part of the examples
# that must agree to it.
_ROUNDING, _MOST = 0.01, 0.75


def describe(logits, name=None):
    """Describes a model so that another process recognises it.

    A name given by the user stands for the whole model. A model from files is
    known by their checksum, the way it was loaded, and the code of those of its
    layers that is not in the files; any other one by all that
    `identity.describe` finds.

    Args:
        logits: the `Logits` that it was loaded as.
        name: the user's, or None.

    Returns:
        A dict of JSON's types.

    Raises:
        tfsam.support.identity.Unknown: if it has no description and no name.
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
        return dict(logits.identity)  # The files are all that can be told.
    return logits.identity | {"network": code}


def from_file(path, format):
    """Describes a model by its files, for the `identity` of a `Logits`.

    Args:
        path: of the file or the folder.
        format: "keras" or "saved_model", how it was loaded.
    """
    checksum = files.digest(path)
    if zipfile.is_zipfile(path):
        checksum = _digest_of_archive(path)
    return {"files": checksum, "loading": {"format": format}}


def _digest_of_archive(path):
    """Computes a checksum of a `.keras` file that saving again does not change.

    The archive has the time of the day in its directory and in metadata.json,
    whose versions a record has of its own, and addresses of shared objects in
    the configuration; their order of appearance stands for them.

    Args:
        path: of the archive.
    """
    total = hashlib.sha256()
    seen: dict[bytes, int] = {}

    def numbered(match):
        return match[1] + b"%d" % seen.setdefault(match[2], len(seen))

    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name == "metadata.json":
                continue
            content = archive.read(name)
            if name == "config.json":
                content = _SHARED.sub(numbered, content)
            part = hashlib.sha256(content)
            total.update(name.encode() + b"\0" + part.digest())
    return total.hexdigest()


def sketch(function, x):
    """Computes a few numbers by which a model's outputs are compared.

    They are three random projections of each example's logits, and of their
    gradient in the pixels along a random direction of the logits: models of
    equal logits may differ in the gradients that attacks follow.

    Args:
        function: pixels to logits (batch, classes).
        x: float array (batch, ...), a few examples.

    Returns:
        A dict of `logits` and `gradients`, lists of three numbers an example;
        `gradients` is None where none flow. Or None, if two calls give
        different numbers.
    """
    first, second = (_projections(function, x) for _ in range(2))
    return first if alike(first, second) else None


def alike(sketch, other):
    """Returns whether two sketches are of the same model, but for rounding.

    Another processor, or another number of threads, rounds differently, and a
    quantised network may amplify that: most of the examples decide. `None`
    is like every other one.

    Args:
        sketch: what `sketch` returned.
        other: what it returned for the same examples.
    """
    if sketch is None or other is None:
        return True
    for key in ("logits", "gradients"):
        one, two = sketch[key], other[key]
        if (one is None) != (two is None):
            return False
        if one is not None and not _mostly_close(one, two):
            return False
    return True


def _projections(function, x):
    random = np.random.default_rng(0)
    pixels = tf.convert_to_tensor(x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(pixels)
        logits = tf.convert_to_tensor(function(pixels))
        upstream = tf.constant(random.normal(size=logits.shape), logits.dtype)
        total = tf.reduce_sum(logits * upstream)
    try:
        slopes = tape.gradient(total, pixels)
    except Exception:  # Whatever somebody else's model raises.
        slopes = None
    return {
        key: None if values is None else _projected(values, random)
        for key, values in (("logits", logits), ("gradients", slopes))
    }


def _projected(values, random):
    values = np.reshape(values, (len(values), -1)).astype(np.float64)
    directions = random.normal(size=(values.shape[1], 3))
    found = values @ directions / np.sqrt(len(directions))
    # JSON has no NaN and no infinity.
    found = np.where(np.isfinite(found), found, 0.0)
    return [[float(f"{number:.6g}") for number in row] for row in found]


def _mostly_close(one, two):
    one, two = np.array(one), np.array(two)
    if one.shape != two.shape:
        return False
    largest = np.maximum(abs(one), abs(two)).max(axis=1, keepdims=True)
    close = (abs(one - two) <= _ROUNDING * largest).all(axis=1)
    return bool(close.mean() >= _MOST)
