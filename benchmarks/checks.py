"""What the checks of networks, data and labels cost, beside trainings without them.

    python benchmarks/checks.py [--rounds 7]

50,000 images of 32 x 32 in memory and WRN-16-1 with heads, batches of 64. Looking at
the data is timed within `fit`, and stands beside the time to the end of the first step.
The mark of labels that do not suit, a part of each step, is taken out of every second
of the trainings that are raced: ratios are those within a round, on one data set that
is read again and again.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import time
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_hsakd
from keras_hsakd.files import write_json
from keras_hsakd.logits import check_logits
from keras_hsakd.machine import machine, versions
from keras_hsakd.trainers import checks, fitting

IMAGES, CLASSES, BATCH_SIZE = 50_000, 100, 64


class Steps(keras.callbacks.Callback):
    """Keeps when each step ended."""

    def __init__(self):
        super().__init__()
        self.ended = []

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(time.perf_counter())


class Timed:
    """Adds up the seconds in some functions of a module or class."""

    def __init__(self, *places):
        self.seconds = 0.0
        self._stack = contextlib.ExitStack()
        self._places = places

    def __enter__(self):
        for owner, name in self._places:
            patch = mock.patch.object(owner, name, self._timed(getattr(owner, name)))
            self._stack.enter_context(patch)
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def _timed(self, function):
        def run(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return run


def create_trainer(image_size=32):
    network = keras_hsakd.models.create(
        "wrn_16_1", CLASSES, input_shape=(image_size, image_size, 3)
    )
    return keras_hsakd.TeacherTrainer(network)


def first_step(make_data):
    """Returns seconds of looking at data, and to the end of the first step with it."""
    keras.backend.clear_session()
    trainer, steps = create_trainer().compile("sgd"), Steps()
    x, y, validation = make_data()
    with Timed(
        (fitting, "inspect_data"),
        (fitting.Fitting, "_check"),
        (fitting.Fitting, "_with_validation_checked"),
    ) as looking:
        began = time.perf_counter()
        trainer.fit(
            x,
            y,
            batch_size=BATCH_SIZE if y is not None else None,
            steps_per_epoch=2,
            validation_data=validation,
            validation_steps=1,
            callbacks=[steps],
            verbose=0,
        )
    return looking.seconds, steps.ended[0] - began


def kinds_of_data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), "uint8")
    labels = rng.integers(0, CLASSES, IMAGES)
    few = (images[:BATCH_SIZE], labels[:BATCH_SIZE])

    def of_tensorflow():
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH_SIZE)
        return data.repeat(), None, data.take(2)

    return {
        "arrays": lambda: (images, labels, few),
        "tf.data": of_tensorflow,
    }


@contextlib.contextmanager
def without_marks():
    """Leaves what marks labels that do not suit out of the steps that are traced."""
    with (
        mock.patch.object(
            fitting.Fitting,
            "valid_labels",
            lambda self, labels, training=False: (labels, 1),
        ),
        mock.patch.object(checks, "flag_invalid_labels", lambda loss, suit: loss),
    ):
        yield


def marks(rounds, image_size, steps):
    """Returns the ratio of a step with marks to one without, for each round."""
    rng = np.random.default_rng(0)
    shape = (BATCH_SIZE, image_size, image_size, 3)
    batch = (rng.random(shape, "float32"), rng.integers(0, CLASSES, BATCH_SIZE))
    trained = []
    for context in (contextlib.nullcontext, without_marks):
        with context():
            trainer = create_trainer(image_size).compile("sgd")
            trainer.train_on_batch(*batch)  # traces
            trained.append((trainer, trainer.train_function))
    data = tf.data.Dataset.from_tensors(batch).cache().repeat()
    ratios = []
    for number in range(rounds):
        seconds = [0.0, 0.0]
        # Who comes first changes with the round.
        for which in (0, 1) if number % 2 else (1, 0):
            _, run = trained[which]
            iterator = iter(data)
            run(iterator)
            began = time.perf_counter()
            for _ in range(steps):
                logs = run(iterator)
            float(logs["loss"])
            seconds[which] = time.perf_counter() - began
        ratios.append(seconds[0] / seconds[1])
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    parser.add_argument(
        "--output", type=pathlib.Path, help="JSON file to write (default: none)"
    )
    options = parser.parse_args()
    results = {
        "machine": machine(),
        "versions": versions("keras", "tensorflow"),
    }
    network = create_trainer().network
    began = time.perf_counter()
    check_logits(network)
    results["check_logits_seconds"] = time.perf_counter() - began
    for name, make in kinds_of_data().items():
        looking, to_step = zip(
            *(first_step(make) for _ in range(options.rounds)), strict=True
        )
        results[f"{name}_inspection_seconds"] = statistics.median(looking)
        results[f"{name}_first_step_seconds"] = statistics.median(to_step)
    for size in (8, 32):
        ratios = marks(options.rounds, size, options.steps)
        results[f"step_with_marks_{size}"] = {
            "median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    for name, value in results.items():
        print(f"{name}: {value}")
    if options.output:
        write_json(options.output, results)


if __name__ == "__main__":
    main()
