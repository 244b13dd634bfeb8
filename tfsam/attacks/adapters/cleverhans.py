"""Adapters for cleverhans: FGM, PGD, BIM, MIM, Carlini-Wagner and SPSA.

Steps, projections, momentum and searches are the code of cleverhans 4.0.0, run
with the true labels and in float32. The following is replaced, by the functions
of `cleverhans_functions.py`, which leave cleverhans unchanged:

- The gradient is computed by `tfsam.attacks.logits.input_gradient`. It has the
  same values, is compiled according to `logits_fn`, and is shared by all
  attacks. cleverhans's own is a module-level `tf.function` that is traced again
  for each new function, never freed, and fails on functions that close over
  tensors of another trace.
- The random start is uniform in the ball, as in cleverhans, but drawn from the
  seed of each example; so are the samples of SPSA. cleverhans draws from
  TensorFlow's global generator.
- Carlini-Wagner is untargeted when labels are given. It has one constant per
  example, where 4.0.0 makes one per pixel (which fails for batches of color
  images), an Adam optimizer with the interface of Keras 2, and accepts inputs
  of any rank. Perturbations outside the epsilon ball are projected onto it.
- SPSA uses an optimizer that Keras 3 can construct, and attacks the images one
  by one.
"""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from cleverhans.tf2.attacks import basic_iterative_method as bim
from cleverhans.tf2.attacks import fast_gradient_method as fgm
from cleverhans.tf2.attacks import momentum_iterative_method as mim

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.adapters.cleverhans_functions import UntargetedCarliniWagner
from tfsam.attacks.adapters.cleverhans_functions import gradient_of
from tfsam.attacks.adapters.cleverhans_functions import pgd_on
from tfsam.attacks.adapters.cleverhans_functions import replaced
from tfsam.attacks.adapters.cleverhans_functions import seeded_spsa
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.gradient import crosses
from tfsam.attacks.logits import LogitsFn
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number


class _Batch(NamedTuple):
    """A batch of examples to attack.

    Attributes:
        logits_fn: Function from pixels to logits.
        x: float32 tensor (batch, ...).
        labels: int64 tensor (batch,), class numbers.
        seeds: int32 tensor (batch, 2).
    """

    logits_fn: LogitsFn
    x: tf.Tensor
    labels: tf.Tensor
    seeds: tf.Tensor


class _CleverhansAttack(Attack):
    """Base class of the adapters: converts to float32 and back."""

    library = "cleverhans"
    in_graph = True
    selective = True
    two_bounds = True

    def perturb(
        self, logits_fn: LogitsFn, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        """Runs the attack of cleverhans."""
        if not self.in_graph and tf.inside_function():
            raise ValueError(
                "This cleverhans attack runs eagerly, not in a tf.function or "
                "in training; train with one of tfsam's own attacks. "
                f"Received: attack={self}"
            )
        pixels, labels = tf.cast(x, tf.float32), losses.classes(y)
        x_adv = self._run(_Batch(logits_fn, pixels, labels, seeds))
        if x.dtype == tf.float32:
            return x_adv
        return self.project(x, tf.cast(x_adv, x.dtype))

    def _run(self, batch: _Batch) -> tf.Tensor:
        """Runs the attack on float32 pixels; implemented by subclasses."""
        raise TypeError(
            "A cleverhans adapter must implement _run(). "
            f"Received: {type(self).__name__}"
        )

    def _order_and_bounds(self) -> dict[str, Any]:
        """Returns cleverhans's arguments for the norm and the bounds."""
        low, high = self.bounds or (None, None)
        order = geometry.FACTS[self.norm].order
        return {"norm": order, "clip_min": low, "clip_max": high}


@keras.saving.register_keras_serializable("tfsam", "CleverhansFGM")
class FGM(_CleverhansAttack):
    """The fast gradient method (Goodfellow et al., 2015) of cleverhans.

    A single step of length epsilon.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.5, 0.5]]), tf.constant([0])
        >>> FGM(epsilon=0.25)(lambda x: 10 * x, x, y).numpy().tolist()
        [[0.25, 0.75]]
    """

    follows_gradient = False

    def _run(self, batch: _Batch) -> tf.Tensor:
        logits_fn, x, labels, _ = batch
        attack = replaced(
            fgm.fast_gradient_method,
            compute_gradient=gradient_of(logits_fn),
        )
        return attack(
            logits_fn,
            x,
            self.epsilon,
            y=labels,
            **self._order_and_bounds(),
        )


class _Iterative(_CleverhansAttack):
    """Base class of the attacks that make steps: PGD, BIM and MIM."""

    # cleverhans asserts this in PGD, and thereby in BIM.
    _step_within_epsilon = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        self.steps = check_count("steps", steps)
        if step_size is not None:
            step_size = check_number("step_size", step_size)
            if self._step_within_epsilon and step_size > self.epsilon:
                raise ValueError(
                    "cleverhans's PGD and BIM need step_size <= epsilon. "
                    f"Received: step_size={step_size}, epsilon={epsilon}"
                )
        self.step_size = step_size

    @property
    def follows_gradient(self) -> bool:
        """Whether it makes several steps, at least epsilon long in total."""
        return crosses(self.epsilon, self.steps, self._length())

    def _length(self) -> float:
        """Returns the step size."""
        if self.step_size is not None:
            return self.step_size
        return geometry.default_step(self.epsilon, self.norm)

    def _loop(self) -> dict[str, Any]:
        """Returns cleverhans's arguments for the steps and the budget."""
        return {
            "eps": self.epsilon,
            "eps_iter": self._length(),
            "nb_iter": self.steps,
            **self._order_and_bounds(),
        }


@keras.saving.register_keras_serializable("tfsam", "CleverhansPGD")
class PGD(_Iterative):
    """Projected gradient descent (Madry et al., 2018) of cleverhans.

    With 10 steps, the default, it is the attack of the paper's evaluation.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: Number of gradient steps, >= 0.
        step_size: Length of a step, in [0, epsilon]. None means epsilon/4
            (l-inf) or epsilon/8 (l2).
        random_start: True starts at a point uniform in the ball, False at x.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.5, 0.5]]), tf.constant([0])
        >>> print(PGD(epsilon=0.25)(lambda x: 10 * x, x, y, seed=0).numpy())
        [[0.25 0.75]]
    """

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        random_start: bool = True,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, steps, step_size, bounds)
        self.random_start = random_start

    def _run(self, batch: _Batch) -> tf.Tensor:
        logits_fn, x, labels, seeds = batch

        def random_lp_vector(
            shape: Any, ord: Any, eps: float, dtype: Any
        ) -> tf.Tensor:
            del ord
            return geometry.random_point(seeds, shape, eps, self.norm, dtype)

        attack = replaced(pgd_on(logits_fn), random_lp_vector=random_lp_vector)
        # cleverhans's default, None, means no random start.
        return attack(
            logits_fn,
            x,
            y=labels,
            rand_init=bool(self.random_start),
            **self._loop(),
        )


