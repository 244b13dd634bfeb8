"""Lists of image files with their classes, before anything is decoded."""

import os
import pathlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from tfsam.data import class_orders

TRAIN, TEST, UNDECIDED = "train", "test", ""

# Files and folders that systems and programs leave beside images; those whose
# names begin with a dot are left out, too.
_SYSTEM = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
        *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found"),
    )
)


class Entry(NamedTuple):
    """A file that should be an image.

    Attributes:
        path: of the file.
        label: the position of its class in `Listing.class_names`.
        split: `TRAIN`, `TEST`, or `UNDECIDED`, see `splitting`.
    """

    path: str
    label: int
    split: str


class Listing(NamedTuple):
    """The files of a data set.

    Attributes:
        source: the folder, or the table, that names the files.
        entries: the files, in an order that depends on their names alone.
        class_names: the names of the classes.
        notes: lines about choices that the user did not make.
    """

    source: pathlib.Path
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> pathlib.Path:
        """The folder that the names of files are relative to."""
        return self.source if self.source.is_dir() else self.source.parent

    @property
    def decided(self) -> bool:
        """Whether each file is known to be a training or a test image."""
        return all(entry.split != UNDECIDED for entry in self.entries)

    def of(self, split: str) -> "Listing":
        """Returns the files of a split alone.

        Args:
            split: `TRAIN` or `TEST`.
        """
        chosen = tuple(entry for entry in self.entries if entry.split == split)
        return self._replace(entries=chosen)

    def assigned(self, is_test: Iterable[bool]) -> "Listing":
        """Returns the files with their splits.

        Args:
            is_test: for each file, whether it is a test image.
        """
        entries = tuple(
            entry._replace(split=TEST if test else TRAIN)
            for entry, test in zip(self.entries, is_test, strict=True)
        )
        return self._replace(entries=entries)


def make(
    source: pathlib.Path,
    found: Sequence[tuple[str, str, str]],
    class_order: str,
    notes: Sequence[str] = (),
) -> Listing:
    """Makes a listing of files whose classes are known by name.

    Args:
        source: see `Listing`.
        found: the path, the class and the split of each file.
        class_order: see `class_orders.ordered`.
        notes: see `Listing`.

    Raises:
        ValueError: if the order is of other classes.
    """
    names = class_orders.ordered({name for _, name, _ in found}, class_order)
    label = {name: number for number, name in enumerate(names)}
    entries = tuple(Entry(path, label[name], s) for path, name, s in found)
    return Listing(source, entries, names, tuple(notes))


def name_of(path: str, base: pathlib.Path) -> str:
    """Returns the name of a file, relative to a folder.

    Args:
        path: the file.
        base: the folder, see `Listing.base`.
    """
    start = f"{base}{os.sep}"
    # Computing the way from one to the other takes long for many files.
    if path.startswith(start):
        return path[len(start) :]
    return os.path.relpath(path, base)


def visible(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    """Lists what people have put into a folder, sorted by name.

    Args:
        folder: its path.
    """
    return sorted(
        (entry for entry in os.scandir(folder) if not _is_system(entry.name)),
        key=lambda entry: entry.name,
    )


def folders_in(folder: pathlib.Path) -> list[str]:
    """Lists the names of the folders in a folder, sorted.

    Args:
        folder: its path.
    """
    return [entry.name for entry in visible(folder) if entry.is_dir()]


def files_below(folder: pathlib.Path) -> list[str]:
    """Lists the paths of all files in a folder and its subfolders, sorted.

    Args:
        folder: its path. Links are followed, each folder once.
    """
    return sorted(_files_below(folder, set()))


def _files_below(
    folder: pathlib.Path, seen: set[tuple[int, int]]
) -> Iterator[str]:
    stat = os.stat(folder)
    if (stat.st_dev, stat.st_ino) in seen:  # A link to a folder above.
        return
    seen.add((stat.st_dev, stat.st_ino))
    for entry in visible(folder):
        if entry.is_dir():
            yield from _files_below(pathlib.Path(entry.path), seen)
        elif entry.is_file():
            yield entry.path


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM
