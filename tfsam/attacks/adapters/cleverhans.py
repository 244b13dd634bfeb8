"""cleverhans's TensorFlow 2 attacks: FGM, PGD, BIM, MIM, Carlini-Wagner, SPSA.

Steps, projections, the momentum and the searches are cleverhans's own code
(4.0.0), run with the true labels. What differs from cleverhans as shipped, all
by `_with`, which changes nothing that others see:

- The gradient is that of `logits.input_gradient`: the same number, compiled as
  `logits_fn` says and shared by all attacks on it. cleverhans's own is a
  module-level `tf.function` that retraces for, and never frees, each new
  function, and fails on one that closes over another trace's tensors.
- The random start has cleverhans's law (uniform in the ball) but draws from the
  attack's seed, example by example; so does SPSA. cleverhans can only draw from
  TensorFlow's global generator.
- Carlini-Wagner is untargeted with labels, gets a constant per example where
  4.0.0 makes one per pixel (which fails for a batch of color images), an Adam
  with Keras 2's interface, and inputs of any rank. What it finds outside the
  epsilon ball is projected onto it.
- SPSA gets an optimizer that Keras 3 can construct, and its images one by one.

cleverhans computes in float32.
"""

import types

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
from tfsam.attacks.gradient import crosses
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import input_gradient
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number


class _CleverhansAttack(Attack):
    """What the adapters share: float32 in, the budget kept in x's dtype."""

    library = "cleverhans"
    in_graph = True
    selective = True

    def perturb(self, logits_fn, x, y, seeds):
        """Returns what cleverhans finds."""
        if not self.in_graph and tf.inside_function():
            raise ValueError(
                "This cleverhans attack runs eagerly, not in a tf.function or "
                f"in training. Received: attack={self}"
            )
        x_adv = self._run(
            logits_fn, tf.cast(x, tf.float32), losses.classes(y), seeds
        )
        if x.dtype == tf.float32:
            return x_adv
        return self._into_budget(x, tf.cast(x_adv, x.dtype))

    def _run(self, logits_fn, x, labels, seeds):
        raise TypeError(f"{type(self).__name__} has no _run().")

    def _into_budget(self, x, x_adv):
        perturbation = geometry.project(x_adv - x, self.epsilon, self.norm)
        return self.clip(x + perturbation)

    def _order_and_bounds(self):
        low, high = self.bounds or (None, None)
        order = np.inf if self.norm == "linf" else 2
        return {"norm": order, "clip_min": low, "clip_max": high}


@keras.saving.register_keras_serializable("tfsam", "CleverhansFGM")
class FGM(_CleverhansAttack):
    """The fast gradient method: one step of length epsilon.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        bounds: (lowest, highest) value of x, or None.
    """

    follows_gradient = False

    def _run(self, logits_fn, x, labels, seeds):
        attack = _with(
            fgm.fast_gradient_method, compute_gradient=_gradient_of(logits_fn)
        )
        return attack(
            logits_fn, x, self.epsilon, y=labels, **self._order_and_bounds()
        )


class _Iterative(_CleverhansAttack):
    """What PGD, BIM and MIM share: their steps."""

    # cleverhans asserts it, in PGD and thereby in BIM.
    _step_within_epsilon = True

    def __init__(self, epsilon, norm, steps, step_size, bounds):
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
    def follows_gradient(self):
        """Whether its steps, several of them, together cross the ball."""
        return crosses(self.epsilon, self.steps, self._length())

    def _length(self):
        if self.step_size is not None:
            return self.step_size
        return self.epsilon / (4 if self.norm == "linf" else 8)

    def _loop(self):
        return {
            "eps": self.epsilon,
            "eps_iter": self._length(),
            "nb_iter": self.steps,
            **self._order_and_bounds(),
        }


