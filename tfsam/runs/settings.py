"""The settings of a run: one frozen object, made and checked once.

Settings are made from the flags of the command line or from a run's
config.json. The rest of a run reads their attributes and checks nothing again.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tfsam.corruptions import selection
from tfsam.runs import command_line
from tfsam.runs import flags
from tfsam.runs import methods
from tfsam.runs import names
from tfsam.runs import presets
from tfsam.runs.evaluation_settings import Evaluation
from tfsam.runs.evaluation_settings import check_evaluation
from tfsam.runs.evaluation_settings import robustbench_file
from tfsam.runs.training_settings import Training
from tfsam.runs.training_settings import check_parts
from tfsam.runs.training_settings import fill_parts
from tfsam.support import files
from tfsam.support.validators import check_choice

# Settings that may change when a run is resumed: the results are the same.
UNBOUND = ("cache_dir", "checkpoint_steps")

# Settings of an evaluation that may be others the next time: the record of the
# run grows, and only what is new is measured.
GROWING = (
    *("attacks", "attack_steps", "transfer_attacks"),
    *("corruptions", "severities"),
    *("linf_epsilons", "l2_epsilons", "l1_epsilons"),
)

# Settings that the config.json of an older tfsam may lack.
OLDER: dict[str, Any] = {
    "precision": "float32",
    "strategy": "auto",
    "pixels": "auto",
    "image_size": None,
    "resize": "crop",
    "test_fraction": None,
    "bad_images": "skip",
    "class_order": "name",
    "weights": None,
    "freeze": None,
    "nesterov": None,
    "decay_exclude": None,
    "clip_norm": None,
    "schedule": "piecewise",
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "mix": None,
    "mix_fraction": None,
    "validation_steps": None,
    "corruptions": None,
    "severities": None,
    "l1_epsilons": [],
    "transfer_attacks": [],
    "sweep": "full",
    "diagnose": True,
    "draws": None,
    "target": None,
}

# Settings that are not called as their flags, because of Python's keywords.
FIELDS = {"import": "imports"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Evaluation):
    """The settings of a run, checked.

    Each attribute but `training` is the flag of the same name; `tfsam --help`
    describes them.

    Attributes:
        training: the settings of training; None where `evaluate` names an
            existing model.
    """

    preset: str
    training: Training | None
    dataset: str
    limit_test: int | None
    image_size: str | None
    resize: str
    test_fraction: float | None
    bad_images: str
    class_order: str
    cache_dir: str | None
    seed: int
    devices: str
    strategy: str
    jit_compile: str
    workdir: pathlib.Path
    overwrite: bool = False

    def config(self) -> dict[str, Any]:
        """Returns the content of config.json: every setting but the files."""
        own = {k: v for k, v in vars(self).items() if k not in _NO_CONFIG}
        trained = vars(self.training) if self.training else {}
        values = dict.fromkeys(TRAINING) | own | trained
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in sorted(values.items())
        }

    @property
    def grows(self) -> bool:
        """Whether the settings in `GROWING` may be others the next time.

        Not if a result depends on all of them: images that are chosen by a
        sweep, or training that selects a network under the evaluation's budget.
        """
        selects = self.training is not None and self.training.holds_out
        return self.sweep == "full" and not self.warm_start and not selects

    @property
    def recipe(self) -> Training:
        """The settings of training, in a run that trains."""
        if self.training is None:
            raise ValueError(
                "expected a run that trains. "
                f"Received: evaluate={self.evaluate}"
            )
        return self.training

    @property
    def limit_train(self) -> int | None:
        """The number of training images to use, None for all."""
        return self.training.limit_train if self.training else None

    @property
    def compiles(self) -> bool | str:
        """The value of `jit_compile` in Python: "auto", True or False."""
        return {"true": True, "false": False}.get(self.jit_compile, "auto")


@dataclasses.dataclass(frozen=True)
class Merge:
    """A command that merges the shards of an evaluation.

    Attributes:
        folders: the folders of the shards.
        workdir: the folder of the result.
    """

    folders: tuple[pathlib.Path, ...]
    workdir: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A command that looks at a model.

    Attributes:
        settings: the settings of the run that would evaluate it.
        on_data: whether natural accuracy is measured.
        texts: the flags that were given, for the command of that run.
    """

    settings: Settings
    on_data: bool
    texts: Mapping[str, str]


