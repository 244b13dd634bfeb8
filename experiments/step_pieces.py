"""The pieces of a training step, which can be timed one by one."""

import tensorflow as tf

import tfsam
from tfsam.attacks.losses import cross_entropy
from tfsam.training import sub_batches
from tfsam.training.batch import Batch
from tfsam.weights.base import Step


def pieces(model, x, y):
    """Returns the parts of a step: functions without arguments by name.

    Args:
        model: a `RobustModel` that was trained for a step.
        x: images.
        y: labels.
    """
    x, y = tf.constant(x), tf.constant(y)
    variables = model.trainable_variables
    weights = [tf.convert_to_tensor(v.value) for v in variables]
    state = [tf.convert_to_tensor(v.value) for v in model._other_variables()]
    batch, scale = Batch(x, x, y, None), tf.ones(())
    gradients = model._pass(weights, state, batch, scale).gradients
    # A step at which LookSAM makes its second pass, and SSAM no mask.
    count, seed = tf.constant(10, tf.int64), tf.constant([0, 10])
    step = Step(
        kinds=model._kinds(),
        seed=seed,
        count=count,
        learning_rate=tf.constant(0.1),
        squared_gradients=lambda: (
            model._squared_gradients(weights, state, batch, scale),
            len(y),
        ),
    )

    def logits(pixels, training=False):
        with model._scope(weights, state):
            return model(pixels, training=training)

    def input_gradient():
        attacked = tfsam.attacks.Logits(logits, jit_compile=model._use_xla())
        return attacked.gradient(cross_entropy)(x, y)

    def weight_perturbation():
        chosen = model._perturbed_positions()
        return model.perturb_weights.perturb(
            [weights[i] for i in chosen],
            [gradients[i] for i in chosen],
            [tf.convert_to_tensor(v) for v in model.perturbation_state],
            step,
        )

    def all_passes():
        return sub_batches.sharpened(model, weights, state, batch, step)

    def attack():
        return model._perturbed_inputs(weights, state, x, y, count, seed)

    def optimizer():
        model.optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def forward_pass():
        return model._compiled(logits)(x, True)

    def one_pass():
        return model._compiled(model._pass)(weights, state, batch, scale)

    found = [forward_pass, one_pass]
    if model.perturb_inputs is not None:
        found += [input_gradient, attack]
    if model.perturb_weights is not None:
        found += [weight_perturbation]
    found += [all_passes, optimizer]
    return {
        piece.__name__: tf.function(piece, autograph=False) for piece in found
    }
