"""Signs that an evaluation deceives, each with its likely cause.

The checks that AutoAttack made customary. None of them changes a number: they
say when not to believe one.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats
import tensorflow as tf

from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import traced
from tfsam.parts import ATTACKS
from tfsam.support.layers import LEAST_RANGE
from tfsam.support.layers import flattened
from tfsam.support.layers import rescaled

# The relative rounding error of a dtype, and what was tolerated in records of
# tfsam 0.1.0.
_UNITS = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}
_OLD_TOLERANCE = 1e-4

NAN_CAUSE = (
    "Likely cause: a square root, norm, division or logarithm at 0, or an "
    "overflow of float16. Add a small constant inside of it, such as "
    "sqrt(x**2 + 1e-12), then evaluate again."
)

# Of all examples: what a weaker attack may find that stronger ones missed.
_MISSED = 0.002
# One example more happens on any network.
_MISSED_AT_LEAST = 1


def probe_outputs(function, x):
    """Runs a model on one batch twice, and on its examples beside others.

    An example keeps its place when its neighbours change, so that the hardware
    rounds its logits as before.

    Args:
        function: the function of a `load_logits`, from pixels to logits.
        x: float array (batch, ...).

    Returns:
        A dict of arrays: `randomness`, the largest difference of two runs;
        `batch_dependence`, the largest difference that other neighbours make;
        `tolerance`, the largest difference that may be rounding.
    """
    first, second = (
        tf.convert_to_tensor(outputs).numpy()
        for outputs in function.in_turn([tf.constant(x)] * 2)
    )
    dependence = 0.0
    for examples, places, batch in _with_other_neighbours(x):
        try:
            outputs = tf.convert_to_tensor(function(tf.constant(batch)))
        except Exception:
            if len(batch) == len(x):
                raise
            continue  # The model takes one example at a time, and no two.
        found = _difference(outputs.numpy()[places], first[examples])
        dependence = max(dependence, found)
    return {
        "randomness": np.array(_difference(first, second)),
        "batch_dependence": np.array(dependence),
        "tolerance": np.array(_tolerance(first, _unit(function, first))),
    }


def _with_other_neighbours(x):
    """Yields batches in which some examples of x have other neighbours.

    Args:
        x: float array (batch, ...).

    Yields:
        (examples, places, batch): numbers of examples of x, and their places in
        the batch: the same, in a batch as large as x, but for an x of one
        example.
    """
    low, high = x.min(), x.max()
    # Within the range of the pixels, and unlike what is in the data.
    mirrored = np.clip(low + (high - x), low, high)
    if len(x) == 1:
        yield [0], [0], np.concatenate([x, mirrored])
        yield [0], [1], np.concatenate([mirrored, x])
        return
    kept = np.arange(0, len(x), 2)
    batch = mirrored.copy()
    batch[kept] = x[kept]
    yield kept, kept, batch
    means = x.reshape(len(x), -1).mean(axis=1)
    for place in {int(means.argmin()), int(means.argmax())}:
        yield [place], [place], np.repeat(x[place : place + 1], len(x), axis=0)


def _difference(outputs, other):
    """Returns the largest difference, infinity where there is a NaN."""
    difference = np.abs(outputs.astype(np.float64) - other.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max())


def _tolerance(outputs, unit):
    """Returns the largest difference of logits that may be rounding.

    It is relative to how far an example's logits lie apart, which decides what
    a difference means, and to their size, by which they are rounded.

    Args:
        outputs: float array (batch, classes), logits.
        unit: relative rounding error of the arithmetic.
    """
    outputs = outputs.astype(np.float64)
    spread = np.median(outputs.max(axis=1) - outputs.min(axis=1))
    return 1e-4 * spread + 10 * unit * np.abs(outputs).max()


def _unit(function, outputs):
    """Returns the rounding unit of a model's coarsest arithmetic."""
    network = getattr(function, "model", None)
    layers = [] if network is None else flattened(network)
    names = {layer.compute_dtype for layer in layers} | {outputs.dtype.name}
    return max(_UNITS.get(name, _UNITS["float32"]) for name in names)


def seen_range(function, x):
    """Returns the range of the pixels at the first layer with weights.

    Args:
        function: the function of a `load_logits`, from pixels to logits.
        x: float array (n, ...), the images.

    Returns:
        A float, the range of x behind the network's leading `Rescaling` layers;
        infinity where it has none, or is no Keras model.
    """
    network = getattr(function, "model", None)
    return rescaled(network, float(x.max() - x.min()))


