"""How flat a network's loss is, around its weights and around its inputs.

Everything is measured in inference mode and nothing is assigned: other weights
are tensors that the network reads in the variables' place, and what its layers
write when they are called is dropped.
"""

import keras
import numpy as np
import scipy.sparse.linalg
import tensorflow as tf

from tfsam.attacks.logits import traced
from tfsam.attacks.losses import cross_entropy
from tfsam.attacks.losses import margin
from tfsam.data import examples
from tfsam.geometry import TINY
from tfsam.support import files
from tfsam.support.labels import check_classes
from tfsam.support.labels import class_labels
from tfsam.support.onednn import warn_of_unsafe_gradients
from tfsam.support.outputs import check_logits
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import along
from tfsam.weights.base import inner
from tfsam.weights.base import kind


class Landscape:
    """The mean cross-entropy of a network on some data, as a function.

    A network with one logit, of class 1 against class 0, is measured by the
    binary cross-entropy.

    Args:
        network: a built `keras.Model` with one input, whole numbers or floats,
            which returns logits (batch, classes) or (batch, 1).
        data: arrays (x, y), or a `tf.data.Dataset`, `keras.utils.PyDataset` or
            generator of them (see `tfsam.data.examples`); y class numbers (n,)
            or one-hot (n, classes). A sample_weight is left out.
        batch_size: examples that go through the network at once, >= 1.
        steps: how many elements of a dataset or a generator to read; None reads
            all, and refuses data that does not end.

    Raises:
        ValueError: if the network is another kind of model, has no weights to
            train, does not take x, returns probabilities or does not return
            logits of the classes that y names; if the data cannot be read, or
            batch_size is less than 1.
    """

    def __init__(self, network, data, *, batch_size=250, steps=None):
        if not isinstance(network, keras.Model):
            name = f"{type(network).__module__}.{type(network).__name__}"
            raise ValueError(
                "network must be a keras.Model of Keras 3, of which the "
                "weights can be replaced (one of tf_keras must be saved and "
                f"loaded by Keras 3). Received: network of type {name}"
            )
        x, y = examples.load(data, steps=steps, network=network)
        y, labels = class_labels(y)
        self.network = network
        self.variables = network.trainable_variables
        if not self.variables:
            raise ValueError(
                "network must be built and have trainable weights. "
                f"Received: network={network.name}"
            )
        warn_of_unsafe_gradients(network)
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.x, self.y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        check_classes(y, labels, self._count_classes())
        outputs = self._outputs(self.weights, self.x[:32])
        check_logits(tf.cast(outputs, tf.float32).numpy(), network)
        self._sum = traced(self._sum_at)
        self._gradients = traced(self._gradients_at)
        self._products = traced(self._products_at)
        self._pixels = traced(self._pixels_at)

    @property
    def weights(self):
        """The network's trainable weights as they are, a list of tensors."""
        return [tf.convert_to_tensor(v.value) for v in self.variables]

    def loss(self, weights=None, part=slice(None)):
        """The mean loss, a scalar tensor.

        Args:
            weights: a list of tensors as of `weights`; None is these.
            part: a slice of the examples.
        """
        weights = self.weights if weights is None else weights
        return self._mean(lambda x, y: [self._sum(weights, x, y)], part)[0]

    def gradient(self, weights=None, part=slice(None)):
        """The gradient of `loss`, a list of tensors.

        Args:
            weights: as of `loss`.
            part: as of `loss`.
        """
        weights = self.weights if weights is None else weights
        return self._mean(lambda x, y: self._gradients(weights, x, y), part)

    def curvature(self, directions):
        """The Hessian of `loss` at the weights times a vector.

        Args:
            directions: the vector, a list of tensors as of `weights`.

        Returns:
            A list of tensors.
        """
        weights = self.weights
        return self._mean(
            lambda x, y: self._products(weights, directions, x, y),
            slice(None),
        )

    def largest_eigenvalue(self, *, tolerance=1e-3, seed=0, iterations=None):
        """Computes the Hessian's largest eigenvalue, by Lanczos's method.

        Args:
            tolerance: relative accuracy, >= 0; 0 is that of float64.
            seed: of the vector that it starts from.
            iterations: how many restarts of ARPACK to allow, >= 1; None is ten
                times the number of weights.

        Raises:
            ValueError: if it does not converge in so many iterations, if the
                Hessian is not finite, or if an argument is out of its range.
        """
        check_number("tolerance", tolerance)
        if iterations is not None:
            check_count("iterations", iterations, 1)
        like = self.weights
        size = sum(int(tf.size(w)) for w in like)

        def product(vector):
            moved = self.curvature(_split(np.ravel(vector), like))
            found = np.concatenate([np.ravel(m) for m in moved]).astype(float)
            if not np.isfinite(found).all():
                raise ValueError(
                    "the Hessian must be finite: the network's weights, or its "
                    f"loss, are not. Received: network={self.network.name}"
                )
            return found

        if size == 1:  # A number, for which ARPACK has no method.
            return float(product(np.ones(1))[0])
        return _largest_eigenvalue(product, size, tolerance, seed, iterations)

    def sharpness(self, perturbation, *, examples=None):
        """How much the loss rises where a perturbation of the weights goes.

        With `SAM(rho, steps=20)` an estimate of the worst loss in a ball; over
        parts of m examples, m-sharpness (Foret et al., 2021, section 4.1); with
        `ASAM` one that rescaled layers do not change (Kwon et al., 2021).

        Args:
            perturbation: a weight perturbation without a state of its own, of
                one pass, such as `tfsam.SAM(rho)`.
            examples: of a part, each of which has a perturbation of its own,
                >= 1; None is all in one.

        Returns:
            The mean over the parts, a float.

        Raises:
            ValueError: if the perturbation keeps a state, or `examples` is
                less than 1.
        """
        if perturbation.init is not None:
            raise ValueError(
                "sharpness takes a perturbation without a state, such as SAM. "
                f"Received: perturbation={perturbation}"
            )
        count = len(self.x)
        size = check_count(
            "examples", count if examples is None else examples, 1
        )
        weights, rises = self.weights, []
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            step = Step(
                kinds=[kind(v) for v in self.variables],
                seed=tf.constant([0, start]),
                count=tf.constant(0, tf.int64),
                learning_rate=tf.constant(0.0),
                gradient=lambda w, part=part: self.gradient(w, part),
            )
            gradients = self.gradient(weights, part)
            moved, _ = perturbation.perturb(weights, gradients, (), step)
            rise = self.loss(moved, part) - self.loss(weights, part)
            rises.append((part.stop - part.start, float(rise)))
        return sum(n * rise for n, rise in rises) / count

    def surface(self, *, extent=1.0, points=21, seed=0):
        """The loss on a plane through the weights, filter-normalised.

        Two random directions, each filter of which is as long as the network's
        own; biases and normalisation layers stay (Li et al., 2018, "Visualizing
        the loss landscape of neural nets", section 4).

        Args:
            extent: largest coordinate, > 0, in lengths of the filters.
            points: an axis, >= 2; an odd number has the weights among them.
            seed: of the directions.

        Returns:
            (coordinates, losses): arrays (points,) and (points, points).
        """
        check_count("points", points, 2)
        generator = np.random.default_rng(seed)
        weights = self.weights
        one, other = (
            [
                _filter_normalized(generator, v, w)
                for v, w in zip(self.variables, weights, strict=True)
            ]
            for _ in range(2)
        )
        coordinates = np.linspace(-extent, extent, points)
        losses = np.zeros((points, points))
        for row, a in enumerate(tf.constant(coordinates)):
            moved = along(weights, one, a)
            for column, b in enumerate(tf.constant(coordinates)):
                losses[row, column] = self.loss(along(moved, other, b))
        return coordinates, losses

    def input_gradients(self):
        """Gradients by the inputs, example by example.

        Returns:
            A dict of arrays (n,): `l1` and `l2`, norms of the gradient of the
            cross-entropy, the first-order rise of the loss in an l-inf and an
            l2 ball of radius 1; and `alignment`, in [0, 1], the absolute cosine
            between the input and the gradient of the margin between the label's
            logit and the largest other (Etmann et al., 2019, definition 3,
            divided by the input's norm).
        """
        if not self.x.dtype.is_floating:
            raise ValueError(
                "input_gradients needs inputs that are floats, not numbers of "
                f"tokens. Received: x.dtype={self.x.dtype.name}"
            )
        weights, found = self.weights, []
        for start in range(0, len(self.x), self.batch_size):
            part = slice(start, start + self.batch_size)
            found.append(self._pixels(weights, self.x[part], self.y[part]))
        columns = [
            np.concatenate(column) for column in zip(*found, strict=True)
        ]
        return dict(zip(("l1", "l2", "alignment"), columns, strict=True))

    def _count_classes(self):
        """The number of classes, of what the network returns for one example.

        Raises:
            ValueError: if that is no logits, or it does not take the example.
        """
        try:
            output = self._outputs(self.weights, self.x[:1])
        except (TypeError, ValueError, tf.errors.OpError) as error:
            raise ValueError(
                f"network must take the data's inputs ({files.reason(error)}). "
                f"Received: x of dtype {self.x.dtype.name} and shape "
                f"{tuple(self.x.shape)}"
            ) from error
        if isinstance(output, (dict, list, tuple)):
            raise ValueError(
                "network must return one tensor of logits: of several outputs "
                "make a keras.Model of one. "
                f"Received: a {type(output).__name__} of {len(output)}"
            )
        output = tf.convert_to_tensor(output)
        if output.shape.rank != 2 or not output.dtype.is_floating:
            raise ValueError(
                "network must return logits (batch, classes), or (batch, 1) of "
                "two classes. Received: "
                f"{output.dtype.name} of shape {tuple(output.shape)} for one "
                "example"
            )
        return max(output.shape[1], 2)

    def _outputs(self, weights, x):
        mapping = list(zip(self.variables, weights, strict=True))
        with keras.StatelessScope(mapping):
            return self.network(x, training=False)

    def _logits(self, weights, x):
        logits = self._outputs(weights, x)
        if logits.shape[1] > 1:
            return logits
        # The softmax of (0, z) is the sigmoid of z.
        return tf.concat([tf.zeros_like(logits), logits], axis=1)

    def _sum_at(self, weights, x, y):
        return tf.reduce_sum(cross_entropy(self._logits(weights, x), y))

    def _gradients_at(self, weights, x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            total = self._sum_at(weights, x, y)
        return _dense_gradient(tape, total, weights)

    def _products_at(self, weights, directions, x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            slope = inner(self._gradients_at(weights, x, y), directions)
        return _dense_gradient(tape, slope, weights)

    def _pixels_at(self, weights, x, y):
        with tf.GradientTape(True, watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = self._logits(weights, x)
            losses = cross_entropy(logits, y)
            margins = margin(logits, y)
        slopes = _flat(tape.gradient(losses, x))
        toward = _flat(tape.gradient(margins, x))
        cosine = tf.reduce_sum(toward * _flat(x), 1) / (
            tf.norm(toward, axis=1) * tf.norm(_flat(x), axis=1) + TINY
        )
        return (
            tf.norm(slopes, 1, axis=1),
            tf.norm(slopes, axis=1),
            tf.abs(cosine),
        )

    def _mean(self, function, part):
        """The mean over the examples of a part of what batches sum up to."""
        count = len(self.x[part])
        first = part.start or 0
        totals: list = []
        for start in range(first, first + count, self.batch_size):
            batch = slice(start, min(start + self.batch_size, first + count))
            found = function(self.x[batch], self.y[batch])
            totals = [
                t + f
                for t, f in zip(totals or [0] * len(found), found, strict=True)
            ]
        return [t / tf.cast(count, t.dtype) for t in totals]


def _largest_eigenvalue(product, size, tolerance, seed, iterations):
    """The largest eigenvalue of a symmetric matrix, by its products."""
    start = np.random.default_rng(seed).normal(size=size)
    operator = scipy.sparse.linalg.LinearOperator(
        (size, size), matvec=product, dtype=float
    )
    try:
        (value,) = scipy.sparse.linalg.eigsh(
            operator,
            k=1,
            which="LA",
            tol=tolerance,
            maxiter=iterations,
            v0=start,
            return_eigenvectors=False,
        )
    except scipy.sparse.linalg.ArpackError as error:
        if not product(start).any():
            return 0.0  # The matrix is zero, of which ARPACK has no vectors.
        raise ValueError(
            "the largest eigenvalue was not found: raise tolerance or "
            f"iterations ({files.reason(error)}). Received: "
            f"tolerance={tolerance}, iterations={iterations}"
        ) from error
    return float(value)


def _dense_gradient(tape, target, weights):
    """Gradients as tensors: of an embedding they are sparse, or none."""
    zero = tf.UnconnectedGradients.ZERO
    found = tape.gradient(target, weights, unconnected_gradients=zero)
    return [tf.convert_to_tensor(gradient) for gradient in found]


def _split(vector, like):
    """A vector as tensors of the shapes and dtypes of others."""
    parts = np.split(vector, np.cumsum([int(tf.size(w)) for w in like])[:-1])
    return [
        tf.constant(part.reshape(w.shape), w.dtype)
        for part, w in zip(parts, like, strict=True)
    ]


def _filter_normalized(generator, variable, weight):
    """A random direction of one weight: zero, or a filter as long as its own.

    The last axis of a kernel numbers its filters.
    """
    if kind(variable) != "kernel":
        return tf.zeros_like(weight)
    direction = generator.normal(size=weight.shape)
    own = np.reshape(weight, (-1, weight.shape[-1]))
    drawn = np.linalg.norm(direction.reshape(own.shape), axis=0)
    scale = np.linalg.norm(own, axis=0) / drawn
    return tf.constant(direction * scale, weight.dtype)


def _flat(x):
    return tf.reshape(x, (tf.shape(x)[0], -1))
