"""Merges of records: the results of shards, or of all that a record holds."""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from tfsam.evaluation import accuracies
from tfsam.evaluation import corrupted_results
from tfsam.evaluation import corrupted_verdicts
from tfsam.evaluation import records
from tfsam.evaluation import verdicts
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.records import NATURAL
from tfsam.support import files


def merge(folders: Iterable[files.Path]) -> dict[str, Any]:
    """Combines the shards of an evaluation into its result.

    Folders of the same model and data may also hold different attacks, epsilons
    or norms.

    Args:
        folders: The `workdir` of each shard, of `evaluate` or of
            `evaluate_corruptions`.

    Returns:
        The result that `evaluate` returns for the whole evaluation, with all
        attacks and budgets that the folders hold; or that of
        `evaluate_corruptions`, with all their corruptions and severities. It
        has the warning
        `mixed_shards` if shards were measured on other kinds of devices, with
        other versions of TensorFlow, Keras or Python, or with another
        `jit_compile`. If an attack failed in a shard, its rows have `error`.

    Raises:
        ValueError: If a folder holds the record of another evaluation or of
            another version of tfsam, or if no shard measured some chunk; of
            corrupted images, also if some chunk lacks one of the corruptions.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import tfsam
        >>> x = np.random.default_rng(0).random((6, 4), dtype="float32")
        >>> data, weights = (x, np.arange(6) % 3), 9 * np.eye(4, 3)
        >>> folders = [tempfile.mkdtemp() for _ in range(2)]
        >>> for i, folder in enumerate(folders):
        ...     shard = tfsam.evaluate(
        ...         lambda x: x @ weights.astype("float32"),
        ...         data,
        ...         ["fgsm"],
        ...         batch_size=2,
        ...         shard=(i, 2),
        ...         workdir=folder,
        ...     )
        >>> merge(folders)["natural"]["n"]
        6
    """
    folders = list(folders)
    if any(map(corrupted_verdicts.is_record, folders)):
        return _corruptions(folders)
    record, mixed = verdicts.merged(folders)
    whole = range(records.chunk_count(record.header))
    _check_measured(record, [NATURAL], whole)
    result = accuracies.result(record, whole, _unmeasured(record, whole))
    result["warnings"] += _of_mixed(mixed)
    return result


def _corruptions(folders: Iterable[files.Path]) -> dict[str, Any]:
    """Combines the shards of an evaluation on corrupted images."""
    record, mixed = corrupted_verdicts.Verdicts.merged(folders)
    whole = range(records.chunk_count(record.header))
    asked = record.asked()
    _check_measured(record, corrupted_verdicts.parts_of(asked), whole)
    result = corrupted_results.result(
        record, whole, asked, record.header["left_out"]
    )
    result["warnings"] += _of_mixed(mixed)
    return result


def _check_measured(
    record: records.Record,
    parts: Iterable[str],
    chunks: Sequence[int],
) -> None:
    """Rejects records of which a chunk is missing.

    Raises:
        ValueError: If one is.
    """
    for part in parts:
        missing = [c for c in chunks if not record.load(part, c)]
        if missing:
            of_part = "" if part == NATURAL else f" of {part}"
            raise ValueError(
                "the shards together must have measured every chunk of "
                f"{record.header['batch_size']} examples; run the missing "
                f"shard. Received: no shard with chunk {missing[0]}{of_part}"
            )


def _of_mixed(mixed: Sequence[str]) -> list[dict[str, str]]:
    """Returns a warning about shards that were measured in different ways."""
    if not mixed:
        return []
    message = (
        f"The shards were measured with different {', '.join(mixed)}. An "
        "example near the decision boundary may get another verdict than "
        "in a single evaluation. To avoid this, measure all shards with "
        "the same software on the same kind of device."
    )
    return [{"warning": "mixed_shards", "message": message}]


def _unmeasured(
    record: verdicts.Record, chunks: Sequence[int]
) -> dict[tuple[int, Budget], str]:
    """Returns a message for each attack and budget without all verdicts."""
    errors = {}
    for number, attack in enumerate(record.header["attacks"]):
        for budget in flat(attack["budgets"]):
            part = verdicts.part_at(record.part(number), budget)
            loaded = {c: record.load(part, c) for c in chunks}
            failed = [c for c in chunks if "verdict" not in loaded[c]]
            if failed:
                message = f"failed or not run in chunk {failed[0]}"
                errors[number, budget] = message
    return errors
