import csv
import dataclasses
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_hsakd.settings import DataSettings, ExecutionSettings, TrainingSettings

from keras_hsakd import experiments, plots
from keras_hsakd.runs import Run

DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=5)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=2, batch_size=25)
FILES = ["best.keras", "curves.png", "last.keras", "log.csv", "run.json", "tensorboard"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a folder with a run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    experiments.train_teacher(
        folder / "teacher", DIGITS, TRAINING, head_metrics=True, verbose=0
    )
    experiments.train_baseline(folder / "baseline", DIGITS, TRAINING, verbose=0)
    experiments.distill(folder / "student", folder / "teacher", TRAINING, verbose=0)
    return folder


def make_folder(path, classes, size=8):
    """Writes a folder of flat images, two for training and one to test each class."""
    for index, name in enumerate(classes):
        for part in ("train/{}/1", "train/{}/2", "test/{}/1"):
            image = np.full((size, size, 3), 25 * index, "uint8")
            file = f"{path}/{part.format(name)}.png"
            tf.io.write_file(file, tf.io.encode_png(image))
    return str(path)


def logged(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder):
    """Returns the values by tag of all event files in a folder."""
    values = {}
    for file in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                scalar = float(tf.make_ndarray(value.tensor))
                values.setdefault(value.tag, []).append(scalar)
    return values


TERMS = {
    "teacher": {"ce_loss", "ce_aux_1", "ce_aux_2", "ce_aux_3"},
    "baseline": set(),
    "student": {"ce_loss", "kl_main", "kl_aux_1", "kl_aux_2", "kl_aux_3"},
}


@pytest.mark.parametrize("name", TERMS)
def test_a_run_folder_has_all_that_was_measured(runs, name):
    run = runs / name
    assert sorted(os.listdir(run)) == FILES
    rows = logged(run)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    measured = {"accuracy", "loss", "val_accuracy", "val_loss"}
    measured |= TERMS[name] | {"learning_rate", "images_per_second"}
    assert measured <= set(rows[0])
    record = Run.open(run).record
    assert record["status"] == "finished"
    assert record["epochs_done"] == record["last"]["epoch"] == 2
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert record["last"]["val_accuracy"] == pytest.approx(accuracies[-1])
    assert record["best"]["val_accuracy"] == pytest.approx(max(accuracies))
    assert record["images"]["train"] == 50
    assert record["versions"]["keras"] == keras.__version__

    written = scalars(run / "tensorboard" / "train")
    for tag in measured:
        if not tag.startswith("val_"):
            assert len(written[f"epoch_{tag}"]) == 2
    validation = scalars(run / "tensorboard" / "validation")
    np.testing.assert_allclose(validation["epoch_accuracy"], accuracies, rtol=1e-6)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_heads_are_reported_where_asked_for(runs):
    assert "val_aux_3_class_accuracy" in logged(runs / "teacher")[0]
    assert "val_aux_3_class_accuracy" not in logged(runs / "student")[0]


@pytest.mark.parametrize("name", TERMS)
def test_evaluate_gives_the_logged_result(runs, name):
    results = experiments.evaluate(runs / name, verbose=0)
    last = Run.open(runs / name).record["last"]
    assert results["accuracy"] == pytest.approx(last["val_accuracy"], abs=1e-6)
    assert results["loss"] == pytest.approx(last["val_loss"], rel=1e-5)


def test_evaluate_the_best_on_validation_images_with_heads(runs):
    run = runs / "student"
    results = experiments.evaluate(run, "best", heads=True, verbose=0, validation=True)
    # A fifth of each class of the training digits is 199 images; there are 798 to test.
    right = 199 * results["accuracy"]
    assert right == pytest.approx(round(right), abs=1e-4)
    assert 0 <= results["aux_3_joint_accuracy"] <= results["aux_3_class_accuracy"] <= 1


def test_export(runs, tmp_path):
    path = experiments.export_run(runs / "student", tmp_path / "serving" / "1")
    serve = tf.saved_model.load(path).signatures["serving_default"]
    raw = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), "uint8")
    logits = serve(images=tf.constant(raw))["logits"]
    mean, std = 0.3071, 0.3241
    network = Run.open(runs / "student").network()
    expected = network((raw / 255 - mean) / std)["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_student_is_distilled_from_the_run_and_leaves_it_alone(runs):
    record = Run.open(runs / "student").record
    teacher = Run.open(runs / "teacher").record
    assert record["teacher"]["run"] == str(runs / "teacher")
    assert record["teacher"]["epoch"] == 2
    assert record["teacher"]["val_accuracy"] == teacher["last"]["val_accuracy"]
    assert record["images"] == teacher["images"]
    assert record["temperature"] == 3


def test_a_run_can_be_repeated_bit_for_bit(runs, tmp_path):
    run = Run.open(runs / "baseline")
    again = experiments.train_baseline(
        tmp_path / "again", run.data_settings(), run.training_settings(), verbose=0
    )
    for a, b in zip(
        again.network().get_weights(), run.network().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision_is_the_networks_alone(tmp_path):
    training = dataclasses.replace(TRAINING, epochs=1, precision="mixed_bfloat16")
    run = experiments.train_baseline(tmp_path / "run", DIGITS, training, verbose=0)
    assert keras.config.dtype_policy().name == "float32"
    policies = {layer.dtype_policy.name for layer in run.network().layers}
    assert "mixed_bfloat16" in policies


def test_a_folder_of_images_from_teacher_to_student(tmp_path, monkeypatch):
    make_folder(tmp_path / "data", ["cat", "dog"])
    monkeypatch.chdir(tmp_path)
    images = DataSettings(
        data="data", image_size=8, flip=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)
    )
    training = dataclasses.replace(TRAINING, epochs=1)
    run = experiments.train_teacher("teacher", images, training, verbose=0)
    assert run.record["data"]["data"] == str(tmp_path / "data")
    assert run.class_names == ["cat", "dog"]
    run = experiments.distill("student", "teacher", training, verbose=0)
    layer = run.preprocessing()
    np.testing.assert_allclose(
        layer(np.full((1, 1, 1, 3), 255.0)), [[[[2.5, 3, 7]]]], rtol=1e-5
    )

    # The same classes elsewhere are fed as the teacher knows them.
    make_folder(tmp_path / "moved", ["cat", "dog"])
    results = experiments.evaluate("student", data="moved", verbose=0)
    assert results["loss"] == pytest.approx(run.record["last"]["val_loss"], rel=1e-5)

    other = make_folder(tmp_path / "other", ["cat", "cow", "dog"])
    with pytest.raises(ValueError, match="2 classes of `teacher`.* 3 classes.*'cow'"):
        experiments.distill("x", "teacher", training, data=other, verbose=0)
    with pytest.raises(ValueError, match=r"normalised with std=\(0.2, 0.2, 0.1\)"):
        experiments.evaluate("student", std=(1.0, 1.0, 1.0), verbose=0)
    assert not (tmp_path / "x").exists()


def test_a_teacher_of_another_class_count(runs, tmp_path):
    data = make_folder(tmp_path / "data", ["cat", "dog"])
    with pytest.raises(ValueError, match="10 classes of `teacher`.* 2 classes"):
        experiments.distill(
            tmp_path / "x",
            runs / "teacher",
            TRAINING,
            data=data,
            examples_per_class=None,
            verbose=0,
        )
    assert not (tmp_path / "x").exists()


def test_what_is_no_teacher(runs, tmp_path):
    for teacher, error, message in (
        (runs / "baseline", ValueError, "with auxiliary heads.*a baseline run of wrn"),
        (runs, FileNotFoundError, "which has no run.json"),
        (runs / "nothing", FileNotFoundError, "which is not a folder"),
    ):
        with pytest.raises(error, match=message):
            experiments.distill(tmp_path / "x", teacher, TRAINING, verbose=0)
    with pytest.raises(FileExistsError, match="another folder than `teacher`"):
        experiments.distill(
            runs / "teacher", runs / "teacher", TRAINING, overwrite=True, verbose=0
        )
    with pytest.raises(ValueError, match="for `heads`.*a baseline run"):
        experiments.evaluate(runs / "baseline", heads=True, verbose=0)


@pytest.mark.parametrize(
    ("images", "training", "error", "message"),
    [
        ({"data": "nowhere"}, {}, FileNotFoundError, "`data` to be one of.*'nowhere'"),
        ({"flip": True}, {}, ValueError, "Expected no `flip` for a named data set"),
        ({}, {"model": "resnet9"}, ValueError, "did you mean 'resnet8'"),
        ({}, {"milestones": (2,)}, ValueError, "Expected `milestones`"),
        ({"examples_per_class": 1000}, {}, ValueError, "`examples_per_class`"),
    ],
)
def test_a_setting_that_does_not_suit_leaves_no_folder(
    images, training, error, message, tmp_path
):
    images = dataclasses.replace(DIGITS, **images)
    training = dataclasses.replace(TRAINING, **training)
    for train in (experiments.train_teacher, experiments.train_baseline):
        with pytest.raises(error, match=message):
            train(tmp_path / "x", images, training, verbose=0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}],
)
def test_training_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=f"Expected `{next(iter(wrong))}` to be"):
        TrainingSettings(model="resnet8", **wrong)


