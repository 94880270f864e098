"""Replicas must give what one device gives: the scaling of every term of the loss."""

import time

import keras
import numpy as np
import pytest
from processes import end_of, start, worker_environments

import keras_hsakd
from keras_hsakd import distribution
from keras_hsakd.files import read_json, write_json
from keras_hsakd.trainers import BaselineTrainer

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute"),
    pytest.mark.xdist_group("processes"),  # imports are done once for all
]


def network(name, classes=3):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(
        4, 3, activity_regularizer=keras.regularizers.L2(0.1), name=f"{name}_conv"
    )(images)
    x = keras_hsakd.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.BatchNormalization()(x)  # Keras' layer, too
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {
        "logits": keras.layers.Dense(classes, kernel_regularizer="l2")(x),
    }
    outputs["aux_1"] = keras.layers.Dense(4 * classes)(x)
    return keras.Model(images, outputs, name=name)


def make(*arguments):
    return keras_hsakd.synchronize_batch_norm(network(*arguments))


def on_features(teacher, student):
    """Returns a distiller by terms of which one has a layer of its own."""
    terms = [
        keras_hsakd.terms.CrossEntropy(),
        keras_hsakd.terms.Hint(on="last_stage", regressor=True),
        keras_hsakd.terms.Attention(on="last_stage"),
    ]
    return keras_hsakd.Distiller(
        *map(keras_hsakd.strip_heads, (teacher, student)), terms=terms
    )


TRAINERS = {
    "teacher": lambda: keras_hsakd.TeacherTrainer(make("a")),
    "frozen": lambda: keras_hsakd.TeacherTrainer(make("a"), freeze_backbone=True),
    "distiller": lambda: keras_hsakd.Distiller(make("a"), make("b")),
    "mutual": lambda: keras_hsakd.MutualDistiller([make("a"), make("b")]),
    "features": lambda: on_features(make("a"), make("b")),
    "baseline": lambda: BaselineTrainer(keras_hsakd.strip_heads(make("a"))),
}


def weighted_dataset(size, batch_size=7, unlabeled=False):
    """Returns batches that two replicas cannot share evenly, nor those with a label."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.normal(size=(size, 8, 8, 3)).astype("float32")
    labels = rng.integers(0, 3, size)
    if unlabeled:
        labels[::4] = -1
    weights = rng.uniform(0, 2, size).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, weights))
    return dataset.batch(batch_size)


# What processes do: each has devices of its own from the start.


def train(kind, methods, folder):
    """Trains on one device, on two, or as one of several workers, and writes how."""
    strategy = {"one": one_device, "two": two_devices, "worker": worker}[kind]()
    results = {}
    for method in methods:
        if method == "pipeline":
            results[method] = train_on_pipeline(strategy)
        else:
            results[method] = train_in_scope(strategy, method)
            results[f"{method}, one left"] = train_on_one_left(strategy, method)
    with strategy.scope():
        index = distribution.worker_index()
    write_json(folder / f"{kind}-{index}.json", results)


def one_device():
    import tensorflow as tf

    return tf.distribute.OneDeviceStrategy("CPU:0")


def two_devices():
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def worker():
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


def train_in_scope(strategy, method):
    images = weighted_dataset(24, unlabeled=method == "distiller")
    with strategy.scope():
        keras.utils.set_random_seed(0)
        trainer = TRAINERS[method]().compile(
            keras_hsakd.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3),
            weighted_metrics=["accuracy"],
            steps_per_execution=3 if method in ("mutual", "distiller") else 1,
        )
        history = trainer.fit(
            images.repeat(3).take(10),  # 7, 7, 7 and 3 of them
            validation_data=weighted_dataset(8),  # the last batch is of one
            verbose=0,
        )
    return result(trainer, history)


def train_on_one_left(strategy, method):
    """Trains on a last batch of one image, of which one of two replicas gets none."""
    with strategy.scope():
        keras.utils.set_random_seed(0)
        trainer = TRAINERS[method]().compile("sgd", weighted_metrics=["accuracy"])
        history = trainer.fit(weighted_dataset(8), epochs=2, verbose=0)
    # Not the running variance, whose factor n / (n - 1) counts the rows of both.
    trained = [np.ravel(values).tolist() for values in trainer.trainable_weights]
    return {"weights": trained, "logs": history.history}


def train_on_pipeline(strategy):
    """Trains over two epochs of the package's data, outside of the scope."""
    with strategy.scope():
        keras.utils.set_random_seed(0)
        images = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, activation="relu")(images)
        logits = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
        trainer = BaselineTrainer(keras.Model(images, logits)).compile("sgd")
        train, test = keras_hsakd.data.load(
            "digits", image_size=8, batch_size=8, limit=16
        )
    history = trainer.fit(train, validation_data=test, epochs=2, verbose=0)
    return result(trainer, history)


