"""Indicators of attack failure: signs that an attack failed to attack.

Pintor et al., 2022, "Indicators of Attack Failure: Debugging and Improving
Optimization of Adversarial Examples", section 3, defines six of them, which are
computed here for the examples that survived an attack. An indicator tells that
the accuracy under attack may be too high, for which reason, and how to evaluate
again. The paper looks at single examples; a row of results has an indicator if
it holds for a share of the survivors, `SHARE` or `RISING_SHARE`.

- `unavailable_gradients`: the gradient is zero.
- `unstable_loss`: the loss changes abruptly around the images.
- `silent_success`: the attack passed an adversarial point, and returned
  another.
- `incomplete_optimization`: the loss was still rising when the attack stopped.
- `transfer_failure`: the image fools the surrogate, and not the model.
- `unconstrained_failure`: the attack fails even without a budget, which is
  tried on some of the first chunk's survivors; the message says how many.

The counters come from `tfsam.attacks.recorder`, and the probes of the first
chunk from `tfsam.evaluation.attack_probes`. The functions are pure.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.attacks.check import TOLERANCE
from tfsam.evaluation.attack_batch import Found
from tfsam.registries import ATTACKS

Indicator = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Attack = Mapping[str, Any]

# The value of a row's `diagnosis` if the attack's path is unknown.
NOT_RECORDED = "not recorded"

# Part of the survivors for which an indicator must hold. The paper judges each
# example; a single one among many is not worth a remark, except for a silent
# success, which is an error of the verdict.
SHARE = 0.1

# Part of an example's gradients that are zero. The authors' code looks at the
# gradient of the image alone.
ZERO = 0.5

# Part of the rise of the loss, scaled to [0, 1], that falls into the last steps
# (see `recorder.WINDOW`). The authors' code has 5 %, the paper 1 %.
RISE = 0.05

# Part of the survivors whose loss must still rise. Some of those of a robust
# network do after the 10 steps of PGD, although more steps break no more.
RISING_SHARE = 0.25

# Mean relative change of the loss around an image. The paper has 10 %.
CHANGE = 0.1

# Part of the examples that an attack without a budget leaves unbroken. In the
# paper a single one is enough.
UNBROKEN = 0.25

# An attack that leaves so many of the correctly classified examples of the
# first chunk is tried without a budget.
SUSPICIOUS = 0.9

# The arrays of a chunk that hold counters: (stages, n).
_COUNTERS = ("path_gradients", "path_zeros", "path_nearest", "path_rise")


def counters(
    stages: int, n: int, surrogate: bool = False
) -> dict[str, np.ndarray]:
    """Returns the arrays of a chunk in which nothing is recorded yet.

    Args:
        stages: Number of stages of the attack.
        n: Number of examples in the chunk.
        surrogate: Whether a surrogate is attacked.

    Returns:
        Float arrays (stages, n), by name: `path_gradients`, `path_zeros`,
        `path_nearest` and `path_rise`; see `tfsam.attacks.recorder.Path`. For a
        surrogate also `fools_surrogate`, a bool array (n,).

    Example:
        >>> counters(1, 2)["path_nearest"].tolist()
        [[inf, inf]]
    """
    fills = (0.0, 0.0, np.inf, np.nan)
    found: dict[str, np.ndarray] = {
        name: np.full((stages, n), fill, np.float32)
        for name, fill in zip(_COUNTERS, fills, strict=True)
    }
    if surrogate:
        found["fools_surrogate"] = np.zeros(n, bool)
    return found


def recorded(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns the arrays of a chunk that belong to its diagnosis.

    Args:
        arrays: All arrays of the chunk at an epsilon.
    """
    names = (*_COUNTERS, "fools_surrogate", "unconstrained")
    return {name: arrays[name] for name in names if name in arrays}


def keep(
    arrays: Arrays, stage: int, chosen: np.ndarray, found: Found, attack: Any
) -> None:
    """Stores the path of a stage in the arrays of a chunk.

    Args:
        arrays: The arrays of `counters`, which are changed; an empty dict
            without a diagnosis.
        stage: Number of the stage, from 0.
        chosen: Int array (count,), the places of the attacked examples.
        found: The result of the stage for these examples.
        attack: The stage.
    """
    if not arrays:
        return
    if found.fools is not None:
        arrays["fools_surrogate"][chosen] |= found.fools
    path = found.path
    if path is None:
        return
    for name, values in zip(_COUNTERS, path, strict=True):
        if name != "path_rise" or ATTACKS.fact(attack, "climbs"):
            arrays[name][stage, chosen] = values


