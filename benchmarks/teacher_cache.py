"""What a cached teacher costs and saves: its size, its writing, and a step with it.

    python benchmarks/teacher_cache.py [--rounds 15] [--output teacher_cache.json]

Random images of 32 x 32 and 100 classes. A step reads its batch through the pipeline,
in three trainings: exact, with the teacher's network; cached, with its outputs from
memory-mapped files; constant, with constants in their place, which is the least that a
step without a teacher can cost. They run in turn, block by block, in an order that
rotates, so that a machine whose speed drifts slows all; ratios are those within a
round, with a 95 % interval of their median by resampling. The divergences are those of
`TeacherCache.check`; the teacher is not trained, and its classifiers are scaled so that
its logits have a standard deviation of 4.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_hsakd
from keras_hsakd.data import ArraySource, Augmentation
from keras_hsakd.data.pipelines import train_and_test
from keras_hsakd.files import write_json
from keras_hsakd.machine import machine, versions
from keras_hsakd.teachers import DTYPES, TeacherCache

CLASSES = 100
PAIRS = ("wrn_40_2-wrn_16_2", "resnet56-resnet20", "resnet32x4-resnet8x4")


class WithConstants(keras_hsakd.Distiller):
    """A distiller that computes no targets: the same ones serve every batch."""

    constants = None

    def targets(self, batch):
        return self.constants


class Training:
    """A training of which some steps can be timed, and then some more."""

    def __init__(self, distiller, dataset):
        self._distiller = distiller.compile(
            keras_hsakd.optimizers.SGD(0.01, momentum=0.9, weight_decay=5e-4)
        )
        self._distiller.make_train_function()
        self._batches = iter(dataset.repeat())

    def seconds(self, steps):
        """Returns the seconds of a step, of which the last one has ended."""
        begin = time.perf_counter()
        for _ in range(steps):
            logs = self._distiller.train_function(self._batches)
        float(logs["loss"])
        return (time.perf_counter() - begin) / steps


def data(images, batch_size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), "uint8")
    source = ArraySource(pixels, rng.integers(0, CLASSES, images), 32)
    layer = keras_hsakd.data.info("cifar100").preprocessing()
    names = [str(label) for label in range(CLASSES)]
    train, _ = train_and_test(
        source, source, batch_size, 0, Augmentation(), layer, names
    )
    return train


def scale(teacher, images):
    """Scales a network's classifiers, for its logits to have a deviation of 4."""
    for name, values in teacher.predict_on_batch(images).items():
        teacher.get_layer(name).kernel.assign(
            teacher.get_layer(name).kernel * (4 / values.std())
        )


def written(folder, teacher, train, options):
    """Writes a cache of each dtype, and returns them with what was measured."""
    caches, measured = {}, {}
    for dtype in DTYPES:
        begin = time.perf_counter()
        cache = caches[dtype] = TeacherCache.write(
            folder / dtype, teacher, train, 2, dtype=dtype, batch_size=64, verbose=0
        )
        seconds = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in (folder / dtype).iterdir())
        images = 2 * options.images
        checked = cache.check(teacher, train, images=options.images)
        measured[dtype] = {
            "bytes_an_image": round(size / images),
            "seconds_to_write_1000_images": round(1000 * seconds / images, 2),
            "divergence": {name: found._asdict() for name, found in checked.items()},
        }
    return caches, measured


def timed(trainings, options):
    """Returns the seconds of a step in each round, by training."""
    for training in trainings.values():
        training.seconds(options.warm_up)
    names = list(trainings)
    rounds = []
    for number in range(options.rounds):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        rounds.append({name: trainings[name].seconds(options.steps) for name in order})
    return rounds


def ratio(rounds, first, second):
    """Returns the median ratio of two trainings, with its 95 % interval."""
    ratios = np.array([each[first] / each[second] for each in rounds])
    resampled = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(resampled, axis=1), (0.025, 0.975))
    return {
        "median": round(float(np.median(ratios)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
    }


def measured(pair, folder, options):
    keras.utils.set_random_seed(0)
    names = pair.split("-")
    teacher, *students = (
        keras_hsakd.models.create(name, CLASSES) for name in (names[0], *names[1:] * 3)
    )
    train = data(options.images, options.batch_size)
    images, _ = next(iter(train))
    scale(teacher, images)
    caches, result = written(folder, teacher, train, options)
    constant = WithConstants(teacher, students[2])
    targets = caches["float32"].read(0, range(options.batch_size))
    constant.constants = {
        name: keras.ops.convert_to_tensor(values.reshape(-1, values.shape[-1]))
        for name, values in targets.items()
    }
    replayed = train.pipeline.dataset(caches["float16"])
    trainings = {
        "exact": Training(keras_hsakd.Distiller(teacher, students[0]), train),
        "cached": Training(
            keras_hsakd.Distiller(caches["float16"], students[1]), replayed
        ),
        "constant": Training(constant, train),
    }
    rounds = timed(trainings, options)
    return {
        "cache": result,
        "seconds_a_step": {
            name: round(statistics.median(each[name] for each in rounds), 4)
            for name in trainings
        },
        "cached_to_constant": ratio(rounds, "cached", "constant"),
        "exact_to_cached": ratio(rounds, "exact", "cached"),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="TEACHER-STUDENT")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="of a block")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    options = parser.parse_args()
    if options.images % options.batch_size:
        parser.error("--images is no multiple of --batch-size")
    results = {}
    for pair in options.pairs:
        with tempfile.TemporaryDirectory() as folder:
            results[pair] = measured(pair, pathlib.Path(folder), options)
        figures = results[pair]
        for name in ("cached_to_constant", "exact_to_cached"):
            low, high = figures[name]["interval"]
            median = figures[name]["median"]
            print(f"{pair}: {name} {median:.3f} ({low:.3f} to {high:.3f})", flush=True)
    if options.output:
        content = {
            **{k: v for k, v in vars(options).items() if k not in ("output", "pairs")},
            "results": results,
            "machine": machine(),
            "versions": versions("keras_hsakd", "keras", "tensorflow", "numpy"),
        }
        write_json(options.output, content)


if __name__ == "__main__":
    main()
