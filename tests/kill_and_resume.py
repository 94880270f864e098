"""Kills trainings with SIGKILL at random moments, and lets them go on.

    python tests/kill_and_resume.py [--moments 20] [--seed 0]

Each trainer is trained once without a stop. Then trainings are killed at random moments
of their time, some of them while a snapshot is half written, and started again; what
comes out must be bit-identical. The same for one worker of two, killed or silent, after
which both are started again. `make test-kills` runs it; `test_resume.py` has the short
version.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import processes
import resumable_training
from processes import KILLED, end_of

METHODS = ("teacher", "frozen", "distiller", "features", "mutual", "baseline")


def start(method, output, *options, **keywords):
    """Starts a training in a process of its own."""
    arguments = [method, *map(str, (output, *options))]
    return processes.start(resumable_training.main, arguments, **keywords)


def start_workers(method, output, *options, each=((), ())):
    """Starts processes that train together, each with options of its own."""
    together = ("--strategy", "multiworker", *options)
    environments = processes.worker_environments(len(each))
    return [
        start(method, output, *together, *own, **environment)
        for own, environment in zip(each, environments, strict=True)
    ]


def wait_for_snapshot(output, *workers):
    until = time.monotonic() + 120
    while not list(output.glob("snapshots/epoch-*")):
        assert all(worker.is_alive() for worker in workers)
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
            end_of(start(method, folder / method, fresh=True))
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
            os.kill(second.pid, sent)
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
