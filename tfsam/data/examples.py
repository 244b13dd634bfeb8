"""A reader of labelled examples, for every container that Keras accepts.

Evaluation, the callbacks, the landscape and the recalibration of BatchNorm read
their data through it, so each of them accepts:

- arrays: NumPy, tensors, or lists; (x, y) or (x, y, sample_weight);
- a `tf.data.Dataset`, batched or not, of such tuples or of dicts with the keys
  `image` and `label`, as tensorflow_datasets gives them;
- a `keras.utils.PyDataset`;
- `Images`, or the name of a source of images as `data.load` takes it: their
  test part;
- a generator, or any other iterable, of batches or of single examples.

`load` collects x and y: in memory, or in a temporary file where x is large.
`batches` is lazy.
"""

import itertools
import math
import pathlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.data import containers
from tfsam.data import elements
from tfsam.data import sources
from tfsam.data.collecting import Collected
from tfsam.data.collecting import alike
from tfsam.data.images import Images
from tfsam.data.rows import Pixels
from tfsam.data.rows import Rows
from tfsam.support import files

# Examples in a batch, where the data comes without batches.
BATCH = 128

# The most that is read of data of unknown length: an endless generator would
# otherwise fill the disk, or never return.
_MOST_BYTES = 16 << 30
_MOST_STREAMED = 2_000_000  # Examples; `containers.MOST` if they are kept.


def load(
    data: Any, *, steps: int | None = None, network: Any = None
) -> tuple[Pixels, np.ndarray]:
    """Returns all inputs and all labels as arrays.

    Sample weights are left out: each example counts once.

    Args:
        data: any of the containers above, with one input and with labels.
        steps: how many elements of a dataset or a generator to read, >= 1;
            None is all. Data that does not end needs it.
        network: the `keras.Model` that receives the data, or None. The rank of
            its input tells batches from single examples; without a network the
            rank of the labels does.

    Returns:
        (x, y): NumPy arrays with the same number of rows, at least one. Large x
        of a dataset or a generator is `Rows` of a temporary file, and x given
        as `Rows` stays so.

    Raises:
        ValueError: if the data is of another kind, empty or endless, or has
            several inputs, no labels, or parts of different lengths.
    """
    data = _of_source(data, network)
    containers.check_finite(data, steps)
    if containers.in_memory(data):
        return _pair(elements.unpacked(data))
    found = batches(data, steps=steps, network=network, most=containers.MOST)
    x, y = _collected(map(_pair, found), data, steps)
    return x, np.asarray(y)


def load_several(
    data: Any, *, steps: int | None = None, network: Any = None
) -> tuple[Any, np.ndarray]:
    """Returns several inputs, and the labels, as arrays.

    Args:
        data: a `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of
            (x, y), batched or not, where x is a list, a tuple or a dict of
            inputs.
        steps: see `load`.
        network: see `load`.

    Returns:
        (x, y): the inputs, in the structure of the batches, as NumPy arrays, or
        `Rows` of a temporary file if they are large; and the labels. All have
        the same number of rows, at least one.

    Raises:
        ValueError: if the data is of another kind, empty or endless, or has no
            labels, or parts of different lengths.
    """
    structure: list[Any] = []

    def parts(batch: elements.Parts) -> list[np.ndarray]:
        x, y, _ = batch
        if y is None:
            raise elements.without_labels(x)
        structure[:] = [x]
        found = [elements.as_numbers("x", leaf) for leaf in tf.nest.flatten(x)]
        found.append(elements.as_numbers("y", y))
        lengths = {len(each) if each.ndim else 0 for each in found}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                "all inputs and y must have the same number of examples, at "
                f"least one. Received: lengths={sorted(lengths)}"
            )
        return found

    found = batches(data, steps=steps, network=network, most=containers.MOST)
    *inputs, y = _collected(map(parts, found), data, steps)
    return tf.nest.pack_sequence_as(structure[0], inputs), np.asarray(y)


def _collected(
    batches: Iterator[Sequence[np.ndarray]], data: Any, steps: int | None
) -> list[Pixels]:
    """Joins the parts of batches.

    Args:
        batches: the parts of each batch, of which the last are the labels.
        data: the data, for errors.
        steps: see `load`.
    """
    limited = containers.length(data, steps) is None
    found: list[Collected] = []
    for parts in batches:
        names = ["x"] * (len(parts) - 1) + ["y"]
        found = found or list(map(Collected, names))
        for collected, part in zip(found, parts, strict=True):
            collected.add(part)
        if limited and sum(each.nbytes for each in found) > _MOST_BYTES:
            raise containers.too_long(f"{_MOST_BYTES >> 30} GiB", data)
    if not found:
        raise ValueError("data must hold examples. Received: none")
    return [collected.whole() for collected in found]


def gives_several(data: Any, network: Any = None) -> bool:
    """Returns whether a container of batches gives several inputs.

    Args:
        data: any of the containers above. Generators are not read; they are
            taken to give as many inputs as the network has.
        network: the `keras.Model` that receives the data, or None.
    """
    if isinstance(data, (str, pathlib.PurePath, Images)):
        return False
    if containers.in_memory(data):
        return False
    if isinstance(data, tf.data.Dataset):
        x, _, _ = elements.unpacked(data.element_spec, network)
    elif containers.is_py_dataset(data):
        x, _, _ = elements.unpacked(data[0], network)
    else:
        return elements.takes_several(network)
    return isinstance(x, (dict, list, tuple))


