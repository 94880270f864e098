"""Runs the examples, small: the quick ones in this process, the others as scripts."""

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import runpy
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hsakd

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(eager_trainers, tmp_path, monkeypatch, capsys):
    """Returns a function that runs an example untraced, and returns what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


def run_script(name, *arguments, cwd, timeout=300, **environment):
    """Runs an example as a user does, and returns what it prints."""
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def make_photographs(folder, size):
    """Writes two classes that differ, and a file that is no image."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 2)):
        for value, name in ((60, "dark"), (200, "light")):
            for number in range(count):
                noise = generator.integers(-50, 50, (size, size, 3))
                content = tf.io.encode_jpeg((value + noise).astype("uint8"))
                tf.io.write_file(f"{folder}/{part}/{name}/{number}.jpg", content)
    (folder / "train" / "dark" / "broken.jpg").write_text("no image")


@pytest.mark.slow
def test_cifar100_from_teacher_to_served_student(run, cifar100_data_dir, tmp_path):
    small = ["--data-dir", cifar100_data_dir, "--epochs", "1"]
    run("cifar100_teacher.py", "--model", "resnet8", *small)
    assert (tmp_path / "logs" / "teacher" / "train").is_dir()
    printed = run("cifar100_distill.py", "--model", "wrn_10_1", *small)
    assert "aux_3_joint_accuracy: " in printed
    make_photographs(tmp_path / "photos", size=40)
    image = "photos/test/light/0.jpg"
    printed = run("export_student.py", "student.keras", "serving/student/1", image)
    assert re.search(rf"{image}  class \d+: 0\.\d+", printed)
    assert (tmp_path / "serving" / "student" / "1" / "saved_model.pb").exists()


@pytest.mark.slow
def test_image_folder(run, tmp_path):
    make_photographs(tmp_path / "photos", size=16)
    small = ["--teacher", "resnet8", "--student", "wrn_10_1", "--epochs", "1"]
    with pytest.warns(UserWarning, match="Skipped 1 of 21 files"):
        printed = run("image_folder.py", "photos", *small, "--image-size", 16)
    assert "16 images to train, 4 to test" in printed
    assert "2 classes: dark, light" in printed
    serve = tf.saved_model.load(str(tmp_path / "serving" / "student" / "1"))
    images = tf.zeros((1, 16, 16, 3), tf.uint8)
    outputs = serve.signatures["serving_default"](images=images)
    assert outputs["probabilities"].shape == (1, 2)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("keras_cv"), reason="needs keras-cv")
def test_keras_cv_backbone(tmp_path):
    make_photographs(tmp_path / "photos", size=32)
    (tmp_path / "photos" / "train" / "dark" / "broken.jpg").unlink()
    small = ["--teacher", "resnet8", "--epochs", "1", "--image-size", "32"]
    run_script("keras_cv_backbone.py", "photos", *small, cwd=tmp_path)
    assert (tmp_path / "student.keras").exists()


@pytest.mark.slow
def test_custom_model(run, tmp_path):
    make_photographs(tmp_path / "photos", size=32)
    (tmp_path / "photos" / "train" / "dark" / "broken.jpg").unlink()
    small = ["--width", "4", "--alpha", "0.35", "--epochs", "1", "--image-size", "32"]
    printed = run("custom_model.py", "photos", *small)
    assert "('aux_5', 'aux_3')" in printed
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert student.output_shape == (None, 2)


@pytest.mark.slow
def test_check_views(tmp_path):
    printed = run_script("check_views.py", "--epochs", "1", cwd=tmp_path)
    assert re.search(r"aux_3 +\d+\.\d%", printed)


@pytest.mark.slow  # two processes; `test_resume.py` has some in CI
def test_multi_worker(tmp_path):
    keras_hsakd.models.create("resnet8", 10, (32, 32, 3)).save(
        tmp_path / "teacher.keras"
    )
    small = ["--data", "digits", "--model", "wrn_10_1", "--epochs", "1"]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    printed = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for index in range(2):
            config = {
                "cluster": {"worker": workers},
                "task": {"type": "worker", "index": index},
            }
            printed.append(
                pool.submit(
                    run_script,
                    "multi_worker.py",
                    *small,
                    cwd=tmp_path,
                    TF_CONFIG=json.dumps(config),
                )
            )
    first, second = (future.result() for future in printed)
    assert "val_accuracy: " in first and "Wrote student.keras" in first
    assert second == ""
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert sorted(student.output) == ["aux_1", "aux_2", "aux_3", "logits"]


@pytest.fixture(scope="module")
def notebook():
    return json.loads((EXAMPLES / "quickstart.ipynb").read_text("utf-8"))


@pytest.mark.slow
def test_quickstart_notebook(notebook, tmp_path):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells), "utf-8")
    printed = run_script(script, cwd=tmp_path, timeout=900)
    *_, answer = printed.splitlines()
    assert re.fullmatch(r"photographs.test.7.\d+\.png: 7 \(\d+%\)", answer)
    accuracies = [
        json.loads((tmp_path / "runs" / name / "run.json").read_text())["last"]
        for name in ("teacher", "labels", "plain", "student")
    ]
    assert min(found["val_accuracy"] for found in accuracies) > 0.5, accuracies


def test_the_notebook_keeps_no_outputs(notebook):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells and len(notebook["cells"]) <= 24
    for cell in cells:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path
