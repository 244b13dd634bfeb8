"""Sweeps by bisection: the curve of a full sweep for fewer attacks."""

import numpy as np
import pytest
from helpers import assert_one_line_error
from hypothesis import given
from hypothesis import strategies as st

import tfsam
from tfsam.evaluation import bisection
from tfsam.evaluation import chunk_outcomes
from tfsam.evaluation.bisection import first_broken
from tfsam.evaluation.red_flags import Facts
from tfsam.evaluation.verdicts import MISCLASSIFIED
from tfsam.evaluation.verdicts import STANDS

EPSILONS = 8


def nowhere(numbers, chosen):
    """Judges scaled images, none of which is misclassified."""
    return np.zeros(len(chosen), bool)


def counted(thresholds):
    """Returns an attack on examples that break from a number on."""
    tried = [[] for _ in thresholds]

    def attack(numbers, chosen):
        for number, index in zip(numbers, chosen, strict=True):
            tried[index].append(int(number))
        return np.where(numbers >= thresholds[chosen], numbers, EPSILONS)

    return attack, tried


@pytest.mark.parametrize("start", range(EPSILONS))
@pytest.mark.parametrize("together", [False, True])
def test_every_threshold_is_found(start, together):
    thresholds = np.arange(EPSILONS + 1)
    attack, tried = counted(thresholds)
    starts = np.full(len(thresholds), start)
    found = first_broken(attack, nowhere, EPSILONS, starts, together)
    np.testing.assert_array_equal(found, thresholds)
    assert all(len(set(each)) == len(each) for each in tried)
    for each, threshold in zip(tried, thresholds, strict=True):
        assert each[0] == start
        # In vain at the start, and just below the threshold.
        assert {n for n in each if n < threshold} <= {start, threshold - 1}


@pytest.mark.parametrize("start", range(EPSILONS))
def test_scaled_images_lead_to_the_threshold_in_two_attacks(start):
    thresholds = np.arange(EPSILONS + 1)
    attack, tried = counted(thresholds)

    def along(numbers, chosen):
        return numbers >= thresholds[chosen]

    starts = np.full(len(thresholds), start)
    found = first_broken(attack, along, EPSILONS, starts)
    np.testing.assert_array_equal(found, thresholds)
    for each, threshold in zip(tried, thresholds, strict=True):
        assert set(each) <= {start, threshold - 1}
    # A start just below the threshold decides alone.
    attack, tried = counted(thresholds)
    found = first_broken(attack, along, EPSILONS, np.maximum(thresholds - 1, 0))
    np.testing.assert_array_equal(found, thresholds)
    assert {len(each) for each in tried} == {1}


def test_an_image_within_a_smaller_epsilon_counts_there():
    def attack(numbers, chosen):
        return np.full(len(chosen), 0)

    assert first_broken(attack, nowhere, 4, np.array([3, 2])).tolist() == [0, 0]


