"""Graphs of TensorFlow functions, without the softmax or sigmoid at their end.

A signature of a SavedModel calls other functions. They are inlined, and the
operation from which the output comes is looked up in the flat graph. Variables
are shared with the function, not copied.
"""

import inspect
import math
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.eager import context
from tensorflow.python.framework import ops
from tensorflow.python.grappler import tf_optimizer
from tensorflow.python.saved_model import function_deserialization

from tfsam.models.functions import HALVES

# Operations that return their first input, or its values in another shape.
_SAME_VALUES = frozenset(
    {
        "CheckNumerics",
        "EnsureShape",
        "ExpandDims",
        "Identity",
        "PreventGradient",
        "Reshape",
        "Snapshot",
        "Squeeze",
        "StopGradient",
        "Transpose",
    }
)

# Operations that take integers and floats alike, and return the type of their
# first input.
_ANY_TYPE = _SAME_VALUES - {"CheckNumerics"} | {
    "MirrorPad",
    "Pad",
    "ReverseV2",
    "Slice",
    "StridedSlice",
}

# The same, but their result has a type of its own.
_OWN_TYPE = frozenset(
    {"ResizeArea", "ResizeBicubic", "ResizeBilinear", "Shape"}
)

_PREFIX = "model"

_CONTROL_FLOW = (
    "Case",
    "If",
    "StatelessCase",
    "StatelessIf",
    "StatelessWhile",
    "While",
)

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")

# Attributes that keep a function from being inlined.
_NOT_INLINED = ("_XlaMustCompile", "_noinline", "api_implements")


def inlined(function: Any) -> Any:
    """Returns the graph of a concrete function without calls of functions.

    Args:
        function: A `tf.types.experimental.ConcreteFunction`.

    Returns:
        A GraphDef with the names of the function's inputs and outputs.
    """
    definition = function.graph.as_graph_def()
    for nodes in _all_nodes(definition):
        for node in nodes:
            _clean(node)
    for part in definition.library.function:
        for key in _NOT_INLINED:
            part.attr.pop(key, None)
    if not any(node.op in _CALLS for node in definition.node):
        return definition
    graph = tf.compat.v1.train.export_meta_graph(
        graph_def=definition, graph=function.graph
    )
    graph.collection_def.clear()
    # The optimizer keeps the nodes of this collection.
    kept = meta_graph_pb2.CollectionDef()
    kept.node_list.value.extend(
        tensor.name for tensor in [*function.inputs, *function.outputs]
    )
    graph.collection_def["train_op"].CopyFrom(kept)
    config = config_pb2.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.min_graph_nodes = -1
    rewriting.optimizers.append("function")
    rewriting.function_optimization = (
        rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    )
    return tf_optimizer.OptimizeGraph(config, graph)


def _all_nodes(definition: Any) -> Iterator[Any]:
    yield definition.node
    for function in definition.library.function:
        yield function.node_def


def _clean(node: Any) -> None:
    """Removes what ties a node to a device, or keeps it from being inlined."""
    node.device = ""
    for key in _NOT_INLINED:
        node.attr.pop(key, None)
    if node.op in _CONTROL_FLOW:
        # Loops and conditions stay functions, which have gradients.
        node.attr["_lower_using_switch_merge"].b = False


def _remove_lost_gradients(definition: Any) -> bool:
    """Removes references to gradients that were not stored with a graph.

    The gradients of the operations apply in their place. The name of a lost
    gradient may be that of another one in this process.

    Args:
        definition: A GraphDef, which is changed.

    Returns:
        Whether there were any.
    """
    lost = False
    for nodes in _all_nodes(definition):
        for node in nodes:
            name = node.attr.get("_gradient_op_type")
            if name is not None and not _was_loaded(name.s.decode()):
                del node.attr["_gradient_op_type"]
                lost = True
    return lost


def _was_loaded(gradient: str) -> bool:
    """Returns whether a gradient comes from a SavedModel and stands alone.

    A gradient that captures tensors of its function is of no use without it.
    """
    try:
        function: Any = ops.gradient_registry.lookup(gradient)
    except LookupError:
        return False
    if function.__module__ != function_deserialization.__name__:
        return False
    stored = inspect.getclosurevars(function).nonlocals["func"]
    return not any(map(tf.is_symbolic_tensor, stored.captured_inputs))