@keras.saving.register_keras_serializable("tfsam", "CleverhansBIM")
class BIM(_Iterative):
    """The basic iterative method (Kurakin et al., 2017) of cleverhans.

    It is PGD started at x.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: Number of gradient steps, >= 0.
        step_size: Length of a step, in [0, epsilon]. None means epsilon/4
            (l-inf) or epsilon/8 (l2).
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.5, 0.5]]), tf.constant([0])
        >>> BIM(epsilon=0.25)(lambda x: 10 * x, x, y).numpy().tolist()
        [[0.25, 0.75]]
    """

    def _run(self, batch: _Batch) -> tf.Tensor:
        logits_fn, x, labels, _ = batch
        attack = replaced(
            bim.basic_iterative_method,
            projected_gradient_descent=pgd_on(logits_fn),
        )
        # The sanity checks read the values of tensors, which fails in a graph.
        return attack(
            logits_fn,
            x,
            y=labels,
            sanity_checks=False,
            **self._loop(),
        )


@keras.saving.register_keras_serializable("tfsam", "CleverhansMIM")
class MIM(_Iterative):
    """The momentum iterative method (Dong et al., 2018) of cleverhans.

    It starts at x.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: Number of gradient steps, >= 0.
        step_size: Length of a step, >= 0. None means epsilon/4 (l-inf) or
            epsilon/8 (l2), as for PGD; cleverhans's own default is 0.06, for an
            epsilon of 0.3.
        decay_factor: Factor of the momentum in each step, >= 0.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import tensorflow as tf
        >>> x, y = tf.constant([[0.5, 0.5]]), tf.constant([0])
        >>> MIM(epsilon=0.25)(lambda x: 10 * x, x, y).numpy().tolist()
        [[0.25, 0.75]]
    """

    _step_within_epsilon = False

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        decay_factor: float = 1.0,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, steps, step_size, bounds)
        self.decay_factor = check_number("decay_factor", decay_factor)

    def _run(self, batch: _Batch) -> tf.Tensor:
        logits_fn, x, labels, _ = batch
        attack = replaced(
            mim.momentum_iterative_method,
            compute_gradient=gradient_of(logits_fn),
        )
        return attack(
            logits_fn,
            x,
            y=labels,
            decay_factor=self.decay_factor,
            sanity_checks=False,
            **self._loop(),
        )


