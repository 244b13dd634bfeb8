"""Signs of a misleading evaluation, each with its likely cause and remedy.

The checks follow AutoAttack's. They change no number, but tell when a number
should not be trusted.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import scipy.stats

from tfsam.evaluation.batch_dependence import LEVEL
from tfsam.registries import ATTACKS
from tfsam.support.rescaling import LEAST_RANGE

Flag = dict[str, str]
Arrays = Mapping[str, Any]

# The tolerance of the records of tfsam 0.1.0.
_OLD_TOLERANCE = 1e-4

NAN_CAUSE = (
    "Likely cause: a square root, norm, division or logarithm at 0, or an "
    "overflow of float16. Add a small constant inside it, such as "
    "sqrt(x**2 + 1e-12), and evaluate again."
)

# How the logits of a model came about that has none to give.
LOGARITHMS = "log_probabilities"

# The share of all examples that a weaker attack may break although stronger
# ones missed them.
_MISSED = 0.002
# A single such example occurs with any network.
_MISSED_AT_LEAST = 1


def of_model(
    found: Sequence[Arrays], gradients: Sequence[Arrays]
) -> list[Flag]:
    """Returns the warnings about a model.

    Args:
        found: Results of `model_probes.probe_outputs` and `seen_range`, a dict
            for each chunk that was examined.
        gradients: Results of `model_probes.probe_gradients`, a dict for each
            model that is attacked.

    Returns:
        A list of {`warning`, `message`}.
    """
    return [
        *_of_outputs(found),
        *_of_range(found),
        *_of_gradients(gradients),
    ]


def of_logits(found: Sequence[Arrays], kind: str | None) -> list[Flag]:
    """Returns the warnings about logits that are logarithms of probabilities.

    Args:
        found: The `gradients` of `of_model`.
        kind: How the logits came about; see `tfsam.models.inspect`.
    """
    if kind != LOGARITHMS:
        return []
    zeros = sum(max(int(f["zero_gradients"]), 0) for f in found)
    probed = sum(int(f["probed"]) for f in found)
    return [
        _warning(
            LOGARITHMS,
            "The model gives probabilities, from which its logits cannot be "
            "had, so that attacks use their logarithms. Where probabilities "
            f"are saturated, as for {zeros} of {probed} images, gradients "
            "vanish, and the model looks more robust than it is. Evaluate the "
            "model without its softmax, or rely on attacks without gradients, "
            "such as square.",
        )
    ]


def _of_range(found: Sequence[Arrays]) -> list[Flag]:
    seen = min((float(f.get("seen_range", np.inf)) for f in found), default=1)
    if seen >= LEAST_RANGE:
        return []
    return [
        _warning(
            "rescaled_pixels",
            "The network begins with a Rescaling layer, after which all pixels "
            f"lie within {seen:.2g} of each other. Likely cause: the network "
            "expects pixels in 0..255 and is given pixels in [0, 1]. Evaluate "
            "with the pixels that it was trained on, with bounds=(0, 255) and "
            "epsilon in the same units, or put Rescaling(255) in front of it. "
            "If it was trained on these pixels, ignore this warning.",
        )
    ]


def _of_gradients(found: Sequence[Arrays]) -> list[Flag]:
    warnings = []
    if any(f["zero_gradients"] < 0 for f in found):
        warnings.append(
            _warning(
                "no_gradients",
                "No gradient flows from the logits to the pixels. Likely "
                f"cause: {_cause(found)}an operation that is not "
                "differentiable, such as a cast to whole numbers (uint8), "
                "rounding or argmax, or a program outside TensorFlow. Gradient "
                "attacks fail on such a model; replace the gradient by "
                "tfsam.bpda, or rely on attacks without gradients only, such "
                "as square.",
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
                    f"is NaN or infinite{where}. {_nan_cause(found)}",
                )
            )
            break
    zeros = sum(max(int(f["zero_gradients"]), 0) for f in found)
    if zeros:
        warnings.append(
            _warning(
                "zero_gradients",
                f"{zeros} of {probed} images have an input gradient of zero. "
                f"Likely cause: {_cause(found)}logits so large that the "
                "softmax saturates, or quantised or clipped pixels or "
                "activations. Attacks on the cross-entropy, such as pgd and "
                "apgd_ce, appear weak on these images. Compare with pgd_dlr, "
                "apgd_t and square; replace the gradient of an operation that "
                "has none by tfsam.bpda.",
            )
        )
    return warnings


def _cause(found: Sequence[Arrays]) -> str:
    """Returns the beginning of a likely cause: the layer, if it is known."""
    layers = [str(f["culprit"]) for f in found if str(f.get("culprit", ""))]
    return f"in the layer {layers[0]}, " if layers else ""


def _nan_cause(found: Sequence[Arrays]) -> str:
    """Returns the likely cause of NaN, with the layer if it is known."""
    beginning = "Likely cause: "
    return NAN_CAUSE.replace(beginning, f"{beginning}{_cause(found)}", 1)


def _of_outputs(found: Sequence[Arrays]) -> list[Flag]:
    """Returns warnings about outputs that depend on more than the pixels."""
    warnings = []
    for f in found:
        tolerance = f.get("tolerance", _OLD_TOLERANCE)
        if f["randomness"] > tolerance:
            warnings.append(
                _warning(
                    "random_outputs",
                    "The model returns different logits when it is called "
                    "again. Likely cause: noise, dropout or another random "
                    "layer that is active in inference. Attack it with "
                    "attacks that average over draws, "
                    "--attacks=autoattack_rand or pgd:eot=20, and judge it by "
                    "several draws, --draws=20 (draws=20 in Python), or remove "
                    "the randomness. An attack without them follows a single "
                    "draw, so that its accuracy is too high.",
                )
            )
        if not f.get("repeatable", True):
            warnings.append(
                _warning(
                    "draws_not_repeatable",
                    "The random numbers of the model cannot be set, so another "
                    "run draws others and may give other verdicts. Likely "
                    "cause: a SavedModel, or a function that TensorFlow "
                    "compiled before. Draw them by keras.random with a "
                    "SeedGenerator, or by tf.random in a function that is not "
                    "compiled.",
                )
            )
        if depends_on_batch(f):
            warnings.append(
                _warning(
                    "batch_dependent",
                    "The logits of an example depend on the other examples of "
                    "its batch, so all accuracies depend on the order and the "
                    "number of the images. Likely cause: BatchNormalization "
                    "in training mode (a `call` that passes training=True), "
                    "or a mean or maximum over the whole batch. Call the layer "
                    "with training=False, or reduce within each example.",
                )
            )
    return warnings


def depends_on_batch(found: Arrays) -> bool:
    """Returns whether logits depend on the other examples of their batch.

    Args:
        found: A result of `model_probes.probe_outputs`, for a random model with
            the facts of `draws.facts`.
    """
    tolerance = found.get("tolerance", _OLD_TOLERANCE)
    difference = found.get("batch_dependence", 0.0)
    if found["randomness"] <= tolerance:
        return bool(difference > tolerance)
    if not found.get("together", True):  # Draws of one key differ.
        return True
    if "batch_p_value" in found:
        return bool(found["batch_p_value"] <= LEVEL)
    # Older records do not have it.
    return bool(difference > 3 * found["randomness"])


class Facts(NamedTuple):
    """The facts about an attack, or a stage of one, that warnings depend on.

    Attributes:
        gradient_free: Whether the attack uses no gradient of the network.
        follows_gradient: Whether it follows the gradient for several steps.
        targets: Number of wrong classes that it targets, 0 if it is untargeted.
    """

    gradient_free: bool
    follows_gradient: bool
    targets: int


def facts_of(attack: Any, gradients: float | None = None) -> Facts:
    """Returns the `Facts` of an attack, as declared or as measured.

    Args:
        attack: The attack. It may have the attributes `gradient_free`,
            `follows_gradient` and `targets` of `tfsam.attacks.Attack`.
        gradients: Mean number of gradients that it took for an example,
            infinity if they could not be counted, None if it did not run.
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


