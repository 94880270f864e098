"""What a training reads, pass after pass, so that it can go on at any of its steps."""

import math

import keras

from keras_hsakd import compat
from keras_hsakd.distribution import distributed
from keras_hsakd.teachers import TeacherCache
from keras_hsakd.trainers.checks import check_end, is_tf_dataset


class Feed:
    """The training data of a `fit`, and where each of its steps lies in them.

    Keras begins a pass over the data with each epoch; with `steps_per_epoch` it begins
    one, and another one where that ends. A pass over a data set of `keras_hsakd.data`,
    or over what is derived from some, follows their `EpochCounter`s, which are set
    here: Keras, and looking at a first batch, begin passes that are not read to the
    end.

    Args:
        data: `x` of `keras.Model.fit`.
        steps_per_epoch: As in `keras.Model.fit`.
        initial_epoch: As in `keras.Model.fit`.

    Raises:
        ValueError: If an epoch would never end.

    Attributes:
        begun: For each counter, the epoch of its data that the training begins with.
    """

    def __init__(self, data, steps_per_epoch: int | None, initial_epoch: int):
        self._data = data
        self._upstream = upstream(data)
        self._counters = [d.epoch_counter for d in self._upstream if _is_ours(d)]
        self._source, self._is_unchanged = _source(data)
        self._length = _length(data)
        check_end(data, steps_per_epoch, "steps_per_epoch")
        # Data that end before the steps do end the epoch, too.
        ends = (steps_per_epoch or math.inf) >= (self._length or math.inf)
        self._steps_per_epoch = None if ends else steps_per_epoch
        self._initial_epoch = self._next_epoch = initial_epoch
        self._begins = True
        self._passes_before, self._first_step = 0, 0
        self.begun = [counter.value for counter in self._counters]

    @property
    def has_unlabeled(self) -> bool:
        """Whether the data are, or are derived from, some that say so."""
        return any(getattr(d, "num_unlabeled", 0) for d in self._upstream)

    def check_exact(self, steps_per_execution: int) -> None:
        """Raises a ValueError unless a new process can read the same batches again."""
        steps = self._steps_per_epoch
        if steps is not None and steps % steps_per_execution:
            raise ValueError(
                "Expected `steps_per_execution` to divide `steps_per_epoch` to resume, "
                "since Keras goes on to the end of an execution. Received: "
                f"steps_per_execution={steps_per_execution}, steps_per_epoch={steps}"
            )
        if self._steps_per_epoch is not None and not self._is_endless:
            length = f"{self._length} batches" if self._length else "unknown length"
            raise ValueError(
                "Expected a `tf.data.Dataset` to resume with `steps_per_epoch`: one "
                "without an end, as by `repeat()`, or of a multiple of so many batches."
                f" Received: steps_per_epoch={self._steps_per_epoch} and a "
                f"{type(self._data).__name__} of {length}"
            )
        for dataset in self._upstream:
            if reason := _why_different(dataset):
                raise ValueError(
                    "Expected data that are the same at each start to resume with. "
                    f"Received: a `tf.data.Dataset` that {reason}"
                )

    def start(self, epoch: int, step: int, begun: list[int]) -> int:
        """Makes the training go on where an earlier one was.

        Args:
            epoch: Number of the epoch, counted from 0.
            step: Steps that are done of it.
            begun: `begun` of the earlier training.

        Returns:
            The number of batches to drop before the first step.
        """
        self.begun = list(begun)
        self._next_epoch = epoch
        seen = step
        if self._steps_per_epoch is not None:
            seen += (epoch - self._initial_epoch) * self._steps_per_epoch
            if self._length is not math.inf:
                # Keras, which counts from here, would look for the end of the pass at
                # another step.
                self._data = self._data.repeat()
        if self._source is None:
            return seen
        steps = self._source.epoch_counter.num_steps
        self._passes_before, first_step = divmod(seen, steps)
        if self._is_stream or self._length == steps:
            self._first_step = first_step
            return 0
        return first_step

    def dataset(self, model: keras.Model, class_weight: dict | None = None):
        """Returns what Keras is to read.

        Args:
            model: The trainer.
            class_weight: As in `keras.Model.fit`; every worker is then given all of
                the data, else its own share where that is known. Defaults to `None`.
        """
        data = self._data
        if self._is_stream:
            first_pass = self.begun[0] + self._passes_before
            data = self._source.stream(first_pass, self._first_step)
        if class_weight:
            return _weighted(data, class_weight)
        return distributed(data, model)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the counters for the pass that begins with an epoch, if one does."""
        if self._begins or self._steps_per_epoch is None:
            for counter, begun in zip(self._counters, self.begun, strict=True):
                passes = 0
                if self._steps_per_epoch is None:
                    passes = self._passes(counter, epoch - self._initial_epoch)
                counter.value = begun + passes + self._passes_before
                counter.first_step = self._first_step
        self._begins = False
        self._next_epoch = epoch + 1
        self._passes_before, self._first_step = 0, 0

    def end(self) -> None:
        """Sets the counters for what follows the training."""
        epochs = self._next_epoch - self._initial_epoch
        for counter, begun in zip(self._counters, self.begun, strict=True):
            counter.value = begun + self._passes(counter, epochs)
            counter.first_step = 0

    def _passes(self, counter, epochs):
        """Returns the number of passes of a counter's data in a number of epochs."""
        steps = self._steps_per_epoch
        if steps is not None:
            return math.ceil(epochs * steps / counter.num_steps)
        # Of data of unknown length, one pass has an end.
        length = self._length or counter.num_steps
        return epochs * math.ceil(length / counter.num_steps)

    @property
    def _is_endless(self):
        """Whether the steps follow each other without regard to where a pass ends."""
        steps, length = self._steps_per_epoch, self._length
        if steps is None or length is None:
            return False
        return length is math.inf or length % steps == 0

    @property
    def _is_stream(self):
        """Whether our own data are read so, for which they need no counter."""
        return self._is_endless and self._source is not None and self._is_unchanged


