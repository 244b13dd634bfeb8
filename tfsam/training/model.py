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

import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsam.support import devices
from tfsam.support.rescaling import warn_of_rescaling
from tfsam.support.validators import check_choice
from tfsam.support.validators import check_count
from tfsam.training import arguments
from tfsam.training import first_batch
from tfsam.training import foreign_code
from tfsam.training import matching
from tfsam.training import perturbed_inputs
from tfsam.training import replays
from tfsam.training import sharpness as second_pass
from tfsam.training import step_state
from tfsam.training import sub_batches as m_sharpness
from tfsam.training.batch import Batch
from tfsam.training.scope import Draws
from tfsam.training.stateless import Pass
from tfsam.training.stateless import PureModel
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
        self.seed = check_count("seed", _drawn() if seed is None else seed)
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
            self.network(step_state.symbolic(input_shape))
        matching.check_network(self.network, self.exclude)
        arguments.check_perturbed(self)
        # The number of training steps keys the noise, so that a resumed run
        # continues the same sequence.
        self.step_count = self.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False,
            name="step_count",
        )  # fmt: skip
        self._state_of = [v.path for v in self._perturbed_variables()]
        self.perturbation_state = step_state.of_perturbation(self)
        self.objective_state = step_state.of_objective(self, input_shape)
        self.offsets = replays.offsets(self, input_shape)
        self.built = True

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
                see `perturbed_inputs.perturbed`.

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
        first = m_sharpness.sharpened(self, weights, state, batch, step)
        first = matching.checked_pass(self, first)
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

    # A method, so that a subclass may attack otherwise.
    _perturbed_inputs = perturbed_inputs.perturbed

    def _warn_of_nonfinite_gradients(self) -> None:
        perturbed_inputs.warn_of_nonfinite_gradients(self)

    def _sharpened(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        step: Step,
    ) -> Pass:
        """Returns the pass at w, with the gradients of the pass at w + e."""
        return second_pass.sharpened(self, weights, state, batch, step)

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
        m_sharpness.check_reduction(self)
        second_pass.check_optimizer(self)
        replays.check_optimizer(self)
        m_sharpness.check_losses(self)
        foreign_code.inspect(self, data)
        step_state.check(self)

    def _check_first_batch(self, data: Any) -> None:
        """Checks that a batch can be trained on; runs eagerly."""
        first_batch.check(self, data)

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


def _drawn() -> int:
    """Draws a seed: the chief's, as each worker would draw a different one."""
    drawn = int(np.random.randint(2**31 - 1))
    return devices.of_chief(tf.distribute.get_strategy(), drawn)
