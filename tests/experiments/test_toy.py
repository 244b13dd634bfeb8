"""The toy model: closed forms, exact optima, expansions, trained weights."""

import json

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import tensorflow as tf
from helpers import slow

import tfsam
from experiments import command
from experiments import toy
from experiments import toy_model

SETTINGS = (toy_model.CENTRE, toy_model.WEAK, toy_model.Setting(0.99, 1.0, 10))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_standard_and_adversarial_training_have_closed_forms(setting, fraction):
    points = toy_model.population(setting, fraction * setting.eta)
    w = toy_model.minimiser(points)
    ratio = setting.log_odds / (2 * setting.eta * (1 - fraction))
    assert points.ratio(w) == pytest.approx(ratio, rel=1e-9)
    assert toy_model.adversarial_excess(fraction) == pytest.approx(
        ratio / setting.log_odds * 2 * setting.eta - 1
    )


def test_the_published_exchange_follows_from_the_published_excess():
    for rho in toy_model.RHOS:
        fraction = toy_model.equivalent_fraction(
            toy_model.published_excess(rho)
        )
        assert 2 / fraction == pytest.approx(2 + 3 / rho**2)
        excess = toy_model.adversarial_excess(fraction)
        assert excess == pytest.approx(toy_model.published_excess(rho))


@pytest.mark.parametrize(
    "loss", [toy_model.LOGISTIC, toy_model.EXPONENTIAL, toy_model.SQUARE]
)
def test_derivatives(loss):
    points = toy_model.population(toy_model.CENTRE, loss=loss)
    w, steps = np.array([0.7, 0.4, 0.1]), 1e-5 * np.eye(3)
    slopes = (points.value(w + steps) - points.value(w - steps)) / 2e-5
    np.testing.assert_allclose(points.gradient(w), slopes, rtol=1e-7, atol=1e-9)
    bends = (points.gradient(w + steps) - points.gradient(w - steps)) / 2e-5
    np.testing.assert_allclose(points.hessian(w), bends, rtol=1e-7, atol=1e-9)


def test_the_penalty_follows_the_gradient_of_the_top_eigenvalue():
    points = toy_model.draw(toy_model.CENTRE, 500, 0).points()
    w = toy_model.minimiser(points)

    def top(w):
        return np.linalg.eigvalsh(points.hessian(w))[-1]

    gradient = [(top(w + e) - top(w - e)) / 2e-5 for e in 1e-5 * np.eye(11)]
    expected = -np.linalg.solve(points.hessian(w), gradient) / 2
    found = toy_model.sharpened(points, w)["penalty"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "setting", [slow(toy_model.CENTRE), toy_model.Setting(0.7, 1.0, 1)]
)
def test_the_worst_case_is_its_expansion_to_fourth_order(setting):
    points = toy_model.population(setting)
    base = toy_model.minimiser(points)
    leading = toy_model.expansion(setting)
    errors = [
        points.excess(toy_model.worst_case(points, rho), base) / rho**2
        - leading["worst"]
        for rho in (0.2, 0.4)
    ]
    assert abs(errors[0]) < 0.02 * abs(leading["worst"])
    assert errors[1] / errors[0] == pytest.approx(4, abs=0.4)
    # The usual penalty differs.
    assert abs(leading["penalty"] / leading["worst"] - 1) > 0.4


@pytest.mark.slow
def test_the_relative_worst_case_is_its_expansion_to_fourth_order():
    points = toy_model.population(toy_model.WEAK)
    base, leading = (
        toy_model.minimiser(points),
        toy_model.expansion(toy_model.WEAK)["relative"],
    )
    errors = [
        points.excess(toy_model.worst_case(points, rho, relative=True), base)
        / rho**2
        - leading
        for rho in (0.02, 0.04)
    ]
    assert abs(errors[0]) < 0.01 * abs(leading)
    assert errors[1] / errors[0] == pytest.approx(4, abs=0.4)


def test_the_worst_case_of_weak_features_grows_as_they_weaken():
    """(2 p - 1) / (12 eta sqrt(d)), which is 2/3 on one curve alone."""
    for p in (0.7, 0.9, 0.99):
        setting = toy_model.Setting(p, 0.001, 4)
        expected = (2 * p - 1) / (12 * 0.002)
        found = toy_model.expansion(setting)["worst"]
        assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("p", [0.55, 0.7, 0.9, 0.99])
def test_the_published_formula_is_right_on_a_narrow_band(p):
    band = toy_model.band(p)

    def worst(k):  # Of other features of the same k.
        setting = toy_model.Setting(p, k / 2, 4)
        return toy_model.expansion(setting)["worst"]

    assert worst(band["low"]) == pytest.approx(1.2 * 2 / 3, rel=1e-3)
    assert worst(band["high"]) == pytest.approx(0.8 * 2 / 3, rel=1e-3)
    assert worst(0.99 * band["sign"]) > 0 > worst(1.01 * band["sign"])
    # To first order in 1 / k, as features weaken.
    assert band["low"] < (2 * p - 1) / 8 * 1.2 < 1.2 * band["high"]
    assert band["least"] <= min(map(worst, np.linspace(0.1, 3, 30)))


