"""Merges of records: the results of shards, or of all that a record holds."""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from tfsam.evaluation import accuracies
from tfsam.evaluation import verdicts
from tfsam.evaluation.budgets import Budget
from tfsam.evaluation.budgets import flat
from tfsam.evaluation.verdicts import NATURAL
from tfsam.support import files


def merge(folders: Iterable[files.Path]) -> dict[str, Any]:
    """Combines the shards of an evaluation into its result.

    Folders of the same model and data may also hold different attacks, epsilons
    or norms.

    Args:
        folders: The `workdir` of each shard.

    Returns:
        The result that `evaluate` returns for the whole evaluation, with all
        attacks and budgets that the folders hold. It has the warning
        `mixed_shards` if shards were measured on other kinds of devices, with
        other versions of TensorFlow, Keras or Python, or with another
        `jit_compile`. If an attack failed in a shard, its rows have `error`.

    Raises:
        ValueError: If a folder holds the record of another evaluation or of
            another version of tfsam, or if no shard measured some chunk.

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
    record, mixed = verdicts.merged(folders)
    header = record.header
    whole = range(verdicts.chunk_count(header))
    missing = [c for c in whole if not record.load(NATURAL, c)]
    if missing:
        raise ValueError(
            "the shards together must have measured every chunk of "
            f"{header['batch_size']} examples; run the missing shard. "
            f"Received: no shard with chunk {missing[0]}"
        )
    result = accuracies.result(record, whole, _unmeasured(record, whole))
    if mixed:
        message = (
            f"The shards were measured with different {', '.join(mixed)}. An "
            "example near the decision boundary may get another verdict than "
            "in a single evaluation. To avoid this, measure all shards with "
            "the same software on the same kind of device."
        )
        result["warnings"].append(
            {"warning": "mixed_shards", "message": message}
        )
    return result


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
