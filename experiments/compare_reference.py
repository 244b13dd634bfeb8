"""AutoAttack compared with the reference implementation, image by image.

  python -m experiments.compare_reference --norm=l1
  python -m experiments.compare_reference --norm=linf
      --attacks=autoattack,autoattack_plus,autoattack_rand,fab
  python -m experiments.compare_reference --norm=l1 --model=model.keras
      --dataset=folder:DIR --epsilons=4,8

Without --model the tests' two networks are attacked on 200 digits. A network of
your own must be a chain of convolutions and dense layers; its test images are
attacked. Both attacks of a pair see the same network, in Keras and in PyTorch.
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
from tfsam.attacks.autoattack.versions import AutoAttackPlus
from tfsam.attacks.autoattack.versions import AutoAttackRand

FLAGS = flags.FlagValues()
_NORM = flags.DEFINE_enum(
    "norm", "linf", list(geometry.NORMS), "Norm.", flag_values=FLAGS
)
_ATTACKS = flags.DEFINE_list(
    "attacks",
    ["autoattack"],
    "autoattack, autoattack_plus, autoattack_rand, and stages of them: "
    "apgd_ce, apgd_dlr, apgd_t, fab, fab_t, square.",
    flag_values=FLAGS,
)
_EPSILONS = flags.DEFINE_list(
    "epsilons",
    None,
    "Values of epsilon; None is two at which some images survive.",
    flag_values=FLAGS,
)
_IMAGES = flags.DEFINE_integer(
    "images", 200, "Images attacked.", flag_values=FLAGS
)
_MODEL = flags.DEFINE_string(
    "model", None, "A .keras file; None attacks the digits.", flag_values=FLAGS
)
_NETWORKS = flags.DEFINE_list(
    "networks",
    ["standard", "adversarial"],
    "Networks of the digits.",
    flag_values=FLAGS,
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
EPSILONS = {"linf": [0.1, 0.15], "l2": [0.5, 1.0], "l1": [1.0, 1.5]}
HEADER = (
    "| network | attack | epsilon | tfsam | reference | broken by tfsam alone "
    "| by the reference alone | outside before | seconds, tfsam | reference |"
)

# Versions of AutoAttack, with the reference's names for them.
VERSIONS = {
    "autoattack": (AutoAttack, "standard"),
    "autoattack_plus": (AutoAttackPlus, "plus"),
    "autoattack_rand": (AutoAttackRand, "rand"),
}
# Stages that only AutoAttack+ has, where they restart.
OF_PLUS = ("apgd_dlr", "fab")


def main():
    """Prints a row for each network, attack and epsilon."""
    print(HEADER)
    print("|" + "---|" * HEADER.count(" | ") + "---|", flush=True)
    verdicts = {}
    epsilons = _EPSILONS.value or EPSILONS[_NORM.value]
    for name, model, x, y in _cases():
        right = np.argmax(model(x), axis=1) == y
        for attack in _ATTACKS.value:
            for epsilon in map(float, epsilons):
                started = time.perf_counter()
                own = _ours(model, x, y, right, attack, epsilon)
                between = time.perf_counter()
                other = _theirs(model, x, y, attack, epsilon)
                ended = time.perf_counter()
                inside, outside = within(x, other, epsilon, _NORM.value)
                ours, theirs = (
                    right & (np.argmax(model(found), axis=1) == y)
                    for found in (own, inside)
                )
                verdicts[f"{name}/{epsilon:g}/{attack}"] = theirs
                if _SAVE.value:
                    np.savez_compressed(_SAVE.value, **verdicts)
                print(
                    f"| {name} | {attack} | {_NORM.value} {epsilon:g} "
                    f"| {ours.mean():.3f} "
                    f"| {theirs.mean():.3f} | {(theirs & ~ours).sum()} "
                    f"| {(ours & ~theirs).sum()} | {outside} "
                    f"| {between - started:.0f} | {ended - between:.0f} |",
                    flush=True,
                )


def _cases():
    """Yields (name, Keras model, images, labels)."""
    if _MODEL.value:
        images = tfsam.data.load(
            _DATASET.value, part="test", limit_test=_IMAGES.value
        )
        x = tfsam.data.as_float(images.x_test)
        model = keras.saving.load_model(_MODEL.value, compile=False)
        yield pathlib.Path(_MODEL.value).stem, model, x, images.y_test
        return
    x, y = reference.digits(_IMAGES.value)
    arrays = reference.arrays()
    for name in _NETWORKS.value:
        yield name, reference.digits_cnn(arrays, name), x, y


def ours_of(name, norm, epsilon):
    """Returns tfsam's attack of a name.

    Args:
        name: a version of AutoAttack, or a stage of one.
        norm: the norm.
        epsilon: the budget.

    Raises:
        ValueError: if there is no such attack in the norm.
    """
    if name in VERSIONS:
        return VERSIONS[name][0](epsilon, norm, BOUNDS)
    whole = AutoAttackPlus if name in OF_PLUS else AutoAttack
    stages = dict(whole(epsilon, norm, BOUNDS).stages)
    if name not in stages:
        raise ValueError(
            f"attacks must be {', '.join([*VERSIONS, *stages, *OF_PLUS])}. "
            f"Received: attack={name}"
        )
    return stages[name]


def _ours(model, x, y, right, name, epsilon):
    """Returns tfsam's images."""
    attack = ours_of(name, _NORM.value, epsilon)
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

    plus = "plus" if name in OF_PLUS else "standard"
    attack = Reference(
        sequential(model),
        norm=_NORM.value.capitalize(),
        eps=epsilon,
        seed=_SEED.value,
        version=VERSIONS.get(name, (None, plus))[1],
    )
    attack.verbose = False
    if name not in VERSIONS:
        attack.attacks_to_run = [name.replace("_", "-")]
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    found = attack.run_standard_evaluation(
        images, torch.tensor(y), batch_size=len(x)
    )
    if isinstance(found, tuple):
        found = found[0]
    return found.numpy().transpose(0, 2, 3, 1)


def within(x, found, epsilon, norm):
    """Moves images back into the ball and the bounds.

    Args:
        x: float array (batch, ...), the centres of the balls.
        found: float array of x's shape.
        epsilon: the radius.
        norm: the norm.

    Returns:
        The images, and how many of them were outside by more than three units
        in the last place of float32.
    """
    found = np.clip(found, *BOUNDS)
    if norm == "linf":
        # To a unit in the last place of the pixels, at most 1.
        radius = np.float64(epsilon) + 2.0**-23
        reach = x.astype(np.float64)
        inside = np.clip(found, reach - radius, reach + radius)
        inside = inside.astype(x.dtype)
    else:
        inside = geometry.shrink(
            tf.constant(x), tf.constant(found), epsilon, norm
        ).numpy()
    moved = (inside != found).reshape(len(x), -1)
    return inside, int(moved.any(axis=1).sum())


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
