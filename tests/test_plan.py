"""What a training is foretold to cost; the arithmetic of it is in `test_costs.py`."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from records import write_run

from keras_hsakd import cli
from keras_hsakd.figures import amount
from keras_hsakd.files import read_json, write_json
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    ExecutionSettings,
    Run,
    TrainingSettings,
    plan,
    planning,
    timing,
    train,
    training,
)

DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=5, limit=60)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=2, batch_size=25)
TASK = {
    "teacher": "resnet8",
    "is_run": False,
    "views": "rotations",
    "training": dataclasses.asdict(TRAINING),
    "data": dataclasses.asdict(DIGITS),
    "modules": [],
    "seconds": 0,
}
WAYS = [
    *("teacher", "plain student", "plain distillation", "the method"),
    *(
        "cached teacher",
        "2 of 4 views",
        "2 of 4 views, cached teacher",
        "last head alone",
    ),
]
MEASURED = {
    "seconds_a_step": 3600.0,
    "executions": 3,
    "memory_bytes": 10**9,
    "seconds_a_test_batch": 360.0,
}
MULTIPLY_ADDS = {"teacher": 40_000, "baseline": 3 * 9_832, "distill": 10_000}

pytestmark = pytest.mark.usefixtures("stand_ins")


def answer(task):
    """Returns what a process makes of a task, by this one."""
    return json.loads(json.dumps(timing.answer(json.loads(json.dumps(task)))))


@pytest.fixture(scope="module")
def facts(stand_ins):
    return answer({**TASK, "way": None})


@pytest.fixture
def measured(facts, monkeypatch):
    """Takes what a process would measure from a dict by the names of kinds."""
    by_kind = {kind: dict(MEASURED) for kind in MULTIPLY_ADDS}

    def in_a_process(task):
        if (way := task["way"]) is None:
            return dict(facts)
        found = dict(by_kind[way["kind"]])
        if way["cached"]:
            found["seconds_a_step"] -= 1800
        model = (
            task["teacher"] if way["kind"] == "teacher" else task["training"]["model"]
        )
        settings = {**task["training"], "model": model, "precision": way["precision"]}
        found["of"] = planning.identity(
            way["kind"], settings, facts["images"], MULTIPLY_ADDS[way["kind"]]
        )
        return found

    monkeypatch.setattr(planning, "_in_a_process", in_a_process)
    return by_kind


def test_what_a_plan_knows_of_the_pair(facts):
    images = facts["images"]
    assert (images["train"], images["test"], images["image_size"]) == (50, 60, 8)
    assert (facts["steps"], facts["test_batches"], facts["num_views"]) == (2, 3, 4)
    assert facts["widths"] == {"logits": 10, "aux_1": 40, "aux_2": 40, "aux_3": 40}
    assert facts["parts"]["teacher"]["backbone"] == 9_832


def test_a_teacher_is_measured_by_settings_of_its_own(monkeypatch):
    """What is said of the student's file and layers is not for it."""
    seen = []

    def job(self, way, training):
        seen.append(training)
        raise ValueError("Expected no more")

    monkeypatch.setattr(timing.Pair, "job", job)
    taps = {"taps": ["tiny_stage1_relu"], "freeze_backbone": True}
    task = {**TASK, "training": TASK["training"] | taps}
    for kind in ("teacher", "distill"):
        way = {"kind": kind, "precision": "float32"}
        assert answer({**task, "way": way})["error"] == "Expected no more"
    teacher, student = seen
    assert teacher.model == "resnet8" and student.model == "wrn_10_1"
    assert teacher.taps is None and list(student.taps) == taps["taps"]
    assert (teacher.freeze_backbone, student.freeze_backbone) == (False, True)


