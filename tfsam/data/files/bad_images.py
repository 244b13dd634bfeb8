"""Bad images: files among images that cannot be decoded as such."""

import warnings
from collections.abc import Mapping
from collections.abc import Sequence

from tfsam.data.files.decoding import refusal

POLICIES = ("skip", "refuse")

# More than this fraction is a mistake, whatever the policy.
MOST = 0.05

_NAMED = 3


def report(
    bad: Sequence[str],
    total: int,
    source: object,
    reasons: Mapping[str, str],
    policy: str,
) -> None:
    """Warns of bad images that are left out, or rejects them.

    Args:
        bad: their names.
        total: the number of files, good and bad.
        source: the folder or the table that names them.
        reasons: the reason of each by its name, as far as it is known.
        policy: "skip" warns of up to `MOST` of all, "refuse" rejects any.

    Raises:
        ValueError: if they are rejected.
    """
    if not bad:
        return
    some = [
        f"{name} ({reasons[name]})" if name in reasons else name
        for name in bad[:_NAMED]
    ]
    named = ", ".join([*some, *["..."][: len(bad) - len(some)]])
    if policy == "refuse":
        raise refusal(
            "every file of a class must be an image with bad_images=refuse",
            f"{len(bad)} of {total} files in {source} that are not: {named}",
        )
    if len(bad) > MOST * total:
        raise refusal(
            f"files must be images that can be decoded, {1 - MOST:.0%} of them"
            " at least; remove others",
            f"{len(bad)} of {total} in {source} that are not: {named}",
        )
    warnings.warn(
        f"skipped {len(bad)} of {total} files in {source}, which are no images"
        f" that can be decoded: {named}",
        stacklevel=2,
    )
