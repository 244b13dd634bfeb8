"""Full disks: the errors, and the files that stay."""

import errno
import resource

import keras
import pytest
import tensorflow as tf
from helpers import EXPORT
from helpers import THREE_EPOCHS
from helpers import assert_same_run
from helpers import cpu_only
from helpers import main
from interrupted_runs import at_step

from tfsam.support import files

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.mark.parametrize(
    "error, full",
    [
        (OSError(errno.ENOSPC, "No room"), True),
        (OSError(errno.EDQUOT, "No room"), True),
        (OSError(errno.EFBIG, "No room"), True),
        (RuntimeError("errno = 28, 'No space left on device'"), True),
        (tf.errors.OutOfRangeError(None, None, "a; File too large"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (tf.errors.OutOfRangeError(None, None, "End of sequence"), False),
    ],
)
def test_a_full_disk_is_known_by_the_system_s_words(tmp_path, error, full):
    assert (files.no_room(error) is not None) == full
    wrapped = ValueError("something")
    wrapped.__cause__ = error
    assert (files.no_room(wrapped) is not None) == full
    path = tmp_path / "file"
    with pytest.raises(files.DiskFull if full else type(error)) as raised:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert (str(path) in str(raised.value)) == full
    assert not list(tmp_path.iterdir())


@pytest.fixture
def limit():
    """A function that limits the size of this process's files."""
    kind = resource.RLIMIT_FSIZE
    before, hard = resource.getrlimit(kind)
    yield lambda size=before: resource.setrlimit(kind, (size, hard))
    resource.setrlimit(kind, (before, hard))


@cpu_only
@pytest.mark.slow
@pytest.mark.parametrize(
    "step, size, unwritten",
    [(8, 4000, "epoch-0002.keras"), (None, 4000, "saved_model")],
)
def test_a_full_disk_costs_nothing_but_time(
    whole, tmp_path, limit, capsys, step, size, unwritten
):
    arguments, parts = THREE_EPOCHS, tmp_path / "parts"

    def limited_export(self, path, **options):
        limit(size)
        EXPORT(self, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        if step is None:
            patch.setattr(keras.Sequential, "export", limited_export)
        else:
            at_step(patch, step, lambda model: limit(size))
        code, _ = main(*arguments, f"--workdir={parts}")
    limit()
    assert code == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"tfsam: cannot write {parts}")
    assert unwritten in line
    assert line.endswith(
        "File too large; with more room the same command resumes"
    )
    assert not (parts / "results.json").exists()
    assert not [p for p in parts.rglob(".*") if p.is_file()]
    assert main(*arguments, f"--workdir={parts}")[0] == 0
    assert_same_run(parts, whole)


def test_tensorboard_s_full_disk_is_named(tmp_path, capsys):
    arguments = (*THREE_EPOCHS, "--epochs=1", f"--workdir={tmp_path}")

    def fail(self, epoch, logs=None):
        raise tf.errors.ResourceExhaustedError(
            None, None, "{{node}} events; No space left on device"
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.callbacks.TensorBoard, "on_epoch_end", fail)
        assert main(*arguments)[0] == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {tmp_path / 'tensorboard'}: No space left" in line
