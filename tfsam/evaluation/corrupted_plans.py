"""Plans of evaluations on corrupted images."""

from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import numpy as np

from tfsam.corruptions.base import SEVERITIES
from tfsam.corruptions.base import check_severity
from tfsam.corruptions.base import size_of_constants
from tfsam.corruptions.images import CorruptionFn
from tfsam.corruptions.images import corrupt_with
from tfsam.corruptions.selection import chosen
from tfsam.evaluation import corrupted_verdicts
from tfsam.evaluation.goals import AnyWrongClass
from tfsam.evaluation.plans import Data
from tfsam.evaluation.plans import Plan
from tfsam.registries import CORRUPTIONS
from tfsam.support.validators import check_count

# The bounds of the pixels of images that can be corrupted.
BOUNDS = (0.0, 1.0)


class Work(NamedTuple):
    """The corruptions to measure and their images, without the model.

    Attributes:
        plan: The images before they are corrupted, and how they are judged.
        functions: The corruptions, by their names.
        severities: The severities, ascending.
        chunks: Numbers of the chunks.
    """

    plan: Plan
    functions: dict[str, CorruptionFn]
    severities: list[int]
    chunks: range

    @property
    def asked(self) -> dict[str, list[int]]:
        """The severities of each corruption."""
        return dict.fromkeys(self.functions, self.severities)


def work_of(
    data: Data,
    corruptions: Any,
    severities: Iterable[int],
    seed: int,
    batch_size: int,
) -> Work:
    """Checks the arguments, and tries each corruption.

    Args:
        data: The images before they are corrupted, with their labels.
        corruptions: Names of corruptions.
        severities: The severities.
        seed: Integer >= 0.
        batch_size: Number of images that are classified together.

    Returns:
        The `Work`, still without chunks.

    Raises:
        ImportError: If the package of a corruption cannot be imported.
        ValueError: If an argument is invalid, or a corruption cannot be
            applied.
    """
    numbers = sorted({check_severity(severity) for severity in severities})
    if not numbers:
        raise ValueError(
            "severities must be some of 1, 2, 3, 4 and 5. Received: none"
        )
    size = check_count("batch_size", batch_size, 1)
    seed = check_count("seed", seed)
    functions = check(data.x[:1], corruptions)
    plan = Plan(
        data=data,
        entries=[],
        budgets={},
        bounds=BOUNDS,
        seed=seed,
        size=min(size, len(data.x)),
        warm_start=False,
        keep_images=False,
        goal=AnyWrongClass(data.y, data.labels),
    )
    return Work(plan, functions, numbers, range(0))


def header_of(work: Work, left_out: dict[str, str]) -> dict[str, Any]:
    """Returns the part of a record's header that needs no model.

    Args:
        work: The work.
        left_out: The benchmark's corruptions that are left out, with reasons.
    """
    plan = work.plan
    header = {
        "schema": corrupted_verdicts.SCHEMA,
        "n": len(plan.data.x),
        "batch_size": plan.size,
        "seed": plan.seed,
        "constants": size_of_constants(plan.data.x.shape[1:]),
        "corruptions": [
            {"name": name, "severities": severities}
            for name, severities in work.asked.items()
        ],
        "left_out": left_out,
    }
    if plan.data.inputs is not None:
        header["attacked"] = plan.data.inputs.attacked
    if plan.draws is not None:
        header["draws"] = plan.draws.number
    return header


def check(image: np.ndarray, corruptions: Any) -> dict[str, CorruptionFn]:
    """Tries corruptions on an image, at all severities.

    Args:
        image: Float array (1, height, width, channels) or (1, height, width).
        corruptions: Names and groups; see `evaluate_corruptions`.

    Returns:
        The corruptions, by their names.

    Raises:
        ImportError: If the package of a corruption cannot be imported.
        ValueError: If a name is unknown, or a corruption cannot be applied.
    """
    size_of_constants(image.shape[1:])
    found = {name: CORRUPTIONS.make(name) for name in chosen(corruptions)}
    for name, function in found.items():
        for severity in SEVERITIES:
            corrupt_with(function, name, image, severity, 0, None)
    return found
