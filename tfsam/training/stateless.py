"""A Keras model whose training pass is a pure function of its weights.

`RobustModel` in `model.py` says what a training step does; this base knows how
Keras is to be asked for it: tensors in the variables' place, forward and
backward passes that change nothing, and what Keras's own training step does
besides.
"""

import contextlib
import functools
import itertools
import re
import warnings
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfsam.attacks.base import Attack
from tfsam.attacks.base import where
from tfsam.attacks.losses import cross_entropy
from tfsam.support import assertions
from tfsam.support import devices
from tfsam.support.labels import assert_class_numbers
from tfsam.support.labels import assert_distributions
from tfsam.support.layers import flattened
from tfsam.support.onednn import copies_of_one
from tfsam.support.onednn import warn_of_unsafe_gradients
from tfsam.support.outputs import assert_logits
from tfsam.support.outputs import assert_probabilities
from tfsam.support.outputs import check_class_outputs
from tfsam.support.outputs import class_logits
from tfsam.training import compiled_losses
from tfsam.training.scope import AssigningScope
from tfsam.training.scope import PureScope
from tfsam.training.scope import current
from tfsam.weights.base import kind

_UNSEEN = (
    "network must read its weights as Keras variables, where TensorFlow "
    "records gradients. A layer holds the tf.Variable behind one, or reads it "
    "in a graph that was loaded or traced before, or in keras.remat (use "
    "keras.RematScope): it cannot be perturbed. Change that layer, or freeze "
    "it. Received: variable="
)


class Batch(NamedTuple):
    """One batch, as objectives see it; `x_adv` is `x` without an attack."""

    x: Any
    x_adv: Any
    y: Any
    sample_weight: Any


class Pass(NamedTuple):
    """What one forward and backward pass gives.

    Attributes:
        loss: of the batch, a scalar.
        losses: of each example, None if the objective does not tell.
        y_pred: the predictions.
        masks: Keras's masks of the predictions.
        gradients: by position in `trainable_variables`, None where the loss
            does not depend on a weight.
        updates: new values of other variables, by position.
        versions: of the trainable variables that a layer assigned, by
            position, the values in the pass: the first, and each assigned.
    """

    loss: Any
    losses: Any
    y_pred: Any
    masks: Any
    gradients: Any
    updates: Any
    versions: Any

    def ended(self, weights):
        """These weights, and in their place those that the pass assigned."""
        return [
            self.versions[str(place)][-1] if str(place) in self.versions else w
            for place, w in enumerate(weights)
        ]


