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
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfsam import checks
from tfsam.attacks.base import example_seeds
from tfsam.attacks.logits import Logits
from tfsam.attacks.losses import cross_entropy
from tfsam.weights import Step
from tfsam.weights import kind

SHARPNESS = ("per_replica", "global")


class Batch(NamedTuple):
    """One batch, as objectives see it; `x_adv` is `x` without an attack."""

    x: Any
    x_adv: Any
    y: Any
    sample_weight: Any


class Pass(NamedTuple):
    """What one forward and backward pass gives; `updates` by position."""

    loss: Any
    y_pred: Any
    masks: Any
    gradients: Any
    updates: Any


def compiled_loss(model, batch):
    """The default objective: the compiled loss of the perturbed inputs.

    Args:
        model: the `RobustModel`.
        batch: a `Batch`.

    Returns:
        (loss, predictions). An objective of your own has this signature; the
        predictions that it returns are those that the metrics see.
    """
    y_pred = model(batch.x_adv, training=True)
    loss = model.compute_loss(
        x=batch.x_adv,
        y=batch.y,
        y_pred=y_pred,
        sample_weight=batch.sample_weight,
        training=True,
    )
    return loss, y_pred


@keras.saving.register_keras_serializable(package="tfsam")
class RobustModel(keras.Model):
    """A Keras model whose training step perturbs inputs and weights.

    `compile`, `fit`, `evaluate`, `predict`, callbacks and saving are Keras's
    own. Both perturbations absent, it is Keras's own training step too.

    Args:
        network: any `keras.Model`; its own `compute_loss`, `compute_metrics`
            and `train_step` are not used. With `perturb_inputs` it takes one
            tensor of pixels, within the attack's bounds, and returns one
            tensor of two or more logits.
        perturb_inputs: an attack, such as `tfsam.PGD(epsilon=8 / 255)`: any
            callable (logits_fn, x, y, seed) -> x_adv that can run in a graph.
            Metrics then are those of the perturbed inputs.
        perturb_weights: a `tfsam.WeightPerturbation`, such as
            `tfsam.SAM(rho=0.2)`.
        objective: a function (model, Batch) -> (loss, predictions); None is the
            compiled loss of the perturbed inputs.
        sharpness: under `tf.distribute`, "per_replica" perturbs the weights by
            each replica's own gradient (as Foret et al.), "global" by the
            gradient of the global batch, so that N replicas equal one.
        exclude: regular expressions; weights whose path one of them matches
            are trained, not perturbed.
        seed: seed of the perturbations' randomness; None draws one, which
            `keras.utils.set_random_seed` fixes.
        **kwargs: `name`, `trainable`, `dtype` of `keras.Model`. The policy is
            the network's if none is given.

    Attributes:
        network: the inner network; export and serve this one.

    Raises:
        ValueError: if an argument is out of its range.
    """

    built: bool
    jit_compile: bool

    def __init__(
        self,
        network,
        perturb_inputs=None,
        perturb_weights=None,
        *,
        objective=None,
        sharpness="per_replica",
        exclude=(),
        seed=None,
        **kwargs,
    ):
        if not isinstance(network, keras.Model):
            raise ValueError(
                "network must be a keras.Model that returns logits. "
                f"Received: network={network}"
            )
        if perturb_inputs is not None and not callable(perturb_inputs):
            raise ValueError(
                "perturb_inputs must be an attack, such as tfsam.PGD(8 / 255). "
                f"Received: perturb_inputs={perturb_inputs}"
            )
        if not getattr(perturb_inputs, "in_graph", True):
            raise ValueError(
                "perturb_inputs must be an attack that can run in a graph; "
                "this one serves in evaluation only. "
                f"Received: perturb_inputs={perturb_inputs}"
            )
        if perturb_weights is not None and not hasattr(
            perturb_weights, "perturb"
        ):
            raise ValueError(
                "perturb_weights must be a weight perturbation, such as "
                "tfsam.SAM(0.2). "
                f"Received: perturb_weights={perturb_weights}"
            )
        if sharpness not in SHARPNESS:
            raise ValueError(
                f"sharpness must be one of {SHARPNESS}. "
                f"Received: sharpness={sharpness}"
            )
        kwargs.setdefault("dtype", network.dtype_policy)
        # Pixels stay in float32 under mixed precision: near 1 float16 has steps
        # of 4.9e-4, half of an attack's step. The network's layers cast them.
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.perturb_inputs = perturb_inputs
        self.perturb_weights = perturb_weights
        self.objective = objective
        self.sharpness = sharpness
        self.exclude = [exclude] if isinstance(exclude, str) else list(exclude)
        self.seed = (
            int(np.random.randint(2**31 - 1)) if seed is None else int(seed)
        )
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
            self.network(_symbolic(input_shape))
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
        self.perturbation_state = [
            self.add_weight(
                shape=value.shape,
                initializer=lambda shape, dtype, value=value: tf.constant(
                    value, dtype
                ),
                dtype=value.dtype.name,
                trainable=False,
                name=f"perturbation_state_{index}",
            )
            for index, value in enumerate(init(specs) if init else ())
        ]
        self.built = True

    def call(self, inputs, training=None):
        """The network's outputs; `training` reaches it by Keras's context."""
        return self.network(inputs)

    def train_step(self, data):
        """Perturbs the inputs, then the weights, then descends."""
        data = tf.nest.map_structure(_tensor, data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._build_for(data)
        variables = self.trainable_variables
        weights = [tf.convert_to_tensor(v.value) for v in variables]
        others = self._other_variables()
        state = [tf.convert_to_tensor(v.value) for v in others]
        seed = self._next_seed()

        x_adv = self._perturbed_inputs(weights, state, x, y, seed)
        batch = Batch(x, x_adv, y, sample_weight)
        # Under loss scaling the scale is a variable's value, or 1.
        scale = self.optimizer.scale_loss(tf.ones(()))
        gradient = self._compiled(self._pass)
        first = gradient(weights, state, batch, scale)
        gradients = first.gradients
        if self.perturb_weights is not None and variables:
            gradients = self._perturbed_gradients(
                gradient, first, weights, state, batch, scale, seed
            )

        for position, value in first.updates.items():
            others[int(position)].assign(value)
        if variables:
            self.optimizer.apply_gradients(
                zip(gradients, variables, strict=True)
            )
        else:
            warnings.warn("The model has no trainable weights.", stacklevel=2)
        self._track_loss(first.loss, x)
        y_pred = self._predicted(first)
        return self.compute_metrics(x_adv, y, y_pred, sample_weight)

    def _perturbed_inputs(self, weights, state, x, y, seed):
        """The attack at w, in inference mode; nothing else is kept of it."""
        if self.perturb_inputs is None:
            return x
        if not tf.is_tensor(x) or not tf.is_tensor(y):
            raise ValueError(
                "perturb_inputs needs x to be one tensor of pixels and y one "
                "tensor of labels. "
                f"Received: x of {type(x)}, y of {type(y)}"
            )

        x = checks.inside(x, getattr(self.perturb_inputs, "bounds", None))

        def logits_fn(pixels):
            # A scope of its own a call: a loop's body must leave no tensor
            # behind in a scope that outlives it.
            with self._scope(weights, state):
                logits = self(pixels, training=False)
            if not tf.is_tensor(logits) or logits.shape[-1] == 1:
                raise ValueError(
                    "perturb_inputs needs a network with one output, of two or "
                    f"more logits. Received: outputs={logits}"
                )
            return logits

        # Position in the global batch, so that replicas' noise differs and N
        # replicas draw what one would. (Where a last batch is shared unevenly,
        # two of its examples draw the same.)
        batch = tf.shape(x)[0]
        replica = tf.distribute.get_replica_context()
        ahead = 0 if replica is None else replica.replica_id_in_sync_group
        seeds = example_seeds(seed, (ahead + 1) * batch)[ahead * batch :]
        attacked = Logits(logits_fn, jit_compile=self._use_xla())
        return tf.stop_gradient(self.perturb_inputs(attacked, x, y, seeds))

    def _pass(self, weights, state, batch, scale):
        """A pure function: loss, predictions, gradients, new state."""
        others = self._other_variables()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            with self._scope(weights, state) as scope:
                objective = self.objective or compiled_loss
                loss, y_pred = objective(self, batch)
            scaled = loss * tf.cast(scale, loss.dtype)
        gradients = [
            tf.convert_to_tensor(g) if g is not None else None
            for g in tape.gradient(scaled, weights)
        ]
        updates = {}
        for position, (variable, old) in enumerate(
            zip(others, state, strict=True)
        ):
            new = scope.get_current_value(variable)
            if new is not old:
                updates[str(position)] = tf.convert_to_tensor(new)
        masks = [
            getattr(part, "_keras_mask", None)
            for part in tf.nest.flatten(y_pred)
        ]
        return Pass(loss, y_pred, masks, gradients, updates)

    def _perturbed_gradients(
        self, gradient, first, weights, state, batch, scale, seed
    ):
        """The gradients to descend by: those at the perturbed weights."""
        method = self.perturb_weights
        memory = [tf.convert_to_tensor(v) for v in self.perturbation_state]
        chosen = self._perturbed_positions()
        step = Step(
            kinds=[kind(self.trainable_variables[i]) for i in chosen],
            seed=tf.random.experimental.stateless_fold_in(seed, 1),
            learning_rate=tf.convert_to_tensor(self.optimizer.learning_rate),
        )
        # What the optimizer is to get, over what the method is to see: the loss
        # scale, and 1/replicas of the sum that the optimizer makes.
        unit = scale / tf.distribute.get_strategy().num_replicas_in_sync

        def seen(gradients):
            """The chosen gradients, unscaled, dense, of the right batch."""
            dense = [
                tf.zeros_like(weights[i])
                if gradients[i] is None
                else gradients[i] / tf.cast(unit, gradients[i].dtype)
                for i in chosen
            ]
            return self._reduced(dense)

        clean = seen(first.gradients)

        def second_pass():
            moved, kept = method.perturb(
                [weights[i] for i in chosen], clean, memory, step
            )
            perturbed = list(weights)
            for i, weight in zip(chosen, moved, strict=True):
                perturbed[i] = weight
            part = self._selected(
                first, perturbed, state, batch, scale, memory, step
            )
            second = gradient(perturbed, state, part, scale)
            return _dense(second.gradients, weights), list(kept)

        due = True if method.due is None else method.due(memory)
        if due is True:
            second, kept = second_pass()
        elif due is False:
            second, kept = _dense(first.gradients, weights), memory
        else:
            second, kept = tf.cond(
                due,
                second_pass,
                lambda: (_dense(first.gradients, weights), memory),
            )
        if method.combine is not None:
            other = seen(second)  # Collectives cannot stand inside a tf.cond.
            final, kept = _choose(
                due,
                lambda: method.combine(clean, other, kept, step),
                lambda: method.combine(clean, None, kept, step),
            )
            for i, value in zip(chosen, final, strict=True):
                second[i] = value * tf.cast(unit, value.dtype)
        for variable, value in zip(self.perturbation_state, kept, strict=True):
            variable.assign(value)
        return [
            None if g is None else s
            for g, s in zip(first.gradients, second, strict=True)
        ]

    def _selected(self, first, perturbed, state, batch, scale, memory, step):
        """The part of the batch that the method wants in its second pass."""
        method = self.perturb_weights
        if method.select is None:
            return batch
        moved = self._compiled(self._predictions)(perturbed, state, batch)
        positions = method.select(
            cross_entropy(first.y_pred, batch.y),
            cross_entropy(moved, batch.y),
            memory,
            step,
        )
        return tf.nest.map_structure(
            lambda t: None if t is None else tf.gather(t, positions), batch
        )

    def _predictions(self, weights, state, batch):
        """A pure function: predictions in training mode, state discarded."""
        with self._scope(weights, state):
            return self(batch.x_adv, training=True)

    def _scope(self, weights, state):
        """Reads these tensors in the variables' place, keeps all writes."""
        mapping = [
            *zip(self.trainable_variables, weights, strict=True),
            *zip(self._other_variables(), state, strict=True),
        ]
        # Without collect_losses a scope drops what layers add as losses.
        return keras.StatelessScope(mapping, collect_losses=True)

    def _other_variables(self):
        """Non-trainable state: statistics, seeds, frozen weights, metrics."""
        own = {id(v) for v in (self.step_count, *self.perturbation_state)}
        found = [*self.non_trainable_variables, *self.metrics_variables]
        return [
            v
            for v in {id(v): v for v in found}.values()
            if id(v) not in own and v.dtype != "string"
        ]

    def _perturbed_positions(self):
        """Positions in trainable_variables of what may be perturbed."""
        return [
            position
            for position, variable in enumerate(self.trainable_variables)
            if not any(re.search(p, variable.path) for p in self.exclude)
            and not getattr(variable, "overwrite_with_gradient", False)
        ]

    def _perturbed_variables(self):
        variables = self.trainable_variables
        return [variables[i] for i in self._perturbed_positions()]

    def _check_network(self):
        paths = [v.path for v in self.network.variables]
        for pattern in self.exclude:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(
                    "exclude must hold regular expressions that match paths of "
                    f"weights, such as {paths[0]}. Received: exclude={pattern}"
                )
        if self.exclude and not self._perturbed_positions():
            raise ValueError(
                "exclude must leave weights to perturb. "
                f"Received: exclude={list(self.exclude)}"
            )
        for layer in checks.flattened(self.network):
            # Its state is no variable that Keras knows of, or can replace.
            if getattr(layer, "stateful", False):
                raise ValueError(
                    "network must have no stateful recurrent layers. "
                    f"Received: layer={layer.name}"
                )

    def _reduced(self, gradients):
        """Mean gradients of the global batch, if that is whose are wanted."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if self.sharpness == "per_replica" or replicas == 1:
            return gradients
        replica = tf.distribute.get_replica_context()
        return replica.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)

    def _next_seed(self):
        """A pair for this step, and counts the step."""
        step = tf.convert_to_tensor(self.step_count.value)
        self.step_count.assign(step + 1)
        return tf.stack([self.seed, tf.cast(step % 2**31, tf.int32)])

    def _track_loss(self, loss, x):
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        tracker = next(m for m in self.metrics if m.name == "loss")
        tracker.update_state(
            # The loss carries 1/replicas for the sum over replicas.
            loss if replicas == 1 else loss * tf.cast(replicas, loss.dtype),
            sample_weight=tf.shape(tf.nest.flatten(x)[0])[0],
        )

    def _build_for(self, data):
        """Builds what is not built yet, outside any stateless scope."""
        self._check_loss()
        # Keras's own way, which it takes by itself under a strategy only: it
        # builds layers, metrics, losses and the optimizer, and runs nothing.
        self._symbolic_build(data_batch=data)
        found = [v.path for v in self._perturbed_variables()]
        if self.perturbation_state and found != self._state_of:
            raise ValueError(
                f"{self.perturb_weights} keeps a state for the weights that "
                "were trainable when the RobustModel was made: make a new one "
                f"after freezing or unfreezing. Received: {found}"
            )

    def _check_loss(self):
        """Refuses a loss that would take logits for probabilities."""
        ending = checks.ends_in_probabilities(self.network)
        attacked = self.perturb_inputs is not None
        if attacked and ending:
            raise ValueError(
                "perturb_inputs needs a network that returns logits: take the "
                "softmax off its last layer, and give the loss "
                f"from_logits=True. Received: network={self.network.name}"
            )
        doubtful = checks.expects_probabilities(self.loss)
        if doubtful and (attacked or ending is False):
            raise ValueError(
                "The network returns logits, so the loss must be told: "
                "from_logits=True. Received: loss=" + str(self.loss)
            )
        # Where the network does not tell, its predictions do.
        self._doubtful = doubtful and ending is None

    def _predicted(self, first):
        """The first pass's predictions, for the metrics."""
        # A compiled function's results are new tensors, without Keras's masks.
        parts = tf.nest.flatten(first.y_pred)
        for part, mask in zip(parts, first.masks, strict=True):
            if mask is not None:
                part._keras_mask = mask
        if self._doubtful and len(parts) == 1:
            return checks.probabilities(first.y_pred)
        return first.y_pred

    def _use_xla(self):
        return bool(self.jit_compile) and not self.run_eagerly

    def _compiled(self, function):
        """The function, compiled as `compile(jit_compile=)` asks for."""
        if not self._use_xla():
            return function
        return tf.function(function, jit_compile=True, autograph=False)

    def make_train_function(self, force=False):
        """Keras's own, but for XLA: `train_step` compiles its pure pieces.

        XLA must not have the whole step: its loops run on one thread on a CPU,
        and it has no collectives between replicas.
        """
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            return super().make_train_function(force=force)
        finally:
            self.jit_compile = jit_compile

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


def _tensor(value):
    """Arrays, which Keras hands over when it runs eagerly, as tensors."""
    return (
        tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
    )


def _symbolic(shapes):
    """Symbolic inputs of these shapes: one shape, or a dict or list of them."""
    if isinstance(shapes, dict):
        return {key: _symbolic(shape) for key, shape in shapes.items()}
    if any(isinstance(part, (list, tuple)) for part in shapes):
        return [_symbolic(shape) for shape in shapes]
    return keras.Input(batch_shape=shapes)


def _dense(gradients, weights):
    return [
        tf.zeros_like(w) if g is None else g
        for g, w in zip(gradients, weights, strict=True)
    ]


def _choose(condition, yes, no):
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)
