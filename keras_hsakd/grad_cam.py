"""Grad-CAM: where in an image a network finds what speaks for a class."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from keras_hsakd.classifier import Classifier
from keras_hsakd.graph import replay


def grad_cam(
    network: keras.Model, images, classes: Sequence[int] | None = None
) -> np.ndarray:
    """Returns where a network looks, by the last feature map before its pooling.

    `relu(sum_k a_k A_k)` of the channels `A_k` of the feature map, where `a_k` is the
    mean over all positions of the gradient of the class logit with respect to `A_k`.

    Args:
        network: A functional model from images to class logits `(B, N)`, as of
            `keras_hsakd.strip_heads`.
        images: Array of shape `(B, H, W, C)`, as the network takes them.
        classes: Int for each image, the class that is looked for. Defaults to the one
            that the network finds likeliest.

    Returns:
        A float32 array of shape `(B, h, w)`, as the feature map, without negative
        values; all zeros where nothing speaks for the class.

    Raises:
        RuntimeError: If the Keras backend is neither TensorFlow nor JAX.
        ValueError: If the network has heads, or no feature map of more than one
            position stands alone between the images and the logits.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> grad_cam(network, np.ones((2, 32, 32, 3))).shape
    (2, 8, 8)

    Reference: [Selvaraju et al., 2017](https://arxiv.org/abs/1610.02391).
    """
    classifier = Classifier(network)
    flat = classifier.flat
    if len(flat.inputs) != 1 or len(flat.outputs) != 1:
        raise ValueError(
            "Expected `network` to map images to class logits alone, as of "
            f"`strip_heads`. Received: `{network.name}` with {len(flat.inputs)} inputs "
            f"and {len(flat.outputs)} outputs"
        )
    taken, output = classifier.images, classifier.logits
    last_map = _last_map(classifier)

    def logits_of(maps):
        return _compute(output, last_map, maps)

    images = ops.convert_to_tensor(images, dtype=taken.dtype)
    maps = _compute(last_map, taken, images)
    logits = logits_of(maps)
    if classes is None:
        classes = ops.argmax(logits, axis=-1)
    chosen = ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    # An image's logits depend on its own map alone, so the sum has all gradients.
    gradients = _gradient(lambda maps: ops.sum(chosen * logits_of(maps)), maps)
    maps, gradients = (ops.cast(x, "float32") for x in (maps, gradients))
    weights = ops.mean(gradients, axis=(1, 2), keepdims=True)
    return ops.convert_to_numpy(ops.relu(ops.sum(weights * maps, axis=-1)))


def _last_map(classifier):
    """Returns the last tensor that all logits come from and that has positions."""
    for tensor in reversed(classifier.path[1:]):
        shape = tensor.shape
        if len(shape) == 4 and tuple(shape[1:3]) != (1, 1):
            return tensor
    raise ValueError(
        "Expected a network with a feature map of shape (batch, height, width, "
        "channels), from which alone its class logits come. "
        f"Received: `{classifier.name}`"
    )


def _compute(tensor, source, value):
    """Returns the value of a symbolic tensor, of that of one that it depends on."""
    (result,) = replay([tensor], {id(source): value})
    return result


def _gradient(function: Callable, value):
    """Returns the gradient of a function to a scalar."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(value)
            result = function(value)
        return tape.gradient(result, value)
    if backend == "jax":
        import jax

        return jax.grad(function)(value)
    raise RuntimeError(
        "Expected the TensorFlow or the JAX backend for gradients. "
        f"Received: backend '{backend}'"
    )
