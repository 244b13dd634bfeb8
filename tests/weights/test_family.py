"""Tests of the sharpness-aware family in training: identities and state."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow

import tfsam
from tfsam.attacks import losses

RNG = np.random.default_rng(0)
X = RNG.random((16, 6), dtype="float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RHO = 0.2


# A few small steps are quicker than tracing one; the slow tests use all modes.
MODES = ["eager", *map(slow, ("graph", "xla"))]


def some(names, chosen):
    """Returns all names; marks the names that are not chosen as slow."""
    return [name if name in chosen else slow(name) for name in names]


def network(batch_norm=True):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5)]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization())
    layers += [keras.layers.Activation("tanh"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *layers])


def made(
    perturb_weights=None, mode="eager", batch_norm=True, momentum=0.9, **kwargs
):
    kwargs.setdefault("seed", 0)
    model = tfsam.RobustModel(
        network(batch_norm), perturb_weights=perturb_weights, **kwargs
    )
    model.compile(
        tfsam.SGD(0.5, momentum=momentum),
        LOSS,
        jit_compile=mode == "xla",
        run_eagerly=mode == "eager",
    )
    return model


def fitted(model, steps=4):
    model.fit(X, Y, batch_size=8, epochs=steps // 2, shuffle=False, verbose=0)
    return model


def trained(perturb_weights=None, mode="eager", **kwargs):
    return fitted(made(perturb_weights, mode, **kwargs))


def difference(one, other):
    """Returns the largest difference of all weights and statistics."""
    return max(
        np.abs(a - b).max()
        for a, b in zip(
            one.network.get_weights(), other.network.get_weights(), strict=True
        )
    )


@pytest.fixture(scope="module")
def sam():
    return trained(tfsam.SAM(RHO))


@pytest.fixture(scope="module")
def standard():
    return trained()


SAME_AS_SAM = {
    "FSAM(eta=0)": tfsam.FSAM(RHO, eta=0),
    "GSAM(alpha=0)": tfsam.GSAM(RHO, alpha=0),
    "GSAM(alpha=0, rho_min=rho)": tfsam.GSAM(RHO, alpha=0, rho_min=RHO),
    "LookSAM(1)": tfsam.LookSAM(RHO, every=1),
    "ESAM(1, 1)": tfsam.ESAM(RHO, weight_fraction=1, sample_fraction=1),
    "SSAM-F(0)": tfsam.SSAM(RHO, sparsity=0, refresh_every=2, samples=4),
    "SSAM-D(0)": tfsam.SSAM(RHO, sparsity=0, mask="dynamic", refresh_every=2),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name",
    some(
        SAME_AS_SAM,
        (
            "FSAM(eta=0)",
            "LookSAM(1)",
            "ESAM(1, 1)",
            "SSAM-F(0)",
        ),
    ),
)
def test_they_are_sam(name, mode, sam):
    other = trained(SAME_AS_SAM[name], mode)
    assert difference(other, sam) < (1e-7 if mode == "eager" else 1e-6)


SAME_AS_STANDARD = {
    "SAM": tfsam.SAM(0),
    "SAM, three steps": tfsam.SAM(0, steps=3),
    "SAM, unnormalised": tfsam.SAM(0, normalize=False),
    "ASAM": tfsam.ASAM(0),
    "FSAM": tfsam.FSAM(0),
    "GSAM": tfsam.GSAM(0),
    "LookSAM": tfsam.LookSAM(0, every=2),
    "ESAM": tfsam.ESAM(0, sample_fraction=1),
    "SSAM-F": tfsam.SSAM(0, refresh_every=2, samples=4),
    "SSAM-D": tfsam.SSAM(0, mask="dynamic", refresh_every=2),
    "SSAM, empty mask": tfsam.SSAM(
        RHO, sparsity=1, mask="dynamic", refresh_every=2
    ),
    "AWP": tfsam.AWP(0),
    "AWP, warm-up": tfsam.AWP(0.1, warmup_steps=100),
}


# In a graph, only methods with a choice, a loop or a mask in the step, which a
# graph runs otherwise. Eagerly, all methods are compared below; in XLA, those
# that are SAM are compared above.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["SAM, three steps", "LookSAM", "ESAM", "SSAM-F", "SSAM-D", "AWP, warm-up"],
)
def test_without_a_radius_they_are_standard_training(name, standard):
    method = SAME_AS_STANDARD[name]
    assert difference(trained(method, "graph"), standard) < 1e-6


@pytest.mark.slow
def test_without_a_radius_eager_training_is_standard_to_the_bit():
    standard = trained(None, "eager")
    for method in SAME_AS_STANDARD.values():
        assert difference(trained(method, "eager"), standard) == 0, method


CHANGES = {
    "SAM": tfsam.SAM(RHO),
    "SAM, three steps": tfsam.SAM(RHO, steps=3),
    "ASAM": tfsam.ASAM(1.0),
    "FSAM": tfsam.FSAM(RHO, eta=1e3),
    "GSAM": tfsam.GSAM(RHO),
    "LookSAM": tfsam.LookSAM(RHO, every=2),
    "ESAM": tfsam.ESAM(RHO),
    "SSAM-F": tfsam.SSAM(RHO, sparsity=0.5, refresh_every=2, samples=4),
    "SSAM-D": tfsam.SSAM(RHO, sparsity=0.5, mask="dynamic", refresh_every=2),
    "AWP": tfsam.AWP(0.1),
    "FriendlySAM": tfsam.FriendlySAM(RHO),
    "VaSSO": tfsam.VaSSO(RHO, theta=0.5),
    "MSAM": tfsam.MSAM(RHO),
    "WSAM": tfsam.WSAM(RHO),
    "SAM-ON": tfsam.SAM(RHO, layers="normalization"),
}


# The others are compared with their rules in NumPy, which differ.
@pytest.mark.parametrize("name", some(CHANGES, ("FSAM", "SSAM-F")))
def test_each_does_something_of_its_own(name, sam, standard):
    found = trained(CHANGES[name])
    assert difference(found, standard) > 1e-4
    assert name == "SAM" or difference(found, sam) > 1e-4


@pytest.mark.parametrize(
    "name", ["ESAM", *map(slow, ("LookSAM", "SSAM-F", "MSAM", "AWP"))]
)
def test_it_trains_with_an_attack(name):
    """Trains with an attack, and checks that all weights stay finite."""
    attack = tfsam.PGD(0.1, steps=2)
    model = trained(CHANGES[name], perturb_inputs=attack)
    weights = np.concatenate([w.ravel() for w in model.network.get_weights()])
    assert np.isfinite(weights).all()


# These have a state, or count steps, as a schedule of rho and momentum do.
KEPT = ("LookSAM", "SSAM-D", "GSAM", "FriendlySAM", "VaSSO", "MSAM", "AWP")


@pytest.mark.parametrize("name", ["SSAM-F", *map(slow, KEPT)])
def test_state_is_saved_and_training_goes_on(name, tmp_path):
    """Four steps equal two steps, saving and loading, and two steps."""
    method = CHANGES[name]
    whole = fitted(made(method), 4)
    half = fitted(made(method), 2)
    half.save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    assert repr(again.perturb_weights) == repr(method)
    for one, other in zip(
        again.perturbation_state, half.perturbation_state, strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert difference(fitted(again, 2), whole) == 0


def by_hand(perturbed, model, learning_rate=0.5, x=X, y=Y):
    """Makes a step of gradient descent with the gradient at `perturbed`."""
    start = model.network
    clean = start.get_weights()

    def gradients(some=slice(None)):
        with tf.GradientTape() as tape:
            value = LOSS(y[some], start(x[some], training=True))
        return [
            g.numpy() for g in tape.gradient(value, start.trainable_weights)
        ]

    def losses_now():
        return losses.cross_entropy(start(x, training=True), y).numpy()

    moved, final = perturbed(clean, gradients, losses_now, start.set_weights)
    start.set_weights(moved)
    slope = final()
    return [w - learning_rate * d for w, d in zip(clean, slope, strict=True)]


def one_step(method, **kwargs):
    model = made(method, batch_norm=False, momentum=0, **kwargs)
    model.fit(X, Y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    return model.network.get_weights()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def flat(arrays):
    return np.concatenate([a.ravel() for a in arrays])


def test_m_sharpness_by_hand():
    """Each part has its own perturbation; parts may differ in size."""
    edges = (0, 5, 10, 16)
    totals = [0, 0, 0, 0]
    for begin, end in itertools.pairwise(edges):
        fresh = made(batch_norm=False)

        def step(w, gradients, *_, some=slice(begin, end)):
            g = gradients(some)
            scale = RHO / np.linalg.norm(flat(g))
            moved = [v + scale * d for v, d in zip(w, g, strict=True)]
            return moved, lambda: gradients(some)

        share = (end - begin) / 16
        totals = [
            t + share * w
            for t, w in zip(totals, by_hand(step, fresh), strict=True)
        ]
    assert_same(one_step(tfsam.SAM(RHO), sub_batches=3), totals)


@pytest.mark.parametrize("mode", MODES)
def test_m_sharpness_of_one_part_or_of_equal_parts_is_sam(mode):
    def run(sub_batches, x, y):
        model = made(tfsam.SAM(RHO), sub_batches=sub_batches, batch_norm=False)
        model.compile(
            tfsam.SGD(0.5),
            LOSS,
            metrics=["accuracy"],
            jit_compile=mode == "xla",
            run_eagerly=mode == "eager",
        )
        history = model.fit(
            x, y, batch_size=16, epochs=3, shuffle=False, verbose=0
        )
        return model, history.history

    one, history = run(1, X[:8], Y[:8])
    twice = run(2, np.concatenate([X[:8]] * 2), np.concatenate([Y[:8]] * 2))
    assert difference(one, twice[0]) < 1e-6
    for key, values in history.items():
        np.testing.assert_allclose(twice[1][key], values, rtol=1e-5)


def test_m_sharpness_moves_the_statistics_once_a_part():
    model = made(tfsam.SAM(RHO), sub_batches=2)
    layer = model.network.layers[1]
    features = model.network.layers[0](X).numpy()
    model.fit(X, Y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    first, second = features[:8].mean(axis=0), features[8:].mean(axis=0)
    np.testing.assert_allclose(
        layer.moving_mean, 0.99 * 0.01 * first + 0.01 * second, atol=1e-6
    )


def test_a_batch_smaller_than_its_parts_has_a_part_an_example():
    """Splits batches of 6, 6 and 4 into 5 parts; the last has only 4."""

    def run(*counts):
        model = made(tfsam.SAM(RHO), sub_batches=counts[0], batch_norm=False)
        for count, start in zip(counts, (0, 6, 12), strict=True):
            model.sub_batches = count
            model.train_on_batch(X[start : start + 6], Y[start : start + 6])
        return model

    assert difference(run(5, 5, 5), run(5, 5, 4)) < 1e-6


def test_looksam_s_cheap_steps_are_standard_without_alpha():
    method = tfsam.LookSAM(RHO, every=2, alpha=0)
    one = fitted(made(method, momentum=0), 2)
    other = made(tfsam.SAM(RHO), momentum=0)
    other.train_on_batch(X[:8], Y[:8])
    other.perturb_weights = None
    other.train_on_batch(X[8:], Y[8:])
    assert difference(one, other) < 1e-6


def test_looksam_makes_one_second_pass_in_so_many_steps():
    """Counts the second passes in the graph that runs."""
    calls = tf.Variable(0)

    class Counting(tfsam.LookSAM):
        def perturb(self, weights, gradients, state, step):
            calls.assign_add(1)
            return super().perturb(weights, gradients, state, step)

    model = made(Counting(RHO, every=3), "graph")
    fitted(model, 8)
    assert int(calls) == 3  # Steps 0, 3 and 6.


def test_ssam_f_s_fisher_information_is_that_of_single_examples():
    """Uses inference mode: BatchNorm with its moving statistics."""
    method = tfsam.SSAM(RHO, sparsity=0.5, refresh_every=100, samples=17)
    model = made(method)
    net = model.network
    expected = 0
    for x, y in zip(X, Y, strict=True):
        with tf.GradientTape() as tape:
            loss = LOSS(y[None], net(x[None], training=False))
        gradients = tape.gradient(loss, net.trainable_weights)
        expected = expected + flat([g.numpy() for g in gradients]) ** 2
    model.fit(X, Y, batch_size=16, epochs=1, shuffle=False, verbose=0)
    _, fisher, count = model.perturbation_state
    assert float(count) == 16
    np.testing.assert_allclose(fisher, expected, rtol=1e-4, atol=1e-9)
    # After one more example, the mask is made.
    fitted(model, 2)
    mask = model.perturbation_state[0].numpy()
    assert mask.sum() == len(mask) // 2
    assert float(model.perturbation_state[2]) == -1


def test_ssam_f_s_sum_goes_on_past_the_next_due_step():
    """17 examples need three batches of 8; a mask is due every 2 steps."""
    method = tfsam.SSAM(RHO, sparsity=0.5, refresh_every=2, samples=17)
    model = made(method, "graph")
    counts = []
    for start in (0, 8, 0, 8, 0):
        model.train_on_batch(X[start : start + 8], Y[start : start + 8])
        counts.append(float(model.perturbation_state[2]))
    # At step 3 the sum is complete; step 4 begins another.
    assert counts == [8, 16, 24, -1, 8]
    mask = model.perturbation_state[0].numpy()
    assert mask.sum() == len(mask) // 2


@pytest.mark.parametrize("method", [tfsam.ESAM(RHO), tfsam.SSAM(RHO)])
@pytest.mark.parametrize(
    "outputs, y, loss",
    [
        (1, X[:, :1], "mse"),
        (3, X[:, :2], lambda y, y_pred: tf.reduce_mean(y_pred, -1)),
    ],
)
def test_what_weighs_examples_refuses_what_is_no_class_logits(
    method, outputs, y, loss
):
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(outputs)])
    model = tfsam.RobustModel(network, perturb_weights=method)
    model.compile(tfsam.SGD(0.1), loss)
    with pytest.raises(ValueError, match=r"works on classes.* Received: "):
        model.train_on_batch(X, y)


def test_m_sharpness_refuses_a_sum():
    """Divided by the number of parts, the loss would change at rho = 0."""
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="sum"
    )
    model = made(tfsam.SAM(0.0), sub_batches=2)
    model.compile(tfsam.SGD(0.5), loss)
    with pytest.raises(ValueError, match="reduction=sum, sub_batches=2"):
        model.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sub_batches": 2}, "sub_batches needs perturb_weights"),
        ({"sub_batches": 0}, "Received: sub_batches=0"),
        ({"exclude": None}, "Received: exclude=None"),
        ({"exclude": "("}, r"Received: exclude=\("),
        ({"exclude": [3]}, r"Received: exclude=\[3\]"),
        ({"seed": "a"}, "Received: seed=a"),
        ({"seed": -1}, "Received: seed=-1"),
        (
            {"sub_batches": 2, "perturb_weights": tfsam.LookSAM(RHO)},
            "keeps a state .* Received: sub_batches=2",
        ),
        (
            {"sub_batches": 2, "perturb_weights": tfsam.SSAM(RHO)},
            "keeps a state .* Received: sub_batches=2",
        ),
        (
            {"sub_batches": 2, "perturb_weights": tfsam.FriendlySAM(RHO)},
            "keeps a state .* Received: sub_batches=2",
        ),
        ({"objective": tfsam.TRADES()}, "TRADES.* Received: perturb_inputs"),
        ({"attack_mode": "training"}, "Received: attack_mode=training"),
        ({"attack_mode": "eval"}, "Received: attack_mode=eval"),
        ({"epsilon_warmup_steps": 3}, "Received: perturb_inputs=None"),
        (
            {
                "epsilon_warmup_steps": 3,
                "perturb_inputs": lambda logits_fn, x, y, seed: x,
            },
            "tensor.* Received: perturb_inputs=<function",
        ),
    ],
)
def test_what_does_not_combine_says_so_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfsam.RobustModel(network(), **arguments)


def test_esam_needs_the_losses_of_the_examples():
    def objective(model, batch):
        y_pred = model(batch.x, training=True)
        return model.compute_loss(batch.x, batch.y, y_pred), y_pred

    model = made(tfsam.ESAM(RHO), objective=objective)
    with pytest.raises(ValueError, match="each example's loss as its third"):
        model.train_on_batch(X, Y)


# Two devices: the state is the same on both.


def replicated(method, devices, sharpness="per_replica", **kwargs):
    strategy = tf.distribute.get_strategy()
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(devices)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
    with strategy.scope():
        model = made(
            *(method, "graph" if devices > 1 else "eager"),
            batch_norm=False,
            sharpness=sharpness,
            **kwargs,
        )
    data = tf.data.Dataset.from_tensors((X, Y)).unbatch().batch(16)
    model.fit(data, epochs=4, verbose=0)
    return model


STATEFUL = {
    "LookSAM": tfsam.LookSAM(RHO, every=2),
    "SSAM-F": tfsam.SSAM(RHO, sparsity=0.5, refresh_every=3, samples=4),
    "SSAM-D": tfsam.SSAM(RHO, sparsity=0.5, mask="dynamic", refresh_every=2),
    "GSAM": tfsam.GSAM(RHO, rho_min=0.1),
    "FriendlySAM": tfsam.FriendlySAM(RHO),
    "VaSSO": tfsam.VaSSO(RHO, theta=0.5),
}
STATELESS = {
    # ESAM selects on each replica; replicas share only the masks.
    "ESAM": tfsam.ESAM(RHO, sample_fraction=1),
    "FSAM": tfsam.FSAM(RHO, eta=1e3),
    "AWP": tfsam.AWP(0.1),
    "MSAM": tfsam.MSAM(RHO),
    "WSAM": tfsam.WSAM(RHO),
    "WSAM, coupled": tfsam.WSAM(RHO, decoupled=False),
}


@pytest.mark.parametrize("name", some(STATEFUL, ("VaSSO",)))
def test_replicas_agree_on_what_is_kept(name):
    model = replicated(STATEFUL[name], 2)
    for variable in [*model.perturbation_state, *model.trainable_variables]:
        one, other = (v.numpy() for v in variable.value.values)
        np.testing.assert_array_equal(one, other)
    if name.startswith("SSAM"):
        mask = model.perturbation_state[0].numpy()
        assert set(mask) == {0, 1}
        assert mask.sum() == len(mask) // 2


# By default SAM's global sharpness is compared with the devices. FSAM and AWP
# are left out: like SAM, they have no more than the gradient of all replicas.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in (*STATEFUL, *STATELESS) if n not in ("FSAM", "AWP")]
)
def test_global_sharpness_makes_two_replicas_one(name):
    method = (STATEFUL | STATELESS)[name]
    one = replicated(method, 1)
    two = replicated(method, 2, "global")
    assert difference(one, two) < 1e-5
    for a, b in zip(
        one.perturbation_state, two.perturbation_state, strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


# That a replica's sharpness is its own is tested by default with the devices.
@pytest.mark.slow
def test_replicas_of_m_sharpness_are_its_parts():
    """Per-replica SAM on two devices equals SAM in two parts on one."""
    two = replicated(tfsam.SAM(RHO), 2)
    parts = replicated(tfsam.SAM(RHO), 1, sub_batches=2)
    assert difference(two, parts) < 1e-6


@pytest.mark.slow
def test_ssam_f_on_a_residual_network_of_few_channels():
    """Processes single images, on which strided 1x1 convolutions fail."""
    x = RNG.random((4, 32, 32, 3)).astype("float32")
    model = tfsam.RobustModel(
        tfsam.networks.preact_resnet8(3, width=4),
        perturb_weights=tfsam.SSAM(RHO, samples=4),
    )
    model.compile(tfsam.SGD(0.1), LOSS)
    model.fit(x, np.arange(4) % 3, batch_size=4, epochs=2, verbose=0)
    mask, fisher, _ = model.perturbation_state
    assert np.isfinite(fisher).all()
    assert 0 < mask.numpy().mean() < 1
