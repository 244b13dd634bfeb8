"""The second evaluation of a network traces nothing and is never stale."""

import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import counted_graphs

import tfsam
from tfsam.evaluation import kept_workers

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(8, 4, 4, 1)).astype("float32")
Y = np.arange(8) % 3


def network(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input(X.shape[1:]), *layers])


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    kept_workers._kept.clear()
    yield
    kept_workers._kept.clear()


def evaluate(model, attacks=("pgd",), epsilons=(0.1,), **options):
    result = tfsam.evaluate(
        model,
        (X, Y),
        list(attacks),
        epsilons=list(epsilons),
        batch_size=8,
        **options,
    )
    rows = result["robust"]
    assert not any("error" in row for row in rows)
    for row in rows:
        row.pop("seconds")
    return result


def test_nothing_is_traced_again():
    model = network()
    attacks = [("pgd", {"steps": 2}), "fgsm"]
    first = evaluate(model, attacks)
    with counted_graphs() as graphs:
        assert evaluate(model, attacks) == first
        # Other attacks and epsilons share the common traces.
        evaluate(model, ["fgsm"], [0.05])
        assert not graphs
    with counted_graphs() as graphs:
        evaluate(model, [("pgd", {"steps": 3})])
        assert graphs


def test_weights_are_those_of_the_second_evaluation():
    model, other = network(0), network(1)
    expected = evaluate(other)
    evaluate(model)
    model.set_weights(other.get_weights())
    with counted_graphs() as graphs:
        assert evaluate(model) == expected
        assert not graphs


def test_changed_layers_and_functions_are_traced_again():
    model, scale = network(), np.ones(1, "float32")

    def negated(x):
        return scale * model(x)

    before = evaluate(negated)
    scale[0] = -1.0
    after = evaluate(negated)
    assert before["natural"] != after["natural"]
    first = evaluate(model)
    assert first["natural"] == before["natural"]
    model.layers[-1].activation = lambda x: -x
    assert evaluate(model)["natural"] == after["natural"]


def test_a_kept_worker_holds_neither_the_network_nor_the_data():
    model = network()
    evaluate(model)
    assert len(kept_workers._kept) == 1
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    assert not kept_workers._kept


def test_few_workers_are_kept(monkeypatch):
    monkeypatch.setattr(kept_workers, "_MOST", 1)
    models = [network(), network()]
    for model in models:
        evaluate(model, attacks=[])
    assert len(kept_workers._kept) == 1


def test_a_failed_evaluation_keeps_nothing():
    class Failing(tfsam.PGD):
        def perturb(self, logits_fn, x, y, seeds):
            raise RuntimeError

    model = network()
    with pytest.raises(RuntimeError):
        evaluate(model, [Failing], strict=True)
    assert not kept_workers._kept


def test_networks_on_given_devices_are_not_kept():
    evaluate(network(), devices=["CPU:0"])
    assert not kept_workers._kept