def result(trainer, history):
    weights = [np.ravel(values).tolist() for values in trainer.network.get_weights()]
    return {"weights": weights, "logs": history.history}


def train_with_statistics_of_ones_own():
    """Trains replicas that do not synchronize, one of which goes without images."""
    strategy = two_devices()
    outside = network("outside")
    with strategy.scope():
        with pytest.raises(ValueError, match="`outside` to be made, or loaded, in the"):
            keras_hsakd.TeacherTrainer(outside)
        loss = keras.distillation.LogitsDistillation(4.0, keras.losses.KLDivergence())
        distiller = keras_hsakd.Distiller(network("t"), network("s"), terms=[loss])
        distiller.compile("sgd")
    with pytest.raises(ValueError, match="replicas whose numbers of images may differ"):
        distiller.fit(weighted_dataset(8).map(lambda x, y, _: (x, y)), verbose=0)
    with strategy.scope():
        trainer = keras_hsakd.TeacherTrainer(network("a"))
        trainer.compile("sgd", head_metrics=True)
    few = weighted_dataset(8)
    history = trainer.fit(few, validation_data=weighted_dataset(1), verbose=0)
    assert all(np.isfinite(values).all() for values in history.history.values())
    assert trainer.predict(weighted_dataset(8), verbose=0).shape == (8, 3)
    assert all(np.isfinite(values).all() for values in trainer.network.get_weights())


def train_as_keras_does(strategy, path, rows=7, steps_per_execution=1):
    """Trains a model of Keras on replicas, and writes what comes of it.

    Once it works, `distribution.ReplicatedFit` has done its duty.
    """
    with strategy().scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
        try:
            data = np.ones((rows, 2)), np.ones((rows, 1))
            model.fit(*data, batch_size=rows, verbose=0)
        except Exception as error:
            path.write_text(f"{type(error).__name__}: {error}")
        else:
            path.write_text("works")


def come_late(folder):
    """Waits for a worker that comes late, twice, and looks for what it has done."""
    with worker().scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    index = distribution.worker_index(model)
    for late in range(2):
        if index == late:
            time.sleep(0.5)
            (folder / f"late-{late}").touch()
        distribution.wait_for_workers(model)
        assert (folder / f"late-{late}").exists(), f"worker {index} did not wait"
    # A process that ends closes the connection by which the other one still reads.
    (folder / f"done-{index}").touch()
    until = time.monotonic() + 60
    while not (folder / f"done-{1 - index}").exists() and time.monotonic() < until:
        time.sleep(0.01)


# What comes of it.


def assert_trained_alike(results, expected):
    assert set(results) == set(expected)
    for name, received in results.items():
        weights, logs = expected[name]["weights"], expected[name]["logs"]
        for a, b in zip(weights, received["weights"], strict=True):
            # Ten steps of float32 sums in another order.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
        assert set(received["logs"]) == set(logs)
        for key, values in logs.items():
            # A divergence is a difference of logs of order 1: 1.5e-7 seen.
            expected_values = pytest.approx(values, rel=1e-5, abs=1e-6)
            assert received["logs"][key] == expected_values, f"{name} {key}"


def workers(function, *arguments):
    return [start(function, *arguments, **own) for own in worker_environments(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods",
    [
        ["mutual", "baseline", "features"],
        ["teacher", "frozen", "distiller", "pipeline"],
    ],
    ids=["mutual", "others"],
)
def test_replicas_and_workers_train_as_one_device(tmp_path, methods):
    processes = [start(train, kind, methods, tmp_path) for kind in ("one", "two")]
    processes += workers(train, "worker", methods, tmp_path)
    for process in processes:
        end_of(process)
    expected = read_json(tmp_path / "one-0.json")
    assert set(methods) <= set(expected)
    for name in ("two-0", "worker-0", "worker-1"):
        assert_trained_alike(read_json(tmp_path / f"{name}.json"), expected)


def test_replicas_with_statistics_of_their_own():
    end_of(start(train_with_statistics_of_ones_own))


def test_workers_wait_for_each_other(tmp_path):
    for process in workers(come_late, tmp_path):
        end_of(process)


@pytest.mark.slow
def test_what_keras_does_not_train(tmp_path):
    """Several workers, uneven replicas, steps in a row."""
    paths = [tmp_path / name for name in ("0", "1", "uneven", "steps", "works")]
    environments = [*worker_environments(2), {}, {}, {}]
    trainings = [(worker,), (worker,), (two_devices,), (two_devices, 8, 2)]
    processes = [
        start(train_as_keras_does, strategy, path, *options, **own)
        for (strategy, *options), path, own in zip(
            [*trainings, (two_devices, 8)], paths, environments, strict=True
        )
    ]
    for process in processes:
        end_of(process)
    assert [path.read_text() == "works" for path in paths] == [False] * 4 + [True]
