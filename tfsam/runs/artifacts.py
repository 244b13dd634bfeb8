"""Artifacts: the files and folders that a run leaves in its folder."""

import pathlib
from typing import NamedTuple


class Artifact(NamedTuple):
    """A file or a folder of a run.

    Attributes:
        name: its name in the folder of the run.
        words: its content in words, shown at the end of a run; empty hides it.
        is_result: whether results.json lists it among the artifacts.
    """

    name: str
    words: str = ""
    is_result: bool = True


# A new file of a run has its line here: --overwrite removes it, results.json
# lists it, and the end of a run describes it.
ARTIFACTS = (
    Artifact("config.json"),
    Artifact("evaluation", "the verdict on each image"),
    Artifact("corruptions", "the verdict on each corrupted image"),
    Artifact("history.csv", "training by epoch"),
    Artifact("model.keras", "the network"),
    Artifact("saved_model", "the network for serving"),
    Artifact("classes.txt", "the names of the classes"),
    Artifact("tensorboard"),
    Artifact("robustness.png", "accuracy by epsilon"),
    Artifact("corruptions.png", "accuracy by severity"),
    Artifact("examples.png", "adversarial images"),
    Artifact("examples.npz"),
    Artifact("log.txt", "the log"),
    Artifact("results.json", "all numbers", is_result=False),
    Artifact("stopped.json", is_result=False),
    Artifact("checkpoints", is_result=False),
    Artifact("average", is_result=False),
    Artifact("best.keras", is_result=False),
)


def names(workdir: pathlib.Path) -> list[str]:
    """Returns the names of a run's artifacts, for results.json.

    Args:
        workdir: the folder of the run.
    """
    return [
        artifact.name
        for artifact in ARTIFACTS
        if artifact.is_result and (workdir / artifact.name).exists()
    ]


def in_words(made: set[str]) -> list[str]:
    """Describes the artifacts that the end of a run shows.

    Args:
        made: the names of those that the run has left.
    """
    return [
        f"{artifact.name} ({artifact.words})"
        for artifact in ARTIFACTS
        if artifact.words and artifact.name in made
    ]
