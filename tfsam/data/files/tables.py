"""Tables of images: csv files of file names, classes and perhaps splits."""

import csv
import os
import pathlib
from collections import Counter
from collections.abc import Sequence

from tfsam.data.files import listings
from tfsam.data.files.decoding import refusal
from tfsam.data.files.listings import TEST
from tfsam.data.files.listings import TRAIN
from tfsam.data.files.listings import UNDECIDED
from tfsam.support import files

# Headings of columns, in the order of preference.
_LABELS = (
    *("label", "labels", "class", "category", "target", "y", "class_name"),
    *("classname", "species", "breed", "class id", "class_id", "label_id"),
)
_SPLIT = ("split", "set", "subset", "partition", "usage", "data set", "dataset")

_VALIDATION = "validation"
_SPLIT_WORDS = {
    **{"train": TRAIN, "training": TRAIN, "test": TEST, "testing": TEST},
    **dict.fromkeys(("val", "valid", "validation"), _VALIDATION),
}

_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "webp", "gif", "ppm", "tif", "tiff")

_LOOKED_AT = 20  # Rows that tell the columns.
_MOST_FOLDERS = 200  # Folders beside the table that are searched.
_MOST_SEARCHES = 200  # Names that are looked for in all of them, in vain.


def read(path: pathlib.Path, class_order: str = "name") -> listings.Listing:
    """Lists the images that a table names.

    Columns are told by their content and by their headings, if there are any:
    one names files, one the classes (or each class has a column of 0 and 1),
    and one may name the splits. Commas, semicolons or tabs divide them.

    Args:
        path: the table. File names are relative to its folder, or to a folder
            beside it, with or without a suffix; of longer paths, such as those
            of another computer, the end is used.
        class_order: see `class_orders.ordered`.

    Returns:
        The files of all rows. Files that do not exist are among them: they are
        bad images.

    Raises:
        ValueError: if the table cannot be read, or its columns cannot be told.
    """
    rows = _rows(path)
    finder = _Finder(path.parent)
    column = _file_column(path, rows, finder)
    header = _header(rows, column, finder)
    rows = rows[1:] if header else rows
    split = _split_column(rows, header, column)
    labels = _labels(path, rows, header, {column, split})
    splits, notes = _splits(path, rows, split)
    found = []
    for row, label, side in zip(rows, labels, splits, strict=True):
        if side is None:
            continue
        file = finder.find(row[column]) or path.parent / row[column]
        found.append((str(file), label, side))
    if len({label for _, label, _ in found}) < 2:
        raise refusal(f"{path} must name two classes or more", labels[0])
    return listings.make(path, found, class_order, notes)


