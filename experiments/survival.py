"""Statistics of survival: how well a measure of an image predicts its verdict.

All functions take plain arrays with an entry for each image.
"""

import itertools

import numpy as np
import scipy.special
import scipy.stats


def auc(values, survives):
    """Returns the area under the ROC curve of a measure for survival.

    It is the probability that a survivor's value is larger than that of an
    image that is broken; equal values count half.

    Args:
        values: (n,) floats.
        survives: (n,) bools.

    Returns:
        The area in [0, 1], or NaN if all images survive or none does.

    Example:
        >>> auc([1, 2, 3, 4], [False, True, False, True])
        0.75
    """
    survives = np.asarray(survives, bool)
    alive = int(survives.sum())
    broken = len(survives) - alive
    if not alive or not broken:
        return float("nan")
    ranks = scipy.stats.rankdata(values)[survives]
    return float((ranks.sum() - alive * (alive + 1) / 2) / (alive * broken))


def logistic(covariates, outcomes, *, steps=100):
    """Fits a logistic regression with Firth's penalty.

    Firth, 1993, "Bias reduction of maximum likelihood estimates", section 3:
    Jeffreys' prior is added to the likelihood, so the coefficients are finite
    even where a covariate separates the outcomes.

    Args:
        covariates: (n, k) floats; a column of ones is put before them.
        outcomes: (n,) bools.
        steps: largest number of steps of Newton's method.

    Returns:
        Coefficients (1 + k,), the intercept first.

    Example:
        >>> import numpy as np
        >>> found = logistic(np.zeros((4, 0)), [True, True, True, False])
        >>> round(float(np.exp(found[0])), 3)
        2.333
    """
    outcomes = np.asarray(outcomes, float)
    design = np.column_stack([np.ones(len(outcomes)), covariates])
    found = np.zeros(design.shape[1])
    best = _penalized(design, outcomes, found)
    for _ in range(steps):
        chances = scipy.special.expit(design @ found)
        weights = chances * (1 - chances)
        inverse = np.linalg.pinv(design.T @ (weights[:, None] * design))
        leverage = weights * np.sum(design @ inverse * design, axis=1)
        residuals = outcomes - chances + leverage * (0.5 - chances)
        step = inverse @ (design.T @ residuals)
        # Far from the solution Newton's step may be much too long.
        step /= max(1, np.abs(step).max())
        while np.abs(step).max() > _CONVERGED:
            reached = _penalized(design, outcomes, found + step)
            if reached >= best:
                found, best = found + step, reached
                break
            step /= 2
        else:
            break
    return found


_CONVERGED = 1e-7


def _penalized(design, outcomes, coefficients):
    """Returns the log-likelihood with Firth's penalty."""
    scores = design @ coefficients
    chances = scipy.special.expit(scores)
    weights = chances * (1 - chances)
    _, penalty = np.linalg.slogdet(design.T @ (weights[:, None] * design))
    return np.sum(outcomes * scores - np.logaddexp(0, scores)) + penalty / 2


def at_equal_values(values, survives, other):
    """Compares survival in two groups of images at equal values of a measure.

    The log-odds of survival are taken to be linear in the logarithm of the
    value, with one slope for both groups and an intercept for each; see
    `logistic`.

    Args:
        values: (n,) floats > 0.
        survives: (n,) bools.
        other: (n,) bools, True for the images of the second group.

    Returns:
        (log_odds, difference): how much larger the second group's log-odds of
        survival are, and how much larger its chance of survival is, averaged
        over the values of all images.
    """
    logs = np.log(values)
    logs = logs - logs.mean()
    found = logistic(np.column_stack([logs, other]), survives)
    one = scipy.special.expit(found[0] + found[1] * logs)
    two = scipy.special.expit(found[0] + found[1] * logs + found[2])
    return float(found[2]), float(np.mean(two - one))


def interval(function, count, *, resamples=400, seed=0):
    """Returns the 95 % interval of a statistic by the bootstrap.

    Args:
        function: a function of indices (n,) of images to a number or a tuple
            of numbers.
        count: number of images to draw from.
        resamples: number of samples, each of `count` images with replacement.
        seed: seed of the samples.

    Returns:
        An array (2,), or (2, k) for k numbers: the quantiles at 2.5 % and
        97.5 %. Samples in which a number is NaN are left out for this number;
        the limits are NaN where it always is.
    """
    random = np.random.default_rng(seed)
    found = np.array(
        [function(random.integers(0, count, count)) for _ in range(resamples)]
    )
    limits = [
        np.quantile(known, [0.025, 0.975]) if len(known) else [np.nan] * 2
        for column in found.reshape(resamples, -1).T
        for known in [column[~np.isnan(column)]]
    ]
    return np.transpose(limits).reshape(2, *found.shape[1:])


def binned(values, survives, edges):
    """Counts survivors in bins of a measure.

    Args:
        values: (n,) floats.
        survives: (n,) bools.
        edges: edges of the bins, ascending; a bin includes its lower edge.

    Returns:
        A list of (survivors, images), a pair of ints for each bin.

    Example:
        >>> binned([0.5, 1.0, 1.5], [False, True, True], [0, 1, 2])
        [(0, 1), (2, 2)]
    """
    values, survives = np.asarray(values), np.asarray(survives, bool)
    pairs = itertools.pairwise(edges)
    inside = [(values >= low) & (values < high) for low, high in pairs]
    return [(int(survives[one].sum()), int(one.sum())) for one in inside]
