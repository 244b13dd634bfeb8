"""Warnings of masked gradients depend on the behaviour of attacks."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers import OwnTape
from helpers import OwnTapeInGraph
from helpers import network

import tfsam
from tfsam.attacks import PGD
from tfsam.attacks import Attack
from tfsam.evaluation import red_flags

SQUARE = ("square", {"queries": 100})


@pytest.fixture(scope="module")
def cnn():
    return network("standard")


@pytest.fixture(scope="module")
def masked(cnn):
    """The same function, with gradients of the opposite sign."""

    @tf.custom_gradient
    def turned(x):
        return tf.identity(x), lambda upstream: -upstream

    return lambda x: cnn(turned(x))


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][1200:1232], digits[1][1200:1232]


def masked_warnings(model, data, attacks, **options):
    result = tfsam.evaluate(
        model, data, attacks, "linf", [0.3], batch_size=32, **options
    )
    assert all("error" not in row for row in result["robust"]), result
    return [
        warning["message"]
        for warning in result["warnings"]
        if warning["warning"] == "gradients_masked"
    ]


def of_another_name(epsilon, norm, bounds):
    return PGD(epsilon, norm, steps=4, bounds=bounds)


class SingleStep(OwnTape):
    steps = 1


class Declared(SingleStep):
    follows_gradient = True


class Passive(OwnTape):
    """An attack that uses logits only, without `gradient_free`."""

    def __call__(self, logits_fn, x, y, seed):
        logits_fn(x)
        return x


class ByTheContract(Attack):
    """An attack of another package that uses tfsam's gradients."""

    in_graph = True

    def perturb(self, logits_fn, x, y, seeds):
        gradient = tfsam.attacks.logits.input_gradient(logits_fn)
        start = x
        for _ in range(3):
            x = x + self.epsilon / 3 * tf.sign(gradient(x, y)[0])
        return self.clip(start + tf.clip_by_value(x - start, -0.3, 0.3))


FOLLOWING = {
    "a factory": of_another_name,
    "a class": (PGD, {"steps": 4}),
    "a partial": functools.partial(PGD, steps=4),
    "an own tape": OwnTape,
    "an own tape in a graph": OwnTapeInGraph,
    "declared": Declared,
    "by the contract": ByTheContract,
    "apgd_ce": ("apgd_ce", {"steps": 4}),
    "fab_t": ("fab_t", {"steps": 3, "targets": 2}),
    "fmn": ("fmn", {"steps": 4}),
    "cleverhans_mim": ("cleverhans_mim", {"steps": 4}),
    "cleverhans_bim": ("cleverhans_bim", {"steps": 4}),
    "foolbox": ("foolbox:LinfPGD", {"steps": 3}),
    "art": ("art:ProjectedGradientDescent", {"max_iter": 3}),
}
NOT_FOLLOWING = {
    "fgsm": "fgsm",
    "a single step": ("pgd", {"steps": 1}),
    "an own single step": SingleStep,
    "nothing": Passive,
    "cleverhans_fgm": "cleverhans_fgm",
    "foolbox's FGSM": "foolbox:LinfFastGradientAttack",
    "art's FGSM": "art:FastGradientMethod",
    "DeepFool": ("foolbox:LinfDeepFoolAttack", {"steps": 3}),
}


def test_an_attack_of_any_name_is_compared(masked, data):
    (message,) = masked_warnings(masked, data, [OwnTapeInGraph, "noise_linf"])
    assert "noise_linf, which uses no gradient" in message


@pytest.mark.slow
@pytest.mark.parametrize("attack", FOLLOWING.values(), ids=list(FOLLOWING))
def test_an_attack_that_follows_gradients_is_compared(masked, data, attack):
    (message,) = masked_warnings(masked, data, [attack, SQUARE])
    assert "square, which uses no gradient" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack", NOT_FOLLOWING.values(), ids=list(NOT_FOLLOWING)
)
def test_weak_attacks_are_no_measure(masked, data, attack):
    assert not masked_warnings(masked, data, [attack, SQUARE])


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        "foolbox:LinfRepeatedAdditiveUniformNoiseAttack",
        ("art:SquareAttack", {"max_iter": 50}),
        ("cleverhans_spsa", {"steps": 2, "samples": 16}),
    ],
)
def test_attacks_that_take_no_gradient_are_known(masked, data, attack):
    found = masked_warnings(masked, data, [("pgd", {"steps": 4}), attack])
    assert len(found) == 1 and "uses no gradient" in found[0]


@pytest.mark.slow
def test_an_ordinary_network_raises_no_alarm(cnn, data):
    attacks = [*FOLLOWING.values(), SQUARE]
    result = tfsam.evaluate(cnn, data, attacks, "linf", [0.3], batch_size=32)
    assert result["warnings"] == []