def of_classes(classes: int, targets: int) -> list[Flag]:
    """Returns the warnings about the number of classes.

    Args:
        classes: Number of classes of the model.
        targets: Largest number of wrong classes that an attack targets.
    """
    if targets <= classes - 1:
        return []
    message = (
        f"The model has {classes} classes, so the targeted attacks use all "
        f"{classes - 1} other classes instead of {targets}."
    )
    if classes < 4:
        message += (
            " The targeted difference of logits ratio needs four classes; the "
            "logit margin replaces it. This is not standard AutoAttack, so do "
            "not compare the accuracy with published ones."
        )
    return [_warning("few_classes", message)]


def of_accuracy(correct: np.ndarray, classes: int) -> list[Flag]:
    """Returns the warnings about natural accuracy.

    Args:
        correct: Bool array (n,), which examples are classified correctly.
        classes: Number of classes of the model.
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
            f"Natural accuracy is {accuracy:.3g}, which is close to guessing "
            f"among {classes} classes ({guessing:.3g}), so accuracies under "
            "attack mean nothing. Likely cause: pixels in another range than "
            "the network was trained on (0..1, 0..255, -1..1 or normalised), "
            "labels of other classes or in another order, or a network that is "
            "not trained. Check the pixels and the labels first.",
        )
    ]


def of_rows(rows: Iterable[Mapping[str, Any]]) -> list[Flag]:
    """Returns the warnings about gradients that were NaN or infinite.

    Args:
        rows: The `robust` rows of an attack.
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
            "the attack's input gradients were NaN or infinite and were "
            "replaced by zero, so the accuracy under attack means nothing. "
            f"{NAN_CAUSE}",
        )
    ]


