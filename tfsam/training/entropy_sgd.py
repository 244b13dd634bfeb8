"""Entropy-SGD: descend to where a short walk around the weights stays low.

It is an optimizer, so it combines with every RobustModel: the walk takes the
gradient that it is given, of SAM, of adversarial training or of both.
"""

import contextlib
import math

import keras
import tensorflow as tf

from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.training.optimizers import SGD

# How much of the walk's mean stays at each of its steps, in the authors' code.
KEPT = 0.75


@contextlib.contextmanager
def settled_weights(optimizer):
    """Puts the weights that an optimizer stands for in the variables.

    A context, for optimizers with a method `settled`, such as `EntropySGD`,
    which walks around w. Others, `use_ema` among them, are left as they are,
    see Keras's own validation.

    Args:
        optimizer: a Keras optimizer; one that holds others is searched.
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

    "Entropy-SGD: Biasing Gradient Descent Into Wide Valleys" maximises the
    local entropy: the log of the integral over x' of
    exp(-f(x') - gamma / 2 * ||x' - w||^2), which is large where a valley of the
    loss f is deep and wide. Its gradient, gamma * (mean of x' - w), comes from
    a walk, Langevin dynamics. A walk starts at x' = mu = w, at rest, and makes
    `inner_steps` steps, each with the gradient of a new batch:

        d  <- gradient at x' + weight_decay * x', with momentum
              + gamma_t * (x' - w)
              + noise / sqrt(inner_learning_rate / 2) * N(0, I)
        x' <- x' - inner_learning_rate * d
        mu <- 0.75 * mu + 0.25 * x'

    Then w makes a step of `tfsam.SGD` with the gradient w - mu (gamma is left
    to the learning rate): with learning rate 1, and neither momentum nor decay,
    w jumps to mu. gamma_t = gamma * (1 + scoping)^t after t steps of w.

    A step of the optimizer is a step of x': w moves once in `inner_steps`
    gradients, so compare with other optimizers at equal numbers of gradients.
    Learning rate schedules and `use_ema` count and average the steps of x' as
    well, and clipping is of the gradients at x'.

    The model's variables hold x' amid a walk, and w after it and at the end of
    `fit`. So Keras's validation and checkpoints after an epoch see w only if
    the epoch's steps are a multiple of `inner_steps`. `RobustValidation` and
    `StopAtCollapse` always measure and keep w.

    Args:
        learning_rate: of w; a number, a schedule, or a callable.
        momentum: in [0, 1], of w and, in a buffer of its own, of x'.
        weight_decay: >= 0, of w and of x', coupled as in `tfsam.SGD`.
        nesterov: whether both momentums are Nesterov's.
        inner_steps: steps of x' for one of w, an integer >= 0; 0 is
            `tfsam.SGD`.
        gamma: how strongly x' is drawn to w at first, >= 0.
        scoping: how much stronger after each step of w, relatively, >= 0. The
            walk diverges once inner_learning_rate * gamma_t exceeds 2.
        noise: the thermal noise, >= 0: a step adds noise of standard deviation
            noise * sqrt(2 * inner_learning_rate) to each weight.
        inner_learning_rate: of x', a number > 0.
        seed: of the noise, an integer.
        name: the optimizer's name.
        **kwargs: those of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.0,
        nesterov=True,
        *,
        inner_steps=20,
        gamma=1e-4,
        scoping=1e-3,
        noise=1e-4,
        inner_learning_rate=0.1,
        seed=0,
        name="entropy_sgd",
        **kwargs,
    ):
        super().__init__(
            learning_rate, momentum, weight_decay, nesterov, name, **kwargs
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

    def build(self, variables):
        """Creates each variable's w, mu, momentum of x', and clock."""
        if self.built:
            return
        super().build(variables)
        if not self.inner_steps:
            return
        self.centers = self._like(variables, "center")
        self.means = self._like(variables, "mean")
        if self.momentum:
            self.inner_momentums = self._like(variables, "inner_momentum")
        # Inner steps in all, but those of walks that were broken off. Each
        # variable has a clock: one that gets no gradient makes no walk.
        self.clocks = [
            self.add_variable((), dtype="int64", name="clock")
            for _ in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Moves one variable: x', and after the walk's last step w."""
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

    def finalize_variable_values(self, var_list):
        """Puts w in the variables, as Keras asks for at the end of `fit`.

        A walk that is not finished is broken off; the next step begins another.

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
    def settled(self):
        """Puts w in the variables for a while, and x' back after it.

        The walk goes on as if nothing had been.
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

    def get_config(self):
        """The constructor's arguments."""
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

    def _like(self, variables, name):
        return [
            self.add_variable_from_reference(v, name=name) for v in variables
        ]

    def _with_momentum(self, gradient, index, first):
        """The gradient at x' with the walk's own momentum."""
        buffer = self.inner_momentums[index]
        kept = tf.where(first, tf.zeros_like(buffer), buffer)
        self.assign(buffer, self.momentum * kept + gradient)
        if self.nesterov:
            return gradient + self.momentum * buffer
        return tf.convert_to_tensor(buffer)

    def _walk(self, gradient, variable, index, walks):
        """One step of the walk: returns the new x', takes it into mu."""
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

    def _draw(self, variable, index):
        """Noise keyed by the step: the same on replicas and if resumed."""
        seed = tf.random.experimental.stateless_fold_in(
            tf.constant([self.seed, index], tf.int64),
            self.iterations,
            alg="philox",
        )
        return tf.random.stateless_normal(
            variable.shape, seed, dtype=variable.dtype, alg="philox"
        )

    def _step_or_walk_on(self, variable, index, learning_rate, last, moved):
        """Puts in the variable SGD's step from w if it is time, else x'."""
        center = tf.convert_to_tensor(self.centers[index])
        # SGD steps each time and is undone amid a walk: a choice of elements,
        # not a branch, runs under every strategy and in XLA.
        momentums = self.momentums[index : index + 1] if self.momentum else []
        before = [tf.convert_to_tensor(buffer) for buffer in momentums]
        self.assign(variable, center)
        super().update_step(center - self.means[index], variable, learning_rate)
        self.assign(variable, tf.where(last, variable, moved))
        for buffer, value in zip(momentums, before, strict=True):
            self.assign(buffer, tf.where(last, buffer, value))
