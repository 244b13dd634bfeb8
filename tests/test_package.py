"""Effects that importing tfsam has and must not have."""

import os
import subprocess
import sys
import textwrap

import pytest
from helpers import slow


def run_python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
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


PLUGIN = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()

def Shift(*, epsilon, norm="linf", bounds=(0.0, 1.0)):
    return lambda logits_fn, x, y, seed: x
"""


def test_importing_is_light(tmp_path):
    """Attack libraries, plug-ins, data sets, flags are imported on demand.

    TensorFlow is not started: its devices can still be configured.
    """
    (tmp_path / "tfsam_trap.py").write_text(PLUGIN)
    info = tmp_path / "tfsam_trap-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: tfsam-trap\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tfsam.attacks]\ntrap = tfsam_trap:Shift\n"
        "[tfsam.weights]\ntrap = tfsam_trap:Shift\n"
    )
    code = """
        import pathlib, sys, tfsam, tensorflow as tf
        for name in ('cleverhans', 'tensorflow_datasets', 'tfsam.run',
                     'tfsam.attacks.adapters.cleverhans'):
            assert name not in sys.modules, name
        cpu = tf.config.list_physical_devices('CPU')[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, parts)
        assert len(tf.config.list_logical_devices('CPU')) == 2

        from tfsam import run
        from tfsam.runs import settings
        imported = pathlib.Path(sys.argv[1], "imported")
        assert "trap" in tfsam.attacks.names()
        assert run.main(["--help"]) == 0
        settings.from_argv(["--attacks=pgd", "--method=sam"])
        assert not imported.exists()
        tfsam.attacks.get("trap", epsilon=0.1, norm="linf")
        assert imported.exists()
    """
    done = run_python(textwrap.dedent(code), tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
