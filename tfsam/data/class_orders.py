"""Orders of classes: which output of a network stands for which class."""

import json
import pathlib
import re
from collections.abc import Collection

from tfsam.data.files.decoding import refusal
from tfsam.support import files

BY_NAME, BY_NUMBER = "name", "number"

# "0 cat" and "1,dog", as some programs write names with their positions.
_NUMBERED = re.compile(r"(\d+)[\s,:;=]+(.+)")


def ordered(names: Collection[str], order: str) -> tuple[str, ...]:
    """Sorts the names of classes.

    Args:
        names: the names, in any order.
        order: "name" sorts them as strings (0, 1, 10, 2), "number" compares
            the numbers in them (0, 1, 2, 10); anything else is the path of a
            file of names, see `read`.

    Returns:
        The names, each once. Those of a file may be more than those given.

    Raises:
        ValueError: if a name is missing in the file, or the file is refused.

    Example:
        >>> ordered({"0", "2", "10"}, "name")
        ('0', '10', '2')
        >>> ordered({"0", "2", "10"}, "number")
        ('0', '2', '10')
    """
    if order == BY_NAME:
        return tuple(sorted(names))
    if order == BY_NUMBER:
        return tuple(sorted(names, key=_natural))
    known = read(order)
    missing = sorted(set(names) - set(known))
    if missing:
        raise refusal(
            f"{order} must name all classes of the images, as they are spelled"
            " there",
            f"class_order={order}, without {', '.join(missing[:5])}",
        )
    return known


def read(path: str) -> tuple[str, ...]:
    """Reads the names of classes, in a network's order, from a file.

    Args:
        path: a text file with a name a line, which its position may precede
            ("0 cat"); or a JSON file: a list of names, or an object of
            positions by name or of names by position.

    Raises:
        ValueError: if there is no such file, or it holds something else.
    """
    expected = "class_order must be name, number or a file of names, one a line"
    try:
        text = files.expanded(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(
            f"{expected} ({files.reason(error)})", f"class_order={path}"
        ) from error
    found = _of_json(text) or _of_lines(text)
    if not found or len(set(found)) < len(found):
        raise refusal(
            f"{expected}, each once", f"class_order={path}, {len(found)} names"
        )
    return found


def write(path: pathlib.Path, names: Collection[str]) -> None:
    """Writes the names of classes to a file that `read` reads.

    Args:
        path: the file.
        names: the names, in the network's order.
    """
    lines = [" ".join(name.split()) for name in names]
    files.write_atomically(path, "".join(f"{line}\n" for line in lines))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a key that compares the numbers in a name as numbers."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.findall(r"\d+|\D+", name)
    ]


def _of_lines(text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    numbered = [match for match in matches if match]
    if [int(match[1]) for match in numbered] == list(range(len(lines))):
        return tuple(match[2].strip("\"' ") for match in numbered)
    return tuple(lines)


def _of_json(text: str) -> tuple[str, ...]:
    """Returns the names in a JSON file, none if the text is no such file."""
    try:
        content = json.loads(text)
    except ValueError:
        return ()
    if isinstance(content, list):
        return tuple(map(str, content))
    if not isinstance(content, dict):
        return ()
    pairs = list(content.items())
    if all(isinstance(value, int) for _, value in pairs):
        pairs = [(position, name) for name, position in pairs]
    try:
        by_position = {int(position): str(name) for position, name in pairs}
    except ValueError:
        return ()
    if sorted(by_position) != list(range(len(pairs))):
        return ()
    return tuple(by_position[position] for position in range(len(pairs)))
