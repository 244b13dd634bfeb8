"""Parts that another package adds: a module and a line of metadata each."""

import importlib.metadata
import json

import keras
import numpy as np
import pytest
from helpers import settings_of

import tfsam
from experiments import sweep_rows
from tfsam import registries
from tfsam import run
from tfsam.runs import command_line
from tfsam.runs import help
from tfsam.runs import method_table
from tfsam.runs import methods

SHORT = (
    *("--limit_train=96", "--epochs=1", "--batch_size=32", "--limit_test=20"),
    *("--attack_steps=1", "--linf_epsilons=0.1", "--l2_epsilons="),
)


@pytest.fixture(autouse=True)
def installed(other_package, tiny_network):
    """Installs the package in `tests/plugin`."""


def test_they_have_their_own_options():
    coin = tfsam.weights.get("Coin:rho=0.3:heads=1")
    assert (coin.rho, coin.heads) == (0.3, 1.0)
    assert registries.OBJECTIVES.make("blend:clean=1/4").clean == 0.25
    assert tfsam.attacks.get("shift:share=0.5", epsilon=0.1).share == 0.5
    with pytest.raises(ValueError, match=r"did you mean heads\?.*head=1"):
        tfsam.weights.get("coin:head=1")


def test_their_help_is_their_docstring():
    lines = registries.describe("coin").splitlines()
    assert lines[0] == (
        "coin: weight perturbation of the package tfsam-shift-fixture"
    )
    assert lines[1:3] == [
        "  a step of all weights, up or down as a coin falls",
        "  a casino, 2026",
    ]
    assert lines[-1] == "  heads=0.5: the probability of moving up."


def test_the_command_line_knows_their_options(capsys):
    """A module and two lines of metadata are all that there is of it."""
    assert run.main(["--help=drift"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "drift: method\n  a pass downstream, and a small step back "
        "(a river, 2026)\n"
    )
    assert "rho=0.05: how far the weights move" in shown
    assert "back=0.25: the part of the way" in shown
    assert run.main(["--help"]) == 0
    assert "\n  drift " in capsys.readouterr().out
    made = settings_of("--method=drift", "--perturb_weights=drift:back=1")
    moved = made.training.build("perturb_weights")
    assert (moved.rho, moved.back) == (0.05, 1.0)
    assert made.training.passes() == 1


def test_the_verbs_before_and_after_the_step_are_optional():
    """Two steps, by hand, of the logits w and a loss of mean (w - y)^2 / 2."""
    drift = tfsam.weights.get("drift", rho=0.5, back=0.5)
    network = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
    )
    network.set_weights([np.array([[2.0]])])
    model = tfsam.RobustModel(network, perturb_weights=drift)
    model.compile(tfsam.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
    w, v = 2.0, 0.0
    for _ in range(2):
        model.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))
        gradient = 2 * (w - 0.5 * v)
        v = 0.9 * v + gradient
        w = w - 0.1 * v + 0.25 * gradient
        assert float(network.get_weights()[0][0, 0]) == pytest.approx(w)
    coin = tfsam.RobustModel(network, perturb_weights=tfsam.weights.get("coin"))
    coin.compile("adam", "mse", run_eagerly=True)
    coin.train_on_batch(np.ones((1, 1)), np.zeros((1, 1)))


def test_they_are_rows_of_the_table():
    table = method_table.table()
    for row in (
        "| `coin` | a step of all weights, up or down as a coin falls | - "
        "| `coin:heads=0.5` | `--rho=0.05` | 2 | a casino, 2026 |",
        "| `drift` | a pass downstream, and a small step back | - "
        "| `drift:back=0.25` | `--rho=0.05` | 1 | a river, 2026 |",
        "| `blend` | A blend of the losses of clean and perturbed inputs "
        "| `pgd` | - | `--epsilon=8/255` `--norm=linf` `--steps=5` "
        "`--step_size` `--attack_loss=cross_entropy` | 5.33 "
        "| a kitchen, 2026 |",
        "| `shift` | Makes an image darker or brighter, whichever has the "
        "higher loss | `shift` | - | `--epsilon=8/255` `--norm=linf` | 1.67 "
        "|  |",
    ):
        assert row in table
    help_lines = {name: row.help for name, row in methods.methods().items()}
    assert help_lines["coin"] == (
        "weight perturbation of the package tfsam-shift-fixture"
    )


