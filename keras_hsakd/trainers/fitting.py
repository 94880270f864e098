"""How the trainers fit: checks before, guards during, callbacks around it."""

import contextlib
from collections.abc import Iterator, Sequence

import keras

from keras_hsakd.distribution import MultiWorkerFit, lost_workers_named
from keras_hsakd.trainers import checks


class FitCallback(keras.callbacks.Callback):
    """A callback that is there before a trainer's `fit` begins, and after it ends."""

    @contextlib.contextmanager
    def around_fit(
        self,
        model: keras.Model,
        data,
        first_batch,
        callbacks: Sequence[keras.callbacks.Callback],
        shuffle: bool,
    ) -> Iterator[list[keras.callbacks.Callback]]:
        """Surrounds a `fit`, whether it ends well or not.

        Args:
            model: The trainer.
            data: The training data, `x` of `fit`.
            first_batch: Its first batch, see `checks.first_batch`.
            callbacks: The callbacks of `fit`, this one among them.
            shuffle: Whether Keras shuffles the data.

        Yields:
            The callbacks to call in their place.
        """
        yield callbacks


class Fitting(MultiWorkerFit):
    """Mixin of a `keras.Model` whose training is checked, guarded and resumable.

    A subclass has `network`, the functional model that is trained, `term_names`, those
    of the logs that must be finite, and may have checks of its own in `check_batch`.
    """

    term_names: Sequence[str] = ("loss",)
    frozen_ids: frozenset[int] = frozenset()

    @property
    def frozen_variables(self):
        """Variables that no training changes: those of a teacher, of a backbone."""
        return [v for v in self.variables if id(v) in self.frozen_ids]

    @property
    def changing_variables(self):
        """All other variables of the model, those of random states among them."""
        return [v for v in self.variables if id(v) not in self.frozen_ids]

    def check_batch(self, images, labels) -> None:
        """Raises a ValueError unless a batch suits the network."""
        checks.check_batch(self.network, images, labels)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        **kwargs,
    ):
        """Trains as `keras.Model.fit`, on plain images and their class labels.

        Args:
            x: A `tf.data.Dataset` of (image, label) or (image, label, sample weight)
                batches, or whatever else `keras.Model.fit` takes. Images are
                `(B, size, size, channels)`; labels are integers `(B,)` or class
                probabilities `(B, N)`.
            y: Labels, where `x` is an array.
            batch_size: As in `keras.Model.fit`.
            epochs: As in `keras.Model.fit`.
            verbose: As in `keras.Model.fit`.
            callbacks: As in `keras.Model.fit`; `keras_hsakd.Resume` among them takes
                snapshots and goes on from them.
            **kwargs: Other arguments of `keras.Model.fit`, as `validation_data`,
                `class_weight`, `initial_epoch` or `steps_per_epoch`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: If the first batch does not suit the network, before training.
            FloatingPointError: If a term of the loss is not finite; names it.
            RuntimeError: If another worker of `MultiWorkerMirroredStrategy` is lost.
        """
        self._assert_compile_called("fit")
        self._check_class_weight(kwargs.get("class_weight"))
        callbacks = [] if callbacks is None else callbacks
        callbacks = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
        callbacks = list(keras.tree.flatten(callbacks))
        if hasattr(x, "epoch_counter"):
            begun = kwargs.get("initial_epoch", 0)
            callbacks = [CountEpochs(x.epoch_counter, begun), *callbacks]
        if checks.is_tf_dataset(x):
            # Keras shuffles no tf.data.Dataset, and warns where it is told to.
            kwargs.setdefault("shuffle", False)
        first, x = checks.first_batch(x, y)
        if first is not None:
            images, labels, _ = keras.utils.unpack_x_y_sample_weight(first)
            self.check_batch(images, labels)
        shuffle = kwargs.get("shuffle", True)
        with contextlib.ExitStack() as stack:
            for callback in tuple(callbacks):
                if isinstance(callback, FitCallback):
                    callbacks = stack.enter_context(
                        callback.around_fit(self, x, first, callbacks, shuffle)
                    )
            stack.enter_context(lost_workers_named(self))
            return super().fit(
                x,
                y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                # First in the list: no other callback is to keep a ruined model.
                callbacks=[checks.StopOnNonFiniteLoss(self.term_names), *callbacks],
                **kwargs,
            )

    def _check_class_weight(self, class_weight):
        num_classes = checks.num_classes(self.network)
        if class_weight and set(class_weight) != set(range(num_classes)):
            raise ValueError(
                f"Expected `class_weight` to have each class of 0 to {num_classes - 1}."
                f" Received: class_weight={class_weight}"
            )


class CountEpochs(FitCallback):
    """Has the passes over a data set follow the epochs of a training.

    While it trains, only an epoch that begins moves the counter: Keras, and looking at
    a first batch, begin passes that are not read to the end.

    Args:
        counter: The data set's `keras_hsakd.data.EpochCounter`.
        initial_epoch: The epoch that the training begins with.
    """

    def __init__(self, counter, initial_epoch: int):
        super().__init__()
        self.counter = counter
        self._offset = counter.value - initial_epoch
        self._next = counter.value

    @contextlib.contextmanager
    def around_fit(self, model, data, first_batch, callbacks, shuffle):
        self.counter.held = True
        try:
            yield callbacks
        finally:
            self.counter.held = False
            self.counter.value = self._next

    def on_epoch_begin(self, epoch, logs=None):
        self.counter.value = self._offset + epoch
        self._next = self.counter.value + 1

    def get_state(self):
        """Returns what a snapshot keeps."""
        return self._offset

    def set_state(self, state):
        """Goes on with what a snapshot kept."""
        self._offset = state


def dtype_policy(network):
    """Returns the policy under which the network was made."""
    for layer in network._flatten_layers():
        if layer.compute_dtype == "float16":
            return layer.dtype_policy
    return network.dtype_policy
