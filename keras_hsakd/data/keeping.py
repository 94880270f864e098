"""Images that are decoded once and kept in memory, where they fit into a part of it."""

import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd import machine
from keras_hsakd.autotuning import without_autotuning
from keras_hsakd.data.sources import (
    Finish,
    Source,
    Transform,
    on_host,
    ordered_map,
    resize,
    without_filling,
)
from keras_hsakd.sizes import edges

_PART = 1 / 4  # of the memory that is free now
# Images that tell, before all are read, how much memory they will take: spread evenly.
_FIRST = 64
# How many images, and bytes of images of the size of the result, are read at once.
_MOST_IMAGES, _MOST_BYTES, _WHOLE_IMAGES = 256, 2**25, 8
_SECONDS_UNSAID = 3.0  # that reading may take before it says how far it is
_SECONDS_DRAWN = 0.3  # between two pictures of the progress


class KeptSource(Source):
    """The images of another source, decoded: `keep` makes it.

    An image is kept as uint8 at the size that it has in the data, or as float32 at the
    size of the result, whichever is smaller: so what comes of it is the same, bit for
    bit, as where it is decoded each time.

    Args:
        source: The `Source`.
        pixels: uint8 array of shape `(bytes,)`, image after image.
        rows: Int array of shape `(examples, 5)`: where each begins in `pixels`, its
            height and width, whether it is float32, and its label.
        is_final: Whether images are what the source's `of_image` made of them.
    """

    def __init__(
        self, source: Source, pixels: np.ndarray, rows: np.ndarray, is_final: bool
    ):
        super().__init__(source.image_size)
        self.labels, self.fingerprint = source.labels, source.fingerprint
        self._num_bytes = len(pixels)
        begins, heights, widths, is_float, labels = rows.T
        self._is_final = is_final
        self._rows, self._labels = on_host(rows), on_host(labels, tf.int32)
        self._is_float = is_float.any()
        self._images = None
        same = (rows[:, 1:4] == rows[0, 1:4]).all()
        if same:  # then a batch is gathered in one go
            images = pixels.view("float32" if self._is_float else "uint8")
            images = images.reshape(len(rows), heights[0], widths[0], 3)
            self._places = on_host(np.argsort(np.argsort(begins)))
            self._images = _without_copy(images)
        else:
            self._pixels = _without_copy(pixels)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Implements `Source.read`; what was resized is float32."""
        label = tf.gather(self._labels, index)
        if self._images is not None:
            return tf.gather(self._images, tf.gather(self._places, index)), label
        begin, height, width, is_float, _ = tf.unstack(tf.gather(self._rows, index))
        shape = tf.stack([height, width, 3])
        count = tf.reduce_prod(shape)

        def as_float():
            pixels = tf.slice(self._pixels, [begin], [4 * count])
            return tf.bitcast(tf.reshape(pixels, tf.concat([shape, [4]], 0)), "float32")

        def whole():
            return tf.reshape(tf.slice(self._pixels, [begin], [count]), shape)

        if not self._is_float:
            return whole(), label
        return tf.cond(
            is_float > 0, as_float, lambda: tf.cast(whole(), "float32")
        ), label

    def batches(
        self,
        indices: tf.data.Dataset,
        finish: Finish,
        of_image: Transform | None = None,
        of_images: Transform | None = None,
    ) -> tf.data.Dataset:
        """Implements `Source.batches`."""
        if self._is_final:
            of_image = None
        if self._images is None or (of_image is not None and of_images is None):
            return super().batches(indices, finish, of_image)

        def read(indices, *drawn):
            indices, *drawn = without_filling(indices, indices, *drawn)
            images, labels = self.read(indices)
            images = resize(images, self.image_size)
            if of_images is not None:
                images = of_images(images, *drawn)
            return finish(tf.cast(images, tf.float32), labels, indices, *drawn)

        return ordered_map(indices, read)


def _without_copy(array):
    """Returns an array that nothing writes to any more as a tensor on the host."""
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def room() -> int:
    """Returns the bytes that kept images may take."""
    return int(machine.free_memory() * _PART)


def keep(
    source: Source,
    room: int,
    form: Transform | None,
    is_final: bool = False,
) -> tuple[KeptSource | None, np.ndarray]:
    """Decodes the images of a source, once, and keeps them where they fit.

    Args:
        source: The `Source`.
        room: Int, the most bytes that they may take.
        form: Function from an image of any size to what the pipeline makes of it each
            time, float32 of `source.image_size`. `None` where each time it makes
            something else of the whole image.
        is_final: Whether the pipeline does so by an `of_image`. Defaults to `False`, it
            resizes the whole image.

    Returns:
        The `KeptSource`, or `None` where they do not fit or some cannot be decoded; and
        a bool array, which images have been decoded.
    """
    count = len(source)
    if form is None:
        at_once = _WHOLE_IMAGES
    else:
        at_once = max(1, min(_MOST_IMAGES, _MOST_BYTES // _bytes_formed(source)))
    first = np.unique(np.linspace(0, count - 1, _FIRST).astype("int64"))
    others = np.setdiff1d(np.arange(count), first)
    order = np.concatenate([np.random.default_rng(0).permutation(first), others])
    buffer, used = _buffer(room), 0
    rows, seen = np.zeros((count, 5), "int64"), np.zeros(count, bool)
    batches = _read(source, order, _smaller(source, form, is_final), at_once)
    for indices, labels, shapes, is_float, pixels in batches:
        ends = used + pixels.row_splits.numpy()
        seen[indices] = True
        if ends[-1] / seen.sum() * count > room:
            return None, seen
        buffer[used : ends[-1]] = pixels.flat_values
        rows[indices] = np.column_stack([ends[:-1], shapes, is_float, labels])
        used = ends[-1]
    if not seen.all():
        return None, seen
    return KeptSource(source, buffer[:used], rows, is_final), seen


def _bytes_formed(source):
    """Returns the bytes of an image of the size of the result, in float32."""
    height, width = edges(source.image_size)
    return 4 * 3 * height * width


def _smaller(source, form, is_final):
    """Returns a function from an image to shape, whether float32, and bytes to keep."""

    def kept(image):
        def whole():
            return tf.shape(image)[:2], False, tf.reshape(image, [-1])

        def formed():
            pixels = tf.bitcast(form(image), tf.uint8)
            return tf.constant(edges(source.image_size)), True, tf.reshape(pixels, [-1])

        if form is None:
            return whole()
        if is_final:
            return formed()
        return tf.cond(tf.size(image) <= _bytes_formed(source), whole, formed)

    return kept


def _buffer(size):
    """Returns bytes that take memory when they are written to, where TensorFlow can."""
    aligned = 64
    buffer = np.empty(size + aligned, "uint8")
    begin = -buffer.ctypes.data % aligned
    return buffer[begin : begin + size]


def decodable(source: Source, indices: np.ndarray) -> np.ndarray:
    """Decodes images of a source, and returns the indices of those that it can.

    Args:
        source: The `Source`.
        indices: Int64 array.
    """

    def shape_alone(image):
        return tf.shape(image)[:2], False, tf.zeros(0, tf.uint8)

    if not len(indices):
        return indices
    read = _read(source, indices, shape_alone, _MOST_IMAGES)
    batches = [batch[0].numpy() for batch in read]
    return np.concatenate([indices[:0], *batches])


def _read(source, order, kept, at_once):
    """Yields batches of index, label, shape, whether it is float32, and bytes."""

    def fetch(indices):
        return indices, source.fetch(indices)

    def read(index, fetched):
        image, label = source.read(index, *fetched)
        shape, is_float, pixels = kept(image)
        # Of no static shape, so that all batches are ragged.
        pixels = tf.compat.v1.placeholder_with_default(pixels, [None])
        return index, label, shape, is_float, pixels

    batches = ordered_map(
        tf.data.Dataset.from_tensor_slices(order).batch(at_once), fetch
    )
    images = ordered_map(batches.unbatch(), read).ignore_errors()
    images = images.ragged_batch(at_once).prefetch(tf.data.AUTOTUNE)
    progress = Progress(len(order))
    for batch in without_autotuning(images):
        progress.add(len(batch[0]))
        yield batch


class Progress:
    """Tells how far reading is, where it takes long, and draws it for a terminal.

    Args:
        count: Int, number of images in all.
    """

    def __init__(self, count: int):
        self._began, self._count, self._done = time.monotonic(), count, 0
        self._said, self._bar = False, None

    def add(self, number: int) -> None:
        """Counts images that have been read."""
        self._done += number
        if not self._said and time.monotonic() - self._began >= _SECONDS_UNSAID:
            self._said = True
            print(f"Decoding {self._count:,} images", flush=True)
            if sys.stdout.isatty():
                self._bar = keras.utils.Progbar(
                    self._count, unit_name="image", interval=_SECONDS_DRAWN
                )
        if self._bar is not None:
            self._bar.update(self._done)
