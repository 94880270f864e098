"""Reports of artefacts: metrics, measuring, rendering, what is kept aside."""

import functools
import importlib.metadata
import json
import os
import pathlib
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import drawings, export, runs
from keras_hsakd.export import measuring, metrics, report, shipping
from keras_hsakd.export.formats import Format, RejectedError, version_path
from keras_hsakd.export.keras import KERAS


@pytest.fixture
def answers():
    """Returns probabilities of 200 images of 7 classes, others of them, and labels."""
    rng = np.random.default_rng(0)
    probabilities, others = rng.dirichlet(np.full(7, 0.3), (2, 200))
    labels = np.where(rng.random(200) < 0.5, probabilities.argmax(1), others.argmax(1))
    return probabilities, others, labels


# Metrics.


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy(answers, k):
    probabilities, _, labels = answers
    ranks = [
        sorted(range(7), key=lambda c, row=row: (-row[c], c)).index(label)
        for row, label in zip(probabilities, labels, strict=True)
    ]
    expected = np.mean([rank < k for rank in ranks])
    assert metrics.accuracy(probabilities, labels, k) == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_the_first_of_equal_classes_is_the_most_likely():
    equal = np.full((3, 3), 1 / 3)
    assert metrics.accuracy(equal, [0, 0, 1]) == pytest.approx(2 / 3)
    assert metrics.accuracy(equal, [0, 1, 2], k=2) == pytest.approx(2 / 3)
    assert metrics.confusion_matrix(equal, [0, 1, 2])[:, 0].tolist() == [1, 1, 1]


def test_agreement(answers):
    probabilities, others, _ = answers
    same = [p.argmax() == o.argmax() for p, o in zip(*answers[:2], strict=True)]
    assert metrics.agreement(probabilities, others) == pytest.approx(np.mean(same))
    assert metrics.agreement(others, others) == 1


def calibration_error(probabilities, labels, bins):
    """Returns the error by the book: bins one after another."""
    confidences, error = probabilities.max(axis=1), 0
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            gap = abs(right[inside].mean() - confidences[inside].mean())
            error += inside.mean() * gap
    return error


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error(answers, bins):
    probabilities, _, labels = answers
    expected = calibration_error(probabilities, labels, bins)
    error = metrics.expected_calibration_error(probabilities, labels, bins)
    assert error == pytest.approx(expected, rel=1e-9)
    assert error > 0.01


def test_a_certain_classifier_is_as_wrong_as_it_is_sure():
    certain = np.eye(4, dtype="float32")[[0, 1, 2, 3]]
    assert metrics.expected_calibration_error(certain, [0, 1, 2, 3]) == 0
    assert metrics.expected_calibration_error(certain, [0, 1, 2, 0]) == 0.25


def test_confusion(answers):
    probabilities, _, labels = answers
    matrix = metrics.confusion_matrix(probabilities, labels)
    for label in range(7):
        for found in range(7):
            count = np.sum((labels == label) & (probabilities.argmax(1) == found))
            assert matrix[label, found] == count


def test_the_classes_that_lost_most():
    # Labels in rows: one image of class 1, none of class 3.
    expected = np.diag([10, 1, 4, 0])
    confusion = np.array([[8, 2, 0, 0], [0, 0, 1, 0], [0, 0, 4, 0], [0, 0, 0, 0]])
    losses = metrics.lost_most(confusion, expected)
    assert losses == [(1, 1, 0.0, 1.0), (0, 10, 0.8, 1.0)]
    assert metrics.lost_most(confusion, expected, count=1) == losses[:1]
    assert metrics.lost_most(expected, confusion) == []


# Measuring.

rng = np.random.default_rng(0)
LABELS = np.arange(70) % 7
IMAGES = (rng.integers(0, 60, (70, 8, 8, 3)) + 25 * LABELS[:, None, None, None]).astype(
    "uint8"
)
NAMES = ["a|b", "<i>", "größer", "$x^$", "e", "f", "g"]


