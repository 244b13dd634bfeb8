"""Splits of labelled examples into a training and a test part."""

import collections
import hashlib
import os
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

FRACTION = 0.2


def stratified(
    labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Chooses test examples, in the proportions of the classes.

    Args:
        labels: (n,) integers.
        groups: (n,) integers, equal for examples that stay on one side.
        fraction: of the examples of each class to choose, in (0, 1).
        seed: a non-negative integer, which alone decides among equals.

    Returns:
        bool (n,), True for the test examples. A class of several groups has
        examples on both sides; one of a single group has no test examples.

    Example:
        >>> labels = np.repeat([0, 1], 10)
        >>> is_test = stratified(labels, np.arange(20), 0.2, seed=0)
        >>> np.bincount(labels[is_test]).tolist()
        [2, 2]
    """
    random = np.random.default_rng(seed)
    _, first, group_of = np.unique(
        groups, return_index=True, return_inverse=True
    )
    sizes = np.bincount(group_of, minlength=len(first))
    is_test = np.zeros(len(first), bool)
    # A group whose examples have several labels is counted by the first.
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels[first] == label))
        if len(own) < 2:
            continue
        totals = np.cumsum(sizes[own])
        wanted = round(fraction * int(totals[-1]))
        count = int(np.searchsorted(totals, wanted, side="right"))
        is_test[own[: min(max(count, 1), len(own) - 1)]] = True
    return is_test[group_of]


def of_files(paths: Sequence[str]) -> np.ndarray:
    """Groups identical files; reads those that look like another.

    Args:
        paths: the files. A file that cannot be read is a group of its own.

    Returns:
        int64 (n,), equal for files of the same content.
    """
    keys: list[tuple[object, ...]] = [()] * len(paths)
    for look in (os.path.getsize, _end, _digest):
        counts = collections.Counter(keys)
        keys = [
            (*key, _looked_at(path, look)) if counts[key] > 1 else key
            for key, path in zip(keys, paths, strict=True)
        ]
    groups: dict[object, int] = {}
    return np.array([groups.setdefault(key, len(groups)) for key in keys])


def of_arrays(examples: np.ndarray) -> np.ndarray:
    """Groups identical examples.

    Args:
        examples: (n, ...).

    Returns:
        int64 (n,), equal for examples of the same values.
    """
    groups: dict[bytes, int] = {}
    keys = (hashlib.sha256(example.tobytes()).digest() for example in examples)
    return np.array([groups.setdefault(key, len(groups)) for key in keys])


def _looked_at(path: str, look: Callable[[str], object]) -> object:
    """Returns a fact about a file: its path where it cannot be read."""
    try:
        return look(path)
    except OSError:
        return path


def _end(path: str) -> bytes:
    """Returns the last bytes of a file, which differ in most images."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, 64, max(os.fstat(file).st_size - 64, 0))
    finally:
        os.close(file)


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
