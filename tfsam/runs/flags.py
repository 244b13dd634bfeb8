"""The flags of the command line, in the order of `--help`.

Nothing here imports TensorFlow, so that `--help` and a mistyped flag are
answered at once. `command_line.py` parses them, and `settings.py` turns those
that were given into the settings of a run.
"""

from tfsam import registries
from tfsam.runs import data_flags
from tfsam.runs import evaluation_flags
from tfsam.runs import running_flags
from tfsam.runs import training_flags
from tfsam.runs.flag_types import Flag
from tfsam.support.registry import Registry

# The headings of `--help`.
GROUPS = (
    training_flags.TRAINING,
    training_flags.ATTACK,
    data_flags.DATA,
    evaluation_flags.EVALUATION,
    running_flags.RUNNING,
)

FLAGS: dict[str, Flag] = {
    **training_flags.FLAGS,
    **data_flags.FLAGS,
    **evaluation_flags.FLAGS,
    **running_flags.FLAGS,
}

# Flags that answer a question; nothing is run.
QUESTIONS = ("help", "methods", "version")

# Registries by the flag that takes a name from them.
REGISTRIES: dict[str, Registry] = {
    "attacks": registries.ATTACKS,
    "transfer_attacks": registries.ATTACKS,
    "perturb_inputs": registries.ATTACKS,
    "perturb_weights": registries.WEIGHTS,
    "objective": registries.OBJECTIVES,
    "optimizer": registries.OPTIMIZERS,
    "average": registries.AVERAGES,
    "schedule": registries.SCHEDULES,
    "augment": registries.AUGMENTATIONS,
    "network": registries.NETWORKS,
}
