"""Signs that an evaluation deceives, each with its likely cause.

The checks that AutoAttack made customary. None of them changes a number: they
say when not to believe one.
"""

import numpy as np
import tensorflow as tf

from tfsam.attacks.logits import input_gradient
from tfsam.attacks.logits import traced

_TARGETED = ("autoattack", "apgd_t", "fab_t", "fabt", "pgd_t")

# Attacks that follow gradients for long enough to be compared with.
_BY_GRADIENT = ("apgd", "fab", "fmn", "pgd", "cleverhans_pgd")

# Of all examples: what a weaker attack may find that stronger ones missed.
_MISSED = 0.002


def probe(logits, x, y, right, traceable):
    """Runs the model twice, and looks at its gradients.

    Args:
        logits: function from pixels to logits.
        x: float array (batch, ...).
        y: their labels.
        right: bool array (batch,), which of them to look at.
        traceable: whether `tf.function` can trace the model.

    Returns:
        A dict of arrays: `randomness`, the largest difference of two runs;
        `zero_gradients`, how many images have a gradient of zero, -1 where the
        model has none; `probed`, how many were looked at.
    """
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    first, second = (tf.convert_to_tensor(logits(x)).numpy() for _ in range(2))
    gradient = input_gradient(logits)
    if traceable:
        gradient = traced(gradient)
    try:
        slopes = gradient(x, y)[0].numpy()
    except Exception:  # Whatever a model of somebody else's raises.
        zeros = -1
    else:
        zeros = sum(not slope.any() for slope in slopes[right])
    return {
        "randomness": np.abs(first - second).max(),
        "zero_gradients": np.array(zeros),
        "probed": np.array(right.sum()),
    }


def of_model(found):
    """Warnings about a model.

    Args:
        found: a list of what `probe` returned.

    Returns:
        A list of {`warning`, `message`}.
    """
    warnings = []
    if max((f["randomness"] for f in found), default=0) > 1e-4:
        warnings.append(
            _warning(
                "random_outputs",
                "the model gives other logits when it is asked again. Likely "
                "cause: noise, dropout or batch statistics at inference. "
                "Attacks that follow one draw of the noise overrate it: "
                "average over draws, or take the randomness out.",
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
    zeros = sum(max(int(f["zero_gradients"]), 0) for f in found)
    if zeros:
        probed = sum(int(f["probed"]) for f in found)
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


def of_classes(classes, names):
    """Warnings about the number of classes.

    Args:
        classes: of the model.
        names: the attacks asked for.
    """
    targeted = [n for n in names if n.lower() in _TARGETED]
    if classes >= 10 or not targeted:
        return []
    message = (
        f"the model has {classes} classes: the targeted attacks go for all "
        f"{classes - 1} others instead of 9"
    )
    if classes < 4:
        message += (
            "; the targeted difference of logits ratio needs four, the logit "
            "margin stands in for it: this is not standard AutoAttack"
        )
    return [_warning("few_classes", message + ".")]


def of_verdicts(verdicts, stages, text):
    """Warnings about attacks that find what better ones missed.

    Args:
        verdicts: a dict from the attack to its verdicts, int8 arrays (n,), of
            one epsilon.
        stages: a dict from the attack to its stages: the name of each, and
            whether it is `gradient_free`.
        text: norm and epsilon, for the message.
    """
    by_gradient: list = []
    without: dict = {}
    for name, found in verdicts.items():
        for number, (stage, free) in enumerate(stages[name], 1):
            if free:
                without.setdefault(stage, found == number)
                without[stage] = without[stage] | (found == number)
            # Of an attack that was given as a class the name is the class's.
            elif stage.lower().startswith(_BY_GRADIENT):
                by_gradient.append(found == number)
    if not by_gradient:
        return []
    broken = np.any(by_gradient, axis=0)
    warnings = []
    for stage, found in without.items():
        missed = int((found & ~broken).sum())
        if missed > _MISSED * len(broken):
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
