import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from keras_hsakd import cli, demo, experiments

SMALL = "--data digits --image-size 8 --examples-per-class 5 --batch-size 25"
COMMANDS = ("teacher", "baseline", "distill", "evaluate", "export", "models", "demo")


def test_from_a_teacher_to_a_served_student(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    network = "--model wrn_10_1 --epochs 1 --verbose 2"
    for line, printed in (
        (f"teacher {SMALL} {network} --output teacher", "images_per_second: "),
        (f"baseline {SMALL} {network} --output baseline", "on test images: last"),
        (f"distill --teacher teacher {network} --output student", "kl_aux_1: "),
        ("evaluate student --heads --verbose 0", "aux_1_joint_accuracy 0."),
        ("evaluate student --checkpoint best --validation", "accuracy 0."),
        ("export student serving/student/1", "Wrote serving/student/1"),
    ):
        assert cli.main(line.split()) == 0, capfd.readouterr().err
        assert printed in capfd.readouterr().out
    assert (tmp_path / "serving" / "student" / "1" / "saved_model.pb").exists()

    again = f"distill --teacher teacher {network} --output student"
    assert cli.main(again.split()) == 1
    error = capfd.readouterr().err
    assert "holds a distill run of wrn_10_1, finished after 1 of 1 epochs" in error
    assert "`--overwrite` replaces it" in error
    assert cli.main([*again.split(), "--overwrite"]) == 0


def test_flags_reach_the_settings(monkeypatch, capsys):
    received = {}
    monkeypatch.setattr(cli, "_report", lambda run: None)
    monkeypatch.setattr(
        experiments, "train_teacher", lambda **options: received.update(options)
    )
    line = (
        "teacher --data photos --model resnet8 --output x --mean 0.5 0.4 0.3 --no-flip "
        "--milestones 0.5 0.9 --corrupt skip --no-nesterov --head-metrics"
    )
    assert cli.main(line.split()) == 0
    assert received["data_settings"].mean == [0.5, 0.4, 0.3]
    assert received["data_settings"].flip is False
    assert received["data_settings"].corrupt == "skip"
    assert received["training"].milestones == [0.5, 0.9]
    assert received["training"].nesterov is False
    assert received["training"].epochs == 240
    assert received["head_metrics"] is True


def test_distill_changes_only_what_is_given(monkeypatch):
    received = {}
    monkeypatch.setattr(cli, "_report", lambda run: None)
    monkeypatch.setattr(
        experiments, "distill", lambda **options: received.update(options)
    )
    line = "distill --teacher t --model resnet8 --output x --no-validation"
    assert cli.main(line.split()) == 0
    del received["training"]
    assert received == {
        "teacher": "t",
        "output": "x",
        "validation": False,
        "temperature": 3.0,
        "checkpoint": "last",
        "head_metrics": False,
        "overwrite": False,
        "verbose": 1,
    }


def test_models_lists_what_networks_cost(capsys):
    assert cli.main(["models", "--image-size", "16", "--num-classes", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("| resnet8 |"))
    assert row == "| resnet8 | 78,714 | 3,125,888 | 3 | 291,698 |"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: " in printed
    assert "None" not in printed


def test_what_is_required_is_said(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["teacher"])
    assert end.value.code == 2
    assert "required: --data, --model, --output" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    assert cli.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


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


@pytest.mark.parametrize("epochs_done", [0, 3])
def test_ctrl_c_leaves_a_readable_run(epochs_done, tmp_path):
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
        assert experiments.evaluate(output, verbose=0)["accuracy"] > 0

    second = start(output, epochs=1)
    error = second.communicate(timeout=120)[1]
    assert second.returncode == 1
    assert "holds a teacher run of wrn_10_1, interrupted after" in error


@pytest.mark.slow
def test_ctrl_c_at_any_moment(tmp_path):
    for number in range(20):
        output = tmp_path / f"run{number}"
        process = start(output, epochs=100_000)
        wait_for(output.exists, process)
        time.sleep(number * 0.61)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, process.stderr.read()
        process.stderr.close()
        record = json.loads((output / "run.json").read_text())
        assert record["status"] == "interrupted"
        assert not [name for name in os.listdir(output) if name.startswith(".partial")]
        if record["epochs_done"]:
            assert experiments.evaluate(output, verbose=0)["accuracy"] > 0
