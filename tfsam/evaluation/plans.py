"""Plans of evaluations: the examples, the attacks, and their settings."""

import functools
import inspect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsam import attacks as registry
from tfsam.attacks.context import Context
from tfsam.data import elements
from tfsam.data import examples
from tfsam.data import rows
from tfsam.data.rows import Pixels
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import Budgets
from tfsam.evaluation.budgets import ascending
from tfsam.registries import ATTACKS
from tfsam.support.factories import check_options
from tfsam.support.labels import class_labels
from tfsam.support.labels import several_labels
from tfsam.support.pixels import inside_bounds
from tfsam.support.several_inputs import Inputs
from tfsam.support.several_inputs import inputs_of
from tfsam.support.validators import Bounds
from tfsam.support.validators import bounds_text
from tfsam.support.validators import check_interval


class Data(NamedTuple):
    """The examples of an evaluation, already checked.

    Attributes:
        x: Float array (n, ...), the images, or `Rows` of them.
        y: Labels in the form that attacks take: class numbers, int64 (n,), or
            distributions over the classes (n, classes); or several labels of
            an example, int64 (n, labels).
        labels: Class numbers, int64 (n,); with several labels, `y`.
        ends: Float array (2,), the lowest and the highest value of x.
        inputs: The structure of several inputs, of which x is the one that is
            attacked; None for a single one.
        others: The other inputs, arrays (n, ...).
    """

    x: Pixels
    y: np.ndarray
    labels: np.ndarray
    ends: np.ndarray
    inputs: Inputs | None = None
    others: tuple[np.ndarray, ...] = ()

    def given(self, indices: Any) -> tuple[tf.Tensor, ...]:
        """Returns the other inputs of some examples.

        Args:
            indices: Int array (count,), or a slice.
        """
        return tuple(tf.constant(each[indices]) for each in self.others)


class Entry(NamedTuple):
    """An attack of an evaluation.

    Attributes:
        name: Name of the attack in results.
        options: The options, by name, to be shown in results.
        make: Makes the attack from `epsilon`, `norm` and `bounds`, which are
            given by keyword.
        source: Origin of the name: "registry", "factory", or "named" if the
            user gave it.
        transfer: Whether a surrogate is attacked in place of the model.
    """

    name: str
    options: dict[str, Any]
    make: Callable[..., Any]
    source: str = "registry"
    transfer: bool = False


class Plan(NamedTuple):
    """Everything that a verdict depends on, except for the model.

    Attributes:
        data: The examples.
        entries: The attacks.
        budgets: The epsilons of each norm, in the order of the results.
        bounds: (lowest, highest) value of a pixel, or None.
        seed: Integer >= 0.
        size: Number of examples in a chunk, which are attacked together.
        warm_start: Whether attacks start from the image of the smaller epsilon.
        keep_images: Whether the record holds the adversarial images.
        draws: The `Draws` by which a random model is judged, None for a single
            call of another model.
        diagnose: Whether the paths of attacks are recorded.
        bisect: Whether sweeps over epsilons are made by bisection.
        factors: Float array (n,): the radius of the ball of each example, in
            units of epsilon. None means 1 for all.
        goal: The goal of the attacks; see `tfsam.evaluation.goals`.
    """

    data: Data
    entries: list[Entry]
    budgets: Budgets
    bounds: Bounds
    seed: int
    size: int
    warm_start: bool
    keep_images: bool
    draws: Any = None
    diagnose: bool = False
    bisect: bool = False
    factors: np.ndarray | None = None
    goal: Any = None

    def epsilons(self, norm: str) -> list[float]:
        """Returns the epsilons of a norm, ascending, without duplicates."""
        return ascending(self.budgets)[norm]

    def radii(self, epsilon: Any, indices: np.ndarray) -> Any:
        """Returns the radii of the balls of some examples.

        Args:
            epsilon: The epsilon of the budget, or that of each example.
            indices: Int array (count,), the indices of the examples.

        Returns:
            A float array (count,), or `epsilon` itself if it is the radius of
            all balls.
        """
        if self.factors is None:
            return epsilon
        return epsilon * self.factors[indices]

    def context(self, indices: np.ndarray) -> Context:
        """Returns the context of some examples, as the attacked model needs it.

        Args:
            indices: Int array (count,).
        """
        context: Context = self.goal.context(indices)
        return context._replace(inputs=self.data.given(indices))

    def made(self, entry: Entry, budget: Budget) -> Any:
        """Makes an attack for a budget.

        Args:
            entry: The attack.
            budget: The budget.
        """
        return entry.make(**budget._asdict(), bounds=self.bounds)


