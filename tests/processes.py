"""Processes that train: to be killed, or to begin with other devices.

They are forked from one that has done the imports, which take longer than the work of
most of them.
"""

import contextlib
import json
import multiprocessing
import os
import pathlib
import socket
import tempfile

KILLED = -9

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["keras_hsakd.data", "sklearn.datasets"])
_fresh = multiprocessing.get_context("spawn")


def start(function, *arguments, fresh=False, **environment):
    """Starts a function in a process, which is `fresh` where hashes must differ."""
    descriptor, output = tempfile.mkstemp()
    os.close(descriptor)
    process = (_fresh if fresh else _forked).Process(
        target=_run, args=(output, environment, function, arguments), daemon=True
    )
    process.output = output
    process.start()
    return process


def _run(output, environment, function, arguments):
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    function(*arguments)


def end_of(process, *expected):
    """Waits for a process, and returns what it wrote."""
    process.join(timeout=300)
    if process.exitcode is None:
        process.kill()
        process.join()
    path = pathlib.Path(process.output)
    written = path.read_text()
    path.unlink()
    assert process.exitcode in (expected or (0,)), (
        f"{process.exitcode}: {written[-3000:]}"
    )
    return written


def worker_environments(count):
    """Returns what tells processes of each other, as `tf.distribute` reads it."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    configs = (
        {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        for index in range(count)
    )
    return [{"TF_CONFIG": json.dumps(config)} for config in configs]
