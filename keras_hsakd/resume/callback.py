"""The callback that takes snapshots of a training, and goes on from them."""

import contextlib
import dataclasses
import os
import signal
import sys
import time
import warnings

import keras
import numpy as np

from keras_hsakd.distribution import (
    any_worker,
    assign_replicas,
    gathered,
    next_batches,
    num_workers,
    scope_of,
    steps_done,
    worker_index,
)
from keras_hsakd.files import errors_explained
from keras_hsakd.resume import states
from keras_hsakd.resume.snapshot import (
    Snapshot,
    list_snapshots,
    newest_snapshot,
    place,
    prepare_folder,
    set_aside,
)
from keras_hsakd.signals import handled
from keras_hsakd.trainers.fitting import FitCallback, Fitting


class Preempted(SystemExit):
    """Ends a process that was told to end, after a snapshot; its exit code is 75.

    75 is `EX_TEMPFAIL`, "try again later", which no other end of a training has.
    """

    code = 75

    def __init__(self):
        super().__init__(self.code)


class OutOfTime(Preempted):
    """Ends a process whose training took all the time it was given, the same way."""


class Resume(FitCallback):
    """Takes snapshots of a training, and goes on from the newest one in its folder.

    Start the same script again after whatever ended it, and training goes on at the
    step of the last snapshot. On one machine, with `tf.config.experimental.
    enable_op_determinism()`, it ends bit-identical to a training that was never
    stopped: a snapshot has all variables of the model (but those of a teacher or a
    frozen backbone, which do not change), of the optimizer and of the metrics, the
    history, Python's, NumPy's and Keras' random states, the place in the data, and the
    state of the other callbacks.

    - SIGTERM, which announces a preemption, and SIGHUP, which a closed terminal sends,
      end the process with exit code 75 after the step at hand and a snapshot of it. A
      process that ignores one of them, as under `nohup`, goes on ignoring it.
    - A damaged snapshot is passed over with a warning for the one before, and renamed.
    - The last snapshot stays when training ends: a script that is started again then
      has the trained model at once. Remove the folder to train anew.
    - Several workers need one folder that all of them see; worker 0 alone writes. Their
      number may change between starts, as long as the global batch does not.

    The data must be the same at each start. That holds for the data sets of
    `keras_hsakd.data`, where what was seen is not even read again, and for what is
    derived from them. Another `tf.data.Dataset` must give the same batches in each
    pass; what was seen is read and dropped. One that shuffles anew in each pass, or
    draws from TensorFlow's stateful random operations, is refused, for their state is
    kept nowhere; random operations within a layer must draw from Keras' seed generators
    or stateless seeds. With `steps_per_epoch`, training goes on in the middle of a
    pass, of data without an end (`repeat()`) or of a multiple of so many batches.

    Of Keras' own callbacks the states are known. A callback of your own offers its
    state, of JSON values and NumPy arrays, as `get_state()`, and takes it back in
    `set_state(state)`.

    Args:
        folder: Where the snapshots are; made if it is missing.
        every_steps: Steps between two snapshots. Defaults to `None`.
        every_seconds: Seconds after which the next step or epoch ends with a snapshot;
            a first epoch ends with one in any case. Defaults to 600, where
            `every_steps` is not given either.
        keep: Number of snapshots kept, the newest ones. Defaults to 2.
        max_seconds: Seconds after which the process ends as after SIGTERM, counted from
            `fit` on; started again, the training has as many. Defaults to `None`.

    Raises:
        ValueError: If an argument is outside its range; at `fit`, if the snapshot is
            not of this training, or the data cannot be read again.
        OSError: At `fit`, if the folder cannot be written; during training, if a
            snapshot cannot, as when the disk is full. Earlier ones stay.

    Example:
    >>> train, test = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> network = keras_hsakd.models.create("resnet8", 10, input_shape=(8, 8, 3))
    >>> trainer = keras_hsakd.TeacherTrainer(network).compile("sgd")
    >>> resume = keras_hsakd.Resume("snapshots", every_steps=1)
    >>> history = trainer.fit(train, epochs=1, callbacks=[resume], verbose=0)
    >>> [name[:24] for name in sorted(os.listdir("snapshots"))]
    ['epoch-00000-step-0000001', 'epoch-00001-step-0000000']
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep: int = 2,
        max_seconds: float | None = None,
    ):
        super().__init__()
        if every_steps is None and every_seconds is None:
            every_seconds = 600.0
        for name, value, least in (
            ("every_steps", every_steps, 1),
            ("every_seconds", every_seconds, 0),
            ("keep", keep, 1),
            ("max_seconds", max_seconds, 0),
        ):
            if value is not None and not value >= least:
                raise ValueError(
                    f"Expected `{name}` to be at least {least}. "
                    f"Received: {name}={value}"
                )
        self.folder = os.fspath(folder)
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.keep = keep
        self.max_seconds = max_seconds
        self.callbacks = []

    # Around a training.

    @contextlib.contextmanager
    def around_fit(self, model, fit):
        _check_data(fit.data, fit.shuffle, fit.first_batch)
        fit.feed.check_exact(model.steps_per_execution)
        self._feed = fit.feed
        self._begun = time.monotonic()
        self.callbacks = []
        self.set_model(model)
        # It calls the others, whose states it keeps; History and progress bar are
        # Keras' to call.
        own = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
        outside = [c for c in fit.callbacks if c is self or isinstance(c, own)]
        self.callbacks = [c for c in fit.callbacks if c not in outside]
        self._first_batch = fit.first_batch
        self._is_chief = worker_index(model) == 0
        self._frozen = model.frozen_digest()
        if self._is_chief:
            prepare_folder(self.folder)
        self._path, self._snapshot = self._newest()
        self._terminated = None  # the name of the signal that told it to end
        self._train_function = None
        fit = dataclasses.replace(fit, callbacks=outside)
        self._taken = self._snapshot is not None
        if (snapshot := self._snapshot) is not None:
            ended = snapshot.state["stop_training"] and not snapshot.step
            begin = fit.epochs if ended else snapshot.epoch
            fit = dataclasses.replace(fit, initial_epoch=begin)
            begun = snapshot.state["data"]
            self._to_drop = fit.feed.start(snapshot.epoch, snapshot.step, begun)
        with self._listening():
            try:
                yield fit
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}. {self._last()}") from error
            except OSError as error:
                if error.errno is None and type(error) is not OSError:
                    raise  # not the system's, nor a library's that writes files
                message = f"{error.strerror or error}. {self._last()}"
                if error.errno is None:
                    raise OSError(message) from error
                raise OSError(error.errno, message, error.filename) from error
            finally:
                if self._train_function is not None:
                    model.train_function = self._train_function

    def _newest(self):
        """Returns path and content of the newest snapshot, on which workers agree."""
        path, snapshot, damaged = newest_snapshot(self.folder, states.check)
        seen = (snapshot.epoch, snapshot.step) if snapshot else (-1, -1)
        by_worker = gathered(self.model, np.array(seen))
        if len(np.unique(by_worker, axis=0)) > 1:
            raise ValueError(
                f"Expected all workers to see the same snapshots in '{self.folder}'. "
                f"Received: (epoch, step) {by_worker.astype(int).tolist()}, by worker"
            )
        if damaged and self._is_chief:
            warnings.warn(
                f"Passed over {len(damaged)} damaged snapshot(s), going on from "
                f"'{path}': {next(iter(damaged.values()))}",
                stacklevel=2,
            )
            for bad in damaged:
                set_aside(bad)
        return path, snapshot

    @contextlib.contextmanager
    def _listening(self):
        """Lets SIGTERM and SIGHUP end training with a snapshot, meanwhile."""

        def terminate(number, frame):
            self._terminated = signal.Signals(number).name

        with contextlib.ExitStack() as stack:
            for name in ("SIGTERM", "SIGHUP"):
                if hasattr(signal, name):  # Windows has no SIGHUP
                    stack.enter_context(handled(getattr(signal, name), terminate))
            yield

    def _last(self):
        return (
            f"The last snapshot is '{self._path}'"
            if self._path
            else "There is no snapshot"
        )

    # What Keras calls, in this order.

    def set_model(self, model):
        super().set_model(model)
        if not isinstance(model, Fitting):
            raise ValueError(
                "Expected a trainer of keras_hsakd to resume. "
                f"Received: {type(model).__name__}"
            )
        for callback in self.callbacks:
            callback.set_model(model)

    def set_params(self, params):
        super().set_params(params)
        for callback in self.callbacks:
            callback.set_params(params)

    def _each(self, event, *arguments):
        for callback in self.callbacks:
            getattr(callback, event)(*arguments)

    def on_train_begin(self, logs=None):
        self._since, self._steps_since = time.monotonic(), 0
        self._done = 0  # steps of the first epoch that the snapshot has
        self._step = 0
        if self._snapshot is None:
            self._each("on_train_begin", logs)
            return
        self._check_snapshot()
        self._states = self._saved_states()
        if self._snapshot.step:
            self._make_metrics()
            self._done = self._snapshot.step
        for callback, state in self._states:
            states.keep_file(callback, state)
        self._each("on_train_begin", logs)
        self._restore()
        if self._is_chief:
            print(f"Going on after {self._snapshot}, from '{self._path}'")

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._step = epoch, self._done
        if self._snapshot is None:
            self._each("on_epoch_begin", epoch, logs)
            return
        self._restore_history()
        self._each("on_epoch_begin", epoch, logs)
        if self._done:
            self._restore()  # what callbacks have just changed was changed before
        if self._done or self._to_drop:
            self._pass_over(self._done, self._to_drop)
        self._snapshot = None

    def on_train_batch_begin(self, batch, logs=None):
        last = batch + self.model.steps_per_execution - 1
        if steps_done(self, last) > self._done:
            self._each("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        step = steps_done(self, batch)
        if step <= self._done:
            return
        self._steps_since += step - self._step
        self._step = step
        self._each("on_train_batch_end", batch, logs)
        take, end, time_is_up = self._agreed()
        if take:
            self._take(self._epoch, self._step)
        if end:
            self._end(time_is_up)

    def on_test_begin(self, logs=None):
        if num_workers(self.model) == 1:
            # For a snapshot in the validation, which begins them anew.
            self._metrics_of_training = states.metrics(self.model)
        self._each("on_test_begin", logs)

    def on_test_batch_begin(self, batch, logs=None):
        self._each("on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        self._each("on_test_batch_end", batch, logs)
        # Several workers go on to where all can be asked.
        if num_workers(self.model) == 1 and (self._terminated or self._time_is_up()):
            self._take(self._epoch, self._step, metrics=self._metrics_of_training)
            self._end(not self._terminated)

    def on_test_end(self, logs=None):
        self._each("on_test_end", logs)

    def on_epoch_end(self, epoch, logs=None):
        self._done = 0
        self._each("on_epoch_end", epoch, logs)
        take, end, time_is_up = self._agreed()
        last = epoch + 1 >= self.params["epochs"] or self.model.stop_training
        # A training that goes on from nowhere would throw a whole epoch away.
        if take or last or not self._taken:
            # Keras' history gets the epoch after the callbacks of the user.
            self._take(epoch + 1, 0, states.history(self.model, epoch, logs))
        if end and not last:
            self._end(time_is_up)

    def on_train_end(self, logs=None):
        if self._snapshot is not None:  # nothing was left to train
            self._restore_history()
        self._each("on_train_end", logs)

    # Taking snapshots.

    def _agreed(self):
        """Returns whether to take a snapshot, to end, and to end for the time."""
        due = (
            self.every_seconds is not None
            and time.monotonic() - self._since >= self.every_seconds
        )
        due, told, time_is_up = any_worker(
            self.model, due, self._terminated is not None, self._time_is_up()
        )
        end = told or time_is_up
        steps = self.every_steps or float("inf")
        return due or end or self._steps_since >= steps, end, not told and time_is_up

    def _time_is_up(self):
        if self.max_seconds is None:
            return False
        return time.monotonic() - self._begun >= self.max_seconds

    def _take(self, epoch, step, history=None, metrics=None):
        """Writes a snapshot: all workers read, the first writes."""
        snapshot = self._capture(epoch, step, history, metrics)
        self._taken = True
        self._since, self._steps_since = time.monotonic(), 0
        if not self._is_chief:
            return
        with errors_explained(self.folder, f"to write a snapshot after {snapshot}"):
            self._path = snapshot.write(self.folder)
            for path in list_snapshots(self.folder)[self.keep :]:
                os.remove(path)

    def _capture(self, epoch, step, history, metrics):
        model = self.model
        state = {
            "identity": states.identity(model, self._frozen),
            "values": states.values(model, place(epoch, step)),
            "stop_training": bool(model.stop_training),
            "data": self._feed.begun,
            "history": states.history(model) if history is None else history,
            "callbacks": [
                [type(callback).__name__, state]
                for callback in self.callbacks
                if (state := states.callback_state(callback)) is not None
            ],
            "random": states.random_states(),
        }
        if step:  # they begin anew with each epoch
            state["metrics"] = states.metrics(model) if metrics is None else metrics
        return Snapshot(epoch, step, state)

    def _end(self, time_is_up):
        why = self._terminated or "Another worker"
        if time_is_up:
            why = f"After {self.max_seconds:g} seconds"
        if self._is_chief:
            print(
                f"{why}: wrote '{self._path}'; started again, training goes on from "
                "there",
                file=sys.stderr,
            )
        raise OutOfTime if time_is_up else Preempted

    # Going on.

    def _check_snapshot(self):
        if not self.model.optimizer.built:
            with scope_of(self.model):
                self.model.optimizer.build(self.model.trainable_variables)
        expected = states.identity(self.model, self._frozen)
        for name, received in self._snapshot.state["identity"].items():
            if received != expected[name]:
                pair = states.first_difference(expected[name], received)
                raise ValueError(
                    f"Expected the snapshot '{self._path}' to be of this training, "
                    f"with {name} {pair[0]}. Received: {pair[1]}"
                )

    def _saved_states(self):
        """Returns each callback that has a state, with the one in the snapshot.

        Other workers than the first may have fewer callbacks.
        """
        saved = list(self._snapshot.state["callbacks"])
        names = [name for name, _ in saved]
        pairs = []
        for callback in self.callbacks:
            if states.callback_state(callback) is None:
                continue
            name = type(callback).__name__
            index = next((i for i, (kind, _) in enumerate(saved) if kind == name), None)
            if index is None:
                raise ValueError(
                    f"Expected the callbacks of the snapshot '{self._path}', with "
                    f"states of {names}. Received: one more {name}"
                )
            pairs.append((callback, saved.pop(index)[1]))
        if saved and self._is_chief:
            raise ValueError(
                f"Expected the callbacks of the snapshot '{self._path}', with "
                f"states of {names}. Received: no {saved[0][0]}"
            )
        return pairs

    def _make_metrics(self):
        """Lets Keras make the metrics, which it does in the first step with them."""
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(self._first_batch)
        labels = np.maximum(labels, 0)  # an image without one is for training alone
        # Of arrays, the first batch is all there is.
        self.model.evaluate(images, labels, batch_size=32, steps=1, verbose=0)

    def _restore(self):
        model, state = self.model, self._snapshot.state
        states.assign(model, state["values"])
        if self._snapshot.step:
            assign_replicas(model, model.metrics_variables, state["metrics"])
        for callback, own in self._states:
            states.set_callback_state(callback, own)
        states.set_random_states(state["random"])

    def _restore_history(self):
        """Gives Keras' history back, which it empties when a training begins."""
        states.set_history(self.model, self._snapshot.state["history"])

    def _pass_over(self, done, batches):
        """Makes Keras' loop pass over steps without training.

        It counts in executions of `steps_per_execution` steps. Of one that the snapshot
        ended in, with another number of them, the rest is trained on; and the last one
        ends where the epoch does, for what follows then in our data are no batches.

        Args:
            done: Steps of the epoch to pass over.
            batches: Batches to drop before the others.
        """
        model = self.model
        size, begin = model.steps_per_execution, 0
        logs = model.get_metrics_result()
        train = self._train_function = model.train_function

        def train_on_the_rest(*arguments):
            nonlocal begin, batches
            *state, iterator = arguments
            for _ in range(batches):
                next(iterator, None)
            batches = 0
            left = steps_done(self, begin + size - 1) - max(begin, done)
            begin += size
            to_come = max((self.params["steps"] or 0) - begin, 0)
            if begin >= done and to_come % size == 0:
                model.train_function, self._train_function = train, None
            if left <= 0:
                return (logs, *state) if state else logs
            if left < size:
                iterator = next_batches(iterator, left)
            return train(*state, iterator)

        model.train_function = train_on_the_rest


def _check_data(data, shuffle, first_batch):
    is_dataset = hasattr(data, "element_spec")
    readable = is_dataset or isinstance(data, keras.utils.PyDataset)
    if not (readable or hasattr(data, "shape")) or (shuffle and not is_dataset):
        raise ValueError(
            "Expected data that is the same at each start to resume with: a "
            "`tf.data.Dataset`, or arrays or a `PyDataset` with `shuffle=False`. "
            f"Received: a {type(data).__name__}, shuffle={shuffle}"
        )
    if first_batch is None:
        raise ValueError(
            "Expected data whose first batch can be looked at, to resume with: a data "
            "set before a strategy distributes it, which `fit` does. "
            f"Received: a {type(data).__name__}"
        )
