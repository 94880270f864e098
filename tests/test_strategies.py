"""Replicas must give what one device gives: the scaling of every term of the loss."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.distribute"
)

# Devices must be split before TensorFlow starts: processes of their own. The argument
# is the number of devices of the one process, or "worker" in each of several.
SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
import keras_hsakd

is_worker = sys.argv[1] == "worker"
if is_worker:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
elif sys.argv[1] == "1":
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
else:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def network(name, batch_norm=True, classes=3):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name=f"{name}_conv")(images)
    if batch_norm:  # Keras' layer, too
        x = keras_hsakd.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {"logits": keras.layers.Dense(classes)(x)}
    outputs["aux_1"] = keras.layers.Dense(4 * classes)(x)
    return keras.Model(images, outputs, name=name)

rng = np.random.default_rng(0)
images = rng.normal(size=(24, 8, 8, 3)).astype("float32")
labels = rng.integers(0, 3, 24)
sample_weight = rng.uniform(0, 2, 24).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((images, labels, sample_weight)).batch(8)

def make(name):
    return keras_hsakd.synchronize_batch_norm(network(name))

TRAINERS = {
    "teacher": lambda: keras_hsakd.TeacherTrainer(make("a")),
    "frozen": lambda: keras_hsakd.TeacherTrainer(make("a"), freeze_backbone=True),
    "distiller": lambda: keras_hsakd.Distiller(make("a"), make("b")),
    "mutual": lambda: keras_hsakd.MutualDistiller([make("a"), make("b")]),
}
results = {}
keras_alone = None
with strategy.scope():
    for method, make_trainer in TRAINERS.items():
        keras.utils.set_random_seed(0)
        trainer = make_trainer()
        trainer.compile(
            keras_hsakd.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3),
            metrics=["accuracy"],
        )
        logs = trainer.fit(
            dataset.repeat(4).take(10), verbose=0, validation_data=dataset
        )
        results[method] = (trainer.network, logs.history)
    # The pipelines of the package, over two epochs.
    keras.utils.set_random_seed(0)
    train, test = keras_hsakd.data.load("digits", image_size=8, batch_size=8, limit=40)
    digits = network("digits", batch_norm=False, classes=10)
    digits = keras_hsakd.TeacherTrainer(digits).compile("sgd")
    if is_worker:
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
        model.add(keras.layers.Dense(3))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss=loss)
        try:
            model.fit(dataset, verbose=0)
            keras_alone = "works"
        except Exception as error:
            keras_alone = f"{type(error).__name__}: {error}"
    if sys.argv[1] == "2":
        # Not synchronized, the replicas differ from one device, each having its own
        # statistics: they are to run, on an uneven last batch too.
        distiller = keras_hsakd.Distiller(network("a"), network("b"))
        logs = distiller.compile("sgd", head_metrics=True).fit(
            dataset.unbatch().take(19).batch(8), verbose=0, validation_data=dataset
        )
        assert all(np.isfinite(values).all() for values in logs.history.values())

# As users may, outside of the scope.
logs = digits.fit(train, validation_data=test, epochs=2, verbose=0)
results["pipeline"] = (digits.network, logs.history)

def weights(network):
    return [np.ravel(values).tolist() for values in network.get_weights()]

results = {
    name: {"weights": weights(network), "logs": logs}
    for name, (network, logs) in results.items()
}
print(json.dumps([results, keras_alone]))
"""


def start(argument, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, argument],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def start_workers(count):
    """Starts processes that know each other by `TF_CONFIG`."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    return [
        start(
            "worker",
            TF_CONFIG=json.dumps(
                {
                    "cluster": {"worker": workers},
                    "task": {"type": "worker", "index": index},
                }
            ),
        )
        for index in range(count)
    ]


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


def test_replicas_and_workers_train_as_one_device():
    one, two = start("1"), start("2")  # one test, or each would train the first again
    expected, _ = finish(one)
    assert_trained_alike(finish(two)[0], expected)
    for results, keras_alone in map(finish, start_workers(2)):
        assert_trained_alike(results, expected)
        # Once this fails, `distribution.MultiWorkerFit` has done its duty.
        assert keras_alone != "works"
