"""Layouts of folders of images: where the classes and the test images are."""

import pathlib
import re
from collections.abc import Mapping
from collections.abc import Sequence

from tfsam.data.files import listings
from tfsam.data.files.decoding import refusal
from tfsam.data.files.listings import TEST
from tfsam.data.files.listings import TRAIN
from tfsam.data.files.listings import UNDECIDED

_VALIDATION = "validation"

# Names such as train, Training, test_set and seg_train.
_SPLITS = {
    split: re.compile(
        rf"(?:.*[ _-])?(?:{words})(?:[ _-]?(?:set|data|images|split))?", re.I
    )
    for split, words in (
        (TRAIN, "train|training"),
        (TEST, "test|testing"),
        (_VALIDATION, "val|valid|validation"),
    )
}

_DEEPEST = 5  # Folders around the data set.


def read(path: pathlib.Path, class_order: str = "name") -> listings.Listing:
    """Lists the images of a folder, whatever its layout.

    The classes are the folders of `train` and `test`, or of `path` itself where
    there are none such; deeper folders belong to the class above them. `val`
    is the test part where there is no `test`. Folders around all others are
    entered.

    Args:
        path: the folder.
        class_order: see `class_orders.ordered`.

    Returns:
        The files of all classes, decided into train and test if the folder is.

    Raises:
        ValueError: if there is no such folder, there are less than two classes,
            a class has no files, or `test` has other classes than `train`.
    """
    if not path.is_dir():
        raise refusal(
            "folder:PATH must name a folder that holds train and test, or a"
            " folder for each class",
            f"no folder {path}",
        )
    roots, notes = _roots(path)
    found: list[tuple[str, str, str]] = []
    for split, root in roots.items():
        classes = listings.folders_in(root)
        if split == TEST:
            _check_test(root, classes, {name for _, name, _ in found})
        else:
            _check_classes(root, classes, split)
        for name in classes:
            below = listings.files_below(root / name)
            if not below and split != TEST:
                raise refusal(
                    "a class must hold images", f"none in {root / name}"
                )
            found += [(file, name, split) for file in below]
    return listings.make(path, found, class_order, notes)


def _roots(path: pathlib.Path) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Finds the folders that hold the folders of classes, by split.

    Args:
        path: the folder that the user named.

    Returns:
        The folders of train and test, in this order, or one that is undecided;
        and notes.
    """
    for _ in range(_DEEPEST):
        names = listings.folders_in(path)
        splits = _splits(names)
        if splits:
            return _chosen(path, names, splits)
        inside = _around(path, names)
        if inside == path:
            break
        path = inside
    return {UNDECIDED: path}, []


def _splits(names: Sequence[str]) -> dict[str, str]:
    """Returns the names of the splits, none unless they are several."""
    found = {}
    for split, pattern in _SPLITS.items():
        matching = [name for name in names if pattern.fullmatch(name)]
        if matching:  # The plainest: train, not noisy_train.
            found[split] = min(matching, key=lambda name: (len(name), name))
    return found if TRAIN in found and len(found) > 1 else {}


def _chosen(
    path: pathlib.Path, names: Sequence[str], splits: Mapping[str, str]
) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Returns the folders of train and test, and notes about the others."""
    roots = {split: _within(path / name) for split, name in splits.items()}
    test, notes = TEST, []
    unlabelled = TEST in roots and not listings.folders_in(roots[TEST])
    if _VALIDATION in roots and (TEST not in roots or unlabelled):
        test = _VALIDATION
        notes.append(f"{path / splits[test]} is the test part")
    unused = {*names} - {splits[TRAIN], splits[test]}
    if unused:
        notes.append(f"not used in {path}: {', '.join(sorted(unused))}")
    return {TRAIN: roots[TRAIN], TEST: roots[test]}, notes


def _within(path: pathlib.Path) -> pathlib.Path:
    """Enters folders that hold nothing but one folder of folders."""
    for _ in range(_DEEPEST):
        path = _around(path, listings.folders_in(path))
    return path


def _around(path: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
    """Returns the one folder in a folder, if it holds folders, or `path`."""
    if len(names) == 1 and listings.folders_in(path / names[0]):
        return path / names[0]
    return path


def _check_classes(
    root: pathlib.Path, classes: Sequence[str], split: str
) -> None:
    if len(classes) > 1:
        return
    layout = "a folder for each of two classes or more"
    if split == UNDECIDED:
        layout = f"train and test, or {layout}"
    raise refusal(
        f"{root} must hold {layout}; or name their classes in a table,"
        " csv:PATH",
        ", ".join(classes) or "no folder",
    )


def _check_test(
    root: pathlib.Path, classes: Sequence[str], known: set[str]
) -> None:
    if not classes:
        raise refusal(
            f"{root} must hold class folders; or name the folder of train, from"
            " which test_fraction takes a test part",
            "no folder",
        )
    unknown = sorted({*classes} - known)
    if unknown:
        raise refusal(
            f"{root} must hold classes of train only", ", ".join(unknown)
        )
