"""Checks of networks and data before training, and of the loss during it."""

import contextlib
import math
from collections.abc import Iterator

import keras
import numpy as np

from keras_hsakd.distribution import steps_done
from keras_hsakd.heads import is_plain
from keras_hsakd.ops import SUM_TOLERANCE


def num_classes(network: keras.Model) -> int:
    """Returns the number of classes of a network with or without heads."""
    logits = network.outputs[0] if is_plain(network) else network.output["logits"]
    return logits.shape[-1]


def check_batch(network: keras.Model, images, labels, unlabeled=False) -> None:
    """Raises a ValueError unless a batch of images and labels suits a network.

    Args:
        network: What is trained on them, or evaluated.
        images: An array or tensor.
        labels: The same, or `None`.
        unlabeled: Whether there may be images without a label, -1. Defaults to `False`.
    """
    _check_images(network, images)
    check_labels(network, labels, unlabeled)
    if len(images) != len(labels):
        raise ValueError(
            "Expected images and labels of the same cardinality. Received: "
            f"{len(images)} images and {len(labels)} labels"
        )


def _check_images(network, images):
    expected = tuple(network.input_shape[1:])
    if hasattr(images, "row_splits"):
        raise ValueError(
            "Expected images that have one size in a batch, as by `keras.ops.image."
            "resize`. Received: a ragged tensor"
        )
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or any(
        wanted not in (None, received)
        for wanted, received in zip(expected, shape[1:], strict=True)
    ):
        raise ValueError(
            f"Expected images of shape (batch, {', '.join(map(str, expected))}), "
            f"as `{network.name}` takes them. Received: {_described(images)}"
        )
    if shape[0] == 0:
        raise ValueError("Expected at least one image. Received: none")
    some = _array(images[:_LOOKED_AT])
    if not _is_numeric(some):
        raise ValueError(f"Expected images of numbers. Received: dtype {some.dtype}")
    if not np.isfinite(some.astype("float32")).all():
        raise ValueError("Expected images of finite values. Received: NaN or infinity")


def check_same_shape(trained_on, images) -> None:
    """Raises a ValueError unless images have the shape of those that are trained on."""
    expected, shape = tuple(trained_on.shape[1:]), tuple(images.shape[1:])
    if shape != expected:
        raise ValueError(
            f"Expected images of shape (batch, {', '.join(map(str, expected))}), as "
            f"those to train on. Received: {_described(images)}"
        )


# Of all images of an array, whether these are finite; more would take long.
_LOOKED_AT = 64


def check_labels(network: keras.Model, labels, unlabeled=False) -> None:
    """Raises a ValueError unless labels are those of a network's classes.

    Args:
        network: What is trained on them, or evaluated.
        labels: An array or tensor, or `None`.
        unlabeled: Whether there may be images without a label, -1. Defaults to `False`.
    """
    classes = num_classes(network)
    values = _array(labels) if hasattr(labels, "shape") else None
    if values is not None and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if (
        values is None
        or values.ndim not in (1, 2)
        or (values.ndim == 2 and values.shape[1] != classes)
    ):
        raise ValueError(
            "Expected labels of shape (batch,), integers, or "
            f"(batch, {classes}), class probabilities. Received: {_described(labels)}"
        )
    if not _is_numeric(values):
        some = f", such as {values.flat[0]!r}" if values.size else ""
        raise ValueError(
            f"Expected labels that are numbers, integers from 0 to {classes - 1} or "
            f"class probabilities. Received: dtype {values.dtype}{some}"
        )
    if not values.size:
        raise ValueError("Expected at least one label. Received: none")
    # bfloat16 has no minimum in NumPy, nor has bool a sum that is a number.
    values = values.astype("float64") if values.dtype.kind not in "iu" else values
    if not np.isfinite(values).all():
        raise ValueError("Expected labels that are finite. Received: NaN or infinity")
    if values.ndim == 2:
        _check_probabilities(values)
        return
    if (values != np.round(values)).any():
        wrong = values[values != np.round(values)][0]
        raise ValueError(
            "Expected labels that are whole numbers, or class probabilities of shape "
            f"(batch, {classes}). Received: {wrong:g} among labels of shape (batch,)"
        )
    low, high = values.min(), values.max()
    if not -unlabeled <= low <= high < classes:
        expected = expected_labels(network, unlabeled)
        if low == -1 and not unlabeled:
            expected += f"; {_ONLY_DISTILLER}"
        raise ValueError(
            f"Expected {expected}. Received: labels from {low:.0f} to {high:.0f}"
        )


