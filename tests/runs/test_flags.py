"""Flags and presets: the configuration of a run."""

import functools
import pathlib
import re

import numpy as np
import pytest
from helpers import main
from helpers import settings_of

import tfsam
from tfsam import attacks
from tfsam import data
from tfsam import registries
from tfsam.runs import flags
from tfsam.runs import method_table
from tfsam.runs import methods
from tfsam.runs import parts
from tfsam.runs import trained_model


def test_fractions_are_accepted_as_written():
    config = settings_of(
        *("--method=at", "--epsilon=8/255", "--step_size=2/255"),
        *("--linf_epsilons=1/255,2/255,0.1", "--weight_decay=5e-4"),
    ).config()
    assert config["epsilon"] == 8 / 255
    assert config["step_size"] == 2 / 255
    assert config["linf_epsilons"] == [1 / 255, 2 / 255, 0.1]
    assert config["weight_decay"] == 0.0005


OVERRIDES = {
    "method": ("st", "st"),
    "rho": ("0.2", 0.2),
    "epsilon": ("2/255", 2 / 255),
    "norm": ("l2", "l2"),
    "steps": ("7", 7),
    "step_size": ("0.01", 0.01),
    "dataset": ("digits", "digits"),
    "network": ("wide_resnet", "wide_resnet"),
    "weights": ("model.keras", "model.keras"),
    "freeze": ("^stage1", "^stage1"),
    "epochs": ("3", 3),
    "batch_size": ("64", 64),
    "learning_rate": ("0.3", 0.3),
    "momentum": ("0.5", 0.5),
    "weight_decay": ("0", 0.0),
    "augment": ("false", False),
    "seed": ("5", 5),
    "limit_train": ("1000", 1000),
    "limit_test": ("100", 100),
    "image_size": ("64 x 48", "64x48"),
    "resize": ("pad", "pad"),
    "test_fraction": ("0.1", 0.1),
    "bad_images": ("refuse", "refuse"),
    "class_order": ("number", "number"),
    "attacks": ("fgsm,pgd", ["fgsm", "pgd"]),
    "linf_epsilons": ("4/255", [4 / 255]),
    "l2_epsilons": ("", []),
    "l1_epsilons": ("2,12", [2.0, 12.0]),
    "transfer_attacks": ("fgsm,pgd:steps=3", ["fgsm", "pgd:steps=3"]),
    "sweep": ("bisect", "bisect"),
    "diagnose": ("false", False),
    "target": ("3", 3),
    "attack_steps": ("20", 20),
    "attack_batch_size": ("64", 64),
    "save_adversarial": ("true", True),
    "draws": ("7", 7),
    "warm_start": ("true", True),
    "surrogate": ("other.keras", "other.keras"),
    "trust": ("double,triple", ["double", "triple"]),
    "corruptions": ("blur,fog", ["blur", "fog"]),
    "severities": ("2, 4", [2, 4]),
    "perturb_inputs": ("pgd_dlr", "pgd_dlr"),
    "perturb_weights": ("sam", "sam"),
    "average": ("ema", "ema"),
    "objective": ("mart", "mart"),
    "optimizer": ("entropy_sgd", "entropy_sgd"),
    "eta": ("0.1", 0.1),
    "adaptive": ("all", "all"),
    "ascent_steps": ("2", 2),
    "alpha": ("0.1", 0.1),
    "rho_min": ("0.01", 0.01),
    "every": ("2", 2),
    "weight_fraction": ("0.9", 0.9),
    "sample_fraction": ("0.9", 0.9),
    "sparsity": ("0.9", 0.9),
    "mask": ("dynamic", "dynamic"),
    "refresh_every": ("3", 3),
    "gamma": ("0.1", 0.1),
    "sub_batches": ("2", 2),
    "beta": ("1", 1.0),
    "inner_steps": ("3", 3),
    "nesterov": ("true", True),
    "decay_exclude": ("one_dimensional", "one_dimensional"),
    "clip_norm": ("2", 2.0),
    "schedule": ("cosine:final=0.01", "cosine:final=0.01"),
    "warmup_epochs": ("2", 2.0),
    "label_smoothing": ("0.1", 0.1),
    "mix": ("npz:a.npz", "npz:a.npz"),
    "mix_fraction": ("0.5", 0.5),
    "average_momentum": ("0.9", 0.9),
    "average_start": ("3", 3),
    "epsilon_warmup": ("3", 3),
    "attack_loss": ("dlr", "dlr"),
    "attack_mode": ("training", "training"),
    "collapse_drop": ("0.5", 0.5),
    "select": ("robust", "robust"),
    "validate_every": ("3", 3),
    "validation_images": ("50", 50),
    "validation_steps": ("40", 40),
    "checkpoint_steps": ("7", 7),
    "cache_dir": ("none", "none"),
    "evaluate": ("model.keras", "model.keras"),
    "devices": ("cpu:2", "cpu:2"),
    "strategy": ("mirrored", "mirrored"),
    "jit_compile": ("false", "false"),
    "sharpness": ("global", "global"),
    "precision": ("mixed_float16", "mixed_float16"),
}