def test_modules_of_layers_are_imported_where_it_is_measured(
    facts, tmp_path, monkeypatch
):
    (tmp_path / "layers_of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tasks = []

    def in_a_process(task):
        tasks.append(task)
        return {**facts} if task["way"] is None else {"error": "no"}

    monkeypatch.setattr(planning, "_in_a_process", in_a_process)
    line = "plan --teacher resnet8 --model wrn_10_1 --data digits --image-size 8"
    assert cli.main([*line.split(), "--import", "layers_of_mine"]) == 0
    assert {tuple(task["modules"]) for task in tasks} == {("layers_of_mine",)}
    monkeypatch.delitem(sys.modules, "layers_of_mine")
    answer({**TASK, "way": {}, "modules": ["layers_of_mine"]})
    assert "layers_of_mine" in sys.modules
    found = answer({**TASK, "way": {}, "modules": ["layers_of_nobody"]})
    assert "No module named 'layers_of_nobody'" in found["error"]


def test_hours_and_bytes_of_each_way(measured):
    found = plan("resnet8", TRAINING, DIGITS, teacher_epochs=3, variants=4, verbose=0)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == WAYS
    # Epochs of 2 steps of an hour, and 3 batches of 6 minutes to measure on.
    assert rows["teacher"]["hours"] == pytest.approx(3 * 2.3)
    assert rows["plain student"]["hours"] == pytest.approx(2 * 2.3)
    assert rows["plain student"]["hours_in_all"] == pytest.approx(2 * 2.3)
    assert rows["the method"]["hours_in_all"] == pytest.approx(5 * 2.3)
    # And 4 passes of 2 batches of half an hour, which a cached step takes less.
    cached = rows["2 of 4 views, cached teacher"]
    assert cached["cache_hours"] == pytest.approx(4)
    assert cached["hours_in_all"] == pytest.approx(3 * 2.3 + 2 * 1.3 + 4)
    assert cached["cache_bytes"] == 50 * 4 * 4 * 130 * 2
    assert "cache_bytes" not in rows["the method"]
    assert rows["the method"]["multiply_adds_a_step"] == 250_000
    assert json.loads(json.dumps(found)) == found
    large = dataclasses.replace(TRAINING, batch_size=64)
    method = plan("resnet8", large, DIGITS, verbose=0)["rows"][3]
    assert method["multiply_adds_a_step"] == 500_000


def test_a_way_that_fails_says_so(measured):
    measured["teacher"] = {"error": "out of memory"}
    found = plan("resnet8", TRAINING, DIGITS, verbose=0)
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["teacher"]["error"] == "out of memory"
    assert by_name["the method"]["hours"] > 0
    assert by_name["the method"]["hours_in_all"] is None
    text = planning.table(found)
    assert "teacher: not measured, out of memory" in text
    assert "| the method | 250 k | 3,600 | 4.6 h |  | 1 GB |  |" in text


def test_the_cost_of_a_teacher_that_is_a_run_was_paid(measured, tmp_path):
    folder = tmp_path / "teacher"
    write_run(folder, kind="teacher", data="digits", head="copy")
    run = Run.open(folder)
    found = plan(folder, TRAINING, verbose=0)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == WAYS[1:]
    assert found["data"]["data"] == run.record["data"]["data"]
    assert found["data"]["image_size"] == run.record["images"]["image_size"]
    hours = run.record["seconds"] / 3600
    assert rows["the method"]["hours"] == pytest.approx(2 * 2.3)
    assert rows["the method"]["hours_in_all"] == pytest.approx(2 * 2.3 + hours)
    text = planning.table(found)
    assert f"'{run.path}': {planning._duration(hours)}, paid already" in text
    with pytest.raises(ValueError, match="Expected no `image_size` but 32"):
        plan(folder, TRAINING, {"image_size": 16})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (1234, "1,234 h"),
        (2.504, "2.5 h"),
        (0.5, "30 min"),
        (0.001, "3.6 s"),
    ],
)
def test_hours_are_read_easily(value, text):
    assert planning._duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (2.5e9, "2.5 GB"),
        (2e18, "2,000,000 TB"),
    ],
)
def test_bytes_are_read_easily(value, text):
    assert amount(value, "B") == text


@pytest.mark.parametrize("name", ["2 of 4 views, cached teacher", "last head alone"])
def test_a_way_is_measured_by_training(name, facts):
    known = {
        "training": TASK["training"],
        "views": "rotations",
        "teacher": {"run": None},
    }
    way = planning._ways({**facts, **known}, 2)[name]
    found = answer({**TASK, "way": way})
    assert found.pop("executions") == 3
    assert found.pop("memory_bytes") >= 0
    for name in ("step", "test_batch"):
        assert 0 < found.pop(f"seconds_a_{name}") < 10
    of = found.pop("of")
    assert (of["kind"], of["model"], of["batch_size"]) == ("distill", "wrn_10_1", 25)
    backbone, aux_1, aux_2, aux_3 = facts["parts"]["student"].values()
    heads = aux_1 + aux_2 + aux_3
    assert of["image_multiply_adds"] == (
        2 * 3 * (backbone + heads)
        if way["cached"]
        else 4 * (3 + 1) * (backbone + aux_3)
    )
    assert not found


@pytest.fixture
def found(measured, tmp_path):
    """Returns the path of a plan."""
    write_json(tmp_path / "plan.json", plan("resnet8", TRAINING, DIGITS, verbose=0))
    return tmp_path / "plan.json"


def record(facts, kind, image_multiply_adds, **settings):
    return {
        "kind": kind,
        "training": {**TASK["training"], **settings},
        "images": facts["images"],
        "image_multiply_adds": image_multiply_adds,
    }


def test_a_training_finds_its_row(found, facts):
    names = {"teacher": "teacher", "baseline": "plain student"}
    for kind, name in names.items():
        model = {"model": "resnet8"} if kind == "teacher" else {}
        known = record(facts, kind, MULTIPLY_ADDS[kind], **model)
        row = planning.planned(found, known)
        assert (row["name"], row["hours"]) == (name, pytest.approx(2 * 2.3))
    with pytest.raises(ValueError, match="with epochs=3, image_multiply_adds=2. Rec"):
        planning.planned(found, record(facts, "baseline", 2, epochs=3))
    with pytest.raises(ValueError, match="with model='/elsewhere/mine.keras'. Rec"):
        planning.planned(
            found, record(facts, "baseline", 29_496, model="/elsewhere/mine.keras")
        )


