"""The settings of a run: presets, config.json, names, and their text."""

import dataclasses
import json

import pytest
from helpers import assert_refused
from helpers import settings_of

from tfsam.runs import attack_entries
from tfsam.runs import flag_types
from tfsam.runs import flags
from tfsam.runs import log_lines
from tfsam.runs import methods
from tfsam.runs import settings


def test_every_setting_is_a_flag():
    fields = {field.name for field in dataclasses.fields(settings.Settings)}
    fields = (fields - {"training"}) | {*settings.TRAINING}
    commands = {"merge", "inspect", *flags.QUESTIONS}
    named = {settings.FIELDS.get(name, name) for name in flags.FLAGS}
    assert fields == named - commands


def test_settings_cannot_be_changed():
    made = settings_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.training.epochs = 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--method=trades", "--epsilon=0.1"],
        ["--perturb_weights=looksam:alpha=0.3:every=2"],
        ["--evaluate=model.keras", "--shard=1/4", "--attacks=pgd:steps=7"],
    ],
    ids=" ".join,
)
def test_config_json_makes_the_same_settings(arguments, tmp_path):
    made = settings_of(*arguments, f"--workdir={tmp_path}")
    config = json.loads(json.dumps(made.config()))
    assert settings.from_config(config, tmp_path) == made


def test_config_json_of_an_older_tfsam_is_filled_in(tmp_path):
    made = settings_of(f"--workdir={tmp_path}")
    later = (
        *("precision", "strategy", "shard", *settings.UNBOUND),
        *("l1_epsilons", "transfer_attacks", "draws", "sweep", "diagnose"),
    )
    older = {k: v for k, v in made.config().items() if k not in later}
    assert settings.from_config(older, tmp_path) == made


def test_values_of_config_json_are_checked(tmp_path):
    config = settings_of().config()
    for key, value in (("epochs", 0), ("rho", -1.0), ("attacks", ["bogus"])):
        with pytest.raises(ValueError, match="Received: "):
            settings.from_config(config | {key: value}, tmp_path)


OTHER_DATA = [
    "--dataset=folder:data1",
    "--dataset=npz:a.npz",
    "--dataset=mnist",
]


@pytest.mark.parametrize("dataset", OTHER_DATA)
@pytest.mark.parametrize("method", ["at", "fgsm_at", "awp", "at_sam"])
def test_epsilons_of_the_digits_are_those_of_the_digits_alone(dataset, method):
    digits = settings_of(f"--method={method}")
    assert digits.training.epsilon == 0.1
    assert digits.linf_epsilons == (0.05, 0.1)
    other = settings_of(f"--method={method}", dataset)
    assert other.training.epsilon == 8 / 255
    assert other.linf_epsilons == (1 / 255, 2 / 255)
    assert other.l2_epsilons == (16 / 255, 32 / 255)
    # The rest of the recipe is the preset's.
    assert other.training.network == digits.training.network
    assert other.training.epochs == digits.training.epochs
    given = settings_of(f"--method={method}", dataset, "--epsilon=0.2")
    assert given.training.epsilon == 0.2


def test_options_after_a_name_are_those_of_flags():
    named = settings_of("--perturb_weights=looksam:alpha=0.3:every=2").training
    flagged = settings_of(
        "--perturb_weights=looksam", "--alpha=0.3", "--every=2"
    ).training
    one, other = (t.build("perturb_weights") for t in (named, flagged))
    assert one.get_config() == other.get_config()
    assert (named.alpha, named.every) == (0.3, 2)
    attack = settings_of("--method=at", "--perturb_inputs=pgd:epsilon=0.2")
    assert attack.training.epsilon == 0.2
    with pytest.raises(ValueError, match="differ"):
        settings_of("--perturb_weights=looksam:every=2", "--every=3")


def test_an_objective_and_an_optimizer_replace_the_method_s():
    made = settings_of(
        "--method=at", "--objective=trades:beta=3", "--optimizer=entropy_sgd"
    ).training
    assert made.build("objective").beta == 3
    assert (made.beta, made.inner_steps) == (3, 20)


@pytest.mark.parametrize(
    "spec, entry",
    [
        ("pgd", ("pgd", {"steps": 3})),
        ("pgd:restarts=2", ("pgd:restarts=2", {"steps": 3})),
        ("pgd:steps=7", ("pgd:steps=7", {})),
        ("autoattack", ("autoattack", {})),
    ],
)
def test_options_of_an_attack(spec, entry):
    assert attack_entries.entries([spec], 3) == [entry]