def network(name="student", classes=7):
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes),
        ],
        name=name,
    )


@pytest.fixture
def quick(monkeypatch):
    """Spares tests what takes long: tracing, calls on the clock, pictures."""
    few = functools.partial(measuring.latency, calls=2)
    monkeypatch.setattr(measuring, "latency", few)
    monkeypatch.setattr(report, "drawn", lambda *_, **__: b"\x89PNG")
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def shipped(student, folder, format=KERAS, monkeypatch=None, **trial):
    """Returns what became of a student in one format."""
    if monkeypatch is not None:
        monkeypatch.setitem(shipping.FORMATS, "keras", format)
    trial = export.Trial(**{"test": (IMAGES, LABELS), **trial})
    return export.ship(student, folder, ["keras"], class_names=NAMES, trial=trial)[
        "keras"
    ]


def content(result, ending):
    return (pathlib.Path(result.report) / f"report.{ending}").read_text("utf-8")


def read(result):
    return json.loads(content(result, "json"))


def test_a_report_has_the_figures_of_the_artefact(quick, tmp_path):
    student, teacher = network(), network("teacher")
    beside = {"teacher": export.serving_model(teacher)}
    card = {"licence": "Apache-2.0"}
    result = shipped(student, tmp_path / "net", beside=beside, card=card)
    assert (result.path, result.error) == (str(tmp_path / "net" / "1.keras"), None)
    assert result.report == f"{result.path}.report"
    found = read(result)

    logits, wanted = (
        np.asarray(model(IMAGES.astype("float32"))) for model in (student, teacher)
    )
    answers = np.asarray(keras.ops.softmax(logits))
    row = found["measured"]["artefact"]
    assert row["top1"] == pytest.approx(np.mean(answers.argmax(1) == LABELS))
    assert row["top5"] == pytest.approx(metrics.accuracy(logits, LABELS, 5))
    assert row["agreement"] == 1
    error = calibration_error(answers, LABELS, 15)
    assert row["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert row["bytes"] == os.path.getsize(result.path)
    assert row["parameters"] == student.count_params() == 3 * 3 * 3 * 4 + 4 + 4 * 7 + 7
    assert row["multiply_adds"] == 36 * 3 * 3 * 3 * 4 + 4 * 7
    assert set(row["latency"]) == {"1", "32"}

    beside = found["measured"]["teacher"]
    assert beside["top1"] == pytest.approx(np.mean(wanted.argmax(1) == LABELS))
    same = np.mean(wanted.argmax(1) == answers.argmax(1))
    assert beside["agreement"] == pytest.approx(same)
    assert list(found["measured"]) == ["artefact", "student", "teacher"]

    matrix = metrics.confusion_matrix(answers, LABELS)
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["lost_most"]["student"] == []
    lost = metrics.lost_most(matrix, metrics.confusion_matrix(wanted, LABELS))
    assert found["lost_most"]["teacher"] == [loss._asdict() for loss in lost]
    mistakes = found["mistakes"]
    highest = answers.max(axis=1)
    assert mistakes[0]["probability"] == pytest.approx(
        highest[answers.argmax(1) != LABELS].max()
    )
    for mistake in mistakes:
        index = mistake["index"]
        assert LABELS[index] == mistake["label"] != mistake["found"]
        assert answers[index].argmax() == mistake["found"]
    assert found["card"]["licence"] == "Apache-2.0"
    assert found["card"]["intended_use"] is None
    assert found["versions"]["keras"] == keras.__version__
    assert found["drop"] == 0


def test_the_files_are_for_people(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "drawn", drawings.drawn)
    result = shipped(network(), tmp_path / "net", card={"licence": "MIT"})
    found = read(result)
    text, page = content(result, "md"), content(result, "html")
    accuracy = f"{found['measured']['artefact']['top1']:.2%}"
    for shown in (text, page):
        assert f"Accuracy {accuracy} on 70 test images, as the student." in shown
        assert "Not stated." in shown and "MIT" in shown
        assert "größer" in shown
    assert f"| top-1 accuracy | {accuracy} | {accuracy} |" in text
    assert "a\\|b" in text  # a cell, not two
    assert "&lt;i&gt;" in page and "<i>" not in page
    # Nothing is loaded from elsewhere.
    assert "http" not in page
    pictures = re.findall('src="([^"]*)"', page)
    assert all(picture.startswith("data:image/png;base64,iV") for picture in pictures)
    assert len(pictures) == 2 + len(found["mistakes"]) > 2


def test_the_mistakes_are_shown_as_they_are(quick, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        shipping, "write_report", lambda report, images, path: seen.append(images)
    )
    shipped(network(), tmp_path / "net")
    (images,) = seen
    assert len(images) == 12 and max(images) >= 32  # not of the first batch alone
    for index, image in images.items():
        np.testing.assert_array_equal(image, IMAGES[index])


def test_batches_are_measured_as_arrays_are():
    soft = tf.one_hot(LABELS, 7) * 0.9
    batches = tf.data.Dataset.from_tensor_slices(
        (IMAGES.astype("float32") + 0.4, soft)
    ).batch(11)
    images, labels = zip(*export.Trial(test=batches).batches(), strict=True)
    np.testing.assert_array_equal(np.concatenate(images), IMAGES)
    np.testing.assert_array_equal(np.concatenate(labels), LABELS)
    images, labels = zip(*export.Trial(test=(IMAGES, LABELS)).batches(), strict=True)
    assert [len(batch) for batch in images] == [32, 32, 6]
    np.testing.assert_array_equal(np.concatenate(images), IMAGES)
    np.testing.assert_array_equal(np.concatenate(labels), LABELS)


def test_labels_in_a_column_are_class_numbers():
    batches = export.Trial(test=(IMAGES, LABELS[:, None])).batches()
    np.testing.assert_array_equal(np.concatenate([b for _, b in batches]), LABELS)


def test_an_order_that_changes_is_an_error(quick, tmp_path):
    shuffled = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).shuffle(70)
    result = shipped(network(), tmp_path / "net", test=shuffled.batch(35))
    assert result.path is None
    assert "an order that does not change" in str(result.error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "trial, message",
    [
        (
            {"test": (IMAGES, LABELS + 1)},
            "integers from 0 to 6. Received: int64 from 1",
        ),
        ({"test": (IMAGES, LABELS / 7)}, "integers from 0 to 6. Received: float64"),
        ({"test": (IMAGES[:0], LABELS[:0])}, "to have images. Received: none"),
        ({"test": (IMAGES / 255 - 2, LABELS)}, "values 0 to 255. Received: values"),
        ({"test": (IMAGES / 255, LABELS)}, "0 to 255. Received: values from 0 to 0.8"),
        ({"test": (IMAGES / 128 - 1, LABELS)}, "to 255. Received: values from -1.0"),
        ({"test": [IMAGES, LABELS]}, "a pair of arrays.* Received: a list"),
        ({"test": iter([(IMAGES, LABELS)])}, "several times.* Received: a list_iter"),
        ({"max_drop": -0.1}, "from 0 to 1. Received: max_drop=-0.1"),
        ({"max_drop": float("nan")}, "from 0 to 1. Received: max_drop=nan"),
        ({"card": {"license": "MIT"}}, "Received: 'license'.*licence"),
        ({"card": {"licence": None}}, "texts. Received: licence=None"),
        ({"beside": {"teacher": network()}}, "`serving_model` returned.*'teacher'"),
        ({"beside": {"student": network()}}, "the report's own. Received: 'student'"),
        (
            {"beside": {"plain": export.serving_model(network(classes=3))}},
            "'plain' of `beside` to have the 7 .* 3 classes",
        ),
    ],
)
def test_what_does_not_suit_is_refused_before_anything_is_written(
    quick, tmp_path, trial, message
):
    with pytest.raises(ValueError, match=message):
        shipped(network(), tmp_path / "net", **trial)
    assert not (tmp_path / "net").exists()