def of_row(
    attack: Attack,
    held: Sequence[Arrays],
    verdict: np.ndarray,
    epsilon: Any,
    natural: Sequence[Arrays] = (),
) -> list[Indicator] | str | None:
    """Returns the `diagnosis` of a row.

    Args:
        attack: The attack in the record's header, {`name`, `options`}.
        held: The arrays of the row's epsilon, chunk by chunk.
        verdict: Int8 array (n,); negative for survivors.
        epsilon: Radius of the balls, a number or a float array (n,).
        natural: The natural arrays of the chunks, with the probes of the first.

    Returns:
        A list of {`indicator`, `message`, `remedy`, `count`}, where `count` is
        the number of survivors for which the indicator holds; `NOT_RECORDED` if
        the attack took its gradients where they are not seen, or takes none,
        and the indicators that need no path found nothing; or None if the
        verdicts were measured without a diagnosis.
    """
    if not any("path_gradients" in arrays for arrays in held):
        return None
    if not all("path_gradients" in arrays for arrays in held):
        return NOT_RECORDED
    survives = verdict < 0
    found = {
        counter: np.concatenate([arrays[counter] for arrays in held], axis=1)
        for counter in _COUNTERS
    }
    free = all(bool(np.all(arrays["gradient_free"])) for arrays in held)
    recorded = bool(found["path_gradients"].any())
    if recorded:
        indicators = _of_path(attack, found, survives, epsilon, held, natural)
    else:
        indicators = [] if free else _of_probed_gradients(natural)
    if not free:
        indicators += _unstable(attack, natural)
    indicators += _transfer(held, survives)
    indicators += _unconstrained(attack, held)
    if recorded or not survives.any():
        return indicators
    if not indicators:
        return NOT_RECORDED
    message = (
        "The indicators that need the attack's path are unknown: it takes no "
        "gradient, or takes its gradients itself."
    )
    remedy = "Compare with an attack whose path is recorded, --attacks=apgd_ce."
    return [
        *indicators,
        _indicator("not_recorded", message, remedy, int(survives.sum())),
    ]


def _of_path(
    attack: Attack,
    found: Arrays,
    survives: np.ndarray,
    epsilon: Any,
    held: Sequence[Arrays],
    natural: Sequence[Arrays],
) -> list[Indicator]:
    """Returns the indicators that the path tells."""
    indicators = []
    taken = found["path_gradients"]
    total = int(survives.sum())
    still = (taken == 0) | (found["path_zeros"] >= ZERO * taken)
    still = survives & (taken > 0).any(axis=0) & still.all(axis=0)
    if _many(still, survives):
        replaced = sum(int(arrays["nan_gradients"]) for arrays in held)
        kind = "zero, or NaN and replaced by zero," if replaced else "zero"
        message = (
            f"The input gradient was {kind} in at least {_percent(ZERO)} of "
            f"the steps for {still.sum()} of the {total} survivors, so the "
            "attack could not move there."
        )
        indicators.append(_unavailable(message, int(still.sum())))
    within = found["path_nearest"] <= epsilon * (1 + TOLERANCE) + TOLERANCE
    passed = survives & within.any(axis=0)
    if passed.any() and not _transferred(held) and not _random(natural):
        message = (
            f"The attack passed an adversarial point of {passed.sum()} of the "
            f"{total} survivors, and returned another point."
        )
        command = _command(attack, "early_stop", True) or "--attacks=apgd_ce"
        remedy = f"Stop at the first adversarial point: {command}."
        indicators.append(
            _indicator("silent_success", message, remedy, int(passed.sum()))
        )
    climbed = np.isfinite(found["path_rise"]) & (taken > 0)
    rising = ~climbed | (found["path_rise"] > RISE)
    rising = survives & climbed.any(axis=0) & rising.all(axis=0)
    if _many(rising, survives, RISING_SHARE):
        message = (
            f"The margin of {rising.sum()} of the {total} survivors was still "
            f"rising in the last steps, by more than {_percent(RISE)} of its "
            "whole rise."
        )
        command = _command(attack, "steps", _more) or "--attacks=apgd_ce"
        remedy = f"Make more steps: {command}."
        indicators.append(
            _indicator(
                "incomplete_optimization", message, remedy, int(rising.sum())
            )
        )
    return indicators


def _of_probed_gradients(natural: Sequence[Arrays]) -> list[Indicator]:
    """Returns the indicator of gradients at the images of the first chunk."""
    probed = [arrays for arrays in natural if "probed" in arrays]
    unavailable = of_model(probed)
    if unavailable:
        return unavailable
    zeros = sum(int(arrays["zero_gradients"]) for arrays in probed)
    total = sum(int(arrays["probed"]) for arrays in probed)
    if not zeros or zeros < SHARE * total:
        return []
    message = f"The input gradient of {zeros} of {total} images is zero."
    return [_unavailable(message, zeros)]


def of_model(natural: Sequence[Arrays]) -> list[Indicator]:
    """Returns the indicators of a model that no gradient attack can attack.

    Args:
        natural: The natural arrays of the chunks, with the probes of the first.

    Returns:
        A list as in `of_row`, empty if the model was not diagnosed.
    """
    probed = [arrays for arrays in natural if "changes" in arrays]
    if not any(arrays["zero_gradients"] < 0 for arrays in probed):
        return []
    count = sum(int(arrays["probed"]) for arrays in probed)
    message = "No gradient flows from the logits to the pixels."
    return [_unavailable(message, count)]


def _unavailable(message: str, count: int) -> Indicator:
    remedy = (
        "If the loss is saturated, use another, --attacks=apgd_t; if a layer "
        "has no gradient, give it one by tfsam.bpda; and add an attack without "
        "gradients, --attacks=square."
    )
    return _indicator("unavailable_gradients", message, remedy, count)


