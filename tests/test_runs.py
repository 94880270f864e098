"""Run folders: what a training leaves behind, whatever happens to it."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import (
    Preempted,
    TeacherTrainer,
    cli,
    data,
    drawings,
    export,
    lock,
    models,
    strip_heads,
)
from keras_hsakd.data import keeping
from keras_hsakd.files import read_json, write_json
from keras_hsakd.heads import is_plain
from keras_hsakd.optimizers import SGD, step_decay
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    Distill,
    ExecutionSettings,
    Linear,
    Run,
    Teacher,
    TrainingSettings,
    evaluate,
    evaluation,
    export_run,
    folder,
    import_torch,
    tensorboard,
    train,
    training,
)
from keras_hsakd.runs.folder import differences
from keras_hsakd.runs.images import changed, load

DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=5, limit=200)
RESUME = ExecutionSettings(resume=True, snapshot_steps=1)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=2, batch_size=25)
RAW = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), "uint8")
FILES = ["best.keras", "curves.png", "last.keras", "log.csv", "run.json", "tensorboard"]


pytestmark = pytest.mark.usefixtures("stand_ins", "eager_trainers")


@pytest.fixture(scope="module")
def runs(stand_ins, eager_trainers, tmp_path_factory):
    """Returns a folder with a run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = Teacher(head_metrics=True)
    train(teacher, folder / "teacher", TRAINING, DIGITS, verbose=0)
    train(Baseline(), folder / "baseline", TRAINING, DIGITS, verbose=0)
    student = Distill(teacher=folder / "teacher")
    train(student, folder / "student", TRAINING, verbose=0)
    return folder


def train_baseline(output, data=DIGITS, settings=TRAINING, **options):
    return train(Baseline(), output, settings, data, verbose=0, **options)


def make_folder(path, classes, size=8):
    """Writes a folder of flat images, two for training and one to test each class."""
    for index, name in enumerate(classes):
        for part in ("train/{}/1", "train/{}/2", "test/{}/1"):
            image = np.full((size, size, 3), 25 * index, "uint8")
            file = f"{path}/{part.format(name)}.png"
            tf.io.write_file(file, tf.io.encode_png(image))
    return str(path)


def without_preprocessing(run, checkpoint="last"):
    """Returns the network with heads of a run, as one that takes normalised images."""
    network = models.create("wrn_10_1", len(run.class_names), (8, 8, 3))
    network.set_weights(run.network(checkpoint).get_weights())
    return network


def normalised(images, mean=0.3071, std=0.3241):
    """Returns images of 0 to 255 as those of digits are normalised."""
    return ((images / 255 - mean) / std).astype("float32")


def serve(path, images):
    """Returns what an exported network says of images."""
    signature = tf.saved_model.load(path).signatures["serving_default"]
    return signature(images=tf.constant(images))


def logged(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder):
    """Returns the values by name of all event files in a folder."""
    values = {}
    for file in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    scalar = float(tf.make_ndarray(value.tensor))
                    values.setdefault(value.tag.rpartition("/")[2], []).append(scalar)
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
    assert record["took"]["seconds_a_step"] > 0
    assert record["took"]["hours"] == pytest.approx(record["seconds"] / 3600, abs=1e-4)

    written = scalars(run / "tensorboard" / "train")
    for tag in measured:
        if not tag.startswith("val_"):
            assert len(written[tag]) == 2
    validation = scalars(run / "tensorboard" / "validation")
    np.testing.assert_allclose(validation["accuracy"], accuracies, rtol=1e-6)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_heads_are_reported_where_asked_for(runs):
    assert "val_aux_3_class_accuracy" in logged(runs / "teacher")[0]
    assert "val_aux_3_class_accuracy" not in logged(runs / "student")[0]


@pytest.mark.parametrize("name", TERMS)
def test_evaluate_gives_the_logged_result(runs, name):
    results = evaluate(runs / name, verbose=0)
    last = Run.open(runs / name).record["last"]
    assert results["accuracy"] == pytest.approx(last["val_accuracy"], abs=1e-6)
    assert results["loss"] == pytest.approx(last["val_loss"], rel=1e-5)


def test_evaluate_the_best_on_validation_images_with_heads(runs):
    run = runs / "student"
    results = evaluate(run, "best", heads=True, verbose=0, validation=True)
    # A fifth of each class of the training digits is 199 images; there are 798 to test.
    right = 199 * results["accuracy"]
    assert right == pytest.approx(round(right), abs=1e-4)
    assert 0 <= results["aux_3_joint_accuracy"] <= results["aux_3_class_accuracy"] <= 1


def test_export(runs, tmp_path):
    results = export_run(runs / "student", tmp_path / "serving")
    assert results["saved_model"].path == str(tmp_path / "serving" / "1")
    served = serve(results["saved_model"].path, RAW)
    run = Run.open(runs / "student")
    expected = without_preprocessing(run)(normalised(RAW))["logits"]
    np.testing.assert_allclose(served["logits"], expected, atol=1e-5)
    labels = [label.decode() for label in served["label"].numpy()]
    assert labels == [run.class_names[index] for index in served["class"]]


