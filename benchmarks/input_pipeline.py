"""Images a second of the input pipelines, beside an older version and decoding alone.

    git worktree add /tmp/before d691dcf
    python benchmarks/input_pipeline.py --before /tmp/before [--rounds 7]
    tar xJf cifar10.tar.xz -C /tmp
    python benchmarks/input_pipeline.py --data-dir /tmp/cifar10
    python benchmarks/input_pipeline.py --data-dir /tmp/cifar10 --train-epochs 4

The contestants read whole passes in turn, round by round, in one process, so that a
machine whose speed drifts slows all; figures are medians of the rounds, ratios are
medians of the ratios within a round. `--data-dir` has JPEG files in folders of classes,
`train/` and `test/`; without it, files of noise that was blurred are written. With
`--train-epochs` a resnet8 is trained on the files, kept and streamed, and on arrays of
the same images, in turn; its images a second are those of the epochs after the first.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

NORMALISED = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@contextlib.contextmanager
def package_at(path):
    """Makes `keras_hsakd` that of a checkout in the block, and none afterwards."""

    def forget():
        for name in [n for n in sys.modules if n.partition(".")[0] == "keras_hsakd"]:
            del sys.modules[name]

    forget()
    sys.path.insert(0, str(path))
    try:
        yield importlib.import_module("keras_hsakd.data.pipelines")
    finally:
        sys.path.remove(str(path))
        forget()


def array_pipelines(before, batch_size):
    """Returns pipelines over arrays of 32 x 32, by name."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20_000, 32, 32, 3)).astype("uint8")
    labels = rng.integers(0, 100, len(images))
    made = {}
    if before:
        with package_at(before) as old:
            sources = importlib.import_module("keras_hsakd.data.sources")
            source = sources.ArraySource(images, labels, 32)
            layer = old.rescaling(*NORMALISED.values())
            made["arrays, before"], _ = old.train_and_test(
                source, source, batch_size, 0, True, layer, ["a"]
            )
    with package_at(pathlib.Path(__file__).parents[1]) as new:
        data = importlib.import_module("keras_hsakd.data")
        source = data.ArraySource(images, labels, 32)
        for name, layer in (
            ("arrays, normalised", new.rescaling(*NORMALISED.values())),
            ("arrays, 0 to 255, as runs feed them", None),
        ):
            made[name], _ = new.train_and_test(
                source, source, batch_size, 0, data.Augmentation(), layer, ["a"]
            )
    return made


