"""The training step: perturb the inputs, then the weights, then descend.

Sharpness-aware minimization and adversarial training are two answers to one
question (Wei et al., 2023): the loss is minimised where it is worst in a ball,
a ball around the weights for SAM, around the inputs for AT. Every method is a
choice of those two perturbations, and `RobustModel.train_step` is all of them:

    x_adv         = perturb_inputs(x)              at w, in inference mode
    loss, g       = gradient at w                  the loss that is reported
    w_adv         = perturb_weights(w, g)
    g_adv         = gradient at w_adv
    w             = optimizer(w, g_adv)            at w, never at w_adv

The perturbed weights are tensors, not variables: `keras.StatelessScope` reads
them in the variables' place. So there is nothing to restore, the optimizer, EMA
and checkpoints never see them, each replica may have its own, and the gradient
is a pure function that XLA may compile, with the optimizer, the metrics and the
collectives outside it. BatchNorm statistics and dropout seeds come from the
pass at w; both passes start from the same ones.
"""

import re
import warnings

import keras
import numpy as np
import tensorflow as tf

from tfsam import parts
from tfsam.attacks.base import check_scale
from tfsam.attacks.base import example_seeds
from tfsam.attacks.logits import Logits
from tfsam.support import devices
from tfsam.support.layers import warn_of_rescaling
from tfsam.support.pixels import assert_inside
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.training import compiled_losses
from tfsam.training.scope import Draws
from tfsam.training.stateless import Batch
from tfsam.training.stateless import PureModel
from tfsam.training.stateless import augmentation_layers
from tfsam.training.stateless import dense
from tfsam.training.stateless import replicas
from tfsam.training.stateless import symbolic
from tfsam.training.stateless import tensor
from tfsam.training.sub_batches import mean_of_parts
from tfsam.training.sub_batches import rows_of
from tfsam.weights.base import Step

SHARPNESS = ("per_replica", "global")
MODES = ("inference", "training")


