"""How the time and memory of a training grow with the batch, and with the data.

    pip install 'keras_hsakd[demo]'
    python benchmarks/growth.py --output benchmarks/growth.json

- Batch: the exact step of HSAKD from wrn_40_2 to wrn_16_2, on random images of CIFAR's
  size, by the number of images in a batch.
- Data: a training from resnet8 to resnet8 on 10,000 to 1,000,000 images of 16 x 16
  pixels, which are written as a data set of TensorFlow Datasets and read by index: the
  seconds until the first step is done, those of a step after it, and the memory.

Each is a process of its own. Memory is the peak above that after all is imported. The
curves are drawn beside the JSON file, as PNG.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from large_data import build_tfds

import keras_hsakd
from keras_hsakd import drawings
from keras_hsakd.files import write_json
from keras_hsakd.machine import machine, memory, versions

BATCH_SIZES = (4, 8, 16, 32, 64)
NUMBERS = (10_000, 100_000, 1_000_000)
SIZE = 16  # edge of the images that are written


class Clock(keras.callbacks.Callback):
    """Notes when each step ends, and stops after some."""

    def __init__(self, steps):
        super().__init__()
        self.ends, self.steps = [], steps

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())
        self.model.stop_training = len(self.ends) >= self.steps


def train(data, pair, num_classes, steps, shape):
    """Trains some steps, and returns what they took."""
    before = memory(peak=True)
    began = time.perf_counter()
    images = data()
    networks = (keras_hsakd.models.create(name, num_classes, shape) for name in pair)
    optimizer = keras_hsakd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4)
    distiller = keras_hsakd.Distiller(*networks).compile(optimizer)
    clock = Clock(steps)
    distiller.fit(images, verbose=0, callbacks=clock)
    took = np.diff(clock.ends)
    return {
        "seconds_to_first_step": round(clock.ends[0] - began, 2),
        "seconds_a_step": round(statistics.median(took), 4),
        "steps_from_to": [round(float(s), 4) for s in (took.min(), took.max())],
        "megabytes": round((memory(peak=True) - before) / 2**20),
    }


def by_batch(batch_size, steps=10):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 100, batch_size)
    batch = tf.data.Dataset.from_tensors((images, labels))
    data = batch.repeat(steps)
    return train(lambda: data, ("wrn_40_2", "wrn_16_2"), 100, steps, (32, 32, 3))


def by_number(folder, name, steps=60):
    def data():
        training, _ = keras_hsakd.data.load(
            f"tfds:{name}", 64, SIZE, data_dir=folder, test_split="train[:1]"
        )
        return training

    return train(data, ("resnet8", "resnet8"), 10, steps, (SIZE, SIZE, 3))


def alone(*arguments):
    """Measures in a process of its own."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    print(*arguments, found, flush=True)
    return found


def draw(figure, result):
    panels = figure.subplots(1, 2)
    for axes, name, label in (
        (panels[0], "batch", "images in a batch"),
        (panels[1], "images", "images to train on"),
    ):
        numbers = [int(number) for number in result[name]]
        memory = axes.twinx()
        for side, quantity, color in (
            (axes, "seconds_a_step", "C0"),
            (memory, "megabytes", "C1"),
        ):
            values = [of[quantity] for of in result[name].values()]
            side.plot(numbers, values, marker="o", color=color)
            side.set_ylim(0, 1.1 * max(values))
            side.set_ylabel(quantity.replace("_", " "), color=color)
        if name == "images":
            axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers], minor=False)
        axes.minorticks_off()
        axes.set_xlabel(label)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--images", nargs="+", type=int, default=NUMBERS)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, *arguments = options.measure
        measured = (
            by_batch(int(arguments[0])) if kind == "batch" else by_number(*arguments)
        )
        print(json.dumps(measured))
        return
    result = {
        "machine": machine(),
        "versions": versions("keras", "tensorflow", "tensorflow-datasets"),
        "batch": {str(size): alone("batch", size) for size in options.batch_sizes},
        "images": {},
    }
    for number in options.images:
        with tempfile.TemporaryDirectory() as folder:
            name = build_tfds(folder, number)
            result["images"][str(number)] = alone("images", folder, name)
    if options.output:
        write_json(options.output, result)
        picture = drawings.drawn(draw, result, size=(11, 4), dpi=120)
        options.output.with_suffix(".png").write_bytes(picture)


if __name__ == "__main__":
    main()
