"""Students of several runs, from the command line: records, costs, caches, reports."""

import json

import numpy as np
import pytest

from keras_hsakd import TeacherCache, cli, runs
from keras_hsakd.runs import (
    DataSettings,
    Run,
    Teacher,
    TrainingSettings,
    compare,
    costs,
    planning,
    timing,
    train,
)
from keras_hsakd.runs.evaluation import images_measured_on

STUDENT = "--model resnet8 --epochs 1 --batch-size 5 --verbose 0 --weak-teacher"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stand_ins):
    """Returns a folder with the runs of two teachers."""
    folder = tmp_path_factory.mktemp("runs")
    digits = DataSettings(data="digits", image_size=8, limit=8)
    for seed, model in enumerate(("resnet8", "wrn_10_1")):
        training = TrainingSettings(model=model, epochs=1, batch_size=6, seed=seed)
        train(Teacher(), folder / model, training, digits, verbose=0)
    return folder


@pytest.fixture(autouse=True)
def within(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(line):
    return cli.main(line.split())


def test_a_student_of_two_runs(folder, capsys):
    distill = f"distill --teacher resnet8 wrn_10_1 {STUDENT} --output both"
    assert run(distill) == 0, capsys.readouterr().err
    record = Run.open("both").record
    origin = record["origin"]
    assert [each["model"] for each in (origin, *origin["others"])] == [
        "resnet8",
        "wrn_10_1",
    ]
    weights = [Run.open(name).weights_digest() for name in ("resnet8", "wrn_10_1")]
    assert [origin["weights"], origin["others"][0]["weights"]] == weights
    assert run(f"{distill} --resume") == 0  # it is that run
    single = distill.replace(" wrn_10_1", "")
    assert run(f"{single} --resume") == 1
    assert "Expected the settings of the run" in capsys.readouterr().err

    assert run(f"distill --teacher resnet8 {STUDENT} --output one") == 0
    spent = {
        name: costs.spent(Run.open(name).record).training for name in ("both", "one")
    }
    passes = 8 * 4 * sum(Run.open("wrn_10_1").record["parts"].values())
    assert spent["both"] - spent["one"] == passes
    text = compare(["both", "one"]).markdown()
    assert "from resnet8 + wrn_10_1" in text

    quality = runs.measure_quality("both", verbose=0)
    names = [
        each["run"] for each in (quality["teacher"], *quality["teacher"]["others"])
    ]
    assert names == [str(folder / name) for name in ("resnet8", "wrn_10_1")]
    test = images_measured_on(Run.open("both"), {}).test
    images = np.concatenate([images for images, _ in test])
    logits = [
        Run.open(name).network().predict(images)["logits"]
        for name in ("resnet8", "wrn_10_1", "both")
    ]
    likeliest = np.argmax([(logits[0] + logits[1]) / 2, logits[2]], axis=-1)
    agreement = np.mean(likeliest[0] == likeliest[1])
    assert quality["teacher_agreement"] == pytest.approx(agreement)


def test_a_cache_of_two_runs(folder, capsys):
    cache = "cache --teacher resnet8 wrn_10_1 --variants 1 --verbose 0 --output cache"
    assert run(cache) == 0, capsys.readouterr().err
    assert run("cache --check --output cache") == 0
    header = TeacherCache("cache").header
    assert header["origin"]["others"][0]["record"]["training"]["model"] == "wrn_10_1"
    distill = f"distill --cache cache {STUDENT} --output cached"
    assert run(distill) == 0, capsys.readouterr().err
    origin = Run.open("cached").record["origin"]
    assert origin["others"][0]["model"] == "wrn_10_1"
    assert run(f"{distill} --teacher resnet8 wrn_10_1 --resume") == 0
    assert run(f"{distill} --teacher resnet8 --resume") == 1
    assert "Expected `cache` to be of `teacher`" in capsys.readouterr().err


def test_features_are_of_the_first(folder, capsys):
    distill = f"distill {STUDENT} --method attention --output features --teacher"
    assert run(f"{distill} resnet8 wrn_10_1") == 0, capsys.readouterr().err
    header = (folder / "features" / "log.csv").read_text().splitlines()[0]
    assert "attention" in header.split(",")


def test_views_that_differ(folder, capsys):
    training = TrainingSettings(model="resnet8", epochs=1, batch_size=6)
    digits = DataSettings(data="digits", image_size=8, limit=8)
    train(
        Teacher(views="padded_rotations"),
        folder / "padded",
        training,
        digits,
        verbose=0,
    )
    for command in ("cache --variants 1", f"distill {STUDENT}"):
        assert run(f"{command} --teacher resnet8 padded --output nothing") == 1
        assert "learned the same views" in capsys.readouterr().err


def test_a_plan_of_several(folder, monkeypatch):
    def in_a_process(task):
        return json.loads(json.dumps(timing.answer(json.loads(json.dumps(task)))))

    monkeypatch.setattr(planning, "_in_a_process", in_a_process)
    ways = planning._ways
    kept = ("the method", "cached teacher")
    monkeypatch.setattr(
        planning, "_ways", lambda *args: {name: ways(*args)[name] for name in kept}
    )
    student = TrainingSettings(model="resnet8", epochs=1, batch_size=5)
    names = ["resnet8", "wrn_10_1"]
    found = planning.plan(names, student, seconds=0, verbose=0)
    records = [Run.open(name).record for name in names]
    assert found["teacher"]["model"] == "resnet8 + wrn_10_1"
    hours = sum(record["seconds"] for record in records) / 3600
    assert found["teacher"]["hours"] == pytest.approx(hours)
    backbone = sum(record["parts"]["backbone"] for record in records)
    assert found["parts"]["teacher"]["backbone"] == backbone
    exact, cached = (row["of"]["image_multiply_adds"] for row in found["rows"])
    assert exact - cached == 4 * sum(sum(r["parts"].values()) for r in records)
    assert "resnet8 + wrn_10_1 teaches resnet8" in planning.table(found)


def test_two_of_one_teach_as_it_does(folder):
    """The same weights after an epoch, to rounding."""
    for name, teachers in (("once", "resnet8"), ("twice", "resnet8 resnet8")):
        assert run(f"distill --teacher {teachers} {STUDENT} --output {name}") == 0
    once, twice = (Run.open(name).network() for name in ("once", "twice"))
    for received, expected in zip(twice.weights, once.weights, strict=True):
        np.testing.assert_allclose(received, expected, atol=1e-6)