def test_data_dir_is_for_named_data_sets(tmp_path):
    images = DataSettings(data=make_folder(tmp_path, ["a", "b"]), data_dir="x")
    with pytest.raises(ValueError, match="Expected no `data_dir` for a folder"):
        experiments.train_baseline(tmp_path / "run", images, TRAINING)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
@pytest.mark.parametrize("place", ["on_train_begin", "on_train_batch_end", "save"])
def test_a_training_that_is_cut_off_leaves_a_readable_run(
    error, place, tmp_path, monkeypatch
):
    def cut_off(*arguments, **keywords):
        raise error

    if place == "save":
        save = keras.Model.save

        def save_half_of_the_second(network, path):
            if os.path.exists(tmp_path / "run" / "last.keras"):
                with open(path, "w") as file:
                    file.write("half")
                cut_off()
            save(network, path)

        monkeypatch.setattr(keras.Model, "save", save_half_of_the_second)
    else:
        monkeypatch.setattr(experiments.Throughput, place, cut_off)
    kind = type(error) if isinstance(error, Exception) else error
    with pytest.raises(kind):
        experiments.train_baseline(tmp_path / "run", DIGITS, TRAINING, verbose=0)

    run = Run.open(tmp_path / "run")
    interrupted = error is KeyboardInterrupt
    assert run.record["status"] == ("interrupted" if interrupted else "failed")
    assert interrupted or "disk full" in run.record["error"]
    assert not [name for name in os.listdir(run.path) if name.startswith(".partial")]
    if place == "save":
        assert run.record["epochs_done"] == 1
        assert experiments.evaluate(run.path, verbose=0)["accuracy"] >= 0
        assert os.path.exists(tmp_path / "run" / "curves.png")
        monkeypatch.setattr(keras.Model, "save", save)
    else:
        with pytest.raises(FileNotFoundError, match="a run with a finished epoch"):
            experiments.evaluate(run.path)
    if place == "on_train_begin":
        monkeypatch.undo()

        # The next start says what is there, and may replace it.
        with pytest.raises(FileExistsError, match="holds a baseline run of wrn_10_1, "):
            experiments.train_baseline(run.path, DIGITS, TRAINING, verbose=0)
        (tmp_path / "run" / "notes.txt").write_text("mine")
        run = experiments.train_baseline(
            run.path, DIGITS, TRAINING, overwrite=True, verbose=0
        )
        assert run.record["status"] == "finished"
        assert sorted(os.listdir(run.path)) == sorted([*FILES, "notes.txt"])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    training = dataclasses.replace(TRAINING, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="Received: loss="):
        experiments.train_baseline(tmp_path / "run", DIGITS, training, verbose=0)
    assert "FloatingPointError" in Run.open(tmp_path / "run").record["error"]


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch, capsys):
    def missing():
        raise ImportError("Pictures need matplotlib")

    monkeypatch.setattr(plots, "pyplot", missing)
    training = dataclasses.replace(TRAINING, epochs=1)
    experiments.train_baseline(tmp_path / "run", DIGITS, training, verbose=0)
    assert "No curves.png: Pictures need matplotlib" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "run")) == [
        name for name in FILES if name != "curves.png"
    ]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"kind": "teacher"}', '{"kind": "x", "training": 1}']
)
def test_a_damaged_record_is_reported_and_never_replaced(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="Expected .*run.json' to"):
        Run.open(tmp_path)
    with pytest.raises(FileExistsError, match="damaged run.json"):
        experiments.train_baseline(tmp_path, DIGITS, TRAINING, overwrite=True)
    assert (tmp_path / "run.json").read_text() == content


