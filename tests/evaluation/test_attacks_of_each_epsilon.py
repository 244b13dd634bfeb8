"""Each epsilon is attacked with the attack that the factory makes for it."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsam
from tfsam.evaluation import verdicts
from tfsam.evaluation.attack_batch import kind_of

EPSILONS = [0.004, 0.12]


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][1200:1260], digits[1][1200:1260]


@pytest.fixture(scope="module")
def network(digits):
    """A network on which one long step and many short steps differ."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.01), loss)
    network.fit(digits[0][:600], digits[1][:600], epochs=6, verbose=0)
    return network


def accuracies(network, data, attack, epsilons=EPSILONS, **kwargs):
    rows = tfsam.evaluate(
        network, data, [attack], "linf", epsilons, strict=True, **kwargs
    )["robust"]
    return [row["accuracy"] for row in rows]


def quarter(epsilon, norm, bounds):
    return tfsam.PGD(epsilon, norm, step_size=epsilon / 4, bounds=bounds)


class Madry(tfsam.PGD):
    """The step size is 2.5 epsilon / steps instead of an argument."""

    def __init__(self, epsilon, norm="linf", steps=8, bounds=(0.0, 1.0)):
        super().__init__(
            epsilon, norm, steps, 2.5 * epsilon / steps, True, bounds
        )


def longer(epsilon, norm, bounds):
    """The number of steps changes at some epsilon."""
    return tfsam.PGD(epsilon, norm, 1 if epsilon < 0.1 else 20, bounds=bounds)


def scheduled(epsilon, norm, bounds):
    """Epsilon is in a closure, as an attribute of the attack."""
    attack = tfsam.PGD(epsilon, norm, bounds=bounds)
    attack._default_step_size = lambda _: epsilon / 4
    return attack


class Nested(tfsam.attacks.Attack):
    """Epsilon is an attribute of an attribute."""

    in_graph = tensor_epsilon = True

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        super().__init__(epsilon, norm, bounds)
        self.inner = tfsam.PGD(epsilon, norm, bounds=bounds)

    def perturb(self, logits_fn, x, y, seeds):
        return self.inner.perturb(logits_fn, x, y, seeds)


class Nearest(tfsam.attacks.FMN):
    """A minimum-norm attack of which epsilon sets the first step."""

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        super().__init__(epsilon, norm, 6, 20 * epsilon, bounds=bounds)


ATTACKS = [quarter, Madry, longer, scheduled, Nested, Nearest]


@pytest.mark.parametrize(
    "attack",
    [
        Madry,
        *(
            pytest.param(attack, marks=pytest.mark.slow)
            for attack in ATTACKS
            if attack is not Madry
        ),
    ],
)
def test_a_sweep_gives_what_each_epsilon_gives_alone(attack, network, data):
    """Except that examples broken at a smaller epsilon stay broken."""
    sweep = accuracies(network, data, attack)
    alone = [accuracies(network, data, attack, [e])[0] for e in EPSILONS]
    assert sweep[0] > sweep[-1] + 0.2
    assert sweep[0] == alone[0]
    for together, one in zip(sweep, alone, strict=True):
        assert one - 0.05 <= together <= one


@pytest.mark.slow
def test_a_factory_of_the_default_gives_what_the_default_gives(network, data):
    plain = accuracies(network, data, tfsam.PGD)
    assert accuracies(network, data, quarter) == plain
    assert accuracies(network, data, Nested) == plain


class Ensemble(tfsam.attacks.Attack):
    """Two stages with the same name, the first of which finds nothing."""

    in_graph = True

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        super().__init__(epsilon, norm, bounds)
        self.stages = [
            ("pgd", tfsam.PGD(epsilon, norm, steps, random_start=False))
            for steps in (0, 20)
        ]


def test_stages_of_one_name_are_different_stages(network, data):
    (row,) = tfsam.evaluate(
        network, data, [Ensemble], "linf", [0.12], strict=True
    )["robust"]
    assert row["broken_by"]["pgd (1)"] == 0 < row["broken_by"]["pgd (2)"]
    alone = ("pgd", {"steps": 20, "random_start": False})
    assert row["accuracy"] == accuracies(network, data, alone, [0.12])[0]


@pytest.mark.slow
def test_stages_whose_settings_follow_epsilon_follow_it(network, data):
    class Follows(tfsam.attacks.Attack):
        in_graph = True

        @property
        def stages(self):
            steps = 1 if self.epsilon < 0.1 else 20
            return [("pgd", tfsam.PGD(self.epsilon, self.norm, steps))]

    assert accuracies(network, data, Follows) == accuracies(
        network, data, longer
    )


class Opaque(tfsam.PGD):
    """A subclass with an attribute that cannot be described."""

    def __init__(self, epsilon, norm="linf", bounds=(0.0, 1.0)):
        super().__init__(epsilon, norm, bounds=bounds)
        self.lock = threading.Lock()


def mine(epsilon, norm="linf", bounds=(0.0, 1.0)):
    return tfsam.PGD(epsilon, norm, step_size=0.01, bounds=bounds)


@pytest.mark.parametrize("attack", [tfsam.PGD, mine, *ATTACKS, Opaque])
def test_attacks_that_differ_in_epsilon_alone_are_of_one_kind(attack):
    """Attacks of the same kind share a trace."""
    epsilons = (0.01, 0.02, 0.1, 0.2)
    kinds = [
        kind_of(attack(epsilon=e, norm="linf", bounds=None), e)
        for e in epsilons
    ]
    expected = {tfsam.PGD: 1, mine: 1, longer: 2}.get(attack, 4)
    assert len(set(kinds)) == expected
    again = attack(epsilon=0.2, norm="linf", bounds=None)
    assert kind_of(again, 0.2) == kinds[-1]


def test_stages_of_autoattack_are_of_one_kind_each():
    small, large = (
        [
            kind_of(stage, epsilon)
            for _, stage in tfsam.attacks.AutoAttack(epsilon).stages
        ]
        for epsilon in (0.1, 0.2)
    )
    assert small == large and len(set(small)) == 4


def test_an_attack_with_another_epsilon_is_made_anew():
    attack = Madry(0.1)
    attack.early_stop = True
    attack.note = "mine"
    other = attack.with_epsilon(0.01)
    assert other.step_size == 2.5 * 0.01 / 8
    assert other.epsilon == 0.01 and attack.epsilon == 0.1
    assert other.note == "mine"
    assert attack.with_epsilon(tf.constant(0.01)).step_size == attack.step_size
    with pytest.raises(ValueError, match="Received: epsilon=-1"):
        attack.with_epsilon(-1)

    class Without(tfsam.PGD):
        def __init__(self, epsilon, strength=2.0):
            super().__init__(epsilon, step_size=strength * epsilon)

    with pytest.raises(ValueError, match="make a new attack instead"):
        Without(0.1).with_epsilon(0.01)


@pytest.mark.slow
def test_distances_of_a_minimum_norm_attack_are_of_all_examples(
    network, data, tmp_path
):
    """This includes a second run, in which the first run's breaks count."""
    accuracies(network, data, Nearest, workdir=tmp_path)
    found = verdicts.load(tmp_path)
    correct = found["Nearest", EPSILONS[0]] != verdicts.MISCLASSIFIED
    for epsilon in EPSILONS:
        path = tmp_path / "00-Nearest" / f"linf-{epsilon}" / "000000.npz"
        with np.load(path) as arrays:
            assert (arrays["distances"][correct] > 0).all()