def entries_of(attacks: Any) -> list[Entry]:
    """Converts the argument `attacks` of `evaluate` to a list of entries.

    Args:
        attacks: A list of attacks, or a single attack.

    Raises:
        ValueError: If `attacks` is not a list of attacks, or an attack or one
            of its options is unknown.
        ImportError: If an attack needs a library that is not installed.
    """
    if isinstance(attacks, str) or callable(attacks):
        attacks = [attacks]
    if not isinstance(attacks, Iterable):
        raise ValueError(
            "attacks must be a list of names, (name, options) or factories. "
            f"Received: attacks={attacks}"
        )
    return [_entry(attack) for attack in attacks]


def _entry(given: Any) -> Entry:
    """Makes an `Entry` from a name, a factory, or either with options."""
    attack, name, options = _parted(given)
    # An attack that is already made has the wrong epsilon.
    made = isinstance(attack, registry.Attack)
    if made or not isinstance(options, Mapping):
        attack = None
    if isinstance(attack, str):
        return _registered(attack, options)
    if not callable(attack):
        raise ValueError(
            "an attack must be a name, (name, {option: value}) or a factory, "
            "such as a class of attacks, which is called with the epsilon. "
            f"Received: {given}"
        )
    _check_options(attack, options)
    function = getattr(attack, "func", attack)  # For a functools.partial.
    known_as = getattr(function, "__name__", type(function).__name__)
    _check_ball(attack, name or known_as)
    fixed = dict(getattr(attack, "keywords", None) or {})

    def make(**arguments: Any) -> Any:
        return registry.make(attack, **arguments, **options)

    return Entry(
        name or known_as,
        fixed | dict(options),
        make,
        "factory" if name is None else "named",
    )


def _parted(given: Any) -> tuple[Any, str | None, Any]:
    """Splits an item of `attacks` into the attack, its name and its options."""
    if not isinstance(given, (tuple, list)) or len(given) < 2:
        return given, None, {}
    parts, name, options = list(given), None, {}
    if isinstance(parts[0], str) and callable(parts[1]):
        name = parts.pop(0)
    if len(parts) == 2:
        options = parts.pop()
    return parts[0] if len(parts) == 1 else None, name, options


def _registered(spec: str, options: Mapping[str, Any]) -> Entry:
    """Makes the `Entry` of a registered attack.

    Args:
        spec: The name, which may have options: "pgd:steps=50". It is the name
            of the entry, so that attacks with different options can be told
            apart.
        options: More options, which override those in `spec`.

    Raises:
        ValueError: If the name or an option is unknown.
        ImportError: If the attack needs a library that is not installed.
    """
    attack = ATTACKS.factory(spec)
    _check_options(attack, options)
    spec = ATTACKS.canonical(spec)
    _, named = ATTACKS.parse(spec)
    _check_options(attack, named)
    _check_ball(attack, spec)
    # The class in foolbox:LinfPGD is part of the name.
    named = {k: v for k, v in named.items() if f":{k}=" in spec}
    return Entry(
        spec,
        named | dict(options),
        lambda **arguments: ATTACKS.make(spec, **arguments, **options),
    )