def test_networks_may_be_files(facts, measured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = dataclasses.replace(TRAINING, model="mine.keras", preprocessing="inside")
    written = plan("teacher.keras", mine, DIGITS, verbose=0)
    assert planning.table(written).startswith("teacher.keras teaches mine.keras: ")


def test_a_plan_of_another_machine_is_warned_of(found, facts):
    content = read_json(found)
    content["machine"]["cores"] = 1000
    write_json(found, content)
    with pytest.warns(UserWarning, match="another machine, with cores 1000"):
        row = planning.planned(found, record(facts, "baseline", 29_496))
    assert row["machine"]["cores"] == 1000


def test_settings_that_do_not_suit(facts, measured, tmp_path):
    for options, message in (
        ({"variants": 0}, "Expected `variants` to be at least 1"),
        ({"sampled_views": 1}, "Expected `sampled_views` to be at least 2"),
        ({"teacher": "resnet9"}, "a run folder or a network.*mean 'resnet8'"),
        ({"data": None}, "Expected `data` for a teacher that is to be trained"),
    ):
        arguments = {"teacher": "resnet8", "training": TRAINING, "data": DIGITS}
        with pytest.raises(ValueError, match=message):
            plan(**{**arguments, **options})
    facts_of = {"error": "Expected `data` to be"}
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ValueError, match="Expected `data` to be"),
    ):
        patch.setattr(planning, "_in_a_process", lambda task: facts_of)
        plan("resnet8", TRAINING, DIGITS)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("kill -9 $$", "was killed, as where memory runs out"),
        ("echo no space >&2; exit 3", "ended with exit code 3: no space"),
    ],
)
def test_a_process_that_ends_without_an_answer(script, error, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(planning.sys, "executable", str(python))
    found = planning._in_a_process({})
    assert re.fullmatch(error, found["error"])


def test_from_a_plan_to_what_a_training_took(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = "--data digits --image-size 8 --examples-per-class 5 --limit 60"
    network = "--model wrn_10_1 --epochs 2 --batch-size 25"
    line = f"plan --teacher resnet8 {flags} {network} --output plan.json"
    assert cli.main(line.split()) == 0, capsys.readouterr().err
    assert "| the method | 250 k |" in capsys.readouterr().out
    row = {r["name"]: r for r in read_json("plan.json")["rows"]}["plain student"]

    line = f"baseline {flags} {network} --verbose 0 --plan plan.json --output run"
    assert cli.main(line.split()) == 0, capsys.readouterr().err
    record = Run.open("run").record
    assert record["planned"]["hours"] == row["hours"]
    assert record["planned"]["name"] == "plain student"
    assert record["planned"]["plan"] == str(tmp_path / "plan.json")
    assert record["took"]["seconds_a_step"] > 0

    assert cli.main([*line.split(), "--batch-size", "20", "--output", "other"]) == 1
    error = capsys.readouterr().err
    assert "with batch_size=20" in error
    assert "nearest row, 'plain student', has batch_size=25" in error
    assert not os.path.exists("other")


def test_a_run_that_goes_on_may_be_given_a_plan(found, tmp_path, monkeypatch):
    def stop(self, batch, logs=None):
        raise KeyboardInterrupt

    execution = ExecutionSettings(resume=True, snapshot_steps=1)
    arguments = (Baseline(), tmp_path / "run", TRAINING, DIGITS)
    with (
        pytest.raises(KeyboardInterrupt),
        pytest.MonkeyPatch.context() as patch,
    ):
        # The steps before have snapshots.
        patch.setattr(training.StepSeconds, "on_epoch_end", stop)
        train(*arguments, execution, verbose=0)
    assert "planned" not in Run.open(tmp_path / "run").record
    execution = dataclasses.replace(execution, plan=str(found))
    run = train(*arguments, execution, verbose=0)
    assert run.record["planned"]["name"] == "plain student"
    assert run.record["took"]["seconds_a_step"] > 0


def test_what_is_no_plan_is_refused(tmp_path):
    write_json(tmp_path / "other.json", {"format": 3})
    execution = ExecutionSettings(plan=str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match="Expected `plan` to be a file that"):
        train(Baseline(), tmp_path / "run", TRAINING, DIGITS, execution, verbose=0)
    assert not os.path.exists(tmp_path / "run")


@pytest.mark.slow
def test_the_command_with_the_processes_that_it_starts(tmp_path):
    # Here `models` has no stand-ins.
    words = "plan --teacher wrn_10_1 --model wrn_10_1 --data digits --image-size 8"
    words += " --examples-per-class 5 --limit 60 --seconds 0.5 --output plan.json"
    code = "import sys; from keras_hsakd import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, *words.split()]
    subprocess.run(command, cwd=tmp_path, check=True)
    rows = read_json(tmp_path / "plan.json")["rows"]
    assert [row["name"] for row in rows] == WAYS
    for row in rows:
        assert row["hours"] > 0, row
        assert row["memory_bytes"] > 2**20