def compiled_loss(model, batch):
    """The default objective: the compiled loss of the perturbed inputs.

    Args:
        model: the `RobustModel`.
        batch: a `Batch`.

    Returns:
        (loss, predictions). An objective of your own has this signature, or
        returns the loss of each example as a third; the predictions that it
        returns are those that the metrics see.
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


class PureModel(keras.Model):
    """Base of `RobustModel`: see the module's docstring.

    Attributes:
        network: the inner network.
        objective: a function (model, Batch), see `compiled_loss`.
        perturb_inputs: an attack or None.
        perturb_weights: a weight perturbation or None.
        exclude: regular expressions of paths of weights.
    """

    built: bool
    jit_compile: bool
    network: keras.Model
    objective: Any
    perturb_inputs: Any
    perturb_weights: Any
    exclude: list[str]
    # What `_check_loss` found, output by output.
    _outputs: Any = ()
    # The type of `fit`'s array of pixels if it is of halves, else None.
    _pixels: Any = None

    @functools.wraps(keras.Model.fit)
    def fit(self, x=None, *args, **kwargs):
        """Keras's own; a failed check of the data is an error of one line."""
        self._note_pixels(x)
        with assertions.one_line():
            return super().fit(x, *args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, x, *args, **kwargs):
        """Keras's own; a failed check of the data is an error of one line."""
        self._note_pixels(x)
        with assertions.one_line():
            return super().train_on_batch(x, *args, **kwargs)

    def call(self, inputs, training=None):
        """The network's outputs; `training` reaches it by Keras's context."""
        return self.network(inputs)

    def unrecorded(self):
        """A scope in which calls of the model leave its state as it is.

        For an objective's second call: BatchNorm's statistics are those of the
        predictions that it returns. Layers of random augmentation draw as they
        did in the first call, and weights that a layer has assigned stay.
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

    def _pass(self, weights, state, batch, scale, versions=None):
        """A pure function: the `Pass` of a batch at these weights.

        Args:
            weights: values of the trainable variables.
            state: values of the other variables.
            batch: a `Batch`.
            scale: the loss scale, a scalar.
            versions: see `_scope`; None is a pass of its own.
        """
        with tf.GradientTape() as tape:
            tape.watch(weights)
            with self._scope(weights, state, tape, versions) as scope:
                loss, y_pred, losses = self._objective(batch)
            scaled = loss * tf.cast(scale, loss.dtype)
        self._check_reads(tape)
        gradients = [
            _total(found) for found in tape.gradient(scaled, scope.versions)
        ]
        lost = [i for i in scope.read if gradients[i] is None]
        if lost:
            self._check_lost(lost, batch)
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
        masks = [
            getattr(part, "_keras_mask", None)
            for part in tf.nest.flatten(y_pred)
        ]
        versions = {
            str(place): values
            for place, values in enumerate(scope.versions)
            if len(values) > 1
        }
        return Pass(loss, losses, y_pred, masks, gradients, updates, versions)

    def _example_losses(self, weights, state, batch, versions=None):
        """A pure function: the loss of each example, state discarded."""
        with self._scope(weights, state, versions=versions):
            return self._objective(batch)[2]

    def _squared_gradients(self, weights, state, batch, scale):
        """A pure function: squared gradients, summed over the examples."""
        count = tf.shape(batch.y)[0]
        # An example's share of the scale, which is meant for a mean.
        share = tf.maximum(scale / tf.cast(count, scale.dtype), 1.0)

        def gradients(x, y):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                with self._scope(weights, state):
                    logits = self(x, training=False)
                losses = cross_entropy(class_logits(logits, y), y)
                scaled = share * tf.reduce_mean(losses)
            found = dense(tape.gradient(scaled, weights), weights)
            return [g / tf.cast(share, g.dtype) for g in found]

        gradients = self._compiled(gradients)

        def add(index, *sums):
            one = [index] * copies_of_one(self.network)
            x = tf.nest.map_structure(lambda t: tf.gather(t, one), batch.x_adv)
            found = gradients(x, tf.gather(batch.y, one))
            return index + 1, *[
                s + tf.square(g) for s, g in zip(sums, found, strict=True)
            ]

        return tf.while_loop(
            lambda index, *_: index < count,
            add,
            (0, *[tf.zeros_like(w) for w in weights]),
            parallel_iterations=1,
        )[1:]

    def _objective(self, batch):
        """The objective's loss, predictions, and losses of each example."""
        found = (self.objective or compiled_loss)(self, batch)
        if len(found) == 3:
            return found
        loss, y_pred = found
        wanted = getattr(self.perturb_weights, "select", None) is not None
        if not wanted or self.objective or not tf.is_tensor(y_pred):
            return loss, y_pred, None
        logits = class_logits(y_pred, batch.y)
        return loss, y_pred, cross_entropy(logits, batch.y)

    def _scope(self, weights, state, tape=None, versions=None):
        """A `PureScope` of these tensors.

        Args:
            weights: values of the trainable variables.
            state: values of the other variables.
            tape: the `tf.GradientTape` that records the pass, or None.
            versions: those of another `Pass`, whose assignments this one
                repeats, as far away as `weights` are from the last of them.
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
            # Those that a pass has just found have no value yet.
            zip(self._state_variables(), state, strict=False),
            tape,
            versions,
            self._draws,
        )

    def _check_reads(self, tape):
        """Refuses a network that reads its weights where no scope can be."""
        past = {v.ref() for v in tape.watched_variables()}
        if not past:
            return
        for variable in self.trainable_variables:
            local = self.distribute_strategy.experimental_local_results
            if any(part.ref() in past for part in local(variable._value)):
                raise ValueError(_UNSEEN + variable.path)

    def _check_lost(self, positions, batch):
        """Refuses a network whose gradients a scope loses and Keras has.

        Args:
            positions: of trainable variables that were read, and have none.
            batch: a `Batch`.
        """
        lost = [self.trainable_variables[i] for i in positions]
        seen = {v.path for v in lost}
        if seen <= self._without_gradient:
            return

        def plain(batch):
            with tf.GradientTape() as tape:
                with AssigningScope(tape) as scope:
                    loss, *_ = self._objective(batch)
            versions = [[v.value, *scope.assigned(v)] for v in lost]
            return list(map(_total, tape.gradient(loss, versions)))

        if tf.executing_eagerly():
            found = plain(batch)
        else:
            found = _traced(plain, batch).structured_outputs
        for variable, gradient in zip(lost, found, strict=True):
            if gradient is not None:
                raise ValueError(_UNSEEN + variable.path)
        self._without_gradient.update(seen)

    def _inspect(self, data):
        """Finds what code of others than Keras does with variables.

        A pass may assign variables that the model does not list, such as the
        state of Keras's global seed; they are listed in `_unlisted` from now
        on. For networks of Keras's own layers there is nothing to find, and a
        step that runs eagerly finds it as it goes.
        """
        parts = [*self.network._flatten_layers()]
        parts += [] if self.objective is None else [self.objective]
        known = all(map(_is_known, parts))
        if known or self._inspected or tf.executing_eagerly():
            return
        scopes = []

        def forward(data):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            weights = [
                tf.convert_to_tensor(v) for v in self.trainable_variables
            ]
            state = [tf.convert_to_tensor(v) for v in self._state_variables()]
            with self._scope(weights, state) as scope:
                scopes.append(scope)
                scope.inspecting = True
                self._objective(Batch(x, x, y, sample_weight))

        graph = _traced(forward, data).graph
        for name in _assigned(graph):
            raise ValueError(
                "network must keep its state in Keras variables, such as "
                "add_weight(trainable=False) makes: a tf.Variable would change "
                f"in every pass of a step. Received: variable={name}"
            )
        for place in scopes[-1].unrecorded:
            raise ValueError(_UNSEEN + self.trainable_variables[place].path)
        self._unlisted.extend(scopes[-1].unknown)
        object.__setattr__(self, "_inspected", True)

    def _own_variables(self):
        """Variables of the training step itself, which no pass may see."""
        return []

    def _other_variables(self):
        """Non-trainable state: statistics, seeds, frozen weights, metrics."""
        own = {id(v) for v in self._own_variables()}
        found = [*self.non_trainable_variables, *self.metrics_variables]
        return [
            v
            for v in {id(v): v for v in found}.values()
            if id(v) not in own and v.dtype != "string"
        ]

    def _state_variables(self):
        """All variables, but the trainable, that a pass may read or write."""
        return [*self._other_variables(), *self._unlisted]

    def _perturbed_positions(self):
        """Positions in trainable_variables of what may be perturbed."""
        return [
            position
            for position, variable in enumerate(self.trainable_variables)
            if not any(re.search(p, variable.path) for p in self.exclude)
            and not variable.overwrite_with_gradient
        ]

    def _overwriting(self):
        """Which trainable variables take their gradient as their value."""
        return [v.overwrite_with_gradient for v in self.trainable_variables]

    def _perturbed_variables(self):
        variables = self.trainable_variables
        return [variables[i] for i in self._perturbed_positions()]

    def _kinds(self):
        return [kind(variable) for variable in self._perturbed_variables()]

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
        for variable in self.network.trainable_variables:
            if variable.dtype in ("float16", "bfloat16"):
                raise ValueError(
                    "the network's weights must be float32 or float64: steps "
                    "are too small for halves. A policy such as mixed_bfloat16 "
                    "computes in halves. "
                    f"Received: {variable.path} of {variable.dtype}"
                )
        for layer in flattened(self.network):
            # Its state is no variable that Keras knows of, or can replace.
            if getattr(layer, "stateful", False):
                raise ValueError(
                    "network must have no stateful recurrent layers. "
                    f"Received: layer={layer.name}"
                )

    def _check_loss(self, data):
        """Refuses losses, labels and outputs that do not fit together.

        Args:
            data: a batch, or its specs; the losses are built.
        """
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self._outputs = compiled_losses.outputs(self, x, y)
        part = self._part_of_classes()
        if part is not None:
            check_class_outputs(
                _name(part), [output.spec for output in self._outputs], y
            )
            self._check_ignored(part)
        for output in self._outputs:
            self._check_output(output, part)

    def _part_of_classes(self):
        """The perturbation or objective that works on classes, or None."""
        weights = self.perturb_weights
        if getattr(self.objective, "needs_classes", False):
            return self.objective
        if getattr(weights, "needs_classes", False) or (
            self.objective is None and getattr(weights, "select", None)
        ):
            return weights
        attack = self.perturb_inputs
        of_classes = getattr(attack, "needs_classes", False)
        # Without a compiled loss an attack climbs the cross-entropy.
        if of_classes or (
            isinstance(attack, Attack) and self._outputs[0].loss is None
        ):
            return attack
        return None

    def _check_ignored(self, part):
        ignored = self._outputs[0].ignored
        if ignored is not None and part is not self.perturb_inputs:
            raise ValueError(
                f"{_name(part)} weighs each example by its class, so the loss "
                "can leave none out: take these examples out of the data. "
                f"Received: ignore_class={ignored}"
            )

    def _check_unlabelled(self):
        """Refuses data without labels, but where layers have all the losses."""
        if self.loss is not None or self.perturb_inputs is not None:
            raise ValueError(
                "data must hold labels y beside x, for the compiled loss and "
                f"the attack. Received: y=None, loss={self.loss}"
            )

    def _check_output(self, output, part):
        """Refuses a loss that takes an output for what it is not."""
        attacked = self.perturb_inputs is not None
        user = "perturb_inputs" if part is None else _name(part)
        if output.probabilities:
            if part is not None or (attacked and output.takes):
                raise ValueError(
                    f"{user} needs a network that returns "
                    "logits: take the softmax or sigmoid off its end, and give "
                    "the loss from_logits=True, both. "
                    f"Received: network={self.network.name}"
                )
            if output.takes == "logits":
                warnings.warn(
                    f"{self.network.name} ends in a softmax or sigmoid, and "
                    "its loss has from_logits=True: take the one off, or leave "
                    "the other out.",
                    stacklevel=2,
                )
        elif output.takes == "probabilities":
            if output.probabilities is False:
                raise ValueError(
                    "The network returns logits and the loss takes "
                    "probabilities: give it from_logits=True, or take another "
                    "loss where it has no such option. "
                    f"Received: loss={output.loss.name}"
                )
            if attacked or part is not None:
                raise ValueError(
                    f"{user} needs a network that returns "
                    "logits, and a loss that takes them: take a softmax or "
                    "sigmoid off the end of the network, if it has one, and "
                    "give the loss from_logits=True; take another loss where "
                    "it has no such option. "
                    f"Received: loss={output.loss.name}"
                )

    def _checked_batch(self, x, y):
        """The batch, behind assertions that its labels are what they must be.

        They stand outside of what XLA compiles, which drops assertions and
        turns a label of no class into NaN.
        """
        labels = self._labels(y)
        if labels is None:
            return x, y
        of_classes = self._part_of_classes() is not None
        found = []
        for output, label in zip(self._outputs, labels, strict=True):
            if label is None:
                continue
            classes = output.shape[-1] if output.shape else None
            rows = len(label.shape) == 2 and label.shape[-1] != 1
            if of_classes and rows:
                found.append(assert_distributions(label))
            elif classes and (of_classes or output.sparse):
                found.append(
                    assert_class_numbers(label, classes, output.ignored)
                )
        return assertions.behind(found, (x, y))

    def _labels(self, y):
        """The labels of each of the outputs, None if it cannot be told."""
        labels = keras.tree.flatten(y)
        if isinstance(y, dict) and set(y) == set(self.output_names or ()):
            labels = [y[name] for name in self.output_names]
        return labels if len(labels) == len(self._outputs) else None

    def _checked_pass(self, first):
        """A pass, behind assertions that its predictions suit their losses."""
        parts = keras.tree.flatten(first.y_pred)
        attacked = self.perturb_inputs is not None
        of_classes = self._part_of_classes() is not None
        found = []
        if len(parts) == len(self._outputs):
            for output, part in zip(self._outputs, parts, strict=True):
                # Where the network does not tell, its predictions do.
                if output.probabilities is not None:
                    continue
                if of_classes or (attacked and output.takes == "logits"):
                    found.append(assert_logits(part))
                elif output.takes == "probabilities":
                    found.append(assert_probabilities(part))
        if not found:
            return first
        gradients, updates, versions = assertions.behind(
            found, (first.gradients, first.updates, first.versions)
        )
        return first._replace(
            gradients=gradients, updates=updates, versions=versions
        )

    def _note_pixels(self, x):
        """Keeps the type of an array of halves, which Keras makes float32."""
        kind = getattr(getattr(x, "dtype", None), "name", None)
        kind = kind if kind in ("float16", "bfloat16") else None
        if kind != self._pixels:
            self._pixels = kind
            self.train_function = None  # What was traced has another slack.

    def example_loss(self):
        """Returns the compiled loss as attacks climb it.

        Returns:
            A function of (outputs, labels) to one number an example, or None,
            which is cross-entropy; see `compiled_losses.example_loss`.
        """
        return (
            compiled_losses.example_loss(self._outputs[0])
            if self._outputs
            else None
        )

    def attacked(self, attack, logits, x, y, seeds):
        """Attacks a batch, but for the examples that the loss ignores.

        Args:
            attack: of the contract of `attacks/base.py`.
            logits: the `Logits`.
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
        if len(y.shape) < 3:  # Labels of some class in the ignored ones' place.
            y = tf.where(left_out, tf.zeros_like(y), y)
        return where(ignored, x, attack(logits, x, y, seeds))

    def _track_loss(self, loss, x):
        tracker = next(m for m in self.metrics if m.name == "loss")
        # The loss carries 1/replicas for the sum over replicas.
        many = replicas()
        tracker.update_state(
            loss if many == 1 else loss * tf.cast(many, loss.dtype),
            sample_weight=tf.shape(tf.nest.flatten(x)[0])[0],
        )

    def _predicted(self, first):
        """The first pass's predictions, for the metrics."""
        # A compiled function's results are new tensors, without Keras's masks.
        parts = tf.nest.flatten(first.y_pred)
        for part, mask in zip(parts, first.masks, strict=True):
            if mask is not None:
                part._keras_mask = mask
        return first.y_pred

    def _use_xla(self):
        return bool(self.jit_compile) and not self.run_eagerly

    def _compiled(self, function):
        """The function, compiled as `compile(jit_compile=)` asks for."""
        if not self._use_xla():
            return function
        return tf.function(function, jit_compile=True, autograph=False)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Keras's own, but that a batch may be spread over workers.

        Keras takes the mean over replicas to see a batch's shapes, which
        MultiWorkerMirroredStrategy does not do for a batch's tuple (Keras issue
        20585). One replica's share shows them as well.
        """
        strategy = self.distribute_strategy
        if iterator is not None and self._distribute_strategy is not None:
            for _, _, batches in iterator:
                data_batch = tf.nest.map_structure(
                    lambda t: strategy.experimental_local_results(t)[0],
                    next(batches),
                )
                break
        super()._maybe_symbolic_build(data_batch=data_batch)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Keras's own, in the form in which Keras reduces it over workers.

        Under MultiWorkerMirroredStrategy it takes the mean over the first axis,
        which a number does not have.
        """
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        if devices.workers(tf.distribute.get_strategy()) == 1:
            return results
        return tf.nest.map_structure(lambda t: tf.reshape(t, [1]), results)

    def make_train_function(self, force=False):
        """Keras's own, but for XLA: `train_step` compiles its pure pieces.

        XLA must not have the whole step: its loops run on one thread on a CPU,
        and it has no collectives between replicas.
        """
        if not self._use_xla():
            warn_of_unsafe_gradients(self.network)
        with self._plain():
            return super().make_train_function(force=force)

    def make_test_function(self, force=False):
        """Keras's own, but for XLA on several replicas, which fails there."""
        with self._plain_on_several():
            return super().make_test_function(force=force)

    def make_predict_function(self, force=False):
        """Keras's own, but for XLA on several replicas, which fails there."""
        with self._plain_on_several():
            return super().make_predict_function(force=force)

    @contextlib.contextmanager
    def _plain(self):
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            yield
        finally:
            self.jit_compile = jit_compile

    def _plain_on_several(self):
        """XLA's functions see the variables of one device alone."""
        several = self.distribute_strategy.num_replicas_in_sync > 1
        return self._plain() if several else contextlib.nullcontext()