# The settings that training alone uses: rejected beside --evaluate.
TRAINING = tuple(field.name for field in dataclasses.fields(Training))

_NO_CONFIG = ("training", "workdir", "overwrite", "robustbench")


def from_argv(argv: Sequence[str]) -> Settings | Merge | Inspection:
    """Makes the settings of a command line; see `from_flags`.

    Args:
        argv: the arguments, without the program's name.

    Example:
        >>> made = from_argv(["--method=sam", "--rho=0.2"])
        >>> made.recipe.rho, made.recipe.epochs, str(made.workdir)
        (0.2, 20, 'runs/digits-sam-rho=0.2')
    """
    return from_flags(command_line.parse(argv))


def from_flags(given: command_line.Given) -> Settings | Merge | Inspection:
    """Makes the settings of the flags that are given.

    Flags that are not given have the value of the preset or of the method.

    Args:
        given: the flags of a command line.

    Raises:
        ImportError: if a library that a part needs is not installed.
        ValueError: if a value is unknown, out of its range, or not used.
    """
    if "merge" in given.values:
        return _merge(given.values)
    if "inspect" in given.values:
        return _inspection(given)
    return _settings(given)


def _settings(given: command_line.Given) -> Settings:
    """Makes the settings of a run; see `from_flags`."""
    values = named(given)
    if values["evaluate"] is None:
        row = methods.method(values["method"])
        unused = fill_parts(values, given.values, row)
        reason = f"--method={values['method']}"
    else:
        values |= _weights_alone(given.values)
        used = ("network", "weights")
        unused = [n for n in TRAINING if n in given.values and n not in used]
        reason = "--evaluate, which trains nothing,"
    if unused:
        raise ValueError(
            f"{reason} does not use --{unused[0]}. "
            f"Received: --{unused[0]}={given.texts[unused[0]]}"
        )
    workdir = given.values.get("workdir") or f"runs/{names.of_run(given)}"
    return _checked(values, files.expanded(workdir))


def _weights_alone(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model and the network of an evaluation.

    Weights without a model need a network. Their file may be named by
    --evaluate, by --weights, or by both.
    """
    model, weights = given["evaluate"], given.get("weights")
    network = given.get("network")
    if weights is not None and network is None:
        network, model = model, weights
    if weights is not None and weights != model:
        raise ValueError(
            "--evaluate with --network takes the file of its weights. "
            f"Received: evaluate={model}, weights={weights}"
        )
    return {"evaluate": model, "network": network, "weights": None}


def from_config(config: Mapping[str, Any], workdir: pathlib.Path) -> Settings:
    """Makes the settings of a run from its config.json.

    Args:
        config: the content of the file; keys that are no settings are ignored,
            and settings that an older tfsam did not have are filled in.
        workdir: the folder of the run.

    Raises:
        KeyError: if a setting is missing.
        ValueError: if a value is unknown or out of its range.
    """
    known = dict.fromkeys([*UNBOUND, "shard", "output", "imports", "trust"])
    return _checked(known | OLDER | dict(config), workdir)


def named(given: command_line.Given) -> dict[str, Any]:
    """Returns the preset's values with those given; checks all names.

    Names are replaced by their registered spelling. No part is imported, so
    that a mistyped name is reported before TensorFlow is imported.

    Args:
        given: the flags of a command line.

    Raises:
        ValueError: if the preset, the method or a part is unknown.
    """
    preset = check_choice(
        "preset", given.values.get("preset", presets.DEFAULT), presets.PRESETS
    )
    defaults = presets.defaults(preset, given.values.get("dataset"))
    values: dict[str, Any] = dict.fromkeys(flags.FLAGS)
    values |= defaults | given.values | {"preset": preset}
    values["method"] = _method(values["method"])
    for name, registry in flags.REGISTRIES.items():
        value = values[name]
        if isinstance(value, list):
            values[name] = [registry.canonical(spec) for spec in value]
        elif isinstance(value, str) and value != "none":
            values[name] = registry.canonical(value, name)
    # An empty list is as good as no flag.
    values["corruptions"] = values["corruptions"] or None
    if values["corruptions"] is not None:
        values["corruptions"] = selection.canonical(values["corruptions"])
    for name, flag in flags.FLAGS.items():
        flag.check(name, values[name])
    return values


def share(name: str, text: str) -> tuple[int, int]:
    """Parses a share of the work, "i/n": part i of n parts.

    Args:
        name: the flag's name, for the message.
        text: its value.

    Raises:
        ValueError: unless 0 <= i < n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"{name} must be i/n with 0 <= i < n, such as 0/4. "
            f"Received: {name}={text}"
        )
    return int(match[1]), int(match[2])


