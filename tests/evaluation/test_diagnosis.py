"""Attacks that fail to attack are named, each with its remedy."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import OwnTape
from helpers import network
from helpers import slow

import tfsam
from tfsam.attacks import Attack
from tfsam.attacks.logits import Logits
from tfsam.attacks.logits import input_gradient
from tfsam.attacks.recorder import Recorder
from tfsam.evaluation import attack_probes
from tfsam.evaluation import diagnosis
from tfsam.evaluation import verdicts

# Of two pixels, the brighter one is the class; all differ by 0.4.
X = np.array([[0.7, 0.3], [0.3, 0.7]] * 4, "float32")
Y = np.array([0, 1] * 4)


def brighter(x):
    return 10 * x - 5


def saturated(x):
    """The cross-entropy of these logits and its gradient are 0."""
    return 1000 * x


def wavy(x):
    """The margin changes by its own size within 1/1000."""
    ripple = tf.sin(3000 * x[:, :1] + 2000 * x[:, 1:])
    return brighter(x) + tf.concat([ripple, -ripple], 1)


@tf.custom_gradient
def _turned(x):
    return tf.identity(x), lambda upstream: -upstream


def misleading(x):
    return brighter(_turned(x))


def bounded(x):
    """Equals `brighter`, unless the pixels differ by more than 0.6."""
    difference = x[:, :1] - x[:, 1:]
    return difference * (0.6 - tf.abs(difference)) * [[10.0, -10.0]]


def evaluate(model, attacks, epsilons=(0.1,), data=(X, Y), **options):
    return tfsam.evaluate(
        model, data, attacks, "linf", epsilons, strict=True, **options
    )


def indicators(row):
    """Returns the indicators of a row, by name."""
    found = {item["indicator"]: item for item in row["diagnosis"]}
    assert len(found) == len(row["diagnosis"])
    for item in row["diagnosis"]:
        assert list(item) == ["indicator", "message", "remedy", "count"]
    return found


def diagnosed(*arguments, **options):
    """Returns the indicators of the only row, by name."""
    (row,) = evaluate(*arguments, **options)["robust"]
    return indicators(row)


class PassesBy(Attack):
    """Takes gradients on the way to a corner of the ball, and returns x."""

    in_graph = True
    beyond = 1

    def perturb(self, logits_fn, x, y, seeds):
        gradient = input_gradient(logits_fn)
        slopes, _ = gradient(x, y)
        reach = self.beyond * self.epsilon
        gradient(self.clip(x + reach * tf.sign(slopes)), y)
        return x


class PassesByEagerly(PassesBy):
    in_graph = None


class LeavesTheBall(PassesByEagerly):
    """The adversarial points that it passes are outside its budget."""

    beyond = 2.5


class TakesASubset(PassesByEagerly):
    """The rows of its gradients differ from the rows of its batch."""

    def perturb(self, logits_fn, x, y, seeds):
        input_gradient(logits_fn)(x[:3], y[:3])
        return x


SHORT = "pgd:steps={}:step_size={}:random_start=False"
INCOMPLETE = {SHORT.format(10, 0.005): 100, SHORT.format(2, 0.04): 100}
COMPLETE = [SHORT.format(10, 0.05), "fgsm"]


@pytest.fixture(scope="module")
def rows():
    """The rows of many attacks on `brighter`, by name and epsilon."""
    attacks = [PassesBy, PassesByEagerly, LeavesTheBall, TakesASubset, OwnTape]
    result = evaluate(brighter, [*attacks, *INCOMPLETE, *COMPLETE], [0.1, 0.21])
    return {(row["attack"], row["epsilon"]): row for row in result["robust"]}


@pytest.mark.parametrize("attack", ["PassesBy", "PassesByEagerly"])
def test_an_adversarial_point_that_is_not_returned_is_a_silent_success(
    rows, attack
):
    assert rows[attack, 0.21]["accuracy"] == 1
    item = indicators(rows[attack, 0.21])["silent_success"]
    assert item["count"] == 8
    assert "8 of the 8 survivors" in item["message"]
    assert "silent_success" not in indicators(rows[attack, 0.1])


def test_points_outside_the_budget_are_no_success(rows):
    assert "silent_success" not in indicators(rows["LeavesTheBall", 0.1])


def test_a_path_that_is_not_seen_is_not_recorded(rows):
    assert rows["OwnTape", 0.1]["diagnosis"] == "not recorded"
    assert list(indicators(rows["TakesASubset", 0.1])) == [
        "unconstrained_failure",
        "not_recorded",
    ]


@pytest.mark.parametrize("attack", INCOMPLETE)
def test_a_loss_that_still_rises_is_incomplete(rows, attack):
    item = indicators(rows[attack, 0.1])["incomplete_optimization"]
    assert item["count"] == 8
    assert f"--attacks=pgd:steps={INCOMPLETE[attack]}:" in item["remedy"]


@pytest.mark.parametrize("attack", COMPLETE)
def test_a_loss_at_its_top_raises_no_alarm(rows, attack):
    assert rows[attack, 0.1]["diagnosis"] == []


def test_a_gradient_of_zero_is_unavailable():
    first, second = evaluate(saturated, ["pgd:steps=3", OwnTape])["robust"]
    item = indicators(first)["unavailable_gradients"]
    assert item["count"] == 8
    for part in ("--attacks=apgd_t", "tfsam.bpda", "--attacks=square"):
        assert part in item["remedy"]
    # Without a path, by the gradients at the images.
    found = indicators(second)
    assert found["unavailable_gradients"]["count"] == 8
    assert "path" in found["not_recorded"]["message"]


def test_an_abrupt_loss_is_unstable():
    item = diagnosed(wavy, [PassesByEagerly])["unstable_loss"]
    assert item["count"] == 8
    assert "--attacks=square" in item["remedy"]


def test_a_gradient_that_leads_nowhere_fails_without_a_budget():
    item = diagnosed(misleading, ["pgd:steps=5"])["unconstrained_failure"]
    assert item["count"] == 8
    assert "--attacks=pgd:steps=100" in item["remedy"]


@pytest.mark.parametrize(
    ("model", "left"),
    [(brighter, []), (misleading, [8])],
    ids=["succeeds", "fails"],
)
def test_without_a_budget_few_steps_are_tried_first(monkeypatch, model, left):
    """Only the images that they leave take all steps of the attack."""
    counts, attack = [], attack_probes.attack_batch

    def counted(plan, worker, stage, key, indices, *budget):
        counts.append(len(indices))
        return attack(plan, worker, stage, key, indices, *budget)

    monkeypatch.setattr(attack_probes, "attack_batch", counted)
    found = diagnosed(model, ["pgd:steps=9"])
    assert counts == left
    assert ("unconstrained_failure" in found) is bool(left)


def test_the_remedy_of_a_transfer_sets_the_flag_of_transfers():
    attack = {"name": "pgd:steps=2", "options": {"steps": 2}, "surrogate": 0}
    flag = diagnosis._command(attack, "steps", 100)
    assert flag == "--transfer_attacks=pgd:steps=100"


def test_images_that_fool_the_surrogate_alone_are_a_transfer_failure():
    found = diagnosed(brighter, ["fgsm"], [0.3], surrogate=bounded)
    assert found["transfer_failure"]["count"] == 8
    assert "--surrogate" in found["transfer_failure"]["remedy"]
    assert "silent_success" not in found


# Points on the way from (0.7, 0.3), where the first class is right.
PATH = np.array([[0.7, 0.3], [0.6, 0.4], [0.45, 0.55], [0.5, 0.5]], "float32")


def recorded(*attempts, batch=1, **options):
    """Records gradients of `brighter` at points (steps, rows, 2)."""
    x = np.repeat(X[:1], batch, 0)
    recorder = Recorder(x.shape, x.dtype, "linf", (0.0, 1.0))
    recorder.start(x, np.zeros(batch, int))
    logits = Logits(brighter).recorded(recorder)
    for points in attempts:
        gradient = input_gradient(logits)
        for point in points:
            gradient(tf.constant(point), np.zeros(len(point), int), **options)
    return recorder.path()


def test_counters_of_a_path_are_exact():
    path = recorded(PATH[:, None])
    assert path.gradients.tolist() == [4]
    assert path.zeros.tolist() == [0]
    # Only the third of the points is on the other side.
    assert path.nearest == pytest.approx([0.25])
    # The margins are -4, -2, 1 and 0, so all is over before the last two.
    assert path.rise.tolist() == [0]
    # Of -4, -2 and 1, the last two make 3 of 5.
    assert recorded(PATH[:3, None]).rise == pytest.approx([0.6])
    assert recorded(PATH[:1, None]).rise.tolist() == [0]


@pytest.mark.parametrize(
    ("steps", "window"), [(2, 2), (8, 2), (9, 3), (20, 5), slow(48, 10)]
)
def test_the_window_is_a_quarter_of_a_path_and_ten_at_most(steps, window):
    share = np.linspace(0, 0.2, steps, dtype="float32")
    points = X[0] + share[:, None] * np.array([-1, 1], "float32")
    path = recorded(points[:, None])
    assert path.rise == pytest.approx([(window - 1) / (steps - 1)], abs=1e-4)


def test_the_attempt_that_came_nearest_counts():
    # The second ends at once, and comes no nearer.
    path = recorded(PATH[:3, None], PATH[:1, None])
    assert path.rise == pytest.approx([0.6])
    assert path.gradients.tolist() == [4]


def test_copies_of_the_batch_are_one_example():
    copies = np.stack([PATH[:3], np.repeat(PATH[:1], 3, 0)], 1)
    path = recorded(copies)
    assert path.gradients.tolist() == [3]
    assert path.nearest == pytest.approx([0.25])
    assert path.rise == pytest.approx([0.6])


def test_inactive_examples_count_nothing():
    points = np.stack([PATH, PATH], 1)
    path = recorded(points, batch=2, active=tf.constant([True, False]))
    assert path.gradients.tolist() == [4, 0]
    assert path.nearest[1] == np.inf


def test_gradients_of_other_images_are_not_recorded():
    assert recorded(PATH[:, None], batch=2) is None
    assert recorded(PATH[:0, None]) is None


def of_counters(stages, natural=(), **counters):
    """Returns the indicators of ten survivors with these counters."""
    held = diagnosis.counters(stages, 10) | {
        "path_gradients": np.full((stages, 10), 8.0),
        "path_rise": np.zeros((stages, 10)),
        "gradient_free": np.zeros(stages, bool),
        "nan_gradients": np.array(0),
        "unconstrained": np.zeros(2, int),
    }
    for name, values in counters.items():
        held[f"path_{name}"][:] = values
    attack = {"name": "pgd", "options": {}}
    survives = np.full(10, -1)
    found = diagnosis.of_row(attack, [held], survives, 0.1, natural)
    return {item["indicator"]: item["count"] for item in found}


TWO = [[1.0], [0.0]]
RARE = np.array([1.0] + 9 * [0.0])
THIRD = np.array(3 * [1.0] + 7 * [0.0])
NOISY = {"randomness": np.array(1.0), "tolerance": np.array(0.1)}


@pytest.mark.parametrize(
    ("found", "arguments"),
    [
        ({}, {"stages": 1}),
        ({"unavailable_gradients": 10}, {"stages": 1, "zeros": 4}),
        ({}, {"stages": 1, "zeros": 3}),
        # One of two stages that had gradients, or came to its end, is enough.
        ({}, {"stages": 2, "zeros": 8 * np.array(TWO)}),
        ({"unavailable_gradients": 10}, {"stages": 2, "zeros": 8}),
        ({"incomplete_optimization": 10}, {"stages": 1, "rise": 0.06}),
        ({}, {"stages": 1, "rise": 0.04}),
        ({}, {"stages": 2, "rise": TWO}),
        ({"incomplete_optimization": 10}, {"stages": 2, "rise": 1.0}),
        # A stage that searches along the boundary has no rise.
        ({}, {"stages": 1, "rise": np.nan}),
        ({}, {"stages": 1, "rise": RARE}),
        ({"incomplete_optimization": 3}, {"stages": 1, "rise": THIRD}),
        ({"unavailable_gradients": 1}, {"stages": 1, "zeros": 8 * RARE}),
        (
            {"silent_success": 1},
            {"stages": 1, "nearest": 1 - 0.9 * np.eye(10)[0]},
        ),
        ({"silent_success": 10}, {"stages": 2, "nearest": np.array(TWO)}),
        ({}, {"stages": 1, "nearest": 0.11}),
        # Another draw of a random model would not be broken.
        ({}, {"stages": 1, "nearest": 0.0, "natural": [NOISY]}),
    ],
)
def test_thresholds_are_those_of_the_constants(found, arguments):
    assert of_counters(**arguments) == found


@pytest.mark.parametrize("how", [{"rows": 4}, slow({"jit_loops": True})])
@pytest.mark.parametrize(
    "name", ["pgd:steps=6:restarts=2", slow("apgd_t:steps=6")]
)
def test_a_path_in_a_graph_is_that_of_separate_steps(name, how):
    """Blocks, and loops that XLA compiles, as on GPUs, change no counter."""
    attack = tfsam.attacks.get(name, epsilon=0.1)
    w = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    y = np.argmax(X @ w, axis=1)

    def path(**how):
        recorder = Recorder(X.shape, X.dtype, "linf", (0.0, 1.0))
        recorder.start(X, y)
        compiled = how.get("jit_loops", False)
        logits = Logits(lambda x: x @ w, jit_compile=compiled, **how)
        logits = logits.recorded(recorder)
        run = tf.function(lambda x: attack(logits, x, y, 0), autograph=False)
        run(tf.constant(X))
        return recorder.path()

    expected = path()
    assert expected.gradients.max() > 0
    for found, counter in zip(path(**how), expected, strict=True):
        np.testing.assert_allclose(found, counter, rtol=1e-3, atol=1e-4)


SWEEP = [0.02, 0.1]
# A loss or a path of each kind on both networks.
STANDARD = ["pgd_cw", "apgd_ce:steps=20", "fab_t:steps=5", "cleverhans_pgd"]
ADVERSARIAL = [
    *("pgd", "pgd_t", "apgd_t:steps=20:targets=3"),
    *("fmn:steps=20", "foolbox:LinfPGD"),
]


@pytest.mark.parametrize(
    ("weights", "attacks"),
    [
        ("standard", ["pgd", "fgsm"]),
        slow("standard", STANDARD),
        slow("adversarial", ADVERSARIAL),
    ],
    ids=["plain", "standard", "adversarial"],
)
def test_a_plain_network_raises_no_alarm_and_verdicts_are_the_same(
    digits, tmp_path, attacks, weights
):
    data = digits[0][1200:1296], digits[1][1200:1296]
    model = network(weights)

    def measured(folder, **options):
        return evaluate(
            *(model, attacks, SWEEP, data),
            **{"batch_size": 48, "workdir": tmp_path / folder} | options,
        )

    found = measured("a")
    for row in found["robust"]:
        assert row["diagnosis"] in ([], "not recorded"), row
    plain = measured("b", diagnose=False)
    assert all("diagnosis" not in row for row in plain["robust"])
    others = verdicts.load(tmp_path / "b")
    for key, verdict in verdicts.load(tmp_path / "a").items():
        np.testing.assert_array_equal(verdict, others[key])
    without = [
        {k: v for k, v in row.items() if k not in ("diagnosis", "seconds")}
        for row in found["robust"]
    ]
    assert without == [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in plain["robust"]
    ]
    # The record of a diagnosed evaluation has all of it, and of another none.
    assert measured("a", diagnose=False) == found
    assert all(
        row["diagnosis"] == "not recorded" for row in measured("b")["robust"]
    )