def _check_options(
    attack: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Checks that an attack has options of these names, left to the user.

    Args:
        attack: Factory of attacks.
        options: Options by name.

    Raises:
        ValueError: If an option is unknown, or set by the evaluation.
    """
    taken = {"epsilon", "norm", "bounds"} & set(options)
    if taken:
        name = min(taken)
        raise ValueError(
            f"the evaluation sets {', '.join(sorted(taken))} of every attack. "
            f"Received: {name}={options[name]}"
        )
    check_options(attack, options)


def _check_ball(attack: Callable[..., Any], name: str) -> None:
    """Checks that an attack's images stay within epsilon.

    Args:
        attack: Factory of attacks.
        name: Name of the attack, for the message.

    Raises:
        ValueError: If the attack is for training alone.
    """
    if ATTACKS.fact(attack, "leaves_ball"):
        raise ValueError(
            f"the attack {name} is for training: its images may be farther "
            "than epsilon from x. Evaluate with one that stays within "
            f"epsilon, such as fgsm or pgd. Received: attack={name}"
        )


def cold_entries(
    entries: Iterable[Entry],
    norms: Iterable[str],
    epsilon: float,
    bounds: Bounds,
) -> list[str]:
    """Returns the names of the attacks that cannot start from a given image.

    Args:
        entries: The attacks.
        norms: "linf", "l2" or both. An attack is listed if it can start from an
            image in none of the norms in which it can be made.
        epsilon: Budget to make the attacks with.
        bounds: (lowest, highest) value of a pixel, or None.

    Returns:
        A list of names. An attack that cannot be made is not listed: its row of
        the results has an error.
    """

    def starts(entry: Entry, norm: str) -> bool | None:
        try:
            attack = entry.make(epsilon=epsilon, norm=norm, bounds=bounds)
            return can_start(attack)
        except Exception:
            # A factory may raise anything; the attack's own row reports it.
            return None

    norms = list(norms)
    found = {e.name: [starts(e, norm) for norm in norms] for e in entries}
    return [
        name
        for name, facts in found.items()
        if False in facts and True not in facts
    ]


def can_start(attack: Any) -> bool:
    """Returns whether an attack can start from a given image.

    Args:
        attack: The attack, made by a factory.
    """
    call = getattr(attack, "perturb", attack)
    return "start" in inspect.signature(call).parameters


def has_epsilon(attack: Any, epsilon: float) -> bool:
    """Returns whether the attack's epsilon, if it has one, is the given one.

    Args:
        attack: The attack, made by a factory.
        epsilon: Budget of the evaluation.
    """
    own = getattr(attack, "epsilon", None)
    return own is None or bool(own == epsilon)


def load_data(
    data: Any,
    bounds: Bounds,
    steps: int | None = None,
    network: Any = None,
    multi_label: bool = False,
) -> Data:
    """Reads images and their labels, and checks them.

    Args:
        data: Images and labels; see `tfsam.data.examples`.
        bounds: (lowest, highest) value of x, or None.
        steps: Number of elements to read; see `examples.load`.
        network: The model that will process the images; see `examples.load`.
        multi_label: Whether an example may have several labels.

    Raises:
        ValueError: If the data are not images with labels, or a value of x is
            outside the bounds, NaN or infinite, or the bounds do not fit.
    """
    bounds = check_interval("bounds", bounds)
    x, y = examples.load(data, steps=steps, network=network)
    if not tf.as_dtype(x.dtype).is_floating:
        advice = "convert it to floats on that scale"
        if bounds == (0, 1):
            advice = "divide images of 0 to 255 by 255"
        raise ValueError(
            f"x must be float with values in {bounds_text(bounds)}; {advice}. "
            f"Received: x.dtype={x.dtype}"
        )
    ends = rows.extremes(x)
    if not np.isfinite(ends).all():
        raise ValueError("x must be finite. Received: x with NaN or infinity")
    x, ends = _inside(x, ends, bounds)
    if x.dtype.itemsize < 4:
        # Rounded to float16, an adversarial image could leave its ball.
        x = rows.changed(x, lambda part: part.astype(np.float32), np.float32)
    labels = _labels(y, multi_label)
    return Data(x, *labels, ends.astype(x.dtype))


def _inside(
    x: Pixels, ends: np.ndarray, bounds: Bounds
) -> tuple[Pixels, np.ndarray]:
    """Returns images inside their bounds, and their extremes.

    Args:
        x: Float array (n, ...), or `Rows`.
        ends: Float array (2,), the lowest and the highest value of x.
        bounds: (lowest, highest) value of x, or None.
    """
    clip = functools.partial(inside_bounds, bounds=bounds)
    if bounds is not None and any(map(np.ndim, bounds)):
        inside = all(clip(block) is block for block in rows.blocks(x))
        clipped = ends.clip(np.min(bounds[0]), np.max(bounds[1]))
    else:
        clipped = clip(ends)
        inside = bool((clipped == ends).all())
    return x if inside else rows.changed(x, clip), clipped


def load_inputs(
    data: Any,
    attacked: str | int | None,
    network: Any,
    bounds: Bounds,
    steps: int | None = None,
    multi_label: bool = False,
) -> Data:
    """Reads images, which may be one of several inputs, and their labels.

    Args:
        data: Images, or several inputs, and labels; see `part_inputs`.
        attacked: Name or number of the input that is attacked, or None.
        network: The model that will process the inputs.
        bounds: (lowest, highest) value of a pixel, or None.
        steps: Number of elements to read; see `examples.load`.
        multi_label: Whether an example may have several labels.

    Raises:
        ValueError: See `load_data` and `part_inputs`.
    """
    given, inputs, others = part_inputs(data, attacked, network, bounds, steps)
    # Several inputs have been read.
    steps = steps if inputs is None else None
    found = load_data(given, bounds, steps, network, multi_label)
    return found._replace(inputs=inputs, others=others)


def part_inputs(
    data: Any,
    attacked: str | int | None,
    network: Any,
    bounds: Bounds,
    steps: int | None = None,
) -> tuple[Any, Inputs | None, tuple[np.ndarray, ...]]:
    """Parts several inputs into the one that is attacked and the others.

    Args:
        data: Arrays (x, y), or a dataset or generator of them, where x may be
            a list or dict of inputs; or data of a single input, see
            `tfsam.data.examples`.
        attacked: Name or number of the input that is attacked, or None.
        network: The model that will process the inputs.
        bounds: (lowest, highest) value of a pixel, or None.
        steps: Number of elements to read; see `examples.load`.

    Returns:
        (data, inputs, others): the data with the attacked input alone, and the
        `inputs` and `others` of `Data`.

    Raises:
        ValueError: If it is unknown which input is attacked, or the inputs have
            different numbers of examples.
    """
    pair = isinstance(data, (tuple, list)) and len(data) in (2, 3)
    if examples.gives_several(data, network):
        data = examples.load_several(data, steps=steps, network=network)
    elif not pair or not elements.is_several(data[0], data[1]):
        if attacked is not None:
            raise ValueError(
                "attacked names one of several inputs, and x must be a list or "
                "a dict of arrays. "
                f"Received: attacked={attacked}, data={type(data).__name__}"
            )
        return data, None, ()
    names = [each.name for each in getattr(network, "inputs", None) or ()]
    inputs = inputs_of(data[0], attacked, names, bounds)
    x, others = inputs.split(data[0])
    arrays = tuple(np.asarray(each) for each in others)
    lengths = {len(each) for each in (x, *arrays)}
    if len(lengths) > 1:
        raise ValueError(
            "all inputs must have the same number of examples. Received: "
            f"{', '.join(map(str, sorted(lengths)))}"
        )
    return (x, data[1]), inputs, arrays


def _labels(y: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns `y` and `labels` of `Data`."""
    if multi_label:
        found = several_labels(y)
        return found, found
    return class_labels(y)
