"""Adapters for cleverhans: FGM, PGD, BIM, MIM, Carlini-Wagner and SPSA.

Steps, projections, momentum and searches are the code of cleverhans 4.0.0, run
with the true labels and in float32. The following is replaced, always by
`_with`, which leaves the modules of cleverhans unchanged:

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

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from cleverhans.tf2.attacks import basic_iterative_method as bim
from cleverhans.tf2.attacks import carlini_wagner_l2 as cw
from cleverhans.tf2.attacks import fast_gradient_method as fgm
from cleverhans.tf2.attacks import momentum_iterative_method as mim
from cleverhans.tf2.attacks import projected_gradient_descent as pgd
from cleverhans.tf2.attacks import spsa

from tfsam import geometry
from tfsam.attacks import losses
from tfsam.attacks.base import Attack
from tfsam.attacks.base import Bounds
from tfsam.attacks.gradient import crosses
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import input_gradient
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number


class _CleverhansAttack(Attack):
    """Base class of the adapters: converts to float32 and back."""

    library = "cleverhans"
    in_graph = True
    selective = True

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
        x_adv = self._run(
            logits_fn, tf.cast(x, tf.float32), losses.classes(y), seeds
        )
        if x.dtype == tf.float32:
            return x_adv
        return self.project(x, tf.cast(x_adv, x.dtype))

    def _run(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        labels: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
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

    def _run(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        labels: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
        attack = _with(
            fgm.fast_gradient_method, compute_gradient=_gradient_of(logits_fn)
        )
        return attack(
            logits_fn, x, self.epsilon, y=labels, **self._order_and_bounds()
        )


class _Iterative(_CleverhansAttack):
    """Base class of the attacks that make steps: PGD, BIM and MIM."""

    # cleverhans asserts this in PGD, and thereby in BIM.
    _step_within_epsilon = True

    def __init__(
        self,
        epsilon: float,
        norm: str,
        steps: int,
        step_size: float | None,
        bounds: Bounds,
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

    def _run(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        labels: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
        def random_lp_vector(
            shape: Any, ord: Any, eps: float, dtype: Any
        ) -> tf.Tensor:
            del ord
            return geometry.random_point(seeds, shape, eps, self.norm, dtype)

        attack = _with(_pgd_on(logits_fn), random_lp_vector=random_lp_vector)
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

    def __init__(
        self,
        epsilon: float,
        norm: str = "linf",
        steps: int = 10,
        step_size: float | None = None,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(epsilon, norm, steps, step_size, bounds)

    def _run(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        labels: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
        attack = _with(
            bim.basic_iterative_method,
            projected_gradient_descent=_pgd_on(logits_fn),
        )
        # The sanity checks read the values of tensors, which fails in a graph.
        return attack(
            logits_fn, x, y=labels, sanity_checks=False, **self._loop()
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

    def _run(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        labels: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
        attack = _with(
            mim.momentum_iterative_method,
            compute_gradient=_gradient_of(logits_fn),
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

    def _run(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        labels: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
        search = _UntargetedCarliniWagner(
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

    def _run(
        self,
        logits_fn: LogitsFn,
        x: tf.Tensor,
        labels: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
        # Traced once for all images and steps of the batch.
        model_fn = tf.function(logits_fn, autograph=False)
        low, high = self.bounds or (-np.inf, np.inf)
        images = []
        for index in range(len(x)):
            attack = _seeded_spsa(seeds[index])
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


def _with(function: Any, **names: Any) -> Any:
    """Copies a function of cleverhans and replaces some of its globals.

    The module of the function is not patched.

    Args:
        function: A Python function.
        **names: The new values of its globals.
    """
    return types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
    )


def _gradient_of(logits_fn: LogitsFn) -> Callable[..., tf.Tensor]:
    """Returns a replacement of cleverhans's `compute_gradient`."""
    gradient = input_gradient(logits_fn, losses.cross_entropy)
    # In a graph, cleverhans's loops are unrolled: this traces the model once
    # instead of once per step. Eagerly, a new tf.function would be traced for
    # each batch.
    compiled = isinstance(gradient, tf.types.experimental.PolymorphicFunction)
    if tf.inside_function() and not compiled:
        gradient = tf.function(gradient, autograph=False)

    def compute_gradient(
        model_fn: Any, loss_fn: Any, x: tf.Tensor, y: tf.Tensor, targeted: bool
    ) -> tf.Tensor:
        del model_fn, loss_fn, targeted
        return gradient(x, y, examples(logits_fn, x))[0]

    return compute_gradient


