"""PGD for networks with shattered or random gradients."""

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import Attack
from tfsam.attacks.base import next_seeds
from tfsam.attacks.logits import input_gradient
from tfsam.support import validators


# Registered, so that a model trained with it can be saved and loaded.
@keras.saving.register_keras_serializable(package="tfsam_smooth_pgd")
class SmoothPGD(Attack):
    """PGD along a gradient averaged over noise (Wu et al., 2018, vr-IGSM).

    x_{t+1} = Proj_{B(x, epsilon)}(x_t + step_size * d_t), d_t the steepest
    direction of mean_i grad L(x_t + noise * xi_i), xi_i standard normal. The
    mean is the gradient of a smoothed loss: ripples finer than the noise, and
    randomness inside the network, cancel out.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of steps, >= 0.
        draws: gradients per step, each with its own noise, >= 1.
        noise: standard deviation of the noise, in the units of x, >= 0.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    source = "Wu et al., 2018"
    # The attack uses TensorFlow operations only, and its epsilon may be a
    # tensor: evaluation traces it once for all epsilons, and
    # `RobustModel(perturb_inputs=SmoothPGD(...))` can train with it.
    in_graph = True
    tensor_epsilon = True

    def __init__(
        self,
        epsilon,
        norm="linf",
        steps=10,
        draws=8,
        noise=0.05,
        bounds=(0.0, 1.0),
    ):
        super().__init__(epsilon, norm, bounds)
        self.steps = validators.check_count("steps", steps)
        self.draws = validators.check_count("draws", draws, 1)
        self.noise = validators.check_number("noise", noise)

    @property
    def gradients(self):
        """The number of gradients of a batch, for the cost of training."""
        return self.steps * self.draws

    def perturb(self, logits_fn, x, y, seeds):
        """Returns the last iterate; `seeds` has a row for each example."""
        gradient = input_gradient(logits_fn)
        step_size = self.epsilon / (4 if self.norm == "linf" else 8)

        def slope(x_adv, run):
            # Each draw has its own seeds, independent of the rest of the batch.
            noise = geometry.random_normal(
                next_seeds(seeds, run), tf.shape(x), x.dtype
            )
            near = self.clip(x_adv + self.noise * noise)
            # In training the batch size is unknown, so the noise has no static
            # shape; the network may need one.
            return gradient(tf.ensure_shape(near, x.shape), y)[0]

        def step(index, x_adv):
            runs = [index * self.draws + draw for draw in range(self.draws)]
            mean = tf.add_n([slope(x_adv, run) for run in runs]) / self.draws
            moved = x_adv + step_size * geometry.steepest(mean, self.norm)
            inside = geometry.project(moved - x, self.epsilon, self.norm)
            return index + 1, self.clip(x + inside)

        # A Python loop would add the network to the graph once for each step.
        _, x_adv = tf.while_loop(
            lambda index, _: index < self.steps,
            step,
            (0, x),
            parallel_iterations=1,
        )
        return x_adv
