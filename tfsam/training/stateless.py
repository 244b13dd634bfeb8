"""A Keras model whose training pass is a pure function of its weights.

`PureModel` runs forward and backward passes with tensors in place of the
model's variables. A pass changes nothing: new values of BatchNorm statistics
and seeds are returned with the gradients, and `RobustModel`, see `model.py`,
decides which of them to keep.
"""

import itertools
import re
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import tensorflow as tf

from tfsam import registries
from tfsam.attacks.losses import classes
from tfsam.attacks.losses import cross_entropy
from tfsam.attacks.per_example import where
from tfsam.support.logit_checks import class_logits
from tfsam.support.onednn import copies_of_one
from tfsam.support.single_logits import of_two_classes
from tfsam.training import compiled_losses
from tfsam.training import foreign_code
from tfsam.training import matching
from tfsam.training import replays
from tfsam.training.batch import Batch
from tfsam.training.compiled_losses import are_soft
from tfsam.training.returned_values import objective_values
from tfsam.training.scope import AssigningScope
from tfsam.training.scope import PureScope
from tfsam.training.scope import current
from tfsam.training.soft_labels import SoftCrossEntropy
from tfsam.training.trainer import Trainer
from tfsam.weights.base import kind
from tfsam.weights.normalization import normalization_weights

# Values that trainable variables take in a pass, by position in
# `trainable_variables`, first to last.
Versions = dict[str, list[tf.Tensor]]


