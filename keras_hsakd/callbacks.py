"""What `keras.callbacks` lacks."""

import os
import shutil
import statistics
import time

import keras

from keras_hsakd.distribution import steps_done
from keras_hsakd.files import atomic_write
from keras_hsakd.network_files import (
    CHECKPOINTS,
    checkpoint_path,
    read_results,
    save_with_results,
)
from keras_hsakd.signals import KeptInterrupt


class Throughput(keras.callbacks.Callback):
    """Adds `images_per_second` and `learning_rate` to the logs of each epoch.

    The rate of images is that of training, without validation; the learning rate is
    that of the epoch's first step. Place it before callbacks that write logs.

    Args:
        images_per_epoch: Number of images in an epoch of training.

    Example:
    >>> train, _ = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> network = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> trainer = keras_hsakd.TeacherTrainer(network).compile("sgd")
    >>> callbacks = [Throughput(train.num_examples)]
    >>> logs = trainer.fit(train, callbacks=callbacks, verbose=0).history
    >>> logs["learning_rate"], logs["images_per_second"][0] > 0
    ([0.009999999776482582], True)
    """

    def __init__(self, images_per_epoch: int):
        super().__init__()
        self.images_per_epoch = images_per_epoch

    def on_epoch_begin(self, epoch, logs=None):
        self._learning_rate = float(self.model.optimizer.learning_rate)
        self._began = time.perf_counter()
        self._seconds = None

    def on_test_begin(self, logs=None):
        self._stop()

    def on_epoch_end(self, epoch, logs=None):
        self._stop()
        logs["learning_rate"] = self._learning_rate
        logs["images_per_second"] = self.images_per_epoch / self._seconds

    def get_state(self) -> dict:
        """Returns what a snapshot keeps: where the epoch at hand is."""
        begun = getattr(self, "_began", None)
        return {
            "seconds": 0.0 if begun is None else time.perf_counter() - begun,
            "learning_rate": getattr(self, "_learning_rate", None),
        }

    def set_state(self, state: dict) -> None:
        """Goes on with what a snapshot kept."""
        self._began = time.perf_counter() - state["seconds"]
        self._learning_rate = state["learning_rate"]

    def _stop(self):
        if self._seconds is None:
            self._seconds = time.perf_counter() - self._began


class StepSeconds(keras.callbacks.Callback):
    """Measures how long a step of training takes, all that belongs to it included.

    A step lasts from the end of the one before to its own end: the data it waits for
    and the other callbacks are part of it. With `steps_per_execution` it takes its
    share of the execution. The first execution of a process, which compiles, does not
    count; validation and what happens between epochs is no part of a step.

    Of a long training a sample is kept, spread over all of it.

    Attributes:
        count: Number of executions that were measured.

    Example:
    >>> train, _ = keras_hsakd.data.load("digits", image_size=8, limit=32, batch_size=8)
    >>> network = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> trainer = keras_hsakd.TeacherTrainer(network).compile("sgd")
    >>> step_seconds = StepSeconds()
    >>> history = trainer.fit(train, callbacks=[step_seconds], verbose=0)
    >>> step_seconds.count, step_seconds.median > 0
    (3, True)
    """

    async_safe = True  # keeps Keras from waiting for each step
    _most = 2048  # executions that are kept

    def __init__(self):
        super().__init__()
        self.count = 0
        self._compiled = False
        self._seconds = []
        self._every = 1  # of how many executions one is kept

    @property
    def median(self) -> float | None:
        """Median of the seconds a step took; None before the second execution."""
        return statistics.median(self._seconds) if self._seconds else None

    def get_state(self) -> dict:
        """Returns what a snapshot keeps."""
        return {"seconds": self._seconds, "every": self._every, "count": self.count}

    def set_state(self, state: dict) -> None:
        """Goes on with what a snapshot kept."""
        self._seconds = list(state["seconds"])
        self._every, self.count = state["every"], state["count"]

    def on_epoch_begin(self, epoch, logs=None):
        self._end = None

    def on_train_batch_begin(self, batch, logs=None):
        if self._end is None:
            self._end, self._steps = time.perf_counter(), batch

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        steps = steps_done(self, batch)
        if self._compiled:
            if self.count % self._every == 0:
                self._seconds.append((now - self._end) / (steps - self._steps))
            self.count += 1
            if len(self._seconds) == self._most:
                self._seconds = self._seconds[::2]
                self._every *= 2
        self._compiled = True
        self._end, self._steps = now, steps


