"""PGD for networks whose gradients shatter or are random."""

import keras
import tensorflow as tf

from tfsam import geometry
from tfsam.attacks import Attack
from tfsam.attacks.base import next_seeds
from tfsam.attacks.logits import input_gradient
from tfsam.support import validators


# Registered, so that a model that is trained with it can be saved and loaded.
@keras.saving.register_keras_serializable(package="tfsam_smooth_pgd")
class SmoothPGD(Attack):
    """PGD along a gradient averaged over noise (Wu et al., 2018, vr-IGSM).

    x_{t+1} = Proj_{B(x, epsilon)}(x_t + step_size * d_t), d_t the steepest
    direction of mean_i grad L(x_t + noise * xi_i), xi_i standard normal. The
    mean is the gradient of a smoothed loss: ripples that are finer than the
    noise, and randomness of the network's own, cancel out.

    Args:
        epsilon: the largest perturbation, in the units of x, >= 0.
        norm: "linf" or "l2".
        steps: number of steps, >= 0.
        draws: gradients a step, each at noise of its own, >= 1.
        noise: its standard deviation, in the units of x, >= 0.
        bounds: (lowest, highest) value of x, or None.

    Raises:
        ValueError: if an argument is out of its range.
    """

    # It is made of TensorFlow's operations alone, for an epsilon that may be a
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

    def perturb(self, logits_fn, x, y, seeds):
        """Returns the last iterate; `seeds` has a row for each example."""
        gradient = input_gradient(logits_fn)
        step_size = self.epsilon / (4 if self.norm == "linf" else 8)

        def slope(x_adv, run):
            # Seeds of its own for each draw; the same whoever is in the batch.
            noise = geometry.random_normal(
                next_seeds(seeds, run), tf.shape(x), x.dtype
            )
            near = self.clip(x_adv + self.noise * noise)
            # In training the size of the batch is not known: with it, the rest
            # of the noise's shape is lost, which the network may need.
            return gradient(tf.ensure_shape(near, x.shape), y)[0]

        def step(index, x_adv):
            runs = [index * self.draws + draw for draw in range(self.draws)]
            mean = tf.add_n([slope(x_adv, run) for run in runs]) / self.draws
            moved = x_adv + step_size * geometry.steepest(mean, self.norm)
            inside = geometry.project(moved - x, self.epsilon, self.norm)
            return index + 1, self.clip(x + inside)

        # Not a loop of Python's, which would write the network into the graph
        # as often as there are steps.
        _, x_adv = tf.while_loop(
            lambda index, _: index < self.steps,
            step,
            (0, x),
            parallel_iterations=1,
        )
        return x_adv
