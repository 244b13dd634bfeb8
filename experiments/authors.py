"""Differences between the paper authors' code and tfsam, and their effect.

  python -m experiments.authors --workdir=runs/authors

trains SAM, AT and AT+SAM on the digits: by tfsam's rule, with each of three
differences alone, and with all of them. It prints natural accuracy and accuracy
under PGD-10 over several seeds. Seeds, batches and noise are the same in every
row of a method. Results are kept in the folder, and the same command resumes
where it stopped.

The code of "Sharpness-Aware Minimization Alone can Improve Adversarial
Robustness" (Wei et al., 2023) differs from tfsam in the following points.

Measured here, as switches of `AuthorsModel`:

- SAM's second pass moves BatchNorm's running statistics as the first one does,
  so more than half of each update comes from the perturbed weights
  (`second_pass_statistics`).
- The training attack runs in training mode: it uses BatchNorm's statistics of
  the batch, and each of its passes moves the running statistics, on inputs that
  are partly perturbed (`attack_statistics`).
- The attack's gradients with respect to the weights are never cleared before
  SAM's first step, so the ascent follows a sum of K + 1 gradients
  (`polluted_ascent`).

Not measured, in training:

- The attack climbs the batch's mean loss, tfsam's each example's own. The
  directions are equal, but an l2 gradient is divided by its norm + 1e-10, so
  steps are shorter where the network is certain.
- The l2 random start has a radius uniform in [0, epsilon]. tfsam's is uniform
  in the ball, so in many dimensions it lies near the edge. The authors divide
  its direction by its norm without a guard, and their l2 projection lands
  slightly inside the ball.
- BatchNorm's running variance is PyTorch's, unbiased; Keras's is biased.
- The attack computes unused weight gradients: the cost of three forward passes
  per step instead of two.
- SAM is the default optimizer, so adversarial training without `--opt SGD` is
  AT+SAM. The l2 attack has the l-inf attack's default sizes, which are too
  small for it.
- There is no seed and no validation part, and the weights of each epoch replace
  the previous ones.

Not measured, in bookkeeping:

- Training loss and accuracy are divided by 60 000 images, although there are
  50 000: a perfect accuracy is logged as 0.83.
- The robust accuracy of each epoch is logged as 0, because the loop continues
  before it is computed; its arguments are unused.
- CIFAR-10 and CIFAR-100 write logs and figures under the same names, into
  folders that must exist. Training needs pandas and Matplotlib.
- The attacks cannot be imported without a GPU, because CIFAR-100's statistics
  are moved there on import.

Not measured, in evaluation:

- On CIFAR-100 the attack sees the network through CIFAR-100's normalization,
  and its result is classified through CIFAR-10's. An attack without a given
  normalization silently uses CIFAR-10's.
- Natural accuracy comes from the training log, with the correct normalization:
  on CIFAR-100 it cannot be compared with the robust accuracies.
- The only attack is PGD-10 from one random start without a seed.
- Weight gradients are computed and accumulated, which only costs time.

An adaptive SAM and a switch for the attack's random start exist but are unused.
"""

import pathlib
import statistics
import sys
import time
from typing import Any
from typing import NamedTuple

import keras
import tensorflow as tf
from absl import flags

import tfsam
from experiments import command
from tfsam import geometry
from tfsam.attacks.base import example_seeds
from tfsam.attacks.gradient import random_start
from tfsam.attacks.losses import cross_entropy
from tfsam.data.batches import training_batches
from tfsam.support import files
from tfsam.support.pixels import assert_inside
from tfsam.support.rescaling import flattened
from tfsam.training.stateless import dense
from tfsam.training.trainer import replicas

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/authors", "Folder of the results.", flag_values=FLAGS
)
_SEEDS = flags.DEFINE_integer(
    "seeds", 3, "Seeds, from 0 on.", lower_bound=1, flag_values=FLAGS
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 10, "Epochs of training.", lower_bound=1, flag_values=FLAGS
)


class Attacked(NamedTuple):
    """The result of a training attack.

    Attributes:
        x_adv: the last iterate.
        state: the other variables' values, after the attack.
        leaked: its gradients with respect to the weights, summed over iterates.
    """

    x_adv: Any
    state: Any
    leaked: Any


