"""Entropy-SGD: an optimizer that explores the loss around the weights.

As an optimizer it combines with every `RobustModel`: its walk uses whatever
gradient the training step computes, of SAM, of adversarial training or of both.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.training.optimizers import SGD

# The weight of the walk's old mean at each of its steps, in the authors' code.
KEPT = 0.75


@contextlib.contextmanager
def settled_weights(optimizer: Any) -> Iterator[None]:
    """Returns a context in which the variables hold an optimizer's own weights.

    For optimizers with a method `settled`, such as `EntropySGD`, whose walk
    moves the variables around w. Other optimizers are left as they are,
    including those with `use_ema`, as in Keras's own validation.

    Args:
        optimizer: a Keras optimizer, or one that wraps others.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    with contextlib.ExitStack() as stack:
        for part in getattr(optimizer, "optimizers", [optimizer]):
            if hasattr(part, "settled"):
                stack.enter_context(part.settled())
        yield


@keras.saving.register_keras_serializable(package="tfsam")
class EntropySGD(SGD):
    """Entropy-SGD (Chaudhari et al., 2017, Algorithm 1), as its authors' code.

    "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys" maximizes the
    local entropy: the log of the integral over x' of
    exp(-f(x') - gamma / 2 * ||x' - w||^2), which is large where the loss f has
    a deep and wide valley. Its gradient, gamma * (mean of x' - w), is estimated
    by a walk (Langevin dynamics). A walk starts at x' = mu = w with zero
    momentum and makes `inner_steps` steps, each with the gradient of a new
    batch:

        d  <- gradient at x' + weight_decay * x', with momentum
              + gamma_t * (x' - w)
              + noise / sqrt(inner_learning_rate / 2) * N(0, I)
        x' <- x' - inner_learning_rate * d
        mu <- 0.75 * mu + 0.25 * x'

    Then w makes a step of `tfsam.SGD` with the gradient w - mu (the factor
    gamma is left to the learning rate): with learning rate 1 and neither
    momentum nor decay, w jumps to mu. After t steps of w,
    gamma_t = gamma * (1 + scoping)^t.

    A step of the optimizer is a step of x': w moves once in `inner_steps`
    gradients, so compare with other optimizers at equal numbers of gradients.
    Learning rate schedules and `use_ema` also count and average the steps of
    x', and clipping applies to the gradients at x'.

    The model's variables hold x' during a walk, and w after it and at the end
    of `fit`. So Keras's validation and checkpoints after an epoch see w only if
    the epoch's steps are a multiple of `inner_steps`. `RobustValidation` and
    `StopAtCollapse` always measure and keep w.

    Args:
        learning_rate: of w; a number, a schedule, or a callable.
        momentum: in [0, 1], of w and, in a separate buffer, of x'.
        weight_decay: >= 0, of w and of x', coupled as in `tfsam.SGD`.
        nesterov: whether both momentums are Nesterov's.
        inner_steps: steps of x' for one of w, an integer >= 0; with 0 it is
            `tfsam.SGD`.
        gamma: initial strength of the pull of x' to w, >= 0.
        scoping: relative growth of gamma at each step of w, >= 0. The walk
            diverges once inner_learning_rate * gamma_t exceeds 2.
        noise: the thermal noise, >= 0: a step adds noise of standard deviation
            noise * sqrt(2 * inner_learning_rate) to each weight.
        inner_learning_rate: of x', > 0.
        seed: of the noise, an integer >= 0.
        decay_exclude: see `tfsam.SGD`.
        global_clipnorm: see `tfsam.SGD`.
        name: the optimizer's name.
        **kwargs: arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import keras, tfsam
        >>> w = keras.Variable([1.0])
        >>> optimizer = tfsam.EntropySGD(
        ...     1.0, momentum=0, nesterov=False, inner_steps=2, gamma=0, noise=0
        ... )
        >>> for _ in range(2):  # The walk: 1, 0.9, 0.8; then w jumps to mu.
        ...     optimizer.apply([keras.ops.ones(1)], [w])
        >>> round(float(w[0]), 5)
        0.93125
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        weight_decay: float | None = 0.0,
        nesterov: bool = True,
        *,
        inner_steps: int = 20,
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        noise: float = 1e-4,
        inner_learning_rate: float = 0.1,
        seed: int = 0,
        name: str = "entropy_sgd",
        decay_exclude: str = "none",
        global_clipnorm: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *(learning_rate, momentum, weight_decay, nesterov, name),
            decay_exclude=decay_exclude,
            global_clipnorm=global_clipnorm,
            **kwargs,
        )
        self.inner_steps = check_count("inner_steps", inner_steps)
        self.gamma = check_number("gamma", gamma)
        self.scoping = check_number("scoping", scoping)
        self.noise = check_number("noise", noise)
        self.inner_learning_rate = check_number(
            "inner_learning_rate", inner_learning_rate
        )
        if inner_learning_rate == 0:
            raise ValueError(
                "inner_learning_rate must be > 0. "
                f"Received: inner_learning_rate={inner_learning_rate}"
            )
        self.seed = check_count("seed", seed)

    @property
    def momentum_sign(self) -> Any:
        """None: the momentum of w is not that of x', where gradients are."""
        return None if self.inner_steps else super().momentum_sign

    def build(self, variables: list[Any]) -> None:
        """Creates w, mu, the momentum of x' and a clock for each variable.

        Args:
            variables: the model's trainable variables.
        """
        if self.built:
            return
        super().build(variables)
        if not self.inner_steps:
            return
        self.centers = self._like(variables, "center")
        self.means = self._like(variables, "mean")
        if self.momentum:
            self.inner_momentums = self._like(variables, "inner_momentum")
        # The number of inner steps, without those of abandoned walks. Each
        # variable has a clock: one that gets no gradient makes no walk.
        self.clocks = [
            self.add_variable((), dtype="int64", name="clock")
            for _ in variables
        ]

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
    ) -> None:
        """Updates one variable: x', and after the walk's last step w.

        Args:
            gradient: tensor of the variable's shape, at x'.
            variable: the `keras.Variable`.
            learning_rate: of w, a scalar tensor.
        """
        if not self.inner_steps:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        done = tf.convert_to_tensor(self.clocks[index])
        first = tf.equal(done % self.inner_steps, 0)
        last = tf.equal((done + 1) % self.inner_steps, 0)
        # Between two walks the variable holds w.
        for start in (self.centers[index], self.means[index]):
            self.assign(start, tf.where(first, variable, start))

        gradient = self._with_decay(gradient, variable)
        if self.momentum:
            gradient = self._with_momentum(gradient, index, first)
        moved = self._walk(gradient, variable, index, done // self.inner_steps)
        self.assign(self.clocks[index], done + 1)
        self._step_or_walk_on(variable, index, learning_rate, last, moved)

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Assigns w to the variables; Keras calls this at the end of `fit`.

        An unfinished walk is abandoned; the next step begins a new one.

        Args:
            var_list: the model's trainable variables.
        """
        if self.built and self.inner_steps:
            for variable, center, clock in zip(
                self._trainable_variables,
                self.centers,
                self.clocks,
                strict=True,
            ):
                unfinished = clock % self.inner_steps
                variable.assign(tf.where(unfinished > 0, center, variable))
                clock.assign_sub(unfinished)
        super().finalize_variable_values(var_list)

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Returns a context in which the variables hold w.

        Afterwards they hold x' again, and the walk continues unchanged.
        """
        walking = []
        if self.built and self.inner_steps:
            walking = [
                (variable, center, tf.convert_to_tensor(variable))
                for variable, center, clock in zip(
                    self._trainable_variables,
                    self.centers,
                    self.clocks,
                    strict=True,
                )
                if int(tf.convert_to_tensor(clock)) % self.inner_steps
            ]
        for variable, center, _ in walking:
            variable.assign(center)
        try:
            yield
        finally:
            for variable, _, moved in walking:
                variable.assign(moved)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        config.update(
            inner_steps=self.inner_steps,
            gamma=self.gamma,
            scoping=self.scoping,
            noise=self.noise,
            inner_learning_rate=self.inner_learning_rate,
            seed=self.seed,
        )
        return config

    def _like(self, variables: list[Any], name: str) -> list[Any]:
        return [
            self.add_variable_from_reference(v, name=name) for v in variables
        ]

    def _with_momentum(self, gradient: Any, index: int, first: Any) -> Any:
        """Returns the gradient at x' with the walk's own momentum."""
        buffer = self.inner_momentums[index]
        kept = tf.where(first, tf.zeros_like(buffer), buffer)
        self.assign(buffer, self.momentum * kept + gradient)
        if self.nesterov:
            return gradient + self.momentum * buffer
        return tf.convert_to_tensor(buffer)

    def _walk(
        self, gradient: Any, variable: Any, index: int, walks: Any
    ) -> Any:
        """Returns x' after one more step of the walk, and updates mu."""
        growth = tf.cast(1.0 + self.scoping, variable.dtype) ** tf.cast(
            walks, variable.dtype
        )
        pull = self.gamma * growth * (variable - self.centers[index])
        direction = gradient + pull
        if self.noise:
            scale = self.noise / math.sqrt(0.5 * self.inner_learning_rate)
            direction += scale * self._draw(variable, index)
        moved = variable - self.inner_learning_rate * direction
        mean = self.means[index]
        self.assign(mean, KEPT * mean + (1 - KEPT) * moved)
        return moved

    def _draw(self, variable: Any, index: int) -> Any:
        """Returns noise keyed by the step, the same on all replicas."""
        seed = tf.random.experimental.stateless_fold_in(
            tf.constant([self.seed, index], tf.int64),
            self.iterations,
            alg="philox",
        )
        return tf.random.stateless_normal(
            variable.shape, seed, dtype=variable.dtype, alg="philox"
        )

    def _step_or_walk_on(
        self,
        variable: Any,
        index: int,
        learning_rate: Any,
        last: Any,
        moved: Any,
    ) -> None:
        """Assigns SGD's step from w after the walk's last step, else x'."""
        center = tf.convert_to_tensor(self.centers[index])
        # SGD makes its step every time and is undone during a walk: selecting
        # elements, unlike a branch, works under every strategy and in XLA.
        momentums = self.momentums[index : index + 1] if self.momentum else []
        before = [tf.convert_to_tensor(buffer) for buffer in momentums]
        self.assign(variable, center)
        super().update_step(center - self.means[index], variable, learning_rate)
        self.assign(variable, tf.where(last, variable, moved))
        for buffer, value in zip(momentums, before, strict=True):
            self.assign(buffer, tf.where(last, buffer, value))
