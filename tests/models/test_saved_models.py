"""SavedModels of any origin, loaded without the library that wrote them."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfsam.models.files import reading

X = np.random.default_rng(0).random((3, 4), "float32")


class Network(tf.Module):
    """A network that is saved with the optimizer that trained it."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.ones((4, 2)), name="kernel")
        self.optimizer = tf.Module()
        self.optimizer.momentum = tf.Variable(tf.zeros((4, 2)), name="momentum")

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def infer(self, x):
        return {"logits": x @ self.kernel}


def node(graph, *names):
    """Returns the number of an object, and the object, by its path."""
    number = 0
    for name in names:
        (number,) = (
            child.node_id
            for child in graph.nodes[number].children
            if child.local_name == name
        )
    return number, graph.nodes[number]


def keep_slots(folder):
    """Turns the momentum into a slot variable, as an optimizer stores it."""
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((folder / "saved_model.pb").read_bytes())
    graph = content.meta_graphs[0].object_graph_def
    _, optimizer = node(graph, "optimizer")
    slot = optimizer.slot_variables.add()
    slot.slot_name = "momentum"
    slot.original_variable_node_id, _ = node(graph, "kernel")
    slot.slot_variable_node_id, _ = node(graph, "optimizer", "momentum")
    del optimizer.children[:]
    (folder / "saved_model.pb").write_bytes(content.SerializeToString())


def test_the_state_of_an_optimizer_is_left_out(tmp_path, caplog):
    network = Network()
    network.kernel.assign(np.arange(8).reshape(4, 2))
    signatures = {"infer": network.infer}
    tf.saved_model.save(network, str(tmp_path), signatures=signatures)
    keep_slots(tmp_path)
    with pytest.raises(AttributeError, match="add_slot"):
        tf.saved_model.load(str(tmp_path))
    caplog.clear()
    with pytest.warns(UserWarning, match="is a SavedModel, a program"):
        found = reading.read(tmp_path)
    assert (found.format, found.reader) == ("saved_model", "tensorflow")
    logits = found.model.signatures["infer"](x=tf.constant(X))["logits"]
    np.testing.assert_array_equal(logits, network.infer(X)["logits"])
    assert not caplog.records
    # The files themselves stay as they are.
    with pytest.raises(AttributeError, match="add_slot"):
        tf.saved_model.load(str(tmp_path))


def test_saved_models_of_tensorflow_1(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, (None, 4), "images")
        kernel = tf.compat.v1.get_variable(
            "kernel", initializer=np.eye(4, 2, dtype="float32"), use_resource=0
        )
        scores = tf.nn.softmax(images @ kernel)
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "1"))
        signature = tf.compat.v1.saved_model.predict_signature_def(
            {"images": images}, {"scores": scores}
        )
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"predict_images": signature}
        )
        builder.save()
    with pytest.warns(UserWarning, match="is a SavedModel, a program"):
        found = reading.read(tmp_path)
    scores = found.model.signatures["predict_images"](tf.constant(X))["scores"]
    wanted = tf.nn.softmax(X @ np.eye(4, 2, dtype="float32"))
    np.testing.assert_allclose(scores, wanted, rtol=1e-6)
    assert len(found.sha256) == 64


def test_an_operation_of_another_library_is_named(tmp_path):
    network = Network()
    signatures = {"infer": network.infer}
    tf.saved_model.save(network, str(tmp_path), signatures=signatures)
    graph = tmp_path / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(b"MatMul", b"TheirO"))
    with (
        pytest.warns(UserWarning, match="is a SavedModel"),
        pytest.raises(ValueError, match="operation TheirO of another library"),
    ):
        reading.read(tmp_path)
