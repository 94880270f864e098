"""Trainings that are killed, and go on; `make test-kills` kills many more."""

import os
import signal
import time

import keras
import numpy as np
import pytest
from kill_and_resume import result, start, start_workers, wait_for_snapshot
from processes import KILLED, end_of

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="`make test-kills` is TensorFlow's",
    ),
    pytest.mark.xdist_group("processes"),  # imports are done once for all
]

AT_ONCE = ("--sleep", 0)


@pytest.mark.parametrize(
    "method", ["teacher", pytest.param("features", marks=pytest.mark.slow)]
)
def test_killed_trainings_go_on_bit_identical(tmp_path, method):
    # Its hashes differ from those of the others: no order of a set is relied on.
    whole = start(method, tmp_path / "whole", *AT_ONCE, fresh=True)
    output = tmp_path / "killed"
    for kill in (("--kill-in-write", 6), ("--kill-at-step", 5)):
        end_of(start(method, output, *AT_ONCE, *kill), KILLED)
        assert list((output / "snapshots").glob("epoch-*"))
    end_of(start(method, output, *AT_ONCE))
    end_of(whole)
    received, expected = result(output), result(tmp_path / "whole")
    del received["seconds"], expected["seconds"]
    assert received == expected


@pytest.mark.slow
def test_workers_are_preempted_and_lost_and_one_goes_on_alone(tmp_path):
    together = (*AT_ONCE, "--dropout", 0)  # masks are drawn by replica
    whole = start("distiller", tmp_path / "whole", *together)
    output = tmp_path / "stopped"

    workers = start_workers("distiller", output, *together, "--sleep", 0.1)
    wait_for_snapshot(output, *workers)
    os.kill(workers[1].pid, signal.SIGTERM)  # one is told, both end
    for worker in workers:
        end_of(worker, 75)

    kill = ("--kill-at-step", 5)
    workers = start_workers("distiller", output, *together, each=((), kill))
    end_of(workers[1], KILLED)
    begin = time.monotonic()
    written = end_of(workers[0], 1)
    assert (
        "Expected all 2 workers to train to the end. Received: worker 0 ca" in written
    )
    assert time.monotonic() - begin < 300

    end_of(start("distiller", output, *together))
    end_of(whole)
    received, expected = result(output), result(tmp_path / "whole")
    assert received["epochs"] == expected["epochs"]
    for a, b in zip(received["values"], expected["values"], strict=True):
        # 40 steps of float32 sums in another order.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for name, values in expected["history"].items():
        np.testing.assert_allclose(
            received["history"][name], values, rtol=1e-5, atol=1e-5, err_msg=name
        )
