"""Trainings that are stopped and go on; `test_resume.py` has those that are killed."""

import functools
import hashlib
import io
import json
import os
import pathlib
import random
import signal

import keras
import numpy as np
import pytest

from keras_hsakd import Distiller, MutualDistiller, Resume, TeacherTrainer, files
from keras_hsakd.resume import Preempted, Snapshot, list_snapshots, states
from keras_hsakd.resume.snapshot import DamagedError, newest_snapshot
from keras_hsakd.trainers import BaselineTrainer

TENSORFLOW = keras.backend.backend() == "tensorflow"
EPOCHS, STEPS = 2, 3


class StoppedError(Exception):
    pass


class Stop(keras.callbacks.Callback):
    """Ends a training at the given call of an event, as a kill would."""

    def __init__(self, event=None, call=0, action=None):
        super().__init__()
        self.calls = 0

        def stop(*arguments, **keywords):
            self.calls += 1
            if self.calls == call:
                if action is None:
                    raise StoppedError
                action()

        if event:
            setattr(self, event, stop)


class Counting(keras.callbacks.Callback):
    """A user's callback with a state; it draws random numbers, too."""

    def __init__(self):
        super().__init__()
        self.seen, self.noise = [], np.zeros(2)

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([batch, logs["loss"]])
        drawn = keras.ops.convert_to_numpy(keras.random.normal((2,)))
        self.noise = self.noise + np.random.normal(size=2) + random.random() + drawn

    def get_state(self):
        return {"seen": self.seen, "noise": self.noise}

    def set_state(self, state):
        self.seen, self.noise = state["seen"], state["noise"]


def baseline(make, **options):
    network = make("student", **options)
    return BaselineTrainer(keras.Model(network.input, network.output["logits"]))


TRAINERS = {
    "distiller": lambda make, **o: Distiller(make("teacher", **o), make("student")),
    "teacher": lambda make, **o: TeacherTrainer(make("teacher", **o)),
    "frozen": lambda make, **o: TeacherTrainer(make("teacher", **o), True),
    "mutual": lambda make, **o: MutualDistiller([make("a"), make("b", **o)]),
    "baseline": baseline,
}


@pytest.fixture
def train(tiny_network, batch, tmp_path):
    """Returns a function that trains, from the newest snapshot if there is one."""
    images, labels = batch

    def run(
        method="distiller",
        stop=None,
        folder=tmp_path / "snapshots",
        seed=0,
        optimizer=(),
        callbacks=(),
        compiling=(),
        resume=None,
        epochs=EPOCHS,
        data=(images, labels),
        shuffle=False,
        **network,
    ):
        keras.utils.set_random_seed(seed)

        def make(name, **options):
            # A teacher has another seed than a student: a restart changes neither.
            return tiny_network(name, heads=1, **{"dropout": 0.3, **options})

        trainer = TRAINERS[method](make, **network)
        trainer.compile(
            optimizer
            if isinstance(optimizer, keras.optimizers.Optimizer)
            else keras.optimizers.Adam(0.01, **dict(optimizer)),
            metrics=["accuracy"],
            # Tracing takes longer than these few steps.
            **{"run_eagerly": TENSORFLOW, **dict(compiling)},
        )
        counting = Counting()
        resume = resume or Resume(folder, every_steps=2, keep=100)
        trainer.fit(
            *data,
            batch_size=len(images) // STEPS if len(data) > 1 else None,
            epochs=epochs,
            shuffle=shuffle,
            validation_data=(images, labels),
            verbose=0,
            callbacks=[counting, *callbacks, *([stop] if stop else []), resume],
        )
        return trainer, counting

    return run


def result(trained):
    """Returns all that must be the same, as arrays and lists."""
    trainer, counting = trained
    return (
        [np.asarray(w) for w in trainer.get_weights()],
        [keras.ops.convert_to_numpy(v) for v in trainer.optimizer.variables],
        trainer.history.history,
        trainer.history.epoch,
        counting.seen,
        counting.noise.tolist(),
    )


def assert_identical(trained, expected):
    keras.tree.map_structure(
        np.testing.assert_array_equal, result(trained), result(expected)
    )


