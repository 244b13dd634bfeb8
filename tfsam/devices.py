"""Devices by the name that a command line gives them."""

import contextlib
import re

import tensorflow as tf


def make_strategy(devices):
    """The `tf.distribute` strategy of a --devices value, None for one device.

    Args:
        devices: auto, cpu, cpu:N, gpu:all or gpu:N.

    Raises:
        ValueError: if there are no such devices.
    """
    gpus = tf.config.get_visible_devices("GPU")
    number = r"[1-9]\d*"
    match = re.fullmatch(
        rf"(auto)|cpu(?::({number}))?|gpu:(all|{number})", devices
    )
    if not match:
        raise ValueError(
            "devices must be auto, cpu, cpu:N, gpu:all or gpu:N. "
            f"Received: devices={devices}"
        )
    if match[3] or (match[1] and gpus):
        count = int(match[3]) if (match[3] or "all") != "all" else len(gpus)
        if not 0 < count <= len(gpus):
            raise ValueError(
                f"devices must name GPUs that are here: {len(gpus)}. "
                f"Received: devices={devices}"
            )
        names = [f"GPU:{i}" for i in range(count)]
        # One GPU of several still needs to be told apart from the others.
        return tf.distribute.MirroredStrategy(names) if len(gpus) > 1 else None
    if gpus and match[0].startswith("cpu"):
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            raise ValueError(
                "devices must be set before TensorFlow starts. "
                f"Received: devices={devices}"
            ) from None
    count = int(match[2] or 1)
    if count == 1:
        return None
    with contextlib.suppress(RuntimeError):  # Already set; counted below.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
    if len(tf.config.list_logical_devices("CPU")) < count:
        raise ValueError(
            f"devices must be set before TensorFlow starts, or be those that "
            f"are here. Received: devices={devices}"
        )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)],
        # Collectives remember shapes by a key that the next strategy of the
        # process counts from the start again: a second run would fail.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def names(strategy):
    """The devices that a run works on."""
    if strategy is not None:
        names = strategy.extended.worker_devices
        return ["/device:" + name.rpartition("device:")[2] for name in names]
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [tf.config.list_logical_devices(kind)[0].name]
