"""Snapshots of a training, from which it goes on as if it had never stopped."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import signal
import sys
import threading
import time
import warnings

import keras
import numpy as np

from keras_hsakd.compat import CALLBACK_STATES, global_seed, set_global_seed
from keras_hsakd.distribution import (
    any_worker,
    assign_replicas,
    gathered,
    num_workers,
    read_replicas,
    scope_of,
    worker_index,
)
from keras_hsakd.files import atomic_write, remove_partial
from keras_hsakd.trainers.fitting import FitCallback, Fitting

_NAME = re.compile(r"epoch-(\d+)-step-(\d+)-([0-9a-f]{16})\.npz")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a training was at one moment.

    A file holds arrays and JSON, no code. Its name has its place in the training and
    the beginning of its SHA-256: `epoch-00003-step-0000150-<sha>.npz` is 150 steps into
    the fourth epoch.

    Attributes:
        arrays: NumPy arrays by name.
        record: All else, as JSON has it.

    Example:
    >>> snapshot = Snapshot({"x": np.ones(2)}, {"epoch": 3, "step": 150})
    >>> path = snapshot.write(".")
    >>> path[:27]
    './epoch-00003-step-0000150-'
    >>> Snapshot.read(path).arrays["x"]
    array([1., 1.])
    """

    arrays: dict[str, np.ndarray]
    record: dict

    def write(self, folder: str | os.PathLike) -> str:
        """Writes a file, whole, and returns its path."""
        buffer = io.BytesIO()
        # Dtypes that NumPy does not have, such as bfloat16, are written as bytes.
        arrays = {
            name: array
            if array.dtype.isbuiltin == 1
            else array[..., None].view("uint8")
            for name, array in self.arrays.items()
        }
        record = np.frombuffer(json.dumps(self.record).encode(), "uint8")
        np.savez(buffer, record=record, **arrays)
        content = buffer.getbuffer()
        name = (
            f"epoch-{self.record['epoch']:05d}-step-{self.record['step']:07d}-"
            f"{_digest(content)}.npz"
        )
        path = os.path.join(folder, name)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
        return path

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Snapshot":
        """Reads a file.

        Raises:
            ValueError: If its content is not what was written.
        """
        with open(path, "rb") as file:
            content = file.read()
        expected = _NAME.fullmatch(os.path.basename(path))[3]
        if _digest(content) != expected:
            raise ValueError(
                f"Expected '{path}' to have the checksum {expected}. "
                f"Received: {_digest(content)}, of {len(content)} bytes"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            arrays = dict(arrays)
        return cls(arrays, json.loads(arrays.pop("record").tobytes()))


def list_snapshots(folder: str | os.PathLike) -> list[str]:
    """Returns the paths of the snapshots in a folder, the newest first.

    Args:
        folder: The folder; it may be missing.

    Returns:
        A list of paths, whether the files are damaged or not.
    """
    if not os.path.isdir(folder):
        return []
    names = sorted(filter(_NAME.fullmatch, os.listdir(folder)), reverse=True)
    return [os.path.join(folder, name) for name in names]


class Preempted(SystemExit):
    """Ends a process that was told to end, after a snapshot; its exit code is 75.

    75 is `EX_TEMPFAIL`, "try again later", which no other end of a training has.
    """

    code = 75

    def __init__(self):
        super().__init__(self.code)


class Resume(FitCallback):
    """Takes snapshots of a training, and goes on from the newest one in its folder.

    Start the same script again after whatever ended it, and training goes on at the
    step of the last snapshot. On one machine, with `tf.config.experimental.
    enable_op_determinism()`, it ends bit-identical to a training that was never
    stopped: a snapshot has all variables of the model (but those of a teacher or a
    frozen backbone, which do not change), of the optimizer and of the metrics, the
    history, Python's, NumPy's and Keras' random states, the place in the data, and the
    state of the other callbacks.

    - SIGTERM, which announces a preemption, ends the process with exit code 75 after
      the step at hand and a snapshot of it.
    - A damaged snapshot is passed over with a warning for the one before, and renamed.
    - The last snapshot stays when training ends: a script that is started again then
      has the trained model at once. Remove the folder to train anew.
    - Several workers need one folder that all of them see; worker 0 alone writes. Their
      number may change between starts, as long as the global batch does not.

    The data must be the same at each start. That holds for the data sets of
    `keras_hsakd.data`, where what was seen is not even read again. Another
    `tf.data.Dataset` must give the same batches in each pass, as one without `shuffle`
    or with `reshuffle_each_iteration=False` and a seed; what was seen is read and
    dropped. Random operations within a data set or a layer must draw from Keras' seed
    generators or stateless seeds: what TensorFlow's stateful operations have drawn is
    kept nowhere.

    Of Keras' own callbacks the states are known. A callback of your own offers its
    state, of JSON values and NumPy arrays, as `get_state()`, and takes it back in
    `set_state(state)`.

    Args:
        folder: Where the snapshots are; made if it is missing.
        every_steps: Steps between two snapshots. Defaults to `None`.
        every_seconds: Seconds after which the next step or epoch ends with a snapshot.
            Defaults to 600, where `every_steps` is not given either.
        keep: Number of snapshots kept, the newest ones. Defaults to 2.

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
    ):
        super().__init__()
        if every_steps is None and every_seconds is None:
            every_seconds = 600.0
        for name, value, least in (
            ("every_steps", every_steps, 1),
            ("every_seconds", every_seconds, 0),
            ("keep", keep, 1),
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
        self.callbacks = []

    # Around a training.

    @contextlib.contextmanager
    def around_fit(self, model, fit):
        _check_data(fit.data, fit.shuffle)
        self.callbacks = []
        self.set_model(model)
        # It calls the others, whose states it keeps; History and progress bar are
        # Keras' to call.
        own = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
        outside = [c for c in fit.callbacks if c is self or isinstance(c, own)]
        self.callbacks = [c for c in fit.callbacks if c not in outside]
        self._counter = getattr(fit.data, "epoch_counter", None)
        self._first_batch = fit.first_batch
        self._is_chief = worker_index(model) == 0
        self._frozen = _fingerprint(model.frozen_variables)
        self._prepare_folder()
        self._written, self._snapshot = self._newest()
        self._terminated = False
        self._train_function = None
        fit = dataclasses.replace(fit, callbacks=outside)
        if self._snapshot is not None:
            record = self._snapshot.record
            ended = record["stop_training"] and not record["step"]
            begin = fit.epochs if ended else record["epoch"]
            fit = dataclasses.replace(fit, initial_epoch=begin)
        with self._listening():
            try:
                yield fit
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}. {self._last()}") from error
            finally:
                self._set_first_step(0)
                if self._train_function is not None:
                    model.train_function = self._train_function

    @contextlib.contextmanager
    def _listening(self):
        """Has SIGTERM end training with a snapshot, meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def terminate(number, frame):
            self._terminated = True

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _prepare_folder(self):
        """Raises an OSError unless the folder can be written, and tidies it."""
        if not self._is_chief:
            return
        with self._explaining("a folder for snapshots that can be written"):
            os.makedirs(self.folder, exist_ok=True)
            remove_partial(self.folder)
            probe = os.path.join(self.folder, "probe")
            with atomic_write(probe) as temporary, open(temporary, "w"):
                pass
            os.remove(probe)

    @contextlib.contextmanager
    def _explaining(self, expected, hint=""):
        """Says what was expected where the folder cannot be written."""
        try:
            yield
        except OSError as error:
            message = f"Expected {expected}. Received: {error.strerror}{hint}"
            raise type(error)(error.errno, message, self.folder) from error

    def _newest(self):
        """Returns path and content of the newest snapshot that is whole."""
        paths = list_snapshots(self.folder)
        found, damaged = (None, None), []
        for path in paths:
            try:
                found = path, Snapshot.read(path)
                break
            except ValueError as error:
                damaged.append(str(error))
        if paths and found[0] is None:
            raise ValueError(
                f"Expected a whole snapshot in '{self.folder}', or none. "
                f"Received: {len(paths)} damaged ones: {damaged[0]}"
            )
        record = found[1].record if found[1] else {"epoch": -1, "step": -1}
        places = gathered(self.model, np.array([record["epoch"], record["step"]]))
        if len(np.unique(places, axis=0)) > 1:
            raise ValueError(
                f"Expected all workers to see the same snapshots in '{self.folder}'. "
                f"Received: (epoch, step) {places.astype(int).tolist()}, by worker"
            )
        if damaged and self._is_chief:
            warnings.warn(
                f"Passed over {len(damaged)} damaged snapshot(s), going on from "
                f"'{found[0]}': {damaged[0]}",
                stacklevel=2,
            )
            for path in paths[: len(damaged)]:  # no longer among the newest
                folder, name = os.path.split(path)
                os.replace(path, os.path.join(folder, f"damaged-{name}"))
        return found

    def _last(self):
        return (
            f"The last snapshot is '{self._written}'"
            if self._written
            else "There is no snapshot"
        )

    # Taking snapshots.

    def _agreed(self):
        """Returns whether to take a snapshot, and whether to end, on all workers."""
        due = (
            self.every_seconds is not None
            and time.monotonic() - self._since >= self.every_seconds
        )
        due, end = any_worker(self.model, due, self._terminated)
        steps = self.every_steps or float("inf")
        return due or end or self._steps_since >= steps, end

    def _take(self, epoch, step, history=None, metrics=None):
        """Writes a snapshot: all workers read, the first writes."""
        snapshot = self._capture(epoch, step, history, metrics)
        self._since, self._steps_since = time.monotonic(), 0
        if not self._is_chief:
            return
        expected = f"to write a snapshot after {_place(epoch, step)}"
        with self._explaining(expected, f". {self._last()}"):
            self._written = snapshot.write(self.folder)
            for path in list_snapshots(self.folder)[self.keep :]:
                os.remove(path)

    def _capture(self, epoch, step, history, metrics):
        model = self.model
        if keras.backend.backend() == "jax":
            model.jax_state_sync()
        arrays = {}
        for kind, variables in self._variables().items():
            for number, variable in enumerate(variables):
                value = keras.ops.convert_to_numpy(variable)
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise FloatingPointError(
                        "Expected the variables to be finite. Received: "
                        f"{variable.path} after {_place(epoch, step)}"
                    )
                arrays[f"{kind}_{number}"] = value
        if step:  # they begin anew with each epoch
            arrays["metrics"] = self._metrics() if metrics is None else metrics
        record = {
            "epoch": epoch,
            "step": step,
            "stop_training": bool(model.stop_training),
            "history": _packed(history or _history(model), arrays),
            "callbacks": [
                [type(callback).__name__, _packed(state, arrays)]
                for callback in self.callbacks
                if (state := _state_of(callback)) is not None
            ],
            "random": _packed(_random_states(), arrays),
            **self._identity(),
        }
        return Snapshot(arrays, record)

    def _variables(self):
        return {
            "model": self.model.changing_variables,
            "optimizer": self.model.optimizer.variables,
        }

    def _metrics(self):
        return read_replicas(self.model, self.model.metrics_variables)

    def _identity(self):
        """Returns what must be the same when training goes on."""
        return {
            "trainer": type(self.model).__name__,
            "frozen": self._frozen,
            "variables": {
                # An optimizer that is built in a step has other scopes in its paths.
                kind: [
                    [_without_counters(v.path if kind == "model" else v.name)]
                    + [list(v.shape), v.dtype]
                    for v in variables
                ]
                for kind, variables in self._variables().items()
            },
        }

    # Going on.

    def _check_snapshot(self):
        if not self.model.optimizer.built:
            with scope_of(self.model):
                self.model.optimizer.build(self.model.trainable_variables)
        for name, expected in self._identity().items():
            received = self._snapshot.record[name]
            if json.loads(json.dumps(expected)) != received:
                expected, received = _first_difference(expected, received)
                raise ValueError(
                    f"Expected the snapshot '{self._written}' to be of this training, "
                    f"with {name} {expected}. Received: {received}"
                )

    def _saved_states(self):
        """Returns each callback that has a state, with the one in the snapshot.

        Other workers than the first may have fewer callbacks.
        """
        saved = list(self._snapshot.record["callbacks"])
        names = [name for name, _ in saved]
        pairs = []
        for callback in self.callbacks:
            if _state_of(callback) is None:
                continue
            name = type(callback).__name__
            place = next((i for i, (kind, _) in enumerate(saved) if kind == name), None)
            if place is None:
                raise ValueError(
                    f"Expected the callbacks of the snapshot '{self._written}', with "
                    f"states of {names}. Received: one more {name}"
                )
            pairs.append((callback, saved.pop(place)[1]))
        if saved and self._is_chief:
            raise ValueError(
                f"Expected the callbacks of the snapshot '{self._written}', with "
                f"states of {names}. Received: no {saved[0][0]}"
            )
        return pairs

    def _restore(self):
        model, arrays, record = self.model, self._snapshot.arrays, self._snapshot.record
        for kind, variables in self._variables().items():
            for number, variable in enumerate(variables):
                value = arrays[f"{kind}_{number}"]
                if value.dtype.name != variable.dtype:
                    dtype = keras.ops.convert_to_numpy(variable).dtype
                    value = value.view(dtype)[..., 0]
                variable.assign(value)
        if record["step"]:
            assign_replicas(model, model.metrics_variables, arrays["metrics"])
        for callback, state in self._states:
            _set_state_of(callback, _unpacked(state, arrays))
        _set_random_states(_unpacked(record["random"], arrays))

    def _restore_history(self):
        """Gives Keras' history back, which it empties when a training begins."""
        history = _unpacked(self._snapshot.record["history"], self._snapshot.arrays)
        self.model.history.history = history["history"]
        self.model.history.epoch = history["epoch"]

    def _skip(self, steps):
        """Has Keras' loop pass over steps without training."""
        model = self.model
        executions, rest = divmod(steps, model.steps_per_execution)
        if rest:
            raise ValueError(
                "Expected `steps_per_execution` to divide the steps of the snapshot "
                f"'{self._written}', {steps}. Received: "
                f"steps_per_execution={model.steps_per_execution}"
            )
        logs = model.get_metrics_result()
        self._train_function = model.train_function

        def skip(*arguments):
            nonlocal executions
            *state, iterator = arguments
            for _ in range(model.steps_per_execution):
                next(iterator, None)  # the last execution may have fewer steps
            executions -= 1
            if not executions:
                model.train_function, self._train_function = self._train_function, None
            return (logs, *state) if state else logs

        model.train_function = skip

    # What Keras calls.

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
        self._skipped = 0
        self._step = 0
        if self._snapshot is None:
            self._each("on_train_begin", logs)
            return
        self._check_snapshot()
        self._states = self._saved_states()
        record = self._snapshot.record
        if record["step"]:
            # Has Keras make the metrics, whose values the snapshot has.
            images, labels, weights = keras.utils.unpack_x_y_sample_weight(
                self._first_batch
            )
            self.model.evaluate(images, labels, sample_weight=weights, verbose=0)
            self._skipped = record["step"]
        for callback, state in self._states:
            _keep_file_of(callback, state)
        self._each("on_train_begin", logs)
        self._restore()
        if self._is_chief:
            place = _place(record["epoch"], record["step"])
            print(f"Going on after {place}, from '{self._written}'")

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._step = epoch, 0
        if self._snapshot is None:
            self._each("on_epoch_begin", epoch, logs)
            return
        self._restore_history()
        self._each("on_epoch_begin", epoch, logs)
        if self._skipped:
            self._restore()  # what callbacks have just changed was changed before
            self._set_first_step(self._skipped)
            self._skip(self._skipped)
        self._snapshot = None

    def on_train_batch_begin(self, batch, logs=None):
        if not self._skips(batch):
            self._each("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        steps = batch + 1 - self._step
        self._step = batch + 1
        if self._skips(batch):
            return
        self._steps_since += steps
        self._each("on_train_batch_end", batch, logs)
        take, end = self._agreed()
        if take:
            self._take(self._epoch, self._step)
        if end:
            self._end()

    def _skips(self, batch):
        return batch < self._skipped

    def _set_first_step(self, step):
        if self._counter is not None:
            self._counter.first_step = step

    def on_test_begin(self, logs=None):
        if num_workers(self.model) == 1:
            # For a snapshot in the validation, which begins them anew.
            self._metrics_of_training = self._metrics()
        self._each("on_test_begin", logs)

    def on_test_batch_begin(self, batch, logs=None):
        self._each("on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        self._each("on_test_batch_end", batch, logs)
        # Several workers go on to where all can be asked.
        if self._terminated and num_workers(self.model) == 1:
            self._take(self._epoch, self._step, metrics=self._metrics_of_training)
            self._end()

    def on_test_end(self, logs=None):
        self._each("on_test_end", logs)

    def on_epoch_end(self, epoch, logs=None):
        self._skipped = 0
        self._set_first_step(0)
        self._each("on_epoch_end", epoch, logs)
        take, end = self._agreed()
        last = epoch + 1 >= self.params["epochs"] or self.model.stop_training
        if take or last:
            # Keras' history gets the epoch after the callbacks of the user.
            history = _history(self.model)
            history["epoch"].append(epoch)
            for name, value in (logs or {}).items():
                history["history"].setdefault(name, []).append(value)
            self._take(epoch + 1, 0, history)
        if end and not last:
            self._end()

    def on_train_end(self, logs=None):
        if self._snapshot is not None:  # nothing was left to train
            self._restore_history()
        self._each("on_train_end", logs)

    def _end(self):
        if self._is_chief:
            print(
                f"SIGTERM: wrote '{self._written}'; started again, training goes on "
                "from there",
                file=sys.stderr,
            )
        raise Preempted


def _check_data(data, shuffle):
    is_dataset = hasattr(data, "element_spec")
    readable = is_dataset or isinstance(data, keras.utils.PyDataset)
    if not (readable or hasattr(data, "shape")) or (shuffle and not is_dataset):
        raise ValueError(
            "Expected data that is the same at each start to resume with: a "
            "`tf.data.Dataset`, or arrays or a `PyDataset` with `shuffle=False`. "
            f"Received: a {type(data).__name__}, shuffle={shuffle}"
        )


def _without_counters(path):
    """Returns the path of a variable without what Keras counts up in a process."""
    return re.sub(r"_\d+(?=/|_|$)", "", path)


def _place(epoch, step):
    return f"step {step} of epoch {epoch + 1}" if step else f"epoch {epoch}"


def _without_own_dtype(array):
    """Returns bytes in place of a dtype that NumPy does not have, such as bfloat16."""
    return array if array.dtype.isbuiltin == 1 else array[..., None].view("uint8")


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def _fingerprint(variables):
    """Returns a checksum of the values of variables."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()[:16]


def _first_difference(expected, received):
    """Returns the first entries of two nested structures that differ."""
    if type(expected) is dict and type(received) is dict:
        for key in expected:
            if json.loads(json.dumps(expected[key])) != received.get(key):
                return _first_difference(expected[key], received.get(key))
    if type(expected) is list and type(received) is list:
        if len(expected) != len(received):
            return f"{len(expected)} variables", f"{len(received)}"
        for a, b in zip(expected, received, strict=True):
            if a != b:
                return a, b
    return expected, received


# States of callbacks.


def _state_of(callback):
    """Returns the state of a callback, or None if it has none."""
    if hasattr(callback, "get_state"):
        return {"own": callback.get_state()}
    if isinstance(callback, keras.callbacks.CSVLogger):
        file = callback.filename
        return {"size": os.path.getsize(file) if os.path.exists(file) else 0}
    names = next(
        (n for kind, n in CALLBACK_STATES.items() if isinstance(callback, kind)), None
    )
    return names and {name: getattr(callback, name, None) for name in names}


def _set_state_of(callback, state):
    if "own" in state:
        callback.set_state(state["own"])
    elif not isinstance(callback, keras.callbacks.CSVLogger):
        for name, value in state.items():
            setattr(callback, name, value)


def _keep_file_of(callback, state):
    """Has a CSV file go on where it was, before the callback would empty it."""
    file = getattr(callback, "filename", None)
    if isinstance(callback, keras.callbacks.CSVLogger) and os.path.exists(file):
        os.truncate(file, min(state["size"], os.path.getsize(file)))
        callback.append = True


def _history(model):
    history = model.history
    return {
        "history": {name: list(values) for name, values in history.history.items()},
        "epoch": list(history.epoch),
    }


# Random states.


def _random_states():
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    if (seed := global_seed()) is not None:
        states["keras"] = seed
    return states


def _set_random_states(states):
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(states["numpy"]))
    if "keras" in states:
        set_global_seed(states["keras"])


# Nested structures as JSON, with their arrays apart.


def _packed(value, arrays):
    if isinstance(value, dict):
        return {str(key): _packed(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        "Expected the state of a callback to be of JSON values and NumPy arrays. "
        f"Received: a {type(value).__name__}"
    )


def _unpacked(value, arrays):
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {key: _unpacked(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    return value
