"""Recipes: optimizers, schedules, augmentations and mixed images by flags."""

import numpy as np
import pytest
from helpers import SMALL
from helpers import assert_refused
from helpers import assert_same_run
from helpers import main
from helpers import read_json
from helpers import settings_of

from tfsam import data
from tfsam.runs import held_out
from tfsam.runs import recipes
from tfsam.runs import trained_model
from tfsam.runs import workdirs
from tfsam.training import progress


def optimizer(*arguments, steps=10):
    return trained_model.optimizer(settings_of(*arguments), steps)


def test_the_paper_s_recipe_is_the_default():
    made = optimizer("--epochs=20").get_config()
    assert made["momentum"] == 0.9 and made["weight_decay"] == 5e-4
    assert not made["nesterov"] and made["global_clipnorm"] is None
    assert "decay_exclude" not in made
    schedule = optimizer("--epochs=20")._learning_rate
    rates = [float(schedule(10 * epoch)) for epoch in (0, 15, 18)]
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.001], rtol=1e-6)


def test_another_optimizer_has_its_own_rate():
    """The rate of 0.1 that suits SGD would let AdamW diverge."""
    recipe = settings_of("--optimizer=AdamW:beta_2=0.95").recipe
    assert recipe.optimizer == "adamw:beta_2=0.95"
    assert recipe.learning_rate == 0.001 and recipe.weight_decay == 0.004
    assert recipe.momentum is None
    made = optimizer("--optimizer=adamw", "--weight_decay=0.05")
    assert type(made).__name__ == "AdamW" and made.weight_decay == 0.05
    given = settings_of("--optimizer=adamw", "--learning_rate=0.02").recipe
    assert given.learning_rate == 0.02
    kept = settings_of("--method=entropy_sgd").recipe
    assert kept.learning_rate == 0.1 and kept.momentum == 0.9


def test_flags_reach_the_optimizer():
    made = optimizer(
        "--nesterov", "--clip_norm=2", "--decay_exclude=one_dimensional"
    )
    assert made.nesterov and made.global_clipnorm == 2
    assert made.decay_exclude == "one_dimensional"


def test_options_of_the_optimizer_are_those_of_the_run():
    recipe = settings_of("--optimizer=sgd:momentum=0.5").recipe
    assert (recipe.momentum, recipe.weight_decay) == (0.5, 5e-4)
    assert recipe.learning_rate == 0.1  # Not the default of the class.
    made = optimizer("--optimizer=rmsprop", "--momentum=0.5")
    assert made.momentum == 0.5


def test_a_high_rate_for_an_average_has_a_warm_up_too():
    arguments = ("--method=swa", "--epochs=8", "--average_start=4")
    rate = optimizer(*arguments, "--warmup_epochs=1")._learning_rate
    rates = [float(rate(step)) for step in (0, 10, 39, 40, 79)]
    np.testing.assert_allclose(rates, [0.1 / 11, 0.1, 0.1, 0.05, 0.05])


