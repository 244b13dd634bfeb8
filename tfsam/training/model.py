"""The training step: perturb the inputs, then the weights, then descend.

Sharpness-aware minimization and adversarial training are dual (Wei et al.,
2023): both minimize the largest loss in a ball, around the weights for SAM and
around the inputs for adversarial training. Every method is a choice of these
two perturbations, and `RobustModel.train_step` covers all of them:

    x_adv         = perturb_inputs(x)              at w, in inference mode
    loss, g       = gradient at w                  the loss that is reported
    w_adv         = perturb_weights(w, g)
    g_adv         = gradient at w_adv
    w             = optimizer(w, g_adv)            at w, never at w_adv

A weight perturbation may also move the weights of the first three lines, as
MSAM does, or those that the last line leaves, as WSAM does.

The perturbed weights are tensors, not variables: a `keras.StatelessScope` makes
the layers read them in place of the variables. So there is nothing to restore;
the optimizer, averages and checkpoints never see them; each replica may have
its own; and the gradient is a pure function that XLA can compile, while the
optimizer, the metrics and the collectives stay outside. BatchNorm statistics
and dropout seeds come from the pass at w, and both passes start from the same
ones.
"""

import random
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam import registries
from tfsam.attacks.base import example_seeds
from tfsam.attacks.context import Context
from tfsam.attacks.logits import Logits
from tfsam.evaluation import red_flags
from tfsam.support import assertions
from tfsam.support import devices
from tfsam.support.pixels import assert_inside
from tfsam.support.rescaling import warn_of_rescaling
from tfsam.support.several_inputs import Inputs
from tfsam.support.several_inputs import inputs_of
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.training import arguments
from tfsam.training import foreign_code
from tfsam.training import matching
from tfsam.training import replays
from tfsam.training import sharpness as second_pass
from tfsam.training import sub_batches as m_sharpness
from tfsam.training.batch import Batch
from tfsam.training.compiled_losses import is_sum
from tfsam.training.scope import Draws
from tfsam.training.stateless import Pass
from tfsam.training.stateless import PureModel
from tfsam.training.trainer import replicas
from tfsam.training.trainer import tensor
from tfsam.weights.base import Step