def test_export_measures_on_test_images(runs, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(export, "ship", lambda *args, trial, **kw: seen.append(trial))
    run, folder = runs / "student", tmp_path / "net"
    export_run(run, folder)
    export_run(run, folder, report=True)
    card = {"licence": "MIT", "data": "Digits."}
    others = {"teacher": runs / "teacher", "plain": runs / "baseline"}
    export_run(run, folder, max_drop=0.02, card=card, **others)
    none, trial, full = seen
    assert none is None
    # Not the training images, nor those that were held out.
    assert sum(len(labels) for _, labels in trial.batches()) == 200
    images, _ = next(trial.batches())
    _, (tested, _) = (next(iter(part)) for part in load_digits())
    np.testing.assert_array_equal(images, np.rint(tested))
    assert (trial.max_drop, trial.beside) == (None, {})
    assert trial.card["training"].startswith("A distill run of wrn_10_1, finished")
    assert trial.card["training"].endswith(" It started from a run of wrn_10_1.")
    assert trial.card["data"] == (
        "Trained on 50 labelled images of 'digits', 8 x 8 pixels, 10 classes."
    )
    assert full.card == {**card, "training": trial.card["training"]}
    assert full.max_drop == 0.02
    for name, path in others.items():
        served = full.beside[name].predict_on_batch(RAW)["logits"]
        expected = strip_heads(Run.open(path).network())(RAW.astype("float32"))
        np.testing.assert_allclose(served, expected, atol=1e-5)


def load_digits():
    """Returns the pipelines of the runs."""
    images = load(DIGITS, TRAINING.batch_size, TRAINING.seed)
    return images.train, images.test


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("class_names", list("abcdefghij"), "with the classes of .*, with .'a', 'b'"),
        ("image_size", 16, "with the image size of .* 8. .*, with 16"),
    ],
)
def test_other_runs_are_of_the_same_images(runs, tmp_path, name, value, message):
    shutil.copytree(runs / "baseline", tmp_path / "other")
    record = json.loads((tmp_path / "other" / "run.json").read_text())
    record["images"][name] = value
    (tmp_path / "other" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"`plain` to be a run {message}"):
        export_run(runs / "student", tmp_path / "net", plain=tmp_path / "other")
    assert not (tmp_path / "net").exists()


