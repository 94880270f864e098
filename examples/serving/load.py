"""Asks a served student for predictions from many clients at once, and checks each.

    python examples/serving/load.py cat.jpg dog.png --address localhost:8500 \
        --clients 64 --seconds 60 --expected serving/student/1

Sends the image files, each as a request, or with `--size 32 32` random pixels. Each
answer is compared with that of the SavedModel itself, or without `--expected` with the
first one for the same image. Ends with exit code 1 after a wrong answer or none.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import sys
import threading
import time

import client
import numpy as np


@dataclasses.dataclass
class Summary:
    """What came of all requests: seconds of each answer, errors by message."""

    seconds: float
    latencies: list[float]
    wrong: int
    errors: collections.Counter

    @property
    def answered(self):
        return len(self.latencies)

    @property
    def failed(self):
        return self.errors.total()


def run(connect, requests, expected, clients, seconds, tolerance=1e-3):
    """Sends requests from `clients` threads for some seconds.

    Args:
        connect: Function that makes a client.
        requests: Arguments of `client.predict`, a dict with `signature` each.
        expected: Logits of one image for each request, or `None`: the first answer's.
        clients: Int, number of threads, each with one request at a time.
        seconds: How long new requests are sent.
        tolerance: Difference of a logit that is no error, as a part of the largest:
            a server that puts requests together computes in another order.

    Returns:
        A `Summary`.
    """
    expected = list(expected or [None] * len(requests))
    lock = threading.Lock()
    latencies, errors, wrong = [], collections.Counter(), 0
    connections = [connect() for _ in range(clients)]
    begin = time.monotonic()

    def ask(connection):
        nonlocal wrong
        while time.monotonic() < begin + seconds:
            index = next(turns) % len(requests)
            sent = time.monotonic()
            try:
                outputs = connection.predict(**requests[index])
            except client.RequestError as error:
                with lock:
                    errors[str(error)] += 1
                continue
            latency = time.monotonic() - sent
            (logits,) = np.asarray(outputs["logits"])
            with lock:
                latencies.append(latency)
                if expected[index] is None:
                    expected[index] = logits
                right = outputs["class"] == [logits.argmax()] and np.allclose(
                    logits, expected[index], 0, tolerance * np.abs(logits).max()
                )
                wrong += not right

    turns = itertools.count()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, connections))  # raises what a thread raised
    took = time.monotonic() - begin
    for connection in connections:
        connection.close()
    return Summary(took, latencies, wrong, errors)


def answers_of(path, requests):
    """Returns the logits that a SavedModel gives for each request."""
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures
    answers = []
    for request in requests:
        inputs = {k: tf.constant(v) for k, v in request.items() if k != "signature"}
        outputs = signatures[request["signature"]](**inputs)
        answers.append(outputs["logits"].numpy()[0])
    return answers


def report(summary):
    """Prints throughput, latencies and what went wrong."""
    print(f"{summary.answered / summary.seconds:.1f} answers a second")
    if summary.latencies:
        for percent in (50, 90, 99, 100):
            latency = 1000 * np.percentile(summary.latencies, percent)
            print(f"p{percent} {latency:.1f} ms")
    print(f"{summary.answered} answers, {summary.wrong} wrong, {summary.failed} failed")
    for message, count in summary.errors.most_common(5):
        print(f"{count} times {message}")


def main(arguments=None):
    """Returns 1 if an answer was wrong or missing, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file")
    parser.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    client.add_arguments(parser)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--expected", metavar="SAVED_MODEL", help="what is served")
    options = parser.parse_args(arguments)
    if bool(options.images) == bool(options.size):
        parser.error("give image files or --size")
    requests = []
    for path in options.images:
        with open(path, "rb") as file:
            requests.append({"signature": "image_bytes", "image_bytes": [file.read()]})
    if options.size:
        shape = (8, 1, *options.size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
        requests = [{"signature": "serving_default", "images": each} for each in pixels]
    expected = options.expected and answers_of(options.expected, requests)
    summary = run(
        lambda: client.connect(options),
        requests,
        expected,
        options.clients,
        options.seconds,
    )
    report(summary)
    return int(summary.wrong > 0 or summary.failed > 0 or summary.answered == 0)


if __name__ == "__main__":
    sys.exit(main())