def batches(
    data: Any,
    *,
    steps: int | None = None,
    network: Any = None,
    most: int | None = None,
) -> Iterator[elements.Parts]:
    """Yields the batches of the data, one at a time.

    Arrays and single examples come in batches of 128. Batches of a dataset or a
    generator are passed on as they are.

    Args:
        data: any of the containers above. The labels may be missing, and x may
            be a structure of several inputs.
        steps: see `load`.
        network: see `load`.
        most: how many examples to read at most, where the length of the data is
            unknown and `steps` is None; None is two million.

    Yields:
        (x, y, sample_weight): arrays or tensors, None where there are none.

    Raises:
        ValueError: if the data is of another kind, or does not end.
    """
    data = _of_source(data, network)
    containers.check_finite(data, steps)
    if containers.in_memory(data):
        yield from _slices(
            elements.with_arrays(elements.unpacked(data, network), network)
        )
        return
    limited = containers.length(data, steps) is None
    most, seen = most or _MOST_STREAMED, 0
    found = _of_dataset if isinstance(data, tf.data.Dataset) else _of_iterable
    for batch in found(data, steps, network):
        seen += elements.rows_in(batch[0])
        if limited and seen > most:
            raise containers.too_long(f"{most:,} examples", data)
        yield batch


def _of_source(data: Any, network: Any) -> Any:
    """Returns data; images, and those of a source by name, as arrays (x, y)."""
    if not isinstance(data, (str, pathlib.PurePath, Images)):
        return data
    shapes = [tuple(each.shape) for each in elements.inputs_of(network)]
    size = shapes[0][1:3] if [len(shape) for shape in shapes] == [4] else ()
    return sources.test_part(data, size if size and all(size) else None)


def _slices(parts: elements.Parts) -> Iterator[elements.Parts]:
    """Yields batches of arrays; None stays None."""
    for start in range(0, elements.rows_in(parts[0]), BATCH):
        rows = slice(start, start + BATCH)

        def cut(part: Any, rows: slice = rows) -> Any:
            return None if part is None else part[rows]

        yield tuple(tf.nest.map_structure(cut, part) for part in parts)


def _of_iterable(
    data: Any, steps: int | None, network: Any
) -> Iterator[elements.Parts]:
    """Yields the batches of a PyDataset, a generator or another iterable."""
    found: Iterator[Any] = itertools.islice(data, steps)
    length = containers.length(data, None)
    of_batches = containers.is_py_dataset(data)
    if of_batches or (length is not None and not hasattr(data, "__iter__")):
        count = math.inf if length is None else length
        count = count if steps is None else min(steps, count)
        found = (data[index] for index in range(int(count)))
    found = (
        elements.with_arrays(elements.unpacked(element, network), network)
        for element in found
    )
    first = next(found, None)
    if first is None:
        return
    found = itertools.chain([first], found)
    if of_batches or not elements.is_one(first[0], first[1], network):
        yield from found
    while some := list(itertools.islice(found, BATCH)):
        yield _stacked(some)


def _of_dataset(
    dataset: tf.data.Dataset, steps: int | None, network: Any
) -> Iterator[elements.Parts]:
    """Yields the batches of a `tf.data.Dataset`, which may hold examples."""
    if steps is not None:
        dataset = dataset.take(steps)
    x, y, _ = elements.unpacked(dataset.element_spec, network)
    if None in (*elements.shapes_of(x), *elements.shapes_of(y)):
        for element in dataset.take(1):
            x, y, _ = elements.unpacked(element, network)
    if elements.is_one(x, y, network):

        def parts_alone(*element: Any) -> tuple[Any, ...]:
            # Other entries of a dict may be impossible to batch.
            element = element if len(element) > 1 else element[0]
            parts = elements.unpacked(element, network)
            return tuple(part for part in parts if part is not None)

        dataset = dataset.map(parts_alone).batch(BATCH)
    try:
        for element in dataset:
            yield elements.unpacked(element, network)
    except tf.errors.OpError as error:
        raise ValueError(
            "data must be readable, in examples of one shape "
            f"({files.reason(error)}). Received: data={dataset}"
        ) from error


def _stacked(examples: list[elements.Parts]) -> elements.Parts:
    """Stacks single examples into a batch."""

    def stack(*parts: Any) -> np.ndarray:
        arrays = [elements.as_numbers("x and y", part) for part in parts]
        return np.stack(alike("x and y", arrays))

    x, y, weight = (
        None if parts[0] is None else tf.nest.map_structure(stack, *parts)
        for parts in zip(*examples, strict=True)
    )
    return x, y, weight


def _pair(batch: elements.Parts) -> tuple[Any, np.ndarray]:
    """Returns the checked x and y of a batch as arrays, x perhaps as `Rows`."""
    x, y, _ = batch
    if y is None:
        raise elements.without_labels(x)
    if elements.is_several(x, y) or elements.is_several(y, x):
        raise ValueError(
            "x and y must each be one tensor, of one input and one output; map "
            "dicts and tuples to (x, y). "
            f"Received: {elements.described(x)} and {elements.described(y)}"
        )
    x = x if isinstance(x, Rows) else elements.as_numbers("x", x)
    y = elements.as_numbers("y", y)
    if x.ndim < 2 or y.ndim < 1:
        raise ValueError(
            "x must be of shape (n, ...) and y of (n,) or (n, classes). "
            f"Received: {x.shape} and {y.shape}"
        )
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            "x and y must have the same number of examples, at least one. "
            f"Received: {len(x)} and {len(y)}"
        )
    return x, y