def test_an_objective_names_the_attack_of_its_method(monkeypatch):
    blend = registries.OBJECTIVES.load("blend")
    monkeypatch.setattr(blend, "attack", "pgd_kl:steps=3", raising=False)
    recipe = settings_of("--method=blend", "--objective=blend:clean=0").recipe
    assert (recipe.perturb_inputs, recipe.steps) == ("pgd_kl:steps=3", 3)
    assert recipe.build("objective").clean == 0
    assert "| `pgd_kl:steps=3` |" in method_table.table()
    assert " blend," in help.answer(command_line.parse(["--help"]))


def test_a_package_that_is_broken_spoils_no_table(monkeypatch):
    broken = importlib.metadata.EntryPoint(
        "broken", "no_such_package:Part", registries.WEIGHTS.group
    )
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [broken] if group == registries.WEIGHTS.group else [],
    )
    assert (
        "| `broken` | The weight perturbation 'broken'" in method_table.table()
    )
    assert run.main(["--method=broken"]) == 2


def fails(rho=0.1):
    raise RuntimeError("a | b\nc")


def test_no_part_of_another_package_ends_the_table(monkeypatch):
    """An object, a name that tfsam has, or a module that raises."""
    points = [
        importlib.metadata.EntryPoint(name, value, registries.WEIGHTS.group)
        for name, value in (
            ("object", "tfsam.registries:WEIGHTS"),
            ("sam", f"{__name__}:Bare"),
            ("fails", f"{__name__}:fails"),
        )
    ]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: points if group == registries.WEIGHTS.group else [],
    )
    rows = dict(
        line.split("|", 2)[1:] for line in method_table.table().splitlines()
    )
    assert "must be a class or a function" in rows[" `object` "]
    assert r"a \| b c" in rows[" `fails` "]
    for name in (" `sam` ", " `at_sam` "):
        assert "'sam' is registered by tfsam and by" in rows[name]
    assert "--rho=0.5" in rows[" `asam` "]
    monkeypatch.setitem(registries.WEIGHTS.native, "asam", "tfsam.none:ASAM")
    with pytest.raises(ImportError):
        method_table.table()


def trained(workdir, *arguments):
    """Returns the config.json and results.json of a run."""
    assert run.main([*arguments, *SHORT, f"--workdir={workdir}"]) == 0
    return (
        json.loads((workdir / "config.json").read_text()),
        json.loads((workdir / "results.json").read_text()),
    )


def test_a_run_of_them_all(tmp_path, capsys):
    arguments = (
        *("--method=Blend", "--objective=blend:clean=0.25"),
        "--perturb_weights=coin:heads=1:rho=0.01",
        *("--perturb_inputs=shift:share=0.5", "--epsilon=0.1"),
        "--attacks=shift:share=0.5,shift,pgd",
    )
    config, results = trained(tmp_path / "run", *arguments)
    assert config["method"] == "blend"
    assert config["objective"] == "blend:clean=0.25"
    assert config["perturb_weights"] == "coin:heads=1:rho=0.01"
    assert config["rho"] == 0.01
    assert results["train"]["passes"] == pytest.approx(4 + 2 / 3)
    assert [row["attack"] for row in results["robust"]] == [
        *("shift:share=0.5", "shift", "pgd"),
    ]
    assert not [row for row in results["robust"] if "error" in row]
    capsys.readouterr()
    trained(tmp_path / "run", *arguments)
    shown = capsys.readouterr().out
    assert "finished" in shown and "another version" not in shown

    assert results["versions"]["tfsam-shift-fixture"] == "1.0"
    results["versions"]["tfsam-shift-fixture"] = "0.9"
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    trained(tmp_path / "run", *arguments)
    lines = capsys.readouterr().out.splitlines()
    (warning,) = [line for line in lines if "another version" in line]
    assert "tfsam-shift-fixture is 1.0, was 0.9" in warning


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--method=coin", "--rho=0.1"),
        ("--method=shift", "--epsilon=0.1"),
        ("--perturb_weights=coin:heads=0.9", "--perturb_inputs=shift"),
    ],
)
def test_a_run_of_each(tmp_path, arguments):
    trained(tmp_path / "run", *arguments, "--attacks=pgd")


