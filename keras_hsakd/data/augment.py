"""Random crop and flip of whole batches, as pure functions of a stateless seed."""

import tensorflow as tf


def random_crop(images: tf.Tensor, padding: int, seed: tf.Tensor) -> tf.Tensor:
    """Pads images with zeros and crops each at a random place, back to its size.

    Every image of the batch has its own offset, uniform over all the windows of the
    padded image.

    Args:
        images: Tensor of shape `(batch, height, width, channels)` and any dtype, with
            static height and width.
        padding: Int, number of zero pixels added at each of the four sides.
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.

    Returns:
        A tensor of the shape and dtype of `images`.

    Example:
    >>> images = tf.random.uniform((8, 32, 32, 3))
    >>> random_crop(images, padding=4, seed=(0, 1)).shape
    TensorShape([8, 32, 32, 3])
    """
    _, height, width, _ = images.shape
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    offsets = tf.random.stateless_uniform(
        [2, tf.shape(images)[0], 1], seed, 0, 2 * padding + 1, tf.int32
    )
    rows = offsets[0] + tf.range(height)
    columns = offsets[1] + tf.range(width)
    strips = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(strips, columns, axis=2, batch_dims=1)


def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability one half.

    Args:
        images: Tensor of shape `(batch, height, width, channels)` and any dtype.
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.

    Returns:
        A tensor of the shape and dtype of `images`.

    Example:
    >>> images = tf.random.uniform((8, 32, 32, 3))
    >>> random_flip(images, seed=(0, 1)).shape
    TensorShape([8, 32, 32, 3])
    """
    coins = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed)
    return tf.where(coins < 0.5, tf.reverse(images, axis=[2]), images)
