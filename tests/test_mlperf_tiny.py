"""Our networks beside published files: the benchmark, on drawn images."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import export, models
from keras_hsakd.documents import markdown
from keras_hsakd.runs import Baseline, DataSettings, TrainingSettings, train

PROGRAMS = pathlib.Path(__file__).parent.parent / "benchmarks"


def program(name):
    spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark, tables = program("mlperf_tiny"), program("results")


def test_an_accuracy_has_the_interval_of_wilson():
    stats = pytest.importorskip("scipy.stats")
    for correct, count in ((880, 1000), (3, 9), (9, 9)):
        found = benchmark.accuracy(np.arange(count) < correct)
        wanted = stats.binomtest(correct, count).proportion_ci(method="wilson")
        assert found["mean"] == correct / count
        np.testing.assert_allclose([found["low"], found["high"]], wanted, rtol=1e-6)


def test_differences_are_paired():
    stats = pytest.importorskip("scipy.stats")
    right = np.array([True] * 90 + [False] * 10)
    other = np.array([True] * 80 + [False] * 18 + [True] * 2)
    found = benchmark.difference(right, other)
    assert found["mean"] == pytest.approx(0.08)
    assert found["p"] == pytest.approx(stats.binomtest(2, 12).pvalue)
    # The standard error of a mean of differences, each -1, 0 or 1.
    half = 1.959964 * np.std(right.astype(float) - other) / 10
    assert found["high"] == pytest.approx(0.08 + half)
    assert found["low"] == pytest.approx(0.08 - half)
    opposite = benchmark.difference(other, right)
    assert opposite["high"] == pytest.approx(-found["low"])
    assert benchmark.difference(right, right)["p"] == 1


def draw(folder, image_type):
    rng = np.random.default_rng(0)
    encode = getattr(tf.io, f"encode_{image_type}")
    for part, count in (("train", 8), ("test", 3)):
        for label, name in enumerate(("cat", "dog", "eel")):
            for number in range(count):
                image = rng.integers(80 * label, 80 * label + 90, (8, 8, 3))
                file = folder / part / name / f"{number}.{image_type}"
                tf.io.write_file(str(file), encode(tf.constant(image, tf.uint8)))
    return folder


@pytest.mark.slow
def test_files_are_compared_and_told(tmp_path):
    pytest.importorskip("ai_edge_litert")
    data = draw(tmp_path / "data", "jpeg")
    exact = draw(tmp_path / "exact", "png")
    images = DataSettings(data=str(data), image_size=8)
    runs = []
    for seed in (0, 1):
        training = TrainingSettings(model="mlperf_resnet8", epochs=1, seed=seed)
        runs.append(tmp_path / "runs" / f"seed_{seed}" / "baseline")
        train(Baseline(), runs[-1], training, images, verbose=0)
    peers = tmp_path / "peers"
    peers.mkdir()
    network = models.mlperf_resnet(4, 3, input_shape=(8, 8, 3), heads=False)
    shown = np.zeros((4, 8, 8, 3), "uint8")
    export.ship(network, tmp_path / "ship", ["litert", "litert-int8"], images=shown)
    shutil.copy(tmp_path / "ship/1.tflite", peers / "small.tflite")
    shutil.copy(tmp_path / "ship/1-int8.tflite", peers / "small_quant.tflite")
    folders = {"peers": peers, "data": data, "exact": exact}
    flags = [word for k, v in folders.items() for word in (f"--{k}", str(v))]
    flags += ["--output", str(tmp_path / "found.json"), "--rounds", "1", "--calls"]
    benchmark.main([*flags, "10", *map(str, runs)])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == {"jpeg": 9, "exact": 9}
    own = ["labels, seed 0, float32", "labels, seed 0, int8"]
    own += ["labels, seed 1, float32", "labels, seed 1, int8"]
    assert list(found["files"]) == ["small", "small_quant", *own]
    file = found["files"]["labels, seed 1, int8"]
    assert (file["seed"], file["reference"]) == (1, "small_quant")
    assert file["latency_ms"] > 0 and file["memory_ratio"] > 0
    assert set(found["differences"]["small"]) == {own[0], own[2]}
    text = markdown(tables.mlperf_tiny(found))
    assert "| small_quant | int8 | " in text and "| latency | memory |" in text
    assert "| labels, seed 1 | labels, seed 0 | " in text
