import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import (
    checkpoints,
    cli,
    commands,
    demo,
    models,
    runs,
    strip_heads,
    tryout,
)
from keras_hsakd.export import measuring
from keras_hsakd.runs import (
    Distill,
    ExecutionSettings,
    Run,
    TrainingSettings,
    evaluate,
)

SMALL = "--data digits --image-size 8 --examples-per-class 5 --limit 50 --batch-size 25"


def test_from_a_teacher_to_a_served_student(
    stand_ins_once, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    few_calls = functools.partial(measuring.latency, calls=2)
    monkeypatch.setattr(measuring, "latency", few_calls)
    (tmp_path / "card.json").write_text('{"licence": "MIT"}')
    measured = "--format keras --max-drop 1 --teacher teacher --card card.json"
    network = "--model wrn_10_1 --epochs 1 --verbose 2"
    for line, printed in (
        (f"teacher {SMALL} {network} --output teacher", "on test images: last"),
        (f"distill --teacher teacher {network} --output student", "kl_aux_1: "),
        ("evaluate student --heads --verbose 0", "aux_1_joint_accuracy 0."),
        ("evaluate student --checkpoint best --validation", "accuracy 0."),
        ("export student serving/student", "Wrote serving/student/1 (saved_model)"),
        (f"export student serving/student/1 {measured}", "student/1.keras (keras)"),
    ):
        assert cli.main(line.split()) == 0, capfd.readouterr().err
        assert printed in capfd.readouterr().out
    folder = tmp_path / "serving" / "student"
    assert (folder / "1" / "saved_model.pb").exists()
    report = (folder / "1.keras.report" / "report.md").read_text("utf-8")
    assert "|  | keras | student | teacher |" in report
    assert "### Licence\n\nMIT" in report
    assert cli.main(["export", "student", "serving/student/1"]) == 1
    assert "Received: saved_model: Expected `path` to be" in capfd.readouterr().err

    again = f"distill --teacher teacher {network} --output student"
    assert cli.main(again.split()) == 1
    error = capfd.readouterr().err
    assert "holds a distill run of wrn_10_1, finished after 1 of 1 epochs" in error
    assert "`--overwrite` replaces it" in error


@pytest.mark.slow
def test_checkpoints_of_others_teach_and_go_back(
    eager_trainers, tmp_path, monkeypatch, capfd
):
    numpy = pytest.importorskip("safetensors.numpy")
    monkeypatch.chdir(tmp_path)
    network = models.create("wrn_10_1", 10, (8, 8, 3))
    checkpoints.save_torch(network, "whole.safetensors")
    checkpoints.save_torch(strip_heads(network), "backbone.safetensors")
    compiled = numpy.load_file("whole.safetensors").items()
    compiled = {f"_orig_mod.module.{key}": value for key, value in compiled}
    numpy.save_file(compiled, "compiled.safetensors")
    convert = f"--model wrn_10_1 {SMALL.partition('--batch-size')[0]} --verbose 0"
    few = "--model wrn_10_1 --epochs 1 --batch-size 25 --verbose 0"
    for line, printed in (
        (f"convert compiled.safetensors whole {convert}", "Accuracy "),
        (f"convert backbone.safetensors backbone {convert}", "Accuracy "),
        (f"distill --teacher whole {few} --output student", "Wrote "),
        (f"teacher {SMALL} {few} --backbone backbone --output teacher", "Wrote "),
        ("convert whole again.safetensors", "Wrote again.safetensors"),
        ("convert teacher teacher.safetensors", "Wrote teacher.safetensors"),
        (f"linear {SMALL} {few} --backbone student --output linear", "Wrote "),
    ):
        arguments = line.replace("--image-size 8", "") if "linear" in line else line
        assert cli.main(arguments.split()) == 0, capfd.readouterr().err
        assert printed in capfd.readouterr().out
    whole, again, teacher = (
        numpy.load_file(f"{name}.safetensors") for name in ("whole", "again", "teacher")
    )
    assert set(whole) == set(again)
    for key, value in whole.items():
        np.testing.assert_array_equal(again[key], value)
        # The frozen backbone is that of the checkpoint; its heads were trained.
        if key.startswith("backbone."):
            np.testing.assert_array_equal(teacher[key], value)
    key = "auxiliary_classifier.fc1.weight"
    assert np.any(teacher[key] != whole[key])
    assert Run.open("teacher").record["origin"]["model"] == "wrn_10_1"

    assert cli.main(["convert", "whole.safetensors", "other", "--data", "digits"]) == 1
    assert "Expected `--model`" in capfd.readouterr().err


def test_mutual_and_terms(stand_ins_once, eager_trainers, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    few = "--model wrn_10_1 --epochs 1 --batch-size 25 --verbose 0"
    small = SMALL.partition("--batch-size")[0]
    line = f"mutual {small} {few} --peers resnet8 --sampled-views 2 --output online"
    assert cli.main(line.split()) == 0, capfd.readouterr().err
    record = Run.open("online").record
    assert record["options"]["peers"] == ["resnet8"]
    assert record["options"]["sampled_views"] == 2
    assert record["best"]["val_net_1_accuracy"] >= 0
    assert "val_net_1_accuracy, on test images" in capfd.readouterr().out
    few = few.split()
    online = ["distill", "--teacher", "online", *few]
    terms = ["--terms", "CrossEntropy()", "KL(3, on='aux_2')"]
    assert cli.main([*online, *terms, "--output", "student"]) == 0
    recorded = Run.open("student").record["options"]["terms"]
    assert recorded == ["CrossEntropy()", "KL(on='aux_2')"]
    for wrong, message in (
        (["--terms", "KL(on='aux_9')"], "`on` to be one of"),
        (["--terms", "KL(3"], "a term as Python spells it"),
        ([*terms, "--temperature", "4"], "no `temperature` with `terms`"),
        ([*terms, "--label-smoothing", "0.1"], "no `label_smoothing` with `terms`"),
        (["--method-settings", "beta=6"], "settings among"),
        (["--sampled-views", "5"], "`sampled_views` to be a number from 2 to 4"),
    ):
        assert cli.main([*online, *wrong, "--output", "other"]) == 1
        assert message in capfd.readouterr().err
    assert not os.path.exists("other")


def test_experiments_are_listed_and_run(tmp_path, monkeypatch, capfd):
    assert cli.main(["run", "--list"]) == 0
    assert "| cifar100/wrn_40_2-wrn_16_2 |" in capfd.readouterr().out
    assert cli.main(["run", "cifar100/resnet20/baseline"]) == 1
    assert "and `--output`" in capfd.readouterr().err
    received = {}
    monkeypatch.setattr(
        runs,
        "run_recipe",
        lambda recipe, **options: received.update(options, recipe=recipe) or {},
    )
    line = (
        "run cifar100/resnet56-resnet20/frozen --output x --epochs 24 --limit 9 "
        "--teacher t --data photos --seed 3"
    )
    assert cli.main(line.split()) == 0, capfd.readouterr().err
    assert received["given"] == {"teacher": "t"}
    assert received["output"] == "x"
    backbone, *_, student = received["recipe"].steps
    assert (backbone.data.data, backbone.data.limit) == ("photos", 9)
    assert (student.training.epochs, student.training.seed) == (24, 3)
    assert "Published, best epoch" in capfd.readouterr().out


@pytest.fixture
def received(monkeypatch):
    """Returns what `train` was called with last, in place of training."""
    options = {}

    def train(kind, **others):
        options.update(others, kind=kind)

    monkeypatch.setattr(commands, "_report", lambda run: None)
    monkeypatch.setattr(runs, "train", train)
    return options


def test_flags_reach_the_settings(received):
    line = (
        "teacher --data photos --model resnet8 --output x --mean 0.5 0.4 0.3 --no-flip "
        "--milestones 0.5 0.9 --corrupt skip --no-nesterov --head-metrics "
        "--views half_turns --sampled-views 2 --strategy mirrored "
        "--steps-per-execution 4"
    )
    assert cli.main(line.split()) == 0
    assert received["data"]["mean"] == [0.5, 0.4, 0.3]
    assert received["data"]["flip"] is False
    assert received["data"]["corrupt"] == "skip"
    assert received["training"].milestones == (0.5, 0.9)
    assert received["training"].nesterov is False
    assert received["training"].epochs == 240
    assert received["kind"].head_metrics is True
    assert received["kind"].views == "half_turns"
    assert received["kind"].sampled_views == 2
    assert received["execution"].strategy == "mirrored"
    assert received["execution"].steps_per_execution == 4


def test_distill_changes_only_what_is_given(received):
    line = (
        "distill --teacher t --model resnet8 --output x --no-validation "
        "--std 1 0.5 0.25"
    )
    assert cli.main(line.split()) == 0
    assert received == {
        "kind": Distill(teacher="t"),
        "output": "x",
        "training": TrainingSettings(model="resnet8"),
        "data": {"validation": False, "std": [1.0, 0.5, 0.25]},
        "execution": ExecutionSettings(),
        "overwrite": False,
        "verbose": 1,
    }


def test_a_page_is_local_unless_told(monkeypatch):
    given = {}
    names = ("path", "checkpoint", "host", "port", "browser")
    monkeypatch.setattr(
        tryout, "serve", lambda *values: given.update(zip(names, values, strict=True))
    )
    assert cli.main(["try", "runs/student"]) == 0
    assert given == {
        "path": "runs/student",
        "checkpoint": "last",
        "host": "127.0.0.1",
        "port": None,
        "browser": True,
    }
    line = "try runs/student --host 0.0.0.0 --port 80 --no-browser --checkpoint best"
    assert cli.main(line.split()) == 0
    assert (given["host"], given["port"], given["browser"]) == ("0.0.0.0", 80, False)


def test_an_error_of_ours_can_be_traced(received, monkeypatch, capsys):
    def fail(kind, **others):
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(runs, "train", fail)
    line = "teacher --data photos --model resnet8 --output x"
    assert cli.main(line.split()) == 1
    error = capsys.readouterr().err
    assert error == ("keras-hsakd: not enough values to unpack (--debug shows where)\n")
    assert cli.main([*line.split(), "--debug"]) == 1
    assert "in fail\n    raise ValueError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "flags", "message"),
    [
        ("typo", "", "Received: 'typo', where nothing is"),
        ("run", "--data digits", "no `--data` for a run folder"),
        ("run", "--no-flip", "no `--flip` for a run folder"),
        ("run", "--overwrite", "no `--overwrite` for a run folder"),
        ("run", "--prefix net1.", "no `--prefix` for a run folder"),
        ("a.keras", "--model resnet8", "no `--model` for a .keras file"),
        ("a.keras", "--prefix net1.", "no `--prefix` for a .keras file"),
        ("a.keras", "--checkpoint last", "no `--checkpoint` for a .keras file"),
        ("a.h5", "--prefix net1.", "no `--prefix` for a file of weights"),
        ("a.pth", "--preprocessing inside", "no `--preprocessing` for a PyTorch chec"),
        ("a.pth", "--checkpoint best", "no `--checkpoint` for a PyTorch checkpoint"),
    ],
)
def test_what_has_no_effect_is_not_converted(
    tmp_path, monkeypatch, capsys, source, flags, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("a.keras", "a.h5", "a.pth"):
        (tmp_path / name).touch()
    assert cli.main(["convert", source, "out", *flags.split()]) == 1
    error = capsys.readouterr().err
    assert message in error and "(--debug" not in error
    assert not os.path.exists("out")


def test_a_flag_that_is_no_number_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "runs/a", "out", "--temperature", "abc"])
    error = capsys.readouterr().err
    assert "argument --temperature: Expected a number, or fit. Received: 'abc'" in error


