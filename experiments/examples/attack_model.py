"""Attack a model that you already have, however it was trained.

  python attack_model.py MODEL DATA.npz

MODEL is a .keras file or the folder of a SavedModel, from pixels in [0, 1] to
logits. DATA.npz holds the arrays x_train, y_train, x_test and y_test: x uint8
or floats in [0, 1], y the numbers of the classes.

A model that ends in a softmax is refused: its gradients vanish, and it would
look robust. One that wants pixels in 0..255, or normalised, must make them so
itself. Both are mended in Keras:

  model = keras.saving.load_model("old.keras")
  model.layers[-1].activation = keras.activations.linear
  rescaling = keras.layers.Rescaling(255)  # or Normalization(mean=, variance=)
  inputs = keras.Input(model.input_shape[1:])
  keras.Model(inputs, model(rescaling(inputs))).save("model.keras")

Below a table may stand warnings, which say when not to believe it:

  random_outputs    the model answers anew each time: dropout or noise is on.
                    Gradient attacks follow one draw, and find too little.
  batch_dependent   an image's logits depend on its neighbours: BatchNorm is in
                    training mode. Every accuracy depends on the order, then.
  no_gradients      the model cannot be differentiated. Only the attacks that
                    need no gradient, square and noise, say something.
  zero_gradients    the loss is flat at some images, for instance because the
                    logits are huge. Believe pgd_dlr, apgd_t and square instead.
  nan_gradients     gradients are NaN at some images, for instance by a square
                    root of 0: add a small constant inside of it.
  low_accuracy      it is near guessing without an attack: are pixels and labels
                    those that it was trained on?
  rescaled_pixels   it begins with Rescaling(1/255), and gets pixels in [0, 1].
  gradients_masked  noise or square broke what PGD could not: gradients mislead
                    here, and the true robust accuracy is lower, maybe by far.
  few_classes       there are fewer than ten classes: what the targeted attacks
                    do then.
"""

import sys

import numpy as np
import tensorflow as tf
from absl import app

import tfsam
from tfsam.models.loading import load_logits

# In units of the pixels.
EPSILONS = [1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255]
FEW = 50


def main(argv):
    """Sweeps, asks AutoAttack, and attacks one batch by hand."""
    if len(argv) != 3:
        print("usage: python attack_model.py MODEL DATA.npz", file=sys.stderr)
        return 2
    _, path, data = argv

    try:
        # With a limit, so many test images of all classes, shuffled.
        images = tfsam.data.load(f"npz:{data}", limit_test=1000)
        x, y = tfsam.data.as_float(images.x_test), images.y_test
        # PGD at all epsilons, and random noise beside it: an attack that is no
        # better than noise was misled.
        sweep = tfsam.evaluate(
            path,
            (x, y),
            attacks=["noise_linf", "pgd"],
            norm="linf",
            epsilons=EPSILONS,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(x)} images. The line without an attack is natural accuracy.")
    print(tfsam.reports.table(sweep))

    # PGD gives an upper bound. What papers report is AutoAttack, hundreds of
    # times as slow: a few images first. The interval says how few they are.
    few, labels = x[:FEW], y[:FEW]
    standard = tfsam.evaluate(
        path,
        (few, labels),
        attacks=["autoattack"],
        norm="linf",
        epsilons=[8 / 255],
        progress=print,
    )
    print(f"\nAutoAttack on {len(few)} of them:")
    print(tfsam.reports.table(standard))

    # One batch by hand. An attack takes any function from pixels to logits,
    # which a Keras model is; `load_logits` makes one of either kind of file.
    logits_fn = load_logits(path)
    attack = tfsam.attacks.get("pgd_cw", epsilon=1.0, norm="l2", steps=20)
    adversarial = attack(logits_fn, few, labels, seed=0)
    before, after = (
        np.argmax(logits_fn(tf.constant(pixels)), axis=1)
        for pixels in (few, adversarial)
    )
    moved = (adversarial.numpy() - few).reshape(len(few), -1)
    farthest = np.linalg.norm(moved, axis=1).max()
    changed = np.flatnonzero(before != after)
    print(f"\n{attack}")
    print(f"changed {len(changed)} answers of {len(few)}, by {farthest:.3f}.")
    for index in changed[:3]:
        print(f"image {index}: {before[index]} became {after[index]}")
    return 0


if __name__ == "__main__":
    app.run(main)