@keras.saving.register_keras_serializable("tfsam", "CleverhansPGD")
class PGD(_Iterative):
    """Projected gradient descent, the paper's evaluation with 10 steps.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients, >= 0.
        step_size: at most epsilon; None is epsilon/4 (l-inf) or epsilon/8 (l2).
        random_start: start at a point uniform in the ball, else at x.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=10,
        step_size=None,
        random_start=True,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, steps, step_size, bounds)
        self.random_start = random_start

    def _run(self, logits_fn, x, labels, seeds):
        def random_lp_vector(shape, ord, eps, dtype):
            del ord
            return geometry.random_point(seeds, shape, eps, self.norm, dtype)

        attack = _with(_pgd_on(logits_fn), random_lp_vector=random_lp_vector)
        # rand_init=None, cleverhans's default, is no random start.
        return attack(
            logits_fn,
            x,
            y=labels,
            rand_init=bool(self.random_start),
            **self._loop(),
        )


@keras.saving.register_keras_serializable("tfsam", "CleverhansBIM")
class BIM(_Iterative):
    """The basic iterative method: PGD from x itself.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients, >= 0.
        step_size: at most epsilon; None is epsilon/4 (l-inf) or epsilon/8 (l2).
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=10,
        step_size=None,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, steps, step_size, bounds)

    def _run(self, logits_fn, x, labels, seeds):
        attack = _with(
            bim.basic_iterative_method,
            projected_gradient_descent=_pgd_on(logits_fn),
        )
        # Its sanity checks read tensors' values, which a graph has not.
        return attack(
            logits_fn, x, y=labels, sanity_checks=False, **self._loop()
        )


