import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import data
from keras_hsakd.runs import (
    DataSettings,
    Distill,
    Teacher,
    TrainingSettings,
    evaluate,
    train,
)
from keras_hsakd.runs.images import absolute, load
from keras_hsakd.runs.kinds import KINDS


def write(folder, **values):
    """Writes images of one value each, by their paths with `__` between the parts."""
    for path, value in values.items():
        image = tf.constant(np.full((9 + value % 3, 8, 3), value, "uint8"))
        name = f"{folder}/{path.replace('__', '/')}.png"
        tf.io.write_file(name, tf.io.encode_png(image))
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of two classes, of values below 100."""
    parts = {"train": 4, "test": 1}
    return write(
        tmp_path / "photos",
        **{
            f"{part}__{name}__{i}": 10 * label + i + 1
            for part, count in parts.items()
            for label, name in enumerate(("cat", "dog"))
            for i in range(count)
        },
    )


@pytest.fixture
def others(tmp_path):
    """Returns a folder of images without labels, at several depths."""
    return write(tmp_path / "others", a=100, b__c=101, b__d__e=102, train__cat__0=103)


def labels_by_value(dataset):
    """Returns the label of each image of a data set of 0 to 255 by its value."""
    return {
        int(image.max()): int(label)
        for images, labels in dataset
        for image, label in zip(images.numpy(), labels.numpy(), strict=True)
    }


UNLABELLED = dict.fromkeys((100, 101, 102, 103), -1)
OPTIONS = {"image_size": 8, "normalize": False, "batch_size": 4, "stream": True}


@pytest.mark.parametrize(
    "options, labelled", [({"stream": False}, 8), ({"limit": 3}, 3)]
)
def test_images_of_a_folder_join_the_labelled_ones(folder, others, options, labelled):
    options = OPTIONS | options
    train, test = data.image_folder(folder, unlabeled=others, **options)
    found = labels_by_value(train)
    assert found.items() >= UNLABELLED.items()
    assert len(found) == train.num_examples == labelled + 4
    assert all(label == value // 10 for value, label in found.items() if value < 100)
    assert (train.num_unlabeled, test.num_unlabeled) == (4, 0)
    assert not {-1} & set(labels_by_value(test).values())
    alone, _ = data.image_folder(folder, **options)
    assert labels_by_value(alone).items() < found.items()
    assert alone.num_unlabeled == 0


@pytest.mark.parametrize("few", [{"examples_per_class": 1}, {"label_fraction": 0.5}])
def test_the_rest_of_the_training_images(folder, few):
    labelled, _ = data.image_folder(folder, **few, **OPTIONS)
    train, test = data.image_folder(folder, unlabeled="rest", **few, **OPTIONS)
    found, kept = labels_by_value(train), labels_by_value(labelled)
    assert found == dict.fromkeys(found, -1) | kept
    assert (len(found), train.num_unlabeled) == (8, 8 - len(kept))
    assert test.num_unlabeled == 0
    with pytest.raises(ValueError, match="`label_fraction` with unlabeled='rest'"):
        data.image_folder(folder, unlabeled="rest", **OPTIONS)


def test_the_rest_of_images_in_memory():
    few = {"examples_per_class": 3, "validation": True, "seed": 2}
    train, _ = data.load("digits", unlabeled="rest", **few, **OPTIONS)
    everything, _ = data.load("digits", validation=True, **OPTIONS)
    assert (train.num_examples, train.num_unlabeled) == (
        everything.num_examples,
        everything.num_examples - 30,
    )
    labels = [dataset.labels for dataset in (train, everything)]
    assert np.bincount(labels[0] + 1)[1:].tolist() == [3] * 10
    assert np.all((labels[0] == labels[1]) | (labels[0] == -1))
    with pytest.raises(ValueError, match="a folder for `tfds:`"):
        data.load("tfds:mnist", unlabeled="rest", data_dir="/nowhere")


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_they_join_images_in_memory(others, crop):
    train, test = data.load(
        "digits", unlabeled=others, examples_per_class=2, crop=crop, **OPTIONS
    )
    labels = np.concatenate([labels for _, labels in train])
    assert np.bincount(labels + 1).tolist() == [4] + [2] * 10
    assert (train.num_examples, train.num_unlabeled) == (24, 4)
    assert test.num_unlabeled == 0
    assert train.element_spec[0].shape[1:] == (8, 8, 3)


def test_a_corrupt_one_is_named_or_left_out(folder, others, tmp_path):
    broken = tmp_path / "others" / "b" / "broken.png"
    broken.write_text("no image")
    with pytest.raises(ValueError, match="broken.png"):
        data.load("digits", unlabeled=others, **OPTIONS)
    with pytest.warns(UserWarning, match="Skipped 1 of 5 .*broken.png"):
        train, _ = data.image_folder(
            folder, unlabeled=others, corrupt="skip", **OPTIONS
        )
    assert train.skipped == [str(broken)]
    assert train.num_unlabeled == 4
    options = {"corrupt": "unchecked", "skip": train.skipped}
    again, _ = data.image_folder(folder, unlabeled=others, **options, **OPTIONS)
    assert (again.num_unlabeled, again.skipped) == (4, train.skipped)


def test_a_folder_without_images(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="`unlabeled` to be an existing folder"):
        data.image_folder(folder, unlabeled=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`unlabeled` to have images.*empty"):
        data.load("digits", unlabeled=tmp_path / "empty")


def test_only_a_student_with_a_teacher_takes_them(others):
    settings = DataSettings(data="digits", unlabeled=others)
    taking = {name for name, kind in KINDS.items() if "unlabeled" not in kind.fixed}
    assert taking == {"distill"}
    with pytest.raises(ValueError, match="`unlabeled` for `distill` alone.*`teacher`"):
        Teacher().data_settings(settings, None)
    assert "unlabeled" not in Distill.fixed


def test_a_student_learns_from_them(others, tmp_path, stand_ins_once):
    training = TrainingSettings(model="resnet8", epochs=1, batch_size=6)
    digits = DataSettings(data="digits", image_size=8, limit=8)
    train(Teacher(), tmp_path / "teacher", training, digits, verbose=0)
    kind = Distill(teacher=str(tmp_path / "teacher"))
    run = train(kind, tmp_path / "student", training, {"unlabeled": others}, verbose=0)
    assert (run.record["images"]["train"], run.record["images"]["unlabeled"]) == (12, 4)
    assert run.record["data"]["unlabeled"] == others
    # They are for training alone.
    shutil.rmtree(others)
    accuracy = evaluate(tmp_path / "student", verbose=0)["accuracy"]
    assert accuracy == run.record["last"]["val_accuracy"]


def test_a_run_goes_on_with_the_same_ones(others, tmp_path, monkeypatch):
    (tmp_path / "others" / "broken.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    settings = absolute(
        DataSettings(data="digits", unlabeled="others", corrupt="skip", image_size=8)
    )
    assert settings.unlabeled == others
    with pytest.warns(UserWarning, match="broken.png"):
        record = load(settings, 8, 0).record()
    assert record["unlabeled"] == 4
    again = load(settings, 8, 0, checked=record)
    assert again.record() == record
    with pytest.raises(ValueError, match="Expected no `corrupt` for a named data set"):
        load(dataclasses.replace(settings, unlabeled=None), 8, 0)
