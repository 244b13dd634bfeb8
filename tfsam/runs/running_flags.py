"""The flags of a run: its folder, seed and devices, and questions."""

from tfsam.runs.flag_types import Flag
from tfsam.runs.flag_types import boolean
from tfsam.runs.flag_types import integer
from tfsam.runs.flag_types import one_of

RUNNING = "Running"

FLAGS: dict[str, Flag] = {
    "robustbench": Flag(
        RUNNING,
        "JSON file to write at the end: the entry of RobustBench's "
        "leaderboards (model_info/DATASET/THREAT/NAME.json), which needs "
        "--attacks=autoattack. Fields that you have filled in are kept.",
    ),
    "preset": Flag(
        RUNNING,
        "Defaults of all other flags. digits: 8x8 images that come with "
        "scikit-learn, a small network, one minute; its values of epsilon "
        "apply to this data set only. cifar10, cifar100: the paper's recipe.",
    ),
    "workdir": Flag(
        RUNNING,
        "Folder of the run. The default is runs/NAME, where NAME describes "
        "the run.",
    ),
    "overwrite": Flag(
        RUNNING,
        "Start again in a folder that holds another run, whose files are "
        "removed first.",
        boolean,
    ),
    "seed": Flag(RUNNING, "Seed of all random numbers.", integer, least=0),
    "devices": Flag(
        RUNNING,
        "auto (all GPUs, otherwise the CPU), cpu, cpu:2 (two logical "
        "devices), gpu:all or gpu:2.",
    ),
    "strategy": Flag(
        RUNNING,
        "Devices that share each batch: mirrored, the --devices of this "
        "process; multi_worker, the devices of all processes in TF_CONFIG, "
        "each started by this command with the same --workdir; auto, "
        "multi_worker if TF_CONFIG is set.",
    ),
    "jit_compile": Flag(
        RUNNING,
        "Whether to compile gradients with XLA; auto does so on GPUs.",
        choices=one_of("auto", "true", "false"),
    ),
    "help": Flag(
        RUNNING,
        "Print this help; --help=NAME prints the options of a method, an "
        "attack or another part.",
    ),
    "methods": Flag(
        RUNNING, "Print the table of all methods with their flags.", boolean
    ),
    "version": Flag(RUNNING, "Print the version.", boolean),
}