@keras.saving.register_keras_serializable(package="tfsam")
class RobustModel(PureModel):
    """A Keras model whose training step perturbs inputs and weights.

    `compile`, `fit`, `evaluate`, `predict`, callbacks and saving work as for
    any Keras model. Without perturbations the training step is Keras's own.

    Args:
        network: any `keras.Model`. Its own `compute_loss`, `compute_metrics`
            and `train_step` are not used. With `perturb_inputs` it takes
            pixels in the attack's bounds, among other inputs or alone, and
            returns one tensor: logits, if the loss is a cross-entropy.
        perturb_inputs: an attack such as `tfsam.PGD(epsilon=8 / 255)`, or any
            callable (logits_fn, x, y, seed) -> x_adv that can run in a graph.
            Metrics are then computed on the perturbed inputs. An attack
            without a loss of its own maximizes the compiled loss of each
            example; the loss may be one of classes, of tags, of a regression
            or of a segmentation. Examples of the loss's `ignore_class` are not
            attacked.
        perturb_weights: a `tfsam.WeightPerturbation` such as
            `tfsam.SAM(rho=0.2)`.
        objective: a function (model, Batch) -> (loss, predictions), such as
            `tfsam.TRADES(beta=6)`. None is the compiled loss of the perturbed
            inputs, see `tfsam.training.stateless.compiled_loss`.
        sharpness: "per_replica" or "global". Under `tf.distribute`,
            "per_replica" perturbs the weights by the gradient of each replica
            (as Foret et al. do), "global" by the gradient of the whole batch,
            so that N replicas give the result of one.
        sub_batches: number of parts of a batch for m-sharpness (Foret et al.,
            2021, section 4.1), >= 1. Each part has its own perturbation and
            BatchNorm statistics, and the gradient is the mean of the parts'.
            Values above 1 need a perturbation without state and without a step
            after the optimizer's, and a loss that is a mean over the batch.
        attack_mode: "inference", or "training" to attack the network with
            BatchNorm statistics of the batch, dropout, and the same random
            augmentation as in the pass at w. An attack never changes the moving
            statistics. A network with layers of random augmentation needs
            "training"; otherwise there is a warning of a weak attack.
        epsilon_warmup_steps: training steps over which the attack's epsilon
            grows linearly from 0, >= 0.
        exclude: a regular expression or a list of them. Weights whose path
            matches one are trained but not perturbed. Like `sharpness`, it
            needs `perturb_weights`.
        attacked: name or number of the input that `perturb_inputs` perturbs,
            for a network of several. None is the only input that looks like
            images: of floats, (batch, height, width, ...).
        seed: seed of the perturbations' randomness, an integer >= 0. None draws
            one, which `keras.utils.set_random_seed` makes reproducible; all
            workers take the chief's.
        **kwargs: `name`, `trainable` and `dtype` of `keras.Model`. The default
            dtype policy is the network's.

    Attributes:
        network: the inner network. Export and serve this one.

    Raises:
        ValueError: if an argument is out of its range, or needs a perturbation
            that is not given; under strategies other than MirroredStrategy and
            MultiWorkerMirroredStrategy. In `fit`, if the network, the compiled
            loss and the data do not match. On one device the first batch is
            checked before anything is traced.

    Example:
        >>> import keras, tfsam
        >>> from sklearn.datasets import load_digits
        >>> images, labels = load_digits(return_X_y=True)
        >>> x, y = images[:16] / 16, labels[:16]
        >>> network = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(10)]
        ... )
        >>> model = tfsam.RobustModel(
        ...     network,
        ...     perturb_inputs=tfsam.PGD(epsilon=8 / 255, steps=2),
        ...     perturb_weights=tfsam.SAM(rho=0.05),
        ... )
        >>> model.compile(
        ...     tfsam.SGD(0.1),
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ...     metrics=["accuracy"],
        ... )
        >>> history = model.fit(x, y, epochs=2, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'loss']
    """

    # Whether the warning of gradients that are not finite was given.
    _warned = False

    def __init__(
        self,
        network: keras.Model,
        perturb_inputs: Any = None,
        perturb_weights: Any = None,
        *,
        objective: Callable[..., Any] | None = None,
        sharpness: str = "per_replica",
        sub_batches: int = 1,
        attack_mode: str = "inference",
        epsilon_warmup_steps: int = 0,
        exclude: str | Sequence[str] = (),
        attacked: str | int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(network, keras.Model):
            raise ValueError(
                "network must be a keras.Model that returns logits. "
                f"Received: network={network}"
            )
        devices.check_strategy(tf.distribute.get_strategy())
        arguments.check_parts(perturb_inputs, perturb_weights, objective)
        check_choice("sharpness", sharpness, arguments.SHARPNESS)
        check_choice("attack_mode", attack_mode, arguments.MODES)
        arguments.warn_of_ignored_methods(network)
        alone = perturb_inputs is not None and not replays.of(perturb_inputs)
        if alone and attack_mode == "inference":
            arguments.warn_of_augmentation(network)
        bounds = getattr(perturb_inputs, "bounds", None)
        warn_of_rescaling(network, bounds)
        kwargs.setdefault("dtype", network.dtype_policy)
        # Pixels stay in float32 under mixed precision: float16 has steps of
        # 4.9e-4 near 1, half of an attack's step. The layers cast them.
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.perturb_inputs = perturb_inputs
        self.perturb_weights = perturb_weights
        self.objective = objective
        # Keras would track and save these as parts of the model.
        object.__setattr__(self, "_unlisted", [])
        object.__setattr__(self, "_without_gradient", set())
        object.__setattr__(self, "_draws", None)
        object.__setattr__(self, "_nonfinite", None)
        self._inspected = False
        self.sharpness = sharpness
        self.sub_batches = check_count("sub_batches", sub_batches, 1)
        self.attack_mode = attack_mode
        self.epsilon_warmup_steps = check_count(
            "epsilon_warmup_steps", epsilon_warmup_steps
        )
        self.exclude = arguments.patterns(exclude)
        self.attacked_input = attacked
        arguments.check_combination(self)
        replays.check(self)
        if seed is None:  # Each worker would draw a different one.
            drawn = int(np.random.randint(2**31 - 1))
            seed = devices.of_chief(tf.distribute.get_strategy(), drawn)
        self.seed = check_count("seed", seed)
        if hasattr(network, "output_names"):
            self.output_names = network.output_names
        if network.built:
            self.build(getattr(network, "input_shape", None))

    def build(self, input_shape: Any) -> None:
        """Builds the network, and variables for the training step's state.

        Args:
            input_shape: a shape (None, ...), or a list or dict of shapes where
                the network has several inputs.
        """
        if self.built:
            return
        if not self.network.built:
            # A subclassed network is built by calling it.
            self.network(_symbolic(input_shape))
        matching.check_network(self.network, self.exclude)
        arguments.check_perturbed(self)
        # The number of training steps keys the noise, so that a resumed run
        # continues the same sequence.
        self.step_count = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False,
            name="step_count",
        )  # fmt: skip
        self._state_of = [v.path for v in self._perturbed_variables()]
        self.perturbation_state = self._made_variables(
            self._initial_state(), "perturbation_state"
        )
        self.objective_state = self._made_variables(
            self._initial_objective_state(input_shape), "objective_state"
        )
        self.offsets = None
        if replays.of(self.perturb_inputs):
            self.offsets = self.add_weight(
                shape=replays.offsets_shape(self, input_shape),
                initializer="zeros",
                trainable=False,
                name="offsets",
            )
        self.built = True

    def _made_variables(
        self, values: Sequence[tf.Tensor], name: str
    ) -> list[Any]:
        """Makes variables of a state, numbered after a name."""
        return [
            self.add_weight(
                shape=value.shape,
                initializer=lambda shape, dtype, value=value: tf.constant(
                    value, dtype
                ),
                dtype=value.dtype.name,
                trainable=False,
                aggregation="mean",
                name=f"{name}_{index}",
            )
            for index, value in enumerate(values)
        ]

    def _initial_state(self) -> list[tf.Tensor]:
        """Returns the state that the weight perturbation begins with."""
        init = getattr(self.perturb_weights, "init", None)
        if not init:
            return []
        specs = [
            tf.TensorSpec(v.shape, v.dtype) for v in self._perturbed_variables()
        ]
        # A network without an Input is built while Keras traces it. A tensor
        # of that graph could not be used outside of it.
        with tf.init_scope():
            values = list(map(tf.convert_to_tensor, init(specs, self.seed)))
        if values and self.sub_batches > 1:
            raise ValueError(
                f"{self.perturb_weights} keeps a state from batch to batch: "
                "sub_batches must be 1. "
                f"Received: sub_batches={self.sub_batches}"
            )
        return values

    def _initial_objective_state(self, input_shape: Any) -> list[tf.Tensor]:
        """Returns the state that the objective begins with.

        Args:
            input_shape: of the network; see `build`.
        """
        init = registries.OBJECTIVES.fact(self.objective, "init")
        if init is None:
            return []
        outputs = getattr(self.network, "outputs", None)
        if not outputs:
            outputs = self.network.compute_output_spec(_symbolic(input_shape))
        shapes = [tuple(o.shape) for o in keras.tree.flatten(outputs)]
        if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] is None:
            raise ValueError(
                f"{self.objective} keeps a state for each class, so the "
                "network must return one tensor of logits (batch, classes). "
                f"Received: outputs of shape {shapes}"
            )
        classes = max(shapes[0][1], 2)  # A single logit is of two classes.
        with tf.init_scope():  # See `_initial_state`.
            return list(map(tf.convert_to_tensor, init(classes)))

    def train_step(self, data: Any) -> Any:
        """Perturbs the inputs, then the weights, then descends.

        Args:
            data: x, (x, y) or (x, y, sample_weight), each a tensor or a
                structure of tensors.

        Returns:
            A dict from names of metrics to values.
        """
        data = tf.nest.map_structure(tensor, data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.build_for(data)
        x, y = matching.checked_labels(self, x, y)
        if replays.of(self.perturb_inputs):
            return replays.step(self, x, y, sample_weight)
        _, results = self.step_on(
            Batch(x, x, y, sample_weight), self._perturbed_inputs
        )
        return results

    def step_on(
        self, batch: Batch, perturbed: Callable[..., Any]
    ) -> tuple[Pass, Any]:
        """Makes a step of the optimizer on a batch.

        Args:
            batch: the batch, with the clean inputs in place of the perturbed.
            perturbed: a function (weights, state, x, y, count, seed) -> x_adv;
                see `_perturbed_inputs`.

        Returns:
            (pass, results): the pass by whose gradients the step was made, and
            a dict from names of metrics to values.
        """
        weights, state = self._values()
        count, seed = self._next_step()
        step = self._step(count, seed)

        weights = second_pass.before_step(self, weights, step)
        x_adv = perturbed(weights, state, batch.x, batch.y, count, seed)
        batch = batch._replace(x_adv=x_adv)
        # Everything in `first` is of the pass at w, except the gradients.
        first = self._sharpened_by_parts(weights, state, batch, step)
        first = self._checked_pass(first)
        self._descend(first)
        second_pass.after_step(self, first, step)

        self._track_loss(first.loss, batch.size())
        results = self.compute_metrics(
            x_adv, batch.y, self._predicted(first), batch.sample_weight
        )
        return first, results

    def _values(self) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the values of the trainable and of the other variables."""
        return (
            [tf.convert_to_tensor(v.value) for v in self.trainable_variables],
            [tf.convert_to_tensor(v.value) for v in self._state_variables()],
        )

    def _next_step(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the step's number and its seed, and counts the step."""
        count = tf.convert_to_tensor(self.step_count.value)
        self.step_count.assign(count + 1)
        object.__setattr__(self, "_draws", Draws())
        return count, tf.stack([self.seed, tf.cast(count % 2**31, tf.int32)])

    def _step(self, count: tf.Tensor, seed: tf.Tensor) -> Step:
        """Returns the facts of a training step for the weight perturbation."""
        return Step(
            kinds=self._kinds(),
            seed=tf.random.experimental.stateless_fold_in(seed, 1),
            count=count,
            learning_rate=tf.convert_to_tensor(self.optimizer.learning_rate),
        )

    def _perturbed_inputs(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        x: Any,
        y: Any,
        count: tf.Tensor,
        seed: tf.Tensor,
    ) -> Any:
        """Returns the attack's result at w, of x's shape, without a gradient.

        Args:
            weights: values of the trainable variables.
            state: values of the other variables; the attack does not change
                them.
            x: tensor of pixels (batch, ...) in the attack's bounds, or a
                structure of inputs with one.
            y: tensor of labels.
            count: training steps before this one, a scalar.
            seed: int32 tensor (2,), of the step.
        """
        if self.perturb_inputs is None:
            return x
        if not tf.is_tensor(y):
            raise ValueError(
                "perturb_inputs needs y to be one tensor of labels. "
                f"Received: y of {type(y)}"
            )
        inputs = self._inputs(x)
        pixels, others = (x, ()) if inputs is None else inputs.split(x)
        pixels = self._checked_pixels(pixels)
        attack = self._current_attack(count, pixels.dtype)
        batch = tf.shape(pixels)[0]
        # Seeds go by the position in the global batch: replicas draw different
        # noise, and N of them together the noise of one. (If a last batch is
        # shared unevenly, two of its examples have the same seed.)
        replica = tf.distribute.get_replica_context()
        ahead = 0 if replica is None else replica.replica_id_in_sync_group
        seeds = example_seeds(seed, (ahead + 1) * batch)[ahead * batch :]
        logits = self._attacked_logits(weights, state, inputs, others)

        def attacked_all() -> tf.Tensor:
            return self.attacked(attack, logits, pixels, y, seeds)

        if replicas() > 1:  # A replica may have no share of a last batch.
            x_adv = tf.cond(batch > 0, attacked_all, lambda: pixels)
        else:
            x_adv = attacked_all()
        x_adv = tf.stop_gradient(x_adv)
        return x_adv if inputs is None else inputs.join(x_adv, others)

    def _inputs(self, x: Any) -> Inputs | None:
        """Returns the structure of several inputs, None for a single one."""
        if not tf.is_tensor(x):
            known = getattr(self.network, "inputs", None) or ()
            names = [each.name for each in known]
            return inputs_of(x, self.attacked_input, names)
        if self.attacked_input is not None:
            raise ValueError(
                "attacked names one of several inputs, and x is one tensor. "
                f"Received: attacked={self.attacked_input}"
            )
        return None

    def _checked_pixels(self, pixels: tf.Tensor) -> tf.Tensor:
        """Asserts that pixels are in the attack's bounds."""
        bounds = getattr(self.perturb_inputs, "bounds", None)
        return assert_inside(pixels, bounds, self._pixels)

    def _current_attack(self, count: tf.Tensor, dtype: tf.DType) -> Any:
        """Returns the attack with the epsilon of this step."""
        attack = self.perturb_inputs
        if not self.epsilon_warmup_steps:
            return attack
        dtype = dtype if dtype.size > 4 else tf.float32
        done = tf.cast(count + 1, dtype) / self.epsilon_warmup_steps
        return attack.with_epsilon(attack.epsilon * tf.minimum(done, 1.0))

    def _attacked_logits(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        inputs: Inputs | None,
        others: tuple[tf.Tensor, ...],
    ) -> Logits:
        """Returns the network at w as attacks take it.

        Args:
            weights: values of the trainable variables.
            state: values of the other variables.
            inputs: the structure of several inputs, or None.
            others: the inputs that are not attacked.
        """

        def logits_fn(pixels: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
            whole = pixels if inputs is None else inputs.join(pixels, others)
            # Each call opens a scope of its own: the body of a loop must not
            # leave tensors in a scope that outlives it.
            with self._scope(weights, state):
                logits = self(whole, training=self.attack_mode == "training")
            if not tf.is_tensor(logits):
                raise ValueError(
                    "perturb_inputs needs a network with one output. "
                    f"Received: outputs={logits}"
                )
            return self.attacked_logits(logits)

        logits = Logits(
            logits_fn,
            jit_compile=self._use_xla(),
            independent=self.attack_mode == "inference",
            loss=self.example_loss(),
        )
        logits.momentary = True
        logits.nonfinite = self._nonfinite_counter()
        return logits.given(Context(inputs=others)) if others else logits

    def _nonfinite_counter(self) -> Any:
        """Returns a variable that counts gradients with NaN or infinity.

        None under a strategy, where a variable would be one of each replica.
        """
        if tf.distribute.has_strategy():
            return None
        if self._nonfinite is None:
            with tf.init_scope():
                counter = tf.Variable(0, dtype=tf.int64, trainable=False)
            object.__setattr__(self, "_nonfinite", counter)
        return self._nonfinite

    def _warn_of_nonfinite_gradients(self) -> None:
        """Warns, once, of an attack whose gradients were NaN or infinite."""
        if self._nonfinite is None or self._warned:
            return
        count = int(self._nonfinite.numpy())
        if count:
            self._warned = True
            warnings.warn(
                f"{count} of the input gradients of perturb_inputs were NaN or "
                "infinite and were replaced by zeros, so the attack in "
                f"training is weaker than it seems. {red_flags.NAN_CAUSE}",
                stacklevel=4,
            )

    def _sharpened_by_parts(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        step: Step,
    ) -> Pass:
        """Returns the mean of `_sharpened` over the parts of the batch."""
        if self.sub_batches == 1:
            return self._sharpened(weights, state, batch, step)
        return m_sharpness.mean_of_parts(
            self._sharpened,
            lambda batch, found: m_sharpness.weight_of_part(self, batch, found),
            weights,
            state,
            batch,
            step,
            self.sub_batches,
            unroll=self.sharpness == "global" and replicas() > 1,
        )

    def _sharpened(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        step: Step,
    ) -> Pass:
        """Returns the pass at w, with the gradients of the pass at w + e."""
        return second_pass.sharpened(self, weights, state, batch, step)

    def _checked_pass(self, first: Pass) -> Pass:
        """Returns a pass behind assertions that its predictions are valid."""
        found = matching.assertions_on(self, first.y_pred)
        if not found:
            return first
        gradients, updates, versions = assertions.behind(
            found, (first.gradients, first.updates, first.versions)
        )
        return first._replace(
            gradients=gradients, updates=updates, versions=versions
        )

    def _descend(self, first: Pass) -> None:
        """Assigns the state that a pass leaves, and applies its gradients."""
        self._draws.finish()
        others, variables = self._state_variables(), self.trainable_variables
        for position, value in first.updates.items():
            others[int(position)].assign(value)
        for position, values in first.versions.items():
            variables[int(position)].assign(values[-1])
        if variables:
            self.optimizer.apply_gradients(
                zip(first.gradients, variables, strict=True)
            )
        else:
            warnings.warn("The model has no trainable weights.", stacklevel=3)

    def build_for(self, data: Any) -> None:
        """Builds layers, metrics, losses and the optimizer, if necessary.

        `fit` calls it with the first batch.

        Args:
            data: a batch of the data that is passed to `fit`, or the
                `tf.TensorSpec`s of one.

        Raises:
            ValueError: if the network, the losses and the data do not match.
        """
        if keras.utils.unpack_x_y_sample_weight(data)[1] is None:
            self._check_unlabelled()
        # Inside a stateless scope no variable can be made. Keras calls this
        # method itself only under a strategy; it runs nothing.
        self._symbolic_build(data_batch=data)
        self._check_loss(data)
        second_pass.check_optimizer(self)
        replays.check_optimizer(self)
        if self.sub_batches > 1:
            m_sharpness.check_losses(self)
        foreign_code.inspect(self, data)
        found = [v.path for v in self._perturbed_variables()]
        if self.perturbation_state and found != self._state_of:
            raise ValueError(
                f"{self.perturb_weights} keeps a state for the weights that "
                "were trainable when the RobustModel was made: make a new one "
                f"after freezing or unfreezing. Received: {found}"
            )

    def _check_loss(self, data: Any) -> None:
        """Refuses also losses that cannot be combined from parts of a batch."""
        super()._check_loss(data)
        if self.sub_batches > 1 and is_sum(self.loss):
            raise ValueError(
                "sub_batches takes the mean of the parts' losses, so the loss "
                "must be a mean over the batch, not its sum. Received: "
                f"reduction=sum, sub_batches={self.sub_batches}"
            )

    def _check_first_batch(self, data: Any) -> None:
        """Raises a ValueError if a batch cannot be trained on; runs eagerly.

        It repeats the checks that are traced into the step. The network runs
        only if its layers do not show whether it returns logits, or if the
        attack is of another package: its images are checked. These passes
        change nothing.
        """
        data = tf.nest.map_structure(tensor, data)
        # Layers may draw from `random` whenever Keras calls them; without this
        # the check would change their draws in training.
        drawn = random.getstate() if self.built else None
        try:
            self._check_batch(data)
        finally:
            if drawn is not None:
                random.setstate(drawn)

    def _check_batch(self, data: Any) -> None:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.build_for(data)
        matching.checked_labels(self, x, y)
        if self.perturb_inputs is not None:
            if replays.of(self.perturb_inputs):
                replays.checked(self, x)
            inputs = self._inputs(x)
            pixels = self._checked_pixels(
                x if inputs is None else inputs.split(x)[0]
            )
            if tf.is_tensor(y) and matching.needs_attacked(self.perturb_inputs):
                self._check_attack(x, pixels, y)
        if matching.needs_predictions(self):
            object.__setattr__(self, "_draws", None)
            with self._scope(*self._values()):
                y_pred = self(x, training=True)
            matching.check_predictions(self, y_pred)

    def _check_attack(self, x: Any, pixels: tf.Tensor, y: tf.Tensor) -> None:
        """Runs the attack on a batch, eagerly, and checks its images."""
        object.__setattr__(self, "_draws", None)
        inputs = self._inputs(x)
        others = () if inputs is None else inputs.split(x)[1]
        logits = self._attacked_logits(*self._values(), inputs, others)
        logits.nonfinite = None  # Only gradients in training are counted.
        seeds = example_seeds(tf.constant([self.seed, 0]), tf.shape(pixels)[0])
        attack = self.perturb_inputs
        x_adv = self.attacked(attack, logits, pixels, y, seeds)
        matching.check_attacked(attack, pixels, x_adv)

    def _own_variables(self) -> list[Any]:
        offsets = [] if self.offsets is None else [self.offsets]
        return [self.step_count, *self.perturbation_state, *offsets]

    def __identity__(self) -> keras.Model:
        """Returns the network: in inference there is nothing else."""
        return self.network

    def get_config(self) -> dict[str, Any]:
        """Returns every argument of the constructor, as JSON's types."""
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
            attacked=self.attacked_input,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "RobustModel":
        """Builds a model from the result of `get_config`.

        Args:
            config: of `get_config`.
            custom_objects: dict from names to classes or functions, for parts
                that are not registered with Keras.
        """
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


def _symbolic(shapes: Any) -> Any:
    """Returns symbolic inputs of one shape, or of a dict or list of shapes."""
    if isinstance(shapes, dict):
        return {key: _symbolic(shape) for key, shape in shapes.items()}
    if any(isinstance(part, (list, tuple)) for part in shapes):
        return [_symbolic(shape) for shape in shapes]
    return keras.Input(batch_shape=shapes)
