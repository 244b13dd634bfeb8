"""The plan of a sweep: minutes by hand from measured runs."""

import json

import pytest
from helpers import settings_of

from experiments import command
from experiments import plan
from experiments import sweep_presets

NETWORK = "preact_resnet8:width=32"
PRESET = sweep_presets.Preset(
    "cifar100",
    {"st": 2, "sam-0.1": 1},
    training=(
        *(f"--network={NETWORK}", "--epochs=3", "--limit_train=20500"),
        *("--validation_images=500", "--validate_every=3"),
    ),
    autoattack=(
        *("--attacks=autoattack,malt", "--limit_test=200"),
        *("--linf_epsilons=1/255", "--l2_epsilons=16/255"),
    ),
    attacked_seeds=1,
)


def attack(name, gradients, forward, attacked=100, seconds=2.0):
    return {
        "attack": name,
        "gradient_passes": gradients,
        "forward_passes": forward,
        "attacked": attacked,
        "seconds": seconds,
    }


def written(folder, arguments, seconds, attacks, natural=0.4):
    """Writes a run as `tfsam.run` does; without attacks it is not finished."""
    folder.mkdir(parents=True)
    config = settings_of(*arguments, f"--workdir={folder}").config()
    (folder / "config.json").write_text(json.dumps(config))
    lines = [f"{n},{s},0.9{n}\n" for n, s in enumerate(seconds, 1)]
    head = "epoch,seconds,accuracy\n"
    (folder / "history.csv").write_text(head + "".join(lines))
    if attacks:
        train = {"images": 20000, "natural": {"accuracy": 0.97}}
        results = {
            "config": config,
            "natural": {"accuracy": natural},
            "robust": attacks,
            "train": train,
        }
        (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def folder(tmp_path):
    """A finished run of standard training, and one of SAM that still trains."""
    pgd = attack("cleverhans_pgd", 10, 0)
    common = ("--preset=cifar100", "--limit_train=20000")
    own = (*common, f"--network={NETWORK}")
    written(tmp_path / "a", (*own, "--method=st"), (30, 20), [pgd])
    # Two passes in 50 s would be 25 s a pass.
    written(tmp_path / "b", (*own, "--method=sam"), (50,), [])
    slow = (*common, "--network=preact_resnet8", "--method=st")
    pgd = attack("cleverhans_pgd", 10, 0, seconds=0.5)
    written(tmp_path / "c", slow, (7, 6), [pgd])
    strong = {"robust": [attack("autoattack", 1000, 2000)], "train": None}
    (tmp_path / "c/autoattack").mkdir()
    (tmp_path / "c/autoattack/results.json").write_text(json.dumps(strong))
    return tmp_path


def test_runs_are_found_while_they_train(folder):
    one, two, _ = plan.measured(folder)
    assert (one.network, one.images, one.epochs) == (NETWORK, 20000, 2)
    assert (one.seconds, one.fitted, one.natural) == (20, 0.97, 0.4)
    assert (two.passes, two.seconds, two.trained) == (2, 50, 0.91)
    assert two.fitted is two.natural is None
    table = plan.runs_table([one, two])
    assert "| 2 | 92.0 | 97.0 | 1.00 | 0.33 | 2.00 |" in table
    assert "| 1 | 91.0 |  | 2.00 | 0.83 |  |" in table


def test_rates_are_those_of_the_network(folder):
    found = plan.rates(plan.measured(folder), NETWORK)
    assert found.image == pytest.approx(20 / 20000)
    assert found.gradient == pytest.approx(2 / (100 * 10))
    assert found.natural == 0.4
    # A pass forward is half a gradient; the other network is counted, too.
    assert found.gradients == {"cleverhans_pgd": 10, "autoattack": 2000}


def test_minutes_are_products(folder):
    found = plan.rates(plan.measured(folder), NETWORK)
    st, sam = plan.plan(PRESET, PRESET.rows, found)
    held_out = 500 * 10 * 0.002
    assert st.training == pytest.approx(2 * (20000 * 3 * 0.001 + held_out) / 60)
    assert sam.training == pytest.approx((2 * 60 + held_out) / 60)
    pgd = 10_000 * 0.4 * 4 * 10 * 0.002 / 60
    assert st.attacks["cleverhans_pgd"] == pytest.approx(2 * pgd)
    # A single seed is attacked, in two norms.
    strong = 200 * 0.4 * 2 * 2000 * 0.002 / 60
    assert st.attacks["autoattack"] == pytest.approx(strong)
    assert sam.attacks == {
        "cleverhans_pgd": pytest.approx(pgd),
        "autoattack": pytest.approx(strong),
        "malt": None,
    }
    (longer,) = plan.plan(PRESET, ["sam-0.1"], found, ["--epochs=6"])
    looks = 2 * held_out
    assert longer.training == pytest.approx((4 * 60 + looks) / 60)


def test_the_command_lists_runs_and_rows(folder, monkeypatch, capsys):
    monkeypatch.setitem(sweep_presets.PRESETS, "small100", PRESET)
    measured = f"--measured={folder / 'a'},{folder / 'c'}"
    assert command.run(plan.main, plan.FLAGS, [measured]) == 0
    printed = capsys.readouterr().out
    assert "| `st` | 2 | 1.00 | 2 | 11 | 11 |  | 24 |" in printed
    assert "| `sam-0.1` | 1 | 2.00 | 2 | 5 | 11 |  | 18 |" in printed
    assert "In all 0.7 h" in printed
    assert "Not counted, because not measured: malt." in printed
    assert command.run(plan.main, plan.FLAGS, []) == 2
    assert "--measured=DIR" in capsys.readouterr().err


def test_a_network_that_was_not_measured_is_refused(folder, capsys):
    arguments = [f"--measured={folder}", "--network=preact_resnet18"]
    assert command.run(plan.main, plan.FLAGS, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--network=preact_resnet18" in line
    assert line.endswith(f"Received: runs of preact_resnet8, {NETWORK}")
