"""The runs below some folders, with everything that a page shows of them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from tfsam.reports import results
from tfsam.support import files
from tfsam.training import monitoring

_PLACES = ("files", "workdir")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        path: its folder.
        name: the shortest end of the path that no other run's has.
        results: of results.json.
        history: rows of history.csv, none without it.
        flatness: of flatness.json, None without it.
        examples: arrays of examples.npz, None without it.
        picture: bytes of examples.png, None without it.
        evaluations: runs of --evaluate that attacked this run's network.
    """

    path: pathlib.Path
    results: Mapping
    history: list[dict]
    flatness: Mapping | None
    examples: Mapping | None
    picture: bytes | None
    name: str = ""
    evaluations: tuple["Run", ...] = ()

    @property
    def config(self):
        """The configuration; empty where results.json has none."""
        return self.results.get("config") or {}

    @property
    def train(self):
        """What is known of the training; empty where there was none."""
        return self.results.get("train") or {}

    @property
    def settings(self):
        """The configuration, less where the run is, and the versions."""
        config = {k: v for k, v in self.config.items() if k not in _PLACES}
        return config | (self.results.get("versions") or {})

    @property
    def parts(self):
        """This run and its evaluations."""
        return (self, *self.evaluations)


def read(folders):
    """The runs in, or below, some folders.

    An evaluation of a run's network is not a run of its own but a part of that
    run, unless it measures again what the run itself has measured.

    Args:
        folders: paths; one that holds no run is searched for runs.

    Returns:
        A list of `Run`, in the order of the folders, and sorted below each.

    Raises:
        ValueError: if a folder holds no run, or a file is broken.
    """
    paths = [path for folder in folders for path in _workdirs(folder)]
    if not paths:
        raise ValueError("expected folders of runs. Received: none")
    runs = _attached([_read(path) for path in dict.fromkeys(paths)])
    names = _names([run.path for run in runs])
    return [
        dataclasses.replace(run, name=name)
        for run, name in zip(runs, names, strict=True)
    ]


def _workdirs(folder):
    path = files.expanded(folder).resolve()
    found = sorted(file.parent for file in path.rglob("results.json"))
    if not found:
        raise ValueError(
            f"expected a folder with a results.json in or below it. "
            f"Received: {folder}"
        )
    return found


def _read(path):
    return Run(
        path,
        results.read(path / "results.json") or {},
        _known(monitoring.read_history, path / "history.csv") or [],
        _known(_flatness, path / "flatness.json"),
        _known(_examples, path / "examples.npz"),
        _known(pathlib.Path.read_bytes, path / "examples.png"),
    )


def _known(reader, path):
    """What a file holds, None without the file."""
    return results.checked(reader, path) if path.exists() else None


# What a page relies on is checked, and nothing else.


def _flatness(path):
    flatness = json.loads(path.read_text())
    for name, value in (flatness.get("measures") or {}).items():
        if not isinstance(value, int | float | None):
            raise ValueError(f"{name} must be a number, is {value}")
    surface = flatness.get("surface")
    if surface is not None:
        losses = np.asarray(surface["loss"], float)
        size = len(np.asarray(surface["coordinates"], float))
        if size < 2 or losses.shape != (size, size):
            raise ValueError("surface must be a square of losses")
        if not np.isfinite(losses).any():
            raise ValueError("surface must have finite losses")
    return flatness


def _examples(path):
    with np.load(path, allow_pickle=False) as arrays:
        examples = dict(arrays)
    count, _, _, channels = examples["clean"].shape
    if channels not in (1, 3) or not count:
        raise ValueError("images must be gray or RGB")
    if examples["adversarial"].shape != examples["clean"].shape:
        raise ValueError("images must come in pairs")
    for key in ("before", "after"):
        if examples[key].shape != (count,):
            raise ValueError(f"{key} must be one name an image")
    return (
        examples
        | {k: examples[k].item() for k in ("attack", "norm")}
        | {"epsilon": float(examples["epsilon"])}
    )


def attack_name(run, row):
    """What attacked: a robust row of a run's results, in words."""
    transfer = ", transfer" if run.config.get("surrogate") else ""
    return results.attack_name(row) + transfer


def _measurements(run):
    return {
        (attack_name(part, row), row["norm"], row["epsilon"])
        for part in run.parts
        for row in part.results["robust"]
    }


def _attached(found):
    """The runs, each with the evaluations of its network."""
    runs = {run.path: run for run in found if not run.config.get("evaluate")}
    for run in [run for run in found if run.path not in runs]:
        owner = runs.get(_owner(run, runs))
        if owner is None or _measurements(owner) & _measurements(run):
            runs[run.path] = run
        else:
            runs[owner.path] = dataclasses.replace(
                owner, evaluations=(*owner.evaluations, run)
            )
    return [runs[run.path] for run in found if run.path in runs]


def _owner(run, runs):
    """The folder of the run whose network another one evaluates, or None."""
    network = run.config.get("evaluate")
    if not network or run.config.get("shard"):
        return None
    # The folder that it lies in tells where its network's path does no more.
    places = [*pathlib.Path(network).resolve().parents, *run.path.parents]
    return next((place for place in places if place in runs), None)


def _names(paths):
    """The shortest ends of the paths that tell them apart."""

    def end(path, length):
        return "/".join(path.parts[-length:])

    return [
        next(
            end(path, length)
            for length in range(1, len(path.parts) + 1)
            if [end(p, length) for p in paths].count(end(path, length)) == 1
        )
        for path in paths
    ]