@pytest.mark.slow
def test_nothing_above_the_optimum_of_the_worst_case_among_all_weights():
    """Two non-robust weights of their own, by a quadrature of their own."""
    setting, rho = toy_model.Setting(0.9, 0.3, 2), 0.4
    nodes, mass = np.polynomial.hermite_e.hermegauss(30)
    grid = np.meshgrid([1.0, -1.0], *[setting.eta + nodes] * 2, indexing="ij")
    shares = np.einsum("i,j,k->ijk", [0.9, 0.1], mass, mass).ravel()
    features = np.stack([axis.ravel() for axis in grid], axis=1)
    points = toy_model.Points(
        features, shares / shares.sum(), np.array([0, 0.5, 0.5])
    )
    reduced = toy_model.population(setting)
    w, small = (
        toy_model.worst_case(points, rho),
        toy_model.worst_case(reduced, rho),
    )
    assert w[1] == pytest.approx(w[2], rel=1e-4)
    assert points.ratio(w) == pytest.approx(reduced.ratio(small), rel=1e-5)

    def worst(w):
        starts = toy_model.directions(points, w)
        tops = toy_model.maxima(points, w, rho, starts)
        return points.value(w + rho * tops).max()

    least = worst(w)
    for e in np.random.default_rng(1).standard_normal((8, 3)):
        assert worst(w + 0.01 * e) > least


@pytest.mark.parametrize("loss", [toy_model.EXPONENTIAL, toy_model.SQUARE])
def test_losses_symmetric_about_their_minimum_do_not_feel_the_ball(loss):
    points = toy_model.population(toy_model.CENTRE, loss=loss)
    base = toy_model.minimiser(points)
    w = toy_model.worst_case(points, 0.4)
    np.testing.assert_allclose(w, base, atol=1e-6)


def test_the_average_over_noise_is_its_expansion():
    setting, deviation = toy_model.Setting(0.8, 0.5, 1), 0.05
    points = toy_model.population(setting)
    nodes, mass = np.polynomial.hermite_e.hermegauss(12)
    noise = deviation * np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    shares = np.outer(mass, mass).ravel() / mass.sum() ** 2
    base = toy_model.minimiser(points)
    w = scipy.optimize.root(
        lambda w: shares @ points.gradient(w + noise), base, tol=1e-12
    ).x
    expected = toy_model.expansion(setting)["gaussian"]
    found = points.excess(w, base) / deviation**2
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("d", [1, 4])
def test_the_error_rate_over_noise_is_its_expansion(d):
    """By nodes along and the chi-squared norm across."""
    setting, deviation = toy_model.Setting(0.8, 0.5, d), 0.02
    ratio = setting.log_odds / (2 * setting.eta)
    nodes, mass = np.polynomial.hermite_e.hermegauss(20)
    half, across = np.zeros(1), np.ones(1)
    if d > 1:
        half, across = scipy.special.roots_genlaguerre(12, (d - 3) / 2)
    robust, along, squares = np.meshgrid(
        deviation * nodes, deviation * nodes, 2 * half * deviation**2
    )
    shares = np.einsum("i,j,k->ijk", mass, mass, across)

    def accuracy(weight):
        strength = d**0.5 + along
        norm = np.sqrt(strength**2 + squares)
        mean = setting.eta * d**0.5 * strength
        right = [
            share
            * scipy.stats.norm.cdf((mean + sign * (weight + robust)) / norm)
            for sign, share in ((1, setting.p), (-1, 1 - setting.p))
        ]
        return (shares * sum(right)).sum()

    def slope(weight):
        return accuracy(weight + 1e-3) - accuracy(weight - 1e-3)

    found = scipy.optimize.brentq(slope, 0.5 * ratio, 1.5 * ratio)
    excess = (found / ratio - 1) / deviation**2
    assert excess == pytest.approx(toy_model.zero_one(setting), rel=0.02)


@pytest.mark.parametrize("setting", [toy_model.CENTRE, toy_model.WEAK])
def test_the_ball_of_each_example_is_its_expansion(setting):
    plain, balls = (
        toy_model.population_example_balls(setting, rho) for rho in (0.0, 0.002)
    )
    found = (
        balls.excess(toy_model.minimiser(balls), toy_model.minimiser(plain))
        / 0.002
    )
    assert found == pytest.approx(
        toy_model.expansion(setting)["example"], rel=0.01
    )


