"""Pipelines whose order and augmentation follow from (seed, epoch, image) alone."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd import digests
from keras_hsakd.autotuning import without_autotuning
from keras_hsakd.data.arguments import check_integer, check_normalisation
from keras_hsakd.data.augment import Augmentation, Draws, center_crop, draw
from keras_hsakd.data.keeping import keep
from keras_hsakd.data.sources import Source, as_it_is, resize_one
from keras_hsakd.sizes import ImageSize, as_json, checked
from keras_hsakd.teachers import TeacherCache


@dataclasses.dataclass
class EpochCounter:
    """The epoch that the next pass over a training dataset will be.

    It advances when a pass yields its first batch, so that each pass has an order and
    an augmentation of its own, also under `repeat()`. Set `value` to replay an epoch,
    and `first_step` to go on in the middle of one: no image is read for the batches
    before it.

    A pass that is dropped after its first batch counts too, and Keras drops some. The
    trainers therefore set the counters of the data that they are given, and of what
    that is derived from, at the beginning of each epoch.

    Attributes:
        num_steps: Int, batches in an epoch.
        value: Int. Defaults to 0.
        first_step: Int, the batch that the next pass begins at; as many batches at its
            end have no images, since its length is fixed. Defaults to 0.

    Example:
    >>> train, _ = load("digits")
    >>> first, second = next(iter(train)), next(iter(train))
    >>> train.epoch_counter.value
    2
    >>> train.epoch_counter.value = 0
    >>> bool(tf.reduce_all(next(iter(train))[0] == first[0]))
    True
    """

    num_steps: int
    value: int = 0
    first_step: int = 0

    def begin_pass(self):
        """Yields epoch and first step of the pass that begins, as its one element."""
        begun = self.value, self.first_step
        self.value += 1
        self.first_step = 0
        yield begun


class Share(NamedTuple):
    """The part of each batch that one of several workers reads.

    Attributes:
        replicas: Int, parts of a batch in all, as equal as they can be.
        first: Int, the first part that is read.
        last: Int, the part after the last one that is read.
    """

    replicas: int = 1
    first: int = 0
    last: int = 1

    @property
    def num_parts(self) -> int:
        """Number of the parts of a batch that are read."""
        return self.last - self.first

    def bounds(self, size, part: int):
        """Returns where a part of a batch of a size begins, and where it ends."""
        return size * part // self.replicas, size * (part + 1) // self.replicas


WHOLE = Share()


def epoch_batches(
    source: Source,
    batch_size: int,
    seed: int,
    epoch: int | tf.Tensor,
    first_step: int | tf.Tensor = 0,
    augmentation: Augmentation | None = None,
    share: Share = WHOLE,
) -> tf.data.Dataset:
    """Returns the batches of one epoch, a pure function of the arguments.

    The order is a function of `(seed, epoch)`, and the augmentation of an image one of
    `(seed, epoch, index)`: neither the size of the batches nor the number of workers
    changes it, and the batches from `first_step` on are, bit for bit, the tail of the
    whole epoch. No image is read but those that are returned.

    Args:
        source: `Source` of the images.
        batch_size: Int, size of the whole batches; the last one may be smaller.
        seed: Int, not negative.
        epoch: Int or scalar integer tensor.
        first_step: Int or scalar int64 tensor, the batch of the epoch to begin at.
            Defaults to 0.
        augmentation: An `Augmentation`. Defaults to `None`, which leaves images as
            they are.
        share: The parts of each batch to read, one after the other. Defaults to
            `WHOLE`, whole batches.

    Returns:
        A `tf.data.Dataset` of `(images, labels, indices)`: images with values from 0 to
        255, and int64 indices of shape `(batch,)`, else as in `Source.batches`.

    Example:
    >>> source = ArraySource(np.zeros((5, 32, 32, 3), "uint8"), range(5), 32)
    >>> tail = epoch_batches(source, 2, seed=0, epoch=3, first_step=1)
    >>> [images.shape[0] for images, labels, indices in tail]
    [2, 1]
    """
    indices = _epoch_indices(len(source), batch_size, seed, epoch, first_step, share)
    return _training_batches(
        source,
        indices,
        augmentation,
        lambda images, labels, indices, *drawn: (images, labels, indices),
    )


def _epoch_indices(
    num_examples,
    batch_size,
    seed,
    epoch,
    first_step=0,
    share=WHOLE,
    cache=None,
    drop_remainder=False,
):
    """Returns the indices of an epoch by the batch, and what is drawn for each.

    With a teacher cache they are drawn as for the variant of the epoch, whose number
    comes last.
    """
    epoch = tf.cast(epoch, tf.int64)
    order_seed, draws_seed = _seeds(seed, epoch)
    order = tf.random.experimental.stateless_shuffle(
        tf.range(num_examples, dtype=tf.int64), order_seed
    )
    end = num_examples - num_examples % batch_size if drop_remainder else num_examples
    indices = _batched(order[first_step * batch_size : end], batch_size, share)
    if cache is None:
        return _with_draws(indices, draw(num_examples, draws_seed))
    variant = epoch % cache.variants
    _, draws_seed = _seeds(cache.seed, variant)
    return _with_draws(indices, draw(num_examples, draws_seed)).map(
        as_it_is(lambda batch, *drawn: (batch, *drawn, tf.fill(batch.shape, variant)))
    )


def _seeds(seed, epoch):
    """Returns the seeds of an epoch's order, and of what is drawn in it."""
    epoch_seed = tf.random.fold_in(tf.constant([seed, 0], tf.int64), epoch)
    return tf.unstack(tf.random.split(epoch_seed, 2))


