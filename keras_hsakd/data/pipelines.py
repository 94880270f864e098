"""Pipelines whose order and augmentation follow from (seed, epoch, step) alone."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from keras_hsakd.data.augment import (
    AUGMENTATIONS,
    center_crop,
    random_crop,
    random_flip,
    random_resized_crop,
)
from keras_hsakd.data.sources import Source, ordered_map


@dataclasses.dataclass
class EpochCounter:
    """The epoch that the next pass over a training dataset will be.

    It advances when a pass yields its first batch, so that each epoch has an order of
    its own under `model.fit(train, epochs=...)`. Set `value` to go back, or to resume:
    to go on at step `s` of epoch `e`, set `train.epoch_counter.value = e` and iterate
    over `train.skip(s)`; with `first_step = s`, nothing is read for what is skipped.

    A pass that is dropped after its first batch counts too, and Keras drops some. The
    trainers therefore hold the counter of a dataset with the attribute `epoch_counter`
    and set it at the beginning of each epoch; give it to what you derive from one:
    `mapped = train.map(...)`, `mapped.epoch_counter = train.epoch_counter`.

    Attributes:
        value: Int. Defaults to 0.
        first_step: Int; in the next pass the batches before it are blank. Defaults
            to 0.
        held: Bool, whether both stay as they are when a pass begins. Defaults to
            `False`.

    Example:
    >>> train, _ = load("digits")
    >>> first, second = next(iter(train)), next(iter(train))
    >>> train.epoch_counter.value
    2
    >>> train.epoch_counter.value = 0
    >>> bool(tf.reduce_all(next(iter(train))[0] == first[0]))
    True
    """

    value: int = 0
    first_step: int = 0
    held: bool = False

    def begin_pass(self):
        """Yields epoch and first step of the pass that begins, as its one element."""
        begun = self.value, self.first_step
        if not self.held:
            self.value += 1
            self.first_step = 0
        yield begun


def epoch_batches(
    source: Source,
    batch_size: int,
    seed: int,
    epoch: int | tf.Tensor,
    first_step: int | tf.Tensor = 0,
    augmentation: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    crop: str = "padded",
) -> tf.data.Dataset:
    """Returns the batches of one epoch, a pure function of the arguments.

    The order is a function of `(seed, epoch)`, and the augmentation of a batch one of
    `(seed, epoch, step)`. So the batches from `first_step` on are, bit for bit, the
    tail of the whole epoch; no image before them is read.

    Args:
        source: `Source` of the images.
        batch_size: Int; the last batch may be smaller.
        seed: Int, not negative.
        epoch: Int or scalar integer tensor.
        first_step: Int or scalar int64 tensor, the batch of the epoch to begin at.
            Defaults to 0.
        augmentation: Callable from a batch of images and a seed of shape `(2,)` to a
            batch of images. Defaults to `None`, which leaves them as they are.
        crop: `"resized"` applies `random_resized_crop` to each image before. Defaults
            to `"padded"`, which resizes the whole image.

    Returns:
        A `tf.data.Dataset` of `(images, labels)` as in `Source.batches`.

    Example:
    >>> source = ArraySource(np.zeros((5, 32, 32, 3), "uint8"), range(5), 32)
    >>> tail = epoch_batches(source, 2, seed=0, epoch=3, first_step=1)
    >>> [images.shape[0] for images, labels in tail]
    [2, 1]
    """
    epoch_seed = tf.random.fold_in(
        tf.constant([seed, 0], tf.int64), tf.cast(epoch, tf.int64)
    )
    order_seed, augmentation_seed = tf.unstack(tf.random.split(epoch_seed, 2))
    order = tf.random.experimental.stateless_shuffle(tf.range(len(source)), order_seed)
    first = first_step * batch_size
    crop_seed = tf.random.fold_in(epoch_seed, 2)

    def cropped(image, place):
        seed = tf.random.fold_in(crop_seed, place)
        return random_resized_crop(image, source.image_size, seed)

    batches = source.batches(
        tf.data.Dataset.from_tensor_slices(order[first:]),
        batch_size,
        crop=cropped if crop == "resized" else None,
        first=first,
    )
    if augmentation is None:
        return batches

    def augment(step, batch):
        images, labels = batch
        return augmentation(images, tf.random.fold_in(augmentation_seed, step)), labels

    steps = tf.data.Dataset.counter(start=first_step)
    return ordered_map(tf.data.Dataset.zip(steps, batches), augment)


def augmented(
    images: tf.Tensor,
    seed: tf.Tensor,
    padding: int,
    flip: bool,
    augment: str | None = None,
) -> tf.Tensor:
    """Applies `random_crop`, `random_flip`, and stronger augmentation as told.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, not normalised: the
            zeros of the padding are to be black.
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.
        padding: Int, as in `random_crop`.
        flip: Bool, whether to apply `random_flip`.
        augment: A name of `AUGMENTATIONS`, or `None`.

    Returns:
        A tensor of the shape of `images`.

    Example:
    >>> augmented(tf.zeros((8, 32, 32, 3)), (0, 1), padding=4, flip=True).shape
    TensorShape([8, 32, 32, 3])
    """
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    if padding:
        images = random_crop(images, padding, crop_seed)
    if flip:
        images = random_flip(images, flip_seed)
    if augment is not None:
        images = AUGMENTATIONS[augment](images, tf.random.fold_in(seed, 2))
    return images


def rescaling(mean: Sequence[float], std: Sequence[float]) -> keras.layers.Rescaling:
    """Returns the layer that normalises images with values from 0 to 255.

    Args:
        mean: Sequence of floats, one per channel, on the scale from 0 to 1.
        std: Sequence of floats, one per channel, on the same scale.

    Returns:
        A `keras.layers.Rescaling` that computes in float32 whatever the dtype policy.

    Example:
    >>> layer = rescaling(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> np.round(layer(np.full((1, 1, 1, 3), 255, "uint8")), 4).ravel().tolist()
    [2.0, 2.0, 2.0]
    """
    return keras.layers.Rescaling(
        scale=[1 / (255 * s) for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        dtype="float32",
    )


def _sharded_by_batch():
    """Returns options by which several workers share each batch of a dataset."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA  # by default files are shared
    )
    return options


