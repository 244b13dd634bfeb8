"""The settings of an evaluation, and the checks of its flags."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from tfsam import registries
from tfsam.corruptions import selection
from tfsam.corruptions.base import check_severity
from tfsam.runs import attack_entries
from tfsam.runs.attack_entries import BOUNDS
from tfsam.runs.training_settings import Training
from tfsam.support import files
from tfsam.support.validators import check_budget
from tfsam.support.validators import check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The settings that an evaluation uses.

    Each attribute is the flag of the same name; `tfsam --help` describes them.

    Attributes:
        network: the network of the weights that `evaluate` names; None where
            that is a model, and where a network is trained.
        shard: (index, number of shards), or None.
    """

    # The model.
    evaluate: str | None
    network: str | None
    pixels: str
    output: str | None
    imports: tuple[str, ...] | None
    trust: tuple[str, ...] | None
    draws: int | None
    # The attacks.
    attacks: tuple[str, ...]
    target: int | None
    attack_steps: int | None
    attack_batch_size: int
    linf_epsilons: tuple[float, ...]
    l2_epsilons: tuple[float, ...]
    l1_epsilons: tuple[float, ...]
    surrogate: str | None
    transfer_attacks: tuple[str, ...]
    warm_start: bool
    sweep: str
    diagnose: bool
    # The corruptions.
    corruptions: tuple[str, ...] | None
    severities: tuple[int, ...] | None
    # The part of the images, and the files that are made.
    shard: tuple[int, int] | None
    save_adversarial: bool
    robustbench: pathlib.Path | None = None

    @property
    def budgets(self) -> dict[str, tuple[float, ...]]:
        """The values of epsilon of the evaluation, by norm; none is empty."""
        budgets = {
            "linf": self.linf_epsilons,
            "l2": self.l2_epsilons,
            "l1": self.l1_epsilons,
        }
        return {norm: found for norm, found in budgets.items() if found}


def robustbench_file(values: Mapping[str, Any]) -> pathlib.Path | None:
    """Returns the file of --robustbench, checked, or None.

    A leaderboard's entry that cannot be made is rejected before the attacks,
    which take hours.

    Args:
        values: the value of each setting.

    Raises:
        ValueError: if the entry cannot be made.
    """
    given = values.get("robustbench")
    if given is None:
        return None
    path = files.expanded(given)
    if not given or path.is_dir():
        raise ValueError(
            f"robustbench must name a file. Received: robustbench={given}"
        )
    specs = values["attacks"]
    factories = map(registries.ATTACKS.factory, specs)
    if "standard" not in [getattr(f, "version", None) for f in factories]:
        raise ValueError(
            "--robustbench needs the standard AutoAttack, "
            f"--attacks=autoattack. Received: attacks={','.join(specs)}"
        )
    if not values["linf_epsilons"] and not values["l2_epsilons"]:
        raise ValueError(
            "--robustbench needs --linf_epsilons or --l2_epsilons. Received: "
            "none"
        )
    if values["target"] is not None:
        raise ValueError(
            "--robustbench needs attacks that aim at any wrong class. "
            f"Received: target={values['target']}"
        )
    if values["shard"] is not None:
        raise ValueError(
            "--robustbench needs all images: merge the shards, and pass their "
            "results to tfsam.reports.robustbench. "
            f"Received: shard={values['shard']}"
        )
    return path


def check_evaluation(settings: Evaluation, training: Training | None) -> None:
    """Checks the settings against each other and against the parts.

    The declarations of the flags limit each of them alone.

    Args:
        settings: the settings of the evaluation.
        training: the settings of training, in a run that trains.

    Raises:
        ImportError: if a library that an attack needs is not installed.
        ValueError: if a setting is out of its range, or needs another one.
    """
    attacks = (*settings.attacks, *settings.transfer_attacks)
    if not attacks and not settings.corruptions:
        raise ValueError(
            "attacks must name one at least, or --corruptions be given. "
            "Received: none"
        )
    _check_corruptions(settings)
    if settings.shard and settings.evaluate is None:
        index, count = settings.shard
        raise ValueError(
            "--shard needs --evaluate: shards attack one and the same "
            f"model. Received: shard={index}/{count}"
        )
    if settings.evaluate is None and settings.output is not None:
        raise ValueError(
            f"--output needs --evaluate. Received: output={settings.output}"
        )
    _check_pixels(settings, training)
    for norm, epsilons in settings.budgets.items():
        for epsilon in epsilons:
            flag = f"{norm}_epsilons"
            check_number(flag, epsilon)
            check_budget(epsilon, norm, BOUNDS, flag)
    if settings.transfer_attacks and settings.surrogate is None:
        raise ValueError(
            "--transfer_attacks needs --surrogate, the model to compute them "
            "on. Received: "
            f"transfer_attacks={','.join(settings.transfer_attacks)}"
        )
    attack_entries.check(attacks, settings.attack_steps, settings.budgets)


def _check_corruptions(settings: Evaluation) -> None:
    """Checks the corruptions of a run, and their severities."""
    if settings.corruptions is None:
        if settings.severities is not None:
            raise ValueError(
                "--severities needs --corruptions. Received: severities="
                f"{','.join(map(str, settings.severities))}"
            )
        return
    for spec in selection.chosen(settings.corruptions):
        registries.CORRUPTIONS.make(spec)
    if settings.severities == ():
        raise ValueError(
            "severities must be some of 1, 2, 3, 4 and 5. Received: none"
        )
    for severity in settings.severities or ():
        check_severity(severity)


def _check_pixels(settings: Evaluation, training: Training | None) -> None:
    """Checks the range of the pixels of the model to attack."""
    if settings.pixels == "auto":
        return
    if training and not registries.network_file(training.network):
        raise ValueError(
            "--pixels needs --evaluate or the file of a network: networks "
            "that are built here take pixels in 0..1. "
            f"Received: pixels={settings.pixels}"
        )
    if ":" not in settings.pixels:  # A function is imported later.
        from tfsam.models import pixel_ranges

        pixel_ranges.parse(settings.pixels)