def _unstable(attack: Attack, natural: Sequence[Arrays]) -> list[Indicator]:
    found = [arrays["changes"] for arrays in natural if "changes" in arrays]
    changes = np.concatenate([*found, np.zeros(0)])
    if not len(changes) or changes.mean() <= CHANGE:
        return []
    message = (
        f"The margin changes by {_percent(changes.mean())} on average when "
        "the pixels of an image change slightly at random, so a gradient says "
        "little about the points around."
    )
    command = _command(attack, "eot", 20) or "--attacks=pgd:eot=20"
    remedy = (
        f"Average the gradient over several draws, {command}; and add an "
        "attack without gradients, --attacks=square."
    )
    count = int((changes > CHANGE).sum())
    return [_indicator("unstable_loss", message, remedy, count)]


def _transferred(held: Sequence[Arrays]) -> bool:
    return any("fools_surrogate" in arrays for arrays in held)


def _random(natural: Sequence[Arrays]) -> bool:
    """Returns whether the model is random: one draw proves nothing."""
    return any(
        arrays["randomness"] > arrays.get("tolerance", 0.0)
        for arrays in natural
        if "randomness" in arrays
    )


def _transfer(held: Sequence[Arrays], survives: np.ndarray) -> list[Indicator]:
    if not _transferred(held):
        return []
    fools = np.concatenate([arrays["fools_surrogate"] for arrays in held])
    missed = survives & fools
    if not _many(missed, survives):
        return []
    message = (
        f"The images of {missed.sum()} of the {survives.sum()} survivors fool "
        "the surrogate and not the model."
    )
    remedy = (
        "Attack the model itself, without --surrogate, or choose a surrogate "
        "that is more like it."
    )
    return [_indicator("transfer_failure", message, remedy, int(missed.sum()))]


def _unconstrained(attack: Attack, held: Sequence[Arrays]) -> list[Indicator]:
    found = [arrays["unconstrained"] for arrays in held]
    tried, unbroken = np.sum(found, axis=0).tolist()
    if not tried or unbroken < UNBROKEN * tried:
        return []
    message = (
        f"Without a budget, when it may turn an image into any other, the "
        f"attack still leaves {unbroken} of {tried} images unbroken: the "
        "attack fails, whether or not the model is robust."
    )
    command = _command(attack, "steps", _more)
    more = f", more steps, {command}" if command else ""
    remedy = (
        f"Use another loss, --attacks=apgd_t{more}, tfsam.bpda for layers "
        "without a gradient, or an attack without gradients, --attacks=square."
    )
    return [_indicator("unconstrained_failure", message, remedy, int(unbroken))]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _many(
    holds: np.ndarray, survives: np.ndarray, share: float = SHARE
) -> bool:
    """Returns whether an indicator holds for enough of the survivors."""
    return bool(holds.any() and holds.sum() >= share * survives.sum())


def _more(steps: Any) -> int:
    """Returns a larger number of steps."""
    return max(10 * int(steps), 100) if int(steps) < 100 else 4 * int(steps)


def _command(
    attack: Attack, option: str, value: Any | Callable[[Any], Any]
) -> str | None:
    """Returns the flag that sets an option of an attack.

    Args:
        attack: The attack, {`name`, `options`, `surrogate`}.
        option: Name of the option.
        value: The new value, or a function of the old one.

    Returns:
        A flag such as "--attacks=pgd:steps=100"; None if the attack is not
        registered, or has no such option.
    """
    try:
        base, _ = ATTACKS.parse(attack["name"])
        parameter = ATTACKS.options(base)[option]
    except (KeyError, ValueError, ImportError):
        return None
    options = dict(attack["options"])
    if callable(value):
        old = options.get(option, parameter.default)
        if not isinstance(old, int):
            return None
        value = value(old)
    options = options | {option: value}
    text = "".join(f":{key}={value}" for key, value in options.items())
    transferred = attack.get("surrogate") is not None
    flag = "transfer_attacks" if transferred else "attacks"
    return f"--{flag}={base}{text}"


def _indicator(
    indicator: str, message: str, remedy: str, count: int
) -> Indicator:
    return {
        "indicator": indicator,
        "message": message,
        "remedy": remedy,
        "count": count,
    }


def suspicious(verdict: np.ndarray, natural: np.ndarray) -> np.ndarray:
    """Returns the survivors of an attack that broke suspiciously few.

    Args:
        verdict: Int8 array (n,), the verdicts; negative for survivors.
        natural: Int8 array (n,), the natural verdicts.

    Returns:
        Int array, the indices of the survivors; empty if the attack broke more
        than a tenth of the correctly classified examples.

    Example:
        >>> suspicious(np.array([-1, -1, 0]), np.array([-1, -1, 0])).tolist()
        [0, 1]
    """
    survivors = np.flatnonzero(verdict < 0)
    if len(survivors) < SUSPICIOUS * (natural < 0).sum():
        return survivors[:0]
    return survivors
