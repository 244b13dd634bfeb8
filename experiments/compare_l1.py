"""l1 AutoAttack compared with the reference implementation, image by image.

  python -m experiments.compare_l1
  python -m experiments.compare_l1 --model=model.keras --dataset=folder:DIR
      --epsilons=4,8

The first line attacks the tests' two networks on 200 digits. The second attacks
a network of your own, a chain of convolutions and dense layers, on its test
images. Both attacks of a pair see the same network, in Keras and in PyTorch.
The Keras model judges the images of both. Images of the reference that leave
the ball by rounding are moved back first.

Prints Markdown: the robust accuracies, and the number of images that one
attack broke and the other did not. It needs pip install -e ".[bench]".
"""

import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfsam
from experiments import command
from experiments import reference
from tfsam import geometry
from tfsam.attacks.autoattack import AutoAttack

FLAGS = flags.FlagValues()
_ATTACKS = flags.DEFINE_list(
    "attacks",
    ["autoattack"],
    "autoattack, and stages of it: apgd_ce, apgd_t, fab_t, square.",
    flag_values=FLAGS,
)
_EPSILONS = flags.DEFINE_list(
    "epsilons", ["1", "1.5"], "Values of epsilon.", flag_values=FLAGS
)
_IMAGES = flags.DEFINE_integer(
    "images", 200, "Images attacked.", flag_values=FLAGS
)
_MODEL = flags.DEFINE_string(
    "model", None, "A .keras file; None attacks the digits.", flag_values=FLAGS
)
_DATASET = flags.DEFINE_string(
    "dataset", None, "Images of the model.", flag_values=FLAGS
)
_SAVE = flags.DEFINE_string(
    "save",
    None,
    "An .npz file for the reference's verdicts.",
    flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of both.", flag_values=FLAGS)

BOUNDS = (0.0, 1.0)
HEADER = (
    "| network | attack | epsilon | tfsam | reference | broken by tfsam alone "
    "| by the reference alone | outside before | seconds, tfsam | reference |"
)


def main():
    """Prints a row for each network, attack and epsilon."""
    print(HEADER)
    print("|" + "---|" * HEADER.count(" | ") + "---|", flush=True)
    verdicts = {}
    for name, model, x, y in _cases():
        right = np.argmax(model(x), axis=1) == y
        for attack in _ATTACKS.value:
            for epsilon in map(float, _EPSILONS.value):
                started = time.perf_counter()
                own = _ours(model, x, y, right, attack, epsilon)
                between = time.perf_counter()
                other = _theirs(model, x, y, attack, epsilon)
                ended = time.perf_counter()
                inside, outside = within(x, other, epsilon)
                ours, theirs = (
                    right & (np.argmax(model(found), axis=1) == y)
                    for found in (own, inside)
                )
                verdicts[f"{name}/{epsilon:g}/{attack}"] = theirs
                if _SAVE.value:
                    np.savez_compressed(_SAVE.value, **verdicts)
                print(
                    f"| {name} | {attack} | {epsilon:g} | {ours.mean():.3f} "
                    f"| {theirs.mean():.3f} | {(theirs & ~ours).sum()} "
                    f"| {(ours & ~theirs).sum()} | {outside} "
                    f"| {between - started:.0f} | {ended - between:.0f} |",
                    flush=True,
                )


def _cases():
    """Yields (name, Keras model, images, labels)."""
    if _MODEL.value:
        images = tfsam.data.load(_DATASET.value, limit_test=_IMAGES.value)
        x = tfsam.data.as_float(images.x_test)
        model = keras.saving.load_model(_MODEL.value, compile=False)
        yield pathlib.Path(_MODEL.value).stem, model, x, images.y_test
        return
    x, y = reference.digits(_IMAGES.value)
    arrays = reference.arrays()
    for name in ("standard", "adversarial"):
        yield name, reference.digits_cnn(arrays, name), x, y


def _ours(model, x, y, right, name, epsilon):
    """Returns tfsam's images."""
    attack = AutoAttack(epsilon, "l1", BOUNDS)
    attack = dict(attack.stages).get(name, attack)
    logits = tfsam.attacks.Logits(
        lambda x: model(x, training=False), rows=min(len(x), 128)
    )
    run = tf.function(
        lambda x, y: attack(logits.only(right), x, y, _SEED.value),
        autograph=False,
    )
    return run(tf.constant(x), tf.constant(y)).numpy()


def _theirs(model, x, y, name, epsilon):
    """Returns the images of the reference."""
    import torch
    from pyautoattack import AutoAttack as Reference

    from experiments.torch_networks import sequential

    attack = Reference(
        sequential(model), norm="L1", eps=epsilon, seed=_SEED.value
    )
    attack.verbose = False
    if name != "autoattack":
        attack.attacks_to_run = [name.replace("_", "-")]
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    found = attack.run_standard_evaluation(
        images, torch.tensor(y), batch_size=len(x)
    )
    if isinstance(found, tuple):
        found = found[0]
    return found.numpy().transpose(0, 2, 3, 1)


def within(x, found, epsilon):
    """Moves images back into the ball and the bounds.

    Args:
        x: float array (batch, ...), the centres of the balls.
        found: float array of x's shape.
        epsilon: the radius in l1.

    Returns:
        The images, and how many of them were outside by more than three units
        in the last place of float32.
    """
    found = np.clip(found, *BOUNDS)
    inside = geometry.shrink(
        tf.constant(x), tf.constant(found), epsilon, "l1"
    ).numpy()
    moved = (inside != found).reshape(len(x), -1)
    return inside, int(moved.any(axis=1).sum())


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
