"""Where images come from: arrays in memory, or files decoded as they are needed."""

import contextlib
import os
import stat
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_hsakd import digests
from keras_hsakd.data import decoding
from keras_hsakd.sizes import ImageSize, edges, simplest

# For functions of graphs that need no AutoGraph, whose conversion takes a second.
as_it_is = tf.autograph.experimental.do_not_convert

# Of how many images a fingerprint sees the content, and how many bytes of each file.
_SAMPLE, _HEAD = 256, 2**16

Transform = Callable[..., tf.Tensor]
Finish = Callable[..., tuple]


class Source:
    """Labelled images that can be read in any order, each by its index.

    Subclasses implement `__len__` and `read`, and `batches` where that is faster.

    Args:
        image_size: Int, height and width of the images in batches, or (height, width).

    Attributes:
        image_size: The same, as an int where it is a square's.
        labels: int32 array of shape `(examples,)`, or `None` where they are read with
            the images.
    """

    labels: np.ndarray | None = None

    def __init__(self, image_size: ImageSize):
        self.image_size = simplest(image_size)

    def __len__(self) -> int:
        """Returns the number of examples."""
        raise NotImplementedError

    @property
    def num_unlabeled(self) -> int:
        """The number of examples with the label -1, which are without one."""
        return 0 if self.labels is None else int(np.sum(self.labels < 0))

    def fingerprint(self) -> str:
        """Returns a checksum of the examples, which is the same wherever they are.

        Teacher caches and runs know their images by it: `docs/data.md` says what of
        them it sees. What becomes of the images, as their size, is not in it.
        """
        raise NotImplementedError

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Fetches what `read` needs of a batch, where that is faster in one go.

        Args:
            indices: int64 tensor of shape `(size,)`, -1 where a batch is filled up.

        Returns:
            Tensors whose first dimension is that of `indices`; by default, none.
        """
        return ()

    def read(
        self, index: tf.Tensor, *fetched: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads one example, as operations of a graph.

        Args:
            index: Scalar int64 tensor, from 0 to `len(self) - 1`.
            *fetched: Its part of what `fetch` returned, or nothing.

        Returns:
            Its image, uint8 of shape `(height, width, 3)` and of any size, and its
            label, a scalar int32.
        """
        raise NotImplementedError

    def batches(
        self,
        indices: tf.data.Dataset,
        finish: Finish,
        of_image: Transform | None = None,
        of_images: Transform | None = None,
    ) -> tf.data.Dataset:
        """Reads the examples at batches of indices, in that order.

        Args:
            indices: `tf.data.Dataset` of tuples: int64 indices of shape `(size,)`, and
                any number of tensors with what is drawn for each of them. All have the
                same static size; what is filled up has the index -1, and is not read.
            finish: Callable from images, labels, indices and what was drawn, without
                what was filled up, to an element of the result. Images have shape
                `(batch, height, width, 3)` and values from 0 to 255, uint8 or float32;
                labels are int32 of shape `(batch,)`.
            of_image: Callable from an image of any size, and what was drawn for it, to
                one of `image_size`, float32. Defaults to `None`, which resizes the
                whole image.
            of_images: The same from a batch of images, and what was drawn for each,
                where these have `image_size` already; used where it is faster.

        Returns:
            A `tf.data.Dataset`.
        """
        (size,) = indices.element_spec[0].shape
        shape = (*edges(self.image_size), 3)

        def fetch(indices, *drawn):
            return indices, self.fetch(indices), *drawn

        def read(index, fetched, *drawn):
            image, label = self.read(index, *fetched)
            if of_image is None:
                image = resize_one(image, self.image_size)
            else:
                image = of_image(image, *drawn)
            return tf.ensure_shape(image, shape), label

        def read_or_fill(index, fetched, *drawn):
            image, label = tf.cond(
                index < 0,
                lambda: (tf.zeros(shape), tf.constant(-1)),
                lambda: read(index, fetched, *drawn),
            )
            return image, label, index, *drawn

        def finish_read(images, labels, indices, *drawn):
            return finish(*without_filling(indices, images, labels, indices, *drawn))

        fetched = ordered_map(indices, fetch)
        one_by_one = ordered_map(fetched.unbatch(), read_or_fill)
        return ordered_map(one_by_one.batch(size), finish_read)