def half_rounding(definition: Any) -> float:
    """Returns the relative rounding error of a graph's half precision, or 0.

    Args:
        definition: A GraphDef.
    """
    types = {
        value.type
        for nodes in _all_nodes(definition)
        for node in nodes
        for value in node.attr.values()
    }
    return max(
        (
            error
            for name, error in HALVES.items()
            if tf.dtypes.as_dtype(name).as_datatype_enum in types
        ),
        default=0.0,
    )


def imported(
    definition: Any,
    function: Any,
    values: dict[str, Any],
    spec: tf.TensorSpec,
    image: str,
) -> Callable[[str], tuple[Any, bool]]:
    """Returns a way to compute any tensor of a flat graph from images.

    Args:
        definition: The result of `inlined`.
        function: The concrete function, whose variables are used.
        values: Tensors for the other inputs, by the names of these.
        spec: Spec of the images.
        image: Name of the images' tensor.

    Returns:
        A function from a tensor's name to a `ConcreteFunction` from the images
        to the tensor, and whether gradients of it were lost.
    """
    count = len(function.inputs) - len(function.captured_inputs)
    known = values | {
        tensor.name: value
        for tensor, value in zip(
            function.inputs[count:], function.captured_inputs, strict=True
        )
    }

    def computing(name: str) -> tuple[Any, bool]:
        part = _needed(definition, name)
        lost = _remove_lost_gradients(part)
        for added in part.library.function:
            # The optimizer makes functions of its own.
            if not context.context().has_function(added.signature.name):
                context.context().add_function_def(added)
        nodes = {node.name for node in part.node}

        def compute(images: tf.Tensor) -> tf.Tensor:
            graph = tf.compat.v1.get_default_graph()
            fed = {
                key: graph.capture(value)
                for key, value in known.items()
                if key.split(":")[0] in nodes
            }
            if image.split(":")[0] in nodes:
                fed[image] = images
            (tensor,) = tf.graph_util.import_graph_def(
                part, input_map=fed, return_elements=[name], name=_PREFIX
            )
            return tensor

        traced = tf.function(compute, autograph=False, input_signature=[spec])
        return traced.get_concrete_function(), lost

    return computing


def stored_name(tensor: tf.Tensor) -> str:
    """Returns the name in the stored graph of a tensor that was imported."""
    return tensor.name.removeprefix(f"{_PREFIX}/")


def _needed(definition: Any, name: str) -> Any:
    """Returns the part of a graph from which a tensor is computed."""
    nodes = {node.name: node for node in definition.node}
    waiting, seen = [name.split(":")[0]], set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(
                source.lstrip("^").split(":")[0] for source in nodes[node].input
            )
    part = tf.compat.v1.GraphDef()
    part.versions.CopyFrom(definition.versions)
    part.library.CopyFrom(definition.library)
    part.node.extend(node for node in definition.node if node.name in seen)
    return part


def before_ending(
    tensor: tf.Tensor, classes: int
) -> tuple[tf.Tensor, str] | None:
    """Looks up the input of the softmax or sigmoid at the end of a graph.

    Only operations that keep the values may follow it. A softmax must be over
    all of the classes.

    Args:
        tensor: Symbolic tensor (batch, classes) or with axes of size 1.
        classes: Number of classes.

    Returns:
        The symbolic input and "softmax" or "sigmoid"; or None.
    """
    tensor = _source(tensor)
    operation = tensor.op
    if operation.type == "Sigmoid":
        return operation.inputs[0], "sigmoid"
    found, axis = None, -1
    if operation.type == "Softmax":
        found = operation.inputs[0]
    elif operation.type == "Exp":
        logarithms = _source(operation.inputs[0]).op
        if logarithms.type == "LogSoftmax":
            found = logarithms.inputs[0]
    elif operation.type == "RealDiv":
        found, axis = _before_quotient(operation)
    if found is None or not over_classes(found.shape, axis, classes):
        return None
    return found, "softmax"


