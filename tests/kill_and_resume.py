"""Kills trainings with SIGKILL at random moments, and has them go on.

    python tests/kill_and_resume.py [--moments 20] [--seed 0]

Each trainer is trained once without a stop. Then trainings are killed at random moments
of their time, some of them while a snapshot is half written, and started again; what
comes out must be bit-identical. The same for one worker of two, killed or silent, after
which both are started again. `make test-kills` runs it; `test_resume.py` has the short
version.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

SCRIPT = pathlib.Path(__file__).with_name("resumable_training.py")
METHODS = ("teacher", "frozen", "distiller", "mutual", "baseline")
KILLED = -9


def start(method, output, *options, **environment):
    """Starts a training in a process of its own."""
    return subprocess.Popen(
        [sys.executable, SCRIPT, method, output, *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )


def start_workers(method, output, *options, each=((), ())):
    """Starts processes that train together, each with options of its own."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in each]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    workers = []
    for index, own in enumerate(each):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        together = ("--strategy", "multiworker", *options, *own)
        workers.append(start(method, output, *together, TF_CONFIG=config))
    return workers


def end_of(process, *expected):
    """Waits for a process, and returns what it wrote to standard error."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (expected or (0,)), (
        f"{process.returncode}: {errors[-3000:]}"
    )
    return errors


def wait_for_snapshot(output, *workers):
    until = time.monotonic() + 120
    while not list(output.glob("snapshots/epoch-*")):
        assert all(worker.poll() is None for worker in workers)
        assert time.monotonic() < until
        time.sleep(0.1)


def result(output):
    return json.loads((pathlib.Path(output) / "final.json").read_text())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = random.Random(options.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        expected, seconds = {}, {}
        for method in METHODS:
            end_of(start(method, folder / method))
            expected[method] = result(folder / method)
            seconds[method] = expected[method].pop("seconds")
        for moment in range(options.moments):
            method = METHODS[moment % len(METHODS)]
            output = folder / f"{method}-{moment}"
            in_write = moment % 4 == 3
            longest, was_killed = seconds[method], False
            while not was_killed:  # it may have ended before
                shutil.rmtree(output, ignore_errors=True)
                # 14 snapshots, and no other file goes to disk this way.
                kill = (
                    ("--kill-in-write", chosen.randint(1, 14))
                    if in_write
                    else ("--kill-after", round(chosen.uniform(0, longest), 2))
                )
                end_of(start(method, output, *kill), KILLED, 0)
                was_killed = not (output / "final.json").exists()
                longest /= 2
            left = sorted(path.name for path in output.glob("snapshots/*"))
            end_of(start(method, output))
            received = result(output)
            received.pop("seconds")
            same = received == expected[method]
            failed += not same
            print(
                f"{method} {' '.join(map(str, kill))}: "
                f"killed, from {left[-1][:24] if left else 'the beginning'}, "
                f"{'identical' if same else 'DIFFERENT'}",
                flush=True,
            )

        together = folder / "workers"
        for worker in start_workers("distiller", together):
            end_of(worker)
        expected = result(together)
        seconds = expected.pop("seconds")
        for what, sent in (("killed", signal.SIGKILL), ("silent", signal.SIGSTOP)):
            output = folder / f"workers-{what}"
            first, second = start_workers("distiller", output)
            wait_for_snapshot(output, first, second)
            after = round(chosen.uniform(0, seconds / 2), 2)
            time.sleep(after)
            second.send_signal(sent)
            begin = time.monotonic()
            said = "workers to train to the end" in end_of(first, 1)
            waited = time.monotonic() - begin
            second.kill()
            end_of(second, KILLED)
            for worker in start_workers("distiller", output):
                end_of(worker)
            received = result(output)
            received.pop("seconds")
            same = received == expected
            failed += not (same and said)
            print(
                f"worker 1 of 2 {what} {after} s after the first snapshot: the other "
                f"one {'said so and ' if said else ''}ended {waited:.1f} s later; both "
                f"again: {'identical' if same else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{options.moments} trainings killed and a worker twice, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
