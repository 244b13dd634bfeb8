"""Lines of a run's log: its settings when it starts, and its results."""

import shlex
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam.reports.results import draws_in_words
from tfsam.runs import artifacts
from tfsam.runs import flag_types
from tfsam.runs import methods
from tfsam.runs import parts
from tfsam.runs.settings import Settings


def opening(
    settings: Settings, argv: Sequence[str], training_images: int
) -> list[str]:
    """Returns the first lines of a run's log: the settings that hold.

    Args:
        settings: the settings of the run.
        argv: the command line, without the program's name.
        training_images: the number of images to train on.
    """
    lines = [f"{settings.workdir}: {shlex.join(argv)}"]
    if settings.training:
        recipe = settings.training
        lines.append(
            f"training: {recipe.method} on {training_images} images of "
            f"{settings.dataset}, {recipe.network}, {recipe.epochs} epochs, "
            f"seed {settings.seed}"
        )
        if recipe.replays > 1:
            lines.append(
                f"each batch is used {recipe.replays} times in a row: an epoch "
                f"takes as long as {recipe.replays} of standard training"
            )
        lines += [
            f"{title}: {described}"
            for title, part in _PARTS.items()
            if (described := _part(settings, part))
        ]
    else:
        lines.append(
            f"evaluation of {settings.evaluate} on {settings.dataset}, "
            f"seed {settings.seed}"
        )
    return [*lines, f"evaluation: {evaluation(settings)}"]


# The parts of a method that the log describes, by their title.
_PARTS = {
    "training's attack": "perturb_inputs",
    "perturbation of the weights": "perturb_weights",
    "objective": "objective",
    "average": "average",
}


def _part(settings: Settings, part: str) -> str | None:
    """Describes a part of the method with its options, or returns None."""
    name = getattr(settings.recipe, part)
    if name is None:
        return None
    options = {
        flag: getattr(settings.recipe, flag)
        for flag in parts.flags_of(part, name)
    }
    listed = [
        f"{flag} {flag_types.written(value)}"
        for flag, value in options.items()
        if value is not None and f":{flag}=" not in name
    ]
    return ", ".join([name, *listed])


def evaluation(settings: Settings) -> str:
    """Describes the attacks, the values of epsilon, and the corruptions."""
    budgets = "; ".join(
        f"{norm} epsilon {', '.join(map(flag_types.written, epsilons))}"
        for norm, epsilons in settings.budgets.items()
    )
    attacks = [", ".join(settings.attacks)] if settings.attacks else []
    if settings.transfer_attacks:
        transferred = ", ".join(settings.transfer_attacks)
        attacks.append(f"{transferred} on the surrogate")
    found = f"{', and '.join(attacks)} at {budgets or 'no epsilon'}"
    if not attacks:
        found = "no attack"
    if settings.corruptions:
        found += f"; corruptions {', '.join(settings.corruptions)}"
    return found


def corruptions(results: Mapping[str, Any]) -> list[str]:
    """Returns the lines about accuracy on corrupted images, if any.

    Args:
        results: the content of results.json.
    """
    found = results.get("corruptions")
    if not found:
        return []
    low, high = (100 * end for end in found["interval"])
    kinds = {row["corruption"] for row in found["rows"]}
    lines = [
        f"{found['name']}: mean accuracy {100 * found['mean_accuracy']:.2f} % "
        f"(95 % interval {low:.1f} to {high:.1f}) of {found['n']} images over "
        f"{len(kinds)} kinds at severities "
        f"{', '.join(map(str, found['severities']))}"
    ]
    if words := draws_in_words(found.get("natural") or {}):
        lines.append(f"verdicts on clean images: {words}")
    for name, reason in found["left_out"].items():
        lines.append(f"the corruption {name} is left out: it {reason}")
    for warning in found.get("warnings", []):
        lines.append(f"warning, {warning['warning']}: {warning['message']}")
    return lines


def closing(settings: Settings, results: Mapping[str, Any]) -> list[str]:
    """Returns the lines that follow the table of a finished run.

    Args:
        settings: the settings of the run.
        results: the content of results.json.
    """
    listed = artifacts.in_words({"results.json", *results["artifacts"]})
    lines = [
        f"Accuracy is the percentage of the {results['natural']['n']} test "
        "images that are classified correctly: as they are (clean), and after "
        "an attack that may change each image by at most epsilon in the norm "
        "(pixels are in [0, 1]).",
        *_worst_case(results),
        f"Made in {settings.workdir}: {', '.join(listed)}.",
        f"Report: tfsam report {shlex.quote(str(settings.workdir))}",
    ]
    if settings.training:
        lines.insert(0, _trained(settings, settings.training.method))
    return lines


def _worst_case(results: Mapping[str, Any]) -> list[str]:
    """Explains the worst case, where it is more than a single attack."""
    rows = results.get("worst_case") or []
    if not any(len(row["attacks"]) > 1 for row in rows):
        return []
    lines = [
        "In the worst case an image counts as robust only if none of the "
        "attacks broke it within the ball; RobustBench ranks by it."
    ]
    if any(row["upper_bound"] for row in rows):
        lines.append(
            "An upper bound lacks an attack that failed, which might have "
            "broken more images."
        )
    return lines


def _trained(settings: Settings, name: str) -> str:
    """Names the method, unless a flag has replaced one of its parts."""
    described = "; ".join(
        text for part in _PARTS.values() if (text := _part(settings, part))
    )
    row = methods.method(name)
    if any(
        getattr(settings.recipe, part) != getattr(row, part)
        for part in _PARTS.values()
    ):
        return f"Trained with {described or 'no perturbation'}."
    return f"Trained by {name}{described and ': '}{described}."


def failure(results: Mapping[str, Any]) -> str | None:
    """Returns a line about the attacks that failed, None if there are none.

    Args:
        results: the content of results.json.
    """
    rows = [row for row in results["robust"] if "error" in row]
    if not rows:
        return None
    first = rows[0]
    names = ", ".join(dict.fromkeys(row["attack"] for row in rows))
    reason = " ".join(str(first["error"]).split())
    return (
        f"failed: {names}: {reason}; the same command tries again what failed"
    )
