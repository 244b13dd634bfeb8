"""Options of `data.load` that every source of images is read with."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.data import class_orders
from tfsam.data import splitting
from tfsam.data.files import bad_images as bad
from tfsam.data.files import resizing
from tfsam.data.files.decoding import refusal
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number

# Chooses the examples of a split to keep: (labels, "train" or "test") to
# whatever indexes an array.
Pick = Callable[[np.ndarray, str], Any]

PARTS = ("all", "train", "test")


class Options(NamedTuple):
    """The options, checked; see `tfsam.data.load`.

    Attributes:
        size: height and width, None for the images' own.
        network_size: the size that files get where `size` is None.
        resize: one of `resizing.WAYS`.
        test_fraction: of images that are not split; None is the default, and
            takes all of them where the test part alone is read, none where the
            training part is.
        bad_images: one of `bad_images.POLICIES`.
        class_order: see `class_orders.ordered`.
        part: one of `PARTS`.
        seed: decides a split.
    """

    size: resizing.Size | None = None
    network_size: resizing.Size | None = None
    resize: str = "crop"
    test_fraction: float | None = None
    bad_images: str = "skip"
    class_order: str = class_orders.BY_NAME
    part: str = "all"
    seed: int = 0

    @property
    def class_file(self) -> str | None:
        """The file of the names of the classes, in order; None for none."""
        orders = (class_orders.BY_NAME, class_orders.BY_NUMBER)
        return None if self.class_order in orders else self.class_order

    @property
    def tests_all(self) -> bool:
        """Whether images that are not split are all test images."""
        return self.part == "test" and self.test_fraction is None

    @property
    def splits(self) -> tuple[str, ...]:
        """The parts that are read: "train", "test" or both."""
        return PARTS[1:] if self.part == "all" else (self.part,)

    @property
    def trains_all(self) -> bool:
        """Whether images that are not split are all training images."""
        return self.part == "train" and self.test_fraction is None

    @property
    def whole(self) -> bool:
        """Whether images that are not split stay together."""
        return self.tests_all or self.trains_all

    def split(self, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Chooses the test examples of data that is not split.

        Args:
            labels: see `splitting.stratified`.
            groups: see `splitting.stratified`.

        Returns:
            bool (n,); none is True if each class is a single group.
        """
        if self.tests_all:
            return np.ones(len(labels), bool)
        if self.trains_all:
            return np.zeros(len(labels), bool)
        return splitting.stratified(labels, groups, self._fraction, self.seed)

    @property
    def _fraction(self) -> float:
        return self.test_fraction or splitting.FRACTION

    def note(
        self, source: object, is_test: np.ndarray, labels: np.ndarray
    ) -> str:
        """Describes a split in a line.

        Args:
            source: the name of the data.
            is_test: the result of `split`.
            labels: see `splitting.stratified`.
        """
        total, tested = len(is_test), int(is_test.sum())
        if self.tests_all:
            return (
                f"{source} is not split: all {total} images are tested; "
                f"--test_fraction={splitting.FRACTION} tests those alone that "
                "training with this seed leaves out"
            )
        if self.trains_all:
            return f"{source} is not split: all {total} images are trained on"
        untested = np.setdiff1d(labels, labels[is_test])
        alone = "a class of one image, or of copies of one, keeps it to train"
        return (
            f"{source} is not split: {tested} of {total} images are the test "
            f"part (test_fraction {self._fraction:g}, seed {self.seed})"
            f"{f'; {alone}' if len(untested) else ''}"
        )


def untested(source: object) -> ValueError:
    """Makes an error about data of whose images none can be the test part.

    Args:
        source: the name of the data.
    """
    return refusal(
        "images that are not split must have a class of two different images "
        "or more, some of which are the test part",
        f"classes of one image, or of copies of one, in {source}",
    )


def make(
    *,
    image_size: Any,
    network_size: resizing.Size | None,
    resize: str,
    test_fraction: float | None,
    bad_images: str,
    class_order: str,
    part: str,
    seed: int,
) -> Options:
    """Checks the arguments of `tfsam.data.load`.

    Args:
        image_size: see `resizing.parse_size`.
        network_size: see `Options`.
        resize: see `Options`.
        test_fraction: see `Options`.
        bad_images: see `Options`.
        class_order: see `Options`.
        part: see `Options`.
        seed: see `Options`.

    Raises:
        ValueError: if one is out of its range.
    """
    check_count("seed", seed)
    check_choice("resize", resize, resizing.WAYS)
    check_choice("bad_images", bad_images, bad.POLICIES)
    check_choice("part", part, PARTS)
    if test_fraction is not None:
        check_number("test_fraction", test_fraction, 0, 1)
        if test_fraction in (0, 1):
            raise refusal(
                "test_fraction must be between 0 and 1, such as 0.2",
                f"test_fraction={test_fraction}",
            )
    if class_order not in (class_orders.BY_NAME, class_orders.BY_NUMBER):
        class_orders.read(class_order)
    return Options(
        resizing.parse_size(image_size),
        network_size,
        resize,
        test_fraction,
        bad_images,
        str(class_order),
        part,
        seed,
    )
