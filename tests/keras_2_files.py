"""Files in the layout of Keras 1 and 2, written without them."""

import json

import h5py
import keras

LEAVES = {"DepthwiseConv2D": {"kernel": "depthwise_kernel"}}


def stored(layer):
    """Returns the configuration of a layer or model as Keras 2 stored it."""
    name = type(layer).__name__
    if isinstance(layer, keras.Sequential):
        return {"class_name": name, "config": sequential(layer)}
    if isinstance(layer, keras.Model):
        return {"class_name": "Functional", "config": functional(layer)}
    config = layer.get_config()
    config.pop("quantization_config", None)
    if name == "InputLayer":
        shape = list(config.pop("batch_shape"))
        config = {
            "batch_input_shape": shape,
            "dtype": config["dtype"],
            "sparse": False,
            "ragged": False,
            "name": config["name"],
        }
    if isinstance(config.get("dtype"), dict):
        config["dtype"] = config["dtype"]["config"]["name"]
    for key in config:
        if key.endswith("_initializer"):
            # Keras 3 has no such distribution.
            values = {"scale": 1.0, "mode": "fan_avg", "distribution": "normal"}
            config[key] = {"class_name": "VarianceScaling", "config": values}
    if name == "BatchNormalization":
        config["axis"] = [3]
        config["fused"] = None
        del config["synchronized"]
        for key in ("renorm", "virtual_batch_size"):
            config.pop(key, None)
    if name == "DepthwiseConv2D":
        config["groups"] = 1
    if name == "LeakyReLU":
        config["alpha"] = config.pop("negative_slope")
    return {"class_name": name, "config": config}


def sequential(model):
    """Returns a Sequential; its first layer has the shape of the input."""
    layers = [stored(layer) for layer in model.layers]
    first = layers[0]["config"]
    if "layers" not in first:
        first["batch_input_shape"] = [None, *model.input_shape[1:]]
    return {"name": model.name, "layers": layers}


def functional(model):
    """Returns a functional model with the connections of Keras 2."""
    layers = []
    for layer in model.layers:
        nodes = []
        if not isinstance(layer, keras.layers.InputLayer):
            (node,) = layer._inbound_nodes
            nodes = [[[*place(tensor), {}] for tensor in node.input_tensors]]
        entry = {"name": layer.name, "inbound_nodes": nodes}
        layers.append(stored(layer) | entry)
    return {
        "name": model.name,
        "layers": layers,
        "input_layers": [place(tensor) for tensor in model.inputs],
        "output_layers": [place(tensor) for tensor in model.outputs],
    }


def place(tensor):
    """Returns where a tensor comes from: Keras 2 counts models from 1."""
    layer, _, index = tensor._keras_history
    return [layer.name, int(isinstance(layer, keras.Model)), index]


def write(path, model, version="2.4.0", config=None, as_bytes=False):
    """Writes a model to an HDF5 file as Keras 2 did."""
    config = json.dumps(config or stored(model))
    with h5py.File(path, "w") as file:
        if version:
            file.attrs["keras_version"] = version
            file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = config.encode() if as_bytes else config
        write_weights(file.create_group("model_weights"), model)


def write_weights(group, model):
    """Writes the weights of all layers as Keras 2 did."""
    layers = [layer for layer in model.layers if "input" not in layer.name]
    group.attrs["layer_names"] = [layer.name.encode() for layer in layers]
    for layer in layers:
        weights = [*layer.trainable_weights, *layer.non_trainable_weights]
        inner = group.create_group(layer.name)
        names = [stored_name(layer, weight) for weight in weights]
        inner.attrs["weight_names"] = [name.encode() for name in names]
        for name, weight in zip(names, weights, strict=True):
            inner.create_dataset(name, data=weight.numpy())


def stored_name(layer, weight):
    """Returns the name of a weight with its layer, such as conv/kernel:0."""
    *_, owner, leaf = weight.path.split("/")
    owners = [layer, *getattr(layer, "layers", [])]
    names = {inner.name: type(inner).__name__ for inner in owners}
    leaf = LEAVES.get(names.get(owner), {}).get(leaf, leaf)
    return f"{owner}/{leaf}:0"
