"""Several steps in one execution change when things happen, and nothing else."""

import re
import types

import keras
import numpy as np
import pytest

from keras_hsakd import Resume, data
from keras_hsakd.resume import list_snapshots
from keras_hsakd.trainers import BaselineTrainer

TENSORFLOW = keras.backend.backend() == "tensorflow"
tensorflow_alone = pytest.mark.skipif(
    not TENSORFLOW, reason="nothing of its own on JAX, where compiling takes long"
)
STEPS = 7


class StoppedError(Exception):
    pass


class Executions(keras.callbacks.Callback):
    """Sees each execution, and ends the training after one of them."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after
        self.begun, self.ended = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(batch)
        if len(self.ended) == self.stop_after:
            raise StoppedError


def make(steps_per_execution, eager=TENSORFLOW):
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, strides=2)(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    network = keras.Model(images, keras.layers.Dense(10)(x))
    trainer = BaselineTrainer(network)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    return trainer.compile(
        optimizer, run_eagerly=eager, steps_per_execution=steps_per_execution
    )


def digits(limit=8 * STEPS - 3, validation=True):
    """Returns arguments of `fit`: 7 batches, the last one smaller."""
    train, test = data.load("digits", image_size=8, batch_size=8, limit=limit)
    return {"x": train, "validation_data": test if validation else None}


def fit(trainer, callbacks=(), epochs=2, verbose=0, **given):
    trainer.fit(**given, epochs=epochs, callbacks=list(callbacks), verbose=verbose)
    history = {k: v for k, v in trainer.history.history.items()}
    return [keras.ops.convert_to_numpy(v) for v in trainer.variables], history


def assert_same(received, expected):
    assert len(received[0]) == len(expected[0]) > 0
    for a, b in zip(received[0], expected[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert received[1] == expected[1]


@pytest.mark.core
def test_images_that_are_augmented_on_the_device_are_the_same():
    def trained(**fitting):
        train, _ = data.load(
            "digits", 8, 8, limit=16, normalize=False, flip=True, seed=3
        )
        return fit(make(1), epochs=2, x=train.prefetch(1), **fitting)

    expected = trained()
    assert_same(trained(augment_on_device=True), expected)


@pytest.mark.parametrize(
    ("loading", "received"),
    [
        ({}, "normalize=True"),
        ({"normalize": False, "crop": "resized"}, "crop='resized'"),
    ],
)
def test_what_a_device_cannot_augment(loading, received):
    train, _ = data.load("digits", 8, 8, limit=16, **loading)
    with pytest.raises(ValueError, match=f"augment on the device. .*{received}"):
        make(1).fit(train, augment_on_device=True)
    changed = train.map(lambda images, labels: (images, labels))
    with pytest.raises(ValueError, match="to augment on the device, as it is"):
        make(1).fit(changed, augment_on_device=True)


@tensorflow_alone
def test_weights_are_the_same_bit_by_bit():
    given = digits(validation=False)
    start = given["x"].epoch_counter.value
    expected = fit(make(1, eager=False), epochs=1, **given)
    for size, ends in ((2, [1, 3, 5, 7]), (3, [2, 5, 8]), (7, [6])):
        given["x"].epoch_counter.value = start
        seen = Executions()
        assert_same(fit(make(size, eager=False), [seen], epochs=1, **given), expected)
        assert seen.ended == ends


@pytest.mark.core
@pytest.mark.parametrize(
    "stops, last",
    [
        # Steps in an execution, executions until it is stopped: that one is in no
        # snapshot. After 3 steps in the middle of one; then after 4, and after all 7.
        ([(3, 2)], 4),
        pytest.param([(1, 5), (4, 2)], 3, marks=[tensorflow_alone, pytest.mark.slow]),
    ],
)
def test_a_training_goes_on_with_other_executions(tmp_path, stops, last):
    validation = len(stops) > 1
    expected = fit(make(1), **digits(validation=validation))
    resume = Resume(tmp_path, every_steps=1)
    for size, stop_after in stops:
        with pytest.raises(StoppedError):
            given = digits(validation=validation)
            fit(make(size), [Executions(stop_after), resume], **given)
    seen = Executions()
    received = fit(make(last), [seen, resume], **digits(validation=validation))
    assert_same(received, expected)
    assert len(seen.begun) == len(seen.ended)


@tensorflow_alone
def test_a_snapshot_is_of_steps_that_were_made(tmp_path):
    with pytest.raises(StoppedError):
        callbacks = [Executions(4), Resume(tmp_path, every_steps=1, keep=9)]
        fit(make(3), callbacks, **digits(validation=False))
    steps = [re.search(r"step-0+(\d)", path)[1] for path in list_snapshots(tmp_path)]
    assert steps == ["7", "6", "3"]


@tensorflow_alone
def test_arrays_go_on_with_other_executions(tmp_path):
    rng = np.random.default_rng(0)
    given = {
        "x": rng.normal(size=(52, 8, 8, 3)).astype("float32"),
        "y": np.arange(52) % 10,
        "batch_size": 8,
        "shuffle": False,
    }
    expected = fit(make(1), **given)
    resume = Resume(tmp_path, every_steps=1)
    with pytest.raises(StoppedError):
        fit(make(2), [Executions(2), resume], **given)
    assert_same(fit(make(3), [resume], **given), expected)


@tensorflow_alone
def test_steps_of_an_epoch_that_executions_do_not_divide(tmp_path):
    given = digits(validation=False)
    given = {"x": given["x"].repeat(), "steps_per_epoch": 5}
    with pytest.raises(ValueError, match="`steps_per_execution` to divide"):
        fit(make(2), [Resume(tmp_path)], **given)


@tensorflow_alone
def test_the_guard_names_the_steps_of_an_execution():
    rng = np.random.default_rng(0)
    images, labels = (
        rng.normal(size=(56, 8, 8, 3)).astype("float32"),
        np.arange(56) % 10,
    )
    images[44] = np.inf
    for size, where in ((1, "at step 6"), (4, "in steps 5 to 7")):
        given = {"x": images, "y": labels, "batch_size": 8, "shuffle": False}
        trainer = make(size)
        # What is looked at before training are the first images.
        trainer.check_batch = lambda *arguments: None
        with pytest.raises(FloatingPointError, match=f"loss=nan {where} of epoch 1"):
            fit(trainer, **given)


@tensorflow_alone
def test_the_progress_bar_ends_where_the_epoch_does(capfd):
    given = digits(validation=False)
    fit(make(4), epochs=1, verbose=1, **given)
    counts = re.findall(r"(\d+)/7", capfd.readouterr().out)
    assert counts[-1] == "7" and set(counts) <= {"4", "7"}
    quiet = keras.callbacks.ProgbarLogger()  # a bar of one's own is the only one
    quiet.set_params = lambda params: setattr(quiet, "verbose", 0)
    fit(make(4), [quiet], epochs=1, verbose=1, **given)
    assert "/7" not in capfd.readouterr().out


# What is chosen where nothing is said.


@pytest.fixture
def accelerator(monkeypatch):
    """Has Keras see a GPU, on which nothing runs."""
    import tensorflow as tf
    from tensorflow.python.framework import config

    # Which a test before may have enabled, for the whole process.
    monkeypatch.setattr(config, "is_op_determinism_enabled", lambda: False)
    devices = [types.SimpleNamespace(device_type=kind) for kind in ("CPU", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *kind: devices)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])


def chosen(batch_size=64, image_size=32, steps=782, **execution):
    from keras_hsakd.runs import ExecutionSettings, TrainingSettings, training

    settings = TrainingSettings(model="resnet8", batch_size=batch_size)
    images = types.SimpleNamespace(image_size=image_size, train=range(steps))
    execution = ExecutionSettings(**execution)
    return training._steps_per_execution(execution, settings, images)


@tensorflow_alone
def test_as_many_steps_as_make_reading_the_logs_cheap(accelerator):
    assert chosen() == 49  # 15 times, and 47 in the last execution
    assert chosen(steps=50) == 50
    assert chosen(batch_size=256, steps=196) == 16
    assert chosen(batch_size=256, image_size=224, steps=5005) == 1
    assert chosen(batch_size=256, image_size=(112, 448), steps=5005) == 1
    assert chosen(snapshot_steps=10) == 10
    assert chosen(steps_per_execution=7) == 7


@tensorflow_alone
def test_one_step_on_a_cpu_and_a_number_that_is_none():
    assert chosen() == 1
    with pytest.raises(ValueError, match="`--steps-per-execution` to be at least 1"):
        chosen(steps_per_execution=0)


@tensorflow_alone
@pytest.mark.parametrize(
    "name", ["resnet8", pytest.param("shufflenet_v1", marks=pytest.mark.slow)]
)
def test_steps_are_compiled_by_xla_on_an_accelerator(name, accelerator):
    from keras_hsakd import TeacherTrainer, distribution, models
    from keras_hsakd.runs import networks

    strategy = distribution.make_strategy(None)
    with networks.construction("mixed_bfloat16", strategy):
        trainer = TeacherTrainer(models.create(name, 10), sampled_views=2)
    assert trainer.compile("sgd").jit_compile
