"""Replicas must give what one device gives: the scaling of every term of the loss."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.distribute"
)

# Devices must be split before TensorFlow starts: one process for each number of them.
SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
import keras_hsakd

devices = int(sys.argv[1])
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * devices,
)
names = [f"CPU:{i}" for i in range(devices)]

def plain(name, batch_norm=False):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name=f"{name}_conv")(images)
    if batch_norm:
        x = keras_hsakd.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {"logits": keras.layers.Dense(3)(x), "aux_1": keras.layers.Dense(12)(x)}
    return keras.Model(images, outputs, name=name)

rng = np.random.default_rng(0)
images = rng.normal(size=(24, 8, 8, 3)).astype("float32")
labels = rng.integers(0, 3, 24)
weights = rng.uniform(0, 2, 24).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((images, labels, weights)).batch(8)

def normalized(name):
    return keras_hsakd.synchronize_batch_norm(plain(name, batch_norm=True))

TRAINERS = {
    "teacher": lambda make: keras_hsakd.TeacherTrainer(make("a")),
    "frozen": lambda make: keras_hsakd.TeacherTrainer(make("a"), freeze_backbone=True),
    "distiller": lambda make: keras_hsakd.Distiller(make("a"), make("b")),
    "mutual": lambda make: keras_hsakd.MutualDistiller([make("a"), make("b")]),
}
results = {}
with tf.distribute.MirroredStrategy(names).scope():
    for method, make in [
        *((method, plain) for method in TRAINERS),
        # Ten steps with batch normalization over all replicas; one trainer, since the
        # layers do not know which it is.
        ("distiller", normalized),
    ]:
        keras.utils.set_random_seed(0)
        trainer = TRAINERS[method](make)
        trainer.compile(
            keras_hsakd.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3),
            metrics=["accuracy"],
        )
        logs = trainer.fit(
            dataset.repeat(4).take(10), verbose=0, validation_data=dataset
        )
        results[f"{method} {make.__name__}"] = {
            "weights": [np.ravel(w).tolist() for w in trainer.network.get_weights()],
            "logs": {name: values[0] for name, values in logs.history.items()},
        }
    # With batch norm the replicas differ from one device, each having its own
    # statistics: the networks of the zoo are to run, on an uneven last batch too.
    zoo = [keras_hsakd.models.create(n, 3, (8, 8, 3)) for n in ("resnet8", "wrn_10_1")]
    logs = keras_hsakd.Distiller(*zoo).compile("sgd", head_metrics=True).fit(
        dataset.unbatch().take(19).batch(8), verbose=0, validation_data=dataset
    )
    assert all(np.isfinite(values).all() for values in logs.history.values())
print(json.dumps(results))
"""


def run(devices):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(devices)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_two_replicas_train_as_one_device():
    one, two = run(1), run(2)
    for method, expected in one.items():
        received = two[method]
        for a, b in zip(expected["weights"], received["weights"], strict=True):
            # float32 sums in another order; ten steps
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert received["logs"] == pytest.approx(expected["logs"], rel=1e-5)