class KeepInterrupt(keras.callbacks.Callback):
    """Re-raises a Ctrl-C that a library swallowed or made another error of.

    A `KeyboardInterrupt` that is raised while a library traces a function or cleans up
    can be lost there, and is raised again at the next batch; or it comes out of C++ as
    an error of another kind, which leaves this context as the `KeyboardInterrupt` it
    was. The callback is the context manager that listens for it.

    Example:
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", loss="mse")
    >>> with KeepInterrupt() as callback:
    ...     history = model.fit(x, y, callbacks=[callback], verbose=0)
    """

    async_safe = True  # keeps Keras from waiting for each step

    def __init__(self):
        super().__init__()
        self._interrupt = KeptInterrupt()

    def __enter__(self) -> "KeepInterrupt":
        """Begins to listen."""
        self._interrupt.__enter__()
        return self

    def __exit__(self, *error) -> None:
        """Gives the signal back."""
        self._interrupt.__exit__(*error)

    def on_train_batch_begin(self, batch, logs=None):
        if self._interrupt.received:
            raise KeyboardInterrupt

    on_test_batch_begin = on_train_batch_begin


class SaveNetwork(keras.callbacks.Callback):
    """Saves a network after each epoch as `last.keras`, and the best as `best.keras`.

    Unlike `keras.callbacks.ModelCheckpoint` it saves the trained network and not the
    trainer around it, each with its results in one file, which takes its place only
    when it is whole. A training that goes on takes up the results of these files,
    which may be ahead of its snapshot.

    Args:
        network: The network to save.
        folder: An existing folder.
        monitor: Name of the quantity among the logs that tells the best; the larger
            the better.

    Attributes:
        best: Logs of the best epoch, with `epoch` counted from 1; `None` before one.
        last: Logs of the last saved epoch, the same way.

    Example:
    >>> train, test = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> network = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> trainer = keras_hsakd.TeacherTrainer(network)
    >>> saving = SaveNetwork(network, ".", monitor="val_accuracy")
    >>> history = trainer.compile("sgd", metrics=["accuracy"]).fit(
    ...     train, validation_data=test, callbacks=[saving], verbose=0
    ... )
    >>> saving.best["epoch"], sorted(os.listdir("."))
    (1, ['best.keras', 'last.keras'])
    """

    def __init__(self, network: keras.Model, folder: str | os.PathLike, monitor: str):
        super().__init__()
        self.network = network
        self.folder = folder
        self.monitor = monitor
        self.best = None
        self.last = None

    def get_state(self) -> dict:
        """Returns an empty state, so that `set_state` is called: the files have it."""
        return {}

    def set_state(self, state: dict) -> None:
        """Goes on with the results of the files."""
        self.last, self.best = (
            read_results(checkpoint_path(self.folder, name)) for name in CHECKPOINTS
        )

    def on_epoch_end(self, epoch, logs=None):
        last, best = (checkpoint_path(self.folder, name) for name in CHECKPOINTS)
        results = {"epoch": epoch + 1, **logs}
        save_with_results(self.network, last, results)
        self.last = results
        if self.monitor not in results:  # as in an epoch without validation
            return
        if self.best is None or results[self.monitor] > self.best[self.monitor]:
            with atomic_write(best) as temporary:
                shutil.copyfile(last, temporary)
            self.best = results

    def on_train_end(self, logs=None):
        if self.last is not None and self.best is None:
            raise ValueError(
                "Expected `monitor` to be a name among the logs, "
                f"{sorted(self.last)}. Received: monitor={self.monitor!r}; "
                "'best.keras' was not written"
            )