@given(
    st.lists(
        st.tuples(
            *[st.lists(st.booleans(), min_size=5, max_size=5)] * 2,
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_the_search_of_an_example_does_not_depend_on_the_others(
    examples, together
):
    def searched(examples):
        breaks, scaled, start = map(np.array, zip(*examples, strict=True))
        tried = [[] for _ in examples]

        def attack(numbers, chosen):
            assert together or len(set(numbers)) == 1
            for number, index in zip(numbers, chosen, strict=True):
                tried[index].append(int(number))
            return np.where(breaks[chosen, numbers], numbers, 5)

        def along(numbers, chosen):
            return scaled[chosen, numbers]

        found = first_broken(attack, along, 5, start, together)
        return list(zip(found.tolist(), tried, strict=True))

    found = searched(examples)
    assert found == [searched([example])[0] for example in examples]
    for (first, tried), (breaks, scaled, _) in zip(
        found, examples, strict=True
    ):
        assert len(set(tried)) == len(tried)
        # Broken by an attack or by a scaled image, and never just assumed.
        assert first == 5 or breaks[first] or scaled[first]
        if first:
            assert first - 1 in tried
            assert not breaks[first - 1]


def test_an_example_that_stands_is_taken_to_stand_at_smaller_epsilons():
    def attack(numbers, chosen):  # Breaks at a single epsilon.
        return np.where(numbers == 1, numbers, 4)

    assert first_broken(attack, nowhere, 4, np.array([3])).tolist() == [4]


def test_nothing_is_attacked_without_examples_or_epsilons():
    def attack(numbers, chosen):
        raise AssertionError

    nobody = np.zeros(0, int)
    assert first_broken(attack, nowhere, 3, nobody).tolist() == []
    two = np.zeros(2, int)
    assert first_broken(attack, nowhere, 0, two).tolist() == [0, 0]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_are_scaled_to_other_lengths(norm):
    random = np.random.default_rng(0)
    x = random.random((3, 4, 5), dtype="float32") / 2 + 0.25
    images = x + random.normal(0, 0.01, x.shape).astype("float32")
    images[2] = x[2]
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    radii = np.array([0.03, 0.2, 0.1])
    found = bisection.rescaled(x, images, radii, norm, (0.0, 1.0))
    assert found.dtype == x.dtype

    def vectors(points):
        return (points.astype(float) - x).reshape(3, -1)

    lengths = np.linalg.norm(vectors(found), order, axis=1)
    np.testing.assert_allclose(lengths, [0.03, 0.2, 0], rtol=1e-5, atol=1e-7)
    wanted = vectors(images)
    wanted /= np.maximum(np.linalg.norm(wanted, order, axis=1), 1e-9)[:, None]
    np.testing.assert_allclose(
        vectors(found), wanted * lengths[:, None], atol=1e-6
    )
    wide = bisection.rescaled(x, images, 10 + 0 * radii, norm, (0.0, 1.0))
    assert wide.min() == 0
    assert wide.max() == 1


# Of a linear model of two classes, with its boundary through the middle:
# the distance to it in l-inf, in steps of 0.05.
STEPS = np.array([0.5, 1.5, 2.5, 3.5, 9.0, -1.0])
X = (0.5 + 0.05 * np.stack([STEPS, np.zeros(6)], 1)).astype("float32")
Y = np.zeros(6, int)
CURVE = [0.05 * (n + 1) for n in range(EPSILONS // 2)]


def linear(x):
    return (x - 0.5) @ np.array([[1.0, -1.0], [0.0, 0.0]], "float32")


def evaluate(attacks, sweep, curve=CURVE, **options):
    return tfsam.evaluate(
        linear,
        (X, Y),
        attacks,
        epsilons=curve,
        batch_size=4,
        strict=True,
        sweep=sweep,
        **options,
    )


@pytest.mark.parametrize(
    ("attack", "attacked"),
    [
        # The gradient leads to the epsilon below the threshold, where the
        # attack fails. Its image, scaled to the threshold, is misclassified.
        (("pgd", {"steps": 4, "random_start": False}), [2, 1, 1, 1]),
        # Returns no image where it fails, so that three examples are also
        # attacked at the largest epsilon.
        (("fab_t", {"steps": 4}), [2, 1, 1, 4]),
    ],
)
def test_the_curve_is_that_of_a_full_sweep(attack, attacked, tmp_path):
    full = evaluate([attack], "full")["robust"]
    result = evaluate([attack], "bisect", workdir=tmp_path)
    rows = result["robust"]
    same = ("accuracy", "epsilon", "inherited")
    for one, other in zip(rows, full, strict=True):
        assert [one[k] for k in same] == [other[k] for k in same]
        assert one["sweep"] == "bisect"
        assert "sweep" not in other
        assert one["max_perturbation"] <= one["epsilon"] * (1 + 1e-5)
    assert [row["accuracy"] for row in rows] == [4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [row["attacked"] for row in rows] == attacked
    resumed = evaluate([attack], "bisect", workdir=tmp_path)
    assert resumed["robust"] == rows
    for change in ({"sweep": "full"}, {"sweep": "bisect", "curve": CURVE[1:]}):
        with pytest.raises(ValueError, match="Received") as error:
            evaluate([attack], workdir=tmp_path, **change)
        assert_one_line_error(error)


def test_different_epsilons_in_a_batch_give_the_same_verdicts():
    class OneEpsilon(tfsam.PGD):
        example_epsilons = False

    options = {"steps": 4}
    both = evaluate([(tfsam.PGD, options), (OneEpsilon, options)], "bisect")
    rows = both["robust"]
    same = ("accuracy", "attacked", "max_perturbation", "gradient_passes")
    for one, other in zip(rows[: len(CURVE)], rows[len(CURVE) :], strict=True):
        assert [one[k] for k in same] == [other[k] for k in same]


def test_scaled_images_break_and_are_kept(tmp_path):
    attack = ("pgd", {"steps": 4, "random_start": False})
    options = {"workdir": tmp_path, "save_adversarial": True}
    evaluate([attack], "bisect", **options)
    for number, epsilon in enumerate(CURVE):
        folder = tmp_path / "00-pgd" / f"linf-{epsilon!r}"
        images = np.concatenate(
            [
                np.load(file)["adversarial"]
                for file in sorted(folder.glob("*.npz"))
            ]
        )
        broken = linear(images).argmax(axis=1) != Y
        assert broken.sum() == 2 + number
        # Each at the smallest epsilon that breaks it.
        moved = np.abs(images - X).max(axis=1)[broken & (STEPS > 0)]
        np.testing.assert_allclose(moved, CURVE[: number + 1], rtol=1e-5)


def test_a_minimum_norm_attack_ignores_it():
    attack = ("fmn", {"steps": 10})
    full, found = (evaluate([attack], s)["robust"] for s in ("full", "bisect"))
    assert [r["accuracy"] for r in found] == [r["accuracy"] for r in full]
    assert not any("sweep" in row for row in found)


@pytest.mark.parametrize(
    ("attacks", "options", "part"),
    [
        (["autoattack"], {}, "attack=autoattack"),
        (["pgd"], {"warm_start": True}, "warm_start=True"),
        (["pgd"], {"sweep": "half"}, "sweep=half"),
    ],
)
def test_it_is_refused_in_a_line(attacks, options, part):
    with pytest.raises(ValueError, match=part) as error:
        evaluate(attacks, **({"sweep": "bisect"} | options))
    assert_one_line_error(error, part)


def test_an_attack_that_fails_has_errors_at_all_epsilons():
    class Failing(tfsam.PGD):
        def perturb(self, logits_fn, x, y, seeds):
            raise RuntimeError

    result = tfsam.evaluate(
        linear, (X, Y), [Failing, "fgsm"], epsilons=CURVE, sweep="bisect"
    )
    failed, others = result["robust"][:4], result["robust"][4:]
    assert all("RuntimeError" in row["error"] for row in failed)
    assert not any("error" in row for row in others)


def nothing(natural):
    """Returns the outcome before an attack, of images of one pixel."""
    n = len(natural)
    x, lengths = np.zeros([n, 1]), np.full([n, 3], np.inf)
    facts = [Facts(gradient_free=False, follows_gradient=True, targets=0)]
    unlabelled = np.zeros((n, 0), bool)
    return chunk_outcomes.unattacked(
        x, natural, lengths, np.zeros(n), unlabelled, {}, facts
    )


@pytest.mark.parametrize("together", [False, True])
def test_images_are_those_of_the_smallest_epsilon_that_breaks(together):
    natural = np.array([STANDS, MISCLASSIFIED, STANDS], np.int8)
    thresholds = np.array([1, 0, 3])

    def attack(numbers, verdict):
        chosen = verdict == STANDS
        broken = chosen & (numbers >= thresholds)
        found = nothing(natural)
        found.verdict[broken] = 1
        found.lengths[broken] = numbers[broken][:, None]
        found.largest[chosen] = numbers[chosen]
        found.attacked[chosen] = True
        found.passes[chosen] = [1, 2]
        found.images[chosen] = 10 * numbers[chosen][:, None]
        return found

    def rescale(found, radii, chosen):
        return nothing(natural)

    radii = np.outer(range(3), np.ones(3))
    found = bisection.sweep(
        attack, rescale, radii, nothing(natural), None, together
    )
    images = [outcome.images[:, 0].tolist() for outcome in found]
    assert images == [[0, 0, 0], [10, 0, 0], [10, 0, 20]]
    assert [outcome.verdict.tolist() for outcome in found] == [
        [STANDS, MISCLASSIFIED, STANDS],
        [1, MISCLASSIFIED, STANDS],
        [1, MISCLASSIFIED, STANDS],
    ]
    assert found[2].lengths[:, 0].tolist() == [1, np.inf, np.inf]
    summed = [chunk_outcomes.summed(outcome) for outcome in found]
    assert [int(each["attacked"]) for each in summed] == [1, 1, 2]
    assert summed[2]["passes"].tolist() == [2, 4]
