"""Functions from pixels to logits, as attacks evaluate them.

Attacks accept any function from pixels to logits and evaluate it by `predict`
and `input_gradient`. A `Logits` adds how the network is run: whether it is
compiled, and in blocks of which size.

The class is in `network.py`, on `calls.py` (traces and blocks) and
`pass_counter.py`. Attacks read its settings by the functions of `settings.py`,
evaluate it by those of `queries.py`, and judge points by those of `success.py`.
"""

from tfsam.attacks.logits.network import TOGETHER
from tfsam.attacks.logits.network import GoalFn
from tfsam.attacks.logits.network import Logits
from tfsam.attacks.logits.network import LogitsFn
from tfsam.attacks.logits.network import LossFn
from tfsam.attacks.logits.pass_counter import Counts
from tfsam.attacks.logits.queries import input_gradient
from tfsam.attacks.logits.queries import predict
from tfsam.attacks.logits.settings import compiled
from tfsam.attacks.logits.settings import examples
from tfsam.attacks.logits.settings import in_turn
from tfsam.attacks.logits.settings import is_surrogate
from tfsam.attacks.logits.settings import setting
from tfsam.attacks.logits.success import crossed
from tfsam.attacks.logits.success import may_stop
from tfsam.attacks.logits.success import score
from tfsam.attacks.logits.untraced import Untraced
from tfsam.support.graphs import of_any_batch
from tfsam.support.graphs import traced

__all__ = [
    "TOGETHER",
    "Counts",
    "GoalFn",
    "Logits",
    "LogitsFn",
    "LossFn",
    "Untraced",
    "compiled",
    "crossed",
    "examples",
    "in_turn",
    "input_gradient",
    "is_surrogate",
    "may_stop",
    "of_any_batch",
    "predict",
    "score",
    "setting",
    "traced",
]
