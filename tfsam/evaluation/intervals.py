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


def wilson(share: float, n: int) -> list[float]:
    """Returns Wilson's 95 % interval for a mean of fractions of n examples.

    Args:
        share: The mean, in [0, 1]; not a whole number of examples, as a rule.
        n: Number of examples.

    Returns:
        [low, high], with share in between.

    Example:
        >>> low, high = wilson(0.5, 100)
        >>> print(round(low, 3), round(high, 3))
        0.404 0.596
    """
    z = float(scipy.stats.norm.ppf(0.975))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    root = np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    reach = float(z * root / (1 + z**2 / n))
    return [
        max(0.0, min(share, centre - reach)),
        min(1.0, max(share, centre + reach)),
    ]