def without_filling(indices: tf.Tensor, *parts: tf.Tensor) -> list[tf.Tensor]:
    """Returns parts of a batch without the end that has the index -1."""
    count = tf.math.count_nonzero(indices >= 0)
    return [part[:count] for part in parts]


class ArraySource(Source):
    """Images held in memory; a batch is gathered, then resized, in one go.

    Args:
        images: uint8 array of shape `(examples, height, width, 3)`.
        labels: Sequence of integers, one per example.
        image_size: Int, height and width that each whole image is resized to, or
            (height, width).

    Example:
    >>> source = ArraySource(np.zeros((5, 8, 8, 3), "uint8"), range(5), 32)
    >>> indices = tf.data.Dataset.from_tensors((tf.constant([3, 1], tf.int64),))
    >>> batches = source.batches(indices, lambda images, labels, indices: labels)
    >>> [labels.numpy().tolist() for labels in batches]
    [[3, 1]]
    """

    def __init__(
        self, images: np.ndarray, labels: Sequence[int], image_size: ImageSize
    ):
        super().__init__(image_size)
        self._images = on_host(images)
        self.labels = np.asarray(labels, "int32")
        self._labels = on_host(self.labels)

    def __len__(self) -> int:
        return len(self._labels)

    def fingerprint(self) -> str:
        """Implements `Source.fingerprint`, by images and labels."""
        return digests.of_values([self._images, self.labels])

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Implements `Source.read`."""
        return tf.gather(self._images, index), tf.gather(self._labels, index)

    def batches(
        self,
        indices: tf.data.Dataset,
        finish: Finish,
        of_image: Transform | None = None,
        of_images: Transform | None = None,
    ) -> tf.data.Dataset:
        """Implements `Source.batches`."""
        if of_image is not None and of_images is None:
            return super().batches(indices, finish, of_image)

        def read(indices, *drawn):
            indices, *drawn = without_filling(indices, indices, *drawn)
            images, labels = self.read(indices)
            images = resize(images, self.image_size)
            if of_images is not None:
                images = of_images(images, *drawn)
            return finish(images, labels, indices, *drawn)

        return ordered_map(indices, read)


class FileSource(Source):
    """Images in files, each decoded and resized when its turn comes.

    Args:
        files: Sequence of paths, of files that `decoding.read` reads.
        labels: Sequence of integers, one per example.
        image_size: Int, height and width that each whole image is resized to, or
            (height, width).

    Example:
    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/black.png"
    >>> tf.io.write_file(path, tf.io.encode_png(tf.zeros((9, 7, 3), tf.uint8)))
    >>> source = FileSource([path], labels=[0], image_size=32)
    >>> source.read(tf.constant(0))[0].shape
    TensorShape([9, 7, 3])
    """

    def __init__(
        self, files: Sequence[str], labels: Sequence[int], image_size: ImageSize
    ):
        super().__init__(image_size)
        self._files = on_host(files)
        self.labels = np.asarray(labels, "int32")
        self._labels = on_host(self.labels)

    def __len__(self) -> int:
        return len(self._labels)

    def fingerprint(self) -> str:
        """Implements `Source.fingerprint`.

        It sees names below the folder of all, sizes and labels of the files, and what
        some of them begin with.
        """
        files = self._files.numpy().tolist()
        above = os.path.commonprefix(files).rpartition(b"/")[0]
        names = [file[len(above) :] for file in files]
        sizes = np.array([_file_size(file) for file in files], "int64")
        heads = [_head(files[i]) for i in sample(len(files)) if sizes[i] > 0]
        return digests.of_values([b"\0".join(names), sizes, self.labels, *heads])

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Implements `Source.read`."""
        image = decoding.read(tf.gather(self._files, index))
        return image, tf.gather(self._labels, index)


def sample(count: int) -> np.ndarray:
    """Returns positions from 0 to `count` - 1, some of them where there are many.

    Example:
    >>> sample(3).tolist(), len(sample(100_000))
    ([0, 1, 2], 256)
    """
    return np.unique(np.linspace(0, count - 1, _SAMPLE).round().astype("int64"))