# Flags of other methods than at_sam, which has most of them.
OF = {
    "perturb_weights": "at",
    "eta": "asam",
    "adaptive": "asam",
    "alpha": "gsam",
    "rho_min": "gsam",
    "every": "looksam",
    "weight_fraction": "esam",
    "sample_fraction": "esam",
    "sparsity": "ssam",
    "mask": "ssam",
    "refresh_every": "ssam",
    "gamma": "awp",
    "beta": "trades",
    "inner_steps": "entropy_sgd",
    "average_momentum": "ema",
    "average_start": "swa",
    "collapse_drop": "fgsm_at",
}


# These change the set of other settings.
PARTS = (
    *("method", "evaluate", "perturb_inputs", "perturb_weights", "average"),
    *("objective", "optimizer", "mix"),
)


@functools.cache
def config_of(*arguments):
    return settings_of(*arguments).config()


@pytest.mark.parametrize("flag", OVERRIDES)
def test_any_flag_overrides_its_preset(flag):
    text, value = OVERRIDES[flag]
    arguments = ["--preset=cifar10"]
    if flag not in ("method", "evaluate"):
        arguments.append(f"--method={OF.get(flag, 'at_sam')}")
    if flag == "transfer_attacks":
        arguments.append("--surrogate=other.keras")
    if flag in ("validation_images", "validation_steps"):
        arguments.append("--select=clean")
    if flag == "mix_fraction":
        arguments.append("--mix=npz:a.npz")
    if flag == "severities":
        arguments.append("--corruptions=all")
    before = config_of(*arguments)
    after = settings_of(*arguments, f"--{flag}={text}").config()
    assert after[flag] == value
    assert before[flag] != value
    if flag not in PARTS:
        assert after == before | {flag: value}


def test_overrides_are_all_flags():
    assert set(OVERRIDES) == set(flags.FLAGS) - {
        *("help", "preset", "workdir", "shard", "merge"),
        *("version", "methods", "overwrite", "robustbench"),
        *("inspect", "pixels", "output", "import"),
    }


def test_flags_of_a_model_that_is_evaluated():
    made = settings_of(
        *("--evaluate=model.h5", "--pixels=-1..1", "--output=classes"),
        *("--import=mine,theirs", "--trust=double"),
    )
    assert (made.pixels, made.output) == ("-1..1", "classes")
    assert (made.imports, made.trust) == (("mine", "theirs"), ("double",))
    for flag in ("--pixels=0..255", "--output=classes"):
        with pytest.raises(ValueError, match="needs --evaluate"):
            settings_of(flag)
    with pytest.raises(ValueError, match=r"pixels must be 0..1, 0..255"):
        settings_of("--evaluate=model.h5", "--pixels=0..2")


def test_digits_is_the_default_preset():
    config = settings_of().config()
    assert config == settings_of("--preset=digits").config()
    assert config["dataset"] == "digits"
    assert config["method"] == "sam"
    assert config["attacks"] == ["cleverhans_pgd"]