def test_a_damaged_network_is_reported(runs, tmp_path):
    record = json.loads((runs / "baseline" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record))
    whole = (runs / "baseline" / "last.keras").read_bytes()
    (tmp_path / "last.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="last.keras' to be a whole Keras file"):
        experiments.evaluate(tmp_path)


def test_a_stopped_run_goes_on(runs, tmp_path, monkeypatch, capsys):
    class StoppedError(Exception):
        pass

    steps = iter(range(3))

    def stop(*arguments):
        if next(steps, None) is None:
            raise StoppedError

    def train(**changes):
        execution = ExecutionSettings(resume=True, snapshot_steps=1)
        training = dataclasses.replace(TRAINING, **changes)
        options = {"head_metrics": True, "execution": execution, "verbose": 0}
        return experiments.train_teacher(tmp_path / "run", DIGITS, training, **options)

    monkeypatch.setattr(keras.callbacks.TensorBoard, "on_train_batch_end", stop)
    with pytest.raises(StoppedError):
        train()
    monkeypatch.undo()
    assert Run.open(tmp_path / "run").record["status"] == "failed"
    left = tmp_path / "run" / ".partial-1-last.keras"
    left.write_text("of a process that was killed")
    with pytest.raises(ValueError, match="training {'seed': 0}. Received: {'seed': 1}"):
        train(seed=1)
    record = train().record
    assert "Going on after step 1 of epoch 2, from" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path / "run")) == FILES
    expected = Run.open(runs / "teacher")
    assert record["status"] == "finished" and "error" not in record

    def without_rate(results):
        return {k: v for k, v in results.items() if k != "images_per_second"}

    for name in ("last", "best"):
        assert without_rate(record[name]) == without_rate(expected.record[name])
    for a, b in zip(
        Run.open(tmp_path / "run").network().get_weights(),
        expected.network().get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert [without_rate(row) for row in logged(tmp_path / "run")] == [
        without_rate(row) for row in logged(runs / "teacher")
    ]
    # What has finished is left as it is.
    network = (tmp_path / "run" / "last.keras").read_bytes()
    assert train().record["status"] == "finished"
    assert (tmp_path / "run" / "last.keras").read_bytes() == network


def test_a_run_is_replaced_or_goes_on():
    with pytest.raises(ValueError, match="`overwrite` or `resume`, not both"):
        experiments.train_baseline(
            "run",
            DIGITS,
            TRAINING,
            overwrite=True,
            execution=ExecutionSettings(resume=True),
        )


def test_only_a_run_is_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="which is not a run folder"):
        experiments.train_baseline(tmp_path, DIGITS, TRAINING, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