@keras.saving.register_keras_serializable(package="tfsam")
class RobustModel(PureModel):
    """A Keras model whose training step perturbs inputs and weights.

    `compile`, `fit`, `evaluate`, `predict`, callbacks and saving are Keras's
    own. Both perturbations absent, it is Keras's own training step too.

    Args:
        network: any `keras.Model`; its own `compute_loss`, `compute_metrics`
            and `train_step` are not used. With `perturb_inputs` it takes one
            tensor of pixels, within the attack's bounds but for rounding, and
            returns one tensor: logits, where the loss is a cross-entropy.
        perturb_inputs: an attack, such as `tfsam.PGD(epsilon=8 / 255)`: any
            callable (logits_fn, x, y, seed) -> x_adv that can run in a graph.
            Metrics then are those of the perturbed inputs. An attack without a
            loss of its own climbs the compiled loss, example by example, be it
            of classes, of several tags, of a regression or of a segmentation.
            Examples of the loss's `ignore_class` are not attacked.
        perturb_weights: a `tfsam.WeightPerturbation`, such as
            `tfsam.SAM(rho=0.2)`.
        objective: a function (model, Batch) -> (loss, predictions), such as
            `tfsam.TRADES(beta=6)`. None is the compiled loss of the perturbed
            inputs, `tfsam.training.stateless.compiled_loss`.
        sharpness: under `tf.distribute`, "per_replica" perturbs the weights by
            each replica's own gradient (as Foret et al.), "global" by the
            gradient of the global batch, so that N replicas equal one.
        sub_batches: m-sharpness (Foret et al., 2021, section 4.1): the batch in
            so many parts, each with a perturbation of its own, by its own
            gradient and BatchNorm's statistics of its own; the mean of their
            gradients. >= 1; for perturbations that keep no state, and losses
            that are a mean over the batch.
        attack_mode: "inference", or "training" to attack with BatchNorm's
            statistics of the batch, dropout and random augmentation, drawn as
            in the pass at w. An attack never moves the running statistics.
            A network with layers of random augmentation needs "training": an
            attack that does not see them is weak, and a warning says so.
        epsilon_warmup_steps: training steps over which the attack's epsilon
            grows linearly from nothing, >= 0.
        exclude: regular expressions, or one; weights whose path one of them
            matches are trained, not perturbed. Like `sharpness`, it needs
            `perturb_weights`.
        seed: seed of the perturbations' randomness, an integer >= 0; None
            draws one, which `keras.utils.set_random_seed` fixes; several
            workers take the chief's.
        **kwargs: `name`, `trainable`, `dtype` of `keras.Model`. The policy is
            the network's if none is given.

    Attributes:
        network: the inner network; export and serve this one.

    Raises:
        ValueError: if an argument is out of its range, or given without the
            perturbation that it belongs to; under a strategy other than
            MirroredStrategy and MultiWorkerMirroredStrategy.
    """

    def __init__(
        self,
        network,
        perturb_inputs=None,
        perturb_weights=None,
        *,
        objective=None,
        sharpness="per_replica",
        sub_batches=1,
        attack_mode="inference",
        epsilon_warmup_steps=0,
        exclude=(),
        seed=None,
        **kwargs,
    ):
        if not isinstance(network, keras.Model):
            raise ValueError(
                "network must be a keras.Model that returns logits. "
                f"Received: network={network}"
            )
        devices.check_strategy(tf.distribute.get_strategy())
        _check_perturbations(perturb_inputs, perturb_weights)
        check_choice("sharpness", sharpness, SHARPNESS)
        check_choice("attack_mode", attack_mode, MODES)
        _warn_of_ignored_methods(network)
        if perturb_inputs is not None and attack_mode == "inference":
            _warn_of_augmentation(network)
        bounds = getattr(perturb_inputs, "bounds", None)
        warn_of_rescaling(network, bounds)
        kwargs.setdefault("dtype", network.dtype_policy)
        # Pixels stay in float32 under mixed precision: near 1 float16 has steps
        # of 4.9e-4, half of an attack's step. The network's layers cast them.
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.perturb_inputs = perturb_inputs
        self.perturb_weights = perturb_weights
        self.objective = objective
        # Keras would take these for the model's own, and save them.
        object.__setattr__(self, "_unlisted", [])
        object.__setattr__(self, "_without_gradient", set())
        object.__setattr__(self, "_draws", None)
        self._inspected = False
        self.sharpness = sharpness
        self.sub_batches = check_count("sub_batches", sub_batches, 1)
        self.attack_mode = attack_mode
        self.epsilon_warmup_steps = check_count(
            "epsilon_warmup_steps", epsilon_warmup_steps
        )
        self.exclude = _patterns(exclude)
        self._check_combination()
        if seed is None:  # Each worker would draw another.
            drawn = int(np.random.randint(2**31 - 1))
            seed = devices.of_chief(tf.distribute.get_strategy(), drawn)
        self.seed = check_count("seed", seed)
        if hasattr(network, "output_names"):
            self.output_names = network.output_names
        if network.built:
            self.build(getattr(network, "input_shape", None))

    def build(self, input_shape):
        """Builds the network and the variables of the perturbations' state."""
        if self.built:
            return
        if not self.network.built:
            # A subclassed network is built by being called.
            self.network(symbolic(input_shape))
        self._check_network()
        # Counts training steps; it keys the noise, so a resumed run goes on.
        self.step_count = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False,
            name="step_count",
        )  # fmt: skip
        specs = [
            tf.TensorSpec(v.shape, v.dtype) for v in self._perturbed_variables()
        ]
        self._state_of = [v.path for v in self._perturbed_variables()]
        init = getattr(self.perturb_weights, "init", None)
        # A network without an Input is built while Keras traces it: a value
        # made in that graph would be lost with it.
        with tf.init_scope():
            values = [
                tf.convert_to_tensor(value)
                for value in (init(specs, self.seed) if init else ())
            ]
        if len(values) and self.sub_batches > 1:
            raise ValueError(
                f"{self.perturb_weights} keeps a state from batch to batch: "
                "sub_batches must be 1. "
                f"Received: sub_batches={self.sub_batches}"
            )
        self.perturbation_state = [
            self.add_weight(
                shape=value.shape,
                initializer=lambda shape, dtype, value=value: tf.constant(
                    value, dtype
                ),
                dtype=value.dtype.name,
                trainable=False,
                aggregation="mean",
                name=f"perturbation_state_{index}",
            )
            for index, value in enumerate(values)
        ]
        self.built = True

    def train_step(self, data):
        """Perturbs the inputs, then the weights, then descends."""
        data = tf.nest.map_structure(tensor, data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.build_for(data)
        x, y = self._checked_batch(x, y)
        variables = self.trainable_variables
        weights = [tf.convert_to_tensor(v.value) for v in variables]
        state = [tf.convert_to_tensor(v.value) for v in self._state_variables()]
        count, seed = self._next_step()
        object.__setattr__(self, "_draws", Draws())

        x_adv = self._perturbed_inputs(weights, state, x, y, count, seed)
        batch = Batch(x, x_adv, y, sample_weight)
        step = Step(
            kinds=self._kinds(),
            seed=tf.random.experimental.stateless_fold_in(seed, 1),
            count=count,
            learning_rate=tf.convert_to_tensor(self.optimizer.learning_rate),
        )
        # The loss and all else are those at w, the gradients are not.
        first = self._sharpened_by_parts(weights, state, batch, step)
        first = self._checked_pass(first)
        self._draws.finish()

        others = self._state_variables()
        for position, value in first.updates.items():
            others[int(position)].assign(value)
        for position, values in first.versions.items():
            variables[int(position)].assign(values[-1])
        if variables:
            self.optimizer.apply_gradients(
                zip(first.gradients, variables, strict=True)
            )
        else:
            warnings.warn("The model has no trainable weights.", stacklevel=2)
        self._track_loss(first.loss, x)
        return self.compute_metrics(
            x_adv, y, self._predicted(first), sample_weight
        )

    def _perturbed_inputs(self, weights, state, x, y, count, seed):
        """The attack at w; nothing else is kept of it."""
        if self.perturb_inputs is None:
            return x
        if not tf.is_tensor(x) or not tf.is_tensor(y):
            raise ValueError(
                "perturb_inputs needs x to be one tensor of pixels and y one "
                "tensor of labels. "
                f"Received: x of {type(x)}, y of {type(y)}"
            )
        bounds = getattr(self.perturb_inputs, "bounds", None)
        x = assert_inside(x, bounds, self._pixels)

        def logits_fn(pixels):
            # A scope of its own a call: a loop's body must leave no tensor
            # behind in a scope that outlives it.
            with self._scope(weights, state):
                logits = self(pixels, training=self.attack_mode == "training")
            if not tf.is_tensor(logits):
                raise ValueError(
                    "perturb_inputs needs a network with one output. "
                    f"Received: outputs={logits}"
                )
            return logits

        attack = self.perturb_inputs
        if self.epsilon_warmup_steps:
            # In the precision of the pixels, float32 at least.
            dtype = x.dtype if x.dtype.size > 4 else tf.float32
            done = tf.cast(count + 1, dtype) / self.epsilon_warmup_steps
            attack = attack.with_epsilon(attack.epsilon * tf.minimum(done, 1.0))
        # Position in the global batch, so that replicas' noise differs and N
        # replicas draw what one would. (Where a last batch is shared unevenly,
        # two of its examples draw the same.)
        batch = tf.shape(x)[0]
        replica = tf.distribute.get_replica_context()
        ahead = 0 if replica is None else replica.replica_id_in_sync_group
        seeds = example_seeds(seed, (ahead + 1) * batch)[ahead * batch :]
        logits = Logits(
            logits_fn,
            jit_compile=self._use_xla(),
            independent=self.attack_mode == "inference",
            loss=self.example_loss(),
        )

        def attacked_all():
            return self.attacked(attack, logits, x, y, seeds)

        if replicas() > 1:  # One may have no share of a last batch.
            x_adv = tf.cond(batch > 0, attacked_all, lambda: x)
        else:
            x_adv = attacked_all()
        return tf.stop_gradient(x_adv)

    def _sharpened_by_parts(self, weights, state, batch, step):
        """m-sharpness: `_sharpened` of each part of the batch, and the mean."""
        if self.sub_batches == 1:
            return self._sharpened(weights, state, batch, step)
        return mean_of_parts(
            self._sharpened,
            self._weight_of_part,
            weights,
            state,
            batch,
            step,
            self.sub_batches,
            unroll=self.sharpness == "global" and replicas() > 1,
        )

    def _weight_of_part(self, batch, found):
        """What a mean over this part of a batch is divided by."""
        size = tf.shape(tf.nest.flatten(batch.x)[0])[0]
        if self.objective is not None:
            return size
        masks = self._masks_of_losses(batch, found)
        if len(masks) != 1:
            if any(mask is not None for mask in masks):
                raise ValueError(
                    "sub_batches takes masks for one output alone. "
                    f"Received: sub_batches={self.sub_batches}, masks of "
                    f"{len(masks)} outputs"
                )
            return size
        (mask,) = masks
        weight = next(iter(tf.nest.flatten(batch.sample_weight)), None)
        if weight is None or not self._is_mean_by_weight():
            return size if mask is None else tf.math.count_nonzero(mask)
        weight = tf.cast(weight, tf.float32)
        if mask is not None:
            mask = tf.cast(mask, weight.dtype)
            missing = mask.shape.rank - weight.shape.rank
            weight = mask * tf.reshape(
                weight,
                tf.concat(
                    [tf.shape(weight)[: mask.shape.rank], [1] * missing], 0
                ),
            )
        return tf.reduce_sum(weight)

    def _masks_of_losses(self, batch, found):
        """Which positions of each output its loss counts, None for all.

        Keras's mask of the predictions and that of the loss, which a loss with
        an `ignore_class` has.
        """
        predictions = tf.nest.flatten(found.y_pred)
        labels = self._labels(batch.y)
        if labels is None:
            return found.masks
        masks = []
        for output, y, y_pred, mask in zip(
            self._outputs, labels, predictions, found.masks, strict=True
        ):
            own = compiled_losses.mask_of(output, y, y_pred)
            both = mask is not None and own is not None
            masks.append(mask & own if both else own if mask is None else mask)
        return masks

    def _sharpened(self, weights, state, batch, step):
        """The pass at w, with the gradients of the pass at w + e."""
        # Under loss scaling the scale is a variable's value, or 1.
        scale = self.optimizer.scale_loss(tf.ones(()))
        gradient = self._compiled(self._pass)
        first = gradient(weights, state, batch, scale)
        method = self.perturb_weights
        if method is None or not weights:
            return first
        # e is added to what the layers have assigned, and no later pass
        # assigns anything else.
        weights, versions = first.ended(weights), first.versions or None
        chosen = self._perturbed_positions()
        memory = [tf.convert_to_tensor(v) for v in self.perturbation_state]
        # What the optimizer is to get, over what the method is to see: the loss
        # scale, and 1/replicas of the sum that the optimizer makes.
        unit = scale / replicas()

        def seen(gradients):
            """The chosen gradients, unscaled, dense, of the right batch."""
            given = dense(gradients, weights)
            return self._reduced(
                [given[i] / tf.cast(unit, given[i].dtype) for i in chosen]
            )

        def moved_to(some):
            """All weights, with these in the chosen ones' place."""
            moved = list(weights)
            for i, weight in zip(chosen, some, strict=True):
                moved[i] = weight
            return moved

        def squared_gradients():
            squares = self._squared_gradients(weights, state, batch, scale)
            # As state becomes the mean over replicas, this becomes the sum.
            many = replicas()
            return [many * squares[i] for i in chosen], many * tf.shape(
                batch.y
            )[0]

        step = step._replace(
            gradient=lambda some: seen(
                gradient(
                    moved_to(some), state, batch, scale, versions
                ).gradients
            ),
            squared_gradients=squared_gradients,
        )
        clean = seen(first.gradients)
        unmoved = dense(first.gradients, weights)

        def second_pass():
            some, kept = method.perturb(
                [weights[i] for i in chosen], clean, memory, step
            )
            moved = moved_to(some)
            part = self._selected(first, moved, state, batch, memory, step)
            second = gradient(moved, state, part, scale, versions)
            return dense(second.gradients, weights), list(kept)

        due = True if method.due is None else method.due(memory, step)
        second, kept = _choose(due, second_pass, lambda: (unmoved, memory))
        if method.combine is not None:
            other = seen(second)  # Collectives cannot stand inside a tf.cond.
            final, kept = _choose(
                due,
                lambda: method.combine(clean, other, kept, step),
                lambda: method.combine(clean, None, kept, step),
            )
            for i, value in zip(chosen, final, strict=True):
                second[i] = value * tf.cast(unit, value.dtype)
        # A loss scale that overflows costs a step, and no more than that.
        sound = _all_finite(kept)
        for variable, value, old in zip(
            self.perturbation_state, kept, memory, strict=True
        ):
            variable.assign(tf.where(sound, value, old))
        return first._replace(
            gradients=[
                # A gradient that becomes the value, as a float8 scale's does,
                # is that of the pass at w.
                g if g is None or overwrites else s
                for g, s, overwrites in zip(
                    first.gradients, second, self._overwriting(), strict=True
                )
            ]
        )

    def _selected(self, first, moved, state, batch, memory, step):
        """The part of the batch that the method wants in its second pass."""
        method = self.perturb_weights
        if method.select is None:
            return batch
        if first.losses is None:
            raise ValueError(
                f"{method} chooses examples by their losses, so the network "
                "must return one tensor of logits, and an objective of your "
                "own each example's loss as its third result. "
                f"Received: objective={self.objective}"
            )
        losses = self._compiled(self._example_losses)(
            moved, state, batch, first.versions or None
        )
        positions = method.select(first.losses, losses, memory, step)
        return rows_of(batch, lambda t: tf.gather(t, positions))

    def _reduced(self, gradients):
        """Mean gradients of the global batch, if that is whose are wanted."""
        if self.sharpness == "per_replica" or replicas() == 1:
            return gradients
        replica = tf.distribute.get_replica_context()
        return replica.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)

    def _next_step(self):
        """The number of the step, its seed, and counts it."""
        count = tf.convert_to_tensor(self.step_count.value)
        self.step_count.assign(count + 1)
        return count, tf.stack([self.seed, tf.cast(count % 2**31, tf.int32)])

    def build_for(self, data):
        """Builds what is not built yet: layers, metrics, losses, optimizer.

        `fit` does it by itself, at its first batch.

        Args:
            data: a batch, as of `fit`'s data, or its `tf.TensorSpec`s.
        """
        if keras.utils.unpack_x_y_sample_weight(data)[1] is None:
            self._check_unlabelled()
        # Not within a stateless scope: there no variable can be made.
        # Keras's own way, which it takes by itself under a strategy only: it
        # builds layers, metrics, losses and the optimizer, and runs nothing.
        self._symbolic_build(data_batch=data)
        self._check_loss(data)
        self._check_parts()
        self._inspect(data)
        found = [v.path for v in self._perturbed_variables()]
        if self.perturbation_state and found != self._state_of:
            raise ValueError(
                f"{self.perturb_weights} keeps a state for the weights that "
                "were trainable when the RobustModel was made: make a new one "
                f"after freezing or unfreezing. Received: {found}"
            )

    def _check_loss(self, data):
        """Refuses what cannot be put together from parts of a batch, too."""
        super()._check_loss(data)
        if self.sub_batches > 1 and compiled_losses.is_sum(self.loss):
            raise ValueError(
                "sub_batches takes the mean of the parts' losses, so the loss "
                "must be a mean over the batch, not its sum. Received: "
                f"reduction=sum, sub_batches={self.sub_batches}"
            )

    def _check_parts(self):
        """Refuses losses whose parts of a batch count in several ways."""
        several = len(self._outputs) > 1 or self.objective is not None
        if self.sub_batches > 1 and self._is_mean_by_weight() and several:
            raise ValueError(
                "sub_batches takes a loss that is a mean by sample weights for "
                "one output alone, without an objective. Received: "
                "reduction=mean_with_sample_weight, "
                f"loss={self.loss}, objective={self.objective}"
            )
        ignored = [output.ignored for output in self._outputs]
        ignores = any(number is not None for number in ignored)
        if self.sub_batches > 1 and ignores and several:
            raise ValueError(
                "sub_batches takes a loss that ignores a class for one output "
                "alone, without an objective. Received: "
                f"ignore_class={ignored}, objective={self.objective}"
            )

    def _is_mean_by_weight(self):
        """Whether a compiled loss is divided by the sum of sample weights."""
        return any(
            getattr(output.loss, "reduction", None) == "mean_with_sample_weight"
            for output in self._outputs
        )

    def _check_combination(self):
        """Says what does not combine."""
        attack, attacked = self.perturb_inputs, self.perturb_inputs is not None
        defaults = {"sub_batches": 1, "sharpness": SHARPNESS[0], "exclude": []}
        for name, default in defaults.items():
            given = getattr(self, name)
            if self.perturb_weights is None and given != default:
                raise ValueError(
                    f"{name} needs perturb_weights. Received: {name}={given}"
                )
        if getattr(self.objective, "needs_attack", False) and not attacked:
            raise ValueError(
                f"{self.objective} needs perturb_inputs. Received: "
                "perturb_inputs=None"
            )
        if self.attack_mode != "inference" and not attacked:
            raise ValueError(
                "attack_mode needs perturb_inputs. "
                f"Received: attack_mode={self.attack_mode}"
            )
        if self.epsilon_warmup_steps and not getattr(
            attack, "tensor_epsilon", False
        ):
            raise ValueError(
                "epsilon_warmup_steps needs an attack that computes with an "
                "epsilon that is a tensor, such as tfsam.PGD. "
                f"Received: perturb_inputs={attack}"
            )

    def _own_variables(self):
        return [self.step_count, *self.perturbation_state]

    def __identity__(self):
        """Returns what `identity.describe` describes: in inference, all."""
        return self.network

    def get_config(self):
        """Every argument of the constructor."""
        config = super().get_config()
        serialize = keras.saving.serialize_keras_object
        config.update(
            network=serialize(self.network),
            perturb_inputs=serialize(self.perturb_inputs),
            perturb_weights=serialize(self.perturb_weights),
            objective=serialize(self.objective),
            sharpness=self.sharpness,
            sub_batches=self.sub_batches,
            attack_mode=self.attack_mode,
            epsilon_warmup_steps=self.epsilon_warmup_steps,
            exclude=list(self.exclude),
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model that `get_config` described."""
        config = dict(config)
        for key in (
            "network",
            "perturb_inputs",
            "perturb_weights",
            "objective",
        ):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        return cls(**config)


def _warn_of_ignored_methods(network):
    """Warns of methods of the network's class that training does not call."""
    ignored = [
        name
        for name in ("train_step", "compute_loss", "compute_metrics")
        if getattr(type(network), name) is not getattr(keras.Model, name)
    ]
    if ignored:
        warnings.warn(
            f"{type(network).__name__} overrides {', '.join(ignored)}, which "
            "RobustModel does not call: it trains by a step of its own, on the "
            "compiled loss. Give RobustModel an objective of your own instead.",
            stacklevel=3,
        )


def _warn_of_augmentation(network):
    """Warns of random augmentation that an attack in inference mode misses."""
    layers = augmentation_layers(network)
    if layers:
        names = ", ".join(layer.name for layer in layers)
        warnings.warn(
            f"network augments its inputs at random ({names}), and in "
            "inference mode an attack finds images for the network without "
            "that: they are weak against the one that is trained. Give "
            "attack_mode='training', in which the attack sees the same draw "
            "of the augmentation as the pass, or augment the data instead.",
            stacklevel=3,
        )


def _check_perturbations(perturb_inputs, perturb_weights):
    """Says what is no perturbation, or none that can train."""
    if perturb_inputs is not None and not callable(perturb_inputs):
        raise ValueError(
            "perturb_inputs must be an attack, such as tfsam.PGD(8 / 255). "
            f"Received: perturb_inputs={perturb_inputs}"
        )
    check_scale(perturb_inputs)
    if parts.ATTACKS.fact(perturb_inputs, "in_graph") is False:
        raise ValueError(
            "perturb_inputs must be an attack that can run in a graph; "
            "this one serves in evaluation only. "
            f"Received: perturb_inputs={perturb_inputs}"
        )
    if perturb_weights is not None and not hasattr(perturb_weights, "perturb"):
        raise ValueError(
            "perturb_weights must be a weight perturbation, such as "
            "tfsam.SAM(0.2). "
            f"Received: perturb_weights={perturb_weights}"
        )


def _patterns(exclude):
    """Regular expressions as a list."""
    patterns = [exclude] if isinstance(exclude, str) else exclude
    try:
        for pattern in patterns:
            re.compile(pattern)
    except (TypeError, re.error):
        raise ValueError(
            "exclude must hold regular expressions. "
            f"Received: exclude={exclude}"
        ) from None
    return list(patterns)


def _all_finite(tensors):
    found = [
        tf.reduce_all(tf.math.is_finite(tensor))
        for tensor in tensors
        if tensor.dtype.is_floating
    ]
    return tf.reduce_all(found) if found else True


def _choose(condition, yes, no):
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)
