"""Where images come from: arrays in memory, or files decoded as they are needed."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

Crop = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Source:
    """Labelled images that can be read in any order; `len` is their number.

    Subclasses implement `batches`, and say what their inputs are.

    Args:
        inputs: Array or sequence, one entry per example.
        labels: Sequence of integers, one per example.
        image_size: Int, height and width of the images to return.
    """

    def __init__(
        self, inputs: np.ndarray | Sequence, labels: Sequence[int], image_size: int
    ):
        """Puts inputs and labels on the host, where `tf.data` runs."""
        # As tensors they are captured by the functions of a pipeline; as arrays they
        # would be copied into the graphs.
        with tf.device("CPU"):
            self._inputs = tf.constant(inputs)
            self._labels = tf.constant(labels, tf.int32)
        self.image_size = image_size

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._labels)

    def batches(
        self,
        indices: tf.data.Dataset,
        batch_size: int,
        crop: Crop | None = None,
        first: int = 0,
    ) -> tf.data.Dataset:
        """Reads the examples at `indices`, in that order.

        Args:
            indices: `tf.data.Dataset` of scalar integers.
            batch_size: Int; the last batch may be smaller.
            crop: Callable from an image of any size, and the place of the example
                among all of the pass, to an image of `image_size`. Defaults to
                `None`, which resizes the whole image.
            first: Int, the place of the first of `indices`. Defaults to 0.

        Returns:
            A `tf.data.Dataset` of `(images, labels)`: images of shape
            `(batch, image_size, image_size, 3)` with values from 0 to 255, uint8 or
            float32, and int32 labels of shape `(batch,)`.
        """
        raise NotImplementedError


class ArraySource(Source):
    """Images held in memory; a batch is gathered, then resized, in one go.

    Args:
        inputs: uint8 array of shape `(examples, height, width, 3)`.
        labels: Sequence of integers, one per example.
        image_size: Int, height and width that each whole image is resized to.

    Example:
    >>> source = ArraySource(np.zeros((5, 8, 8, 3), "uint8"), range(5), 32)
    >>> batches = source.batches(tf.data.Dataset.range(5), batch_size=2)
    >>> [images.shape[0] for images, labels in batches]
    [2, 2, 1]
    """

    def batches(
        self,
        indices: tf.data.Dataset,
        batch_size: int,
        crop: Crop | None = None,
        first: int = 0,
    ) -> tf.data.Dataset:
        """Implements `Source.batches`."""

        def read(indices):
            images = tf.gather(self._inputs, indices)
            return resize(images, self.image_size), tf.gather(self._labels, indices)

        def read_one(place, index):
            image = crop(tf.gather(self._inputs, index), place)
            return image, tf.gather(self._labels, index)

        if crop is None:
            return ordered_map(indices.batch(batch_size), read)
        return ordered_map(indices.enumerate(first), read_one).batch(batch_size)


class FileSource(Source):
    """Images in files, each decoded and resized when its turn comes.

    Args:
        inputs: Sequence of paths, of files in a format of `tf.io.decode_image`.
        labels: Sequence of integers, one per example.
        image_size: Int, height and width that each whole image is resized to.

    Example:
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/black.png"
    >>> tf.io.write_file(path, tf.io.encode_png(tf.zeros((9, 7, 3), tf.uint8)))
    >>> source = FileSource([path], labels=[0], image_size=32)
    >>> images, labels = next(iter(source.batches(tf.data.Dataset.range(1), 1)))
    >>> images.shape
    TensorShape([1, 32, 32, 3])
    """

    def batches(
        self,
        indices: tf.data.Dataset,
        batch_size: int,
        crop: Crop | None = None,
        first: int = 0,
    ) -> tf.data.Dataset:
        """Implements `Source.batches`."""

        def read(place, index):
            image = decode(tf.io.read_file(tf.gather(self._inputs, index)))
            label = tf.gather(self._labels, index)
            if crop is None:
                return resize(image, self.image_size), label
            return crop(image, place), label

        return ordered_map(indices.enumerate(first), read).batch(batch_size)


def decode(content: tf.Tensor) -> tf.Tensor:
    """Decodes an image file: three channels, of an animation the first frame.

    Args:
        content: Scalar string tensor.

    Returns:
        A uint8 tensor of shape `(height, width, 3)`.

    Example:
    >>> decode(tf.io.encode_png(tf.zeros((9, 7, 1), tf.uint8))).shape
    TensorShape([9, 7, 3])
    """
    return tf.io.decode_image(content, channels=3, expand_animations=False)


def resize(images: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes to a square, bilinearly, and with antialiasing where it shrinks.

    Args:
        images: Tensor of shape `(..., height, width, channels)`, 3D or 4D.
        image_size: Int, the new height and width.

    Returns:
        A float32 tensor, or `images` itself when it has this size already.

    Example:
    >>> resize(tf.zeros((2, 8, 8, 3)), 32).shape
    TensorShape([2, 32, 32, 3])
    """
    return tf.image.resize(images, (image_size, image_size), antialias=True)


def ordered_map(dataset: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
    """Maps in parallel, with the results in the order of the dataset.

    Args:
        dataset: `tf.data.Dataset`.
        function: Callable on an element of it.

    Returns:
        A `tf.data.Dataset`.

    Example:
    >>> squares = ordered_map(tf.data.Dataset.range(4), lambda i: i * i)
    >>> [int(square) for square in squares]
    [0, 1, 4, 9]
    """
    return dataset.map(
        function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
