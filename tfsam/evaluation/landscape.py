"""The loss landscape of a network, around its weights and around its inputs.

All measures are taken in inference mode, and no variable is assigned: the
network reads other weights as tensors in place of its variables, and updates
that its layers make when they are called are dropped.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.sparse.linalg
import tensorflow as tf

from tfsam.attacks.losses import cross_entropy
from tfsam.attacks.losses import margin
from tfsam.data import examples
from tfsam.data.rows import Rows
from tfsam.geometry import TINY
from tfsam.support import files
from tfsam.support.graphs import traced
from tfsam.support.labels import check_classes
from tfsam.support.labels import class_labels
from tfsam.support.logit_checks import check_logits
from tfsam.support.onednn import warn_of_unsafe_gradients
from tfsam.support.single_logits import of_two_classes
from tfsam.support.validators import check_count
from tfsam.support.validators import check_number
from tfsam.weights.base import Step
from tfsam.weights.base import WeightPerturbation
from tfsam.weights.base import along
from tfsam.weights.base import inner
from tfsam.weights.base import kind

Tensors = Sequence[tf.Tensor]


class Landscape:
    """The mean cross-entropy of a network on a data set, as a function.

    For a network with a single logit, that of class 1 against class 0, it is
    the binary cross-entropy.

    Args:
        network: Built `keras.Model` with one input, integers or floats, which
            returns logits (batch, classes) or (batch, 1).
        data: Arrays (x, y), or a `tf.data.Dataset`, a `keras.utils.PyDataset`
            or a generator of such pairs (see `tfsam.data.examples`). y holds
            class numbers (n,) or one-hot labels (n, classes). Sample weights
            are ignored.
        batch_size: Number of examples that the network processes together, >=
            1.
        steps: Number of elements, usually batches, to read from a dataset or a
            generator. None reads all, and rejects data without an end.

    Raises:
        ValueError: If the network is no such model, has no trainable weights,
            or does not return logits of the classes of y for x; if the data
            cannot be read, or batch_size is less than 1.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import tfsam
        >>> x = np.random.default_rng(0).random((6, 4), dtype="float32")
        >>> network = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3)]
        ... )
        >>> landscape = Landscape(network, (x, np.arange(6) % 3))
        >>> float(landscape.loss()) > 0
        True
        >>> landscape.sharpness(tfsam.SAM(rho=0.1)) > 0
        True
        >>> landscape.largest_eigenvalue() > 0
        True
        >>> landscape.input_gradients()["l2"].shape
        (6,)
    """

    def __init__(
        self,
        network: keras.Model,
        data: Any,
        *,
        batch_size: int = 250,
        steps: int | None = None,
    ) -> None:
        if not isinstance(network, keras.Model):
            name = f"{type(network).__module__}.{type(network).__name__}"
            raise ValueError(
                "network must be a keras.Model of Keras 3, whose weights can "
                "be replaced; save a model of tf_keras and load it with Keras "
                f"3. Received: network of type {name}"
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
        self.x = x if isinstance(x, Rows) else tf.convert_to_tensor(x)
        self.y = tf.convert_to_tensor(y)
        check_classes(y, labels, self._count_classes())
        outputs = self._outputs(self.weights, self.x[:32])
        check_logits(tf.cast(outputs, tf.float32).numpy(), network)
        self._sum = traced(self._sum_at)
        self._gradients = traced(self._gradients_at)
        self._products = traced(self._products_at)
        self._pixels = traced(self._pixels_at)

    @property
    def weights(self) -> list[tf.Tensor]:
        """The current values of the network's trainable weights."""
        return [tf.convert_to_tensor(v.value) for v in self.variables]

    def loss(
        self, weights: Tensors | None = None, part: slice = slice(None)
    ) -> tf.Tensor:
        """Returns the mean loss, a scalar tensor.

        Args:
            weights: List of tensors of the shapes of the attribute `weights`.
                None means the network's own weights.
            part: Slice of the examples.
        """
        weights = self.weights if weights is None else weights
        return self._mean(lambda x, y: [self._sum(weights, x, y)], part)[0]

    def gradient(
        self, weights: Tensors | None = None, part: slice = slice(None)
    ) -> list[tf.Tensor]:
        """Returns the gradient of `loss` with respect to the weights.

        Args:
            weights: List of tensors of the shapes of the attribute `weights`.
                None means the network's own weights.
            part: Slice of the examples.
        """
        weights = self.weights if weights is None else weights
        return self._mean(lambda x, y: self._gradients(weights, x, y), part)

    def curvature(self, directions: Tensors) -> list[tf.Tensor]:
        """Multiplies the Hessian of `loss` at the weights by a vector.

        Args:
            directions: The vector, a list of tensors of the shapes of the
                attribute `weights`.

        Returns:
            A list of tensors of the same shapes.
        """
        weights = self.weights
        return self._mean(
            lambda x, y: self._products(weights, directions, x, y),
            slice(None),
        )

    def largest_eigenvalue(
        self,
        *,
        tolerance: float = 1e-3,
        seed: int = 0,
        iterations: int | None = None,
    ) -> float:
        """Computes the Hessian's largest eigenvalue by Lanczos's method.

        Args:
            tolerance: Relative accuracy, >= 0. 0 means the precision of
                float64.
            seed: Seed of the vector that the method starts from.
            iterations: Largest number of restarts of ARPACK, >= 1. None means
                ten times the number of weights.

        Raises:
            ValueError: If the method does not converge, if the Hessian is not
                finite, or if an argument is out of its range.
        """
        check_number("tolerance", tolerance)
        if iterations is not None:
            check_count("iterations", iterations, 1)
        like = self.weights
        size = sum(int(tf.size(w)) for w in like)

        def product(vector: np.ndarray) -> np.ndarray:
            moved = self.curvature(_split(np.ravel(vector), like))
            found = np.concatenate([np.ravel(m) for m in moved]).astype(float)
            if not np.isfinite(found).all():
                raise ValueError(
                    "the Hessian must be finite: the network's weights or its "
                    "loss are NaN or infinite. Received: network="
                    f"{self.network.name}"
                )
            return found

        if size == 1:  # ARPACK needs two weights at least.
            return float(product(np.ones(1))[0])
        return _largest_eigenvalue(product, size, tolerance, seed, iterations)

    def sharpness(
        self, perturbation: WeightPerturbation, *, examples: int | None = None
    ) -> float:
        """Measures how much the loss rises when the weights are perturbed.

        With `SAM(rho, steps=20)`, this estimates the largest rise in a ball.
        Over parts of m examples, it is m-sharpness (Foret et al., 2021, section
        4.1). With `ASAM`, it does not change when layers are rescaled (Kwon et
        al., 2021).

        Args:
            perturbation: Weight perturbation without a state, such as
                `tfsam.SAM(rho)`.
            examples: Number of examples of a part, >= 1; the weights are
                perturbed for each part. None means a single part.

        Returns:
            The mean over all examples.

        Raises:
            ValueError: If the perturbation has a state, or `examples` is less
                than 1.
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

    def surface(
        self, *, extent: float = 1.0, points: int = 21, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes the loss on a filter-normalised plane through the weights.

        The plane has two random directions, each filter of which is as long as
        the network's own. Biases and normalisation layers are not changed (Li
        et al., 2018, "Visualizing the loss landscape of neural nets", section
        4).

        Args:
            extent: Largest coordinate, > 0, in lengths of the filters.
            points: Number of points along an axis, >= 2. An odd number includes
                the weights themselves.
            seed: Seed of the directions.

        Returns:
            (coordinates, losses): arrays (points,) and (points, points).

        Raises:
            ValueError: If `points` is less than 2.
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

    def input_gradients(self) -> dict[str, np.ndarray]:
        """Measures the gradients with respect to the inputs.

        Returns:
            A dict of arrays (n,). `l1` and `l2` are norms of the gradient of
            the cross-entropy, which are the first-order rise of the loss in an
            l-inf and an l2 ball of radius 1. `alignment`, in [0, 1], is the
            absolute cosine between the input and the gradient of the margin
            between the label's logit and the largest other one (Etmann et al.,
            2019, definition 3, divided by the input's norm).

        Raises:
            ValueError: If the inputs are integers, such as tokens.
        """
        if not tf.as_dtype(self.x.dtype).is_floating:
            raise ValueError(
                "input_gradients needs inputs that are floats, not numbers of "
                f"tokens. Received: x.dtype={self.x.dtype.name}"
            )
        weights, found = self.weights, []
        for start in range(0, len(self.x), self.batch_size):
            part = slice(start, start + self.batch_size)
            found.append(self._pixels(weights, *self._batch(part)))
        columns = [
            np.concatenate(column) for column in zip(*found, strict=True)
        ]
        return dict(zip(("l1", "l2", "alignment"), columns, strict=True))

    def _count_classes(self) -> int:
        """Counts the logits that the network returns for an example.

        Raises:
            ValueError: If the network does not return logits for it.
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
                "network must return one tensor of logits: make a keras.Model "
                "of one of its outputs. "
                f"Received: a {type(output).__name__} of {len(output)}"
            )
        output = tf.convert_to_tensor(output)
        if output.shape.rank != 2 or not output.dtype.is_floating:
            raise ValueError(
                "network must return logits (batch, classes), or (batch, 1) "
                "for two classes. Received: "
                f"{output.dtype.name} of shape {tuple(output.shape)} for one "
                "example"
            )
        return max(output.shape[1], 2)

    def _outputs(self, weights: Tensors, x: tf.Tensor) -> Any:
        mapping = list(zip(self.variables, weights, strict=True))
        with keras.StatelessScope(mapping):
            return self.network(x, training=False)

    def _logits(self, weights: Tensors, x: tf.Tensor) -> tf.Tensor:
        return of_two_classes(self._outputs(weights, x))

    def _sum_at(
        self, weights: Tensors, x: tf.Tensor, y: tf.Tensor
    ) -> tf.Tensor:
        return tf.reduce_sum(cross_entropy(self._logits(weights, x), y))

    def _gradients_at(
        self, weights: Tensors, x: tf.Tensor, y: tf.Tensor
    ) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            total = self._sum_at(weights, x, y)
        return _dense_gradient(tape, total, weights)

    def _products_at(
        self, weights: Tensors, directions: Tensors, x: tf.Tensor, y: tf.Tensor
    ) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            slope = inner(self._gradients_at(weights, x, y), directions)
        return _dense_gradient(tape, slope, weights)

    def _pixels_at(
        self, weights: Tensors, x: tf.Tensor, y: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
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

    def _batch(self, part: slice) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the examples of a part."""
        return tf.convert_to_tensor(self.x[part]), self.y[part]

    def _mean(
        self,
        function: Callable[[tf.Tensor, tf.Tensor], Tensors],
        part: slice,
    ) -> list[tf.Tensor]:
        """Averages over a part of the examples.

        Args:
            function: Returns sums over the examples of a batch (x, y).
            part: Slice of the examples.
        """
        first, last, _ = part.indices(len(self.x))
        count = last - first
        totals: list[tf.Tensor] = []
        for start in range(first, first + count, self.batch_size):
            batch = slice(start, min(start + self.batch_size, first + count))
            found = function(*self._batch(batch))
            totals = [
                t + f
                for t, f in zip(totals or [0] * len(found), found, strict=True)
            ]
        return [t / tf.cast(count, t.dtype) for t in totals]


def _largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray],
    size: int,
    tolerance: float,
    seed: int,
    iterations: int | None,
) -> float:
    """Computes the largest eigenvalue of a symmetric matrix.

    Args:
        product: Multiplies the matrix by a vector.
        size: Number of rows, >= 2.
        tolerance: Relative accuracy.
        seed: Seed of the first vector.
        iterations: Largest number of restarts, or None.
    """
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
            return 0.0  # ARPACK fails if the matrix is zero.
        raise ValueError(
            "the largest eigenvalue was not found: raise tolerance or "
            f"iterations ({files.reason(error)}). Received: "
            f"tolerance={tolerance}, iterations={iterations}"
        ) from error
    return float(value)


def _dense_gradient(
    tape: tf.GradientTape, target: tf.Tensor, weights: Tensors
) -> list[tf.Tensor]:
    """Returns gradients as tensors; TensorFlow may return slices or None."""
    zero = tf.UnconnectedGradients.ZERO
    found = tape.gradient(target, weights, unconnected_gradients=zero)
    return [tf.convert_to_tensor(gradient) for gradient in found]


def _split(vector: np.ndarray, like: Tensors) -> list[tf.Tensor]:
    """Splits a vector into tensors of the shapes and dtypes of others."""
    parts = np.split(vector, np.cumsum([int(tf.size(w)) for w in like])[:-1])
    return [
        tf.constant(part.reshape(w.shape), w.dtype)
        for part, w in zip(parts, like, strict=True)
    ]


def _filter_normalized(
    generator: np.random.Generator, variable: keras.Variable, weight: tf.Tensor
) -> tf.Tensor:
    """Draws a direction of a weight: zeros unless the weight is a kernel.

    Each filter of the direction is as long as that of the kernel. The last axis
    of a kernel numbers its filters.
    """
    if kind(variable) != "kernel":
        return tf.zeros_like(weight)
    direction = generator.normal(size=weight.shape)
    own = np.reshape(weight, (-1, weight.shape[-1]))
    drawn = np.linalg.norm(direction.reshape(own.shape), axis=0)
    scale = np.linalg.norm(own, axis=0) / drawn
    return tf.constant(direction * scale, weight.dtype)


def _flat(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, (tf.shape(x)[0], -1))
