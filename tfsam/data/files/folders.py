"""Image files of a listing as arrays: split, chosen, decoded, of one size."""

import os
import pathlib

import numpy as np

from tfsam.data import cache
from tfsam.data import rows
from tfsam.data import splitting
from tfsam.data import stacks
from tfsam.data.files import bad_images
from tfsam.data.files import listings
from tfsam.data.files import resizing
from tfsam.data.files.decoding import refusal
from tfsam.data.images import Images
from tfsam.data.options import Options
from tfsam.data.options import Pick
from tfsam.data.options import untested


def load(
    listing: listings.Listing,
    pick: Pick,
    options: Options,
    cache_dir: pathlib.Path | None = None,
) -> Images:
    """Loads the images of a listing.

    Args:
        listing: the files.
        pick: see `Pick`.
        options: see `Options`.
        cache_dir: the folder of decoded images, see `cache`; None keeps none. A
            part of the files is not kept, but is read from the kept whole if
            there is one.

    Returns:
        The images; a part that is not wanted is empty.

    Raises:
        ValueError: if too many files are no images, images of several sizes
            need an `image_size`, or a part is empty.
    """
    is_split = listing.decided
    listing = decided(listing, options)
    labels = np.array([entry.label for entry in listing.entries], np.int64)
    is_test = np.array(
        [e.split == listings.TEST for e in listing.entries], bool
    )
    train, test = (
        np.flatnonzero(side)[pick(labels[side], name)]
        for name, side in (("train", ~is_test), ("test", is_test))
    )
    chosen = np.concatenate([train, test])
    paths = [entry.path for entry in listing.entries]
    size, notes = stacks.size_of(
        paths, stacks.opened_file, listing.source, options
    )
    stack, reasons = _stack(listing, chosen, size, options, cache_dir)
    good = stack.channels != stacks.BAD
    bad = np.array(_names(listing))[chosen[~good]].tolist()
    bad_images.report(
        bad, len(good), listing.source, reasons, options.bad_images
    )
    if "test" in options.splits and not len(test) and not is_split:
        raise untested(listing.source)
    train, test = train[good[: len(train)]], test[good[len(train) :]]
    _check_parts(listing, len(train), len(test), options)
    pixels = stacks.pixels_of(stack if good.all() else stack.of(good))
    return Images(
        str(listing.source),
        rows.part(pixels, slice(len(train))),
        labels[train],
        rows.part(pixels, slice(len(train), None)),
        labels[test],
        listing.class_names,
        (*listing.notes, *notes),
    )


def decided(listing: listings.Listing, options: Options) -> listings.Listing:
    """Returns the files that are wanted, each in the training or test part.

    Args:
        listing: the files.
        options: see `Options`.
    """
    if not listing.decided:
        paths = [entry.path for entry in listing.entries]
        labels = np.array([entry.label for entry in listing.entries])
        # Groups cost reading files, and do not matter where all are chosen.
        groups = np.arange(len(paths))
        if not options.whole:
            groups = splitting.of_files(paths)
        is_test = options.split(labels, groups)
        note = options.note(listing.source, is_test, labels)
        listing = listing.assigned(is_test)
        listing = listing._replace(notes=(*listing.notes, note))
    return listing if options.part == "all" else listing.of(options.part)


def entries(listing: listings.Listing) -> list[tuple[str, os.stat_result]]:
    """Lists the files of a listing, for `support.files.listing`.

    Args:
        listing: the files.
    """
    base = listing.base
    return [
        (pathlib.Path(entry.path).relative_to(base).as_posix(), stat)
        for entry in listing.entries
        if (stat := _stat(entry.path))
    ]


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _stack(
    listing: listings.Listing,
    chosen: np.ndarray,
    size: resizing.Size,
    options: Options,
    cache_dir: pathlib.Path | None,
) -> tuple[stacks.Stack, dict[str, str]]:
    """Returns the chosen files, decoded; see `stacks.decode`."""
    paths = [entry.path for entry in listing.entries]
    every = stacks.Encoded(
        paths, _names(listing), size, options.resize, stacks.read_file
    )
    if cache_dir is None:
        return stacks.decode(every.of(chosen))
    form = (size, options.resize, options.part)
    file = cache.path_of(cache_dir, listing.source, paths, form)
    reasons: dict[str, str] = {}
    stack = cache.read(file, listing.source, len(paths), size)
    if stack is None:
        if len(chosen) < len(paths):
            return stacks.decode(every.of(chosen))
        stack, reasons = cache.decode(file, listing.source, every)
    in_order = np.array_equal(chosen, np.arange(len(paths)))
    return (stack if in_order else stack.of(chosen)), reasons


def _names(listing: listings.Listing) -> list[str]:
    """Returns the names of the files, as messages show them."""
    base = listing.base
    return [listings.name_of(entry.path, base) for entry in listing.entries]


def _check_parts(
    listing: listings.Listing, train: int, test: int, options: Options
) -> None:
    """Rejects a part without images."""
    if not test and "test" in options.splits:
        raise refusal(
            "the test part must hold images that can be decoded",
            f"none in {listing.source}",
        )
    if not train and "train" in options.splits:
        raise refusal(
            "the training part must hold images that can be decoded",
            f"none in {listing.source}",
        )