def train_and_test(
    train: Source,
    test: Source,
    batch_size: int,
    seed: int,
    flip: bool,
    preprocessing: Callable[[tf.Tensor], tf.Tensor] | None,
    class_names: list[str],
    augment: str | None = None,
    crop: str = "padded",
    test_crop: float | None = None,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Returns the pipelines to train and to evaluate with.

    Args:
        train: `Source` to shuffle and augment.
        test: `Source` to read in its own order.
        batch_size: Int.
        seed: Int, not negative.
        flip: Bool, whether training images are flipped at random.
        preprocessing: Callable from images with values from 0 to 255 to those to feed,
            or `None` to feed them as they are.
        class_names: Names of the classes.
        augment: Stronger augmentation after crop and flip, a name of `AUGMENTATIONS`.
            Defaults to `None`.
        crop: `"padded"` pads training images by an eighth of their size, 4 pixels for
            32, and crops them at random; `"resized"` applies `random_resized_crop`.
            Defaults to `"padded"`.
        test_crop: Fraction for `center_crop` of the test images. Defaults to `None`,
            which resizes whole images.

    Returns:
        Two `tf.data.Dataset`s of `(images, labels)`, float32 of shape
        `(batch, image_size, image_size, 3)`, or uint8 where nothing was computed of
        them, and int32 of shape `(batch,)`. Both have the attributes `class_names` and
        `num_examples`; the first has its
        `EpochCounter` as `epoch_counter`.

    Example:
    >>> source = ArraySource(np.zeros((5, 32, 32, 3), "uint8"), range(5), 32)
    >>> layer = rescaling(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> train, test = train_and_test(source, source, 2, 0, True, layer, ["a", "b"])
    >>> int(train.cardinality())
    3
    """
    counter = EpochCounter()
    padding = train.image_size // 8 if crop == "padded" else 0
    augmentation = functools.partial(
        augmented, padding=padding, flip=flip, augment=augment
    )
    scalar = tf.TensorSpec((), tf.int64)
    passes = tf.data.Dataset.from_generator(
        counter.begin_pass, output_signature=(scalar, scalar)
    )

    def begin_pass(epoch, first_step):
        batches = epoch_batches(
            train, batch_size, seed, epoch, first_step, augmentation, crop
        )
        images, labels = batches.element_spec
        blank = (
            tf.zeros((batch_size, train.image_size, train.image_size, 3), images.dtype),
            tf.zeros((batch_size,), labels.dtype),
        )
        skipped = tf.data.Dataset.from_tensors(blank).repeat(first_step)
        return skipped.concatenate(batches)

    train_batches = passes.flat_map(begin_pass)
    # A `flat_map` has no known length; Keras' progress bar asks for it.
    train_batches = train_batches.apply(
        tf.data.experimental.assert_cardinality(math.ceil(len(train) / batch_size))
    )

    def centered(image, place):
        return center_crop(image, test.image_size, test_crop)

    test_batches = test.batches(
        tf.data.Dataset.range(len(test)),
        batch_size,
        crop=None if test_crop is None else centered,
    )

    if preprocessing is not None:
        train_batches, test_batches = (
            ordered_map(batches, lambda images, labels: (preprocessing(images), labels))
            for batches in (train_batches, test_batches)
        )
    train_dataset, test_dataset = (
        batches.prefetch(tf.data.AUTOTUNE).with_options(_sharded_by_batch())
        for batches in (train_batches, test_batches)
    )
    train_dataset.epoch_counter = counter
    for dataset, source in ((train_dataset, train), (test_dataset, test)):
        dataset.class_names = class_names
        dataset.num_examples = len(source)
    return train_dataset, test_dataset
