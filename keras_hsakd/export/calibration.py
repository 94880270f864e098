"""Probabilities that can be believed: the temperature of the softmax."""

import numpy as np

_LOWEST, _HIGHEST = 0.05, 20.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature that makes labels as likely as it can.

    Networks are often surer than they are right. Divided by a temperature, the logits
    give other probabilities of the same order:

        T = argmin mean(-log softmax(logits / T)[label])

    The mean is convex in 1 / T, and has one minimum.

    Args:
        logits: Array of shape `(B, N)`, of images that were not trained on.
        labels: Array of integers of shape `(B,)`.

    Returns:
        A float from 0.05 to 20, the bounds being for logits that are always right, and
        for those that tell nothing.

    Raises:
        ValueError: If the shapes do not agree, a logit is not finite, or a label is out
            of range.

    Reference:
        - [On calibration of modern neural networks](https://arxiv.org/abs/1706.04599)

    Example:
    >>> logits = np.log([[0.9, 0.1]] * 10)  # nine in ten are right
    >>> labels = [0] * 9 + [1]
    >>> round(fit_temperature(logits, labels), 3)
    1.0
    >>> round(fit_temperature(3 * logits, labels), 3)
    3.0
    """
    logits, labels = np.asarray(logits, "float64"), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not labels.size:
        raise ValueError(
            "Expected `logits` of shape (B, N) and `labels` of shape (B,). "
            f"Received: {logits.shape} and {labels.shape}"
        )
    if not np.isfinite(logits).all():
        raise ValueError("Expected `logits` to be finite. Received: some that are not")
    if (
        labels.dtype.kind not in "iu"
        or not np.isin(labels, range(logits.shape[1])).all()
    ):
        raise ValueError(
            f"Expected `labels` to be integers from 0 to {logits.shape[1] - 1}. "
            f"Received: {labels.dtype} from {labels.min()} to {labels.max()}"
        )
    logits = logits - logits.max(axis=1, keepdims=True)
    right = np.take_along_axis(logits, labels[:, np.newaxis], axis=1)

    def is_too_low(temperature):
        powers = np.exp(logits / temperature)
        expected = (powers * logits).sum(1, keepdims=True) / powers.sum(
            1, keepdims=True
        )
        return np.mean(expected - right) > 0  # the derivative by 1 / T

    low, high = _LOWEST, _HIGHEST
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if is_too_low(middle) else (low, middle)
    return float(high)
