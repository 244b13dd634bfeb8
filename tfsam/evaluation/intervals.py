"""Accuracies with their confidence intervals."""

from typing import Any

import numpy as np
import scipy.stats


def accuracy_of(correct: np.ndarray) -> dict[str, Any]:
    """Returns an accuracy with Wilson's 95 % interval.

    Args:
        correct: Bool array (n,).

    Returns:
        {`accuracy`, `n`, `interval`}.

    Example:
        >>> accuracy_of(np.array([True, False]))["accuracy"]
        0.5
    """
    n, k = len(correct), int(correct.sum())
    interval = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": k / n,
        "n": n,
        "interval": [float(interval.low), float(interval.high)],
    }