def probe_gradients(logits, x, y, right, traceable, pushed):
    """Looks at the gradients that attacks will follow.

    Args:
        logits: the `Logits` that is attacked, which counts.
        x: float array (batch, ...).
        y: their labels.
        right: bool array (batch,), which of them to look at.
        traceable: whether `tf.function` can trace the model.
        pushed: float array (batch, ...), x with the pixels at the bounds that
            an attack can push there; see `pushed_to_bounds`.

    Returns:
        A dict of arrays: `zero_gradients`, how many images have a gradient of
        zero, -1 where the model has none; `nan_gradients` and
        `nan_gradients_at_bounds`, how many images of x and of `pushed` have one
        that is NaN or infinite; `probed`, how many were looked at.
    """
    gradient = input_gradient(logits)
    if traceable:
        gradient = traced(gradient)
    active, labels = tf.constant(right), tf.constant(y)
    counts = []
    try:
        for images in (pushed, x):
            logits.count_passes()
            slopes = gradient(tf.constant(images), labels, active)[0].numpy()
            counts.append(logits.counted().nonfinite)
    except Exception:  # Whatever a model of somebody else's raises.
        zeros, counts = -1, [0, 0]
    else:
        # NaN counts as zero in the slopes.
        zeros = sum(not slope.any() for slope in slopes[right]) - counts[1]
        zeros = max(zeros, 0)
    return {
        "zero_gradients": np.array(zeros),
        "nan_gradients": np.array(counts[1]),
        "nan_gradients_at_bounds": np.array(counts[0]),
        "probed": np.array(right.sum()),
    }


def look_at_slopes(logits, x, y):
    """Counts non-finite gradients for an attack that does not count its own.

    Args:
        logits: a `Logits` that counts.
        x: float array (batch, ...).
        y: their labels.
    """
    input_gradient(logits)(tf.constant(x), tf.constant(y))


def pushed_to_bounds(x, bounds, reach):
    """Returns images whose pixels near a bound lie on it, as attacks push them.

    Args:
        x: float array (batch, ...).
        bounds: (lowest, highest) value of x, or None, which returns x.
        reach: how far an attack pushes a pixel, >= 0.
    """
    if bounds is None:
        return x
    low, high = (np.asarray(bound, x.dtype) for bound in bounds)
    reach = min(reach, float(high - low) / 2)
    pushed = np.where(
        x <= low + reach, low, np.where(x >= high - reach, high, x)
    )
    return pushed.astype(x.dtype)


def of_model(found):
    """Warnings about a model.

    Args:
        found: a list of what `probe_outputs` and `probe_gradients` returned, a
            dict a chunk that was looked at.

    Returns:
        A list of {`warning`, `message`}.
    """
    warnings = _of_outputs(found)
    seen = min((float(f.get("seen_range", np.inf)) for f in found), default=1)
    if seen < LEAST_RANGE:
        warnings.append(
            _warning(
                "rescaled_pixels",
                "the network begins with a Rescaling layer, behind which the "
                f"pixels lie within {seen:.2g} of each other. Likely cause: a "
                "network for pixels in 0..255 that is given pixels in [0, 1]. "
                "Give it the pixels that it was trained on (bounds=(0, 255), "
                "and epsilon in their units), or put Rescaling(255) in front. "
                "If it was trained on these pixels, all is well.",
            )
        )
    if any(f["zero_gradients"] < 0 for f in found):
        warnings.append(
            _warning(
                "no_gradients",
                "no gradient flows from the logits to the pixels. Likely "
                "cause: a step that cannot be differentiated, or a program "
                "that is not TensorFlow's. Gradient attacks fail; believe "
                "Square only.",
            )
        )
    probed = sum(int(f["probed"]) for f in found)
    for name, where in (
        ("nan_gradients", ""),
        ("nan_gradients_at_bounds", " once pixels are pushed to their bounds"),
    ):
        count = sum(int(f.get(name, 0)) for f in found)
        if count:
            warnings.append(
                _warning(
                    "nan_gradients",
                    f"{count} of {probed} images have an input gradient that "
                    f"is NaN or infinite{where}. {NAN_CAUSE}",
                )
            )
            break
    zeros = sum(max(int(f["zero_gradients"]), 0) for f in found)
    if zeros:
        warnings.append(
            _warning(
                "zero_gradients",
                f"{zeros} of {probed} images have a gradient of zero. Likely "
                "cause: logits so large that the softmax saturates, or "
                "quantised or clipped activations. Cross-entropy attacks (pgd, "
                "apgd_ce) look weak there; compare with pgd_dlr, apgd_t and "
                "square.",
            )
        )
    return warnings


def _of_outputs(found):
    """Returns warnings about outputs that depend on more than the pixels."""
    warnings = []
    for f in found:
        tolerance = f.get("tolerance", _OLD_TOLERANCE)
        if f["randomness"] > tolerance:
            warnings.append(
                _warning(
                    "random_outputs",
                    "the model gives other logits when it is called again. "
                    "Likely cause: noise, dropout or another random layer at "
                    "inference. Attacks that follow one draw of the noise "
                    "overrate it: average over draws, or take the randomness "
                    "out.",
                )
            )
        # Noise makes a difference beside other neighbours, too.
        noise = max(tolerance, 3 * f["randomness"])
        if f.get("batch_dependence", 0.0) > noise:
            warnings.append(
                _warning(
                    "batch_dependent",
                    "an example's logits depend on the other examples of its "
                    "batch. Likely cause: BatchNormalization in training mode "
                    "(a `call` that passes training=True), or a mean or a "
                    "maximum over the whole batch. All accuracies depend on "
                    "the order and the number of the images then. Call the "
                    "layer with training=False, or reduce within an example.",
                )
            )
    return warnings


