"""Two processes on JAX train as one: `keras.distribution.DataParallel`."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution"),
]

SCRIPT = """
import json, pathlib, sys, time
import jax, keras, numpy as np

index, count, address, folder, *methods = sys.argv[1:]
index, count = int(index), int(count)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if count > 1:
    keras.distribution.initialize(address, count, index)
keras.distribution.set_distribution(
    keras.distribution.DataParallel(auto_shard_dataset=False)
)

import keras_hsakd
from keras_hsakd.distribution import num_workers, wait_for_workers, worker_index

assert (worker_index(), num_workers()) == (index, count)

def network(name):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name=f"{name}_conv")(images)
    x = keras_hsakd.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    outputs = {"logits": keras.layers.Dense(3)(x), "aux_1": keras.layers.Dense(12)(x)}
    return keras.Model(images, outputs, name=name)

rng = np.random.default_rng(0)
data = (
    rng.normal(size=(40, 8, 8, 3)).astype("float32"),
    rng.integers(0, 3, 40),
    rng.uniform(0, 2, 40).astype("float32"),
)
# Each process has its part of each batch of 8.
mine = [
    np.concatenate([np.split(batch, count)[index] for batch in np.split(part, 5)])
    for part in data
]
TRAINERS = {
    "teacher": lambda: keras_hsakd.TeacherTrainer(network("a")),
    "frozen": lambda: keras_hsakd.TeacherTrainer(network("a"), freeze_backbone=True),
    "distiller": lambda: keras_hsakd.Distiller(network("a"), network("b")),
    "mutual": lambda: keras_hsakd.MutualDistiller([network("a"), network("b")]),
}
results = {}
for name in methods:
    def train(epochs):
        keras.utils.set_random_seed(0)
        trainer = TRAINERS[name]().compile(
            keras_hsakd.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3),
            metrics=["accuracy"],
        )
        callbacks = []
        if count > 1 and name == "teacher":  # two trainings, the second goes on
            callbacks = [keras_hsakd.Resume(folder, every_steps=3)]
        images, labels, weights = mine
        history = trainer.fit(
            images, labels, sample_weight=weights, batch_size=8 // count,
            epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks,
        ).history
        return trainer, history

    if count > 1 and name == "teacher":
        train(1)
    trainer, history = train(2)
    weights = [np.ravel(w).tolist() for w in trainer.network.get_weights()]
    results[name] = {"weights": weights, "history": history}

# Each waits for the other, which comes late.
for late in range(count):
    done = pathlib.Path(f"{folder}-{late}")
    if index == late:
        time.sleep(0.5)
        done.touch()
    wait_for_workers(trainer)
    assert done.exists(), f"process {index} did not wait"
print(json.dumps(results))
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    methods = ["teacher", "frozen", "distiller", "mutual"]
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    expected = finish(start(0, 1, address, tmp_path / "one", *methods))
    processes = [
        start(index, 2, address, tmp_path / "two", *methods) for index in range(2)
    ]
    for results in map(finish, processes):
        assert list(results) == methods
        for name, result in results.items():
            for a, b in zip(result["weights"], expected[name]["weights"], strict=True):
                # Ten steps of float32 sums in another order.
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
            for key, values in expected[name]["history"].items():
                np.testing.assert_allclose(
                    result["history"][key], values, rtol=1e-5, atol=1e-6
                )
    # The first process alone writes snapshots.
    assert len(list((tmp_path / "two").iterdir())) == 2
