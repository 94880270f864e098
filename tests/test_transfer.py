"""A student carried to other tasks: the blocks of the page, and the example."""

import pathlib
import re

import drawn_voc
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_examples import run_script

from keras_hsakd import Distiller, TeacherTrainer, attach_heads

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "transfer.md").read_text()
SIZE = 64


def run_block(heading, changes, given, folder, monkeypatch):
    """Runs the code below a heading of the page, smaller, on names that are given."""
    code = re.search(rf"## {heading}\n\n```python\n(.*?)```", PAGE, re.S)[1]
    assert len(code.splitlines()) <= 20
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    (folder / "runs" / "student").mkdir(parents=True)
    drawn_voc.classifier(4, SIZE).save(folder / "runs" / "student" / "best.keras")
    monkeypatch.chdir(folder)
    exec(code, given)


SMALLER = {"(512, 512, 3)": f"({SIZE}, {SIZE}, 3)", "epochs=50": "epochs=1, verbose=0"}


def images(count=2):
    return np.random.default_rng(0).uniform(0, 255, (count, SIZE, SIZE, 3))


def test_segmentation(eager_trainers, tmp_path, monkeypatch):
    masks = np.random.default_rng(1).integers(0, 21, (2, SIZE, SIZE))
    given = {"train": tf.data.Dataset.from_tensors((images(), masks))}
    run_block("Segmentation", {"128": "8", **SMALLER}, given, tmp_path, monkeypatch)
    segmenter = given["segmenter"]
    assert segmenter.output_shape == (None, SIZE, SIZE, 21)
    assert np.isfinite(segmenter(images())).all()


def test_retrieval(tmp_path, monkeypatch):
    given = {"images": images(12), "asked": images(12)[3:5]}
    run_block("Retrieval", {}, given, tmp_path, monkeypatch)
    nearest = given["nearest"]
    assert nearest.shape == (2, 10)
    np.testing.assert_array_equal(nearest[:, 0], [3, 4])


@pytest.mark.slow
def test_detection(tmp_path, monkeypatch):
    pytest.importorskip("keras_cv")
    boxes = {"boxes": [[[8.0, 8.0, 40.0, 40.0]]] * 2, "classes": [[1.0]] * 2}
    batch = {"images": images().astype("float32"), "bounding_boxes": boxes}
    given = {"train": tf.data.Dataset.from_tensors(batch)}
    run_block("Detection", SMALLER, given, tmp_path, monkeypatch)
    found = given["detector"].predict(batch["images"], verbose=0)
    assert found["boxes"].shape == (2, 100, 4)


def distilled(path, count=600, epochs=3):
    """Writes a student that has learned to tell shapes apart, from a teacher."""
    keras.utils.set_random_seed(0)
    photographs, labels = drawn_voc.classes(count, SIZE, seed=1)
    batches = {"batch_size": 32, "epochs": epochs, "verbose": 0}
    teacher = attach_heads(drawn_voc.classifier(16, SIZE), head="light")
    trainer = TeacherTrainer(teacher).compile("adam")
    trainer.fit(photographs, labels, **batches)
    student = attach_heads(drawn_voc.classifier(8, SIZE), head="light")
    trainer = Distiller(teacher, student).compile("adam", metrics=["accuracy"])
    history = trainer.fit(photographs, labels, **batches).history
    student.save(path)
    return history["accuracy"][-1]


@pytest.mark.slow
def test_a_detector_on_a_distilled_backbone_learns(tmp_path):
    pytest.importorskip("pycocotools")
    pytest.importorskip("keras_cv")
    assert distilled(tmp_path / "student.keras") > 0.6
    drawn_voc.build(tmp_path / "data", "2007", train=200, val=50, test=100, size=SIZE)
    drawn_voc.build(tmp_path / "data", "2012", train=50, val=20, test=2, size=SIZE)
    small = ["--data-dir", tmp_path / "data", "--image-size", SIZE]

    def train(epochs):
        printed = run_script(
            "detection.py",
            "student.keras",
            *small,
            *("--epochs", epochs, "--output", f"detector_{epochs}"),
            cwd=tmp_path,
        )
        return float(re.search(r"^AP50 (\S+)$", printed, re.M)[1])

    untrained, trained = train(0), train(10)
    assert untrained < 0.1
    assert trained > untrained + 0.3