def check_going_on(train, tmp_path, *stops, **options):
    """Compares a training that is stopped again and again with one that is not."""
    expected = train(folder=tmp_path / "whole", **options)
    for event, call in stops:
        with pytest.raises(StoppedError):
            train(stop=Stop(event, call), **options)
    trained = train(**options)
    assert_identical(trained, expected)
    return trained


def test_a_training_goes_on_as_if_it_had_never_stopped(train, tmp_path):
    # A snapshot comes every two steps; an epoch has three, and so has a validation.
    check_going_on(
        train,
        tmp_path,
        ("on_train_batch_end", 1),  # before the first snapshot
        ("on_train_batch_end", 3),  # then after step 2: in the first epoch
        ("on_test_batch_end", 2),  # in its validation
        ("on_epoch_end", 1),  # at its end
        ("on_train_batch_begin", 3),  # after step 1 of the second epoch
        ("on_train_end", 1),  # when all is done
        method="teacher",
    )


ONCE = ("on_train_batch_end", 3)


@pytest.mark.core
@pytest.mark.parametrize(
    "method",
    ["baseline", "distiller", "frozen", pytest.param("mutual", marks=pytest.mark.slow)]
    if TENSORFLOW
    else ["frozen"],
)
def test_every_other_trainer_goes_on(train, tmp_path, method):
    check_going_on(train, tmp_path, ONCE, method=method)


@pytest.mark.parametrize(
    "options",
    [
        {
            "optimizer": {
                "gradient_accumulation_steps": 2,
                "use_ema": True,
                "ema_overwrite_frequency": None,
            }
        },
        {"compiling": {"auto_scale_loss": True}, "precision": "mixed_float16"},
    ],
    ids=["accumulation and average", "mixed precision"],
)
def test_what_keras_adds_to_a_training_goes_on(train, tmp_path, options):
    keras.config.set_dtype_policy(options.pop("precision", "float32"))
    check_going_on(train, tmp_path, ONCE, method="teacher", **options)


def test_callbacks_of_keras_go_on(train, tmp_path):
    def callbacks():
        return (
            keras.callbacks.EarlyStopping(
                "val_loss", patience=2, min_delta=10, restore_best_weights=True
            ),
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=10),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.weights.h5",
                monitor="val_loss",
                save_best_only=True,
                save_weights_only=True,
            ),
            keras.callbacks.TensorBoard(tmp_path / "logs", write_graph=False),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        )

    options = {"method": "teacher", "epochs": 9}
    first = callbacks()
    expected = train(folder=tmp_path / "whole", callbacks=first, **options)
    log = (tmp_path / "log.csv").read_text()
    assert expected[0].history.epoch == [0, 1, 2]  # stopped early
    again = callbacks()
    with pytest.raises(StoppedError):
        train(stop=Stop("on_epoch_end", 2), callbacks=callbacks(), **options)
    trained = train(callbacks=again, **options)
    assert_identical(trained, expected)
    assert (tmp_path / "log.csv").read_text() == log
    for name in ("wait", "best", "stopped_epoch", "cooldown_counter"):
        for one, other in zip(first, again, strict=True):
            assert getattr(one, name, None) == getattr(other, name, None)
    # What has finished stays as it is.
    assert_identical(train(callbacks=callbacks(), **options), expected)


def test_terminated_is_preempted(train, tmp_path, capsys):
    expected = train(method="frozen", folder=tmp_path / "whole")
    for event, number, place in (
        ("on_train_batch_begin", signal.SIGTERM, "epoch-00000-step-0000001-"),
        ("on_test_batch_begin", signal.SIGHUP, "epoch-00000-step-0000003-"),
    ):
        before = signal.getsignal(number)
        stop = Stop(event, 1, functools.partial(signal.raise_signal, number))
        with pytest.raises(Preempted) as preempted:
            train(method="frozen", stop=stop)
        assert preempted.value.code == 75
        assert f"{number.name}: wrote" in capsys.readouterr().err
        newest = list_snapshots(tmp_path / "snapshots")[0]
        assert os.path.basename(newest).startswith(place)
        assert signal.getsignal(number) is before
    assert_identical(train(method="frozen"), expected)


