"""Seconds of epochs whose data TensorFlow tunes, beside those of data as we read them.

    python benchmarks/autotuning.py [--rounds 3] [--epochs 10]

A resnet8 learns 5,000 images of 32 x 32 and is measured on as many, in batches of 64.
The trainings take turns in one process, so that a machine whose speed drifts slows
both; ratios are those within a round. The first epoch of each is left out.
"""

import argparse
import itertools
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_hsakd
from keras_hsakd import data
from keras_hsakd.data.pipelines import train_and_test
from keras_hsakd.files import write_json
from keras_hsakd.machine import machine, versions
from keras_hsakd.trainers import BaselineTrainer

IMAGES, CLASSES, BATCH_SIZE = 5_000, 10, 64


class Epochs(keras.callbacks.Callback):
    """Keeps when each epoch ended."""

    def __init__(self):
        super().__init__()
        self.ended = []

    def on_epoch_end(self, epoch, logs=None):
        self.ended.append(time.perf_counter())


def as_we_read_them():
    """Returns pipelines of training and test images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), "uint8")
    source = data.ArraySource(images, rng.integers(0, CLASSES, IMAGES), 32)
    names = [str(label) for label in range(CLASSES)]
    return train_and_test(
        source, source, BATCH_SIZE, 0, data.Augmentation(), None, names
    )


def tuned(dataset):
    """Returns a data set that a trainer does not know for one of ours, and leaves."""
    return dataset.with_options(tf.data.Options())


def seconds(train, test, epochs):
    """Returns the seconds of each epoch but the first."""
    trainer = BaselineTrainer(
        keras_hsakd.models.create("resnet8", CLASSES, heads=False)
    )
    trainer.compile(keras_hsakd.optimizers.SGD(0.05))
    ends = Epochs()
    trainer.fit(
        train, validation_data=test, epochs=epochs + 1, verbose=0, callbacks=[ends]
    )
    return [after - before for before, after in itertools.pairwise(ends.ended)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=pathlib.Path, default="autotuning.json")
    options = parser.parse_args()

    ours = as_we_read_them()
    contestants = {
        "as we read them": ours,
        "tuned": [tuned(dataset) for dataset in ours],
    }
    rounds = []
    for number in range(options.rounds):
        order = list(contestants)[:: -1 if number % 2 else 1]
        rounds.append({n: seconds(*contestants[n], options.epochs) for n in order})
        totals = {name: round(sum(took), 1) for name, took in rounds[-1].items()}
        print(f"round {number + 1}: seconds", totals, flush=True)
    result = {"machine": machine(), "versions": versions("keras", "tensorflow")}
    result |= {"rounds": options.rounds, "epochs": options.epochs}
    for name in contestants:
        took = [second for of in rounds for second in of[name]]
        median = statistics.median(took)
        result[name] = {
            "seconds_an_epoch": {
                "median": round(median, 2),
                "mean": round(statistics.mean(took), 2),
                "longest": round(max(took), 2),
            },
            "longer than 1.3 medians, %": round(
                100 * statistics.mean(second > 1.3 * median for second in took)
            ),
        }
    ratios = [sum(of["tuned"]) / sum(of["as we read them"]) for of in rounds]
    result["tuned"] |= {
        "times as we read them": round(statistics.median(ratios), 3),
        "min_max": [round(min(ratios), 3), round(max(ratios), 3)],
    }
    write_json(options.output, result)
    for name in contestants:
        print(f"{name}: {result[name]}")


if __name__ == "__main__":
    main()