class AuthorsModel(tfsam.RobustModel):
    """A `RobustModel` with the differences of the paper authors' code.

    Each switch is one difference, True as in their code; all False, it is
    `RobustModel`. It trains on one device. Save its `network`, not itself.

    Args:
        network: see `RobustModel`.
        perturb_inputs: see `RobustModel`.
        perturb_weights: see `RobustModel`.
        second_pass_statistics: SAM's second pass moves BatchNorm's running
            statistics again, at the perturbed weights.
        attack_statistics: the attack runs in training mode, and each of its
            forward passes moves the running statistics.
        polluted_ascent: SAM ascends along its own gradient plus the attack's:
            of the batch's mean cross-entropy, by the weights, at each of the
            attack's iterates but the last. The descent is clean.
        seed: see `RobustModel`.

    Raises:
        ValueError: if a switch is on without the plain `tfsam.SAM` or
            `tfsam.PGD`, or the BatchNorm, that it is about; or for more than
            one replica.
    """

    def __init__(
        self,
        network,
        perturb_inputs=None,
        perturb_weights=None,
        *,
        second_pass_statistics=False,
        attack_statistics=False,
        polluted_ascent=False,
        seed=None,
    ):
        super().__init__(network, perturb_inputs, perturb_weights, seed=seed)
        self.second_pass_statistics = bool(second_pass_statistics)
        self.attack_statistics = bool(attack_statistics)
        self.polluted_ascent = bool(polluted_ascent)
        self._check_switches()

    def _perturbed_inputs(self, weights, state, x, y, count, seed):
        """Attacks at w; the `Attacked` travels in place of x_adv."""
        if not (self.attack_statistics or self.polluted_ascent):
            x_adv = super()._perturbed_inputs(weights, state, x, y, count, seed)
            return Attacked(x_adv, state, [tf.zeros_like(w) for w in weights])
        attack = self.perturb_inputs
        step_size = attack.step_size
        if step_size is None:
            step_size = geometry.default_step(attack.epsilon, attack.norm)
        x = x_adv = assert_inside(x, attack.bounds)
        if attack.random_start:
            seeds = example_seeds(seed, tf.shape(x)[0])
            x_adv = random_start(attack, x, seeds)
        leaked = [tf.zeros_like(w) for w in weights]
        gradients = self._compiled(self._attack_gradients)
        for _ in range(attack.steps):
            slope, by_weights, state = gradients(weights, state, x_adv, y)
            leaked = [a + b for a, b in zip(leaked, by_weights, strict=True)]
            moved = x_adv + step_size * geometry.steepest(slope, attack.norm)
            offset = geometry.project(moved - x, attack.epsilon, attack.norm)
            x_adv = attack.clip(x + offset)
        return Attacked(x_adv, state, leaked)

    def _attack_gradients(self, weights, state, x_adv, y):
        """Returns gradients by pixels and by weights, and the state (pure).

        Gradients by pixels are of each example's loss, as PGD's; gradients by
        weights are of the batch's mean loss, and zero where nothing leaks.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_adv)
            if self.polluted_ascent:
                tape.watch(weights)
            with self._scope(weights, state) as scope:
                logits = self(x_adv, training=self.attack_statistics)
            loss = cross_entropy(tf.cast(logits, tf.float32), y)
            total = tf.reduce_sum(loss)
        slope, *by_weights = tape.gradient(total, [x_adv, *weights])
        batch = tf.cast(tf.shape(y)[0], tf.float32)
        leaked = [
            g / tf.cast(batch, g.dtype) for g in dense(by_weights, weights)
        ]
        others, state = self._other_variables(), list(state)
        for position in self._statistics():
            new = scope.get_current_value(others[position])
            state[position] = tf.convert_to_tensor(new)
        return slope, leaked, state

    def _sharpened(self, weights, state, batch, step):
        """Returns the pass at w, with the gradients of the pass at w + e."""
        x_adv, state, leaked = batch.x_adv
        batch = batch._replace(x_adv=x_adv)
        if not (self.second_pass_statistics or self.polluted_ascent):
            return super()._sharpened(weights, state, batch, step)
        scale = self.optimizer.scale_loss(tf.ones(()))
        gradient = self._compiled(self._pass)
        first = gradient(weights, state, batch, scale)
        ascent = [
            g / tf.cast(scale, g.dtype) + other
            for g, other in zip(
                dense(first.gradients, weights), leaked, strict=True
            )
        ]
        moved, _ = self.perturb_weights.perturb(weights, ascent, (), step)
        again = self._statistics() if self.second_pass_statistics else []
        state = list(state)
        for position in again:
            state[position] = first.updates[str(position)]
        second = gradient(moved, state, batch, scale)
        updates = {str(p): second.updates[str(p)] for p in again}
        return first._replace(
            gradients=second.gradients, updates=first.updates | updates
        )

    def _statistics(self):
        """Returns positions of BatchNorm's statistics among other variables.

        Dropout's seeds and metrics are left to the clean rule.
        """
        running = {
            id(variable)
            for layer in _batch_norms(self.network)
            for variable in (layer.moving_mean, layer.moving_variance)
        }
        return [
            position
            for position, variable in enumerate(self._other_variables())
            if id(variable) in running
        ]

    def _check_switches(self):
        attack, method = self.perturb_inputs, self.perturb_weights
        if self.attack_statistics or self.polluted_ascent:
            if not _is_plain_pgd(attack):
                raise ValueError(
                    "attack_statistics and polluted_ascent need a tfsam.PGD of "
                    "one start, by cross-entropy, without early stop. "
                    f"Received: perturb_inputs={attack}"
                )
        if self.second_pass_statistics or self.polluted_ascent:
            if not _is_plain_sam(method):
                raise ValueError(
                    "second_pass_statistics and polluted_ascent need a "
                    "tfsam.SAM of one step, rho long. "
                    f"Received: perturb_weights={method}"
                )
        if self.second_pass_statistics or self.attack_statistics:
            if not _batch_norms(self.network):
                raise ValueError(
                    "second_pass_statistics and attack_statistics need a "
                    "network with BatchNormalization that is trained. "
                    f"Received: network={self.network.name}"
                )
        if replicas() > 1:
            raise ValueError(
                "AuthorsModel trains on one device. "
                f"Received: replicas={replicas()}"
            )


def _is_plain_pgd(attack):
    return type(attack) is tfsam.PGD and repr(attack) == repr(
        tfsam.PGD(
            attack.epsilon,
            attack.norm,
            attack.steps,
            attack.step_size,
            bool(attack.random_start),
            attack.bounds,
        )
    )


def _is_plain_sam(method):
    return type(method) is tfsam.SAM and repr(method) == repr(
        tfsam.SAM(method.rho)
    )


def _batch_norms(network):
    """Yields BatchNorm layers with running statistics that training moves."""
    return [
        layer
        for layer in flattened(network)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]


class Method(NamedTuple):
    """A method of training, and the differences that it can have."""

    perturb_inputs: Any
    perturb_weights: Any
    switches: tuple[str, ...]

    def rows(self):
        """Returns the names of the rows and the switches that are on."""
        found = {"clean": (), **{switch: (switch,) for switch in self.switches}}
        return found if len(found) == 2 else found | {"all": self.switches}


_SAM, _PGD = tfsam.SAM(0.2), tfsam.PGD(0.1, steps=5)
METHODS = {
    "sam": Method(None, _SAM, ("second_pass_statistics",)),
    "at": Method(_PGD, None, ("attack_statistics",)),
    "at_sam": Method(
        _PGD,
        _SAM,
        ("second_pass_statistics", "attack_statistics", "polluted_ascent"),
    ),
}
EPSILONS = (0.05, 0.1)
COLUMNS = ("natural", *(f"linf {epsilon}" for epsilon in EPSILONS))
BATCH_SIZE = 128


def trained(images, method, switches, seed, epochs):
    """Trains a network by the digits preset's recipe.

    Args:
        images: a `tfsam.data.Images`.
        method: a `Method`.
        switches: names of the switches of `AuthorsModel` that are on.
        seed: seed of the weights, the batches and the noise.
        epochs: number of epochs, >= 1.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    network = tfsam.networks.preact_resnet8(
        len(images.class_names),
        input_shape=images.x_train.shape[1:],
        statistics=tfsam.data.statistics(images.x_train),
    )
    model = AuthorsModel(
        network,
        method.perturb_inputs,
        method.perturb_weights,
        **dict.fromkeys(switches, True),
        seed=seed,
    )
    steps = -(-len(images.x_train) // BATCH_SIZE)
    drops = [round(epochs * part) * steps - 1 for part in (0.75, 0.9)]
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(
        drops, [0.1, 0.01, 0.001]
    )
    model.compile(
        tfsam.SGD(rate, momentum=0.9, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = training_batches(
        images.x_train,
        images.y_train,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
    )
    model.fit(
        batches,
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # The data is shuffled, by the seed.
        verbose=0,
    )
    return network


def measured(images, method, switches, seed, epochs):
    """Returns accuracies in percent by column, and the seconds they took.

    Args:
        images: a `tfsam.data.Images`.
        method: a `Method`.
        switches: see `trained`.
        seed: see `trained`; also of the attack.
        epochs: see `trained`.
    """
    started = time.perf_counter()
    network = trained(images, method, switches, seed, epochs)
    found = tfsam.evaluate(
        network,
        (tfsam.data.as_float(images.x_test), images.y_test),
        attacks=["pgd"],
        norm="linf",
        epsilons=EPSILONS,
        seed=seed,
        strict=True,
    )
    rows = [found["natural"], *found["robust"]]
    accuracies = [100 * row["accuracy"] for row in rows]
    return {
        "epochs": epochs,
        **dict(zip(COLUMNS, accuracies, strict=True)),
        "seconds": time.perf_counter() - started,
    }


def results(images, workdir, seeds, epochs):
    """Measures the cells that are missing in the folder.

    Args:
        images: a `tfsam.data.Images`.
        workdir: the folder, a file a network.
        seeds: number of seeds, from 0 on.
        epochs: number of epochs.

    Returns:
        A dict from (method, row) to the results of `measured`, seed by seed.

    Raises:
        ValueError: if the folder holds networks trained for other epochs.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    found: dict = {}
    for seed in range(seeds):
        for name, method in METHODS.items():
            for row, switches in method.rows().items():
                path = workdir / f"{name}-{row}-{seed}.json"
                cell = files.read_json(path)
                if cell is None:
                    cell = measured(images, method, switches, seed, epochs)
                    files.write_json(path, cell)
                    print(f"{path.stem}: {cell['seconds']:.0f} s", flush=True)
                if cell["epochs"] != epochs:
                    raise ValueError(
                        f"{path} was trained for {cell['epochs']} epochs; "
                        f"choose another --workdir. Received: epochs={epochs}"
                    )
                found.setdefault((name, row), []).append(cell)
    return found


def table(found):
    """Returns the results as a Markdown table.

    Args:
        found: the result of `results`.
    """
    lines = [
        f"| method | difference | {' | '.join(COLUMNS)} |",
        "|" + "---|" * (2 + len(COLUMNS)),
    ]
    for (name, row), cells in found.items():
        entries = [
            _entry(cells, found[name, "clean"], column, row != "clean")
            for column in COLUMNS
        ]
        lines.append(f"| {name} | {row} | {' | '.join(entries)} |")
    return "\n".join(lines)


def _entry(cells, clean, column, compared):
    """Returns mean, deviation over seeds and difference to the clean rule."""
    values = [cell[column] for cell in cells]
    mean = statistics.mean(values)
    text = f"{mean:.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    if compared:
        text += f" ({mean - statistics.mean(c[column] for c in clean):+.1f})"
    return text


def main():
    """Measures the missing cells and prints the table."""
    found = results(
        tfsam.data.load("digits"),
        pathlib.Path(_WORKDIR.value),
        _SEEDS.value,
        _EPOCHS.value,
    )
    print(
        f"Accuracy in %: mean ± standard deviation over {_SEEDS.value} "
        "seeds, and the mean's difference to the clean rule's."
    )
    print(table(found))


if __name__ == "__main__":
    sys.exit(command.run(main, FLAGS))