def over_classes(shape: Any, axis: Any, classes: int) -> bool:
    """Returns whether a softmax over an axis is one over all classes.

    Args:
        shape: Shape (batch, ...) of the softmax's input, None where unknown.
        axis: Its axis.
        classes: Number of classes.
    """
    if isinstance(axis, (list, tuple)) and len(axis) == 1:
        (axis,) = axis
    sizes = list(shape) if getattr(shape, "rank", 0) is not None else []
    if not isinstance(axis, int) or len(sizes) < 2:
        return False
    axis %= len(sizes)
    known = all(size is not None for size in sizes[1:])
    return bool(
        axis > 0 and known and sizes[axis] == classes == math.prod(sizes[1:])
    )


def ends_in_logits(tensor: tf.Tensor) -> bool:
    """Returns whether a tensor is a weighted sum or the log of a softmax.

    Args:
        tensor: Symbolic tensor.
    """
    return _source(tensor).op.type in (
        "BiasAdd",
        "Conv2D",
        "LogSoftmax",
        "MatMul",
    )


def is_sorted(tensor: tf.Tensor) -> bool:
    """Returns whether a tensor holds the largest scores, not those by class."""
    return _source(tensor).op.type in ("TopK", "TopKV2")


def _source(tensor: tf.Tensor) -> tf.Tensor:
    """Follows a tensor back through operations that keep its values."""
    while True:
        operation = tensor.op
        if operation.type == "IdentityN":
            tensor = operation.inputs[tensor.value_index]
        elif operation.type == "Cast":
            source = operation.inputs[0]
            if not (source.dtype.is_floating and tensor.dtype.is_floating):
                return tensor
            tensor = source
        elif operation.type == "Transpose":
            order = tf.get_static_value(operation.inputs[1])
            if order is None or order[0] != 0:
                return tensor
            tensor = operation.inputs[0]
        elif operation.type in _SAME_VALUES:
            tensor = operation.inputs[0]
        else:
            return tensor


def _before_quotient(operation: Any) -> tuple[tf.Tensor | None, Any]:
    """Looks up z in exp(z) / sum(exp(z)), and the axis of the sum."""
    exponentials, total = operation.inputs
    total = _source(total)
    if exponentials.op.type != "Exp" or total.op.type != "Sum":
        return None, None
    if total.op.inputs[0] is not exponentials:
        return None, None
    axis = tf.get_static_value(total.op.inputs[1])
    axis = None if axis is None or axis.size != 1 else int(axis.reshape(()))
    z = exponentials.op.inputs[0]
    if z.op.type == "Sub":
        values, largest = z.op.inputs
        largest = _source(largest)
        if largest.op.type == "Max" and largest.op.inputs[0] is values:
            z = values
    return z, axis


def with_float_images(definition: Any, image: str) -> Any:
    """Returns a graph of integer images that takes floats instead.

    For whole numbers the results are the same. That is so if the graph casts
    the images to floats before it computes with them.

    Args:
        definition: The result of `inlined`.
        image: Name of the images' tensor.

    Returns:
        A new GraphDef, or None if the graph computes with integers.
    """
    changed = tf.compat.v1.GraphDef()
    changed.CopyFrom(definition)
    nodes = {node.name: node for node in changed.node}
    waiting = [image.split(":")[0]]
    nodes[waiting[0]].attr["dtype"].type = tf.float32.as_datatype_enum
    while waiting:
        source = waiting.pop()
        for node in changed.node:
            positions = [
                position
                for position, name in enumerate(node.input)
                if name.split(":")[0] == source
            ]
            if not positions:
                continue
            key = "SrcT" if node.op == "Cast" else "T"
            kept = node.op in _ANY_TYPE or node.op == "Cast"
            if positions != [0] or not (kept or node.op in _OWN_TYPE):
                return None
            node.attr[key].type = tf.float32.as_datatype_enum
            if node.op == "Cast":
                if tf.dtypes.as_dtype(node.attr["DstT"].type).is_floating:
                    continue
                node.attr["DstT"].type = tf.float32.as_datatype_enum
            if kept:
                waiting.append(node.name)
    return changed