def _name(part):
    """The name of a perturbation or an objective, for messages."""
    return getattr(part, "__name__", type(part).__name__)


def _traced(function, structure):
    """A function of tensors like these, as a graph that is never run."""

    def spec(value):
        if value is None or isinstance(value, tf.TypeSpec):
            return value
        return tf.type_spec_from_value(value)

    specs = tf.nest.map_structure(spec, structure)
    made = tf.function(function, autograph=False)
    return made.get_concrete_function(specs)


def _is_known(part):
    """Whether a layer or objective is made of nothing but Keras's own code."""
    package, *_ = type(part).__module__.partition(".")
    return package in ("keras", "tfsam") and not isinstance(
        part, keras.layers.Lambda
    )


def _assigned(graph):
    """Names of the TensorFlow variables that a graph assigns."""
    names = {
        id(inner): v.name
        for outer, inner in graph.captures
        for v in graph.variables
        if v.handle is outer
    }
    return [
        names.get(id(op.inputs[0]), op.inputs[0].name)
        for op in graph.get_operations()
        if re.fullmatch("Assign.*VariableOp|ResourceScatter.*", op.type)
    ]


def _total(gradients):
    """The sum of some gradients, None where there is none."""
    found = [tf.convert_to_tensor(g) for g in gradients if g is not None]
    return tf.add_n(found) if len(found) > 1 else next(iter(found), None)


def _moved(values, last):
    """Values, all as far away as `last` is from the last of them."""
    distance = tf.stop_gradient(last - values[-1])
    return [*[value + distance for value in values[:-1]], last]


def augmentation_layers(network):
    """The layers of a network that change its inputs at random in training.

    Args:
        network: a `keras.Model`.
    """
    return [
        layer
        for layer in network._flatten_layers()
        if hasattr(layer, "get_random_transformation") and layer.variables
    ]


def tensor(value):
    """Arrays, which Keras hands over when it runs eagerly, as tensors."""
    return (
        tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
    )


def symbolic(shapes):
    """Symbolic inputs of these shapes: one shape, or a dict or list of them."""
    if isinstance(shapes, dict):
        return {key: symbolic(shape) for key, shape in shapes.items()}
    if any(isinstance(part, (list, tuple)) for part in shapes):
        return [symbolic(shape) for shape in shapes]
    return keras.Input(batch_shape=shapes)


def dense(gradients, weights):
    """Gradients with zeros for None, and dense where they are slices."""
    return [
        tf.zeros_like(w) if g is None else tf.convert_to_tensor(g)
        for g, w in zip(gradients, weights, strict=True)
    ]


def replicas():
    """The number of replicas of the current strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync
