"""Base class of attacks, and helpers for authors of attacks.

An attack is any callable

    attack(logits_fn, x, y, seed) -> x_adv

made by a factory that takes the keyword arguments `epsilon=`, `norm=` and
`bounds=`, and options of its own:

- `logits_fn` maps float pixels (batch, ...) to float32 logits (batch, classes),
  in inference mode, without side effects and differentiably.
- `x` is a float tensor (batch, ...) inside `bounds`.
- `y` holds class numbers (batch,), or one-hot or smoothed labels (batch,
  classes).
- `seed` is an int, an int32 tensor (2,), or an int32 tensor (batch, 2) with a
  row for each example.
- `x_adv` has the shape and dtype of x, is inside `bounds` and within `epsilon`
  of x.

`Attack` is a convenient base class: a subclass implements `perturb`. Attacks of
other packages need not use it; the contract above is all that is required, and
`tfsam.attacks.check` tests it.

Authors of attacks may import helpers from here, too: `Bounds`, and the
functions of `per_example.py`, `seeds.py` and `threat_model.py`.
"""

import types
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import goals
from tfsam.attacks import tracing
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import setting
from tfsam.attacks.per_example import per_example as per_example
from tfsam.attacks.per_example import where as where
from tfsam.attacks.seeds import example_seeds as example_seeds
from tfsam.attacks.seeds import next_seeds as next_seeds
from tfsam.attacks.threat_model import ThreatModel
from tfsam.attacks.threat_model import check_one_epsilon as check_one_epsilon
from tfsam.attacks.threat_model import check_scale as check_scale
from tfsam.support.logit_checks import check_ending
from tfsam.support.validators import Bounds as Bounds