@keras.saving.register_keras_serializable("tfsam", "CleverhansMIM")
class MIM(_Iterative):
    """The momentum iterative method (Dong et al., 2018), from x itself.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of gradients, >= 0.
        step_size: None is epsilon/4 (l-inf) or epsilon/8 (l2), as for PGD;
            cleverhans's own default is 0.06, for an epsilon of 0.3.
        decay_factor: what a step keeps of the momentum, >= 0.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    _step_within_epsilon = False

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=10,
        step_size=None,
        decay_factor=1.0,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, steps, step_size, bounds)
        self.decay_factor = check_number("decay_factor", decay_factor)

    def _run(self, logits_fn, x, labels, seeds):
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
    """Carlini and Wagner's l2 attack (2017), away from the true label.

    It looks for the smallest perturbation, whatever epsilon: one that is larger
    than epsilon is projected onto the ball, and has most often lost its effect.
    It runs eagerly, `steps * search_steps` gradients a batch, and traces the
    model once a batch.

    The defaults are for a batch in minutes on a CPU; those of cleverhans are
    1000 steps, 5 search steps and a first constant of 0.01.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "l2".
        steps: steps of Adam for each constant, >= 0.
        search_steps: number of constants tried, >= 1.
        initial_const: first weight of the margin against the distance.
        learning_rate: Adam's, in the space of arctanh pixels.
        bounds: (lowest, highest) value of x.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = False
    # Many steps, towards the nearest point: within a given epsilon it is weak.
    follows_gradient = False

    def __init__(
        self,
        epsilon,
        norm="l2",
        steps=100,
        search_steps=3,
        initial_const=1.0,
        learning_rate=0.005,
        bounds=(0.0, 1.0),
    ):
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

    def _run(self, logits_fn, x, labels, seeds):
        search = _UntargetedCarliniWagner(
            # cleverhans takes batches of rank 4 only.
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
        return self._into_budget(x, tf.reshape(found, tf.shape(x)))


@keras.saving.register_keras_serializable("tfsam", "CleverhansSPSA")
class SPSA(_CleverhansAttack):
    """SPSA (Uesato et al., 2018): Adam on gradients estimated from logits.

    It needs no gradient of the model, and is slow: image by image, eagerly,
    `steps * samples` forward passes each.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf".
        steps: steps of Adam, >= 0.
        samples: forward passes for an estimate, an even number >= 2.
        delta: distance of the samples from the iterate, > 0.
        learning_rate: Adam's.
        early_stop: leave an image once it is misclassified.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    in_graph = False
    gradient_free = True

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=10,
        samples=128,
        delta=0.01,
        learning_rate=0.01,
        early_stop=True,
        bounds=(0.0, 1.0),
    ):
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

    def _run(self, logits_fn, x, labels, seeds):
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
                # The margin of the true label, < 0 once it has lost.
                early_stop_loss_threshold=0.0 if self.early_stop else None,
                learning_rate=self.learning_rate,
                delta=self.delta,
                spsa_samples=self.samples,
            )
            images.append(image)
        return tf.concat(images, axis=0)


def _with(function, **names):
    """A copy of cleverhans's function that finds `names` instead of its own.

    No module is patched: only who holds the copy sees them.
    """
    return types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
    )


def _gradient_of(logits_fn):
    """What stands in for cleverhans's `compute_gradient` of cross-entropy."""
    gradient = input_gradient(logits_fn, losses.cross_entropy)
    # cleverhans's loops unroll in a graph: the model is traced once, not once a
    # step. Eagerly, a fresh tf.function would trace it for each batch.
    compiled = isinstance(gradient, tf.types.experimental.PolymorphicFunction)
    if tf.inside_function() and not compiled:
        gradient = tf.function(gradient, autograph=False)

    def compute_gradient(model_fn, loss_fn, x, y, targeted):
        del model_fn, loss_fn, targeted
        return gradient(x, y, examples(logits_fn, x))[0]

    return compute_gradient


def _pgd_on(logits_fn):
    step = _with(
        fgm.fast_gradient_method, compute_gradient=_gradient_of(logits_fn)
    )
    return _with(pgd.projected_gradient_descent, fast_gradient_method=step)


class _Namespace:
    """A module, but for the names given."""

    def __init__(self, module, **names):
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(self._module, name)


class _UntargetedCarliniWagner(cw.CarliniWagnerL2):
    """The search of cleverhans, repaired where 4.0.0 fails."""

    def __init__(self, model_fn, *, learning_rate, **arguments):
        super().__init__(model_fn, learning_rate=learning_rate, **arguments)
        # 4.0.0 takes any labels for targets.
        self.targeted = False
        self.optimizer = _Keras2Adam(learning_rate)

    # 4.0.0 asks for tf.ones(x.shape) where it means one constant an example.
    _attack = _with(
        cw.CarliniWagnerL2._attack,
        tf=_Namespace(tf, ones=lambda shape: tf.ones(shape[:1])),
    )


class _Keras2Adam:
    """Adam with the part of Keras 2's interface that Carlini-Wagner uses."""

    def __init__(self, learning_rate):
        self._adam = keras.optimizers.Adam(learning_rate)

    def apply_gradients(self, gradients_and_variables):
        self._adam.apply_gradients(gradients_and_variables)

    def variables(self):
        # Those that a restart sets to zero: not the learning rate.
        rate = self._adam.learning_rate
        return [v for v in self._adam.variables if v is not rate]


def _seeded_spsa(seed):
    """The SPSA of cleverhans whose n-th draw is a function of (seed, n)."""
    count = 0

    def uniform(shape, minval, maxval, dtype):
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
        """Stands in for SPSAAdam, whose constructor Keras 3 refuses."""

        _get_delta = _with(spsa.SPSAAdam._get_delta, tf=seeded)
        _compute_gradients = spsa.SPSAAdam._compute_gradients
        _apply_gradients = spsa.SPSAAdam._apply_gradients
        init_state = spsa.SPSAAdam.init_state
        minimize = spsa.SPSAAdam.minimize
        # Adam's defaults in Keras.
        beta_1, beta_2, epsilon = 0.9, 0.999, 1e-7

        def __init__(self, lr, delta, num_samples, num_iters):
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
