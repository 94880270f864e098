"""Which images a run is of: told by what they are, not by their names and numbers."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import data
from keras_hsakd.data.shared import shared
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    ExecutionSettings,
    Run,
    TrainingSettings,
    compare,
    evaluate,
    train,
    training,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="data are TensorFlow's"
)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=1, batch_size=6)
CLASSES = ("ash", "birch")


def photos(path, seed=0, files=6):
    """Writes a folder of noise whose files are all of one size."""
    rng = np.random.default_rng(seed)
    for part in ("train", "test"):
        for name in CLASSES:
            for number in range(files):
                image = rng.integers(0, 256, (8, 8, 3), "uint8")
                file = f"{path}/{part}/{name}/{number}.bmp"
                header = b"BM" + np.array([246, 0, 54, 40, 8, 8], "<u4").tobytes()
                header += np.array([1, 24], "<u2").tobytes() + bytes(24)
                tf.io.write_file(file, header + image.tobytes())
    return path


@pytest.fixture(scope="module")
def of_photos(stand_ins, eager_trainers, tmp_path_factory):
    """Returns a folder with images and a run of them."""
    folder = tmp_path_factory.mktemp("identity")
    images = DataSettings(data=str(photos(folder / "a" / "photos")), image_size=8)
    train(Baseline(), folder / "run", TRAINING, images, verbose=0)
    return folder


@pytest.fixture
def place(of_photos, tmp_path):
    """Returns a copy of that folder, which the run does not know of."""
    shutil.copytree(of_photos / "a", tmp_path / "a")
    shutil.copytree(of_photos / "run", tmp_path / "run")
    return tmp_path


def at(path):
    return DataSettings(data=str(path), image_size=8)


def swap(folder):
    (folder / "ash").rename(folder / "x")
    (folder / "birch").rename(folder / "ash")
    (folder / "x").rename(folder / "birch")


def edited(run, **changes):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | changes))


def test_data_that_moved_are_the_same(place):
    (place / "a" / "photos").rename(place / "elsewhere")
    arguments = Baseline(), place / "run", TRAINING
    assert training.finished_run(*arguments, at(place / "elsewhere"))
    swap(place / "elsewhere" / "train")
    assert not training.finished_run(*arguments, at(place / "elsewhere"))


@pytest.mark.parametrize("what", ["moved", "swapped", "replaced", "renamed"])
def test_a_run_goes_on_with_its_images(what, place, monkeypatch):
    images, run = place / "a" / "photos", place / "run"
    edited(run, status="running", data=dataclasses.asdict(at(images)))
    (run / "snapshots").mkdir()
    (run / "snapshots" / f"epoch-00000-step-0000001-{'0' * 16}.npz").touch()
    monkeypatch.setattr(training, "_fit", lambda job, run, *others: run)
    monkeypatch.setattr(training, "list_snapshots", lambda folder: ["one"])

    def go_on(path):
        execution = ExecutionSettings(resume=True)
        return train(Baseline(), run, TRAINING, at(path), execution, verbose=0)

    assert go_on(images).record["status"] == "running"
    if what == "moved":
        shutil.move(images, place / "elsewhere")
        found = go_on(place / "elsewhere")
        assert found.record["data"]["data"] == str(place / "elsewhere")
        return
    if what == "swapped":
        swap(images / "train")
    elif what == "replaced":
        photos(images, seed=1)
    else:
        (images / "train" / "ash" / "0.bmp").rename(images / "train" / "ash" / "9.bmp")
    with pytest.raises(ValueError, match="Expected the images of the run .* other fin"):
        go_on(images)


def test_evaluation_on_other_images_is_told(place, recwarn):
    known = Run.open(place / "run").record["last"]["val_accuracy"]
    moved = shutil.copytree(place / "a", place / "b") / "photos"
    results = evaluate(place / "run", data=str(moved), verbose=0)
    assert results["accuracy"] == pytest.approx(known)
    assert not [w for w in recwarn if "other images" in str(w.message)]
    photos(moved, seed=1)
    with pytest.warns(UserWarning, match=f"'{moved}' has other images to measure on"):
        evaluate(place / "run", data=str(moved), verbose=0)


def test_a_report_averages_runs_of_the_same_images(place):
    second = shutil.copytree(place / "run", place / "second")
    settings = dataclasses.asdict(TRAINING)
    elsewhere = dataclasses.asdict(at("/elsewhere/pictures"))
    edited(second, training={**settings, "seed": 1}, data=elsewhere)
    ((method,),) = (c.methods for c in compare([place / "run", second]).comparisons)
    assert list(method.runs) == [0, 1]
    fingerprint = Run.open(second).record["fingerprint"]
    edited(second, fingerprint={**fingerprint, "train": "0123456789"})
    (comparison,) = compare([place / "run", second]).comparisons
    assert [len(method.runs) for method in comparison.methods] == [1, 1]
    assert "training data 012345" in comparison.methods[1].name
    photographs = dataclasses.asdict(at("/b/photos"))
    edited(second, fingerprint={**fingerprint, "test": "012345"}, data=photographs)
    first, second = compare([place / "run", second]).comparisons
    assert "photos" in first.title and first.title != second.title
    assert "±" not in compare([place / "run", place / "second"]).markdown()


@pytest.mark.parametrize("layout", ["test", "."])
def test_a_folder_of_test_images_alone(layout, place):
    known = Run.open(place / "run").record["last"]["val_accuracy"]
    shutil.copytree(place / "a" / "photos" / "test", place / "alone" / layout)
    results = evaluate(place / "run", data=str(place / "alone"), verbose=0)
    assert results["accuracy"] == pytest.approx(known)
    (place / "alone" / layout / "ash").rename(place / "alone" / layout / "elm")
    with pytest.raises(ValueError, match=r"among the training classes .*\['elm'\]"):
        evaluate(place / "run", data=str(place / "alone"), verbose=0)


# Training images among the test images.


def read(folder, **options):
    return data.image_folder(folder, image_size=8, batch_size=2, **options)


def test_no_image_of_two_parts_is_the_same(tmp_path):
    assert shared(*read(photos(tmp_path))) == (0, None, None)


def test_images_of_both_parts_are_found(tmp_path, monkeypatch):
    photos(tmp_path)
    copied = shutil.copy(tmp_path / "train/ash/3.bmp", tmp_path / "test/birch/x.bmp")
    (tmp_path / "test" / "ash" / "0.bmp").unlink()
    (tmp_path / "test" / "ash" / "0.bmp").symlink_to(tmp_path / "train/birch/1.bmp")
    found = shared(*read(tmp_path))
    assert (found.count, found.seconds) == (2, None)
    found = shared(*read(tmp_path, limit=12), seconds=0.0)
    assert found == (0, None, 0.0)
    shutil.rmtree(tmp_path / "test" / "ash")
    found = shared(*read(tmp_path))
    assert found.example == (str(copied), str(tmp_path / "train/ash/3.bmp"))


def test_a_training_says_how_many(of_photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "_fit", lambda job, run, *others: run)
    images = shutil.copytree(of_photos / "a" / "photos", tmp_path / "photos")
    shutil.rmtree(images / "test")
    (images / "test").symlink_to(images / "train")
    train(Baseline(), tmp_path / "run", TRAINING, at(images), verbose=0)
    said = capsys.readouterr().out
    assert "Warning: 12 of 12 test images are training images, too: '" in said