def _pgd_on(logits_fn: LogitsFn) -> Any:
    """Returns cleverhans's PGD with the gradient of `logits_fn`."""
    step = _with(
        fgm.fast_gradient_method, compute_gradient=_gradient_of(logits_fn)
    )
    return _with(pgd.projected_gradient_descent, fast_gradient_method=step)


class _Namespace:
    """A view of a module with some names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _UntargetedCarliniWagner(cw.CarliniWagnerL2):
    """The search of cleverhans, with the faults of 4.0.0 corrected."""

    def __init__(
        self, model_fn: LogitsFn, *, learning_rate: float, **arguments: Any
    ) -> None:
        super().__init__(model_fn, learning_rate=learning_rate, **arguments)
        # 4.0.0 treats any labels as targets.
        self.targeted = False
        self.optimizer = _Keras2Adam(learning_rate)

    # 4.0.0 calls tf.ones(x.shape) for its constants, one for each example.
    _attack = _with(
        cw.CarliniWagnerL2._attack,
        tf=_Namespace(tf, ones=lambda shape: tf.ones(shape[:1])),
    )


class _Keras2Adam:
    """Adam with the part of Keras 2's interface that Carlini-Wagner uses."""

    def __init__(self, learning_rate: float) -> None:
        self._adam = keras.optimizers.Adam(learning_rate)

    def apply_gradients(self, gradients_and_variables: Any) -> None:
        """Applies (gradient, variable) pairs."""
        self._adam.apply_gradients(gradients_and_variables)

    def variables(self) -> list[Any]:
        """Returns the variables that a restart of the search sets to zero."""
        # Without the learning rate.
        rate = self._adam.learning_rate
        return [v for v in self._adam.variables if v is not rate]


def _seeded_spsa(seed: tf.Tensor) -> Any:
    """Returns cleverhans's SPSA; its n-th draw is a function of (seed, n)."""
    count = 0

    def uniform(
        shape: Any, minval: float, maxval: float, dtype: Any
    ) -> tf.Tensor:
        nonlocal count
        count += 1
        draw = tf.random.experimental.stateless_fold_in(
            seed, count, alg="philox"
        )
        return tf.random.stateless_uniform(
            shape, draw, minval, maxval, dtype, alg="philox"
        )

    seeded = _Namespace(tf, random=_Namespace(tf.random, uniform=uniform))

    class Adam:
        """A replacement of SPSAAdam, which Keras 3 cannot construct."""

        _get_delta = _with(spsa.SPSAAdam._get_delta, tf=seeded)
        _compute_gradients = spsa.SPSAAdam._compute_gradients
        _apply_gradients = spsa.SPSAAdam._apply_gradients
        init_state = spsa.SPSAAdam.init_state
        minimize = spsa.SPSAAdam.minimize
        # The defaults of Adam in Keras.
        beta_1, beta_2, epsilon = 0.9, 0.999, 1e-7

        def __init__(
            self, lr: float, delta: float, num_samples: int, num_iters: int
        ) -> None:
            self.lr = lr
            self._delta = delta
            # Each sample is used with both signs.
            self._num_samples = num_samples // 2
            self._num_iters = num_iters

    return _with(
        spsa.spsa,
        SPSAAdam=Adam,
        projected_optimization=_with(spsa.projected_optimization, tf=seeded),
    )
