"""Goals of attacks in an evaluation, by which images are judged.

An attack breaks an example when the model's outputs reach the goal: a wrong
class, the class that the user names, or a wrong one of several labels. The
attacks see logits and labels for
the same goal; see `tfsam.attacks.goals`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfsam.attacks import goals
from tfsam.attacks import losses
from tfsam.attacks.context import NOTHING
from tfsam.attacks.context import Context
from tfsam.support import identity
from tfsam.support.labels import check_classes


class AnyWrongClass:
    """A wrong class, the goal of attacks by default.

    Args:
        y: Labels in the form that attacks take, (n,) or (n, classes).
        labels: Int64 array (n,), the class numbers.

    Attributes:
        head: The function of `tfsam.attacks.goals` that attacks need, or None.

    Example:
        >>> goal = AnyWrongClass(np.array([0, 1]), np.array([0, 1]))
        >>> outputs = np.array([[2.0, 1.0], [2.0, 1.0]])
        >>> goal.reached(outputs, np.array([0, 1])).tolist()
        [False, True]
    """

    head: Callable[..., Any] | None = None

    def __init__(self, y: np.ndarray, labels: np.ndarray) -> None:
        self.y = y
        self._labels = labels

    def mistaken(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns which outputs are wrong about the label.

        Args:
            outputs: Float array (n, ..., classes), logits.
            indices: Int array (n,), the indices of the examples.

        Returns:
            Bool array (n, ...).
        """
        return _found(outputs) != _for_each(self._labels[indices], outputs)

    def reached(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns which outputs reach the goal; see `mistaken`."""
        return self.mistaken(outputs, indices)

    def right(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns which of several labels are right.

        Args:
            outputs: As in `mistaken`.
            indices: As in `mistaken`.

        Returns:
            Bool array (n, ..., labels); classes are no labels.
        """
        return np.zeros((*outputs.shape[:-1], 0), bool)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels that attacks on some examples are given."""
        return self.y[indices]

    def margins(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns by how much outputs are wrong about the label, (n,)."""
        labels = self._labels[indices]
        return losses.margin(tf.constant(outputs), labels).numpy()

    def context(self, indices: np.ndarray) -> Context:
        """Returns the context of some examples."""
        return NOTHING

    def header(self) -> dict[str, Any]:
        """Returns the entries of a record's header that describe the goal."""
        return {}

    def check(self, classes: int) -> None:
        """Checks that the goal can be reached.

        Args:
            classes: Number of classes of the model.

        Raises:
            ValueError: If it cannot.
        """

    def check_labels(self, classes: int) -> None:
        """Checks that the labels are those of the model.

        Args:
            classes: Number of classes of the model.

        Raises:
            ValueError: If they are not.
        """
        check_classes(self.y, self._labels, classes)


class Towards(AnyWrongClass):
    """A class that the user names, for each example.

    Args:
        y: Labels in the form that attacks take.
        labels: Int64 array (n,), the class numbers.
        target: Class number, or integer array (n,).

    Raises:
        ValueError: If `target` is neither.

    Example:
        >>> goal = Towards(np.array([0, 1]), np.array([0, 1]), target=2)
        >>> outputs = np.array([[1.0, 2.0, 0.0], [1.0, 0.0, 2.0]])
        >>> goal.reached(outputs, np.array([0, 1])).tolist()
        [False, True]
    """

    head = staticmethod(goals.towards)

    def __init__(self, y: np.ndarray, labels: np.ndarray, target: Any) -> None:
        super().__init__(y, labels)
        given = np.asarray(target)
        if given.dtype.kind not in "iu" or given.shape not in ((), (len(y),)):
            raise ValueError(
                "target must be a class number, or an integer array with one "
                f"for each of the {len(y)} examples. Received: target of shape "
                f"{given.shape} and dtype {given.dtype}"
            )
        self._targets = np.broadcast_to(given.astype(np.int64), len(y))

    def reached(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns which outputs are those of the target class."""
        return _found(outputs) == _for_each(self._targets[indices], outputs)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of the logits that attacks see, all 0."""
        return np.zeros(len(indices), np.int64)

    def context(self, indices: np.ndarray) -> Context:
        """Returns the targets of some examples."""
        return Context(goal=(tf.constant(self._targets[indices]),))

    def header(self) -> dict[str, Any]:
        """Returns the target, or a digest of all of them if they differ."""
        targets = self._targets.tolist()
        same = len(set(targets)) == 1
        return {"target": targets[0] if same else identity.digest(targets)}

    def check(self, classes: int) -> None:
        """Checks that each target is a class other than the label."""
        goals.check_targets(self._targets, self._labels, classes)


class AllLabels(AnyWrongClass):
    """A wrong one of several labels, each with a logit of its own.

    Args:
        y: Int64 array (n, labels), 1 for the labels that an example has.

    Example:
        >>> goal = AllLabels(np.array([[1, 0], [1, 1]]))
        >>> outputs = np.array([[2.0, -1.0], [2.0, -1.0]])
        >>> goal.reached(outputs, np.array([0, 1])).tolist()
        [False, True]
    """

    head = staticmethod(goals.any_label)

    def __init__(self, y: np.ndarray) -> None:
        super().__init__(y, y)

    def mistaken(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns which outputs are wrong about a label."""
        right = self.right(outputs, indices).all(axis=-1)
        wrong: np.ndarray = np.logical_not(right)
        return wrong

    def right(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns which labels are right, those an example has above 0."""
        of_example = (-1, *[1] * (outputs.ndim - 2), outputs.shape[-1])
        labels = self.y[indices].reshape(of_example)
        found: np.ndarray = np.equal(outputs > 0, labels)
        return found

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of the logits that attacks see, all 0."""
        return np.zeros(len(indices), np.int64)

    def margins(self, outputs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns by how much outputs are wrong about a label, (n,)."""
        seen = goals.any_label(tf.constant(outputs), self.y[indices])
        return losses.margin(seen, self.labels(indices)).numpy()

    def context(self, indices: np.ndarray) -> Context:
        """Returns the labels of some examples."""
        return Context(goal=(tf.constant(self.y[indices]),))

    def header(self) -> dict[str, Any]:
        """Returns that an example may have several labels."""
        return {"multi_label": True}

    def check(self, classes: int) -> None:
        """Checks that there is a label for each logit."""
        if self.y.shape[1] != classes:
            raise ValueError(
                f"y must have a column for each of the model's {classes} "
                f"outputs. Received: y of shape {self.y.shape}"
            )

    def check_labels(self, classes: int) -> None:
        """Does nothing: `check` has looked at the labels."""


def _found(outputs: np.ndarray) -> np.ndarray:
    """Returns the class of the largest logit."""
    found: np.ndarray = outputs.argmax(axis=-1)
    return found


def _for_each(values: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Reshapes (n,) to (n, 1, ...), to be compared with classes (n, ...)."""
    return values.reshape(-1, *[1] * (outputs.ndim - 2))
