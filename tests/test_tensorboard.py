"""What TensorBoard is told of a run, and what becomes of it when one goes on."""

import dataclasses
import os

import keras
import matplotlib.axes
import matplotlib.figure
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugins.hparams import plugin_data_pb2

from keras_hsakd.drawings import confusion
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    ExecutionSettings,
    Teacher,
    TrainingSettings,
    pictures,
    tensorboard,
    train,
)
from keras_hsakd.runs.pictures import draw
from keras_hsakd.runs.tensorboard import forget, hyperparameters

DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=2, limit=40)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=3, batch_size=10)

pytestmark = pytest.mark.usefixtures("stand_ins", "eager_trainers")
rng = np.random.default_rng(0)


def events(folder):
    """Returns (step, tag, value) of all that was written in a folder, in order."""
    found = []
    for name in sorted(os.listdir(folder)):
        for record in tf.data.TFRecordDataset(os.path.join(folder, name)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found += [(event.step, value.tag, value) for value in event.summary.value]
    return found


def steps(folder):
    """Returns the steps of each tag."""
    found = {}
    for step, tag, _ in events(folder):
        found.setdefault(tag, []).append(step)
    return found


def test_terms_heads_settings_and_pictures_of_a_run(tmp_path):
    execution = ExecutionSettings(tensorboard_images=2)
    kind = Teacher(head_metrics=True)
    run = train(kind, tmp_path / "run", TRAINING, DIGITS, execution, verbose=0)
    each, second = [0, 1, 2], [1]
    training = steps(run.tensorboard("train"))
    assert training.keys() == {
        *("loss", "accuracy"),
        *("terms/ce_loss", "terms/ce_aux_1", "terms/ce_aux_2", "terms/ce_aux_3"),
        *(f"heads/aux_{n}_{kind}_accuracy" for n in "123" for kind in KINDS),
        *("training/learning_rate", "training/images_per_second"),
    }
    assert all(of_tag == each for of_tag in training.values())
    validation = steps(run.tensorboard("validation"))
    assert validation == {
        **dict.fromkeys(("loss", "accuracy"), each),
        **{f"heads/aux_{n}_{kind}_accuracy": each for n in "123" for kind in KINDS},
        "_hparams_/session_start_info": [0],
        **dict.fromkeys(
            ("views", "confusion/classes", "confusion/joint labels, last head"), second
        ),
    }
    values = {tag: value for _, tag, value in events(run.tensorboard("validation"))}
    accuracy = float(tf.make_ndarray(values["accuracy"].tensor))
    assert accuracy == pytest.approx(run.record["last"]["val_accuracy"])
    started = plugin_data_pb2.HParamsPluginData.FromString(
        values["_hparams_/session_start_info"].metadata.plugin_data.content
    ).session_start_info
    assert started.group_name.startswith(f"run in {tmp_path.parent.name}/")
    settings = started.hparams
    assert settings["kind"].string_value == "teacher"
    assert settings["head_metrics"].bool_value is True
    assert settings["batch_size"].number_value == 10
    # Width, height, and the pictures.
    width, height, *shown = tf.make_ndarray(values["views"].tensor)
    assert len(shown) == 8
    picture = tf.io.decode_png(shown[0])
    assert picture.shape == (int(height), int(width), 3)

    # The training is the one that it would have been without.
    without = train(kind, tmp_path / "without", TRAINING, DIGITS, verbose=0)
    assert without.weights_digest() == run.weights_digest()
    assert "views" not in steps(without.tensorboard("validation"))


KINDS = ("joint", "class")


class StoppedError(Exception):
    """Stands for whatever ends a training."""


@pytest.mark.parametrize(
    "event",
    ["on_train_batch_end", pytest.param("on_epoch_end", marks=pytest.mark.slow)],
)
def test_a_run_that_goes_on_has_no_point_twice(tmp_path, monkeypatch, event):
    execution = ExecutionSettings(resume=True, snapshot_steps=1, tensorboard_images=1)
    settings = dataclasses.replace(TRAINING, batch_size=20)

    def go():
        return train(
            Baseline(), tmp_path / "run", settings, DIGITS, execution, False, 0
        )

    with monkeypatch.context() as patch:
        at = iter(range(2))
        original = getattr(tensorboard.TensorBoard, event)

        def stop(self, *arguments, **options):
            original(self, *arguments, **options)
            if next(at, None) is None:
                # After it was written, and before the snapshot of it.
                raise StoppedError

        patch.setattr(tensorboard.TensorBoard, event, stop)
        with pytest.raises(StoppedError):
            go()
    before = len(os.listdir(tmp_path / "run" / "tensorboard" / "train"))
    run = go()
    assert len(os.listdir(run.tensorboard("train"))) > before
    for part in ("train", "validation"):
        written = steps(run.tensorboard(part))
        assert {"accuracy", "loss"} <= set(written)
        for tag, of_tag in written.items():
            expected = [0] if tag.startswith("_hparams_") else [0, 1, 2]
            assert of_tag == expected, tag


def test_a_record_that_was_half_written_is_dropped(tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for step in range(4):
            tf.summary.scalar("loss", 1.0, step=step)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    forget(tmp_path, step=2)
    assert steps(tmp_path) == {"loss": [0, 1]}
    assert list(tmp_path.iterdir()) == [path]
    content = path.read_bytes()
    forget(tmp_path, step=2)
    assert path.read_bytes() == content
    forget(tmp_path / "none", step=2)


def test_hyperparameters_are_settings_without_folders():
    record = {
        "kind": "distill",
        "options": {"temperature": 3.0, "method_settings": {}, "sampled_views": None},
        "data": {"data": "/home/someone/photos", "validation": False},
        "training": {"model": "resnet8", "milestones": [0.5, 0.75]},
        "origin": {"run": "/home/someone/teacher", "model": "resnet20"},
    }
    assert hyperparameters(record) == {
        "kind": "distill",
        "origin": "resnet20",
        "temperature": 3.0,
        "data": "photos",
        "validation": False,
        "model": "resnet8",
        "milestones": "[0.5, 0.75]",
    }


def test_pictures_are_asked_for_by_epochs():
    with pytest.raises(ValueError, match="`--tensorboard-images` to be at least 1"):
        ExecutionSettings(tensorboard_images=0)


def test_a_confusion_matrix_is_dark_where_predictions_are():
    matrix = np.diag([5, 3, 0, 2]) + 5 * np.eye(4, k=1, dtype=int)
    figure = matplotlib.figure.Figure()
    confusion(figure, matrix, ["ant", "a bee of the northern kind"])
    axes, _ = figure.axes
    (image,) = axes.images
    parts = matrix / matrix.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(image.get_array(), parts)
    # Two rows a class, whose name is at the middle.
    assert image.get_extent() == [0, 2, 2, 0]
    names = {"ant": 0.5, "a bee of the …": 1.5}
    for labels, place in ((axes.get_xticklabels(), 0), (axes.get_yticklabels(), 1)):
        assert {of.get_text(): of.get_position()[place] for of in labels} == names
    many = matplotlib.figure.Figure()
    confusion(many, np.zeros((60, 60), int), [str(n) for n in range(60)])
    assert not {"7", "13"} & {t.get_text() for t in many.axes[0].get_xticklabels()}


def test_a_picture_says_what_class_logits_and_heads_say(tiny_network, monkeypatch):
    network = tiny_network(num_classes=3)
    images = rng.integers(0, 256, (9, 8, 8, 3)).astype("float32")
    labels = np.array([2, 2, 0, 1, 0, 1, 2, 0, 1])
    test = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    written, matrices = [], []

    def write(axes, x, y, text, color, **_):
        written.append((text, color))

    def keep(figure, matrix, class_names):
        matrices.append(matrix)

    monkeypatch.setattr(matplotlib.axes.Axes, "text", write)
    monkeypatch.setattr(pictures, "confusion", keep)
    names = ["ant", "bee", "cat"]
    drawn = draw(network, test, "rotations", names)
    assert len(drawn.views) == 3
    # The first image of each class, in the order that they come in.
    firsts = [0, 2, 3]
    text = iter(written)
    right, wrong = pictures._RIGHT, pictures._WRONG
    for index in firsts:
        label = labels[index]
        said = [next(text)[0] for _ in range(4)]
        assert said == [names[label], "logits", "aux_1", "aux_2"]
        for turns, caption in enumerate(("0°", "90°", "180°", "270°")):
            assert next(text)[0] == caption
            outputs = network(np.rot90(images[index : index + 1], turns, axes=(1, 2)))
            found = int(np.argmax(outputs["logits"]))
            assert next(text) == (names[found], right if found == label else wrong)
            next(text)
            for head in ("aux_1", "aux_2"):
                found = int(np.argmax(outputs[head]))
                color = right if found == 4 * label + turns else wrong
                expected = f"{90 * (found % 4)}° {names[found // 4]}"
                assert next(text) == (expected, color)
                highest = float(keras.ops.softmax(outputs[head]).numpy().max())
                percent = int(next(text)[0].removesuffix(" %"))
                assert percent == pytest.approx(100 * highest, abs=0.6)
    classes, joint = matrices
    found = np.argmax(network(images)["logits"], axis=1)
    expected = np.zeros((3, 3))
    np.add.at(expected, (labels, found), 1)
    np.testing.assert_array_equal(classes, expected)
    expected = np.zeros((12, 12))
    for turns in range(4):
        turned = network(np.rot90(images, turns, axes=(1, 2)))["aux_2"]
        np.add.at(expected, (4 * labels + turns, np.argmax(turned, axis=1)), 1)
    np.testing.assert_array_equal(joint, expected)

    plain = draw(keras.Model(network.input, network.output["logits"]), test, "", names)
    assert plain.joint is None
    assert len(plain.views) == 3


def test_a_picture_is_as_wide_as_its_views(tiny_network):
    network = tiny_network(num_views=2)
    images = np.full((3, 8, 8, 3), [0.0, 128.0, 255.0], "float32")
    test = [(images, np.array([0, 1, 2]))]
    files = draw(network, test, "half_turns", ["a" * 50, "b", "c"]).views
    views = [tf.io.decode_png(file, 3).numpy() for file in files]
    assert len({picture.shape for picture in views}) == 1
    assert views[0].shape[1] == 56 + 2 * 120
    for left in (56, 56 + 120):
        assert views[0][40, left + 40].tolist() == [0, 128, 255]