def _check_probabilities(rows):
    if rows.min() < 0:
        raise ValueError(
            "Expected labels that are class probabilities, 0 or more. "
            f"Received: {rows.min():g}"
        )
    sums = rows.sum(axis=1)
    wrong = sums[np.abs(sums - 1) > SUM_TOLERANCE]
    if wrong.size:
        raise ValueError(
            "Expected labels that are class probabilities, which sum to one in each "
            "row; a softmax does not suit images of several classes (multi-hot labels) "
            f"or of none. Received: a row that sums to {wrong[0]:g}"
        )


def expected_labels(network: keras.Model, unlabeled=False) -> str:
    """Returns which labels a network takes, for an error."""
    or_none = ", or -1 for an image without a label" if unlabeled else ""
    last = num_classes(network) - 1
    return f"labels in 0 to {last}, the classes of `{network.name}`{or_none}"


def _array(values):
    """Returns an array or tensor as a NumPy array."""
    is_tensor = keras.ops.is_tensor(values)
    return keras.ops.convert_to_numpy(values) if is_tensor else np.asarray(values)


def _is_numeric(array):
    return array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"


def _described(values):
    """Returns what a value is, for an error."""
    if values is None:
        return "None"
    if hasattr(values, "shape"):
        return f"shape {tuple(values.shape)}"
    keys = f" of {list(values)}" if isinstance(values, dict) else ""
    return f"a {type(values).__name__}{keys}"


def has_unlabeled(labels) -> bool:
    """Returns whether an image of a batch has no label, which is the label -1."""
    labels = _array(labels)
    return (labels.ndim == 1 or labels.shape[1] == 1) and bool(np.any(labels < 0))


def check_labeled(trainer: keras.Model) -> None:
    """Raises a ValueError unless a trainer takes images without a label."""
    if not trainer.takes_unlabeled:
        raise ValueError(
            f"Expected images with labels; {_ONLY_DISTILLER}. Received: images without "
            f"a label for a {type(trainer).__name__}"
        )


_ONLY_DISTILLER = "only `Distiller` takes images without a label, -1, to train on"


def is_tf_dataset(x) -> bool:
    """Returns whether `x` is a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(x, "element_spec") and hasattr(x, "take")


def check_end(data, steps: int | None, argument: str) -> None:
    """Raises a ValueError where data are known to have no end, and need one.

    Args:
        data: What a trainer is given.
        steps: How many steps are to be made of them; `None` for all.
        argument: Name of the argument that says so.
    """
    if is_tf_dataset(data):
        endless = int(data.cardinality()) == -1
    else:
        is_python = isinstance(data, keras.utils.PyDataset)
        endless = is_python and data.num_batches is None
    if endless and not steps:
        raise ValueError(
            f"Expected `{argument}` with data without an end. Received: a "
            f"{type(data).__name__} and {argument}={steps}"
        )


@contextlib.contextmanager
def about(argument: str) -> Iterator[None]:
    """Names the argument that a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"`{argument}`: {error}") from None


# No cross-entropy has this value. A step computes it where labels do not suit, since
# it cannot raise an error on every backend, and what reads the logs does.
_NO_LABELS = -math.inf


def flag_invalid_labels(loss, valid):
    """Returns a loss, or minus infinity without a gradient where labels are invalid.

    Args:
        loss: Scalar tensor.
        valid: Scalar boolean tensor.
    """
    return keras.ops.where(valid, loss, _NO_LABELS)


def check_flag(loss, expected: str, where: str) -> None:
    """Raises a ValueError where a loss is what `flag_invalid_labels` makes it.

    Args:
        loss: Number, of the logs.
        expected: See `expected_labels`.
        where: Where they were met.
    """
    if float(loss) == _NO_LABELS:
        raise ValueError(
            f"Expected {expected}, or class probabilities that sum to one. "
            f"Received: other labels {where}"
        )


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends training with an error that names the terms that are not finite.

    Where the labels do not suit, it says that. It looks after each execution, of
    `steps_per_execution` steps.

    Args:
        term_names: Names of the terms of the loss among the logs.
        expected: Which labels suit, see `expected_labels`.
    """

    async_safe = True  # keeps Keras from waiting for each step

    def __init__(self, term_names, expected):
        super().__init__()
        self.term_names = tuple(term_names)
        self.expected = expected

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self._begin = batch

    def on_train_batch_end(self, batch, logs=None):
        done = steps_done(self, batch)
        steps = f"at step {done}"
        if done > self._begin + 1:
            steps = f"in steps {self._begin + 1} to {done}"
        where = f"{steps} of epoch {self._epoch + 1}"
        check_flag(logs["loss"], self.expected, where)
        terms = {name: float(logs[name]) for name in self.term_names}
        bad = [f"{k}={value}" for k, value in terms.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                "Expected the terms of the loss to be finite. "
                f"Received: {', '.join(bad)} {where}"
            )