def test_their_options_are_part_of_a_sweep():
    assert sweep_rows.row_flags("coin:rho=0.1:heads=1") == (
        *("--method=coin", "--rho=0.1", "--perturb_weights=coin:heads=1"),
    )
    assert sweep_rows.row_flags("blend:epsilon=4/255:clean=0.1") == (
        *("--method=blend", "--epsilon=4/255", "--objective=blend:clean=0.1"),
    )
    with pytest.raises(ValueError, match=r"no part of the method coin .*tails"):
        sweep_rows.row_flags("coin:tails=1")


@pytest.mark.parametrize(
    ("argument", "part", "hint"),
    [
        ("objective", "blend", r"registries.OBJECTIVES.make\('blend'\) makes"),
        ("objective", 5, "must be a function"),
        ("objective", tfsam.TRADES, r"pass an object: TRADES\(\)"),
        ("perturb_weights", "coin", r"tfsam.weights.get\('coin'\) makes"),
        ("perturb_weights", tfsam.SAM, r"pass an object: SAM\(\)"),
        ("perturb_inputs", "shift", r"tfsam.attacks.get\('shift', epsilon"),
        ("perturb_inputs", tfsam.PGD, r"pass an object: PGD\(\)"),
    ],
)
def test_a_model_takes_objects(argument, part, hint):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=f"{hint}.* Received: {argument}="):
        tfsam.RobustModel(network, **{argument: part})


class Bare:
    """An attack that Keras cannot save."""

    in_graph = True

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0), steps=1):
        if steps < 0:
            raise ValueError(f"steps must be >= 0. Received: steps={steps}")

    def __call__(self, logits_fn, x, y, seed):
        return x


def without_norm(epsilon, bounds=(0.0, 1.0)):
    """A factory that breaks the contract."""
    return Bare(epsilon, bounds=bounds)


def test_a_factory_that_lacks_a_parameter_is_found_before_training(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(registries.ATTACKS.native, "lame", without_norm)
    workdir = tmp_path / "run"
    flags = ("--method=st", "--attacks=pgd,lame", f"--workdir={workdir}")
    assert run.main([*flags, *SHORT]) == 2
    assert (
        "the attack lame must take epsilon, norm and" in capsys.readouterr().err
    )
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--perturb_inputs=bare", "objects that Keras can save"),
        ("--attacks=bare:steps=-1", "Received: steps=-1"),
        ("--attacks=bare:step=1", "did you mean steps?"),
        ("--attacks=bare:epsilon=0.1", "Received: epsilon=0.1"),
        ("--attacks=pgd:steps=many", "steps"),
        ("--perturb_weights=sam:rho=big", "rho"),
        ("--optimizer=sgd:learning_rate=0.1", "Received: optimizer=sgd"),
        ("--network=preact_resnet8:num_classes=3", "Received: num_classes=3"),
        ("--objective=blent", "did you mean blend?"),
        ("--perturb_weights=coin:heads=x", "Received: coin:heads=x"),
        ("--objective=blend", "needs an attack: add --perturb_inputs=pgd"),
        ("--objective=blend:clean=0", ", or use --method=blend. Received: "),
        (
            "--method=coin:heads=1",
            "the part: --perturb_weights=coin:heads=1, beside --method=coin",
        ),
        ("--method=coin:head=1", "no part of the method coin has the option"),
        ("--perturb_weights=coin:rho=0.1 --rho=0.2", "give one of them"),
    ],
)
def test_faults_are_found_before_training(
    tmp_path, monkeypatch, capsys, argument, message
):
    monkeypatch.setitem(registries.ATTACKS.native, "bare", Bare)
    workdir = tmp_path / "run"
    arguments = [*argument.split(), "--epsilon=0.1", f"--workdir={workdir}"]
    if "bare" not in arguments[0] or "attacks" in arguments[0]:
        arguments.remove("--epsilon=0.1")
    assert run.main([*arguments, *SHORT]) == 2
    assert message in capsys.readouterr().err
    assert not workdir.exists()


def test_a_data_source():
    images = tfsam.data.load("Stripes:6", limit_train=10)
    assert images.name == "Stripes:6"
    assert images.x_train.shape == (10, 6, 6, 1)
    assert images.x_test.shape == (10, 6, 6, 1)
    assert images.class_names == ("across", "along")
    assert "side of an image" in registries.describe("stripes")
