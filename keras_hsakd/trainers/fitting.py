"""How the trainers fit: checks before, guards during, callbacks around it."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_hsakd import compat, digests
from keras_hsakd.distribution import (
    ReplicatedFit,
    distributed,
    lost_workers_named,
)
from keras_hsakd.ops import shifted, valid_labels
from keras_hsakd.trainers import checks
from keras_hsakd.trainers.feeding import Feed, with_step_inputs
from keras_hsakd.trainers.inspection import inspect_data


@dataclasses.dataclass(frozen=True)
class Fit:
    """A call of `fit`, as it stands before Keras' own begins.

    Attributes:
        data: The training data, `x` of `fit`.
        feed: Where each step lies in them.
        first_batch: Its first batch, or all the data of arrays; `None` where it
            cannot be looked at.
        shuffle: Whether Keras shuffles the data.
        epochs: Epochs to train, those before `initial_epoch` included.
        initial_epoch: Number of the epoch to begin with, counted from 0.
        callbacks: The callbacks that Keras calls.
    """

    data: Any
    feed: Feed
    first_batch: Any
    shuffle: bool
    epochs: int
    initial_epoch: int
    callbacks: Sequence[keras.callbacks.Callback]


class FitCallback(keras.callbacks.Callback):
    """A callback that is there before a trainer's `fit` begins, and after it ends."""

    @contextlib.contextmanager
    def around_fit(self, model: keras.Model, fit: Fit) -> Iterator[Fit]:
        """Surrounds a `fit`, whether it ends well or not.

        Args:
            model: The trainer.
            fit: What is to be done; this callback is among its callbacks.

        Yields:
            What to do in its place.
        """
        yield fit


