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
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.data import sources
from tfsam.data.collecting import Collected
from tfsam.data.collecting import alike
from tfsam.data.images import Images
from tfsam.data.rows import Pixels
from tfsam.data.rows import Rows
from tfsam.support import files
from tfsam.support.validators import check_count

# (x, y, sample_weight), None for a missing part.
_Parts = tuple[Any, Any, Any]

# Examples in a batch, where the data comes without batches.
BATCH = 128

# The most that is read of data of unknown length: an endless generator would
# otherwise fill the disk, or never return.
_MOST, _MOST_BYTES = 100_000, 16 << 30
_MOST_STREAMED = 2_000_000
_MOST_KEPT = 4 << 30  # Bytes, in memory.

_KINDS = (
    "data must be arrays (x, y), or a tf.data.Dataset, a keras.utils.PyDataset "
    "or a generator of them, with a sample_weight or without, or dicts with "
    "the keys image and label."
)


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
    check_finite(data, steps)
    if _in_memory(data):
        return _pair(_unpacked(data))
    found = batches(data, steps=steps, network=network, most=_MOST)
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

    def parts(batch: _Parts) -> list[np.ndarray]:
        x, y, _ = batch
        if y is None:
            raise ValueError(
                f"{_KINDS} Received: {_described(x)} without labels"
            )
        structure[:] = [x]
        found = [_array("x", leaf) for leaf in tf.nest.flatten(x)]
        found.append(_array("y", y))
        lengths = {len(each) if each.ndim else 0 for each in found}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                "all inputs and y must have the same number of examples, at "
                f"least one. Received: lengths={sorted(lengths)}"
            )
        return found

    found = batches(data, steps=steps, network=network, most=_MOST)
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
    limited = _length(data, steps) is None
    found: list[Collected] = []
    for parts in batches:
        names = ["x"] * (len(parts) - 1) + ["y"]
        found = found or list(map(Collected, names))
        for collected, part in zip(found, parts, strict=True):
            collected.add(part)
        if limited and sum(each.nbytes for each in found) > _MOST_BYTES:
            raise _too_long(f"{_MOST_BYTES >> 30} GiB", data)
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
    if _in_memory(data) or isinstance(data, (str, pathlib.PurePath, Images)):
        return False
    if isinstance(data, tf.data.Dataset):
        x, _, _ = _unpacked(data.element_spec, network)
    elif _is_py(data):
        x, _, _ = _unpacked(data[0], network)
    else:
        return _several_inputs(network)
    return isinstance(x, (dict, list, tuple))


def batches(
    data: Any,
    *,
    steps: int | None = None,
    network: Any = None,
    most: int | None = None,
) -> Iterator[_Parts]:
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
    check_finite(data, steps)
    if _in_memory(data):
        yield from _slices(_with_arrays(_unpacked(data, network), network))
        return
    limited = _length(data, steps) is None
    most, seen = most or _MOST_STREAMED, 0
    found = _of_dataset if isinstance(data, tf.data.Dataset) else _of_iterable
    for batch in found(data, steps, network):
        seen += _rows(batch[0])
        if limited and seen > most:
            raise _too_long(f"{most:,} examples", data)
        yield batch


def check_finite(data: Any, steps: int | None = None) -> None:
    """Refuses data of another kind, and data that is known to be endless.

    Args:
        data: see `batches`.
        steps: see `load`.

    Raises:
        ValueError: if the data is refused, or if `steps` is not an integer >= 1
            or is given for arrays.
    """
    if steps is not None:
        check_count("steps", steps, 1)
    if _in_memory(data):
        if steps is not None:
            raise ValueError(
                "steps is for datasets and generators; of arrays take a part, "
                f"x[:n] and y[:n]. Received: steps={steps} with arrays"
            )
        return
    readable = isinstance(data, Iterable) or hasattr(data, "__getitem__")
    if isinstance(data, (str, bytes, type)) or not readable:
        raise ValueError(f"{_KINDS} Received: data={data}")
    if _length(data, steps) == math.inf:
        raise ValueError(
            "data must be finite, without repeat(); or give steps=, the number "
            f"of batches to read. Received: data={data}"
        )


def repeatable(data: Any, steps: int | None = None) -> Any:
    """Returns data that can be read more than once.

    Args:
        data: see `batches`.
        steps: see `load`.

    Returns:
        The data itself or, where it is an iterator, which can be read once, an
        iterable of its elements in memory.

    Raises:
        ValueError: see `batches`.
    """
    check_finite(data, steps)
    return _Kept(data, steps) if isinstance(data, Iterator) else data


def _of_source(data: Any, network: Any) -> Any:
    """Returns data; images, and those of a source by name, as arrays (x, y)."""
    if not isinstance(data, (str, pathlib.PurePath, Images)):
        return data
    shapes = [tuple(each.shape) for each in _inputs(network)]
    size = shapes[0][1:3] if [len(shape) for shape in shapes] == [4] else ()
    return sources.test_part(data, size if size and all(size) else None)


