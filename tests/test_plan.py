"""What a training is foretold to cost; the arithmetic of it is in `test_costs.py`."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types

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
    measuring,
    plan,
    planning,
    train,
    training,
)
from keras_hsakd.runs.kinds import Origin
from keras_hsakd.teachers import TeacherCache

DIGITS = DataSettings(data="digits", image_size=8, examples_per_class=5, limit=60)
TRAINING = TrainingSettings(model="wrn_10_1", epochs=2, batch_size=25)
PAIR = measuring.Pair(
    teacher="resnet8", is_run=False, views="rotations", training=TRAINING, data=DIGITS
)
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

pytestmark = pytest.mark.usefixtures("stand_ins")


def answer(task):
    """Returns what a process makes of a task, by this one."""
    task = {"modules": [], **task}
    return json.loads(json.dumps(measuring.answer(json.loads(json.dumps(task)))))


@pytest.fixture(scope="module")
def facts(stand_ins):
    return answer({"pair": dataclasses.asdict(PAIR), "way": None})


@pytest.fixture
def measured(facts, monkeypatch):
    """Takes what a process would measure from a dict by the names of kinds."""
    by_kind = {
        "teacher": MEASURED,
        "baseline": MEASURED,
        "distill": {**MEASURED, "seconds_a_cached_batch": 1800.0},
    }

    def in_a_process(task, timeout):
        way = task["way"]
        return {**facts} if way is None else by_kind[way["kind"]]

    monkeypatch.setattr(planning, "_in_a_process", in_a_process)
    return by_kind


def test_what_a_plan_knows_of_the_pair(facts):
    assert facts["images"] == {"train": 50, "test": 60, "image_size": 8, "classes": 10}
    assert (facts["steps"], facts["test_batches"], facts["num_views"]) == (2, 3, 4)
    assert facts["widths"] == {"logits": 10, "aux_1": 40, "aux_2": 40, "aux_3": 40}
    assert facts["pairs"] == [[f"aux_{i}"] * 2 for i in (1, 2, 3)]


def test_a_teacher_is_measured_by_settings_of_its_own(monkeypatch):
    """What is said of the student's file and layers is not for it."""
    seen = []

    def job(self, way, training, images):
        seen.append(training)
        raise ValueError("Expected no more")

    monkeypatch.setattr(measuring.Pair, "job", job)
    taps = {"taps": ("tiny_stage1_relu",), "freeze_backbone": True}
    pair = dataclasses.replace(PAIR, training=dataclasses.replace(TRAINING, **taps))
    task = {"pair": dataclasses.asdict(pair), "seconds": 0}
    for model in ("resnet8", "wrn_10_1"):
        way = planning.Way(kind="teacher" if model == "resnet8" else "distill", views=4)
        task |= {"way": dataclasses.asdict(way), "model": model}
        assert answer(task)["error"] == "Expected no more"
    teacher, student = seen
    assert teacher.model == "resnet8" and student.model == "wrn_10_1"
    assert teacher.taps is None and student.taps == ["tiny_stage1_relu"]
    assert (teacher.freeze_backbone, student.freeze_backbone) == (False, True)