def _rows(path: pathlib.Path) -> list[list[str]]:
    """Reads the cells of a table, without empty rows."""
    if not path.is_file():
        raise refusal("csv:PATH must name an existing file", path)
    expected = "csv:PATH must name a table of file names and classes"
    try:
        text = path.read_text(encoding="utf-8-sig")
        tables = [_cells(text, delimiter) for delimiter in ",;\t"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise refusal(f"{expected} ({files.reason(error)})", path) from error
    rows = max(tables, key=_columns)
    columns = _columns(rows)
    if columns < 2:
        raise refusal(f"{expected}, in two columns or more", path)
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise refusal(
                f"each row of {path} must have {columns} columns",
                f"{len(row)} in row {number}",
            )
    return rows


def _cells(text: str, delimiter: str) -> list[list[str]]:
    lines = csv.reader(text.splitlines(), delimiter=delimiter)
    return [
        [c.strip() for c in row] for row in lines if any(map(str.strip, row))
    ]


def _columns(rows: Sequence[Sequence[str]]) -> int:
    """Returns how many columns most of the first rows have."""
    counts = Counter(len(row) for row in rows[:_LOOKED_AT])
    return counts.most_common(1)[0][0] if counts else 0


class _Finder:
    """Finds files by the names in a table; see `read`.

    Args:
        base: the folder of the table.
    """

    def __init__(self, base: pathlib.Path) -> None:
        near = [base / name for name in listings.folders_in(base)]
        nearer = near[:_MOST_FOLDERS]
        deeper = [f / name for f in nearer for name in listings.folders_in(f)]
        self._folders = [base, *nearer, *deeper][:_MOST_FOLDERS]
        suffixes = [f".{s}" for s in (*_SUFFIXES, *map(str.upper, _SUFFIXES))]
        self._suffixes = ["", *suffixes]
        # (folder, suffix, leading parts left out) that files were found by.
        self._ways: list[tuple[pathlib.Path, str, int]] = []
        self._searches = 0
        self._found: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """Returns the path of a file, or None.

        Args:
            name: a cell of the table.
        """
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def _search(self, name: str) -> str | None:
        parts = [
            part
            for part in name.replace("\\", "/").split("/")
            if part not in ("", ".", "..")
        ]
        for way in self._ways:
            if found := self._by(way, parts):
                return found
        if self._ways:
            self._searches += 1
        if self._searches > _MOST_SEARCHES:
            return None
        for left_out in range(len(parts)):
            for folder in self._folders:
                for suffix in self._suffixes:
                    way = (folder, suffix, left_out)
                    if found := self._by(way, parts):
                        self._ways.append(way)
                        return found
        return None

    @staticmethod
    def _by(
        way: tuple[pathlib.Path, str, int], parts: Sequence[str]
    ) -> str | None:
        folder, suffix, left_out = way
        inside = "/".join(parts[left_out:])
        path = f"{folder}/{inside}{suffix}"
        return path if inside and os.path.isfile(path) else None


def _file_column(
    path: pathlib.Path, rows: Sequence[Sequence[str]], finder: _Finder
) -> int:
    """Returns the column that names files."""
    some = rows[: _LOOKED_AT + 1]

    def fitness(column: int) -> tuple[int, int]:
        cells = [row[column] for row in some]
        return sum(finder.find(c) is not None for c in cells), len({*cells})

    column = max(range(len(rows[0])), key=fitness)
    if not fitness(column)[0]:
        raise refusal(
            f"a column of {path} must name files in its folder, or in a folder"
            " beside it",
            ", ".join(rows[-1]),
        )
    return column


def _header(
    rows: Sequence[Sequence[str]], column: int, finder: _Finder
) -> list[str]:
    """Returns the headings of the columns in small letters, none without."""
    first = rows[0][column]
    is_name = first.lower().endswith(tuple(f".{s}" for s in _SUFFIXES))
    if is_name or finder.find(first):
        return []
    return [heading.lower() for heading in rows[0]]


def _split_column(
    rows: Sequence[Sequence[str]], header: Sequence[str], files_in: int
) -> int | None:
    """Returns the column that names splits, or None."""
    for column in range(len(rows[0])):
        named = bool(header) and header[column] in _SPLIT
        cells = {row[column].lower() for row in rows}
        if column != files_in and (named or cells <= {*_SPLIT_WORDS}):
            return column
    return None


def _splits(
    path: pathlib.Path, rows: Sequence[Sequence[str]], column: int | None
) -> tuple[list[str | None], list[str]]:
    """Returns the split of each row, None where it is not used; and notes.

    Args:
        path: the table.
        rows: its rows.
        column: the column that names splits, or None.
    """
    if column is None:
        return [UNDECIDED] * len(rows), []
    known: dict[str, str] = {}
    for cell in {row[column] for row in rows}:
        named = [s for word, s in _SPLIT_WORDS.items() if word in cell.lower()]
        if not named:
            raise refusal(
                f"the splits in {path} must be train, test or validation", cell
            )
        known[cell] = named[0]
    there = {*known.values()}
    if TRAIN not in there or len(there) < 2:
        raise refusal(
            f"the splits in {path} must be train and test", ", ".join(known)
        )
    test = TEST if TEST in there else _VALIDATION
    used = {TRAIN: TRAIN, test: TEST}
    notes = []
    if _VALIDATION in there:
        part = "not used" if test == TEST else "the test part"
        notes.append(f"the validation images of {path} are {part}")
    return [used.get(known[row[column]]) for row in rows], notes


def _labels(
    path: pathlib.Path,
    rows: Sequence[Sequence[str]],
    header: Sequence[str],
    taken: set[int | None],
) -> list[str]:
    """Returns the class of each row.

    Args:
        path: the table.
        rows: its rows.
        header: the headings, or none.
        taken: the columns that hold something else.
    """
    free = [n for n in range(len(rows[0])) if n not in taken]
    named = [header.index(name) for name in _LABELS if name in header]
    if len(free) > 1 and header:
        one_hot = [[row[n] for n in free] for row in rows]
        if all(_is_one_hot(cells) for cells in one_hot):
            return [header[free[_ones(cells)[0]]] for cells in one_hot]
    column = next((n for n in [*named, *free] if n in free), None)
    if column is None or (len(free) > 1 and not named):
        columns = ", ".join(header[n] if header else str(n + 1) for n in free)
        raise refusal(
            f"a column of {path} must be called {_LABELS[0]}, or be the only"
            " one beside the file names",
            columns or "no other column",
        )
    labels = [row[column] for row in rows]
    if "" in labels:
        raise refusal(
            f"each row of {path} must name a class",
            f"none in {', '.join(rows[labels.index('')])}",
        )
    return labels


def _ones(cells: Sequence[str]) -> list[int]:
    return [n for n, cell in enumerate(cells) if cell in ("1", "1.0")]


def _is_one_hot(cells: Sequence[str]) -> bool:
    """Returns whether cells are a 1 among zeros."""
    return {*cells} <= {"0", "1", "0.0", "1.0"} and len(_ones(cells)) == 1
