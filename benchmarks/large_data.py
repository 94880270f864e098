"""Data as large as people have them: what it costs to begin, and to have them.

    python benchmarks/large_data.py --output benchmarks/large_data.json
    python benchmarks/large_data.py --images 999 --small 999 --photographs 9 --rounds 1

- Memory: a data set of TensorFlow Datasets with `--images` / 5 and one with `--images`
  tiny images, read in each pass; the peak memory of reading 200 batches of each.
- Files: `--images` files in 1,000 classes, beside
  `keras.utils.image_dataset_from_directory`, and the seconds of their fingerprint.
- The first step: `--small` files of 32 x 32 (or those of `--small-dir`, with `train/`
  and `test/`), and `--photographs` JPEG files of about a megabyte at size 224, by a
  first command and by a second one, beside `image_dataset_from_directory` with
  `.cache()`; seconds to the first batch, of the passes over the training images, and
  peak memory. Of photographs, 100 differ; the others are links to them.

Each is read by processes of its own, `--rounds` of them, of which the smallest of each
quantity counts. The files have been written just before, so they are in the page cache
for all.
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
PHOTOGRAPH = 1920, 1440, 90  # height, width and quality: about a megabyte
READERS = {
    "unchecked": "image_folder(corrupt='unchecked', stream=True)",
    "first": "image_folder(), first command",
    "second": "image_folder(), second command",
    "streamed first": "image_folder(stream=True), first command",
    "streamed second": "image_folder(stream=True), second command",
    "keras": "image_dataset_from_directory()",
    "keras cached": "image_dataset_from_directory().cache()",
}


def images(count, size=SIZE):
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (size, size, 3), "uint8") for _ in range(count))


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


def write_files(folder, count, classes, size=SIZE):
    """Writes random images as PNG files, all to train with but one to test."""
    for i, image in enumerate(images(count, size)):
        part = "test" if i == 0 else "train"
        path = os.path.join(folder, part, f"{i % classes:04}", f"{i:06}.png")
        tf.io.write_file(path, tf.io.encode_png(image))


def write_photographs(folder, count):
    """Writes JPEG files of blurred noise, half of them of each of two classes."""
    height, width, quality = PHOTOGRAPH
    rng = np.random.default_rng(0)
    for i in range(count):
        path = pathlib.Path(folder, "train", f"class{i % 2}", f"{i:05}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 100:
            noise = rng.integers(0, 256, (height // 6, width // 6, 3), "uint8")
            image = tf.cast(tf.image.resize(noise, (height, width)), tf.uint8)
            tf.io.write_file(str(path), tf.io.encode_jpeg(image, quality=quality))
        else:
            os.link(path.with_name(f"{i % 100:05}.jpg"), path)
        if i < 2:
            test = pathlib.Path(folder, "test", f"class{i % 2}", path.name)
            test.parent.mkdir(parents=True)
            os.link(path, test)


def pipeline(reader, folder, name, size):
    """Returns training images, and a function to their fingerprint."""
    from keras_hsakd import data

    options = {"batch_size": BATCH_SIZE, "image_size": size}
    if reader == "tfds":
        train, _ = data.load(
            f"tfds:{name}",
            data_dir=folder,
            test_split="train[:1]",
            stream=True,
            **options,
        )
    elif reader.startswith("keras"):
        train = keras.utils.image_dataset_from_directory(
            os.path.join(folder, "train"),
            batch_size=BATCH_SIZE,
            image_size=(size, size),
            verbose=False,
        )
        train = train.cache() if reader == "keras cached" else train
    elif reader == "unchecked":
        train, _ = data.image_folder(folder, corrupt=reader, stream=True, **options)
    else:
        streamed = reader.startswith("streamed")
        train, _ = data.image_folder(folder, stream=streamed, **options)
    return train


def read(reader, folder, name, size, batches):
    """Reads batches, or two passes; returns seconds and the peak memory."""
    result = {}
    began = time.perf_counter()
    train = pipeline(reader, folder, name, int(size))
    for step, _ in enumerate(train.take(int(batches) or -1)):
        if step == 0:
            result["seconds_to_first_batch"] = time.perf_counter() - began
    result["seconds"] = time.perf_counter() - began
    if not int(batches):
        began = time.perf_counter()
        for _ in train:
            pass
        result["seconds_of_second_pass"] = time.perf_counter() - began
    result["peak_megabytes"] = memory(peak=True) / 2**20
    if reader == "unchecked":
        began = time.perf_counter()
        train.fingerprint()
        result["seconds_of_fingerprint"] = time.perf_counter() - began
    return {name: round(value, 2) for name, value in result.items()}


def best(rounds, reader, folder, name="", size=SIZE, batches=BATCHES):
    """Runs `read` in processes, and returns the smallest of each quantity."""
    command = [sys.executable, __file__, "--read", reader, folder, name]
    command += [str(size), str(batches)]
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"XDG_CACHE_HOME": cache}
            commands = 2 if reader.endswith("second") else 1
            for _ in range(commands):
                output = subprocess.check_output(command, text=True, env=environment)
            found.append(json.loads(output.splitlines()[-1]))
    result = {name: min(each[name] for each in found) for name in found[0]}
    print(reader, name, result, flush=True)
    return result


def compared(readers, rounds, *arguments):
    """Returns what each of several readers takes."""
    return {READERS[name]: best(rounds, name, *arguments) for name in readers}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--small", type=int, default=60_000)
    parser.add_argument("--small-dir", help="folder of small files (default: written)")
    parser.add_argument("--photographs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path, help="file to write")
    parser.add_argument("--read", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(*options.read)))
        return
    rounds = options.rounds
    result = {"batches": BATCHES, "batch_size": BATCH_SIZE, "image_size": SIZE}
    with tempfile.TemporaryDirectory() as folder:
        counts = (options.images // 5, options.images)
        result["tfds"] = {
            str(count): best(rounds, "tfds", folder, build_tfds(folder, count))
            for count in counts
        }
        few, many = (result["tfds"][str(count)]["peak_megabytes"] for count in counts)
        result["tfds_megabytes_more"] = round(many - few, 1)
    with tempfile.TemporaryDirectory() as folder:
        write_files(folder, options.images, options.classes)
        result["files"] = {
            "images": options.images,
            "classes": options.classes,
            **compared(("unchecked", "first", "second", "keras"), rounds, folder),
        }
    readers = [name for name in READERS if name not in ("unchecked", "keras")]
    with tempfile.TemporaryDirectory() as folder:
        if not options.small_dir:
            write_files(folder, options.small, 10, 32)
        small = options.small_dir or folder
        result["small"] = {
            "images": sum(len(files) for _, _, files in os.walk(small)),
            **compared(readers, rounds, small, "", 32, 0),
        }
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(folder, options.photographs)
        files = [*pathlib.Path(folder, "train").rglob("*.jpg")]
        sizes = [file.stat().st_size for file in files]
        result["photographs"] = {
            "images": len(files),
            "megabytes_each": round(sum(sizes) / len(sizes) / 1e6, 2),
            **compared(readers, rounds, folder, "", 224, 0),
        }
    result["versions"] = {"keras": keras.__version__, "tensorflow": tf.__version__}
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
