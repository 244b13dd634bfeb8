"""Splits of labelled examples into a training and a test part."""

import hashlib
import os
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
    """Groups identical files; reads those that have the size of another.

    Args:
        paths: the files. A file that cannot be read is a group of its own.

    Returns:
        int64 (n,), equal for files of the same content.
    """
    sizes = [_size(path) for path in paths]
    known, counts = np.unique(sizes, return_counts=True)
    shared = set(known[counts > 1].tolist())
    groups: dict[object, int] = {}
    keys: list[object] = [
        _digest(path) if size in shared and size >= 0 else path
        for path, size in zip(paths, sizes, strict=True)
    ]
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


def _size(path: str) -> int:
    """Returns the bytes of a file, -1 where it cannot be read."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _digest(path: str) -> object:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path
