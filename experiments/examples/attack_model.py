"""Attack a model that you already have, however it was trained.

  python attack_model.py MODEL DATA.npz

MODEL is a file of Keras 1 to 3 or the folder of a SavedModel. DATA.npz holds
the arrays x_train, y_train, x_test and y_test: x is uint8 or float in [0, 1], y
has the numbers of the classes.

A softmax at the end of a file's model is removed: its gradients vanish, so the
model would look robust. The pixels that it was trained on, such as 0..255, are
found by natural accuracy. A model in memory is taken as it is;
`tfsam.models.load` does the same to it:

  model = tfsam.models.load(keras_model, pixels="0..255")
  model.save("model.keras")  # From pixels in [0, 1] to logits.

Warnings below a table are signs of a misleading result:

  random_outputs    The logits change from call to call: dropout or noise is
                    active. Gradient attacks follow one draw and find too
                    little.
  batch_dependent   An image's logits depend on the other images of its batch:
                    BatchNorm is in training mode. Every accuracy then depends
                    on the order of the images.
  no_gradients      The model cannot be differentiated. Only attacks that need
                    no gradient, square and noise, mean anything.
  zero_gradients    The loss is flat at some images, for instance because the
                    logits are huge. Trust pgd_dlr, apgd_t and square instead.
  nan_gradients     Gradients are NaN at some images, for instance through a
                    square root of 0: add a small constant inside the root.
  low_accuracy      Accuracy is near guessing without an attack: check that
                    pixels and labels match the model's training data.
  rescaled_pixels   The model begins with Rescaling(1/255) and gets pixels in
                    [0, 1].
  gradients_masked  Noise or square broke images that PGD could not: gradients
                    mislead here, and the true robust accuracy is lower,
                    possibly by far.
  few_classes       With fewer than ten classes, targeted attacks have fewer
                    targets than usual.
"""

import sys

import numpy as np
import tensorflow as tf
from absl import app

import tfsam

# In units of the pixels.
EPSILONS = [1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255]
FEW = 50


def main(argv):
    """Runs a sweep, AutoAttack, and a direct attack on one batch."""
    if len(argv) != 3:
        print("usage: python attack_model.py MODEL DATA.npz", file=sys.stderr)
        return 2
    _, path, data = argv

    try:
        # A limit takes that many test images, shuffled, of all classes.
        images = tfsam.data.load(f"npz:{data}", limit_test=1000)
        x, y = tfsam.data.as_float(images.x_test), images.y_test
        # PGD at all epsilons, next to random noise: an attack that is no better
        # than noise was misled.
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

    # PGD gives an upper bound. Papers report AutoAttack, which is hundreds of
    # times slower, so start with a few images. The interval shows the price.
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

    # A direct call. An attack takes any function from pixels to logits,
    # such as a Keras model; `load` makes one from either kind of file.
    pixels = standard["model"]["pixels"]
    logits_fn = tfsam.models.load(path, pixels)
    attack = tfsam.attacks.get("pgd_cw", epsilon=1.0, norm="l2", steps=20)
    adversarial = attack(logits_fn, few, labels, seed=0)
    before, after = (
        np.argmax(logits_fn(tf.constant(images)), axis=1)
        for images in (few, adversarial)
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