class _Kept:
    """The elements of an iterator, in memory; see `repeatable`.

    A list of them would be read as (x, y).
    """

    def __init__(self, iterator: Iterator[Any], steps: int | None) -> None:
        self._elements, size = [], 0
        for element in itertools.islice(iterator, steps):
            self._elements.append(element)
            if steps is None:
                leaves = tf.nest.flatten(element)
                size += sum(np.asarray(leaf).nbytes for leaf in leaves)
                if len(self) > _MOST or size > _MOST_KEPT:
                    amount = f"{len(self):,} elements, {size >> 20:,} MiB,"
                    raise _too_long(amount, iterator)

    def __len__(self) -> int:
        return len(self._elements)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._elements)


def _in_memory(data: Any) -> bool:
    """Returns whether the data is arrays, not a container of batches."""
    if isinstance(data, tf.data.Dataset):
        return False
    return isinstance(data, (tuple, list, dict)) or hasattr(data, "__array__")


def _is_py(data: Any) -> bool:
    """Returns whether the data is a `PyDataset`, whose elements are batches."""
    return isinstance(data, keras.utils.PyDataset)


def _length(data: Any, steps: int | None) -> float | None:
    """Returns the number of elements: None if unknown, infinity if endless."""
    if steps is not None:
        return steps
    if isinstance(data, tf.data.Dataset):
        count = int(data.cardinality())
        if count == tf.data.INFINITE_CARDINALITY:
            return math.inf
        return None if count == tf.data.UNKNOWN_CARDINALITY else count
    if _is_py(data):
        return _py_dataset_length(data)
    try:
        return len(data)
    except TypeError:
        return None


def _py_dataset_length(data: Any) -> float:
    """Returns the number of batches, infinity if the data set has no length.

    Keras reads a `PyDataset` without a length for ever.
    """
    try:
        count = data.num_batches
    except NotImplementedError:  # Raised by Keras where __len__ is missing.
        count = None
    return math.inf if count is None else count


def _too_long(amount: str, data: Any) -> ValueError:
    return ValueError(
        f"data must end: {amount} were read, and its length is unknown. Give "
        f"steps=, the number of batches to read. Received: data={data}"
    )


def _several_inputs(network: Any) -> bool:
    return len(_inputs(network)) > 1


def _inputs(network: Any) -> Sequence[Any]:
    """Returns the symbolic inputs of a network, none if they are unknown."""
    network = getattr(network, "network", network)
    known = isinstance(network, keras.Model)
    return (getattr(network, "inputs", None) or ()) if known else ()


def _unpacked(element: Any, network: Any = None) -> _Parts:
    """Returns an element, or arrays, as (x, y, sample_weight).

    Args:
        element: x, a tuple that begins with x, or a dict.
        network: the network; a dict may hold several inputs of it.

    Returns:
        The three parts, None for a missing one.
    """
    if isinstance(element, dict) and not _several_inputs(network):
        if {"image", "label"} <= set(element):
            return element["image"], element["label"], None
    if not isinstance(element, (tuple, list)):
        return element, None, None
    if not 1 <= len(element) <= 3:
        raise ValueError(
            f"{_KINDS} Received: a {type(element).__name__} of {len(element)}"
        )
    return (*element, *[None] * (3 - len(element)))


def _with_arrays(parts: _Parts, network: Any) -> _Parts:
    """Turns lists into arrays, unless they hold several inputs."""
    if _several_inputs(network):
        return parts
    x, y, weight = (
        _array("x and y", part) if isinstance(part, list) else part
        for part in parts
    )
    return x, y, weight


def _slices(parts: _Parts) -> Iterator[_Parts]:
    """Yields batches of arrays; None stays None."""
    for start in range(0, _rows(parts[0]), BATCH):
        rows = slice(start, start + BATCH)

        def cut(part: Any, rows: slice = rows) -> Any:
            return None if part is None else part[rows]

        yield tuple(tf.nest.map_structure(cut, part) for part in parts)


def _of_iterable(
    data: Any, steps: int | None, network: Any
) -> Iterator[_Parts]:
    """Yields the batches of a PyDataset, a generator or another iterable."""
    elements: Iterator[Any] = itertools.islice(data, steps)
    length = _length(data, None)
    if _is_py(data) or (length is not None and not hasattr(data, "__iter__")):
        count = math.inf if length is None else length
        count = count if steps is None else min(steps, count)
        elements = (data[index] for index in range(int(count)))
    elements = (
        _with_arrays(_unpacked(element, network), network)
        for element in elements
    )
    first = next(elements, None)
    if first is None:
        return
    elements = itertools.chain([first], elements)
    if _is_py(data) or not _is_one(first[0], first[1], network):
        yield from elements
    while some := list(itertools.islice(elements, BATCH)):
        yield _stacked(some)


