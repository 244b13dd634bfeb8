"""Auto-PGD compared with the reference implementation from equal starts.

  python -m experiments.compare_starts
  python -m experiments.compare_starts --norm=l2 --epsilon=0.5 --seeds=4

Both search from the same random points; a second search of the reference begins
at random points of its own. If the two searches are the same algorithm, the
first two columns have the same survivors, image by image, and the third differs
as two seeds do.

Prints Markdown: for each loss and seed the survivors among 200 digits, and the
number of images on which the searches from equal starts disagree; then the
means over the seeds. It needs pip install -e ".[bench]".
"""

import sys

import numpy as np
import tensorflow as tf
from absl import flags

import tfsam
from experiments import command
from experiments import reference
from tfsam.attacks.autoattack import apgd_search
from tfsam.attacks.autoattack.apgd import APGD
from tfsam.attacks.seeds import example_seeds

FLAGS = flags.FlagValues()
_NORM = flags.DEFINE_enum("norm", "linf", ["linf", "l2"], "Norm.", FLAGS)
_EPSILON = flags.DEFINE_float("epsilon", 0.1, "Budget.", flag_values=FLAGS)
_SEEDS = flags.DEFINE_integer(
    "seeds", 12, "Number of seeds.", flag_values=FLAGS
)
_IMAGES = flags.DEFINE_integer(
    "images", 200, "Images attacked.", flag_values=FLAGS
)
_NETWORK = flags.DEFINE_enum(
    "network",
    "standard",
    ["standard", "adversarial"],
    "Network of the digits.",
    FLAGS,
)

# The reference's name of each loss.
LOSSES = {"cross_entropy": "ce", "dlr": "dlr"}
HEADER = (
    "| loss | seed | tfsam | reference, equal starts | images that differ "
    "| reference, its own starts |"
)


def main():
    """Prints a row for each loss and seed, and the means."""
    x, y = reference.digits(_IMAGES.value)
    model = reference.digits_cnn(reference.arrays(), _NETWORK.value)
    right = np.argmax(model(x), axis=1) == y
    print(HEADER)
    print("|" + "---|" * HEADER.count(" | ") + "---|", flush=True)
    for loss in LOSSES:
        attack = APGD(_EPSILON.value, _NORM.value, loss=loss)
        found = []
        for seed in range(_SEEDS.value):
            starts = _starts(attack, x, seed)
            ours = right & _ours(attack, model, x, y, right, seed)
            equal, own = (
                right & _theirs(attack, model, x, y, seed, start)
                for start in (starts, None)
            )
            survivors = ours.sum(), equal.sum(), (ours != equal).sum()
            found.append((*survivors, own.sum()))
            print(_row(loss, seed, found[-1]), flush=True)
        means = [f"{mean:.1f}" for mean in np.mean(found, axis=0)]
        print(_row(loss, "mean", means), flush=True)


def _row(loss, seed, numbers):
    return f"| {loss} | {seed} | " + " | ".join(map(str, numbers)) + " |"


def _starts(attack, x, seed):
    """Returns the points at which tfsam's search of a seed begins."""
    seeds = example_seeds(seed, len(x))
    return apgd_search.start(attack, tf.constant(x), seeds).numpy()


def _ours(attack, model, x, y, right, seed):
    """Returns which images tfsam's search leaves correctly classified."""
    logits = tfsam.attacks.Logits(
        lambda x: model(x, training=False), rows=min(len(x), 128)
    )
    run = tf.function(
        lambda x, y: attack(logits.only(right), x, y, seed), autograph=False
    )
    found = run(tf.constant(x), tf.constant(y))
    return np.argmax(model(found), axis=1) == y


def _theirs(attack, model, x, y, seed, starts):
    """Returns which images the reference's search leaves.

    Args:
        attack: tfsam's attack.
        model: the Keras model.
        x: float array (batch, height, width, channels).
        y: int array (batch,).
        seed: seed of the reference's own starts.
        starts: float array of x's shape, or None.
    """
    import torch
    from pyautoattack.autopgd_base import APGDAttack

    from experiments.torch_networks import sequential

    def tensor(images):
        return torch.tensor(images.transpose(0, 3, 1, 2).copy())

    search = APGDAttack(
        sequential(model),
        n_iter=attack.steps,
        norm=attack.norm.capitalize(),
        eps=attack.epsilon,
        loss=LOSSES[attack.loss],
    )
    search.init_hyperparam(tensor(x))
    torch.manual_seed(seed)
    _, survives, _, _ = search.attack_single_run(
        tensor(x),
        torch.tensor(y),
        x_init=None if starts is None else tensor(starts),
    )
    return survives.numpy().astype(bool)


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