@pytest.mark.parametrize(
    "preset, classes, weights",
    [("cifar10", 10, 11_172_170), ("cifar100", 100, 11_218_340)],
)
def test_presets_are_the_papers_recipe(preset, classes, weights):
    settings = settings_of(f"--preset={preset}")
    config = settings.config()
    assert config["dataset"] == preset
    assert config["network"] == "preact_resnet18"
    assert (config["batch_size"], config["epochs"]) == (128, 100)
    assert config["augment"] is True
    assert config["attacks"] == ["cleverhans_pgd"]
    assert config["attack_steps"] is None
    assert attacks.get("cleverhans_pgd", epsilon=0.1).steps == 10
    assert config["linf_epsilons"] == [1 / 255, 2 / 255]
    assert config["l2_epsilons"] == [16 / 255, 32 / 255]
    assert config["limit_train"] is config["limit_test"] is None
    images = data.Images(
        preset,
        x_train=np.broadcast_to(np.uint8(0), (50_000, 32, 32, 3)),
        y_train=np.zeros(50_000, np.int64),
        x_test=np.zeros((1, 32, 32, 3), np.uint8),
        y_test=np.zeros(1, np.int64),
        class_names=tuple(map(str, range(classes))),
    )
    model = trained_model.make_model(settings, images, None)
    assert sum(v.numpy().size for v in model.trainable_variables) == weights
    optimizer = model.optimizer
    assert optimizer.momentum == 0.9
    assert optimizer.get_config()["weight_decay"] == 5e-4
    steps = 391  # 50 000 / 128, the last batch smaller.
    for step, rate in (
        (0, 0.1),
        (75 * steps - 1, 0.1),
        (75 * steps, 0.01),
        (90 * steps - 1, 0.01),
        (90 * steps, 0.001),
        (100 * steps - 1, 0.001),
    ):
        optimizer.iterations.assign(step)
        assert float(optimizer.learning_rate) == pytest.approx(rate)


def test_adversarial_training_of_the_presets():
    config = settings_of("--preset=cifar100", "--method=at").config()
    perturb_inputs = parts.build("perturb_inputs", config)
    assert parts.build("perturb_weights", config) is None
    assert perturb_inputs.epsilon == 8 / 255
    assert perturb_inputs.norm == "linf"
    assert perturb_inputs.steps == 5
    assert perturb_inputs.random_start is True


@pytest.mark.parametrize("method", methods.methods())
def test_a_step_s_passes_are_the_table_s(method):
    config = settings_of(f"--method={method}").config()
    cost = methods.methods()[method].cost.replace("2 steps", "2 * steps")
    cost = cost.replace("3 sample_fraction", "3 * sample_fraction")
    known = dict(config) | {"replays": tfsam.FreeAT(0.1).replays}
    assert parts.passes(config) == pytest.approx(eval(cost, known))


def test_the_table_says_what_the_weight_perturbations_say_of_themselves():
    for name, row in methods.methods().items():
        if row.perturb_weights is not None and row.perturb_inputs is None:
            part = registries.WEIGHTS.load(row.perturb_weights.split(":")[0])
            own = registries.WEIGHTS.fact(part, "source")
            assert own in ("", row.source), name
    table = method_table.table()
    for line in (
        "| `friendly_sam:sigma=1:decay=0.6` | `--rho=0.2` | 2 | Li et al., 20",
        "| `vasso:theta=0.9` | `--rho=0.2` | 2 | Li and Giannakis, 2023 |",
        "at the perturbed weights | - | `msam` | `--rho=0.3` | 1 | Becker et",
        "| `wsam` | `--rho=0.05` `--gamma=0.88` | 2 | Yue et al., 2023 |",
        "| `sam:layers=normalization` | `--rho=0.5` `--ascent_steps=1` | 2 |",
    ):
        assert line in table