def test_arrays_are_not_evaluated_to_go_on(train, batch, monkeypatch):
    images, labels = batch
    data = np.tile(images, (20, 1, 1, 1)), np.tile(labels, 20)
    with pytest.raises(StoppedError):
        train(method="frozen", data=data, stop=Stop("on_train_batch_end", 3))
    seen = []
    test_step = TeacherTrainer.test_step

    def counting(trainer, data):
        seen.append(len(data[0]))
        return test_step(trainer, data)

    monkeypatch.setattr(TeacherTrainer, "test_step", counting)
    with pytest.raises(StoppedError):
        train(method="frozen", data=data, stop=Stop("on_train_batch_end", 1))
    assert 0 < sum(seen) <= 32


# Files.


def test_a_snapshot_is_read_as_it_was_written(tmp_path):
    state = {
        "arrays": [np.arange(6).reshape(2, 3).T, np.asarray(2.5), np.array(["é"])],
        "half": keras.ops.convert_to_numpy(keras.ops.full((2, 3), 1.5, "bfloat16")),
        "numbers": {"loss": float("inf"), "value": 0.1 + 0.2, "scalar": np.float32(2)},
        "others": [True, None, "text", [], {}],
    }
    path = Snapshot(1, 12, state).write(tmp_path)
    assert os.path.basename(path).startswith("epoch-00001-step-0000012-")
    assert os.listdir(tmp_path) == [os.path.basename(path)]
    read = Snapshot.read(path)
    assert (read.epoch, read.step) == (1, 12)
    for kept, received in (
        *zip(state["arrays"], read.state["arrays"], strict=True),
        (state["half"], read.state["half"]),
    ):
        assert received.dtype == kept.dtype
        np.testing.assert_array_equal(received, kept)
    assert read.state["numbers"] == state["numbers"]
    assert read.state["others"] == state["others"]


def test_a_state_that_is_no_data_is_refused(tmp_path):
    with pytest.raises(TypeError, match="JSON values and NumPy arrays. .* a set"):
        Snapshot(0, 1, {"callbacks": [{1, 2}]}).write(tmp_path)
    assert not os.listdir(tmp_path)


def test_no_code_is_read(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    with pytest.raises(DamagedError, match="allow_pickle=False"):
        state = {"x": np.array([Malicious()], object)}
        Snapshot.read(Snapshot(0, 1, state).write(tmp_path))
    assert not (tmp_path / "executed").exists()


def damage(path, how):
    content = bytearray(pathlib.Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    content = {"flipped": content, "short": content[:-100], "empty": b""}[how]
    pathlib.Path(path).write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "short", "empty"])
def test_the_newest_whole_snapshot_is_found(tmp_path, how):
    oldest, before, newest = (
        Snapshot(epoch, 0, {"x": np.ones(epoch)}).write(tmp_path) for epoch in (1, 2, 3)
    )
    assert list_snapshots(tmp_path) == [newest, before, oldest]
    damage(newest, how)
    path, snapshot, damaged = newest_snapshot(tmp_path)
    assert (path, snapshot.epoch, list(damaged)) == (before, 2, [newest])
    for path in (before, oldest):
        damage(path, how)
    with pytest.raises(ValueError, match="a whole snapshot .* 3 damaged ones"):
        newest_snapshot(tmp_path)
    assert newest_snapshot(tmp_path / "missing") == (None, None, {})


def test_a_damaged_snapshot_is_passed_over(train, tmp_path, capsys):
    with pytest.raises(StoppedError):
        train(method="frozen", stop=Stop("on_train_batch_end", 5))
    newest, before, *_ = list_snapshots(tmp_path / "snapshots")
    damage(newest, "flipped")
    with (
        pytest.warns(UserWarning, match=f"1 damaged .*from '{before}'"),
        pytest.raises(StoppedError),
    ):
        train(method="frozen", stop=Stop("on_train_batch_begin", 1))
    assert f"from '{before}'" in capsys.readouterr().out
    # It is not taken for one of the newest, which are kept.
    assert list_snapshots(tmp_path / "snapshots")[0] == before


