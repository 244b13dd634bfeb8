"""SavedModels, loaded without the library that wrote them."""

import contextlib
import gc
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfsam.support import library_logs

_UNKNOWN = re.compile(r"Op type not registered '(\w+)'")


def load(folder: pathlib.Path) -> tuple[Any, str | None]:
    """Loads a SavedModel, which is a program.

    The slot variables of optimizers are left out: only the optimizer's own
    class could restore them, and no signature that classifies reads them.

    Args:
        folder: Folder of the SavedModel.

    Returns:
        The result of `tf.saved_model.load`, and the version of TensorFlow that
        wrote it, or None.
    """
    graph = folder / "saved_model.pb"
    if not graph.is_file():
        with library_logs.errors_only():
            return tf.saved_model.load(str(folder)), None
    content = saved_model_pb2.SavedModel()
    content.ParseFromString(graph.read_bytes())
    meta = content.meta_graphs[0]
    version = meta.meta_info_def.tensorflow_version
    with library_logs.errors_only(), _without_slots(folder, content) as place:
        try:
            loaded = tf.saved_model.load(str(place), tags=_tags(content))
        except (OSError, RuntimeError, tf.errors.NotFoundError) as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None:
                raise
            raise ValueError(
                f"it needs the operation {unknown[1]} of another library: add "
                "--import=MODULE with its name"
            ) from error
    return loaded, f"TensorFlow {version}" if version else None


def _tags(content: Any) -> list[str] | None:
    """Returns the tags of the graph to load, or None for the only one."""
    if len(content.meta_graphs) == 1:
        return None
    tags = [list(graph.meta_info_def.tags) for graph in content.meta_graphs]
    return ["serve"] if ["serve"] in tags else tags[0]


@contextlib.contextmanager
def _without_slots(
    folder: pathlib.Path, content: Any
) -> Iterator[pathlib.Path]:
    """Yields a folder of the same SavedModel without slot variables."""
    nodes = [
        node
        for graph in content.meta_graphs
        for node in graph.object_graph_def.nodes
        if node.slot_variables
    ]
    if not nodes:
        yield folder
        return
    for node in nodes:
        del node.slot_variables[:]
    with tempfile.TemporaryDirectory() as temporary:
        place = pathlib.Path(temporary)
        for entry in folder.iterdir():
            if entry.name != "saved_model.pb":
                (place / entry.name).symlink_to(entry.absolute())
        (place / "saved_model.pb").write_bytes(content.SerializeToString())
        yield place
        # TensorFlow logs each variable that was left out when it forgets the
        # checkpoint.
        gc.collect()