def test_parts_add_their_passes():
    config = settings_of(
        "--method=trades", "--perturb_weights=awp", "--steps=4"
    ).config()
    # Four steps and their target; clean and perturbed images, by the weights
    # and by the perturbed weights.
    assert parts.passes(config) == pytest.approx(8 / 3 + 1 / 3 + 4)
    config = settings_of("--method=sam", "--ascent_steps=3").config()
    assert parts.passes(config) == 4
    config = settings_of("--method=msam", "--perturb_inputs=pgd").config()
    # Ten steps, and the only pass of the weights.
    assert parts.passes(config) == pytest.approx(23 / 3)


def built(*arguments):
    config = settings_of(*arguments).config()
    return [
        parts.build(part, config)
        for part in ("perturb_inputs", "perturb_weights", "objective")
    ]


def test_trades_has_its_paper_s_attack_where_epsilon_is_its_paper_s():
    attack, _, objective = built("--preset=cifar10", "--method=trades")
    assert (attack.epsilon, attack.step_size) == (0.031, 0.007)
    assert (attack.loss, attack.random_start) == ("kl", "normal")
    assert attack.steps == 10
    assert objective.beta == 6
    attack, *_ = built("--preset=cifar10", "--method=trades", "--epsilon=0.1")
    assert (attack.epsilon, attack.step_size) == (0.1, None)


def test_parts_compose():
    attack, moved, objective = built(
        *("--method=trades", "--perturb_weights=awp", "--gamma=0.005"),
    )
    assert attack.loss == "kl"
    assert moved.gamma == 0.005
    assert objective.beta == 6
    attack, moved, _ = built(
        *("--method=at", "--perturb_inputs=fgsm_rs"),
        *("--perturb_weights=looksam", "--every=3"),
    )
    assert type(attack).__name__ == "FGSM"
    assert attack.random_start is True
    assert (type(moved).__name__, moved.every) == ("LookSAM", 3)
    _, moved, _ = built(
        "--perturb_weights=asam:layers=normalization", "--rho=9"
    )
    assert (moved.layers, moved.rho) == ("normalization", 9)
    attack, moved, _ = built("--method=at_sam", "--perturb_inputs=none")
    assert attack is None
    assert type(moved).__name__ == "SAM"


def test_default_workdirs_differ():
    folder = "x" * 150
    variants = [
        [],
        ["--method=st"],
        ["--rho=0.2"],
        ["--seed=1"],
        ["--preset=cifar10"],
        ["--linf_epsilons=1/255"],
        ["--l2_epsilons=1/255"],
        ["--l1_epsilons=1/255"],
        ["--evaluate=a/model.keras"],
        ["--evaluate=b/model.keras"],
        [f"--dataset=folder:{folder}", f"--evaluate={folder}", "--seed=1"],
        [f"--dataset=folder:{folder}", f"--evaluate={folder}", "--seed=2"],
    ]
    path = settings_of(*variants[-1]).workdir
    free = ["--cache_dir=elsewhere", "--checkpoint_steps=7"]
    bound_to = ["--attacks=autoattack", f"--robustbench={folder}"]
    assert settings_of(*bound_to).workdir == settings_of(bound_to[0]).workdir
    bound, other = (settings_of(*variants[1], *more) for more in ((), free))
    assert other.config() == bound.config() | {
        "cache_dir": "elsewhere",
        "checkpoint_steps": 7,
    }
    assert other.workdir == bound.workdir
    assert settings_of(*variants[-1], free[0]).workdir == path
    found = [settings_of(*arguments).workdir for arguments in variants]
    assert len(set(found)) == len(variants)
    for path in found:
        assert path.parent == pathlib.Path("runs")
        assert len(path.name) < 250
    assert found[2].name == "digits-rho=0.2"
    assert settings_of("--rho=0.2").workdir == found[2]


def test_help(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = main("--help")
    assert code == 0
    for name in flags.FLAGS:
        assert re.search(rf"^  --(\[no\])?{name}\s", output, re.M), name
    named = (*methods.methods(), *registries.NETWORKS.names(), *attacks.names())
    for name in named:
        assert name in output
    assert not list(tmp_path.iterdir())