def _file_size(path):
    """Returns the size of a file, or -1 where there is none."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
    return -1


def _head(path):
    with open(path, "rb") as file:
        return file.read(_HEAD)


class JoinedSource(Source):
    """The examples of one source, and then those of another.

    Args:
        first: `Source`.
        second: `Source` of the same `image_size`.

    Example:
    >>> labelled = ArraySource(np.zeros((3, 8, 8, 3), "uint8"), [0, 1, 2], 32)
    >>> others = ArraySource(np.zeros((2, 9, 9, 3), "uint8"), [-1, -1], 32)
    >>> joined = JoinedSource(labelled, others)
    >>> len(joined), int(joined.read(tf.constant(3, tf.int64))[1])
    (5, -1)
    """

    def __init__(self, first: Source, second: Source):
        super().__init__(first.image_size)
        self._first, self._second = first, second
        parts = [first.labels, second.labels]
        if all(labels is not None for labels in parts):
            self.labels = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @property
    def num_unlabeled(self) -> int:
        return self._first.num_unlabeled + self._second.num_unlabeled

    def fingerprint(self) -> str:
        """Implements `Source.fingerprint`, by those of both."""
        parts = self._first, self._second
        return digests.of_json([part.fingerprint() for part in parts])

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Implements `Source.read`."""
        length = len(self._first)
        return tf.cond(
            index < length,
            lambda: self._first.read(index),
            lambda: self._second.read(index - length),
        )


def joined(first: Source, second: Source | None) -> Source:
    """Returns the examples of two sources as one, or the first where there is one.

    Args:
        first: `Source`.
        second: `Source`, or `None`.

    Example:
    >>> source = ArraySource(np.zeros((3, 8, 8, 3), "uint8"), [0, 1, 2], 32)
    >>> len(joined(source, None)), len(joined(source, source))
    (3, 6)
    """
    return first if second is None else JoinedSource(first, second)


def on_host(values, dtype: tf.DType | None = None) -> tf.Tensor:
    """Returns values as a tensor on the host, where `tf.data` runs.

    The functions of a pipeline capture a tensor; an array would be copied into their
    graphs.

    Args:
        values: Array or sequence.
        dtype: As in `tf.constant`.

    Returns:
        A `tf.Tensor`.

    Example:
    >>> on_host([1, 2]).shape
    TensorShape([2])
    """
    with tf.device("CPU"):
        return tf.constant(values, dtype)


def resize(images: tf.Tensor, image_size: ImageSize) -> tf.Tensor:
    """Resizes bilinearly, and with antialiasing where it shrinks.

    Args:
        images: Tensor of shape `(..., height, width, channels)`, 3D or 4D.
        image_size: Int, the new height and width, or (height, width).

    Returns:
        A float32 tensor, or `images` itself where it is known to have this size.

    Example:
    >>> resize(tf.zeros((2, 8, 8, 3)), 32).shape
    TensorShape([2, 32, 32, 3])
    """
    size = edges(image_size)
    # `tf.image.resize` computes, and takes long, also where nothing is to be done.
    if tuple(images.shape[-3:-1]) == size:
        return images
    return tf.image.resize(images, size, antialias=True)


def resize_one(image: tf.Tensor, image_size: ImageSize) -> tf.Tensor:
    """Resizes as `resize`, an image of a size that only the pipeline knows.

    Args:
        image: Tensor of shape `(height, width, 3)`.
        image_size: Int, the new height and width, or (height, width).

    Returns:
        A float32 tensor of that size.

    Example:
    >>> resize_one(tf.zeros((9, 7, 3), tf.uint8), (24, 32)).shape
    TensorShape([24, 32, 3])
    """
    size = edges(image_size)
    image = tf.cond(
        tf.reduce_all(tf.shape(image)[:2] == size),
        lambda: tf.cast(image, tf.float32),
        lambda: tf.image.resize(image, size, antialias=True),
    )
    return tf.ensure_shape(image, (*size, 3))


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
        as_it_is(function), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
