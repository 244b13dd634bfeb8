"""The choice of a range of pixels by the natural accuracy under each.

A model that gets other pixels than it was trained on classifies badly. All
ranges are tried on the same examples, so a sign test decides between two.
"""

import itertools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats

from tfsam.models.pixel_ranges import PLAIN

# Numbers of examples after which ranges are compared; those that are clearly
# worse are left out then.
_STAGES = (64, 256, 1024)
_ENOUGH = 256

# Probability that a range seems better, or better than guessing, by chance: to
# leave the other out, and to prefer it to the usual one.
_LUCK, _LEANING = 0.01, 0.05

# How much more accuracy is "far more", and the share of what there is to gain
# below which a model is near guessing.
_FAR, _NEAR = 0.2, 0.25

Predictions = dict[str, np.ndarray]
Predict = Callable[[str, slice], np.ndarray]


class Choice(NamedTuple):
    """A range of pixels, and why it was chosen.

    Attributes:
        name: the range.
        notes: sentences for the user.
    """

    name: str
    notes: tuple[str, ...] = ()


def predictions(
    predict: Predict, labels: np.ndarray, names: Iterable[str]
) -> Predictions:
    """Classifies examples under each range.

    Args:
        predict: Function from a range and a slice of the examples to classes.
        labels: Integer array (n,), the classes of the examples.
        names: The ranges.

    Returns:
        A dict from ranges to integer arrays (m,), the predictions for the
        first m examples. Ranges that are clearly worse have fewer.
    """
    found = {name: np.zeros(0, np.int64) for name in names}
    remaining = list(found)
    for start, stop in itertools.pairwise((0, *_STAGES)):
        for name in remaining:
            more = predict(name, slice(start, stop))
            found[name] = np.concatenate([found[name], more])
        remaining = contenders({n: found[n] for n in remaining}, labels)
        decided = len(remaining) == 1 and stop >= _ENOUGH
        if decided or stop >= len(labels):
            break
    return found


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Returns the accuracy on the first examples, those that are classified."""
    return float(np.mean(predicted == labels[: len(predicted)]))


def accuracies(found: Predictions, labels: np.ndarray) -> dict[str, float]:
    """Returns the natural accuracy under each range."""
    return {name: accuracy(p, labels) for name, p in found.items()}


def contenders(
    found: Predictions, labels: np.ndarray, luck: float = _LUCK
) -> list[str]:
    """Returns the ranges that are not clearly worse than another.

    Args:
        found: A result of `predictions`.
        labels: The classes of the examples.
        luck: Probability that a range seems better by chance.
    """
    right = {n: p == labels[: len(p)] for n, p in found.items()}
    return [
        name
        for name in right
        if not any(
            _clearly_better(right[other], right[name], luck)
            for other in right
            if other != name
        )
    ]


def _clearly_better(
    right: np.ndarray, other: np.ndarray, luck: float = _LUCK
) -> bool:
    """Returns whether a sign test finds more examples right than in another."""
    count = min(len(right), len(other))
    right, other = right[:count], other[:count]
    gains, losses = int((right & ~other).sum()), int((other & ~right).sum())
    if gains <= losses:
        return False
    test = scipy.stats.binomtest(gains, gains + losses, alternative="greater")
    return bool(test.pvalue < luck)


def _is_guessing(right: np.ndarray, chance: float) -> bool:
    """Returns whether guessing may have as many examples right."""
    count = int(right.sum())
    test = scipy.stats.binomtest(count, len(right), chance, "greater")
    return bool(test.pvalue >= _LUCK)


def choose(
    found: Predictions, labels: np.ndarray, told: str | None, chance: float
) -> Choice:
    """Chooses the range under which a model is most accurate.

    Args:
        found: A result of `predictions`.
        labels: The classes of the examples.
        told: The range that the model's layers tell, or None. It is chosen, or
            else 0..1, unless another is clearly better, and better than
            guessing.
        chance: The accuracy of guessing.

    Returns:
        The choice, with a note if it was close.
    """
    close = contenders(found, labels)
    measured = accuracies(found, labels)
    if all(
        _is_guessing(found[n] == labels[: len(found[n])], chance) for n in close
    ):
        return Choice(told or PLAIN)
    leaning = contenders(found, labels, _LEANING)
    if told in leaning:
        return Choice(str(told))
    if PLAIN in leaning:
        name = PLAIN
    else:
        name = max(leaning, key=measured.__getitem__)
    others = [other for other in close if other != name]
    if not others or all(_same(found, name, other) for other in others):
        return Choice(name)
    listed = " and ".join(
        f"{other} ({percent(measured[other])})" for other in others
    )
    return Choice(
        name,
        (
            f"natural accuracy does not tell pixels in {name} "
            f"({percent(measured[name])}) from {listed}: check --pixels",
        ),
    )


def _same(found: Predictions, name: str, other: str) -> bool:
    return np.array_equal(found[name], found[other])


def objection(
    found: Predictions, labels: np.ndarray, asked: str, chance: float
) -> str | None:
    """Objects to a range if another one is far more accurate.

    Args:
        found: A result of `predictions`, with the range that was asked for.
        labels: The classes of the examples.
        asked: The range that was asked for.
        chance: The accuracy of guessing.

    Returns:
        A message, if the model is near guessing under the range, and far more
        accurate under another; else None.
    """
    measured = accuracies(found, labels)
    best = max(measured, key=measured.__getitem__)
    right = {n: found[n] == labels[: len(found[n])] for n in (best, asked)}
    if not _clearly_better(right[best], right[asked]) or not far_more(
        measured[best], measured[asked], chance
    ):
        return None
    return (
        f"natural accuracy is {percent(measured[asked])} with pixels in "
        f"{asked} and {percent(measured[best])} in {best}: add "
        f'--pixels={best} (in Python, pixels="{best}"). '
        f"Received: pixels={asked}"
    )


def far_more(best: float, asked: float, chance: float) -> bool:
    """Returns whether an accuracy is far above another that is near guessing.

    Args:
        best: The larger accuracy.
        asked: The other one.
        chance: The accuracy of guessing.

    Example:
        >>> far_more(0.88, 0.1, 0.1), far_more(0.88, 0.7, 0.1)
        (True, False)
    """
    return best - asked > _FAR and asked - chance < _NEAR * (best - chance)


def guessing(labels: np.ndarray, classes: int = 0) -> float:
    """Returns the accuracy of guessing the most frequent class.

    Args:
        labels: Integer array (n,), the classes of examples.
        classes: Number of classes, if they are more than those of the examples.
    """
    counts = np.bincount(labels)
    return max(counts.max() / counts.sum(), 1 / max(classes, len(counts)))


def percent(share: float) -> str:
    """Returns a share in percent.

    Example:
        >>> percent(0.882)
        '88.2 %'
    """
    return f"{100 * share:.1f} %"


def summary(measured: Mapping[str, float]) -> str:
    """Returns the accuracy under each range, as a text.

    Example:
        >>> summary({"0..1": 0.098, "0..255": 0.882})
        '9.8 % in 0..1, 88.2 % in 0..255'
    """
    return ", ".join(f"{percent(a)} in {name}" for name, a in measured.items())
