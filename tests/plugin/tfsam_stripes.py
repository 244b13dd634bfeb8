"""A data source of another package, which imports nothing of tfsam."""

import numpy as np


def read(location):
    """Draws stripes, across or along.

    Args:
        location: the side of an image in pixels.
    """
    side = int(location)
    ramp = np.arange(side) % 2
    across = np.broadcast_to(ramp[:, None], (side, side))
    images = np.stack([across, across.T] * 10)[..., None].astype("float32")
    labels = np.arange(20) % 2
    return {
        "x_train": images,
        "y_train": labels,
        "x_test": images[:10],
        "y_test": labels[:10],
        "class_names": ["across", "along"],
    }
