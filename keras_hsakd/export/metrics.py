"""What a classifier is worth, from probabilities and labels: functions of arrays."""

from typing import NamedTuple

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities as float64, of logits in the last axis.

    Args:
        logits: Array of shape `(..., N)`.

    Example:
    >>> softmax(np.log([1.0, 3.0])).round(6).tolist()
    [0.25, 0.75]
    """
    logits = np.asarray(logits, "float64")
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Returns how often the label is among the most likely classes.

    Of equal probabilities the first counts as the higher, as in `argmax`.

    Args:
        probabilities: Array of shape `(B, N)`; logits do as well.
        labels: Array of integers of shape `(B,)`.
        k: Int, the number of the most likely classes. Defaults to 1.

    Returns:
        A float from 0 to 1.

    Example:
    >>> probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    >>> accuracy(probabilities, [0, 1]), accuracy(probabilities, [0, 1], k=2)
    (0.5, 1.0)
    """
    likely = np.argsort(-np.asarray(probabilities), axis=1, kind="stable")[:, :k]
    return float(np.mean((likely == np.asarray(labels)[:, np.newaxis]).any(axis=1)))


def agreement(probabilities: np.ndarray, others: np.ndarray) -> float:
    """Returns how often two classifiers find the same class most likely.

    Args:
        probabilities: Array of shape `(B, N)`.
        others: The other classifier's, of the same images.

    Returns:
        A float from 0 to 1.

    Example:
    >>> agreement(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.6, 0.4]] * 2))
    0.5
    """
    return float(np.mean(np.argmax(probabilities, 1) == np.argmax(others, 1)))


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> float:
    """Returns by how much a classifier is surer than it is right, or less sure.

    Images are sorted by the highest probability into bins of equal width, `(0, 1 / 15]`
    to `(14 / 15, 1]`. The error of a bin is the difference between its mean highest
    probability and its accuracy; bins count by their number of images:

        ECE = sum_b (n_b / n) |accuracy_b - confidence_b|

    Args:
        probabilities: Array of shape `(B, N)`.
        labels: Array of integers of shape `(B,)`.
        bins: Int, the number of bins. Defaults to 15.

    Returns:
        A float from 0 to 1.

    Reference:
        - [On calibration of modern neural networks](https://arxiv.org/abs/1706.04599)

    Example:
    >>> probabilities = np.array([[0.75, 0.25]] * 4)
    >>> expected_calibration_error(probabilities, [0, 0, 0, 1])
    0.0
    >>> expected_calibration_error(probabilities, [0, 0, 1, 1])
    0.25
    """
    confidences = np.max(probabilities, axis=1).astype("float64")
    right = np.argmax(probabilities, axis=1) == labels
    places = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=right - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of `-log p[label]`, the cross-entropy of the labels.

    Args:
        probabilities: Array of shape `(B, N)`.
        labels: Array of integers of shape `(B,)`.

    Returns:
        A float of 0 or more; 0 is certainty of all labels.

    Example:
    >>> negative_log_likelihood(np.array([[1.0, 0.0], [0.5, 0.5]]), [0, 1]) * 2
    0.6931471805599453
    """
    return float(-np.mean(_log(_of_labels(probabilities, labels))))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean squared distance between probabilities and labels.

    The sum over the classes of `(p_k - [k is the label])^2`, from 0 to 2.

    Args:
        probabilities: Array of shape `(B, N)`.
        labels: Array of integers of shape `(B,)`.

    Reference:
        - [Brier, 1950](https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2)

    Example:
    >>> brier_score(np.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]), [0, 1, 1])
    0.8333333333333334
    """
    probabilities = np.asarray(probabilities, "float64")
    squares = (probabilities**2).sum(axis=1)
    return float(np.mean(squares - 2 * _of_labels(probabilities, labels) + 1))


def divergence(expected: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean of `KL(expected || probabilities)`, in nats.

    Args:
        expected: Array of shape `(B, N)`, a teacher's probabilities.
        probabilities: The student's, of the same images.

    Returns:
        A float of 0 or more; 0 is the same probabilities.

    Example:
    >>> divergence(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
    0.6931471805599453
    """
    ratios = _log(expected) - _log(probabilities)
    return float(np.mean(np.sum(expected * ratios, axis=1)))


def _of_labels(probabilities, labels):
    rows = np.arange(len(probabilities))
    return np.asarray(probabilities, "float64")[rows, labels]


def _log(probabilities):
    """Returns logarithms; a probability that underflowed is not quite 0."""
    return np.log(np.maximum(probabilities, np.finfo("float64").tiny))


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns how many images of each class were taken for each class.

    Args:
        probabilities: Array of shape `(B, N)`.
        labels: Array of integers of shape `(B,)`.

    Returns:
        Array of integers of shape `(N, N)`: a row for each label, a column for each
        class that was found most likely.

    Example:
    >>> confusion_matrix(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), [0, 1, 1])
    array([[1, 0],
           [1, 1]])
    """
    matrix = np.zeros([np.shape(probabilities)[1]] * 2, dtype=int)
    np.add.at(matrix, (labels, np.argmax(probabilities, axis=1)), 1)
    return matrix


class ClassLoss(NamedTuple):
    """A class that one classifier knows less well than another.

    Attributes:
        index: Int, the class.
        images: Int, number of images of it.
        accuracy: Float, the part of them that is found to be of it.
        expected: Float, the same of the other classifier.
    """

    index: int
    images: int
    accuracy: float
    expected: float


def lost_most(
    confusion: np.ndarray, expected: np.ndarray, count: int = 5
) -> list[ClassLoss]:
    """Returns the classes that lost most accuracy against another classifier.

    Args:
        confusion: What `confusion_matrix` returned.
        expected: The other classifier's, of the same images.
        count: Int, how many classes at most. Defaults to 5.

    Returns:
        List of `ClassLoss`, the largest loss first; classes that lost nothing, or of
        which there are no images, are not in it.

    Example:
    >>> lost_most(np.array([[3, 1], [0, 4]]), np.array([[4, 0], [0, 4]]))
    [ClassLoss(index=0, images=4, accuracy=0.75, expected=1.0)]
    """
    images = confusion.sum(axis=1)
    right, wanted = np.diagonal(confusion), np.diagonal(expected)
    losses = (wanted - right) / np.maximum(images, 1)
    worst = np.argsort(-losses, kind="stable")[:count]
    return [
        ClassLoss(
            int(index),
            int(images[index]),
            float(right[index] / images[index]),
            float(wanted[index] / images[index]),
        )
        for index in worst
        if losses[index] > 0
    ]