@keras.saving.register_keras_serializable("tfsam", "CleverhansCarliniWagner")
class CarliniWagner(_CleverhansAttack):
    """Carlini and Wagner's l2 attack (2017), untargeted, of cleverhans.

    It searches for the smallest perturbation, regardless of epsilon. A
    perturbation that is larger than epsilon is projected onto the ball, and is
    then seldom adversarial. The attack runs eagerly. For each batch it takes
    `steps * search_steps` gradients and traces the model once.

    With the defaults, a batch takes minutes on a CPU. cleverhans's own defaults
    are 1000 steps, 5 search steps and an initial constant of 0.01.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "l2".
        steps: Number of Adam steps for each constant, >= 0.
        search_steps: Number of constants in the search, >= 1.
        initial_const: First weight of the margin relative to the distance, >=
            0.
        learning_rate: Learning rate of Adam, in the space of arctanh pixels, >=
            0.
        bounds: (lowest, highest) value of x; None is rejected.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> CarliniWagner(epsilon=0.5, steps=50).search_steps
        3
    """

    in_graph = False
    # It is weak within a given epsilon, as it searches for the nearest point.
    follows_gradient = False
    bounds: tuple[float, float]

    def __init__(
        self,
        epsilon: float,
        norm: str = "l2",
        steps: int = 100,
        search_steps: int = 3,
        initial_const: float = 1.0,
        learning_rate: float = 0.005,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        if self.norm != "l2":
            raise ValueError(
                f"Carlini-Wagner's norm must be l2. Received: norm={norm}"
            )
        if self.bounds is None:
            raise ValueError(
                "Carlini-Wagner needs bounds, which it maps to the range of "
                f"tanh. Received: bounds={bounds}"
            )
        self.steps = check_count("steps", steps)
        self.search_steps = check_count("search_steps", search_steps, 1)
        self.initial_const = check_number("initial_const", initial_const)
        self.learning_rate = check_number("learning_rate", learning_rate)

    def _run(self, batch: _Batch) -> tf.Tensor:
        logits_fn, x, labels, _ = batch
        search = UntargetedCarliniWagner(
            # cleverhans accepts only batches of rank 4.
            lambda flat: logits_fn(tf.reshape(flat, tf.shape(x))),
            y=labels,
            batch_size=len(x),
            clip_min=self.bounds[0],
            clip_max=self.bounds[1],
            binary_search_steps=self.search_steps,
            max_iterations=self.steps,
            initial_const=self.initial_const,
            learning_rate=self.learning_rate,
        )
        found = search.attack(tf.reshape(x, [len(x), -1, 1, 1]))
        return self.project(x, tf.reshape(found, tf.shape(x)))


@keras.saving.register_keras_serializable("tfsam", "CleverhansSPSA")
class SPSA(_CleverhansAttack):
    """SPSA (Uesato et al., 2018): Adam on gradients estimated from logits.

    The attack uses no gradients of the model. It is slow: it runs eagerly on
    single images, with `steps * samples` forward passes for each.

    Args:
        epsilon: Largest perturbation, in the units of x, >= 0.
        norm: "linf".
        steps: Number of Adam steps, >= 0.
        samples: Number of forward passes for an estimate, an even number >= 2.
        delta: Distance of the samples from the iterate, > 0.
        learning_rate: Learning rate of Adam, >= 0.
        early_stop: Whether to stop as soon as an image is misclassified.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> SPSA(epsilon=8 / 255, samples=64).steps
        10
    """

    in_graph = False
    gradient_free = True

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 10,
        samples: int = 128,
        delta: float = 0.01,
        learning_rate: float = 0.01,
        early_stop: bool = True,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, bounds)
        if self.norm != "linf":
            raise ValueError(f"SPSA's norm must be linf. Received: norm={norm}")
        self.steps = check_count("steps", steps)
        self.samples = check_count("samples", samples, 2)
        if samples % 2:
            raise ValueError(
                f"samples must be even. Received: samples={samples}"
            )
        self.delta = check_number("delta", delta)
        if delta == 0:
            raise ValueError(f"delta must be > 0. Received: delta={delta}")
        self.learning_rate = check_number("learning_rate", learning_rate)
        self.early_stop = early_stop

    def _run(self, batch: _Batch) -> tf.Tensor:
        logits_fn, x, labels, seeds = batch
        # Traced once for all images and steps of the batch.
        model_fn = tf.function(logits_fn, autograph=False)
        low, high = self.bounds or (-np.inf, np.inf)
        images = []
        for index in range(len(x)):
            attack = seeded_spsa(seeds[index])
            image = attack(
                model_fn,
                x[index : index + 1],
                labels[index : index + 1],
                self.epsilon,
                self.steps,
                clip_min=low,
                clip_max=high,
                # Of the true label's margin, < 0 for misclassified images.
                early_stop_loss_threshold=0.0 if self.early_stop else None,
                learning_rate=self.learning_rate,
                delta=self.delta,
                spsa_samples=self.samples,
            )
            images.append(image)
        return tf.concat(images, axis=0)