def test_sam_of_one_example_takes_its_norm_from_its_margin():
    """A step of m-sharpness with m = 1 is the gradient of that loss."""
    setting, rho = toy_model.Setting(0.8, 0.5, 2), 0.3
    sample, w = toy_model.draw(setting, 6, 0), setting.bayes()
    model = tfsam.RobustModel(
        toy.linear(2), perturb_weights=tfsam.SAM(rho), sub_batches=6
    )
    model.compile(
        tfsam.SGD(1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.network.set_weights([w[:, None]])
    model.train_on_batch(sample.x, (sample.y > 0).astype("int64"))
    found = model.network.get_weights()[0][:, 0]
    gradient = toy_model.example_balls(sample.points(), rho).gradient(w)
    np.testing.assert_allclose(found, w - gradient, rtol=1e-6)


def test_one_step_of_sam_always_descends_the_plain_loss():
    """Hence full batches end at the optimum of standard training."""
    points = toy_model.draw(toy_model.CENTRE, 200, 0).points()
    base = toy_model.minimiser(points)
    for offset in np.random.default_rng(0).standard_normal((20, 11)):
        gradient = points.gradient(base + 0.1 * offset)
        for rho in (0.1, 1.0, 10.0):
            moved = base + 0.1 * offset + rho * toy_model.unit(gradient)
            assert gradient @ points.gradient(moved) >= gradient @ gradient


def test_the_attack_leaves_the_robust_feature_alone():
    sample = toy_model.draw(toy_model.CENTRE, 50, 0)
    weights = tf.constant(toy_model.CENTRE.bayes()[:, None])

    def logits(x):
        return tf.concat([-(x @ weights) / 2, (x @ weights) / 2], axis=1)

    labels = (sample.y > 0).astype("int64")
    x_adv = toy.NonRobust(0.15)(logits, sample.x, labels).numpy()
    np.testing.assert_array_equal(x_adv[:, 0], sample.x[:, 0])
    moved = sample.y[:, None] * (x_adv - sample.x)[:, 1:]
    np.testing.assert_allclose(moved, -0.15, rtol=1e-12)


@pytest.mark.slow
def test_trained_weights_are_the_samples_optima():
    """Tests ST and AT, and that SAM by full batches equals ST."""
    samples = [
        toy_model.draw(toy_model.CENTRE, 2000, seed) for seed in range(2)
    ]

    def distance(epsilon, **arguments):
        found = toy.trained(
            samples, toy_model.CENTRE, 500, epsilon, **arguments
        )
        plain = [toy_model.minimiser(sample.points()) for sample in samples]
        own = [
            toy_model.minimiser(sample.points(epsilon)) for sample in samples
        ]
        return [np.abs(found - optima).max() for optima in (own, plain)]

    assert distance(0.0)[0] < 1e-5
    to_own, to_plain = distance(0.15)
    assert to_own < 1e-5 < 0.1 < to_plain
    assert distance(0.0, perturb_weights=tfsam.SAM(0.4))[0] < 1e-3


@pytest.mark.slow
def test_batches_of_one_move_the_weights_as_balls_of_examples_do():
    """Small batches lower W_R; full batches do not change it."""
    samples = [
        toy_model.draw(toy_model.DOUBTFUL, 5000, seed) for seed in range(3)
    ]
    (row,) = toy.batches(toy_model.DOUBTFUL, (0.4,), samples, 5000, 1)
    assert row["example"] == pytest.approx(-0.0613, abs=1e-4)
    assert row["excess"]["mean"] == pytest.approx(row["example"], abs=0.02)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    code = command.run(
        toy.main,
        toy.FLAGS,
        ["--quick", "--samples=500", "--seeds=1", f"--workdir={tmp_path}"],
    )
    assert code == 0
    text = (tmp_path / "toy.md").read_text()
    assert capsys.readouterr().out == text
    assert "| 0.9 | 0.1 | 1 | 0.1 | +0.0067 | +0.0071 | +0.0355 |" in text
    found = json.loads((tmp_path / "toy.json").read_text())
    assert {row["rho"] for row in found["exact"]} == {0.1, 0.4}
    assert [row["distance"] < 0.01 for row in found["adversarial"]] == 4 * [1]
    assert "<svg" in (tmp_path / "toy.svg").read_text()
    assert len(list(tmp_path.iterdir())) == 3


def test_the_command_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    measured = []

    def parts(quick, n, seeds):
        return {
            "one": lambda: measured.append((quick, n, seeds)) or [1],
            "two": lambda: [2] if measured.count("ready") else stop(),
        }

    def stop():
        raise ValueError("killed")

    monkeypatch.setattr(toy, "parts", parts)
    monkeypatch.setattr(toy.toy_report, "text", str)
    monkeypatch.setattr(toy.toy_report, "draw", lambda found, path: None)
    arguments = ["--samples=200", f"--workdir={tmp_path}"]
    assert command.run(toy.main, toy.FLAGS, arguments) == 2
    measured.append("ready")
    assert command.run(toy.main, toy.FLAGS, arguments) == 0
    assert measured == [(False, 200, 3), "ready"]
    found = json.loads((tmp_path / "toy.json").read_text())
    assert (found["one"], found["two"]) == ([1], [2])
    capsys.readouterr()
    other = ["--samples=300", *arguments[1:]]
    assert command.run(toy.main, toy.FLAGS, other) == 2
    assert (
        "Received: {'quick': False, 'samples': 300" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "bad", ["--samples=10", "--seeds=0", "--seeds=two", "--rho=0.1"]
)
def test_bad_input_is_one_line(bad, tmp_path, capsys):
    arguments = [bad, f"--workdir={tmp_path}"]
    assert command.run(toy.main, toy.FLAGS, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("toy: ") and error.count("\n") == 1
