"""Train a network of your own with SAM on a folder of your images.

  python fit_folder.py IMAGES

IMAGES holds a folder of images for each class, or train and test with such
folders. Where images have several sizes, add image_size= to data.load below.
The script writes model.keras, saved_model/ and history.csv to the working
folder.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from absl import app

import tfsam

# In units of the pixels, which are in [0, 1].
EPSILONS = [1 / 255, 2 / 255, 4 / 255]


def make_network(images):
    """Returns a network from pixels to logits: any keras.Model will do."""
    mean, deviation = tfsam.data.statistics(images.x_train)
    return keras.Sequential(
        [
            keras.Input(images.x_train.shape[1:]),
            # Normalization belongs inside the network: attacks then change the
            # pixels themselves, and the saved model takes plain images.
            keras.layers.Normalization(
                mean=mean, variance=np.square(deviation)
            ),
            keras.layers.Conv2D(32, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(64, 3, 2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            # Logits: no softmax here, and from_logits=True in the loss.
            keras.layers.Dense(len(images.class_names)),
        ]
    )


def main(argv):
    """Trains, evaluates, saves and loads."""
    if len(argv) != 2:
        print("usage: python fit_folder.py IMAGES", file=sys.stderr)
        return 2
    try:
        images = tfsam.data.load(f"folder:{argv[1]}")
        # The test images serve the last table only. Choices during training are
        # made on a tenth of the training images.
        count = max(len(images.class_names), len(images.x_train) // 10)
        train, held_out = tfsam.data.hold_out(images, count, seed=0)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    x_held_out = tfsam.data.as_float(held_out.x_train)
    keras.utils.set_random_seed(0)

    # `network` stays an ordinary Keras model, and `model` trains it. With
    # perturb_inputs=tfsam.PGD(4 / 255) instead, this is adversarial training;
    # both arguments can be combined.
    network = make_network(images)
    model = tfsam.RobustModel(network, perturb_weights=tfsam.SAM(rho=0.1))
    model.compile(
        tfsam.SGD(0.1, momentum=0.9, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        tfsam.data.as_float(train.x_train),
        train.y_train,
        batch_size=64,
        epochs=20,
        verbose=2,
        callbacks=[
            # Attacks the held-out images after each epoch, and restores the
            # weights of the best epoch at the end.
            tfsam.RobustValidation(
                (x_held_out, held_out.y_train),
                tfsam.PGD(EPSILONS[0]),
                keep="clean",
            ),
            keras.callbacks.CSVLogger("history.csv"),
        ],
    )

    x_test = tfsam.data.as_float(images.x_test)
    result = tfsam.evaluate(
        network,
        (x_test, images.y_test),
        attacks=["pgd"],
        norm="linf",
        epsilons=EPSILONS,
    )
    print(tfsam.reports.table(result))

    # Both consist of stock Keras layers, and load without tfsam.
    network.save("model.keras")
    network.export("saved_model", verbose=False)
    loaded = keras.saving.load_model("model.keras")
    served = tf.saved_model.load("saved_model")
    some = tf.constant(x_test[:100])
    logits = np.array(network(some))
    for name, found in (
        ("model.keras", loaded(some)),
        ("saved_model", served.serve(some)),
    ):
        difference = np.abs(found - logits).max()
        print(f"{name}: logits differ by {difference:.1e} at most")
    answer = images.class_names[np.argmax(logits[0])]
    truth = images.class_names[images.y_test[0]]
    print(f"the first test image: {answer}, in truth {truth}")
    return 0


if __name__ == "__main__":
    app.run(main)