def test_export_checks_on_training_images_where_they_are(runs, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(export, "ship", lambda *args, images, **kw: seen.append(images))
    export_run(runs / "student", tmp_path / "net")
    (images,) = seen
    assert (images.dtype, images.shape) == ("uint8", (50, 8, 8, 3))
    assert images.max() > 200

    def missing(*args, **kwargs):
        raise FileNotFoundError("no images")

    monkeypatch.setattr(evaluation, "load", missing)
    with pytest.warns(UserWarning, match="Checked on random images.* no images"):
        export_run(runs / "student", tmp_path / "net")
    assert seen[1] is None


def test_the_temperature_is_fitted_on_held_out_images(runs, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        export, "ship", lambda *args, temperature, **kw: seen.append(temperature)
    )
    with pytest.raises(ValueError, match="held-out images.*measured on test images"):
        export_run(runs / "student", tmp_path, temperature="fit")

    held_out = shutil.copytree(runs / "student", tmp_path / "held_out")
    record = Run.open(held_out).record
    record["data"]["validation"] = True
    (held_out / "run.json").write_text(json.dumps(record))
    export_run(held_out, tmp_path, temperature="fit")
    _, validation = data.load(
        "digits",
        image_size=8,
        examples_per_class=5,
        limit=200,
        validation=True,
        normalize=False,
    )
    images, labels = map(np.concatenate, zip(*validation, strict=True))
    logits = Run.open(held_out).network()(images)["logits"]
    expected = export.fit_temperature(logits, labels)
    assert seen == [pytest.approx(expected, rel=1e-3)]
    assert expected != 1.0


def test_a_run_is_what_training_on_normalised_images_is(tmp_path):
    settings = dataclasses.replace(TRAINING, epochs=1)
    run = train(Teacher(), tmp_path / "run", settings, DIGITS, verbose=0)

    keras.utils.set_random_seed(settings.seed)
    network = models.create("wrn_10_1", 10, (8, 8, 3))
    images, test = data.load(
        "digits", 25, image_size=8, examples_per_class=5, limit=200
    )
    schedule = step_decay(0.05, 1, len(images), settings.milestones)
    optimizer = SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4)
    trainer = TeacherTrainer(network).compile(optimizer, metrics=["accuracy"])
    logs = trainer.fit(images, validation_data=test, shuffle=False, verbose=0).history
    for name in ("loss", "ce_aux_1", "val_loss", "val_accuracy"):
        assert run.record["last"][name] == pytest.approx(logs[name][0], rel=1e-5)
    for a, b in zip(run.network().weights, network.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_student_is_distilled_from_the_run_and_leaves_it_alone(runs):
    record = Run.open(runs / "student").record
    teacher = Run.open(runs / "teacher")
    assert record["origin"]["run"] == str(runs / "teacher")
    assert record["origin"]["epoch"] == 2
    assert record["origin"]["weights"] == teacher.weights_digest()
    last = teacher.record["last"]
    assert record["origin"]["val_accuracy"] == last["val_accuracy"]
    assert record["images"] == teacher.record["images"]
    assert record["options"]["method"] == "hsakd"


def test_plain_distillation_of_logits(runs, tmp_path):
    """By another method, from a teacher with heads and from one without."""
    for teacher in ("teacher", "baseline"):
        student = Distill(
            teacher=runs / teacher,
            method="dkd",
            method_settings={"beta": 2.0, "warmup": 1.5, "weight": 0.5},
        )
        run = train(student, tmp_path / teacher, TRAINING, verbose=0)
        assert is_plain(run.network())
        assert run.record["options"]["method_settings"]["beta"] == 2.0
        # Two epochs, of which 1.5 are warm-up.
        for row, factor in zip(logged(tmp_path / teacher), (2 / 3, 1), strict=True):
            terms = float(row["ce_loss"]) + 0.5 * factor * float(row["dkd_main"])
            assert float(row["loss"]) == pytest.approx(terms, rel=1e-5)
            assert not any(name.startswith("dkd_aux") for name in row)


def test_a_run_can_be_repeated_bit_for_bit(runs, tmp_path):
    run = Run.open(runs / "baseline")
    again = train_baseline(
        tmp_path / "again", run.data_settings(), run.training_settings()
    )
    for a, b in zip(
        again.network().get_weights(), run.network().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_mixed_precision_is_the_networks_alone(tmp_path):
    settings = dataclasses.replace(TRAINING, epochs=1, precision="mixed_bfloat16")
    run = train_baseline(tmp_path / "run", settings=settings)
    assert keras.config.dtype_policy().name == "float32"
    policies = {layer.dtype_policy.name for layer in run.network().layers}
    assert "mixed_bfloat16" in policies


def white(network):
    """Returns what a network's preprocessing makes of a white pixel."""
    layer = network.get_layer("preprocessing")
    return np.ravel(layer(np.full((1, 1, 1, 3), 255, "uint8")))


@pytest.mark.slow
def test_a_folder_of_images_from_teacher_to_student(tmp_path, monkeypatch):
    make_folder(tmp_path / "data", ["cat", "dog"])
    monkeypatch.chdir(tmp_path)
    images = DataSettings(
        data="data", image_size=8, flip=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)
    )
    settings = dataclasses.replace(TRAINING, epochs=1)
    run = train(Teacher(), "teacher", settings, images, verbose=0)
    assert run.record["data"]["data"] == str(tmp_path / "data")
    assert run.class_names == ["cat", "dog"]
    run = train(Distill(teacher="teacher"), "student", settings, verbose=0)
    np.testing.assert_allclose(white(run.network()), [2.5, 3, 7], rtol=1e-5)

    # The same classes elsewhere are normalised as the teacher does it.
    make_folder(tmp_path / "moved", ["cat", "dog"])
    results = evaluate("student", data="moved", verbose=0)
    assert results["loss"] == pytest.approx(run.record["last"]["val_loss"], rel=1e-5)

    other_run = train(
        Distill(teacher="teacher"),
        "other_student",
        settings,
        DataSettings(data="moved", mean=(0.5, 0.5, 0.5)),
        verbose=0,
    )
    np.testing.assert_allclose(white(other_run.network()), [2.5, 2.5, 5], rtol=1e-5)
    np.testing.assert_allclose(
        white(Run.open("teacher").network()), [2.5, 3, 7], rtol=1e-5
    )

    other = make_folder(tmp_path / "other", ["cat", "cow", "dog"])
    with pytest.raises(ValueError, match="2 classes of `teacher`.* 3 classes.*'cow'"):
        train(Distill(teacher="teacher"), "x", settings, {"data": other}, verbose=0)
    frozen = Teacher(backbone="teacher")
    message = r"std=\(0.2, 0.2, 0.1\), as those of `backbone`"
    with pytest.raises(ValueError, match=f"normalised with {message}"):
        train(frozen, "x", settings, dataclasses.replace(images, std=None), verbose=0)
    with pytest.raises(ValueError, match="no `std`, which the network of a run has"):
        evaluate("student", std=(1.0, 1.0, 1.0), verbose=0)
    assert not (tmp_path / "x").exists()


def test_the_teachers_folder_is_the_same_however_it_is_named(
    runs, tmp_path, monkeypatch
):
    photos = make_folder(tmp_path / "photos", ["cat", "dog"])
    record = Run.open(runs / "teacher").record
    told = {**record["data"], "data": str(photos), "flip": False}
    run = Run("teacher", {**record, "data": told})
    monkeypatch.chdir(tmp_path)
    assert changed(run, {"data": "photos"}) == changed(run, {})
    assert changed(run, {"data": "photos/"}).flip is False
    make_folder(tmp_path / "others", ["cat", "dog"])
    assert changed(run, {"data": "others"}).flip is None


def test_a_linear_classifier_normalises_as_its_own_images_are(runs, tmp_path):
    data_settings = DataSettings(data=make_folder(tmp_path, ["cat", "dog"]))
    kind = Linear(backbone=runs / "baseline")
    origin = kind.origin()
    images = load(kind.data_settings(data_settings, origin), batch_size=2, seed=0)
    network = kind.job(TRAINING, images, origin).network
    expected = (1 - np.array(data.IMAGENET_MEAN)) / data.IMAGENET_STD
    np.testing.assert_allclose(white(network), expected, rtol=1e-5)
    frozen = origin.network().get_layer("wrn_10_1_stage2_conv").kernel
    received = network.get_layer("wrn_10_1_stage2_conv").kernel
    np.testing.assert_array_equal(received, frozen)
    assert len(network.trainable_variables) == 2


def test_a_teacher_of_another_class_count(runs, tmp_path):
    data = make_folder(tmp_path / "data", ["cat", "dog"])
    with pytest.raises(ValueError, match="10 classes of `teacher`.* 2 classes"):
        train(
            Distill(teacher=runs / "teacher"),
            tmp_path / "x",
            TRAINING,
            {"data": data, "examples_per_class": None},
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
            train(Distill(teacher=teacher), tmp_path / "x", TRAINING, verbose=0)
    with pytest.raises(FileExistsError, match="another folder than `teacher`"):
        train(
            Distill(teacher=runs / "teacher"),
            runs / "teacher",
            TRAINING,
            overwrite=True,
            verbose=0,
        )
    with pytest.raises(ValueError, match="for `heads`.*a baseline run"):
        evaluate(runs / "baseline", heads=True, verbose=0)


@pytest.mark.parametrize(
    ("images", "settings", "error", "message"),
    [
        ({"data": "nowhere"}, {}, FileNotFoundError, "`data` to be one of.*'nowhere'"),
        ({"flip": True}, {}, ValueError, "Expected no `flip` for a named data set"),
        ({}, {"model": "resnet9", "head": None}, ValueError, "did you mean 'resnet8'"),
        ({}, {"milestones": (0.9, 0.5)}, ValueError, "Expected `milestones`"),
        ({"examples_per_class": 1000}, {}, ValueError, "`examples_per_class`"),
    ],
)
def test_a_setting_that_does_not_suit_leaves_no_folder(
    images, settings, error, message, tmp_path
):
    images = dataclasses.replace(DIGITS, **images)
    settings = dataclasses.replace(TRAINING, **settings)
    for kind in (Teacher(), Baseline()):
        with pytest.raises(error, match=message):
            train(kind, tmp_path / "x", settings, images, verbose=0)
    assert not (tmp_path / "x").exists()


def test_what_has_no_effect_is_refused(runs, tmp_path):
    linear = Linear(backbone=runs / "baseline")
    plain = Distill(teacher=runs / "teacher", heads=False)
    for kind, name, value in (
        (Baseline(), "head", "light"),
        (Baseline(), "taps", ("first",)),
        (plain, "head", "light"),
        (plain, "taps", ("first",)),
        (linear, "head", "light"),
        (linear, "taps", ("first",)),
        (linear, "weights", "imagenet"),
        (linear, "preprocessing", "inside"),
        (linear, "freeze_backbone", True),
        (linear, "synchronize_batch_norm", True),
    ):
        settings = dataclasses.replace(TRAINING, **{name: value})
        message = f"no `{name}` for `{kind.name}`.*, where it has no effect. Received: "
        with pytest.raises(ValueError, match=message):
            train(kind, tmp_path / "x", settings, DIGITS, verbose=0)
    larger = dataclasses.replace(DIGITS, image_size=12)
    for kind in (plain, linear):
        with pytest.raises(ValueError, match="`image_size` but 8, .*image_size=12"):
            train(kind, tmp_path / "x", TRAINING, larger, verbose=0)
    assert not (tmp_path / "x").exists()


def test_data_dir_is_for_named_data_sets(tmp_path):
    images = DataSettings(data=make_folder(tmp_path, ["a", "b"]), data_dir="x")
    with pytest.raises(ValueError, match="Expected no `data_dir` for a folder"):
        train_baseline(tmp_path / "run", images)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("on_train_begin", KeyboardInterrupt),
        ("on_train_batch_end", OSError("disk full")),
        ("save", OSError("disk full")),
    ],
)
def test_a_training_that_is_cut_off_leaves_a_readable_run(
    place, error, tmp_path, monkeypatch
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
        monkeypatch.setattr(training.Throughput, place, cut_off)
    kind = type(error) if isinstance(error, Exception) else error
    with pytest.raises(kind):
        train_baseline(tmp_path / "run")

    run = Run.open(tmp_path / "run")
    interrupted = error is KeyboardInterrupt
    assert run.record["status"] == ("interrupted" if interrupted else "failed")
    assert interrupted or "disk full" in run.record["error"]
    assert not [name for name in os.listdir(run.path) if name.startswith(".partial")]
    if place == "save":
        assert run.record["epochs_done"] == 1
        assert evaluate(run.path, verbose=0)["accuracy"] >= 0
        assert os.path.exists(tmp_path / "run" / "curves.png")
        monkeypatch.setattr(keras.Model, "save", save)
    else:
        with pytest.raises(FileNotFoundError, match="a run with a finished epoch"):
            evaluate(run.path)
    if place == "on_train_begin":
        monkeypatch.undo()

        # The next start says what is there, and may replace it.
        with pytest.raises(FileExistsError, match="holds a baseline run of wrn_10_1, "):
            train_baseline(run.path)
        (tmp_path / "run" / "notes.txt").write_text("mine")
        run = train_baseline(run.path, overwrite=True)
        assert run.record["status"] == "finished"
        assert sorted(os.listdir(run.path)) == sorted([*FILES, "notes.txt"])


def test_a_full_disk_has_room_for_the_record(tmp_path, monkeypatch):
    def full(path, content):
        if os.path.exists(tmp_path / ".partial-room"):
            raise OSError(28, "No space left on device", path)
        write(path, content)

    def fill(recorder, epoch, logs=None):
        monkeypatch.setattr(folder, "write_json", full)
        recorder.write()

    write = folder.write_json
    monkeypatch.setattr(training.Recorder, "on_epoch_end", fill)
    message = r"No space left on device\. There is no snapshot: '.*run.json'"
    with pytest.raises(OSError, match=message):
        train_baseline(tmp_path)
    record = Run.open(tmp_path).record
    assert record["status"] == "failed" and "No space left" in record["error"]
    assert not os.path.exists(tmp_path / ".partial-room")


def test_a_file_that_is_no_image_is_named_also_unchecked(tmp_path):
    images = DataSettings(
        data=make_folder(tmp_path / "photos", ["cat", "dog"]), corrupt="unchecked"
    )
    bad = tmp_path / "photos" / "train" / "dog" / "2.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"Expected .*Received: .*'{bad}'"):
        train_baseline(tmp_path / "run", images, overwrite=True)
    assert not (tmp_path / "run").exists()
    bad.write_bytes(whole)
    with (
        pytest.raises(tf.errors.InvalidArgumentError),
        load(images, 2, 0).errors_named(),
    ):
        raise tf.errors.InvalidArgumentError(None, None, "of something else")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    settings = dataclasses.replace(TRAINING, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="Received: ce_loss="):
        train_baseline(tmp_path / "run", settings=settings)
    assert "FloatingPointError" in Run.open(tmp_path / "run").record["error"]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"kind": "teacher"}', '{"kind": "x", "training": 1}']
)
def test_a_damaged_record_is_reported_and_never_replaced(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="Expected .*run.json' to"):
        Run.open(tmp_path)
    with pytest.raises(FileExistsError, match="damaged run.json"):
        train_baseline(tmp_path, overwrite=True)
    assert (tmp_path / "run.json").read_text() == content