def _with_draws(indices, draws):
    return indices.map(as_it_is(lambda batch: (batch, *draws.at(tf.maximum(batch, 0)))))


def _batched(order, batch_size, share=WHOLE):
    """Returns the parts of a share of the batches of indices, filled up with -1."""
    missing = -tf.size(order) % batch_size
    filled = tf.pad(order, [[0, missing]], constant_values=-1)
    batches = tf.data.Dataset.from_tensor_slices(tf.reshape(filled, [-1, batch_size]))
    if share.replicas == 1:
        return batches
    size = math.ceil(batch_size / share.replicas)

    def parts(batch):
        count = tf.math.count_nonzero(batch >= 0, dtype=tf.int32)
        bounds = (share.bounds(count, part) for part in range(share.first, share.last))
        rows = [
            tf.pad(batch[begin:end], [[0, size - (end - begin)]], constant_values=-1)
            for begin, end in bounds
        ]
        return tf.ensure_shape(tf.stack(rows), [share.num_parts, size])

    return batches.map(as_it_is(parts)).unbatch()


def _training_batches(source, indices, augmentation, finish):
    """Reads images at batches of `_epoch_indices`, and augments them."""
    if augmentation is None:
        return source.batches(indices, finish)

    def of_image(image, uniform, seeds, *others):
        return augmentation.of_image(image, Draws(uniform, seeds), source.image_size)

    def of_images(images, uniform, seeds, *others):
        return augmentation.of_images(images, Draws(uniform, seeds))

    return source.batches(
        indices, finish, of_image, of_images if augmentation.is_of_batches else None
    )


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