def test_an_artefact_without_finite_answers_is_an_error(quick, tmp_path, monkeypatch):
    def load(path):
        predict = KERAS.load(path)

        def serve(images):
            outputs = {name: np.array(x) for name, x in predict(images).items()}
            # In the last batch, which the check does not see.
            outputs["probabilities"][0, 0] = np.nan if len(images) == 6 else 0.1
            return outputs

        return serve

    format = KERAS._replace(load=load, tolerance=1e9)
    result = shipped(network(), tmp_path / "net", format, monkeypatch)
    assert result.path is None
    assert "'keras' to give finite probabilities" in str(result.error)


# What is kept aside.


def worse(count, suffix=""):
    """Returns a format that answers `count` of all images, and only those, wrongly."""

    def write(served, path):
        os.mkdir(path)
        served.model.save(os.path.join(path, "model.keras"))

    def load(path):
        predict, seen = KERAS.load(os.path.join(path, "model.keras")), [0]

        def serve(images):
            outputs = {name: np.array(x) for name, x in predict(images).items()}
            if len(images) == 1:  # a latency, or the check
                return outputs
            for row in range(max(0, min(count - seen[0], len(images)))):
                outputs["probabilities"][row] = 1 - outputs["probabilities"][row]
            seen[0] += len(images)
            return outputs

        return serve

    return Format(write, load, suffix=suffix, runtime="keras", tolerance=1e9)


