import contextlib
import os
import signal
import time

import keras
import numpy as np
import pytest

from keras_hsakd import callbacks


def train(callbacks, steps_per_execution=1, batch_size=4):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.5, 0.25])
    optimizer = keras.optimizers.SGD(schedule)
    model.compile(optimizer, "mse", steps_per_execution=steps_per_execution)
    x, y = np.ones((8, 2)), np.ones((8, 1))
    data = {"validation_data": (x, y), "batch_size": batch_size, "verbose": 0}
    return model.fit(x, y, epochs=3, callbacks=callbacks, **data).history


class Clock(keras.callbacks.Callback):
    """Time passes here alone: a second a call, an hour to compile and a validation."""

    def __init__(self, monkeypatch, compiling=0):
        super().__init__()
        self.now, self.compiling = 0, compiling
        monkeypatch.setattr(callbacks.time, "perf_counter", lambda: self.now)

    def on_train_batch_end(self, batch, logs=None):
        self.now += 1 + self.compiling
        self.compiling = 0

    def on_test_end(self, logs=None):
        self.now += 3600


def test_throughput_is_that_of_training_alone(monkeypatch):
    history = train([Clock(monkeypatch), callbacks.Throughput(8)])
    assert history["images_per_second"] == [4, 4, 4]


# Of three steps, the last execution of an epoch has one.
@pytest.mark.parametrize(("steps", "median"), [(1, 1), (2, 1), (3, 1 / 3)])
def test_a_step_takes_its_share_of_an_execution(steps, median, monkeypatch):
    measured = callbacks.StepSeconds()
    assert measured.median is None
    train([Clock(monkeypatch, 3600), measured], steps, batch_size=3)
    executions = 3 * -(-3 // steps)
    assert measured.count == executions - 1  # but for the one that compiles
    assert sorted(measured._seconds)[0] == pytest.approx(1 / steps)
    assert measured.median == pytest.approx(median)


def test_steps_that_were_measured_before_a_kill_count(monkeypatch):
    before, after = callbacks.StepSeconds(), callbacks.StepSeconds()
    train([Clock(monkeypatch), before])
    after.set_state(before.get_state())
    train([Clock(monkeypatch), after])
    assert after.count == 2 * before.count == 10
    assert after.median == 1


def test_of_many_steps_a_sample_is_kept(monkeypatch):
    measured, now = callbacks.StepSeconds(), 0
    measured.set_params({"steps": None})
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now)
    measured.on_epoch_begin(0)
    measured.on_train_batch_begin(0)
    for batch in range(10_000):
        now += 0 if batch == 0 else batch  # each takes longer than the one before
        measured.on_train_batch_end(batch)
    assert measured.count == 9_999
    assert 1024 <= len(measured._seconds) < 2048
    assert measured.median == pytest.approx(5_000, rel=2e-3)


def test_the_learning_rate_is_that_of_the_epoch():
    # Two steps an epoch; the schedule changes with the fourth step's end.
    history = train([callbacks.Throughput(8)])
    np.testing.assert_allclose(history["learning_rate"], [0.5, 0.5, 0.25])


@pytest.mark.parametrize("moment", ["on_train_begin", "on_test_begin"])
def test_an_interrupt_that_is_swallowed_is_raised_again(moment):
    def swallow(logs=None):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the handler runs here

    before = signal.getsignal(signal.SIGINT)
    swallowing = keras.callbacks.Callback()
    setattr(swallowing, moment, swallow)
    with pytest.raises(KeyboardInterrupt), callbacks.KeepInterrupt() as keep:
        train([keep, swallowing])
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_became_another_error_is_one_again():
    def raise_another(logs=None):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the handler runs here
        except KeyboardInterrupt as error:
            raise RuntimeError("as C++ does while a function is traced") from error

    failing = keras.callbacks.Callback()
    failing.on_train_begin = raise_another
    with pytest.raises(KeyboardInterrupt), callbacks.KeepInterrupt() as keep:
        train([keep, failing])


def test_an_interrupt_that_the_process_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with callbacks.KeepInterrupt() as keep:
            signal.raise_signal(signal.SIGINT)
            assert len(train([keep])["loss"]) == 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_without_an_interrupt_stays_what_it_is():
    with pytest.raises(RuntimeError, match="another"), callbacks.KeepInterrupt():
        raise RuntimeError("another")


@pytest.mark.core
def test_the_best_network_is_kept(tmp_path):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    saving = callbacks.SaveNetwork(network, tmp_path, monitor="val_accuracy")
    for epoch, accuracy in enumerate((0.5, 0.7, 0.7, 0.6)):
        network.set_weights([np.full((2, 1), epoch), np.zeros(1)])
        saving.on_epoch_end(epoch, {"val_accuracy": accuracy})
    assert saving.last == {"epoch": 4, "val_accuracy": 0.6}
    assert saving.best == {"epoch": 2, "val_accuracy": 0.7}
    for name, epoch in (("last", 3), ("best", 1)):
        kept = keras.saving.load_model(tmp_path / f"{name}.keras")
        assert kept.get_weights()[0][0, 0] == epoch
    assert len(list(tmp_path.iterdir())) == 2
    saving.on_epoch_end(4, {"accuracy": 0.9})  # without validation
    assert (saving.last["epoch"], saving.best["epoch"]) == (5, 2)


def test_a_monitor_that_is_never_there_is_named(tmp_path):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    saving = callbacks.SaveNetwork(network, tmp_path, monitor="val_acc")
    saving.on_epoch_end(0, {"val_accuracy": 0.5})
    with pytest.raises(
        ValueError, match=r"'val_accuracy'\]. Received: monitor='val_acc'"
    ):
        saving.on_train_end()