def test_modules_of_layers_are_imported_where_it_is_measured(
    facts, tmp_path, monkeypatch
):
    (tmp_path / "layers_of_mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tasks = []

    def in_a_process(task, timeout):
        tasks.append(task)
        return {**facts} if task["way"] is None else {**MEASURED, "error": "no"}

    monkeypatch.setattr(planning, "_in_a_process", in_a_process)
    line = "plan --teacher resnet8 --model wrn_10_1 --data digits --image-size 8"
    assert cli.main([*line.split(), "--import", "layers_of_mine"]) == 0
    assert {tuple(task["modules"]) for task in tasks} == {("layers_of_mine",)}
    monkeypatch.delitem(sys.modules, "layers_of_mine")
    task = {"pair": dataclasses.asdict(PAIR), "way": {}}
    answer({**task, "modules": ["layers_of_mine"]})
    assert "layers_of_mine" in sys.modules
    found = answer({**task, "modules": ["layers_of_nobody"]})
    assert "No module named 'layers_of_nobody'" in found["error"]


def test_what_is_frozen_costs_no_gradients(measured):
    frozen = dataclasses.replace(TRAINING, freeze_backbone=True)
    rows = {
        row["name"]: row for row in plan("resnet8", frozen, DIGITS, verbose=0)["rows"]
    }
    backbone, heads = 9_832, 12_576
    per_step = {name: row["multiply_adds_a_step"] / 25 for name, row in rows.items()}
    assert per_step["teacher"] == 4 * 3 * (backbone + heads)
    assert per_step["plain student"] == backbone
    assert per_step["cached teacher"] == 4 * (backbone + 3 * heads)


def test_hours_and_bytes_of_each_way(measured):
    found = plan("resnet8", TRAINING, DIGITS, teacher_epochs=3, variants=4, verbose=0)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == WAYS
    # Epochs of 2 steps of an hour, and 3 batches of 6 minutes to measure on.
    assert rows["teacher"]["hours"] == pytest.approx(3 * 2.3)
    assert rows["plain student"]["hours"] == pytest.approx(2 * 2.3)
    assert rows["plain student"]["hours_in_all"] == pytest.approx(2 * 2.3)
    assert rows["the method"]["hours_in_all"] == pytest.approx(5 * 2.3)
    # And 4 passes of 2 batches of half an hour.
    cached = rows["2 of 4 views, cached teacher"]
    assert cached["cache_hours"] == pytest.approx(4)
    assert cached["hours_in_all"] == pytest.approx(5 * 2.3 + 4)
    assert cached["cache_bytes"] == 50 * 4 * 4 * 130 * 2
    assert rows["the method"]["cache_bytes"] is None
    # 25 images under 4 views, through 9,832 of a backbone and 12,576 of heads.
    assert rows["the method"]["multiply_adds_a_step"] == 25 * 4 * (3 + 1) * 22_408
    assert json.loads(json.dumps(found)) == found
    large = dataclasses.replace(TRAINING, batch_size=64)
    method = plan("resnet8", large, DIGITS, verbose=0)["rows"][3]
    assert method["multiply_adds_a_step"] == 50 * 4 * (3 + 1) * 22_408


def test_a_way_that_fails_says_so(measured):
    measured["teacher"] = {"error": "out of memory", "kind": "MemoryError"}
    found = plan("resnet8", TRAINING, DIGITS, verbose=0)
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["teacher"]["error"] == "out of memory"
    assert by_name["the method"]["hours"] > 0
    assert by_name["the method"]["hours_in_all"] is None
    text = planning.table(found)
    assert "teacher: not measured, out of memory" in text
    assert "| the method | 8.96 M | 3,600 | 4.6 h |  | 1 GB |  |" in text


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
    for data in ({"image_size": 16}, {"unlabeled": "photos"}):
        with pytest.raises(ValueError, match=f"Expected no `{next(iter(data))}`: "):
            plan(folder, TRAINING, data)


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


def test_a_way_is_measured_by_training(facts):
    heads = list(facts["parts"]["teacher"])[1:]
    ways = planning.ways(heads, facts["pairs"], 4, 2, "float32")
    way = dataclasses.asdict(ways["2 of 4 views, cached teacher"])
    task = {"pair": dataclasses.asdict(PAIR), "way": way, "seconds": 0}
    found = answer({**task, "model": "wrn_10_1"})
    assert found.pop("executions") == 3
    assert found.pop("memory_bytes") >= 0
    for name in ("step", "test_batch", "cached_batch"):
        assert 0 < found.pop(f"seconds_a_{name}") < 10
    assert not found


@pytest.fixture
def found(measured, tmp_path):
    """Returns the path of a plan."""
    write_json(tmp_path / "plan.json", plan("resnet8", TRAINING, DIGITS, verbose=0))
    return tmp_path / "plan.json"


def learning_from(model, **known):
    """Returns the origin of a student whose teacher is a run of a network."""
    record = {"training": {"model": model}, **known}
    return Origin(Run("teacher", record), "last", "teacher")


def test_a_training_finds_its_row(found, facts):
    images, heads = PAIR.images(), list(facts["parts"]["teacher"])[1:]
    ways = planning.ways(heads, facts["pairs"], 4, 2, "float32")
    job = PAIR.job(ways["cached teacher"], TRAINING, images)
    assert isinstance(job.trainer, measuring.ConstantTeacher)
    names = ("teacher", "plain student", "2 of 4 views", "last head alone")
    for name in (*names, "the method"):
        kind = ways[name].kind
        settings = TRAINING
        if kind == "teacher":
            settings = dataclasses.replace(TRAINING, model="resnet8")
        job = PAIR.job(ways[name], settings, images)
        training.compile_job(job, settings, images, ExecutionSettings())
        origin = learning_from("resnet8") if kind == "distill" else None
        record = images.record()
        row = planning.planned(found, kind, job.trainer, settings, record, origin)
        assert row["name"] == name
    cache = TeacherCache.__new__(TeacherCache)
    cached = types.SimpleNamespace(
        network=job.network,
        num_seen=4,
        teacher=cache,
        trained_outputs=job.trainer.trained_outputs,
    )
    row = planning.planned(found, kind, cached, TRAINING, record, origin)
    assert row["name"] == "cached teacher"
    with pytest.raises(ValueError, match="with origin='resnet14', epochs=3. Received"):
        longer = dataclasses.replace(TRAINING, epochs=3)
        other = learning_from("resnet14")
        planning.planned(found, kind, job.trainer, longer, record, other)


def test_a_plan_is_of_networks_whatever_their_names(
    facts, measured, tmp_path, monkeypatch
):
    """Files may be named from elsewhere; the same name may have other heads."""
    monkeypatch.chdir(tmp_path)
    mine = dataclasses.replace(TRAINING, model="mine.keras", preprocessing="inside")
    written = plan("teacher.keras", mine, DIGITS, verbose=0)
    assert planning.table(written).startswith("teacher.keras teaches mine.keras: ")
    write_json("plan.json", written)
    images, parts = PAIR.images(), facts["parts"]
    ways = planning.ways(list(parts["teacher"])[1:], facts["pairs"], 4, 4, "float32")
    job = PAIR.job(ways["the method"], TRAINING, images)
    training.compile_job(job, TRAINING, images, ExecutionSettings())

    def planned(of_teacher, folder=tmp_path, **changes):
        settings = dataclasses.replace(mine, model=str(folder / "mine.keras"))
        settings = dataclasses.replace(settings, **changes)
        origin = learning_from(str(tmp_path / "teacher.keras"), **of_teacher)
        arguments = ("distill", job.trainer, settings, images.record(), origin)
        return planning.planned(tmp_path / "plan.json", *arguments)["name"]

    right = {"parts": parts["teacher"]}
    other = {"parts": {**parts["teacher"], "aux_3": 1}}
    assert planned(right) == planned({}) == "the method"
    with pytest.raises(ValueError, match="with model='/elsewhere/mine.keras'. Rec"):
        planned(right, pathlib.Path("/elsewhere"))
    with pytest.raises(ValueError, match="with frozen=True. Received"):
        planned(right, freeze_backbone=True)
    with pytest.raises(ValueError, match="with origin_multiply_adds={.*'aux_3': 1}"):
        planned(other)
    monkeypatch.setattr(planning, "multiply_adds_by_part", lambda net: other["parts"])
    with pytest.raises(ValueError, match="with multiply_adds={.*'aux_3': 1}. Rec"):
        planned(right)


def test_a_plan_of_another_machine_is_warned_of(found, facts):
    content = read_json(found)
    content["machine"]["cores"] = 1000
    write_json(found, content)
    images = PAIR.images()
    job = PAIR.job(planning.Way(kind="baseline", views=1), TRAINING, images)
    with pytest.warns(UserWarning, match="another machine, with cores 1000"):
        row = planning.planned(
            found, "baseline", job.trainer, TRAINING, images.record(), None
        )
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
    facts_of = {"error": "Expected `data` to be", "kind": "FileNotFoundError"}
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(FileNotFoundError, match="Expected `data` to be"),
    ):
        patch.setattr(planning, "_in_a_process", lambda task, timeout: facts_of)
        plan("resnet8", TRAINING, DIGITS)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exec sleep 9", "took more than 0.2 seconds"),
        ("kill -9 $$", r"was killed \(SIGKILL\), as where memory runs out"),
        ("echo no space >&2; exit 3", "ended with exit code 3: no space"),
    ],
)
def test_a_process_that_ends_without_an_answer(script, error, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(planning.sys, "executable", str(python))
    found = planning._in_a_process({}, 0.2 if "took" in error else 20)
    assert re.fullmatch(error, found["error"])


def test_from_a_plan_to_what_a_training_took(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = "--data digits --image-size 8 --examples-per-class 5 --limit 60"
    network = "--model wrn_10_1 --epochs 2 --batch-size 25"
    line = f"plan --teacher resnet8 {flags} {network} --output plan.json"
    assert cli.main(line.split()) == 0, capsys.readouterr().err
    assert "| the method | 8.96 M |" in capsys.readouterr().out
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