@pytest.fixture
def good_student():
    """Returns a student that is right in all images, which it tells by their mean."""
    student = network()
    means = IMAGES.mean(axis=(1, 2, 3)) / 255
    centres = np.array([means[label == LABELS].mean() for label in range(7)])
    # Nearest centre by one feature: 2 m c - c^2 is the largest for it.
    conv, dense = student.layers[1], student.layers[3]
    kernel = np.zeros((3, 3, 3, 4), "float32")
    kernel[..., 0] = 1 / 27
    conv.set_weights([kernel, np.zeros(4, "float32")])
    weights = np.zeros((4, 7), "float32")
    weights[0] = 200 * centres
    dense.set_weights([weights, (-100 * centres**2).astype("float32")])
    answers = np.argmax(student(IMAGES.astype("float32")), axis=1)
    assert (answers == LABELS).all()
    return student


def test_an_artefact_that_lost_too_much_is_kept_aside(
    quick, good_student, tmp_path, monkeypatch
):
    folder = tmp_path / "net"
    result = shipped(good_student, folder, worse(7), monkeypatch, max_drop=0.0999)
    assert result.path == str(folder / "1.rejected")
    assert isinstance(result.error, RejectedError)
    assert re.search("at most 0.0999 .* 1.0000 .* 0.9000", str(result.error))
    assert sorted(os.listdir(folder)) == ["1.rejected", "1.rejected.report"]
    found = read(result)
    assert found["drop"] == 0.1
    assert found["lost_most"]["student"][0]["accuracy"] == 0.9
    text = content(result, "md")
    assert "10.00% less than the student. REJECTED: it may lose at most 9.99%" in text
    # Its number is taken.
    assert version_path(folder) == str(folder / "2")


def test_as_much_as_is_allowed_may_be_lost(quick, good_student, tmp_path, monkeypatch):
    folder = tmp_path / "net"
    result = shipped(good_student, folder, worse(7), monkeypatch, max_drop=0.1)
    assert (result.path, result.error) == (str(folder / "1"), None)
    assert read(result)["drop"] == 0.1


