"""Other files in an average's folder."""

import keras
import numpy as np
import pytest

import tfsam
from tfsam.support import files

X = np.zeros((8, 2), "float32")
Y = np.zeros(8, int)


def fit(folder, *, units=3, epochs=2, **kwargs):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("sgd", loss, run_eagerly=True)
    average = tfsam.SWA(0, folder=folder)
    network.fit(X, Y, epochs=epochs, verbose=0, callbacks=[average], **kwargs)
    return average


ARCHIVES = {
    "unrelated": (lambda f: np.savez(f, a=X), "Received: an archive of a"),
    "empty": (lambda f: np.savez(f), "Received: an archive of none"),
    "no count": (lambda f: np.savez(f, weight_0=X), "an archive of weight_0"),
    "array": (lambda f: np.save(f, X), "must hold the average"),
    "objects": (
        lambda f: np.savez(f, np.array([{}], dtype=object)),
        "must hold the average",
    ),
    "text": (lambda f: f.write(b"text"), "must hold the average"),
    "another network's": (
        lambda f: np.savez(f, weight_0=X[:2], weight_1=Y[:2], count=1),
        r"weights of shapes \(2, 3\), \(3,\). Received: .* \(2, 2\), \(2,\)",
    ),
    "of fewer weights": (
        lambda f: np.savez(f, weight_0=X, count=1),
        "2 weights of shapes .* Received: 1 weights",
    ),
}


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("done", [2, 1], ids=["finished", "resumed"])
def test_another_archive_is_refused_in_one_line(tmp_path, kind, done):
    write, message = ARCHIVES[kind]
    with open(tmp_path / f"average-000{done}.npz", "wb") as file:
        write(file)
    with pytest.raises(files.Unusable, match=message) as raised:
        fit(tmp_path, initial_epoch=done)
    assert "\n" not in str(raised.value)


def test_files_of_other_names_are_left_alone(tmp_path):
    fit(tmp_path, epochs=1)
    np.savez(tmp_path / "average-of-mine.npz", a=X)
    (tmp_path / "notes.npz").write_text("none")
    assert fit(tmp_path, initial_epoch=1).count == 2
    assert (tmp_path / "average-of-mine.npz").exists()


def test_an_average_of_another_network_is_refused(tmp_path):
    fit(tmp_path, units=2)
    with pytest.raises(files.Unusable, match="average of this network"):
        fit(tmp_path, units=3, epochs=3, initial_epoch=2)
