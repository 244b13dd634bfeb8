"""The notebooks, executed from top to bottom in an empty folder."""

import pathlib
import shutil

import pytest

import experiments.examples

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

FOLDER = pathlib.Path(next(iter(experiments.examples.__path__)))
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def printed(notebook):
    """Returns all output of the cells of an executed notebook."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            found.append(output.get("text", ""))
            found.append(output.get("data", {}).get("text/plain", ""))
    return "\n".join(found)


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_numbers_are_stored(name):
    """Stored outputs would become stale unnoticed."""
    cells = [c for c in read(name).cells if c.cell_type == "code"]
    assert cells
    assert all(not c.outputs and c.execution_count is None for c in cells)


EXPECTED = {
    "attack_a_model_that_you_have.ipynb": (
        "warning, zero_gradients",
        "| autoattack | linf | 8/255 |",
        "largest change of a pixel: 0.125",
    ),
    "fit_sam_on_your_images.ipynb": (
        "shape=(8, 8, 1)",
        "| pgd | linf | 8/255 |",
        "\nSAM 0.",
    ),
    "read_a_report.ipynb": (
        "'method': 'sam', 'rho': 0.2",
        "| cleverhans_pgd | linf |",
        "report.html compares 2 runs",
    ),
}


# Sizes in the notebooks, and smaller ones that leave all else as it is.
SMALLER = {
    "attack_a_model_that_you_have.ipynb": {
        "limit_test=200": "limit_test=50",
        "x[:32], y[:32]": "x[:8], y[:8]",
    },
    "fit_sam_on_your_images.ipynb": {
        "EPOCHS = 10": "EPOCHS = 1",
        "limit_train=1000, limit_test=300": "limit_train=200, limit_test=50",
    },
    "read_a_report.ipynb": {
        '"--epochs=2", "--limit_train=300", "--limit_test=60"': (
            '"--epochs=1", "--limit_train=64", "--limit_test=20", '
            '"--network=preact_resnet8:width=4", "--l2_epsilons="'
        ),
    },
}


def make_smaller(notebook, sizes):
    """Replaces each of the sizes, which the notebook must have once."""
    for size, smaller in sizes.items():
        cells = [cell for cell in notebook.cells if size in cell.source]
        assert len(cells) == 1, size
        cells[0].source = cells[0].source.replace(size, smaller)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, tmp_path, monkeypatch):
    shutil.copy(FOLDER / name, tmp_path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    notebook = read(name)
    make_smaller(notebook, SMALLER[name])
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = printed(notebook)
    for line in EXPECTED[name]:
        assert line in text