def test_no_server_is_told_of_what_was_kept_aside(
    quick, good_student, tmp_path, monkeypatch
):
    monkeypatch.setitem(shipping.FORMATS, "saved_model", worse(7))
    trial = export.Trial(test=(IMAGES, LABELS), max_drop=0.01)
    export.ship(good_student, tmp_path / "net", trial=trial)
    assert not (tmp_path / "net" / "models.config").exists()


@pytest.mark.parametrize("taken", [".report", ".rejected", ".rejected.report"])
def test_nothing_is_written_over(quick, tmp_path, taken):
    (tmp_path / f"1.keras{taken}").mkdir()
    result = shipped(network(), tmp_path / "1")
    assert isinstance(result.error, FileExistsError)
    assert os.listdir(tmp_path) == [f"1.keras{taken}"]


# Latency and cost.


def test_latency_is_without_the_warm_up(monkeypatch):
    clock, calls = [0.0], [0]

    def predict(images):
        calls[0] += 1
        # Ten calls to warm up take long, then 1, 2, 3 ... 200 milliseconds.
        clock[0] += 100 if calls[0] <= 10 else (calls[0] - 10) / 1000
        return {"logits": images}

    fake = types.SimpleNamespace(
        perf_counter=lambda: clock[0], process_time=lambda: 1.5 * clock[0]
    )
    monkeypatch.setattr(measuring, "time", fake)
    found = measuring.latency(predict, np.zeros(1), calls=200, seconds=1e9)
    assert found == pytest.approx(
        {"median_ms": 100.5, "p99_ms": 198.01, "calls": 200, "busy_cores": 1.5}
    )
    # 1 + 2 + 3 + 4 milliseconds are enough.
    calls[0] = 0
    assert measuring.latency(predict, np.zeros(1), seconds=0.0095)["calls"] == 4


def test_a_report_is_whole_or_absent(quick, tmp_path, monkeypatch):
    def fail(blocks):
        raise OSError("no space")

    monkeypatch.setattr(report, "page", fail)
    result = shipped(network(), tmp_path / "net")
    assert "no space" in str(result.error)
    assert [name for name in os.listdir(tmp_path / "net") if "report" in name] == []


# From run folders.


def installed(format):
    try:
        importlib.metadata.version(format.runtime)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
def test_a_run_in_all_formats_that_are_installed(tmp_path):
    data = runs.DataSettings(data="digits", image_size=8)
    training = runs.TrainingSettings(model="wrn_10_1", epochs=3, batch_size=50)
    kinds = {
        "teacher": runs.Teacher(),
        "plain": runs.Baseline(),
        "student": runs.Distill(teacher=tmp_path / "teacher"),
    }
    for name, kind in kinds.items():
        source = {} if name == "student" else {"data": data}
        runs.train(kind, tmp_path / name, training, **source, verbose=0)
    formats = [name for name, format in export.FORMATS.items() if installed(format)]
    results = runs.export_run(
        tmp_path / "student",
        tmp_path / "net",
        formats=formats,
        max_drop=0.01,
        teacher=tmp_path / "teacher",
        plain=tmp_path / "plain",
    )
    accuracies = {
        name: runs.evaluate(tmp_path / name, verbose=0)["accuracy"] for name in kinds
    }
    assert {"saved_model", "keras"} <= set(results)
    for name, result in results.items():
        assert result.error is None, name
        found = read(result)
        assert found["images"] == 798
        measured = found["measured"]
        assert list(measured) == ["artefact", "student", "teacher", "plain"]
        for other, accuracy in accuracies.items():
            # The images are rounded.
            assert measured[other]["top1"] == pytest.approx(accuracy, abs=0.005)
        assert measured["artefact"]["top1"] > 0.5
        exact = not name.startswith("litert-")
        agreement = measured["artefact"]["agreement"]
        assert agreement == 1 if exact else agreement > 0.97
        assert measured["artefact"]["bytes"] == measuring.size_on_disk(result.path)
        assert measured["artefact"]["latency"]["1"]["median_ms"] > 0
        assert "wrn_10_1" in content(result, "html")