class Fitting(ReplicatedFit):
    """Mixin of a `keras.Model` whose training is checked, guarded and resumable.

    A subclass has `network`, the functional model that is trained, `term_names`, those
    of the logs that must be finite, and may have checks of its own in `check_batch`.
    """

    term_names: Sequence[str] = ("loss",)
    frozen_ids: frozenset[int] = frozenset()
    takes_unlabeled = False  # images without a label, which is the label -1
    _unweighted_metrics = ""  # they would take these for class 0
    cache = None  # a `TeacherCache`, whose outputs are read with the images

    @property
    def frozen_weights(self):
        """Weights that no training changes: those of a teacher, of a backbone.

        States of random layers, which are drawn anew for each load, are not among them.
        """
        return [v for v in self.weights if id(v) in self.frozen_ids]

    def frozen_digest(self) -> str:
        """Returns a checksum of what no training changes."""
        return digests.of_values(self.frozen_weights)

    @property
    def changing_variables(self):
        """All other variables of the model, those of random states among them."""
        return [v for v in self.variables if id(v) not in self.frozen_ids]

    def check_batch(self, images, labels, training: bool = True) -> None:
        """Raises a ValueError unless a batch suits the network.

        Args:
            images: An array or tensor.
            labels: The same.
            training: Whether to train on it. Defaults to `True`.
        """
        unlabeled = training and self.takes_unlabeled
        checks.check_batch(self.network, images, labels, unlabeled)

    def check_unlabeled(self, class_weight) -> None:
        """Raises a ValueError unless images without a label can be trained on."""
        checks.check_labeled(self)
        if class_weight:
            raise ValueError(
                "Expected no `class_weight` where images have no label; weights of "
                "images can come with them, as `sample_weight`. "
                f"Received: class_weight={class_weight}"
            )

    def check_data(self, data, is_weighted: bool) -> None:
        """Raises a ValueError of data whose rows cannot be weighed as they should.

        Args:
            data: `x` of `fit`.
            is_weighted: Whether images have weights.
        """

    def own_callbacks(self) -> list[keras.callbacks.Callback]:
        """Returns callbacks that each training of this trainer has."""
        return []

    def read(self, data, on_device: bool):
        """Returns the data that a training reads, in place of those that it is given.

        What is looked at and checked are the latter.

        Args:
            data: `x` of `fit`.
            on_device: `augment_on_device` of `fit`.
        """
        if self.cache is None and not on_device:
            return data
        return with_step_inputs(data, self.cache, on_device)

    def augmented(self, x):
        """Returns the images of a batch, which the step augments where it is told to.

        Args:
            x: Images, or a dict of `images` and what comes with them, `shifts` if they
                are to be augmented.
        """
        if not isinstance(x, dict):
            return x
        return shifted(x["images"], x["shifts"]) if "shifts" in x else x["images"]

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *,
        initial_epoch=0,
        augment_on_device=False,
        **kwargs,
    ):
        """Trains as `keras.Model.fit`, on plain images and their class labels.

        Args:
            x: A `tf.data.Dataset` of (image, label) or (image, label, sample weight)
                batches, or whatever else `keras.Model.fit` takes. Images are
                `(B, size, size, channels)`; labels are integers `(B,)` or class
                probabilities `(B, N)`. `Distiller` takes the label -1, of an image
                without one, in training.
            y: Labels, where `x` is an array.
            batch_size: Number of images in a batch, where `x` is an array. Defaults
                to `None`, which is 32.
            epochs: Epochs to train, those before `initial_epoch` included. Defaults
                to 1.
            verbose: 0 for silence, 1 for a progress bar, 2 for a line per epoch.
                Defaults to `"auto"`, 1 in most cases.
            callbacks: A `keras.callbacks.Callback` or a list of them;
                `keras_hsakd.Resume` among them takes snapshots and goes on from them.
            initial_epoch: Number of the epoch to begin with, counted from 0. Defaults
                to 0.
            augment_on_device: Whether the step crops and flips the images of a data set
                of `keras_hsakd.data`, of 0 to 255, and not the processor that reads
                them; the images are the same. Defaults to `False`.
            **kwargs: Other arguments of `keras.Model.fit`, such as `validation_data`,
                `class_weight` or `steps_per_epoch`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: Before training, if the first batch does not suit the network,
                or if `compile` was not called.
            FloatingPointError: If a term of the loss is not finite; names it.
            RuntimeError: If another worker of `MultiWorkerMirroredStrategy` is lost.
        """
        if not self.compiled:
            raise ValueError(
                "Expected `compile()` to be called before `fit()`. "
                f"Received: a {type(self).__name__} that is not compiled"
            )
        class_weight = kwargs.get("class_weight")
        self._check_class_weight(class_weight)
        self._check_trains()
        callbacks = [] if callbacks is None else callbacks
        callbacks = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
        callbacks = list(keras.tree.flatten(callbacks))
        # Before anything looks at the data.
        data = self.read(x, augment_on_device)
        feed = Feed(data, kwargs.get("steps_per_epoch"), initial_epoch)
        callbacks = [_BeginPasses(feed), *self.own_callbacks(), *callbacks]
        bars = keras.callbacks.ProgbarLogger
        if verbose and not any(isinstance(c, bars) for c in callbacks):
            callbacks.append(_Progress())
        if checks.is_tf_dataset(x):
            # Keras shuffles no tf.data.Dataset, and warns where it is told to.
            kwargs.setdefault("shuffle", False)
        seen = inspect_data(x, y)
        x = seen.data
        if self._check(seen) or feed.has_unlabeled:
            self.check_unlabeled(class_weight)
        self.check_data(x, _is_weighted(seen.first_batch, kwargs))
        expected = checks.expected_labels(
            self.network, self._may_be_unlabeled and not class_weight
        )
        kwargs = self._with_validation_checked(kwargs, seen)
        shuffle = kwargs.get("shuffle", True)
        fit = Fit(x, feed, seen.first_batch, shuffle, epochs, initial_epoch, callbacks)
        with contextlib.ExitStack() as stack:
            for callback in callbacks:
                if isinstance(callback, FitCallback):
                    fit = stack.enter_context(callback.around_fit(self, fit))
            stack.enter_context(lost_workers_named(self))
            if checks.is_tf_dataset(x):
                x = feed.dataset(self, kwargs.pop("class_weight", None))
            if checks.is_tf_dataset(kwargs.get("validation_data")):
                kwargs["validation_data"] = distributed(kwargs["validation_data"], self)
            return super().fit(
                x,
                y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                # First in the list: no other callback is to keep a ruined model.
                callbacks=[
                    checks.StopOnNonFiniteLoss(self.term_names, expected),
                    *fit.callbacks,
                ],
                initial_epoch=fit.initial_epoch,
                **kwargs,
            )

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        **kwargs,
    ):
        """Evaluates as `keras.Model.evaluate`; workers read their own shares."""
        if kwargs.get(compat.WITHIN_FIT):
            argument = "validation_data"
        else:
            argument = "x"
            checks.check_end(x, steps, "steps")
            seen = inspect_data(x, y)
            x = seen.data
            self._check(seen, training=False)
        results = super().evaluate(
            distributed(x, self),
            y,
            batch_size=batch_size,
            verbose=verbose,
            sample_weight=sample_weight,
            steps=steps,
            **kwargs,
        )
        loss = results["loss"] if isinstance(results, dict) else results
        loss = loss[0] if isinstance(loss, list) else loss
        expected = checks.expected_labels(self.network)
        checks.check_flag(loss, expected, f"in `{argument}`")
        return results

    def train_on_batch(
        self, x, y=None, sample_weight=None, class_weight=None, **kwargs
    ):
        self._check_trains()
        self.check_batch(x, y)
        if checks.has_unlabeled(y):
            self.check_unlabeled(class_weight)
        if self.cache is not None:
            raise ValueError(
                "Expected `fit` with a teacher cache, whose data name their images. "
                "Received: a call of `train_on_batch`"
            )
        return super().train_on_batch(x, y, sample_weight, class_weight, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        self.check_batch(x, y, training=False)
        return super().test_on_batch(x, y, *args, **kwargs)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of the step before, which Keras asks for on PyTorch.

        PyTorch's own knows variables by their paths, which those of two networks share.
        """
        for variable in self.trainable_variables:
            variable.value.grad = None

    def valid_labels(self, labels, training: bool = False):
        """Returns labels as `ops.valid_labels`, for a step of training or another."""
        lowest = -1 if training and self._may_be_unlabeled else 0
        return valid_labels(labels, checks.num_classes(self.network), lowest)

    @property
    def _may_be_unlabeled(self):
        return self.takes_unlabeled and not self._unweighted_metrics

    def _check(self, seen, training=True):
        """Checks what was seen of data; returns whether images without a label were."""
        if seen.first_batch is None:
            return False
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(seen.first_batch)
        self.check_batch(images, labels, training)
        for more in seen.more_labels:
            unlabeled = training and self.takes_unlabeled
            checks.check_labels(self.network, more, unlabeled)
        return any(map(checks.has_unlabeled, [labels, *seen.more_labels]))

    def _with_validation_checked(self, arguments, training):
        """Checks the validation data among the arguments of `fit`, and returns them."""
        data = arguments.get("validation_data")
        if data is None:
            return arguments
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        checks.check_end(x, arguments.get("validation_steps"), "validation_steps")
        seen = inspect_data(x, y, "validation_data")
        with checks.about("validation_data"):
            self._check(seen, training=False)
            if training.first_batch is not None and seen.first_batch is not None:
                # A network of any size takes others, and measures something else.
                checks.check_same_shape(training.first_batch[0], seen.first_batch[0])
        if y is None:
            data = seen.data
        return {**arguments, "validation_data": data}

    def _check_trains(self):
        if not self.trainable_variables:
            raise ValueError(
                f"Expected `{self.network.name}` to have weights that the loss trains. "
                "Received: none, they are frozen (`trainable=False`), or no term of "
                "the loss is on what they compute"
            )

    def _check_class_weight(self, class_weight):
        num_classes = checks.num_classes(self.network)
        if class_weight and set(class_weight) != set(range(num_classes)):
            raise ValueError(
                f"Expected `class_weight` to have each class of 0 to {num_classes - 1}."
                f" Received: class_weight={class_weight}"
            )


def _is_weighted(first_batch, arguments):
    """Returns whether `fit` weighs images, by its data or by its arguments."""
    if any(arguments.get(f"{what}_weight") is not None for what in ("sample", "class")):
        return True
    batch = keras.utils.unpack_x_y_sample_weight(first_batch)
    return first_batch is not None and batch[2] is not None


class _BeginPasses(FitCallback):
    """Tells the feed when an epoch begins, and when the training has ended."""

    def __init__(self, feed: Feed):
        super().__init__()
        self._feed = feed

    @contextlib.contextmanager
    def around_fit(self, model, fit):
        try:
            yield fit
        finally:
            self._feed.end()

    def on_epoch_begin(self, epoch, logs=None):
        self._feed.begin_epoch(epoch)


class _Progress(keras.callbacks.ProgbarLogger):
    """Keras' progress bar, but for an execution that goes past the end of an epoch."""

    async_safe = True  # as Keras takes its own to be

    def on_train_batch_end(self, batch, logs=None):
        last = batch if self.target is None else self.target - 1
        super().on_train_batch_end(min(batch, last), logs)


def dtype_policy(*networks):
    """Returns the policy of float16, if a layer of the networks has it, or the first's.

    Keras scales the loss by it.
    """
    for layer in itertools.chain.from_iterable(map(compat.layers_of, networks)):
        if layer.compute_dtype == "float16":
            return layer.dtype_policy
    return networks[0].dtype_policy
