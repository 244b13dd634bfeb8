"""The images of a run whose attacks aim at a class."""

import numpy as np

from tfsam import data
from tfsam.data import rows


def without_target(images: data.Images, target: int | None) -> data.Images:
    """Leaves out the test images of the class that attacks aim at.

    Args:
        images: the images of the run.
        target: the number of the class, None for attacks without a target.

    Returns:
        The images, with a note of how many are left out.

    Raises:
        ValueError: if there is no such class, or no image of another one.
    """
    if target is None:
        return images
    classes = len(images.class_names)
    if target >= classes:
        raise ValueError(
            f"target must be a class number below {classes}. "
            f"Received: target={target}"
        )
    others = np.flatnonzero(images.y_test != target)
    if not len(others):
        raise ValueError(
            "target must leave test images of other classes. "
            f"Received: target={target}"
        )
    left_out = len(images.y_test) - len(others)
    note = (
        f"target {target}, {images.class_names[target]}: its {left_out} test "
        "images are left out"
    )
    return images._replace(
        x_test=rows.part(images.x_test, others),
        y_test=images.y_test[others],
        notes=(*images.notes, note),
    )