class Facts(NamedTuple):
    """The facts about an attack, or a stage of one, that warnings depend on.

    Attributes:
        gradient_free: whether it takes no gradient of the network.
        follows_gradient: whether it follows the gradient for several steps.
        targets: number of wrong classes that it goes for, 0 if untargeted.
    """

    gradient_free: bool
    follows_gradient: bool
    targets: int


def facts_of(attack, gradients=None):
    """Returns the `Facts` of an attack: as it declares them, or as measured.

    Args:
        attack: a callable, which may have the attributes `gradient_free`,
            `follows_gradient` and `targets` of `tfsam.attacks.Attack`.
        gradients: how many gradients of an example it took on average, infinity
            if they could not be counted, None if it was not run.
    """
    free = ATTACKS.fact(attack, "gradient_free")
    if free is None:
        free = gradients == 0
    follows = ATTACKS.fact(attack, "follows_gradient")
    if follows is None:
        follows = gradients is not None and gradients >= 2
    targets = ATTACKS.fact(attack, "targets")
    return Facts(
        gradient_free=bool(free),
        follows_gradient=bool(follows and not free),
        targets=targets if isinstance(targets, int) else 0,
    )


def of_classes(classes, targets):
    """Warnings about the number of classes.

    Args:
        classes: of the model.
        targets: the largest number of wrong classes that an attack goes for.
    """
    if targets <= classes - 1:
        return []
    message = (
        f"the model has {classes} classes: the targeted attacks go for all "
        f"{classes - 1} others instead of {targets}"
    )
    if classes < 4:
        message += (
            "; the targeted difference of logits ratio needs four, the logit "
            "margin stands in for it: this is not standard AutoAttack"
        )
    return [_warning("few_classes", message + ".")]


def of_accuracy(correct, classes):
    """Returns warnings about natural accuracy.

    Args:
        correct: bool array (n,), which examples are classified correctly.
        classes: of the model.
    """
    guessing = 1 / classes
    near = min(2 * guessing, guessing + 0.12 * (1 - guessing))
    accuracy = correct.mean()
    # A few wrong examples may be bad luck.
    decent = (1 + guessing) / 2
    luck = scipy.stats.binom.cdf(correct.sum(), len(correct), decent)
    if accuracy > near or luck > 0.01:
        return []
    return [
        _warning(
            "low_accuracy",
            f"natural accuracy is {accuracy:.3g}, near guessing among "
            f"{classes} classes ({guessing:.3g}): accuracies under attack mean "
            "nothing. "
            "Likely cause: pixels in another range than the network was "
            "trained on (0..1, 0..255, -1..1 or normalised), labels of other "
            "classes or in another order, or a network that is not trained.",
        )
    ]


def of_rows(rows):
    """Returns warnings about rows with gradients that were not finite.

    Args:
        rows: of one attack, its `robust` rows.
    """
    met = [row for row in rows if row.get("nan_gradients")]
    if not met:
        return []
    texts = ", ".join(row["epsilon_text"] for row in met)
    count = max(row["nan_gradients"] for row in met)
    return [
        _warning(
            "nan_gradients",
            f"{met[0]['attack']}, {met[0]['norm']} {texts}: up to {count} of "
            "the attack's input gradients were NaN or infinite, and zero was "
            "taken in their place: the accuracy under attack means nothing. "
            f"{NAN_CAUSE}",
        )
    ]


def of_verdicts(verdicts, stages, text):
    """Warnings about attacks that find what better ones missed.

    Args:
        verdicts: a dict from the attack to its verdicts, int8 arrays (n,), of
            one epsilon.
        stages: a dict from the attack to its stages, a pair of the name and
            the `Facts` of each.
        text: norm and epsilon, for the message.
    """
    by_gradient: list = []
    without: dict = {}
    for name, found in verdicts.items():
        for number, (stage, facts) in enumerate(stages[name], 1):
            if facts.gradient_free:
                without.setdefault(stage, found == number)
                without[stage] = without[stage] | (found == number)
            elif facts.follows_gradient:
                by_gradient.append(found == number)
    if not by_gradient:
        return []
    broken = np.any(by_gradient, axis=0)
    warnings = []
    for stage, found in without.items():
        missed = int((found & ~broken).sum())
        if missed > max(_MISSED * len(broken), _MISSED_AT_LEAST):
            warnings.append(
                _warning(
                    "gradients_masked",
                    f"{text}: {stage}, which uses no gradient, broke {missed} "
                    "examples that the gradient attacks missed. Likely cause: "
                    "gradients that are masked (zero, shattered, or of "
                    "another function than the forward pass). The robust "
                    "accuracy is an upper bound that may be far off.",
                )
            )
    return warnings


def _warning(name, message):
    return {"warning": name, "message": message}
