"""What a network costs."""

import math

import keras

from keras_hsakd.heads import ancestors


def multiply_adds(model: keras.Model) -> int:
    """Returns the multiply-adds of one image through a functional model.

    Counts convolutions and linear layers, without biases and batch normalization.

    Args:
        model: A functional `keras.Model` with a known image size.

    Returns:
        The number of multiply-adds.

    Example:
    >>> multiply_adds(keras_hsakd.models.create("wrn_16_2", 100, heads=False))
    101118464
    """
    total = 0
    for tensor in ancestors(model.outputs):
        layer = tensor._keras_history.operation
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            # Each weight is used once at each position of the output.
            total += math.prod(tensor.shape[1:-1]) * math.prod(layer.kernel.shape)
    return total