def _method(given: str) -> str:
    """Returns the registered name of a method.

    Args:
        given: the name, in any case.

    Raises:
        ValueError: if the name is unknown, or options follow it.
    """
    table = methods.methods()
    name, colon, options = given.partition(":")
    name = methods.closest("method", name if colon else given, table)
    if not colon:
        return name
    specs = methods.with_options(name, options.split(":"))
    remedy = " ".join(f"--{part}={spec}" for part, spec in specs.items())
    raise ValueError(
        f"options belong to the part: {remedy}, beside --method={name}. "
        f"Received: method={given}"
    )


def _merge(values: Mapping[str, Any]) -> Merge:
    """Makes the command of --merge, which takes --workdir and nothing else."""
    unused = sorted(set(values) - {"merge", "workdir"})
    if unused:
        raise ValueError(
            f"--merge takes --workdir alone. Received: --{unused[0]}"
        )
    if "workdir" not in values:
        raise ValueError("--merge needs --workdir. Received: none")
    folders = tuple(files.expanded(folder) for folder in values["merge"])
    return Merge(folders, files.expanded(values["workdir"]))


def _inspection(given: command_line.Given) -> Inspection:
    """Makes the command of --inspect of the flags of an evaluation."""
    if "evaluate" in given.values:
        raise ValueError(
            "--inspect looks at one model, --evaluate attacks it. Received: "
            "both"
        )

    def renamed(flags_: Mapping[str, Any]) -> dict[str, Any]:
        rest = {k: v for k, v in flags_.items() if k != "inspect"}
        return {"evaluate": flags_["inspect"]} | rest

    texts = renamed(given.texts)
    made = _settings(command_line.Given(renamed(given.values), texts))
    return Inspection(made, bool({"dataset", "preset"} & {*texts}), texts)


def _checked(values: Mapping[str, Any], workdir: pathlib.Path) -> Settings:
    """Makes settings of the value of each, and checks them."""
    values = {FIELDS.get(name, name): v for name, v in values.items()}
    shard = values["shard"]
    if isinstance(shard, str):
        shard = share("shard", shard)
    for name, flag in flags.FLAGS.items():
        flag.check(name, values.get(FIELDS.get(name, name)))
    training = None
    if values["evaluate"] is None:
        training = Training(
            **{name: _frozen(values[name]) for name in TRAINING}
        )
        check_parts(training)
        values["network"] = None
    if values["cache_dir"] == "":
        raise ValueError(
            "cache_dir must be a folder, or none, which is nowhere. "
            "Received: cache_dir="
        )
    own = {f.name for f in dataclasses.fields(Settings)} - {*_NO_CONFIG}
    made = Settings(
        **{name: _frozen(values[name]) for name in own - {"shard"}},
        shard=None if shard is None else (shard[0], shard[1]),
        training=training,
        workdir=workdir,
        overwrite=bool(values.get("overwrite")),
        robustbench=robustbench_file(values),
    )
    check_evaluation(made, training)
    return made


def _frozen(value: Any) -> Any:
    """Returns a list as a tuple, and everything else as it is."""
    return tuple(value) if isinstance(value, list) else value
