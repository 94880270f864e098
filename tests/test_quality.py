"""What a network is worth beyond its accuracy, beside plain NumPy."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import cli, lock, strip_heads
from keras_hsakd.data import corruptions
from keras_hsakd.network_files import CHECKPOINTS, checkpoint_path, save_with_results
from keras_hsakd.runs import (
    DataSettings,
    Run,
    TrainingSettings,
    evaluate,
    measure_quality,
)
from keras_hsakd.runs.images import load
from keras_hsakd.runs.quality import (
    Answers,
    answers_of,
    by_class,
    by_view,
    changed_most,
    figures,
)
from keras_hsakd.runs.record import FORMAT

ROTATIONS = ("0°", "90°", "180°", "270°")
DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=1, limit=60)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=1, batch_size=30)

rng = np.random.default_rng(0)


def made_up(classes=7, count=300):
    """Returns answers of a network that is right more often than not."""
    labels = rng.integers(0, classes, count)
    labels[labels == 5] = 4  # there is no image of class 5
    logits = rng.normal(size=(count, classes)) + 2 * np.eye(classes)[labels]
    others = {
        "teacher": logits + rng.normal(size=logits.shape),
        "beside": rng.normal(size=logits.shape) + np.eye(classes)[labels],
    }
    seen = {
        "accuracy": rng.random((count, 4)) < 0.6,
        "aux_1_joint_accuracy": rng.random((count, 4)) < 0.3,
        "aux_1_class_accuracy": rng.random((count, 4)) < 0.5,
    }
    seen["accuracy"][:, 0] = logits.argmax(axis=1) == labels
    corrupted = {name: rng.random(count) < 0.4 for name in corruptions.names()}
    return Answers(labels, logits, seen, corrupted, others)


def test_figures_are_those_of_their_definitions():
    answers = made_up()
    found = figures(answers, ROTATIONS)
    labels, count = answers.labels, len(answers.labels)
    powers = np.exp(answers.logits)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    likeliest = probabilities.argmax(axis=1)
    order = np.argsort(-probabilities, axis=1)
    of_labels = probabilities[np.arange(count), labels]
    assert found["accuracy"] == pytest.approx(np.mean(likeliest == labels))
    fifth = [label in row[:5] for label, row in zip(labels, order, strict=True)]
    assert found["top_5_accuracy"] == pytest.approx(np.mean(fifth))
    assert found["negative_log_likelihood"] == pytest.approx(-np.log(of_labels).mean())
    squares = ((probabilities - np.eye(7)[labels]) ** 2).sum(axis=1)
    assert found["brier_score"] == pytest.approx(squares.mean())
    highest = probabilities.max(axis=1)
    error = 0
    for number in range(15):
        rows = (highest > number / 15) & (highest <= (number + 1) / 15)
        if rows.any():
            gap = np.mean(likeliest[rows] == labels[rows]) - highest[rows].mean()
            error += rows.mean() * abs(gap)
    assert found["expected_calibration_error"] == pytest.approx(error)
    teacher = np.exp(answers.others["teacher"])
    teacher /= teacher.sum(axis=1, keepdims=True)
    agreement = np.mean(teacher.argmax(axis=1) == likeliest)
    assert found["teacher_agreement"] == pytest.approx(agreement)
    divergence = (teacher * np.log(teacher / probabilities)).sum(axis=1).mean()
    assert found["teacher_divergence"] == pytest.approx(divergence)
    for name in ("aux_1_joint_accuracy", "aux_1_class_accuracy"):
        assert found[name] == pytest.approx(np.mean(answers.seen[name]))
    for number, degrees in ((1, 90), (2, 180), (3, 270)):
        expected = np.mean(answers.seen["accuracy"][:, number])
        assert found[f"accuracy_under_{degrees}_degrees"] == pytest.approx(expected)
    under = {name: np.mean(right) for name, right in answers.corrupted.items()}
    for name, expected in under.items():
        assert found[f"accuracy_under_{name}"] == pytest.approx(expected)
    mean = np.mean(list(under.values()))
    assert found["accuracy_under_corruptions"] == pytest.approx(mean)
    assert len(found) == 7 + 2 + 3 + len(under) + 1
    assert {type(value) for value in found.values()} == {float}


def test_by_view_and_by_class():
    answers = made_up()
    names = list("abcdefg")
    views = by_view(answers, ROTATIONS)
    assert list(views) == ["0_degrees", "90_degrees", "180_degrees", "270_degrees"]
    for name, right in answers.seen.items():
        assert views["180_degrees"][name] == pytest.approx(np.mean(right[:, 2]))
    classes = by_class(answers, names)
    assert list(classes) == list("abcdeg")
    rows = answers.labels == 3
    assert classes["d"]["images"] == rows.sum()
    right = answers.logits[rows].argmax(axis=1) == 3
    assert classes["d"]["accuracy"] == pytest.approx(right.mean())
    head = answers.seen["aux_1_class_accuracy"][rows].mean()
    assert classes["d"]["aux_1_class_accuracy"] == pytest.approx(head)
    assert "aux_1_joint_accuracy" not in classes["d"]

    found = changed_most(answers, names)
    beside = answers.others["beside"].argmax(axis=1)
    assert found["accuracy"] == pytest.approx(np.mean(beside == answers.labels))
    gains = {
        name: np.mean(answers.logits[answers.labels == number].argmax(axis=1) == number)
        - np.mean(beside[answers.labels == number] == number)
        for number, name in enumerate(names)
        if name != "f"
    }
    expected = sorted((n for n in gains if gains[n] > 0), key=lambda n: -gains[n])[:5]
    assert [entry["class"] for entry in found["gained_most"]] == expected
    for which in ("gained_most", "lost_most"):
        for entry in found[which]:
            gain = entry["accuracy"] - entry["beside"]
            assert gain == pytest.approx(gains[entry["class"]])
            assert (gain > 0) == (which == "gained_most")


def test_few_classes_have_no_five_likeliest():
    assert "top_5_accuracy" in figures(made_up(6), ROTATIONS)
    assert "top_5_accuracy" not in figures(made_up(5), ROTATIONS)


def numpy_of(network, images):
    return {k: np.asarray(v) for k, v in network(images.astype("float32")).items()}


def test_a_network_is_asked_about_views_and_corruptions(tiny_network, monkeypatch):
    network, other = tiny_network(), tiny_network("other")
    images = rng.integers(0, 256, (11, 8, 8, 3)).astype("float32")
    labels = rng.integers(0, 3, 11)
    test = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    drawn = []

    def corrupted(pixels, name, severity, seed, indices):
        drawn.extend(indices if name == "gaussian_noise" else ())
        return original(pixels, name, severity, seed, indices)

    original = corruptions.corrupted
    with monkeypatch.context() as patch:
        patch.setattr(corruptions, "corrupted", corrupted)
        others = {"beside": [other]}
        answers = answers_of(network, test, severity=5, seed=7, others=others)
    assert drawn == list(range(11))
    np.testing.assert_array_equal(answers.labels, labels)
    np.testing.assert_allclose(
        answers.others["beside"], numpy_of(other, images)["logits"], rtol=1e-4
    )
    for turns in range(4):
        outputs = numpy_of(network, np.rot90(images, turns, axes=(1, 2)))
        if turns == 0:
            np.testing.assert_allclose(answers.logits, outputs["logits"], rtol=1e-4)
        expected = {"accuracy": outputs["logits"].argmax(axis=1) == labels}
        for head in ("aux_1", "aux_2"):
            joint = outputs[head].argmax(axis=1)
            classes = outputs[head].reshape(-1, 3, 4).sum(axis=2).argmax(axis=1)
            expected[f"{head}_joint_accuracy"] = joint == 4 * labels + turns
            expected[f"{head}_class_accuracy"] = classes == labels
        assert set(answers.seen) == set(expected)
        for name, right in expected.items():
            np.testing.assert_array_equal(answers.seen[name][:, turns], right)
    for name in corruptions.names():
        changed = corruptions.corrupted(images, name, severity=5, seed=7)
        right = numpy_of(network, changed)["logits"].argmax(axis=1) == labels
        np.testing.assert_array_equal(answers.corrupted[name], right)


@pytest.fixture(scope="module")
def runs(tiny_network, tmp_path_factory):
    """Returns a folder with a teacher, its student, and a network without either."""
    folder = tmp_path_factory.mktemp("runs")
    results = {"epoch": 1, "val_accuracy": 0.1}
    images = load(DIGITS, TRAINING.batch_size, TRAINING.seed).record()

    def write(kind, network, origin=None):
        record = {
            "format": FORMAT,
            "kind": kind,
            "options": {},
            "data": dataclasses.asdict(DIGITS),
            "training": dataclasses.asdict(TRAINING),
            "origin": origin,
            "execution": {},
            "views": "rotations",
            "images": images,
            "status": "finished",
            "epochs_done": 1,
            "monitor": "val_accuracy",
            "last": results,
            "best": results,
            "seconds": 0.0,
        }
        run = Run(str(folder / kind), record)
        run.begin()
        for checkpoint in CHECKPOINTS:
            path = checkpoint_path(run.path, checkpoint)
            save_with_results(network, path, results)
        return run

    teacher = write("teacher", tiny_network(num_classes=10, heads=1))
    write("baseline", strip_heads(tiny_network(num_classes=10, heads=1)))
    weights = teacher.weights_digest()
    origin = {
        "run": teacher.path,
        "model": TRAINING.model,
        "checkpoint": "last",
        "weights": weights,
    }
    write("distill", tiny_network(num_classes=10, heads=1), origin)
    return folder


def test_the_quality_of_a_run_stands_in_its_folder(runs, capfd):
    student, teacher, baseline = (
        str(runs / name) for name in ("distill", "teacher", "baseline")
    )
    line = f"evaluate {student} --quality --beside {baseline} --verbose 0"
    assert cli.main(line.split()) == 0, capfd.readouterr().err
    printed = capfd.readouterr().out
    found = json.loads((runs / "distill" / "quality.json").read_text())
    for text in (
        "last epoch, on 60 test images of digits",
        f"teacher agreement              {found['teacher_agreement']:8.4f}",
        f"accuracy under contrast        {found['accuracy_under_contrast']:8.4f}",
        f"\n{'view':11}     accuracy  aux 1 joint  aux 1 class",
        "\n270_degrees  ",
        "\nhardest classes  ",
        f"beside {baseline}, accuracy {found['beside']['accuracy']:.4f}",
        f"Wrote {student}/quality.json",
    ):
        assert text in printed
    results = evaluate(student, heads=True, verbose=0)
    for name, value in results.items():
        name = "negative_log_likelihood" if name == "loss" else name
        assert found[name] == pytest.approx(value, rel=1e-4)
    accuracies = found["by_view"]["90_degrees"]
    assert found["accuracy_under_90_degrees"] == accuracies["accuracy"]
    assert sum(of["images"] for of in found["by_class"].values()) == 60
    assert found["teacher"]["run"] == teacher
    assert found["teacher"]["weights"] == Run.open(teacher).weights_digest()
    assert found["weights"] == Run.open(student).weights_digest()
    assert found["images"] == {
        "data": "digits",
        "measured_on": "test images",
        "count": 60,
        "fingerprint": load(DIGITS, 30, 0).test.fingerprint(),
    }

    # Of a network without heads, on other images, elsewhere.
    output = runs / "elsewhere.json"
    plain = measure_quality(
        baseline, "best", student, output=output, verbose=0, validation=True
    )
    assert json.loads(output.read_text()) == plain
    assert not os.path.exists(Run.open(baseline).quality)
    assert (plain["beside"], plain["checkpoint"]) == (None, "best")
    assert plain["images"]["measured_on"] == "validation images"
    assert plain["teacher"]["run"] == student
    assert set(plain["by_view"]["0_degrees"]) == {"accuracy"}
    validation = evaluate(baseline, "best", verbose=0, validation=True)
    assert plain["accuracy"] == pytest.approx(validation["accuracy"])


@pytest.mark.parametrize(
    "change, reason",
    [("gone", "Expected a run folder.* is not a folder"), ("other", "trained again")],
)
def test_a_teacher_that_is_not_there_any_more_is_missed(
    runs, tmp_path, capfd, change, reason
):
    run = Run.open(shutil.copytree(runs / "distill", tmp_path / "student"))
    if change == "gone":
        run.record["origin"]["run"] = str(tmp_path / "teacher")
    else:
        run.record["origin"]["weights"] = "0123456789abcdef"
    run.write()
    line = f"evaluate {run.path} --severity 1 --limit 10 --verbose 0"
    assert cli.main(line.split()) == 0, capfd.readouterr().err
    assert "no agreement with the teacher: " in capfd.readouterr().out
    found = json.loads((tmp_path / "student" / "quality.json").read_text())
    (missing,) = found["teacher"].values()
    assert "teacher_agreement" not in found
    assert found["corruptions"]["severity"] == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(missing)


def test_what_does_not_suit_is_refused_before_anything_is_measured(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="`output` to be a file in a folder"):
        measure_quality(runs / "distill", output=tmp_path / "none" / "quality.json")
    with pytest.raises(ValueError, match="no `image_size`, which the network"):
        measure_quality(runs / "distill", image_size=16)
    holder = f"distill', where process {os.getpid()} on"
    with lock.held(runs / "distill"), pytest.raises(BlockingIOError, match=holder):
        measure_quality(runs / "distill")
    other = Run.open(shutil.copytree(runs / "baseline", tmp_path / "other"))
    other.record["images"]["class_names"] = list("abcdefghij")
    other.write()
    with pytest.raises(ValueError, match="`beside` to be a run with the classes of"):
        measure_quality(runs / "distill", beside=other.path)


def test_a_run_that_is_replaced_loses_its_quality(runs, tmp_path):
    run = Run.open(shutil.copytree(runs / "baseline", tmp_path / "run"))
    open(run.quality, "w").close()
    with run.begun():
        assert not os.path.exists(run.quality)
        shutil.copy(runs / "baseline" / "last.keras", run.path)
    assert not os.path.exists(run.quality)