@dataclasses.dataclass(frozen=True)
class TrainingPipeline:
    """What the training images of a data set go through, pass after pass.

    Attributes:
        source: `Source` to shuffle and augment.
        batch_size: Int.
        seed: Int, not negative.
        augmentation: How images are varied.
        preprocessing: The layer of `rescaling` that images go through, or `None`.
        class_names: Names of the classes.
        with_indices: Whether batches carry the indices of their images, see `load`.
        drop_remainder: Whether the images of a pass that fill no batch are left out.
        counter: The `EpochCounter`.
    """

    source: Source
    batch_size: int
    seed: int
    augmentation: Augmentation
    preprocessing: keras.layers.Rescaling | None
    class_names: list[str]
    with_indices: bool
    drop_remainder: bool
    counter: EpochCounter

    @functools.cached_property
    def fingerprint(self) -> dict:
        """What tells its images from those of others, as values of JSON.

        Order and size of the batches are not in it, nor the seed of what is drawn.
        """
        layer = self.preprocessing
        return {
            "examples": known_by(lambda: self.source, self.class_names)(),
            "num_images": len(self.source),
            "image_size": as_json(self.source.image_size),
            "augmentation": self.augmentation._asdict(),
            "normalisation": layer
            and {"scale": list(layer.scale), "offset": list(layer.offset)},
        }

    def variant(
        self, number: int, indices: Sequence[int], batch_size: int, seed: int
    ) -> tf.data.Dataset:
        """Returns images as they are augmented in an epoch, in an order of your own.

        Args:
            number: Int, the epoch.
            indices: Integers, which of the images.
            batch_size: Int.
            seed: Int, of what is drawn.

        Returns:
            A `tf.data.Dataset` of images alone, as they are fed.
        """
        _, draws_seed = _seeds(seed, tf.constant(number, tf.int64))
        batches = _batched(tf.constant(indices, tf.int64), batch_size)
        batches = _with_draws(batches, draw(len(self.source), draws_seed))

        def finish(images, labels, indices, *drawn):
            return self._fed(images)

        images = _training_batches(self.source, batches, self.augmentation, finish)
        return without_autotuning(images.prefetch(tf.data.AUTOTUNE))

    def dataset(
        self, cache: TeacherCache | None = None, on_device: bool = False
    ) -> tf.data.Dataset:
        """Returns what is trained on, see `train_and_test`; all share the counter.

        Args:
            cache: Where a teacher's outputs are; what is drawn in an epoch is then that
                of its variant, and the first part of a batch a dict of `images` and
                `targets`. Defaults to `None`.
            on_device: Whether the images are left as they are, and a batch has their
                `shifts` beside them, for `keras_hsakd.ops.shifted`. Defaults to
                `False`.
        """
        epoch = functools.partial(
            _epoch_indices,
            len(self.source),
            self.batch_size,
            self.seed,
            cache=cache,
            drop_remainder=self.drop_remainder,
        )

        augmentation = None if on_device else self.augmentation

        def for_a_step(images, labels, indices, uniform, seeds, *variants):
            x = {"images": self._fed(images)}
            if on_device:
                draws = Draws(uniform, seeds)
                x["shifts"] = self.augmentation.shifts(draws, self.source.image_size)
            if cache is not None:
                x["targets"] = _targets(cache, *variants, indices)
            return x, labels

        finish = self.finish if cache is None and not on_device else for_a_step

        def pipeline(indices, steps):
            def batches(share):
                read = indices(share)
                return _training_batches(self.source, read, augmentation, finish)

            return _dataset(batches, steps)

        dataset = pipeline(
            functools.partial(_next_epoch, epoch, self.counter), self.counter.num_steps
        )
        dataset.pipeline, dataset.epoch_counter = self, self.counter
        dataset.stream = lambda first_epoch, first_step: pipeline(
            functools.partial(_epochs, epoch, first_epoch, first_step),
            tf.data.INFINITE_CARDINALITY,
        )
        return _described(dataset, self.source, self.class_names)

    def finish(self, images, labels, indices, *drawn):
        """Returns what is fed of images, as `Source.batches` wants it."""
        images = self._fed(images)
        if self.with_indices:
            images = {"images": images, "indices": indices}
        return images, labels

    def _fed(self, images):
        return images if self.preprocessing is None else self.preprocessing(images)


def _targets(cache, variants, indices):
    """Returns a teacher's outputs for images, read from a cache."""
    names = list(cache.outputs)

    def read(variants, indices):
        if not len(indices):
            variants = [0]
        targets = cache.read(int(variants[0]), indices)
        return [targets[name] for name in names]

    # As stateful, it would keep a pipeline from reading in parallel where operations
    # are deterministic.
    read = tf.numpy_function(
        read, [variants, indices], [cache.read_dtype] * len(names), stateful=False
    )
    return {
        name: tf.ensure_shape(part, (None, cache.num_views, cache.outputs[name]))
        for name, part in zip(names, read, strict=True)
    }