def test_a_damaged_network_is_reported(runs, tmp_path):
    record = json.loads((runs / "baseline" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record))
    whole = (runs / "baseline" / "last.keras").read_bytes()
    (tmp_path / "last.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="last.keras' to be a whole Keras file"):
        evaluate(tmp_path)


class StoppedError(Exception):
    """Stands for whatever ends a training."""


def stop_after(steps, monkeypatch, error=StoppedError):
    """Has a training end in the step after so many."""
    left = iter(range(steps))

    def stop(*arguments):
        if next(left, None) is None:
            raise error

    monkeypatch.setattr(tensorboard.TensorBoard, "on_train_batch_end", stop)


def same_results(first, second):
    """Returns whether two results or logged rows differ in the time taken alone."""
    first, second = (
        {k: v for k, v in results.items() if k != "images_per_second"}
        for results in (first, second)
    )
    return first == second


def test_a_stopped_run_goes_on(runs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"

    def resume(head_metrics=True, execution=RESUME, **changes):
        settings = dataclasses.replace(TRAINING, **changes)
        kind = Teacher(head_metrics=head_metrics)
        return train(kind, output, settings, DIGITS, execution, verbose=0)

    stop_after(3, monkeypatch)
    with pytest.raises(StoppedError):
        resume()
    monkeypatch.undo()
    assert Run.open(output).record["status"] == "failed"
    (output / ".partial-1-last.keras").write_text("of a process that was killed")
    with pytest.raises(ValueError, match="training {'seed': 0}. Received: {'seed': 1}"):
        resume(seed=1)
    # Rows of the log would have other columns, and the picture no line.
    message = "options {'head_metrics': True}. Received: {'head_metrics': False}"
    with pytest.raises(ValueError, match=message):
        resume(head_metrics=False)
    execution = dataclasses.replace(RESUME, steps_per_execution=2)
    record = resume(execution=execution).record
    assert "Going on after step 1 of epoch 2, from" in capsys.readouterr().out
    assert sorted(os.listdir(output)) == FILES
    expected = Run.open(runs / "teacher")
    assert record["status"] == "finished" and "error" not in record
    assert record["execution"]["snapshot_steps"] == 1
    assert record["execution"]["steps_per_execution"] == 2
    assert expected.record["execution"]["steps_per_execution"] == 1  # on a CPU
    for name in ("last", "best"):
        assert same_results(record[name], expected.record[name])
    assert Run.open(output).weights_digest() == expected.weights_digest()
    for row, other in zip(logged(output), logged(runs / "teacher"), strict=True):
        assert same_results(row, other)


def test_what_has_finished_is_left_as_it_is(runs, tmp_path, monkeypatch):
    def unexpected(*arguments):
        raise AssertionError("an image is read")

    monkeypatch.setattr(training, "load", unexpected)
    network = (runs / "student" / "last.keras").read_bytes()
    # The same teacher, wherever it is now.
    shutil.copytree(runs / "teacher", tmp_path / "moved")
    student = Distill(teacher=tmp_path / "moved")
    run = train(student, runs / "student", TRAINING, execution=RESUME, verbose=0)
    assert run.record["status"] == "finished"
    assert (runs / "student" / "last.keras").read_bytes() == network
    # Another teacher, of the same settings.
    moved = Run.open(tmp_path / "moved").network()
    moved.trainable_variables[0].assign(moved.trainable_variables[0] + 1)
    moved.save(tmp_path / "moved" / "last.keras")
    with pytest.raises(ValueError, match="origin {'weights': '.*Received: {'weights'"):
        train(student, runs / "student", TRAINING, execution=RESUME, verbose=0)


def test_what_is_not_given_is_as_what_there_was_not_yet():
    wanted = training.settings_record(Teacher(), TRAINING, DIGITS, None)
    found = json.loads(json.dumps(wanted))
    del found["options"]["sampled_views"], found["data"]["unlabeled"]
    del found["options"]["views"], found["training"]["precision"]
    assert not differences(wanted, found, Teacher.default_options())
    assert list(differences(wanted, found)) == ["options"]
    found["options"]["views"] = "rotations"
    assert not differences(wanted, found)
    found["options"]["sampled_views"] = 2
    assert list(differences(wanted, found)) == ["options"]


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("options", [{}, {"execution": RESUME}, {"overwrite": True}])
def test_a_second_training_is_refused_and_changes_nothing(options, tmp_path):
    record = training.settings_record(Baseline(), TRAINING, DIGITS, None)
    facts = {"status": "running", "epochs_done": 0, "last": None, "monitor": "loss"}
    images = {"images": {"class_names": []}}
    with lock.held(tmp_path):
        Run(str(tmp_path), {**record, **facts, **images}).begin()
        before = content(tmp_path)
        message = rf"'{tmp_path}', where process {os.getpid()} on '.*' has written"
        with pytest.raises(BlockingIOError, match=message):
            train_baseline(tmp_path, **options)
        assert content(tmp_path) == before


def test_a_refused_training_leaves_no_folder(tmp_path, monkeypatch):
    def refuse(*arguments):
        assert os.listdir(tmp_path / "runs" / "new") == [lock.NAME]
        raise ValueError("no images")

    monkeypatch.setattr(training, "load", refuse)
    with pytest.raises(ValueError, match="no images"):
        train_baseline(tmp_path / "runs" / "new")
    assert os.listdir(tmp_path) == []


class KilledError(BaseException):
    """Stands for SIGKILL: nothing that is done on the way out is in the folder."""


def begun(job, run, goes_on, *others):
    """Stands for a training that is killed in its first epoch."""
    run.begin()
    return run


def test_what_a_kill_left_of_a_first_record_is_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / lock.NAME).touch()
    (tmp_path / ".partial-1-run.json").write_text("{")
    monkeypatch.setattr(training, "_fit", begun)
    train_baseline(tmp_path, execution=RESUME)
    assert sorted(os.listdir(tmp_path)) == [".partial-room", "run.json"]


def test_what_is_left_after_the_end_is_removed(runs, tmp_path):
    shutil.copytree(runs / "baseline", tmp_path / "run")
    arguments = Baseline(), tmp_path / "run", TRAINING, DIGITS

    def leave():
        (tmp_path / "run" / "snapshots").mkdir()
        (tmp_path / "run" / ".partial-room").touch()

    leave()
    assert training.finished_run(*arguments)
    assert sorted(os.listdir(tmp_path / "run")) == FILES
    leave()
    train(*arguments, execution=RESUME, verbose=0)
    assert sorted(os.listdir(tmp_path / "run")) == FILES


def killed_after(moves, monkeypatch):
    """Has a process killed after it renamed so many files."""
    left = iter(range(moves))
    replace = os.replace

    def kill(*paths):
        if next(left, None) is None:
            raise KilledError
        replace(*paths)

    monkeypatch.setattr(os, "replace", kill)


@pytest.mark.parametrize("moves", range(16))
def test_a_kill_while_a_run_is_replaced(moves, runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "baseline", tmp_path / "run")
    (tmp_path / "run" / "snapshots").mkdir()
    (tmp_path / "run" / "snapshots" / "epoch-00001").touch()
    before = content(tmp_path / "run")
    record = Run.open(tmp_path / "run").record
    run = Run(str(tmp_path / "run"), {**record, "status": "running", "last": None})
    with contextlib.suppress(KilledError), monkeypatch.context() as patch:
        killed_after(moves, patch)
        folder.put_aside(run.path)
        run.begin()
        (tmp_path / "run" / "log.csv").touch()
        folder.bring_back(run.path)
    # Whatever was done of it, the next one that may write brings it back.
    with pytest.raises(FileExistsError, match="finished"), folder.writing(run.path, 0):
        pass
    assert content(tmp_path / "run") == before
    # The other has its first epoch.
    folder.put_aside(run.path)
    run.begin()
    (tmp_path / "run" / "last.keras").touch()
    with contextlib.suppress(KilledError), monkeypatch.context() as patch:
        killed_after(moves, patch)
        run.write()
    with folder.writing(run.path, True):
        pass
    assert sorted(os.listdir(run.path)) == ["last.keras", "run.json"]


@pytest.mark.parametrize("why", [ValueError, KeyboardInterrupt])
def test_a_run_comes_back_if_the_one_in_its_place_has_no_epoch(
    why, runs, tmp_path, monkeypatch
):
    shutil.copytree(runs / "baseline", tmp_path / "run")
    before = content(tmp_path / "run")
    stop_after(1, monkeypatch, why)
    execution = ExecutionSettings(snapshot_steps=1)
    with pytest.raises(why):
        train_baseline(tmp_path / "run", overwrite=True, execution=execution)
    assert content(tmp_path / "run") == before


def test_a_run_that_was_told_to_end_in_its_first_epoch_goes_on(
    runs, tmp_path, monkeypatch
):
    shutil.copytree(runs / "baseline", tmp_path / "run")
    settings = dataclasses.replace(TRAINING, seed=1)
    with pytest.raises(Preempted), monkeypatch.context() as patch:
        stop_after(1, patch, Preempted)
        train_baseline(
            tmp_path / "run",
            settings=settings,
            overwrite=True,
            execution=ExecutionSettings(snapshot_steps=1),
        )
    assert (tmp_path / "run" / ".replaced" / "last.keras").exists()
    with pytest.raises(FileExistsError, match="preempted after 0 of"):
        train_baseline(tmp_path / "run")
    run = train_baseline(tmp_path / "run", settings=settings, execution=RESUME)
    assert run.record["training"]["seed"] == 1
    assert sorted(os.listdir(run.path)) == FILES


def test_nothing_is_touched_before_the_last_check(runs, tmp_path):
    shutil.copytree(runs / "baseline", tmp_path / "run")
    before = content(tmp_path)
    images = dataclasses.replace(DIGITS, crop="resized")
    options = {"execution": ExecutionSettings(augment_on_device=True)}
    for output in ("run", "new"):
        with pytest.raises(ValueError, match="to augment on the device"):
            train_baseline(tmp_path / output, images, overwrite=True, **options)
    assert content(tmp_path) == before


def test_a_run_of_which_something_is_gone_does_not_go_on(tmp_path, monkeypatch):
    with pytest.raises(StoppedError), monkeypatch.context() as patch:
        stop_after(3, patch)  # in the second epoch
        train_baseline(tmp_path / "run", execution=RESUME)
    for gone in ("snapshots", "last.keras", "best.keras", "log.csv"):
        run = shutil.copytree(tmp_path / "run", tmp_path / gone)
        path = run / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = content(run)
        message = f"after 1 of .*, without {gone}; `--over"
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                train_baseline(run, execution=RESUME)
            assert content(run) == before


def test_a_kill_between_two_files_leaves_them_in_agreement(tmp_path, monkeypatch):
    output, killed = tmp_path / "run", tmp_path / "killed"

    def copy(recorder, epoch, logs=None):
        if epoch == 1:  # the networks are written, and run.json is not
            shutil.copytree(output, killed)
        recorder.write()

    def draw(log, path, title):
        drawn.append((Run.open(output).record["status"], title))

    drawn = []
    monkeypatch.setattr(drawings, "training_curves", draw)
    monkeypatch.setattr(training.Recorder, "on_epoch_end", copy)
    expected = train_baseline(output, execution=RESUME)
    monkeypatch.undo()
    # A kill after "finished" leaves nothing to do.
    assert drawn == [("running", expected.describe())]
    assert json.loads((killed / "run.json").read_text())["epochs_done"] == 1
    record = Run.open(killed).record
    assert record["status"] == "running"
    for name in ("last", "best"):
        assert record[name] == expected.record[name]
        assert Run.open(killed).weights_digest(name) == expected.weights_digest(name)
        results = evaluate(killed, name, verbose=0)
        accuracy = record[name]["val_accuracy"]
        assert results["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    # The second epoch is trained again, from a snapshot in it.
    record = train_baseline(killed, execution=RESUME).record
    for name in ("last", "best"):
        assert same_results(record[name], expected.record[name])


@pytest.mark.parametrize(
    ("owner", "writer", "file"),
    [(Run, "write", "run.json"), (drawings, "training_curves", "curves.png")],
)
def test_a_full_disk_does_not_hide_what_ended_a_training(
    owner, writer, file, tmp_path, monkeypatch, capsys
):
    def full(*arguments):
        raise OSError("no space left on device")

    def stop(callback, batch, logs=None):
        if os.path.exists(tmp_path / "run" / "last.keras"):
            monkeypatch.setattr(owner, writer, full)
            raise Preempted

    monkeypatch.setattr(training.Throughput, "on_train_batch_end", stop)
    with pytest.raises(Preempted):
        train_baseline(tmp_path / "run")
    assert f"no {file}: no space left on device" in capsys.readouterr().err


def test_training_images_are_decoded_when_a_run_begins_and_not_again(
    tmp_path, monkeypatch
):
    data = make_folder(tmp_path / "data", ["cat", "dog"])
    images = DataSettings(data=data, image_size=8)
    output = tmp_path / "run"
    decoded = []
    check = keeping.decodable

    def counted(source, indices):
        decoded.extend(indices)
        return check(source, indices)

    monkeypatch.setattr(keeping, "decodable", counted)
    streamed = dataclasses.replace(RESUME, stream=True)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(StoppedError):
            train_baseline(output, images, execution=streamed)
    assert len(decoded) == 6
    # Kept or streamed, it is the same run.
    run = train_baseline(output, images, execution=RESUME)
    whole = train_baseline(tmp_path / "whole", images)
    assert run.weights_digest() == whole.weights_digest()
    # Nor is what has been looked at.
    assert evaluate(output, verbose=0)["accuracy"] >= 0
    assert len(decoded) == 6


@pytest.mark.slow
def test_images_elsewhere_are_decoded_as_far_as_they_are_measured_on(
    runs, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    data = make_folder(tmp_path / "data", ["cat", "dog"])
    train_baseline(run, DataSettings(data=data, image_size=8))
    other = pathlib.Path(make_folder(tmp_path / "other", ["cat", "dog"]))
    (other / "train" / "cat" / "1.png").write_text("no image")
    assert evaluate(run, data=str(other), verbose=0)["accuracy"] >= 0
    (other / "test" / "cat" / "1.png").write_text("no image")
    with pytest.raises(ValueError, match="test/cat/1.png"):
        evaluate(run, data=str(other), verbose=0)


@pytest.mark.slow
def test_workers_have_read_what_is_there_before_it_is_replaced(tmp_path, monkeypatch):
    order = []
    wait, begin = training.distribution.wait_for_workers, Run.begin
    monkeypatch.setattr(
        training.distribution,
        "wait_for_workers",
        lambda model: order.append("wait") or wait(model),
    )
    monkeypatch.setattr(Run, "begin", lambda run: order.append("begin") or begin(run))
    train_baseline(tmp_path / "run", settings=dataclasses.replace(TRAINING, epochs=1))
    assert order[:3] == ["wait", "begin", "wait"]


def test_an_import_is_finished_when_its_files_are_there(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("no space left on device")

    numpy = pytest.importorskip("safetensors.numpy")
    network = models.create("wrn_10_1", 10, (8, 8, 3))
    state = {"any.weight": np.zeros(1, "float32")}
    numpy.save_file(state, tmp_path / "network.safetensors")
    monkeypatch.setattr(training.checkpoints, "has_heads", lambda state: True)
    monkeypatch.setattr(
        training.checkpoints,
        "load_torch",
        lambda made, state: made.set_weights(network.get_weights()),
    )
    monkeypatch.setattr(training, "save_with_results", full)
    arguments = tmp_path / "run", tmp_path / "network.safetensors", "wrn_10_1", DIGITS
    with pytest.raises(OSError, match="no space"):
        import_torch(*arguments, verbose=0)
    assert Run.open(tmp_path / "run").record["status"] != "finished"
    monkeypatch.undo()


def test_a_picture_of_rows_that_lack_values(tmp_path):
    rows = "epoch,loss,aux_1_accuracy\n0,1.5,\n1,1.0,0.5\n"
    (tmp_path / "log.csv").write_text(rows)
    drawings.training_curves(tmp_path / "log.csv", tmp_path / "curves.png", "run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_older_folder_is_refused_in_a_line(runs, tmp_path, capsys):
    shutil.copytree(runs / "teacher", tmp_path / "old")
    record = read_json(tmp_path / "old" / "run.json")
    for found in (record["format"] - 1, record["format"] + 1, None):
        other = {**record, "format": found} if found else dict(record)
        if found is None:
            del other["format"]
        write_json(tmp_path / "old" / "run.json", other)
        assert cli.main(["evaluate", str(tmp_path / "old")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"format {record['format']}. Received: format {found or 1}, by " in line


def test_a_run_is_replaced_or_goes_on():
    with pytest.raises(ValueError, match="`overwrite` or `resume`, not both"):
        train_baseline("run", overwrite=True, execution=RESUME)


def test_only_a_run_is_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="which is not a run folder"):
        train_baseline(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