def _weighted(data, class_weight):
    """Returns data with the weight of its class for each image.

    Keras' own ends where a label is no class, with TensorFlow's error. Here the step
    does, with ours; so does an image without a label, -1, which no class could weigh.
    """
    import tensorflow as tf

    if len(data.element_spec) > 2:
        raise ValueError(
            "Expected `class_weight` with data of (image, label). Received: data that "
            "have weights of their own"
        )
    weights = tf.constant(
        [class_weight[label] for label in range(len(class_weight))],
        keras.config.floatx(),
    )

    count = len(class_weight)

    def weigh(images, labels):
        if labels.shape.rank == 2 and labels.shape[1] != 1:
            classes = tf.argmax(labels, axis=1)
        else:
            none = tf.cast(labels, tf.int32) < 0
            labels = tf.where(none, tf.cast(count, labels.dtype), labels)
            classes = tf.cast(tf.reshape(labels, [-1]), tf.int32)
        return images, labels, tf.gather(weights, classes % count)

    return data.map(tf.autograph.experimental.do_not_convert(weigh))


def _is_ours(dataset):
    return hasattr(dataset, "stream")


def upstream(data):
    """Returns the data sets that one is made of, down to those of ours."""
    found, waiting = [], [data] if is_tf_dataset(data) else []
    while waiting:
        dataset = waiting.pop()
        if not any(dataset is other for other in found):
            found.append(dataset)
            waiting += [] if _is_ours(dataset) else compat.made_of(dataset)
    return found


def _source(data):
    """Returns the data set of ours whose batches the data are, and if unchanged."""
    unchanged = True
    while is_tf_dataset(data) and not _is_ours(data):
        kind = type(data).__name__
        if kind not in compat.UNCHANGED | compat.ONE_BY_ONE:
            return None, False
        unchanged &= kind in compat.UNCHANGED
        (data,) = compat.made_of(data)
    return (data, unchanged) if is_tf_dataset(data) else (None, False)


def with_step_inputs(data, cache: TeacherCache | None = None, on_device: bool = False):
    """Returns data whose batches are dicts, of what a step needs beside the images.

    Args:
        data: The training data of a trainer.
        cache: Where a teacher's outputs for each image are read from, the `targets`.
            Defaults to `None`: there are none.
        on_device: Whether the images are to be augmented in the step, for which it gets
            their `shifts`. Defaults to `False`.

    Raises:
        FileNotFoundError: If the files of the cache are not there.
        ValueError: If the data are not a data set of `keras_hsakd.data`, unchanged, of
            the images of the cache, the files are not as they were written, or a step
            cannot augment the images.
    """
    source, is_unchanged = _source(data)
    if not is_unchanged:
        purpose = "augment on the device" if cache is None else "use a teacher cache"
        raise ValueError(
            f"Expected a data set of `keras_hsakd.data` to {purpose}, as it is or "
            "after `prefetch`, `repeat` or `with_options`: others do not name their "
            f"images, or may change them. Received: a {type(data).__name__}"
        )
    if on_device:
        _check_shifted(source.pipeline)
    if cache is not None:
        cache.open()
        cache.check_data(source)
    replay = source.pipeline.dataset(cache, on_device)
    if data is source:
        return replay
    length, steps = _length(data), source.epoch_counter.num_steps
    count = -1 if length is math.inf else length // steps
    return replay.repeat(count).with_options(data.options())


def _check_shifted(pipeline):
    """Raises a ValueError unless a step can do what a pipeline does to its images."""
    augmentation = pipeline.augmentation
    if not augmentation.is_shift or pipeline.preprocessing is not None:
        raise ValueError(
            "Expected images of 0 to 255 (`normalize=False`) with crop='padded' and no "
            "`augment` to augment on the device. "
            f"Received: crop={augmentation.crop!r}, augment={augmentation.augment!r}, "
            f"normalize={pipeline.preprocessing is not None}"
        )


def _length(data):
    """Returns the number of batches in the data, None where that is unknown."""
    if not is_tf_dataset(data):
        return None
    length = int(data.cardinality())
    return {-1: math.inf, -2: None}.get(length, length)


def _why_different(dataset):
    """Returns what makes a `tf.data.Dataset` another one at each start, or None."""
    if _is_ours(dataset):
        return None
    if compat.shuffles_differ(dataset):
        return (
            "shuffles in another way each time: give `shuffle` a seed and "
            "`reshuffle_each_iteration=False`"
        )
    if operations := compat.stateful_random_operations(dataset):
        return (
            f"draws from {operations}, whose state is kept nowhere: use TensorFlow's "
            "`stateless_` operations"
        )
    if type(dataset).__name__ == compat.CACHE and any(map(_is_ours, upstream(dataset))):
        return (
            "caches the augmentation of the pass that comes first: leave `cache()` out"
        )
    return None