def train_and_test(
    train: Source,
    test: Source,
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    preprocessing: keras.layers.Rescaling | None,
    class_names: list[str],
    test_crop: float | None = None,
    with_indices: bool = False,
    drop_remainder: bool = False,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Returns the pipelines to train and to evaluate with.

    Args:
        train: `Source` to shuffle and augment.
        test: `Source` to read in its own order.
        batch_size: Int.
        seed: Int, not negative.
        augmentation: How training images are varied.
        preprocessing: The layer of `rescaling` from images with values from 0 to 255 to
            those to feed, or `None` to feed them as they are.
        class_names: Names of the classes.
        test_crop: Fraction for `center_crop` of the test images. Defaults to `None`,
            which resizes whole images.
        with_indices: Whether batches carry the indices of their images, see `load`.
            Defaults to `False`.
        drop_remainder: Whether the training images of a pass that fill no batch are
            left out. Defaults to `False`.

    Returns:
        Two `tf.data.Dataset`s of `(images, labels)`, float32 of shape
        `(batch, height, width, 3)`, or uint8 where nothing was computed of them, and
        int32 of shape `(batch,)`. Both have the attributes `class_names`,
        `num_examples`, `num_unlabeled` and `labels`, those of the source,
        `fingerprint`, a function to a checksum of images, labels and names of classes,
        `kept_bytes`, how much memory images take, or `None` where they are read in each
        pass, and `share`, a function from what a `Share` has to the data of one worker.
        The first has its `EpochCounter` as `epoch_counter`, `stream`, a function from
        the epoch and the step to begin at to its batches without an end, and its
        `TrainingPipeline` as `pipeline`.

    Example:
    >>> source = ArraySource(np.zeros((5, 32, 32, 3), "uint8"), range(5), 32)
    >>> layer = rescaling(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> train, test = train_and_test(
    ...     source, source, 2, 0, Augmentation(), layer, ["a", "b"]
    ... )
    >>> int(train.cardinality())
    3
    """
    steps = math.ceil(len(train) / batch_size)
    if drop_remainder:
        steps = len(train) // batch_size
        if not steps:
            raise ValueError(
                "Expected at least a batch of training images with `drop_remainder`. "
                f"Received: {len(train)} images, batch_size={batch_size}"
            )
    training = TrainingPipeline(
        train,
        batch_size,
        seed,
        augmentation,
        preprocessing,
        class_names,
        with_indices,
        drop_remainder,
        EpochCounter(steps),
    )

    def centered(image):
        return center_crop(image, test.image_size, test_crop)

    def in_order(share):
        indices = _batched(tf.range(len(test), dtype=tf.int64), batch_size, share)
        crop = None if test_crop is None else centered
        indices = indices.map(as_it_is(lambda batch: (batch,)))
        return test.batches(indices, training.finish, crop)

    test_dataset = _dataset(in_order, math.ceil(len(test) / batch_size))
    return training.dataset(), _described(test_dataset, test, class_names)


@dataclasses.dataclass(frozen=True)
class Feed:
    """How images become batches, as `load` takes it.

    Attributes:
        batch_size: As in `load`.
        image_size: As in `load`.
        seed: As in `load`.
        augmentation: Of training images.
        center_crop: As in `load`.
        mean: As in `load`.
        std: As in `load`.
        normalize: As in `load`.
        with_indices: As in `load`.
        drop_remainder: As in `load`.

    Raises:
        ValueError: If one is outside its range.
    """

    batch_size: int
    image_size: ImageSize
    seed: int
    augmentation: Augmentation
    center_crop: float | None
    mean: Sequence[float]
    std: Sequence[float]
    normalize: bool
    with_indices: bool
    drop_remainder: bool

    def __post_init__(self):
        """Checks the ranges."""
        check_integer("batch_size", self.batch_size, 1)
        checked(self.image_size)
        self.augmentation.check()
        if self.center_crop is not None and not 0 < self.center_crop <= 1:
            raise ValueError(
                "Expected `center_crop` to be None or above 0 and at most 1. "
                f"Received: center_crop={self.center_crop}"
            )
        check_normalisation(self.mean, self.std)

    def kept_train(self, source: Source, room: int) -> tuple[Source | None, np.ndarray]:
        """Keeps training images, as `keep`."""
        of_batches = self.augmentation.is_of_batches
        return keep(source, room, self._resized if of_batches else None)

    def kept_test(self, source: Source, room: int) -> tuple[Source | None, np.ndarray]:
        """Keeps test images, as `keep`."""
        if self.center_crop is None:
            return keep(source, room, self._resized)

        def centered(image):
            return center_crop(image, self.image_size, self.center_crop)

        return keep(source, room, centered, is_final=True)

    def _resized(self, image):
        return resize_one(image, self.image_size)

    def datasets(
        self, train: Source, test: Source, class_names: list[str]
    ) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        """Returns the pipelines of `train_and_test`."""
        return train_and_test(
            train,
            test,
            self.batch_size,
            self.seed,
            self.augmentation,
            rescaling(self.mean, self.std) if self.normalize else None,
            class_names,
            self.center_crop,
            self.with_indices,
            self.drop_remainder,
        )


def _described(dataset, source, class_names):
    """Returns a pipeline with what is known of its images."""
    dataset.class_names, dataset.num_examples = class_names, len(source)
    dataset.num_unlabeled, dataset.labels = source.num_unlabeled, source.labels
    dataset.fingerprint = known_by(lambda: source, class_names)
    dataset.kept_bytes = source.num_bytes
    return dataset


def known_by(
    source: Callable[[], Source], class_names: Sequence[str]
) -> Callable[[], str]:
    """Returns a function to the fingerprint of images and names of their classes."""
    return functools.cache(
        lambda: digests.of_json([source().fingerprint(), list(class_names)])
    )


def identified(
    datasets: Sequence[tf.data.Dataset],
    skipped: Sequence[str],
    whole: Sequence[Callable[[], Source]],
    class_names: Sequence[str],
) -> Sequence[tf.data.Dataset]:
    """Returns pipelines known by all data that are there, whichever were chosen.

    Args:
        datasets: The pipelines.
        skipped: Files that were left out.
        whole: For each a function to the source of all data.
        class_names: Names of the classes.
    """
    for dataset, source in zip(datasets, whole, strict=True):
        dataset.skipped = list(skipped)
        dataset.fingerprint = known_by(source, class_names)
    return datasets


def _next_epoch(epoch, counter, share):
    """Returns the indices of the epoch that a counter has when they are first read."""

    def begin(number, first_step):
        indices = epoch(number, first_step, share)
        # The length of a pass is known, so it must not depend on where it begins.
        nothing = tf.data.Dataset.from_tensors(
            tuple(tf.zeros(spec.shape, spec.dtype) for spec in indices.element_spec)
        ).map(as_it_is(lambda indices, *drawn: (indices - 1, *drawn)))
        return indices.concatenate(nothing.repeat(first_step * share.num_parts))

    scalar = tf.TensorSpec((), tf.int64)
    return tf.data.Dataset.from_generator(
        counter.begin_pass, output_signature=(scalar, scalar)
    ).flat_map(as_it_is(begin))


def _epochs(epoch, first_epoch, first_step, share):
    """Returns the indices of one epoch after the other, without an end."""

    def begin(number):
        is_first = tf.cast(number == first_epoch, tf.int64)
        return epoch(number, first_step * is_first, share)

    return tf.data.Dataset.counter(first_epoch).flat_map(as_it_is(begin))


def _dataset(batches, steps):
    """Returns a pipeline, with a function `share` to the part of it of a worker.

    Args:
        batches: Callable from a `Share` to what is fed.
        steps: Number of whole batches.
    """

    def of(share):
        # A `flat_map` has no known length; Keras' progress bar asks for it.
        endless = steps == tf.data.INFINITE_CARDINALITY
        length = steps if endless else steps * share.num_parts
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA  # by default files are shared
        )
        return (
            batches(share)
            .apply(tf.data.experimental.assert_cardinality(length))
            .prefetch(tf.data.AUTOTUNE)
            .with_options(options)
        )

    dataset = of(WHOLE)
    dataset.share = lambda *share: of(Share(*share))
    return dataset
