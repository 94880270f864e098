"""Commands in processes of their own, on bad days."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import killed_writers
import pytest

from keras_hsakd.runs import Run

pytestmark = pytest.mark.slow
PROGRAM = pathlib.Path(sys.executable).parent / "keras-hsakd"
TRAINING = (
    "baseline --data digits --image-size 8 --model resnet8 --epochs 2 "
    "--examples-per-class 5 --limit 100 --verbose 0"
)


def start(line, **options):
    return subprocess.Popen(
        [PROGRAM, *line.split()],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def ends(*processes):
    """Returns the exit codes of processes, and the last line that each wrote."""
    texts = [process.communicate(timeout=300) for process in processes]
    lines = [(output + errors).strip().splitlines()[-1] for output, errors in texts]
    return [process.returncode for process in processes], lines


@pytest.mark.parametrize("flags", ["", "--resume", "--overwrite"])
def test_two_trainings_at_once(flags, tmp_path):
    line = f"{TRAINING} --epochs 20 {flags} --output {tmp_path / 'run'}"
    first, second = start(line), start(line)
    codes, lines = ends(first, second)
    assert sorted(codes) == [0, 1]
    winner, loser = (first, second) if codes[0] == 0 else (second, first)
    refused = lines[codes.index(1)]
    assert f"where process {winner.pid} on" in refused
    assert Run.open(tmp_path / "run").is_finished
    epochs = (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in epochs] == list(range(20))
    assert len(list((tmp_path / "run").glob("tensorboard/train/*"))) == 1
    assert loser.returncode == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    line = TRAINING.replace("baseline", "teacher")
    assert ends(start(f"{line} --output {output}"))[0] == [0]
    return output


@pytest.mark.parametrize(
    "line",
    [
        "export {run} {there}/serving",
        "cache --teacher {run} --variants 2 --output {there}/cache",
    ],
)
def test_two_of_other_commands_at_once(line, run, tmp_path):
    line = line.format(run=run, there=tmp_path)
    codes, lines = ends(*(start(line) for _ in range(2)))
    # Where the first has ended before the second begins, the next version is made.
    assert sorted(codes) == [0, 1] or (tmp_path / "serving" / "2").exists()
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("name", ["train", "overwrite", "convert", "cache", "quality"])
def test_killed_writers_leave_nothing_half_written(name):
    if name == "convert":
        pytest.importorskip("safetensors")
    killed_writers.run(name, (0, 3, 7, -3, -1))


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 4])
def test_ctrl_c_while_libraries_load(seconds, tmp_path):
    process = start(f"{TRAINING} --epochs 100000 --output {tmp_path / 'run'}")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    codes, lines = ends(process)
    assert codes == [130]
    assert lines == ["keras-hsakd: interrupted"]


def until_it_trains(process, output):
    while not (output / "last.keras").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_closed_pipe_does_not_fail_a_training(tmp_path):
    line = TRAINING.replace("--verbose 0", "--verbose 1") + " --epochs 5"
    process = start(f"{line} --output {tmp_path / 'run'}")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0, process.stderr.read()
    assert Run.open(tmp_path / "run").is_finished


def test_signals_that_a_script_ignores(tmp_path):
    def ignore():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    output = tmp_path / "run"
    process = start(f"{TRAINING} --epochs 20 --output {output}", preexec_fn=ignore)
    until_it_trains(process, output)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert ends(process)[0] == [0]
    assert Run.open(output).is_finished


def test_a_closed_terminal_ends_with_a_snapshot(tmp_path):
    output = tmp_path / "run"
    process = start(f"{TRAINING} --epochs 100000 --output {output}")
    until_it_trains(process, output)
    process.send_signal(signal.SIGHUP)
    assert ends(process)[0] == [75]
    assert json.loads((output / "run.json").read_text())["status"] == "preempted"
    assert len(list((output / "snapshots").iterdir())) >= 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="needs root")
def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted")
    try:
        output = disk / "run"
        line = f"{TRAINING} --resume --snapshot-steps 1 --output {output}"
        process = start(f"{line} --epochs 100000")
        until_it_trains(process, output)
        with open(disk / "ballast", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(2**16))
        codes, (last,) = ends(process)
        assert codes == [1]
        assert "No space left on device" in last and "The last snapshot is" in last
        record = json.loads((output / "run.json").read_text())
        assert record["status"] == "failed"
        assert "No space left on device" in record["error"]
        os.remove(disk / "ballast")
        process = start(f"{line} --epochs 100000")
        while Run.open(output).record["epochs_done"] == record["epochs_done"]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert ends(process)[0] == [75]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