def write_jpegs(folder, count, size=256):
    """Writes blurred noise, which takes about as long to decode as a photograph."""
    rng = np.random.default_rng(0)
    for index in range(count):
        small = rng.integers(0, 256, (size // 8, size // 8, 3)).astype("float32")
        image = tf.cast(tf.image.resize(small, (size, size)), tf.uint8)
        content = tf.io.encode_jpeg(image, quality=90)
        for part in ("train", "test")[: 1 + (index < 2)]:
            path = pathlib.Path(folder, part, f"class{index % 2}", f"{index}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.numpy())


def file_pipelines(folder, batch_size, image_size, limit):
    """Returns a pipeline over JPEG files, and one that decodes the same files alone."""
    with package_at(pathlib.Path(__file__).parents[1]):
        data = importlib.import_module("keras_hsakd.data")
        train, _ = data.image_folder(
            folder,
            batch_size,
            image_size,
            corrupt="unchecked",
            normalize=False,
            limit=limit,
            stream=True,
        )
        kept, _ = data.image_folder(
            folder, batch_size, image_size, normalize=False, limit=limit
        )
        files = tf.constant(train.files)

    def decode(index):
        content = tf.io.read_file(tf.gather(files, index))
        return tf.io.decode_jpeg(content, channels=3)

    def decode_and_resize(index):
        size = (image_size, image_size)
        image = tf.image.resize(decode(index), size, antialias=True)
        return tf.ensure_shape(image, (*size, 3))

    def alone(function, batched=True):
        def read(index):
            image = function(index)
            # Of the image, a value: there is nothing to copy into batches.
            return image if batched else image[0, 0, 0], index

        indices = tf.data.Dataset.range(len(files)).shuffle(len(files))
        read_in_order = indices.map(read, tf.data.AUTOTUNE, deterministic=True)
        return read_in_order.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return {
        "files, streamed": train,
        "files, kept": kept,
        "files, decoded alone": alone(decode, batched=False),
        "files, decoded and resized": alone(decode_and_resize, batched=False),
        "files, decoded, resized, batched": alone(decode_and_resize),
    }


class EpochSeconds(keras.callbacks.Callback):
    """Notes how long each epoch takes."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._began)


def train(folder, batch_size, image_size, limit, epochs):
    """Returns images a second of trainings of a resnet8, by what they read."""
    from keras_hsakd import data, models
    from keras_hsakd.data.pipelines import train_and_test
    from keras_hsakd.data.sources import resize_one
    from keras_hsakd.trainers import BaselineTrainer

    options = {"normalize": False, "limit": limit}
    pipelines = {
        name: data.image_folder(
            folder, batch_size, image_size, stream=stream, **options
        )
        for name, stream in (("files, kept", False), ("files, streamed", True))
    }
    kept, _ = pipelines["files, kept"]
    read = kept.pipeline.source.read
    images = [
        np.rint(resize_one(read(tf.constant(index))[0], image_size)).astype("uint8")
        for index in range(kept.num_examples)
    ]
    source = data.ArraySource(np.array(images), kept.labels, image_size)
    pipelines["arrays"] = train_and_test(
        source, source, batch_size, 0, data.Augmentation(), None, kept.class_names
    )
    results = {}
    for name, (dataset, _) in pipelines.items():
        shape = (image_size, image_size, 3)
        network = models.create("resnet8", len(kept.class_names), shape, heads=False)
        trainer = BaselineTrainer(network)
        trainer.compile("sgd")
        timer = EpochSeconds()
        trainer.fit(dataset, epochs=epochs, verbose=0, callbacks=[timer])
        rates = [kept.num_examples / seconds for seconds in timer.seconds[1:]]
        results[name] = round(statistics.median(rates))
        print(f"resnet8 on {name:30} {results[name]} images a second", flush=True)
    return results


def images_a_second(pipeline):
    begin, count = time.perf_counter(), 0
    for _, labels in pipeline:
        count += int(tf.size(labels))
    return count / (time.perf_counter() - begin)


def race(pipelines, rounds):
    """Returns the rates of each pipeline, a row a round; the first round is dropped."""
    rates = {name: [] for name in pipelines}
    for _ in range(rounds + 1):
        for name, pipeline in pipelines.items():
            rates[name].append(images_a_second(pipeline))
    return {name: values[1:] for name, values in rates.items()}


def report(rates, reference):
    rows = {}
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[reference], strict=True)]
        rows[name] = {
            "images_a_second": round(statistics.median(values)),
            f"times {reference}": round(statistics.median(ratios), 3),
            "min_max": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        print(f"{name:40} {json.dumps(rows[name])}", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="checkout of an older version")
    parser.add_argument("--data-dir", help="folder of JPEG files (default: written)")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--limit", type=int, default=10_000, help="most files")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train-epochs", type=int, help="train too, so many epochs")
    options = parser.parse_args()

    arrays = race(array_pipelines(options.before, options.batch_size), options.rounds)
    results = report(arrays, next(iter(arrays)))
    with tempfile.TemporaryDirectory() as written:
        folder = options.data_dir or written
        if not options.data_dir:
            write_jpegs(folder, 2000)
        files = race(
            file_pipelines(
                folder, options.batch_size, options.image_size, options.limit
            ),
            options.rounds,
        )
        sizes = options.batch_size, options.image_size, options.limit
        training = options.train_epochs and train(folder, *sizes, options.train_epochs)
    results |= report(files, "files, decoded, resized, batched")
    results["resnet8"] = training
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    results["tensorflow"] = tf.__version__
    results["files"] = options.data_dir and os.path.basename(options.data_dir)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
