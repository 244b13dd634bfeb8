"""The settings of training alone, and the checks of its parts and flags."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tfsam import registries
from tfsam.runs import methods
from tfsam.runs import parts
from tfsam.runs import presets

# The part of each batch that is drawn from --mix.
_MIXED = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The settings that training alone uses.

    Each attribute is the flag of the same name; `tfsam --help` describes them.
    A setting that the method does not use is None.
    """

    method: str
    # The parts that the method is made of.
    perturb_inputs: str | None
    perturb_weights: str | None
    objective: str | None
    optimizer: str
    average: str | None
    # Options of the parts.
    epsilon: float | None
    norm: str | None
    steps: int | None
    step_size: float | None
    attack_loss: str | None
    rho: float | None
    eta: float | None
    adaptive: str | None
    ascent_steps: int | None
    alpha: float | None
    rho_min: float | None
    every: int | None
    weight_fraction: float | None
    sample_fraction: float | None
    sparsity: float | None
    mask: str | None
    refresh_every: int | None
    gamma: float | None
    beta: float | None
    inner_steps: int | None
    nesterov: bool | None
    decay_exclude: str | None
    clip_norm: float | None
    average_momentum: float | None
    average_start: int | None
    # Options of the model.
    attack_mode: str | None
    epsilon_warmup: int | None
    sub_batches: int | None
    collapse_drop: float | None
    sharpness: str
    # The recipe.
    network: str
    weights: str | None
    freeze: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float | None
    weight_decay: float | None
    schedule: str
    warmup_epochs: float
    label_smoothing: float
    augment: bool | tuple[str, ...]
    mix: str | None
    mix_fraction: float | None
    precision: str
    limit_train: int | None
    # Validation and checkpoints.
    select: str
    validate_every: int | None
    validation_images: int | None
    validation_steps: int | None
    checkpoint_steps: int | None

    @property
    def holds_out(self) -> bool:
        """Whether training images are held out for validation."""
        return self.select != "last" or self.validate_every is not None

    @property
    def replays(self) -> int:
        """Number of the optimizer's steps for a batch; see `parts.replays`."""
        return parts.replays(self.perturb_inputs)

    def build(self, part: str, *arguments: Any, **others: Any) -> Any:
        """Makes a part of the method; see `parts.build`.

        Args:
            part: a key of `parts.PARTS`.
            *arguments: positional arguments of its constructor.
            **others: more arguments, used where no setting gives them.
        """
        return parts.build(part, vars(self), *arguments, **others)

    def passes(self) -> float:
        """Returns the cost of a training step; see `parts.passes`."""
        return parts.passes(vars(self))


def fill_parts(
    values: dict[str, Any], given: Mapping[str, Any], row: methods.Method
) -> list[str]:
    """Fills in the parts of a method and their options.

    Args:
        values: the value of each flag; the parts and their options are set.
        given: the values of the flags that are given.
        row: the method.

    Returns:
        The flags that are given and that the parts do not use.
    """
    for part in parts.PARTS:
        spec = values[part] if part in given else _default_part(part, values)
        values[part] = None if spec == "none" else spec
    _fill_rate(values, given)
    chosen = {part: values[part] for part in parts.PARTS}
    defaults = parts.defaults(chosen, row.settings)
    in_specs = parts.named(chosen, given)  # looksam:every=5.
    for flag in parts.SETTINGS:
        value = in_specs.get(flag, values[flag])
        if flag not in defaults:
            values[flag] = None
        else:
            values[flag] = defaults[flag] if value is None else value
    # A step size that a paper gives belongs to the paper's epsilon.
    recipe = presets.PRESETS[values["preset"]]
    paper = recipe if "step_size" in recipe else row.settings
    free = not {"step_size"} & {*given, *in_specs}
    if free and values["epsilon"] != paper.get("epsilon"):
        values["step_size"] = None
    if "epochs" not in given:  # Free training takes as many steps in fewer.
        replays = parts.replays(values["perturb_inputs"])
        values["epochs"] = math.ceil(values["epochs"] / replays)
    unused = [f for f in parts.SETTINGS if f in given and f not in defaults]
    holds_out = values["select"] != "last" or values["validate_every"]
    if not holds_out:
        unused += sorted({"validation_images", "validation_steps"} & {*given})
    if values["mix"] is None:
        unused += {"mix_fraction"} & {*given}
    elif values["mix_fraction"] is None:
        values["mix_fraction"] = _MIXED
    if values["perturb_weights"] is None and "sharpness" in given:
        unused.append("sharpness")
    return unused


def _default_part(part: str, values: Mapping[str, Any]) -> str | None:
    """Returns the part that a method and the preset's recipe have.

    The optimizer and the average of a preset are for every method, its other
    parts for its own method.
    """
    recipe = presets.PRESETS[values["preset"]]
    own = values["method"] == recipe["method"]
    if recipe.get(part) and (own or part in ("optimizer", "average")):
        return str(recipe[part])
    found: str | None = getattr(methods.method(values["method"]), part)
    return found


def _fill_rate(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Replaces a preset's rates that are for an optimizer of another kind.

    A learning rate that suits SGD lets Adam diverge, so that optimizers of
    another kind than the preset's have the defaults of their constructors.
    """
    registry = registries.OPTIMIZERS
    recipe = presets.PRESETS[values["preset"]].get("optimizer", "sgd")
    kinds = {
        getattr(registry.load(registry.parse(spec)[0]), "is_sgd", False)
        for spec in (recipe, values["optimizer"])
    }
    if len(kinds) == 1:
        return
    known = registry.options(registry.parse(values["optimizer"])[0])
    for name in ("learning_rate", "momentum", "weight_decay"):
        if name not in given:
            values[name] = known[name].default if name in known else None


def check_parts(training: Training) -> None:
    """Makes each part of a method once, which checks its options.

    Args:
        training: the settings.

    Raises:
        ValueError: if an option is out of its range, or a part is missing.
    """
    from tfsam.attacks.threat_model import check_scale

    _check_attack_of(training)
    for part in parts.PARTS:
        if part == "optimizer":  # It needs a learning rate schedule.
            continue
        start = {"start_epoch": 0} if part == "average" else {}
        check_scale(training.build(part, **start))


def _check_attack_of(training: Training) -> None:
    """Refuses an objective that needs an attack where there is none."""
    spec, registry = training.objective, registries.OBJECTIVES
    if spec is None or training.perturb_inputs is not None:
        return
    name, _ = registry.parse(spec)
    if not registry.fact(registry.load(name), "needs_attack"):
        return
    remedy = "add --perturb_inputs=pgd and --epsilon"
    if name in methods.methods() and name != training.method:
        remedy += f", or use --method={name}"
    raise ValueError(
        f"{name} needs an attack: {remedy}. Received: objective={spec}, "
        "perturb_inputs=None"
    )