def test_models_lists_what_networks_cost(capsys):
    assert cli.main(["models", "--image-size", "16", "--num-classes", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("| resnet8 |"))
    assert row == "| resnet8 | 78,042 | 3,125,888 | 3 | 289,810 |"
    assert len(lines) == 2 + len(models.names())


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_shows_defaults(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: " in printed
    assert "None" not in printed


@pytest.mark.parametrize("word", ["--epoch=3", "--epoch"])
def test_flags_are_written_in_full(word, capsys):
    line = f"baseline --data digits --model resnet8 --output out {word} 3"
    with pytest.raises(SystemExit) as end:
        cli.main(line.split())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"unrecognized arguments: {word} 3 (did you mean '--epochs' or " in error


def test_an_interrupt_that_became_another_error_is_an_interrupt(monkeypatch, capsys):
    def lose(*arguments, **keywords):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise TypeError("from C++")

    monkeypatch.setattr(demo, "run", lose)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "keras-hsakd: interrupted\n"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("OOM\n\t [[{{node dense}}]]\nHint: ...", "OOM (--debug shows where)"),
        (
            "Graph execution error:\n\nDetected at node switch_case\n"
            "ValueError: Expected an image. Received: text in 'a.png'\n"
            "Traceback (most recent call last):\n\n  File\n\t [[{{node x}}]]",
            "Expected an image. Received: text in 'a.png'",
        ),
        (
            "Collective ops is aborted by: Invalid PNG data\nThe error could be from a "
            "previous operation. Restart your program to reset.\n\t [[{{node x}}]]",
            "Invalid PNG data (--debug shows where)",
        ),
        (
            "{{function_node Next}} Error in user-defined function passed to "
            "ParallelMapDatasetV2:7 transformation with iterator: Iterator::Root::"
            "Prefetch::ParallelMapV2[0]::BatchV2: photos/1.png; No such file\n\t "
            "[[{{node ReadFile}}]] [Op:IteratorGetNext] name:",
            "photos/1.png; No such file (--debug shows where)",
        ),
    ],
)
def test_an_error_of_tensorflow_is_one_line(message, line, monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise tf.errors.InternalError(None, None, message)

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == f"keras-hsakd: {line}\n"


def start(output, epochs):
    program = pathlib.Path(sys.executable).parent / "keras-hsakd"
    line = f"teacher {SMALL} --model wrn_10_1 --epochs {epochs} --output {output}"
    return subprocess.Popen(
        [program, *line.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("epochs_done", [0, 3])
def test_ctrl_c_leaves_a_readable_run(epochs_done, tmp_path, capsys):
    output = tmp_path / "run"
    process = start(output, epochs=100_000)

    def record():
        return json.loads((output / "run.json").read_text())

    wait_for(lambda: (output / "run.json").exists(), process)
    wait_for(lambda: record()["epochs_done"] >= epochs_done, process)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "keras-hsakd: interrupted" in error
    assert "Traceback" not in error
    assert record()["status"] == "interrupted"
    assert record()["epochs_done"] >= epochs_done
    if epochs_done:
        assert evaluate(output, verbose=0)["accuracy"] > 0

    line = f"teacher {SMALL} --model wrn_10_1 --epochs 1 --output {output}"
    assert cli.main(line.split()) == 1
    error = capsys.readouterr().err
    assert "holds a teacher run of wrn_10_1, interrupted after" in error


@pytest.mark.slow
def test_ctrl_c_at_any_moment(tmp_path):
    for number in range(0, 8, 2):
        output = tmp_path / f"run{number}"
        process = start(output, epochs=100_000)
        wait_for((output / "run.json").exists, process)
        time.sleep(number * 1.53)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, process.stderr.read()
        process.stderr.close()
        record = json.loads((output / "run.json").read_text())
        assert record["status"] == "interrupted"
        assert not [name for name in os.listdir(output) if name.startswith(".partial")]
        if record["epochs_done"]:
            assert evaluate(output, verbose=0)["accuracy"] > 0


def test_a_whole_network_in_a_file_of_the_old_format(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    network.save("old.h5")
    line = "convert old.h5 run --data digits --image-size 8 --verbose 0"
    assert cli.main(line.split()) == 0
    assert "Wrote" in capsys.readouterr().out
    images = np.full((2, 8, 8, 3), 50.0)
    received = keras.ops.softmax(Run.open("run").network()(images))
    np.testing.assert_allclose(received, network(images), atol=1e-5)
    network.save_weights("a.weights.h5")
    assert cli.main(["convert", "a.weights.h5", "other", "--data", "digits"]) == 1
    assert "Expected `--model`" in capsys.readouterr().err