def test_a_transfer_attack_is_no_measure(cnn, masked, data):
    """Examples that transfer attacks miss do not count."""
    attacks = [("pgd", {"steps": 4}), "noise_linf"]
    assert masked_warnings(masked, data, attacks)
    assert not masked_warnings(cnn, data, attacks, surrogate=masked)


def test_the_facts_are_in_the_record(masked, data, tmp_path):
    attacks = [OwnTape, "noise_linf", "fgsm"]
    args = (masked, data, attacks, "linf", [0.1, 0.3])
    options = {"batch_size": 16, "workdir": tmp_path}
    first = tfsam.evaluate(*args, **options)
    for part, expected in zip(
        ("00-OwnTape", "01-noise_linf", "02-fgsm"),
        ([False, True], [True, False], [False, False]),
        strict=True,
    ):
        with np.load(tmp_path / part / "linf-0.3" / "000000.npz") as held:
            found = [
                held[name].tolist()
                for name in ("gradient_free", "follows_gradient")
            ]
        assert found == [[value] for value in expected]
    assert tfsam.evaluate(*args, **options)["warnings"] == first["warnings"]
    assert tfsam.merge([tmp_path])["warnings"] == first["warnings"]


@pytest.mark.slow
def test_targets_are_a_fact_of_the_attack(cnn, data):
    """Few classes matter to attacks with more targets than classes."""

    def few(x):
        return cnn(x)[:, :5]

    def renamed(epsilon, norm, bounds):
        return tfsam.attacks.get(
            "apgd_t", epsilon=epsilon, norm=norm, bounds=bounds, steps=1
        )

    kept = data[1] < 5
    some = data[0][kept][:4], data[1][kept][:4]

    def warned(attack):
        result = tfsam.evaluate(few, some, [attack], epsilons=[0.01])
        return "few_classes" in [w["warning"] for w in result["warnings"]]

    assert warned(renamed)
    assert not warned(("pgd", {"targets": 3, "steps": 1}))


def test_facts_of_an_attack_that_was_not_run():
    assert not any(red_flags.facts_of(OwnTape(0.1, "linf", (0, 1))))
    assert red_flags.facts_of(PGD(0.1)).follows_gradient
    assert not red_flags.facts_of(tfsam.FGSM(0.1)).follows_gradient


@pytest.mark.parametrize(
    ("attack", "follows"),
    [
        (PGD(0.1), True),
        (PGD(0.1, "l2"), True),
        (PGD(0.1, steps=3), False),
        (PGD(0.1, "l2", steps=7), False),
        (PGD(0.1, steps=2, step_size=0.05), True),
        (PGD(0.1, steps=10, step_size=0.001), False),
        (PGD(0.1, steps=1, step_size=0.1), False),
        (tfsam.attacks.get("cleverhans_bim", epsilon=0.1, steps=3), False),
        (tfsam.attacks.get("cleverhans_bim", epsilon=0.1, steps=4), True),
    ],
)
def test_steps_that_cannot_cross_the_ball_are_no_measure(attack, follows):
    assert red_flags.facts_of(attack).follows_gradient == follows


@pytest.mark.parametrize(("missed", "warns"), [(0, 0), (1, 0), (2, 1), (9, 1)])
def test_one_example_more_is_no_alarm(missed, warns):
    verdicts = {
        "pgd": np.ones(100, np.int8),
        "square": np.ones(100, np.int8),
    }
    verdicts["pgd"][:missed] = -1
    stages = {
        "pgd": [("pgd", red_flags.Facts(False, True, 0))],
        "square": [("square", red_flags.Facts(True, False, 0))],
    }
    assert len(red_flags.of_verdicts(verdicts, stages, "linf 0.1")) == warns


@pytest.mark.parametrize("names", [("square", "square"), ("square", "noise")])
@pytest.mark.parametrize(("each", "warns"), [(1, False), (2, True)])
def test_no_warning_depends_on_a_name(names, each, warns):
    """Two attacks break other examples each, whatever they are called."""
    verdicts = {str(n): np.full(100, -1, np.int8) for n in range(3)}
    verdicts["1"][:each] = 1
    verdicts["2"][each : 2 * each] = 1
    stages = {"0": [("pgd", red_flags.Facts(False, True, 0))]} | {
        str(n): [(name, red_flags.Facts(True, False, 0))]
        for n, name in enumerate(names, 1)
    }
    found = red_flags.of_verdicts(verdicts, stages, "linf 0.1")
    assert len(found) == (len(set(names)) if warns else 0)
    assert all(f"broke {each} examples" in flag["message"] for flag in found)
