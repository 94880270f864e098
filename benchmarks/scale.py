"""What snapshots cost, and what two workers on one machine do, as ratios in one run.

    python benchmarks/scale.py [--pairs 3] [--steps 50]

- Snapshots: HSAKD from resnet20 to resnet8, batch 64, on random images of CIFAR's size;
  in turn `--steps` steps with a snapshot in them and as many without. Since the machine
  is noisier than a snapshot is long, the time within the callback is given, too.
- Workers: the same training by one process, and by two under
  `MultiWorkerMirroredStrategy` on the same cores with the same global batch.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import keras_hsakd
from keras_hsakd import distribution

BATCH_SIZE = 64


class TimedResume(keras_hsakd.Resume):
    """Counts the seconds that it takes itself."""

    seconds = 0.0

    def on_train_batch_end(self, batch, logs=None):
        begin = time.perf_counter()
        super().on_train_batch_end(batch, logs)
        self.seconds += time.perf_counter() - begin


class Clock(keras.callbacks.Callback):
    """Measures the steps after the first two, which compile."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.begin = time.perf_counter()
        self.seconds = (time.perf_counter() - self.begin) if batch > 1 else 0.0


def make_distiller(synchronized=False):
    networks = [
        keras_hsakd.models.create(name, 100) for name in ("resnet20", "resnet8")
    ]
    if synchronized:
        keras_hsakd.synchronize_batch_norm(networks[1])
    optimizer = keras_hsakd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4)
    return keras_hsakd.Distiller(*networks).compile(optimizer, metrics=["accuracy"])


def make_data(steps):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH_SIZE, 32, 32, 3)).astype("float32")
    data = tf.data.Dataset.from_tensors((images, rng.integers(0, 100, BATCH_SIZE)))
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    return data.repeat(steps).with_options(options)


def seconds_a_step(distiller, steps, *callbacks):
    clock = Clock()
    distiller.fit(make_data(steps + 2), verbose=0, callbacks=[clock, *callbacks])
    return clock.seconds / steps


def measure_snapshots(pairs, steps):
    distiller = make_distiller()
    seconds_a_step(distiller, 2)  # compile and warm up
    with_snapshots, without, snapshots = [], [], []
    size = 0
    for _ in range(pairs):
        without.append(seconds_a_step(distiller, steps))
        with tempfile.TemporaryDirectory() as folder:
            resume = TimedResume(folder, every_steps=steps)
            with_snapshots.append(seconds_a_step(distiller, steps, resume))
            snapshots.append(resume.seconds)
            size = max(entry.stat().st_size for entry in os.scandir(folder))
    ratios = [a / b for a, b in zip(with_snapshots, without, strict=True)]
    return {
        "every_steps": steps,
        "pairs": pairs,
        "seconds_a_step": round(statistics.median(without), 4),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_min_max": [round(min(ratios), 4), round(max(ratios), 4)],
        "seconds_within_callback": round(statistics.median(snapshots), 4),
        "part_within_callback": round(
            statistics.median(snapshots) / (statistics.median(without) * steps), 5
        ),
        "megabytes": round(size / 1e6, 2),
        "parameters": {
            "teacher": distiller.teacher.count_params(),
            "student": distiller.student.count_params(),
        },
    }


def measure_workers(steps):
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (first, second)]

    def seconds(count):
        processes = []
        for index in range(count):
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            config = {"TF_CONFIG": json.dumps(config)} if count > 1 else {}
            command = [sys.executable, __file__, "--worker", "--steps", str(steps)]
            processes.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, env={**os.environ, **config}
                )
            )
        outputs = [process.communicate()[0] for process in processes]
        return max(float(output.split()[-1]) for output in outputs)

    one, two = seconds(1), seconds(2)
    return {
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "seconds_a_step_one_process": round(one, 4),
        "seconds_a_step_two_workers": round(two, 4),
        "ratio": round(two / one, 3),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name = "multiworker" if "TF_CONFIG" in os.environ else None
        with distribution.make_strategy(name).scope():
            distiller = make_distiller(synchronized=True)
        with tempfile.TemporaryDirectory() as folder:
            # As in a real training: workers agree on snapshots in each step.
            resume = keras_hsakd.Resume(folder, every_steps=10_000)
            print(seconds_a_step(distiller, options.steps, resume))
        return
    result = {
        "snapshots": measure_snapshots(options.pairs, options.steps),
        "workers": measure_workers(options.steps),
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