class Pass(NamedTuple):
    """The results of one forward and backward pass.

    Attributes:
        loss: of the batch, a scalar.
        losses: of each example, a tensor (batch,); None if the objective does
            not return them.
        y_pred: the predictions, a tensor or a structure of tensors.
        masks: Keras's masks of the predictions, one an output, or None.
        gradients: one per trainable variable, None where the loss does not
            depend on it.
        updates: new values of other variables, by position in
            `_state_variables`.
        versions: for each trainable variable that a layer assigned, its values
            in the pass, first to last.
        both: for a weight perturbation with a method `after`, the gradients at
            w and at w + e, as it sees them.
        slope: the gradient of the perturbed inputs, of their shape, for an
            attack that takes it from the pass; None for others.
    """

    loss: Any
    losses: Any
    y_pred: Any
    masks: Any
    gradients: Any
    updates: Any
    versions: Any
    both: Any = None
    slope: Any = None

    def ended(self, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the weights as the pass left them.

        Args:
            weights: values that the trainable variables began the pass with.
        """
        return [
            self.versions[str(place)][-1] if str(place) in self.versions else w
            for place, w in enumerate(weights)
        ]


def compiled_loss(model: Any, batch: Batch) -> tuple[tf.Tensor, Any]:
    """Computes the default objective: the loss of the perturbed inputs.

    An objective of your own is a function with the same signature. It may
    return the loss of each example, a tensor (batch,), as a third result; the
    metrics are those of the predictions that it returns.

    Args:
        model: the `RobustModel`.
        batch: the batch.

    Returns:
        (loss, predictions): a scalar, and the outputs of the network.
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


class PureModel(Trainer):
    """Base of `RobustModel`: passes that change no variable.

    Attributes:
        network: the inner network.
        objective: a function (model, Batch), see `compiled_loss`; None is
            `compiled_loss`.
        perturb_inputs: an attack or None.
        perturb_weights: a weight perturbation or None.
        exclude: regular expressions for paths of weights that stay
            unperturbed.
    """

    built: bool
    objective: Any
    perturb_inputs: Any
    perturb_weights: Any
    exclude: list[str]
    # The `compiled_losses.Outputs`, once the losses are built.
    _outputs: Any = ()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the network's outputs.

        Args:
            inputs: as the network takes them.
            training: passed on to the network by Keras's call context.
        """
        return self.network(inputs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Computes the compiled loss, and those that layers add.

        Args:
            x: the inputs that the network saw.
            y: labels. A loss of class numbers also takes soft labels, see
                `tfsam.training.soft_labels`.
            y_pred: predictions.
            sample_weight: weights of the examples, or None.
            training: whether the loss is one of training.

        Returns:
            A scalar.
        """
        if not are_soft(self.loss, y, y_pred):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        compiled = self._compile_loss
        if not compiled.built:
            compiled.build(classes(y), y_pred)
        (found,) = compiled._flat_losses
        loss = SoftCrossEntropy(found.loss)(y, y_pred, sample_weight)
        loss = keras.ops.cast(loss, compiled.dtype)
        if found.loss_weights is not None:
            loss = keras.ops.multiply(loss, found.loss_weights)
        others = [self._aggregate_additional_loss(part) for part in self.losses]
        return keras.ops.sum([loss, *others]) if others else loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        """Computes Keras's metrics; see `Trainer.compute_metrics`.

        Args:
            x: the inputs that the network saw.
            y: labels. Beside a loss of class numbers, the metrics of soft
                labels are those of the class of the largest share.
            y_pred: predictions.
            sample_weight: weights of the examples, or None.

        Returns:
            A dict from names to values.
        """
        if are_soft(self.loss, y, y_pred):
            y = classes(y)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def unrecorded(self) -> Any:
        """Returns a context in which calls of the model leave no trace.

        For an objective's second call of the model: BatchNorm's statistics
        stay those of its first. Layers of random augmentation draw as in the
        first call, and weights that a layer assigned keep their new values.
        """
        scope = current()
        if scope is not None:
            seeds = [
                variable
                for layer in augmentation_layers(self.network)
                for variable in layer.variables
            ]
            return scope.again(seeds)
        seen = [*self.trainable_variables, *self._other_variables()]
        return AssigningScope(None, [(v, v.value) for v in seen])

    def _pass(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        scale: tf.Tensor,
        versions: Versions | None = None,
    ) -> Pass:
        """Runs a batch forward and backward, as a pure function.

        Args:
            weights: values of the trainable variables.
            state: values of the other variables.
            batch: the batch.
            scale: the loss scale, a scalar; gradients are multiplied by it.
            versions: those of an earlier pass, see `_scope`; None in the first
                pass of a step.
        """
        # Free training takes the gradient of the pixels from the same pass.
        pixels = [batch.x_adv] if replays.of(self.perturb_inputs) else []
        with tf.GradientTape() as tape:
            tape.watch([weights, pixels])
            with self._scope(weights, state, tape, versions) as scope:
                loss, y_pred, losses = self._objective(batch)
            scaled = loss * tf.cast(scale, loss.dtype)
        foreign_code.check_reads(self, tape)
        *slopes, each = tape.gradient(scaled, [*pixels, scope.versions])
        gradients = list(map(foreign_code.total, each))
        lost = [i for i in scope.read if gradients[i] is None]
        if lost:
            foreign_code.check_lost(self, lost, batch)
        masks = [
            getattr(part, "_keras_mask", None)
            for part in tf.nest.flatten(y_pred)
        ]
        assigned = {
            str(place): values
            for place, values in enumerate(scope.versions)
            if len(values) > 1
        }
        updates = self._updates(scope, state)
        slope = dense(slopes, pixels)[0] if pixels else None
        found = loss, losses, y_pred, masks, gradients, updates, assigned
        return Pass(*found, slope=slope)

    def _updates(
        self, scope: PureScope, state: Sequence[tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns the new values in a scope, and lists variables found there.

        Args:
            scope: of a pass that is over.
            state: values that the pass began with.
        """
        listed = self._state_variables()[: len(state)]
        updates = {}
        for position, (variable, old) in enumerate(
            itertools.zip_longest([*listed, *scope.unknown], state)
        ):
            new = scope.get_current_value(variable)
            if new is not old:
                updates[str(position)] = tf.convert_to_tensor(new)
        found = {id(v) for v in self._unlisted}
        self._unlisted.extend(v for v in scope.unknown if id(v) not in found)
        return updates

    def _example_losses(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        versions: Versions | None = None,
    ) -> tf.Tensor:
        """Returns the loss of each example, as a pure function."""
        with self._scope(weights, state, versions=versions):
            return self._objective(batch)[2]

    def _squared_gradients(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        batch: Batch,
        scale: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Returns squared gradients, summed over the examples.

        They are of each example's cross-entropy in inference mode, one example
        at a time; a pure function.
        """
        count = tf.shape(batch.y)[0]
        # An example's share of the scale, which is meant for a mean.
        share = tf.maximum(scale / tf.cast(count, scale.dtype), 1.0)

        def gradients(x: Any, y: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                with self._scope(weights, state):
                    logits = self(x, training=False)
                losses = cross_entropy(class_logits(logits, y), y)
                scaled = share * tf.reduce_mean(losses)
            found = dense(tape.gradient(scaled, weights), weights)
            return [g / tf.cast(share, g.dtype) for g in found]

        compiled = self._compiled(gradients)

        def add(index: tf.Tensor, *sums: tf.Tensor) -> tuple[Any, ...]:
            one = [index] * copies_of_one(self.network)
            x = tf.nest.map_structure(lambda t: tf.gather(t, one), batch.x_adv)
            found = compiled(x, tf.gather(batch.y, one))
            return index + 1, *[
                s + tf.square(g) for s, g in zip(sums, found, strict=True)
            ]

        sums: list[tf.Tensor] = tf.while_loop(
            lambda index, *_: index < count,
            add,
            (0, *[tf.zeros_like(w) for w in weights]),
            parallel_iterations=1,
        )[1:]
        return sums

    def _objective(self, batch: Batch) -> tuple[tf.Tensor, Any, Any]:
        """Returns the objective's loss, predictions, and example losses."""
        if self.objective is not None:
            return objective_values(self.objective, self.objective(self, batch))
        loss, y_pred = compiled_loss(self, batch)
        wanted = getattr(self.perturb_weights, "select", None) is not None
        if not wanted or not tf.is_tensor(y_pred):
            return loss, y_pred, None
        logits = class_logits(y_pred, batch.y)
        return loss, y_pred, cross_entropy(logits, batch.y)

    def _scope(
        self,
        weights: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        tape: Any = None,
        versions: Versions | None = None,
    ) -> PureScope:
        """Returns a scope in which tensors replace the model's variables.

        Args:
            weights: values of the trainable variables.
            state: values of the other variables.
            tape: the `tf.GradientTape` that records the pass, or None.
            versions: those of an earlier `Pass`. This pass repeats its
                assignments, each moved by the distance from the last of them
                to `weights`.
        """
        if versions is not None:
            versions = {
                place: _moved(values, weights[int(place)])
                for place, values in versions.items()
            }
            if tape is not None:
                tape.watch([values[0] for values in versions.values()])
        return PureScope(
            zip(self.trainable_variables, weights, strict=True),
            # Variables that a pass has just found have no value yet.
            zip(self._state_variables(), state, strict=False),
            tape,
            versions,
            self._draws,
        )

    def _own_variables(self) -> list[Any]:
        """Returns variables of the training step itself, hidden from passes."""
        return []

    def _other_variables(self) -> list[Any]:
        """Returns statistics, seeds, frozen weights and metrics' variables."""
        own = {id(v) for v in self._own_variables()}
        found = [*self.non_trainable_variables, *self.metrics_variables]
        return [
            v
            for v in {id(v): v for v in found}.values()
            if id(v) not in own and v.dtype != "string"
        ]

    def _state_variables(self) -> list[Any]:
        """Returns all variables but the trainable that a pass may access."""
        return [*self._other_variables(), *self._unlisted]

    def _perturbed_positions(self) -> list[int]:
        """Returns positions in `trainable_variables` of perturbed weights."""
        layers = registries.WEIGHTS.fact(self.perturb_weights, "layers")
        variables = self.trainable_variables
        if layers == "normalization":
            variables = normalization_weights(self.network)
        within = {id(variable) for variable in variables}
        return [
            position
            for position, variable in enumerate(self.trainable_variables)
            if not any(re.search(p, variable.path) for p in self.exclude)
            and not variable.overwrite_with_gradient
            and id(variable) in within
        ]

    def _perturbed_variables(self) -> list[Any]:
        variables = self.trainable_variables
        return [variables[i] for i in self._perturbed_positions()]

    def _overwriting(self) -> list[bool]:
        """Returns which trainable variables take their gradient as value."""
        return [v.overwrite_with_gradient for v in self.trainable_variables]

    def _kinds(self) -> list[str]:
        """Returns the kind of each perturbed weight, such as "kernel"."""
        return [kind(variable) for variable in self._perturbed_variables()]

    def example_loss(self) -> Callable[[tf.Tensor, Any], tf.Tensor] | None:
        """Returns the compiled loss as attacks climb it.

        Returns:
            A function of (outputs, labels) to one number per example, (batch,),
            or None for cross-entropy, see `compiled_losses.example_loss`.
        """
        return (
            compiled_losses.example_loss(self._outputs[0])
            if self._outputs
            else None
        )

    def attacked_logits(self, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the network's output as attacks take it.

        Args:
            y_pred: tensor, the network's only output.

        Returns:
            The logits of two classes if it is a single logit, else the output.
        """
        single = self._outputs and self._outputs[0].single_logit
        return of_two_classes(y_pred) if single else y_pred

    def attacked(
        self,
        attack: Callable[..., tf.Tensor],
        logits: Any,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
    ) -> tf.Tensor:
        """Attacks a batch, except for examples that the loss ignores.

        Args:
            attack: a callable, see the contract in `attacks/base.py`.
            logits: the `Logits` to attack.
            x: float tensor (batch, ...).
            y: tensor of labels.
            seeds: int32 tensor (batch, 2).

        Returns:
            A tensor of x's shape.
        """
        number = self._outputs[0].ignored if self._outputs else None
        if number is None:
            return attack(logits, x, y, seeds)
        left_out = y == tf.cast(number, y.dtype)
        ignored = tf.reduce_all(tf.reshape(left_out, [tf.shape(y)[0], -1]), 1)
        if len(y.shape) < 3:  # Any class will do in place of an ignored one.
            y = tf.where(left_out, tf.zeros_like(y), y)
        return where(ignored, x, attack(logits, x, y, seeds))

    def _predicted(self, first: Pass) -> Any:
        """Returns a pass's predictions with Keras's masks, for the metrics.

        Results of a compiled function are new tensors without masks.
        """
        parts = tf.nest.flatten(first.y_pred)
        for part, mask in zip(parts, first.masks, strict=True):
            if mask is not None:
                part._keras_mask = mask
        return first.y_pred

    def _check_unlabelled(self) -> None:
        """Refuses data without labels where a loss or an attack needs them."""
        if self.loss is not None or self.perturb_inputs is not None:
            raise ValueError(
                "data must hold labels y beside x, for the compiled loss and "
                f"the attack. Received: y=None, loss={self.loss}"
            )

    def _check_loss(self, data: Any) -> None:
        """Refuses losses, labels and outputs that do not match.

        Args:
            data: a batch, or its specs; the losses are built.
        """
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self._outputs = compiled_losses.outputs(self, x, y)
        matching.check_outputs(self, y)


def _moved(values: list[tf.Tensor], last: tf.Tensor) -> list[tf.Tensor]:
    """Moves values so that the last of them becomes `last`."""
    distance = tf.stop_gradient(last - values[-1])
    return [*[value + distance for value in values[:-1]], last]


def augmentation_layers(network: keras.Model) -> list[Any]:
    """Returns the layers that change their inputs at random in training.

    Args:
        network: a `keras.Model`.
    """
    return [
        layer
        for layer in network._flatten_layers()
        if hasattr(layer, "get_random_transformation") and layer.variables
    ]


def dense(
    gradients: Sequence[Any], weights: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Converts gradients to tensors: slices to dense ones, None to zeros.

    Args:
        gradients: tensors, `tf.IndexedSlices`, or None.
        weights: tensors of the gradients' shapes.
    """
    return [
        tf.zeros_like(w) if g is None else tf.convert_to_tensor(g)
        for g, w in zip(gradients, weights, strict=True)
    ]
