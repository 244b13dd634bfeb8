"""Effects that importing tfsam has and must not have."""

import os
import subprocess
import sys

import pytest
from helpers import slow


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("backend", ["jax", slow("torch")])
def test_another_backend_is_refused_clearly(backend):
    done = run_python("import tfsam", KERAS_BACKEND=backend)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tfsam needs Keras on TensorFlow")
    assert last.endswith(f"Received: KERAS_BACKEND={backend}")


def test_importing_is_light():
    """Attack libraries, data sets and flags are imported on demand.

    TensorFlow is not started: its devices can still be configured.
    """
    done = run_python(
        "import sys, tfsam, tensorflow as tf\n"
        "for name in ('cleverhans', 'tensorflow_datasets', 'tfsam.run',\n"
        "             'tfsam.attacks.adapters.cleverhans'):\n"
        "    assert name not in sys.modules, name\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "parts = [tf.config.LogicalDeviceConfiguration()] * 2\n"
        "tf.config.set_logical_device_configuration(cpu, parts)\n"
        "assert len(tf.config.list_logical_devices('CPU')) == 2\n"
    )
    assert done.returncode == 0, done.stderr
