"""Runs, read from their folders with everything that a page shows of them."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfsam.reports import results
from tfsam.support import files
from tfsam.training import monitoring

_PLACES = ("files", "workdir")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, as its folder holds it.

    Attributes:
        path: its folder.
        name: the shortest end of the path that is unique among the runs.
        results: the content of results.json.
        history: rows of history.csv, empty without the file.
        flatness: the content of flatness.json, None without the file.
        examples: arrays of examples.npz, None without the file.
        picture: bytes of examples.png, None without the file.
        evaluations: runs of --evaluate that attacked this run's network.
    """

    path: pathlib.Path
    results: Mapping[str, Any]
    history: list[dict[str, Any]]
    flatness: Mapping[str, Any] | None
    examples: Mapping[str, Any] | None
    picture: bytes | None
    name: str = ""
    evaluations: tuple["Run", ...] = ()

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration; empty where results.json has none."""
        return self.results.get("config") or {}

    @property
    def train(self) -> Mapping[str, Any]:
        """The training section of the results; empty if nothing was trained."""
        return self.results.get("train") or {}

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration without paths of the run, and the versions."""
        config = {k: v for k, v in self.config.items() if k not in _PLACES}
        return config | (self.results.get("versions") or {})

    @property
    def parts(self) -> tuple["Run", ...]:
        """This run and its evaluations."""
        return (self, *self.evaluations)


def read(folders: Iterable[str | pathlib.Path]) -> list[Run]:
    """Reads the runs in, or below, some folders.

    An evaluation of a run's network becomes a part of that run, unless it
    repeats a measurement of the run itself.

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


def _workdirs(folder: str | pathlib.Path) -> list[pathlib.Path]:
    path = files.expanded(folder).resolve()
    found = sorted(file.parent for file in path.rglob("results.json"))
    if not found:
        raise ValueError(
            f"expected a folder with a results.json in or below it. "
            f"Received: {folder}"
        )
    return found


def _read(path: pathlib.Path) -> Run:
    return Run(
        path,
        results.read(path / "results.json") or {},
        _known(monitoring.read_history, path / "history.csv") or [],
        _known(_flatness, path / "flatness.json"),
        _known(_examples, path / "examples.npz"),
        _known(pathlib.Path.read_bytes, path / "examples.png"),
    )


def _known(reader: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
    """Returns the content of a file, None without the file."""
    return results.checked(reader, path) if path.exists() else None


# Only the entries that a page shows are checked.


def _flatness(path: pathlib.Path) -> dict[str, Any]:
    flatness: dict[str, Any] = json.loads(path.read_text())
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


def _examples(path: pathlib.Path) -> dict[str, Any]:
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


def attack_name(run: Run, row: dict[str, Any]) -> str:
    """Names the attack of a robust row of a run's results."""
    return results.attack_name(row | {"surrogate": is_transfer(run, row)})


def is_transfer(run: Run, row: Mapping[str, Any]) -> bool:
    """Returns whether an attack was computed on a surrogate.

    Args:
        run: the run of the row.
        row: a robust row of its results.
    """
    # With a surrogate, an older tfsam attacks nothing else, and says nothing.
    config = run.config
    alone = config.get("surrogate") and not config.get("transfer_attacks")
    return bool(row.get("surrogate", alone))


def _measurements(run: Run) -> set[tuple[str, str, float]]:
    return {
        (attack_name(part, row), row["norm"], row["epsilon"])
        for part in run.parts
        for row in part.results["robust"]
    }


def _attached(found: Sequence[Run]) -> list[Run]:
    """Joins each run with the evaluations of its network."""
    runs = {run.path: run for run in found if not run.config.get("evaluate")}
    for run in [run for run in found if run.path not in runs]:
        place = _owner(run, runs)
        owner = None if place is None else runs[place]
        if owner is None or _measurements(owner) & _measurements(run):
            runs[run.path] = run
        else:
            runs[owner.path] = dataclasses.replace(
                owner, evaluations=(*owner.evaluations, run)
            )
    return [runs[run.path] for run in found if run.path in runs]


def _owner(run: Run, runs: Mapping[pathlib.Path, Run]) -> pathlib.Path | None:
    """Returns the folder of the run whose network `run` evaluates, or None."""
    network = run.config.get("evaluate")
    if not network or run.config.get("shard"):
        return None
    # An evaluation inside a run's folder belongs to it even after a move.
    places = [*pathlib.Path(network).resolve().parents, *run.path.parents]
    return next((place for place in places if place in runs), None)


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the shortest ends of the paths that tell them apart."""

    def end(path: pathlib.Path, length: int) -> str:
        return "/".join(path.parts[-length:])

    return [
        next(
            end(path, length)
            for length in range(1, len(path.parts) + 1)
            if [end(p, length) for p in paths].count(end(path, length)) == 1
        )
        for path in paths
    ]
