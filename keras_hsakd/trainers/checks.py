"""Checks of networks and data before training, and of the loss during it."""

import itertools
import math
import types

import keras
import numpy as np

from keras_hsakd.heads import is_plain
from keras_hsakd.logits import check_logits


def check_network(network: keras.Model) -> None:
    """Raises a ValueError unless a network maps one batch of images to logits."""
    shape = network.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(
            f"Expected `{network.name}` to take one batch of images, of shape "
            f"(batch, height, width, channels). Received: input shape {shape}"
        )
    check_logits(network)


def num_classes(network: keras.Model) -> int:
    """Returns the number of classes of a network with or without heads."""
    logits = network.outputs[0] if is_plain(network) else network.output["logits"]
    return logits.shape[-1]


def check_batch(network: keras.Model, images, labels, unlabeled=False) -> None:
    """Raises a ValueError unless a batch of images and labels suits a network.

    Args:
        network: What is trained on them.
        images: Anything like an array.
        labels: The same, or `None`.
        unlabeled: Whether there may be images without a label, -1. Defaults to `False`.
    """
    expected = tuple(network.input_shape[1:])
    shape = tuple(np.shape(images))
    if len(shape) != 4 or any(
        wanted not in (None, received)
        for wanted, received in zip(expected, shape[1:], strict=True)
    ):
        raise ValueError(
            f"Expected images of shape (batch, {', '.join(map(str, expected))}), "
            f"as `{network.name}` takes them. Received: shape {shape}"
        )
    classes = num_classes(network)
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if (
        labels is None
        or labels.ndim not in (1, 2)
        or (labels.ndim == 2 and labels.shape[1] != classes)
    ):
        received = None if labels is None else f"shape {labels.shape}"
        raise ValueError(
            "Expected labels of shape (batch,), integers, or "
            f"(batch, {classes}), class probabilities. Received: {received}"
        )
    low, high = labels.min(), labels.max()
    if labels.ndim == 1 and not -unlabeled <= low <= high < classes:
        expected = f"labels in 0 to {classes - 1}, the classes of `{network.name}`"
        if unlabeled:
            expected += ", or -1 for an image without a label"
        elif low == -1:
            expected += f"; {_ONLY_DISTILLER}"
        raise ValueError(f"Expected {expected}. Received: labels from {low} to {high}")


def has_unlabeled(labels) -> bool:
    """Returns whether an image of a batch has no label, which is the label -1."""
    labels = np.asarray(labels)
    return (labels.ndim == 1 or labels.shape[1] == 1) and bool(np.any(labels < 0))


def check_labeled(trainer: keras.Model) -> None:
    """Raises a ValueError unless a trainer takes images without a label."""
    if not trainer.takes_unlabeled:
        raise ValueError(
            f"Expected images with labels; {_ONLY_DISTILLER}. Received: images without "
            f"a label for a {type(trainer).__name__}"
        )


_ONLY_DISTILLER = "only `Distiller` takes images without a label, -1"


def first_batch(x, y):
    """Returns the first batch of training data, and the data to train on.

    Args:
        x: See `keras.Model.fit`.
        y: See `keras.Model.fit`.

    Returns:
        A tuple `(batch, x)`. The batch is all the data of arrays, and `None` where it
        cannot be looked at. A generator is replaced by one that still has the batch.

    Raises:
        ValueError: If there is no batch.
    """
    if y is not None or hasattr(x, "shape"):
        return (x, y), x
    if isinstance(x, keras.utils.PyDataset):
        return x[0], x
    if is_tf_dataset(x):
        batch = next(iter(x.take(1)), None)
    elif isinstance(x, types.GeneratorType):
        batch = next(x, None)
        # Keras takes no other iterator than a generator.
        x = (item for item in itertools.chain([batch], x))
    else:
        return None, x
    if batch is None:
        raise ValueError("Expected `x` to have at least one batch. Received: none")
    return batch, x


def is_tf_dataset(x) -> bool:
    """Returns whether `x` is a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(x, "element_spec") and hasattr(x, "take")


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends training with an error that names the terms that are not finite.

    Args:
        term_names: Names of the terms of the loss among the logs.
    """

    async_safe = True  # keeps Keras from waiting for each step

    def __init__(self, term_names):
        super().__init__()
        self.term_names = tuple(term_names)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        terms = {name: float(logs[name]) for name in self.term_names}
        bad = [f"{k}={value}" for k, value in terms.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                "Expected the terms of the loss to be finite. "
                f"Received: {', '.join(bad)} at step {batch + 1} of epoch "
                f"{self._epoch + 1}"
            )