def of_single_draws(rows: Iterable[Mapping[str, Any]]) -> list[Flag]:
    """Returns the warnings about gradients of single draws of a random model.

    Args:
        rows: The `robust` rows of an attack in a norm.
    """
    met = [row for row in rows if row.get("meaningless")]
    if not met:
        return []
    texts = ", ".join(row["epsilon_text"] for row in met)
    return [
        _warning(
            "single_draws",
            f"{met[0]['attack']}, {met[0]['norm']} {texts}: the attack follows "
            "the gradient of single draws of a random model, so the accuracy "
            "under attack means nothing. Attack the model with "
            "--attacks=autoattack_rand, or with a mean over draws, such as "
            "pgd:eot=20.",
        )
    ]


def of_verdicts(
    verdicts: Mapping[str, np.ndarray],
    stages: Mapping[str, Sequence[tuple[str, Facts]]],
    text: str,
) -> list[Flag]:
    """Returns the warnings about weak attacks that break what strong ones miss.

    Args:
        verdicts: For each attack, its verdicts at an epsilon, int8 (n,).
        stages: For each attack, the name and the `Facts` of its stages.
        text: Norm and epsilon, for the message.

    Returns:
        A list of {`warning`, `message`}, one for each name of a stage. Each
        stage is judged alone, so that attacks of the same name are not taken
        for one.
    """
    by_gradient: list[np.ndarray] = []
    without: list[tuple[str, np.ndarray]] = []
    for name, found in verdicts.items():
        for number, (stage, facts) in enumerate(stages[name], 1):
            if facts.gradient_free:
                without.append((stage, found == number))
            elif facts.follows_gradient:
                by_gradient.append(found == number)
    if not by_gradient:
        return []
    broken = np.any(by_gradient, axis=0)
    most: dict[str, int] = {}
    for stage, found in without:
        missed = int((found & ~broken).sum())
        most[stage] = max(missed, most.get(stage, 0))
    warnings = []
    for stage, missed in most.items():
        if missed > max(_MISSED * len(broken), _MISSED_AT_LEAST):
            warnings.append(
                _warning(
                    "gradients_masked",
                    f"{text}: {stage}, which uses no gradient, broke {missed} "
                    "examples that the gradient attacks missed. Likely cause: "
                    "masked gradients, which are zero, shattered, or belong to "
                    "another function than the forward pass. The accuracy "
                    "under attack is an upper bound that may be far too high. "
                    "Evaluate with autoattack, or replace the gradients of the "
                    "layers that mask them by tfsam.bpda.",
                )
            )
    return warnings


def _warning(name: str, message: str) -> Flag:
    return {"warning": name, "message": message}
