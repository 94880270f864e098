"""Trainings that are killed, and go on; `make test-kills` kills many more."""

import signal
import time

import keras
import kill_and_resume as processes
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="`make test-kills` is TensorFlow's"
)


def test_killed_trainings_go_on_bit_identical(tmp_path):
    whole = processes.start("teacher", tmp_path / "whole")
    output = tmp_path / "killed"
    for kill in (("--kill-in-write", 6), ("--kill-after", 4, "--sleep", 0.15)):
        processes.end_of(processes.start("teacher", output, *kill), processes.KILLED)
        assert list((output / "snapshots").glob("epoch-*"))
    processes.end_of(processes.start("teacher", output))
    processes.end_of(whole)
    received, expected = processes.result(output), processes.result(tmp_path / "whole")
    del received["seconds"], expected["seconds"]
    assert received == expected


def test_workers_are_preempted_and_lost_and_one_goes_on_alone(tmp_path):
    together = ("--dropout", 0)  # masks are drawn by replica
    whole = processes.start("distiller", tmp_path / "whole", *together)
    output = tmp_path / "stopped"

    workers = processes.start_workers("distiller", output, *together)
    processes.wait_for_snapshot(output, *workers)
    workers[1].send_signal(signal.SIGTERM)  # one is told, both end
    for worker in workers:
        processes.end_of(worker, 75)

    kill = ("--kill-after", 7, "--sleep", 0.3)
    workers = processes.start_workers("distiller", output, *together, each=((), kill))
    processes.end_of(workers[1], processes.KILLED)
    begin = time.monotonic()
    error = processes.end_of(workers[0], 1)
    assert "Expected all 2 workers to train to the end. Received: worker 0 ca" in error
    assert time.monotonic() - begin < 300

    processes.end_of(processes.start("distiller", output, *together))
    processes.end_of(whole)
    received, expected = processes.result(output), processes.result(tmp_path / "whole")
    assert received["epochs"] == expected["epochs"]
    for a, b in zip(received["values"], expected["values"], strict=True):
        # 40 steps of float32 sums in another order.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for name, values in expected["history"].items():
        np.testing.assert_allclose(
            received["history"][name], values, rtol=1e-5, atol=1e-5, err_msg=name
        )
