"""The trainers run on the PyTorch backend, where it is installed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

SCRIPT = """
import json, sys, tempfile
import keras, numpy as np
import keras_hsakd as hsakd

def make(seed):
    rng = np.random.default_rng(seed)
    images = x = keras.Input((8, 8, 3))
    for stage in range(2):
        for _ in range(2):
            x = keras.layers.Conv2D(4, 3, padding="same", activation="tanh")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.AveragePooling2D(2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    network = hsakd.attach_heads(keras.Model(images, keras.layers.Dense(3)(x)))
    for variable in network.trainable_variables:
        variable.assign(rng.normal(size=variable.shape, scale=0.3))
    return network

images = np.random.default_rng(0).random((12, 8, 8, 3)).astype("float32")
labels = np.arange(12) % 3
trainers = {
    "distiller": lambda: hsakd.Distiller(make(2), make(1)),
    "features": lambda: hsakd.Distiller(
        [hsakd.strip_heads(make(2))], hsakd.strip_heads(make(1)),
        terms=[hsakd.terms.CrossEntropy(), hsakd.terms.Hint(regressor=True),
               hsakd.terms.Attention(), hsakd.terms.SimilarityPreserving(),
               hsakd.terms.Relational(weight=0.1)],
    ),
    "frozen": lambda: hsakd.TeacherTrainer(make(1), freeze_backbone=True),
    "mutual": lambda: hsakd.MutualDistiller([make(1), make(2)]),
}
results = {}
rng = np.random.default_rng(0)
for name, trainer in trainers.items():
    optimizer = hsakd.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4)
    trainer = trainer().compile(
        optimizer, metrics=["accuracy"], head_metrics=name != "features"
    )
    for layer in trainer._layers_of_terms:  # one seed is another on each backend
        kernel = layer.layers[0].kernel
        kernel.assign(rng.normal(size=kernel.shape, scale=0.3))
    teacher = [np.array(v) for v in map(keras.ops.convert_to_numpy,
                                        trainer.frozen_weights)]
    folder = tempfile.mkdtemp()
    for epochs in (1, 2):
        logs = trainer.fit(
            images, labels, 8, epochs, 0, hsakd.Resume(folder), shuffle=False,
            validation_data=(images, labels),
            sample_weight=np.linspace(0.5, 1.5, 12).astype("float32"),
        ).history
    for before, variable in zip(teacher, trainer.frozen_weights, strict=True):
        assert (before == keras.ops.convert_to_numpy(variable)).all()
    results[name] = {key: values[-1] for key, values in logs.items()}
    results[name]["weights"] = sum(
        float(np.abs(keras.ops.convert_to_numpy(v)).sum())
        for v in trainer.trainable_variables
    )
print(json.dumps(results))
"""


def results(backend):
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
def test_trainings_are_those_on_tensorflow():
    expected, found = results("tensorflow"), results("torch")
    for name, logs in expected.items():
        assert set(logs) == set(found[name])
        for key, value in logs.items():
            np.testing.assert_allclose(
                found[name][key], value, rtol=2e-3, atol=1e-5, err_msg=f"{name} {key}"
            )