def _of_dataset(
    dataset: tf.data.Dataset, steps: int | None, network: Any
) -> Iterator[_Parts]:
    """Yields the batches of a `tf.data.Dataset`, which may hold examples."""
    if steps is not None:
        dataset = dataset.take(steps)
    x, y, _ = _unpacked(dataset.element_spec, network)
    if None in (*_shapes(x), *_shapes(y)):
        for element in dataset.take(1):
            x, y, _ = _unpacked(element, network)
    if _is_one(x, y, network):

        def parts_alone(*element: Any) -> tuple[Any, ...]:
            # Other entries of a dict may be impossible to batch.
            element = element if len(element) > 1 else element[0]
            parts = _unpacked(element, network)
            return tuple(part for part in parts if part is not None)

        dataset = dataset.map(parts_alone).batch(BATCH)
    try:
        for element in dataset:
            yield _unpacked(element, network)
    except tf.errors.OpError as error:
        raise ValueError(
            "data must be readable, in examples of one shape "
            f"({files.reason(error)}). Received: data={dataset}"
        ) from error


def _leaves(part: Any) -> list[Any]:
    """Returns the arrays of a part, which may be a structure of several."""
    of_arrays = isinstance(part, list) and all(
        hasattr(each, "shape") for each in part
    )
    if of_arrays or isinstance(part, (tuple, dict)):
        return tf.nest.flatten(part)
    return [] if part is None else [part]


def _shapes(part: Any) -> list[Any]:
    """Returns the shapes of a part's arrays, None for an unknown rank."""

    def shape(leaf: Any) -> tuple[int | None, ...] | None:
        if isinstance(leaf, list):
            return (len(leaf),)
        found = getattr(leaf, "shape", None)
        if getattr(found, "rank", 0) is None:
            return None
        return tuple(np.shape(leaf) if found is None else found)

    return [shape(leaf) for leaf in _leaves(part)]


def _rows(part: Any) -> int:
    """Returns the length of the first array: 0 without any, 1 for a number."""
    shapes = _shapes(part)
    return (*shapes[0], 1)[0] if shapes else 0


def _is_one(x: Any, y: Any, network: Any) -> bool:
    """Returns whether an element is a single example, not a batch.

    Args:
        x: its inputs.
        y: its labels, or None.
        network: the `keras.Model` that receives it, or None.
    """
    shapes, inputs = _shapes(x), _inputs(network)
    if len(shapes) == len(inputs):
        missing = sum(len(i.shape) for i in inputs) - sum(map(len, shapes))
        if missing in (0, len(inputs)):
            return bool(missing)
    labels = _shapes(y)[:1]
    if not shapes or not labels:
        return False
    (first, *_), (label,) = shapes, labels
    if len(label) != 1:
        return not label
    # Class numbers of a batch, or the one-hot label of one example.
    return (
        bool(first) and None not in (first[0], *label) and first[0] != label[0]
    )


def _stacked(elements: list[_Parts]) -> _Parts:
    """Stacks single examples into a batch."""

    def stack(*parts: Any) -> np.ndarray:
        arrays = [_array("x and y", part) for part in parts]
        return np.stack(alike("x and y", arrays))

    x, y, weight = (
        None if parts[0] is None else tf.nest.map_structure(stack, *parts)
        for parts in zip(*elements, strict=True)
    )
    return x, y, weight


def _pair(batch: _Parts) -> tuple[Any, np.ndarray]:
    """Returns the checked x and y of a batch as arrays, x perhaps as `Rows`."""
    x, y, _ = batch
    if y is None:
        raise ValueError(f"{_KINDS} Received: {_described(x)} without labels")
    if is_several(x, y) or is_several(y, x):
        raise ValueError(
            "x and y must each be one tensor, of one input and one output; map "
            "dicts and tuples to (x, y). "
            f"Received: {_described(x)} and {_described(y)}"
        )
    x = x if isinstance(x, Rows) else _array("x", x)
    y = _array("y", y)
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


def is_several(part: Any, other: Any) -> bool:
    """Returns whether a part is a structure of arrays with a row an example.

    Args:
        part: x or y.
        other: y or x.

    Example:
        >>> y = np.zeros(3)
        >>> is_several([np.zeros([3, 4]), np.zeros([3, 1])], y)
        True
    """
    if isinstance(part, dict):
        return True
    if not isinstance(part, (tuple, list)):
        return False
    count = _rows(other)
    return len(part) != count and all(
        _shapes(each) != [()] and _rows(each) == count for each in part
    )


def _described(part: Any) -> str:
    if isinstance(part, dict):
        return f"a dict with the keys {', '.join(map(str, part))}"
    if isinstance(part, (tuple, list)):
        return f"a {type(part).__name__} of {len(part)}"
    return f"an array of shape {_shapes(part)[0]}"


def _array(name: str, value: Any) -> np.ndarray:
    """Converts a value to an array of numbers."""
    try:
        array = np.asarray(value)
    except Exception as error:
        # Each library's tensors have exceptions of their own.
        raise ValueError(
            f"{name} must have one shape for all examples "
            f"({files.reason(error)}). Received: {type(value).__name__}"
        ) from error
    # NumPy has no kind of its own for bfloat16.
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"{name} must be numbers, of one shape for all examples. "
            f"Received: {type(value).__name__} of dtype {array.dtype}"
        )
    return array