def write_as_snapshot(folder, content, place="epoch-00009-step-0000000"):
    """Writes any bytes as a snapshot with the right checksum."""
    path = folder / f"{place}-{hashlib.sha256(content).hexdigest()[:16]}.npz"
    path.write_bytes(content)
    return str(path)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def as_record(**record):
    return np.frombuffer(json.dumps({"format": 3, **record}).encode(), "uint8")


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        npz(),
        npz(record=np.zeros(3)),
        npz(record=as_record(epoch=9, step=0)),
        npz(record=as_record(epoch="9", step=0, state={})),
        npz(record=as_record(epoch=9, step=0, state={"x": {"$array": "array_0"}})),
    ],
)
def test_whatever_is_damaged_is_passed_over(tmp_path, content):
    before = Snapshot(1, 0, {}).write(tmp_path)
    newest = write_as_snapshot(tmp_path, content)
    os.mkdir(tmp_path / f"epoch-00010-step-0000000-{'0' * 16}.npz")
    path, _, damaged = newest_snapshot(tmp_path)
    assert path == before and len(damaged) == 2
    assert f"Expected '{newest}' to be a snapshot" in damaged[newest]


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        *(functools.partial(without, name=name) for name in states.PARTS),
        lambda state: state | {"metrics": [1]},
        lambda state: state | {"values": {"model": [np.ones(3)], "optimizer": []}},
        lambda state: state | {"callbacks": ["CSVLogger"]},
        lambda state: state | {"callbacks": [["CSVLogger", 3]]},
        lambda state: state | {"history": {"epoch": []}},
        lambda state: state | {"random": state["random"] | {"python": [3, [1], None]}},
        lambda state: state | {"random": state["random"] | {"numpy": ["MT19937"]}},
        lambda state: state | {"random": state["random"] | {"keras": np.ones(3)}},
    ],
)
def test_a_state_without_a_part_is_damaged(change):
    described = [["kernel", [2], "float32"]]
    state = {
        "identity": {"variables": {"model": described, "optimizer": []}},
        "values": {"model": [np.ones(2)], "optimizer": []},
        "stop_training": False,
        "data": [],
        "history": {"history": {}, "epoch": []},
        "callbacks": [["Own", {"own": 3}]],
        "random": states.random_states(),
        "metrics": np.zeros((1, 2)),
    }
    states.check(Snapshot(3, 5, state))
    with pytest.raises(DamagedError, match="after step 5 of epoch 4 to have the state"):
        states.check(Snapshot(3, 5, change(state)))


def test_a_snapshot_of_another_version_is_refused_before_training(train, tmp_path):
    # As it was written before there was a number of the format.
    record = {"epoch": 0, "step": 2, "stop_training": False, "callbacks": []}
    buffer = io.BytesIO()
    np.savez(buffer, record=np.frombuffer(json.dumps(record).encode(), "uint8"))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    folder = tmp_path / "snapshots"
    folder.mkdir()
    old = folder / f"epoch-00000-step-0000002-{digest}.npz"
    old.write_bytes(buffer.getvalue())
    stop = Stop("on_train_begin", 1)
    with pytest.raises(ValueError, match="a snapshot of this version") as error:
        train(method="frozen", stop=stop)
    assert f"format 3. Received: '{old}', format 1" in str(error.value)
    assert "\n" not in str(error.value)
    assert not stop.calls
    assert os.listdir(folder) == [old.name]


def test_the_newest_are_kept_and_what_does_not_change_is_not_in_them(train, tmp_path):
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / ".partial-1-epoch-00000").write_text("of a process that was killed")
    trainer, _ = train(resume=Resume(folder, every_steps=1, keep=3))
    assert [os.path.basename(path)[:24] for path in list_snapshots(folder)] == [
        "epoch-00002-step-0000000",
        "epoch-00001-step-0000003",
        "epoch-00001-step-0000002",
    ]
    assert len(os.listdir(folder)) == 3
    state = Snapshot.read(list_snapshots(folder)[1]).state
    assert len(state["values"]["model"]) == len(trainer.student.variables)


# Bad days.