def test_schedules_by_flags():
    arguments = ("--epochs=10", "--schedule=cosine:final=0.02")
    schedule = optimizer(*arguments, "--warmup_epochs=2")._learning_rate
    rates = [float(schedule(step)) for step in (0, 20, 60, 100)]
    np.testing.assert_allclose(rates, [0.1 / 21, 0.1, 0.06, 0.02], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--schedule=cosin"], ["did you mean cosine"]),
        (["--augment=mixap"], ["did you mean mixup"]),
        (["--augment=mixup:beta=1"], ["beta"]),
        (["--mix_fraction=0.5"], ["--mix_fraction"]),
        (["--warmup_epochs=30", "--schedule=cosine"], ["warmup_epochs=30"]),
        (["--optimizer=lion", "--nesterov"], ["--nesterov"]),
        (["--optimizer=adamw", "--momentum=0.5"], ["--momentum=0.5"]),
        (
            ["--optimizer=sgd:momentum=0.5", "--momentum=0.9"],
            ["optimizer=sgd:momentum=0.5", "momentum=0.9", "differ"],
        ),
        (["--method=mart", "--label_smoothing=0.1"], ["label_smoothing=0.1"]),
        (["--decay_exclude=("], ["decay_exclude=("]),
        (["--method=mart", "--augment=mixup"], ["MART(", "augment=mixup"]),
        (
            ["--method=sam_on", "--network=preact_resnet8:normalization=none"],
            ["SAM(", "needs a network with scales or offsets"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_recipes_are_refused(capsys, tmp_path, arguments, parts):
    assert_refused(capsys, *arguments, f"--workdir={tmp_path}/a", parts=parts)


def test_augment_alone_is_shift_flip():
    plain, named = (
        recipes.augmentations(settings_of(*given))
        for given in (["--augment"], ["--augment=shift_flip,mixup:alpha=0.8"])
    )
    assert plain is True
    assert [type(part).__name__ for part in named] == ["ShiftFlip", "ByLayer"]
    assert named[1].layer.alpha == 0.8
    smoothed = recipes.augmentations(
        settings_of("--augment", "--label_smoothing=0.1")
    )
    assert [type(p).__name__ for p in smoothed] == ["ShiftFlip", "SmoothLabels"]


def test_an_objective_smooths_labels_itself():
    made = settings_of("--method=trades", "--label_smoothing=0.1")
    assert recipes.objective(made, 1).label_smoothing == 0.1
    assert recipes.augmentations(made) == []


def test_preset_of_robust_networks():
    recipe = settings_of("--preset=cifar10-robust").recipe
    made = optimizer("--preset=cifar10-robust", steps=98)
    attack = recipe.build("perturb_inputs")
    assert recipe.build("objective").beta == 5
    assert (attack.steps, attack.step_size) == (10, 2 / 255)
    run, digits = settings_of("--preset=cifar10-robust"), data.load("digits")
    looks = held_out.validation(run, digits, None).attack
    assert (looks.steps, looks.step_size) == (40, None)  # 2 / 255, too.
    assert recipe.average == "ema" and recipe.average_momentum == 0.995
    assert made.nesterov and made.decay_exclude == "one_dimensional"
    top = float(made._learning_rate(round(0.025 * 400 * 98) - 1))
    assert top == pytest.approx(0.2)
    # The recipe's optimizer and average go with every method.
    other = settings_of("--preset=cifar10-robust", "--method=sam").recipe
    assert (other.average, other.objective) == ("ema", None)
    assert other.perturb_inputs is None


def test_preset_of_fine_tuning():
    made = settings_of("--preset=cifar10-finetune")
    recipe = made.recipe
    attack = recipe.build("perturb_inputs")
    assert attack.steps == 2 and attack.epsilon == 4 / 255
    assert not attack.random_start and not attack.early_stop
    assert recipe.optimizer == "adamw" and recipe.weight_decay == 0.05
    assert [part.mixes for part in recipes.augmentations(made)] == [
        *(False, True, True)
    ]
    schedule = optimizer("--preset=cifar10-finetune")._learning_rate
    assert float(schedule(500)) == pytest.approx(5e-6, rel=1e-3)
    standard = settings_of("--preset=cifar10-finetune", "--method=st").recipe
    assert standard.perturb_inputs is None and standard.optimizer == "adamw"


def synthetic(tmp_path, count=30):
    """Writes images of one value, which no real image of a digit has."""
    path = tmp_path / "synthetic.npz"
    np.savez(
        path,
        x=np.full((count, 8, 8, 1), 7, np.uint8)
        + np.arange(count, dtype=np.uint8)[:, None, None, None],
        y=np.arange(count) % 10,
    )
    return path


def test_images_are_mixed_in(tmp_path):
    made = settings_of(f"--mix=npz:{synthetic(tmp_path)}")
    assert made.recipe.mix_fraction == 0.7
    lines = []
    images = data.load("digits", limit_train=100, limit_test=20)
    x, y = recipes.mix(made, images, log=lines.append)
    assert len(x) == len(y) == 30  # All of them, though the file is not split.
    assert "0.7 of each batch is drawn from 30 images" in lines[0]


def test_images_of_other_classes_are_not_mixed_in(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        x=np.random.default_rng(0).random((9, 8, 8, 1)),
        y=[0, 1, 2] * 3,
    )
    images = data.load("digits", limit_train=100, limit_test=20)
    with pytest.raises(ValueError, match=r"Received: mix=npz:.* 3 classes"):
        recipes.mix(settings_of(f"--mix=npz:{tmp_path / 'a.npz'}"), images)


def test_the_training_part_alone_is_mixed_in(tmp_path):
    x, y = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 10
    test = {"x_test": x[:10], "y_test": y[:10]}
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, **test)
    images = data.load("digits", limit_train=100, limit_test=20)
    made = settings_of(f"--mix=npz:{tmp_path / 'a.npz'}")
    assert len(recipes.mix(made, images)[0]) == 20


def test_no_image_to_be_measured_is_mixed_in(tmp_path):
    """A file may hold the images of the run."""
    images = data.load("digits", limit_train=100, limit_test=20)
    made = settings_of(
        *(f"--mix=npz:{tmp_path / 'a.npz'}", "--select=robust"),
        "--validation_images=10",
    )
    train, apart = held_out.split(made, images)
    rest = train.x_train[:30], train.y_train[:30]
    x, y = ([rest[n], images[3 + n], apart[1 + n]] for n in (0, 1))
    np.savez(tmp_path / "a.npz", x=np.concatenate(x), y=np.concatenate(y))
    lines = []
    found = recipes.mix(made, images, log=lines.append)
    np.testing.assert_array_equal(found[0], rest[0])
    np.testing.assert_array_equal(found[1], rest[1])
    assert "30 of 60 images of" in lines[0] and "left out" in lines[0]
    np.savez(tmp_path / "a.npz", x=images.x_test, y=images.y_test)
    with pytest.raises(ValueError, match="all images of --mix are test"):
        recipes.mix(made, images)


def test_other_images_mixed_in_are_another_run(tmp_path):
    source = f"npz:{synthetic(tmp_path)}"
    made = settings_of(f"--mix={source}", f"--workdir={tmp_path / 'run'}")
    workdirs.claim(made)
    assert workdirs.finished(made) is None
    synthetic(tmp_path, 40)
    with pytest.raises(ValueError, match="mixed in changed since: 1 file"):
        workdirs.finished(made)


def test_images_of_other_channels_are_not_mixed_in(tmp_path, capsys):
    """The error comes before a file is written."""
    np.savez(
        tmp_path / "a.npz",
        x=np.zeros((10, 8, 8, 3), np.uint8),
        y=np.arange(10),
    )
    assert_refused(
        capsys,
        *SMALL,
        f"--mix=npz:{tmp_path / 'a.npz'}",
        f"--workdir={tmp_path / 'run'}",
        parts=["mixed images must be (n, 8, 8, 1)"],
    )
    assert not (tmp_path / "run").exists()


def test_a_whole_recipe_is_resumed_to_the_bit(
    tmp_path, monkeypatch, tiny_network
):
    arguments = (
        *(*SMALL, "--method=at", "--epochs=2", "--epsilon=0.1", "--steps=1"),
        *("--optimizer=adamw", "--decay_exclude=one_dimensional"),
        *("--schedule=one_cycle", "--label_smoothing=0.1", "--clip_norm=5"),
        "--augment=shift_flip,mixup_or_cutmix",
        *(f"--mix=npz:{synthetic(tmp_path)}", "--mix_fraction=0.5"),
    )
    assert main(*arguments, f"--workdir={tmp_path / 'whole'}")[0] == 0
    with monkeypatch.context() as patch:

        def interrupt(self, epoch, logs=None):
            raise KeyboardInterrupt

        patch.setattr(progress.Progress, "on_epoch_end", interrupt)
        assert main(*arguments, f"--workdir={tmp_path / 'parts'}")[0] == 130
    assert main(*arguments, f"--workdir={tmp_path / 'parts'}")[0] == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    results = read_json(tmp_path / "whole" / "results.json")
    assert results["config"]["label_smoothing"] == 0.1
