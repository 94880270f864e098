"""What a network costs."""

import keras

from keras_hsakd import graph


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
    return graph.multiply_adds(model.outputs)
