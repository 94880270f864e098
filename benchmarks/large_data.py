"""Data far larger than memory: what it costs to have 100,000 images, and to begin.

    python benchmarks/large_data.py --output benchmarks/large_data.json

- Memory: a data set of TensorFlow Datasets with `--images` / 5 and one with `--images`
  tiny images; the peak memory of reading 200 batches of each, a process each, the
  smallest of three.
- Files: `--images` files in 1,000 classes; seconds to the first batch and peak memory
  with files decoded beforehand and unchecked, beside
  `keras.utils.image_dataset_from_directory`. The files have been written just before,
  so they are in the page cache for all.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.files import write_json
from keras_hsakd.machine import memory

BATCH_SIZE, BATCHES = 64, 200
SIZE = 16
READERS = {
    "unchecked": "image_folder(corrupt='unchecked')",
    "refuse": "image_folder()",
    "keras": "keras.utils.image_dataset_from_directory()",
}


def images(count):
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (SIZE, SIZE, 3), "uint8") for _ in range(count))


def build_tfds(folder, count):
    """Builds a data set of random images, and returns its name."""
    import tensorflow_datasets as tfds

    name = f"random_{count}"
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    examples = (
        (str(i), {"image": image, "label": i % 10})
        for i, image in enumerate(images(count))
    )
    tfds.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples},
        data_dir=folder,
        file_format="array_record",
    ).download_and_prepare()
    return name


def write_files(folder, count, classes):
    """Writes random images as PNG files, all to train with but one to test."""
    for i, image in enumerate(images(count)):
        part = "test" if i == 0 else "train"
        path = os.path.join(folder, part, f"{i % classes:04}", f"{i:06}.png")
        tf.io.write_file(path, tf.io.encode_png(image))


def read(reader, folder, name):
    """Reads batches, and returns seconds to the first and the peak memory."""
    from keras_hsakd import data

    options = {"batch_size": BATCH_SIZE, "image_size": SIZE}
    began = time.perf_counter()
    if reader == "tfds":
        train, _ = data.load(
            f"tfds:{name}", data_dir=folder, test_split="train[:1]", **options
        )
    elif reader == "keras":
        train = keras.utils.image_dataset_from_directory(
            os.path.join(folder, "train"),
            batch_size=BATCH_SIZE,
            image_size=(SIZE, SIZE),
            verbose=False,
        )
    else:
        train, _ = data.image_folder(folder, corrupt=reader, **options)
    for step, _ in enumerate(train.take(BATCHES)):
        if step == 0:
            seconds = time.perf_counter() - began
    return {
        "seconds_to_first_batch": round(seconds, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "peak_megabytes": round(memory(peak=True) / 2**20, 1),
    }


def best_of_three(*arguments):
    """Runs `read` in three processes, and returns the smallest of each quantity."""
    command = [sys.executable, __file__, "--read", *arguments]
    outputs = [subprocess.check_output(command, text=True) for _ in range(3)]
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    result = {name: min(each[name] for each in found) for name in found[0]}
    print(*arguments, result, flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--output", type=pathlib.Path, help="file to write")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(*options.read)))
        return
    result = {"batches": BATCHES, "batch_size": BATCH_SIZE, "image_size": SIZE}
    with tempfile.TemporaryDirectory() as folder:
        counts = (options.images // 5, options.images)
        result["tfds"] = {
            str(count): best_of_three("tfds", folder, build_tfds(folder, count))
            for count in counts
        }
        few, many = (result["tfds"][str(count)]["peak_megabytes"] for count in counts)
        result["tfds_megabytes_more"] = round(many - few, 1)
    with tempfile.TemporaryDirectory() as folder:
        write_files(folder, options.images, options.classes)
        result["files"] = {
            "images": options.images,
            "classes": options.classes,
            **{READERS[name]: best_of_three(name, folder, "") for name in READERS},
        }
    result["versions"] = {"keras": keras.__version__, "tensorflow": tf.__version__}
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