def test_a_full_disk_leaves_the_snapshots_before(train, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if "step-0000001-" in os.fspath(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(
        OSError, match="snapshot after step 1 of epoch 2. .*No space"
    ) as e:
        train(method="frozen")
    monkeypatch.undo()
    (only,) = os.listdir(tmp_path / "snapshots")
    assert (
        str(e.value).count(f"The last snapshot is '{tmp_path}/snapshots/{only}'") == 1
    )
    assert Snapshot.read(tmp_path / "snapshots" / only).step == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "Full", "log.csv"), r"\[Errno 28\] Full. The last .*: 'log.csv'"),
        (OSError("full"), "^full. The last snapshot is '.*npz'$"),
    ],
)
def test_a_disk_that_is_full_for_another_callback(error, message, train, tmp_path):
    def fail(*arguments):
        raise error

    with pytest.raises(OSError, match=message):
        train(method="frozen", stop=Stop("on_epoch_end", 1, fail))


def test_a_folder_that_cannot_be_written_is_said_before_training(train, tmp_path):
    (tmp_path / "file").write_text("")
    stop = Stop("on_train_begin", 1)
    with pytest.raises(OSError, match="a folder for snapshots that can be written"):
        train(method="frozen", stop=stop, folder=tmp_path / "file" / "snapshots")
    assert not stop.calls


class Ruin(keras.callbacks.Callback):
    """Gives a weight no number after the fourth step."""

    def on_train_batch_begin(self, batch, logs=None):
        iterations = int(self.model.optimizer.iterations)
        if iterations == 4:
            variable = self.model.trainable_variables[0]
            variable.assign(np.full(variable.shape, np.nan))


def test_a_ruined_training_names_the_last_snapshot(train, tmp_path):
    with pytest.raises(FloatingPointError) as error:
        train(method="frozen", callbacks=[Ruin()])
    newest = list_snapshots(tmp_path / "snapshots")[0]
    message = str(error.value)
    assert "ce_aux_1=nan at step 2 of epoch 2" in message
    assert f"The last snapshot is '{newest}'" in message
    assert "epoch-00001-step-0000001-" in newest


def test_no_snapshot_is_taken_of_weights_that_are_no_numbers(train, tmp_path):
    class Late(keras.callbacks.Callback):
        """After the loss of the step, as an exploding update does."""

        def on_train_batch_end(self, batch, logs=None):
            if batch:
                self.model.trainable_variables[0].assign_add(np.inf)

    with pytest.raises(FloatingPointError, match="kernel after step 2 of .* is no"):
        train(method="frozen", callbacks=[Late()])
    assert not os.listdir(tmp_path / "snapshots")


def test_a_snapshot_of_another_training_is_refused(train, tmp_path):
    with pytest.raises(StoppedError):
        train(stop=Stop("on_train_batch_end", 3))
    for message, options in (
        ("with trainer TeacherTrainer. Received: Distiller", {"method": "teacher"}),
        ("with frozen '?[0-9a-f]+'?. Received:", {"seed": 1}),
        ("with variables ", {"optimizer": keras.optimizers.SGD(0.1)}),
        (
            r"states of \['Counting'\]. Received: one more EarlyStopping",
            {"callbacks": [keras.callbacks.EarlyStopping("loss")]},
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(stop=Stop("on_train_batch_begin", 1), **options)


def test_data_that_cannot_be_read_again_is_refused(train, batch):
    images, labels = batch

    def generator():
        while True:
            yield images, labels

    with pytest.raises(ValueError, match="same at each start .* generator"):
        train(method="frozen", data=(generator(),))
    with pytest.raises(ValueError, match="`shuffle=False`.* ndarray, shuffle=True"):
        train(method="frozen", shuffle=True)


def test_data_that_a_strategy_has_distributed_are_refused(train, batch):
    import tensorflow as tf

    distributed = tf.distribute.MirroredStrategy(["cpu:0"])
    data = tf.data.Dataset.from_tensor_slices(batch).batch(4)
    data = distributed.experimental_distribute_dataset(data)
    with pytest.raises(
        ValueError, match="before a strategy distributes it, which `fit`"
    ):
        train(data=(data,))


def test_arguments_are_checked(tmp_path):
    for options in ({"every_steps": 0}, {"every_seconds": -1}, {"keep": 0}):
        (name,) = options
        with pytest.raises(ValueError, match=f"Expected `{name}` to be at least"):
            Resume(tmp_path, **options)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="a trainer of keras_hsakd .* Sequential"):
        model.fit(np.ones((2, 2)), np.ones(2), callbacks=[Resume(tmp_path)], verbose=0)