class Attack(ThreatModel):
    """Base class of attacks: validates, converts and calls `perturb`.

    A subclass implements `perturb` and keeps every constructor argument as an
    attribute of the same name. The attributes below describe the attack to
    training and evaluation; a subclass sets those that differ from the default.
    Attacks of other packages need not derive from this class: the defaults also
    apply to any attribute that they lack. `ThreatModel` documents `norms`,
    `tensor_epsilon`, `example_epsilons` and `two_bounds`.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0. `with_epsilon`
            also takes a different one for each example.
        norm: "linf", "l2" or "l1"; one of `norms`.
        bounds: (lowest, highest) value of x, or None for inputs that are not
            images. Each of the two is a number, or an array that broadcasts
            against an image, such as one number for each channel.

    Attributes:
        collapses: Whether training with the attack is known to collapse
            (catastrophic overfitting), so that a run watches the accuracy under
            PGD. The default is False.
        flag_names: Flag that sets an argument of the constructor, for arguments
            whose flag has another name.
        predictions: Number of forward passes without a gradient for a batch;
            part of the cost of a training step. The default is 0.
        in_graph: Whether `tf.function` can trace the attack, including for
            batches of unknown size. Attacks with False run eagerly, which is
            slower, and are rejected in training. With None, the default, an
            evaluation runs the attack eagerly, and training tries to trace it.
        gradient_free: Whether the attack uses no gradients. If a gradient-free
            attack breaks examples that gradient attacks missed, an evaluation
            warns of masked gradients. None lets the evaluation count the
            gradients. The default is False.
        follows_gradient: Whether the attack follows the gradient for several
            steps, so that a stronger gradient-free attack is a sign of masked
            gradients. False for attacks of a single step, for steps that are
            shorter than epsilon in total, and for attacks that are weak within
            a given epsilon. With None, the default, an evaluation counts the
            gradients; where it cannot, every attack that is not
            `gradient_free` is assumed to follow them.
        eot: Number of draws of a random network that each step averages
            ("expectation over transformation"). The default is 1: the attack
            follows a single draw, which says little about a random network.
        minimum_norm: Whether a single call finds the nearest point for all
            epsilons. The default is False.
        climbs: Whether the attack raises a loss step by step, so that a loss
            which still rises at the end is a sign of too few steps. False for
            attacks that search for the nearest point, along the decision
            boundary. The default is True.
        leaves_ball: Whether the images may be farther than epsilon from x. Such
            an attack is for training, and an evaluation rejects it. The default
            is False.
        library: Name of the distribution package whose version the attack
            depends on, or None.
        replays: Number of times that training uses each batch, with offsets
            that the attack's method `moved` changes by the gradient of the
            training pass; see `tfsam.training.replays`. 0, the default, for
            attacks that perturb each batch by themselves.
        stages: For an ensemble, the list of its attacks in order, as (name,
            attack); empty for other attacks.
        targets: Number of wrong classes that the attack aims at, most likely
            first. 0, the default, means untargeted.
        needs_classes: Whether the labels must name classes, for instance for a
            loss of the attack's own. `RobustModel` then rejects regression,
            multi-label classification and segmentation. The default is True.
        version: For AutoAttack, the name of the version: "standard", "rand" or
            "plus". The default is None.
        selective: Whether `perturb` skips the examples that are not in
            `tfsam.attacks.logits.examples(logits_fn, x)`, so that the network
            computes only the survivors. The default is False.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> class Brighten(Attack):
        ...     in_graph = True
        ...
        ...     def perturb(self, logits_fn, x, y, seeds):
        ...         return self.clip(x + self.epsilon)
        >>> attack = Brighten(epsilon=0.25)
        >>> x, y = tf.constant([[0.5, 1.0]]), tf.constant([0])
        >>> attack(lambda x: x, x, y).numpy().tolist()
        [[0.75, 1.0]]
    """

    collapses: bool = False
    flag_names: Mapping[str, str] = types.MappingProxyType(
        {"loss": "attack_loss"}
    )
    predictions: Any = 0
    in_graph: bool | None = None
    gradient_free: bool | None = False
    follows_gradient: Any = None
    replays: int = 0
    stages: Any = ()
    eot: int = 1
    minimum_norm: bool = False
    climbs: bool = True
    leaves_ball: bool = False
    library: str | None = None
    targets: int = 0
    needs_classes: Any = True
    version: str | None = None
    selective: bool = False

    @property
    def gradients(self) -> int:
        """Number of gradients for a batch: 0 if gradient-free, else the steps.

        Each counts as often as it is drawn. Part of the cost of a training
        step.
        """
        if getattr(self, "gradient_free", False):
            return 0
        # Attacks of other packages, for which it is called too, may lack both.
        return int(getattr(self, "steps", 1)) * int(getattr(self, "eot", 1))

    def __call__(
        self,
        logits_fn: LogitsFn,
        x: Any,
        y: Any,
        seed: Any = 0,
        start: Any = None,
        target: Any = None,
    ) -> tf.Tensor:
        """Attacks a batch.

        An attack with `in_graph` on a network is traced at the first call, and
        the trace is reused for the same function, attack and shapes; see
        `tfsam.attacks.tracing`.

        Args:
            logits_fn: Function from pixels to logits.
            x: Float array or tensor (batch, ...), inside `bounds`. Rounding
                errors of a few units in the last place are clipped.
            y: Array or tensor of labels: class numbers (batch,), or one-hot or
                smoothed labels (batch, classes).
            seed: An int, an int32 tensor (2,) or an int32 tensor (batch, 2).
            start: None, or a tensor of x's shape: the starting point of attacks
                whose `perturb` has an argument `start`, instead of x or a
                random point.
            target: None, or the class to find in place of any wrong class: an
                int, or integers (batch,), one for each example. The attack then
                succeeds only where this class has the largest logit; see
                `tfsam.attacks.goals`.

        Returns:
            Tensor of x's shape and dtype, through which no gradient flows. In
            l2 and l1 it is within epsilon of x to a few units in the last place
            of float32; in l-inf each pixel is, to within its own rounding.

        Raises:
            ValueError: If x is not of a floating-point dtype, if epsilon is
                larger than the width of the bounds in l-inf or holds another
                number of values than the batch, if x lies outside the bounds,
                if the bounds do not broadcast against an image, if logits_fn is
                a Keras model that ends in a softmax or a sigmoid, or if a
                target is no class of the network or the label of its example.
                In a graph, targets are not checked, and pixels outside the
                bounds raise an InvalidArgumentError at run time; XLA, which
                drops assertions, clips them.
        """
        check_scale(self)
        check_ending(logits_fn)
        x = tf.convert_to_tensor(x)
        if not (tf.inside_function() and setting(logits_fn, "checked")):
            x = self._checked(x)
        self._check_length(x)
        y = tf.convert_to_tensor(y)
        if target is not None:
            logits_fn, y = goals.aimed(logits_fn, x, y, target)
        seeds = example_seeds(seed, tf.shape(x)[0])
        inputs = {"x": x, "y": y, "seeds": seeds}
        if start is not None:
            inputs["start"] = tf.convert_to_tensor(start)
        if tf.inside_function():
            return _attacked(self, logits_fn, **inputs)
        return tracing.call(_attacked, self, logits_fn, inputs)

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Finds adversarial examples; implemented by subclasses.

        Args:
            logits_fn: Function from pixels to logits.
            x: Tensor (batch, ...) of dtype float32 or float64, inside `bounds`.
            y: Tensor of labels: class numbers (batch,), or one-hot or smoothed
                labels (batch, classes).
            seeds: int32 tensor (batch, 2), a row for each example.

        Returns:
            Tensor of the shape and dtype of x, inside `bounds` and within
            `epsilon` of x.

        Raises:
            TypeError: If the subclass does not implement it.
        """
        raise TypeError(
            "An Attack must implement perturb(). "
            f"Received: {type(self).__name__}"
        )


def _attacked(
    attack: Attack,
    logits_fn: LogitsFn,
    x: tf.Tensor,
    y: tf.Tensor,
    seeds: tf.Tensor,
    start: tf.Tensor | None = None,
) -> tf.Tensor:
    """Attacks a batch of tensors that is already checked.

    Args:
        attack: The attack.
        logits_fn: Function from pixels to logits.
        x: Float tensor (batch, ...), inside the bounds.
        y: Tensor of labels.
        seeds: int32 tensor (batch, 2).
        start: None, or a tensor of x's shape.

    Returns:
        Tensor of x's shape and dtype, through which no gradient flows.
    """
    # The spacing of float16 near 1 is 4.9e-4, half of an attack's step of
    # 0.25/255.
    precise = x if x.dtype.size >= 4 else tf.cast(x, tf.float32)
    given = {}
    if start is not None:
        given["start"] = tf.cast(start, precise.dtype)
    x_adv = attack.perturb(logits_fn, precise, y, seeds, **given)
    x_adv = tf.ensure_shape(tf.cast(x_adv, x.dtype), x.shape)
    if attack.norm != "linf":
        x_adv = geometry.shrink(x, x_adv, attack.radius(precise), attack.norm)
        x_adv = tf.ensure_shape(x_adv, x.shape)
    return tf.stop_gradient(x_adv)
