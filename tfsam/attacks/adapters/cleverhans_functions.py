"""Functions of cleverhans with some of the names that they look up replaced.

The modules of cleverhans are not changed. The defects of cleverhans 4.0.0 that
are worked around here are listed in `cleverhans.py`.
"""

import types
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from cleverhans.tf2.attacks import carlini_wagner_l2 as cw
from cleverhans.tf2.attacks import fast_gradient_method as fgm
from cleverhans.tf2.attacks import projected_gradient_descent as pgd
from cleverhans.tf2.attacks import spsa

from tfsam.attacks import losses
from tfsam.attacks.logits import LogitsFn
from tfsam.attacks.logits import examples
from tfsam.attacks.logits import input_gradient


def replaced(function: Any, **names: Any) -> Any:
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


def gradient_of(logits_fn: LogitsFn) -> Callable[..., tf.Tensor]:
    """Returns a replacement of cleverhans's `compute_gradient`.

    Args:
        logits_fn: Function from pixels to logits.
    """
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


def pgd_on(logits_fn: LogitsFn) -> Any:
    """Returns cleverhans's PGD with the gradient of `gradient_of`.

    Args:
        logits_fn: Function from pixels to logits.
    """
    step = replaced(
        fgm.fast_gradient_method, compute_gradient=gradient_of(logits_fn)
    )
    return replaced(pgd.projected_gradient_descent, fast_gradient_method=step)


class _Namespace:
    """A view of a module with some names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class UntargetedCarliniWagner(cw.CarliniWagnerL2):
    """The search of cleverhans, with the faults of 4.0.0 corrected."""

    def __init__(
        self, model_fn: LogitsFn, *, learning_rate: float, **arguments: Any
    ) -> None:
        super().__init__(model_fn, learning_rate=learning_rate, **arguments)
        # 4.0.0 treats any labels as targets.
        self.targeted = False
        self.optimizer = _Keras2Adam(learning_rate)

    # 4.0.0 calls tf.ones(x.shape) for its constants, one for each example.
    _attack = replaced(
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


def seeded_spsa(seed: tf.Tensor) -> Any:
    """Returns cleverhans's SPSA; its n-th draw is a function of (seed, n).

    Args:
        seed: int32 tensor (2,).
    """
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

        _get_delta = replaced(spsa.SPSAAdam._get_delta, tf=seeded)
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

    return replaced(
        spsa.spsa,
        SPSAAdam=Adam,
        projected_optimization=replaced(spsa.projected_optimization, tf=seeded),
    )