def test_names_are_found_without_regard_to_case():
    made = settings_of("--method=SAM", "--attacks=AutoAttack")
    assert made.training.method == "sam"
    assert made.attacks == ("autoattack",)


NAMES = {
    (): "digits",
    ("--rho=0.2",): "digits-rho=0.2",
    ("--method=at", "--epsilon=4/255"): "digits-at-epsilon=4_255",
    ("--preset=cifar10", "--method=at"): "cifar10-at",
    ("--preset=cifar10", "--dataset=digits"): "digits-cifar10",
    (
        "--evaluate=runs/digits-rho=0.2/model.keras",
        "--attacks=autoattack",
        "--linf_epsilons=1/255,4/255",
        "--l2_epsilons=",
    ): "eval-digits-rho=0.2-autoattack-linf=1_255,4_255-l2=none",
}


@pytest.mark.parametrize("arguments, name", NAMES.items(), ids=str)
def test_names_of_runs(arguments, name):
    assert settings_of(*arguments).workdir.name == name


@pytest.mark.parametrize(
    "arguments, start",
    [
        (["--dataset=folder:/data/birds/"], "birds-"),
        (["--dataset=npz:data/birds.npz"], "birds.npz-"),
        (["--evaluate=/models/a.keras"], "eval-a-"),
        (
            ["--evaluate=/models/a/saved_model", "--dataset=mnist"],
            "eval-a-mnist-",
        ),
    ],
)
def test_names_of_paths_end_in_a_digest(arguments, start):
    name = settings_of(*arguments).workdir.name
    assert name.startswith(start)
    assert len(name) == len(start) + 8
    assert "digits" not in name


@pytest.mark.parametrize("method", methods.methods())
def test_the_log_begins_with_the_settings_that_hold(method):
    made = settings_of(f"--method={method}", "--seed=7")
    lines = log_lines.opening(made, ["--method=x"], 123)
    assert f"{method} on 123 images of digits" in lines[1]
    assert "seed 7" in lines[1]
    (attack,) = [x for x in lines if x.startswith("training's attack")] or [""]
    epsilon = flag_types.written(made.training.epsilon)
    assert (f"epsilon {epsilon}," in attack) == bool(
        made.training.perturb_inputs
    )
    assert "linf epsilon 0.05, 0.1; l2 epsilon 0.25, 0.5" in lines[-1]


@pytest.mark.parametrize(
    "value, text",
    [
        (8 / 255, "8/255"),
        (0.2, "0.2"),
        (0.0, "0"),
        ([1 / 255, 0.1], "1/255,0.1"),
        ([], "none"),
        (True, "true"),
        ("sam", "sam"),
    ],
)
def test_values_are_written_as_the_command_line_takes_them(value, text):
    assert flag_types.written(value) == text


def test_budgets_are_those_of_all_norms_that_have_an_epsilon():
    made = settings_of(
        "--linf_epsilons=0.1", "--l2_epsilons=", "--l1_epsilons=2,12"
    )
    assert made.budgets == {"linf": (0.1,), "l1": (2.0, 12.0)}
    assert settings_of().l1_epsilons == ()


def test_transfer_attacks_need_a_surrogate(capsys):
    flags_ = ("--transfer_attacks=pgd:steps=3,fgsm", "--attacks=pgd")
    assert_refused(
        capsys, *flags_, parts=["--surrogate", "transfer_attacks=pgd:steps=3"]
    )
    made = settings_of(*flags_, "--surrogate=other.keras")
    assert made.transfer_attacks == ("pgd:steps=3", "fgsm")
    described = log_lines.evaluation(made)
    assert described.startswith("pgd, and pgd:steps=3, fgsm on the surrogate")


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--transfer_attacks=bogus", "bogus"),
        ("--sweep=half", "sweep"),
        ("--draws=0", "draws"),
        ("--draws=1000001", "draws"),
        ("--l1_epsilons=-1", "l1_epsilons"),
        ("--diagnose=maybe", "maybe"),
    ],
)
def test_flags_of_the_evaluation_are_checked(capsys, flag, part):
    assert_refused(capsys, flag, parts=[part])
