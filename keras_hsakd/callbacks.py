"""What `keras.callbacks` lacks."""

import os
import shutil
import signal
import threading
import time

import keras

from keras_hsakd.files import atomic_write


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


class KeepInterrupt(keras.callbacks.Callback):
    """Sees to it that Ctrl-C ends a training, whatever it interrupts.

    A `KeyboardInterrupt` that is raised while a library traces a function or cleans up
    can be lost there. Within the context of this callback it is raised again at the
    next batch.

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
        self._received = False

    def __enter__(self) -> "KeepInterrupt":
        """Begins to listen; only the main thread receives signals."""
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        """Gives the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _receive(self, number, frame):
        self._received = True
        raise KeyboardInterrupt

    def on_train_batch_begin(self, batch, logs=None):
        if self._received:
            raise KeyboardInterrupt

    on_test_batch_begin = on_train_batch_begin


class SaveNetwork(keras.callbacks.Callback):
    """Saves a network after each epoch as `last.keras`, and the best as `best.keras`.

    Unlike `keras.callbacks.ModelCheckpoint` it saves the trained network and not the
    trainer around it, both at once, and a file takes its place only when it is whole.

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
        """Returns what a snapshot keeps."""
        return {"best": self.best, "last": self.last}

    def set_state(self, state: dict) -> None:
        """Goes on with what a snapshot kept."""
        self.best, self.last = state["best"], state["last"]

    def on_epoch_end(self, epoch, logs=None):
        last = os.path.join(self.folder, "last.keras")
        with atomic_write(last) as temporary:
            self.network.save(temporary)
        self.last = {"epoch": epoch + 1, **logs}
        if self.best is None or logs[self.monitor] > self.best[self.monitor]:
            with atomic_write(os.path.join(self.folder, "best.keras")) as temporary:
                shutil.copyfile(last, temporary)
            self.best = self.last
