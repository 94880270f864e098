"""What images without labels add: HSAKD on digits of which few are labelled.

    python benchmarks/unlabeled.py --output benchmarks/unlabeled.json

For each seed 10 labelled digits a class are chosen; 60 more a class are written as PNG
files, without their labels. A resnet14 teacher teaches two resnet8 that begin with the
same weights, for the same number of steps: one on the labelled digits, one on both. The
teacher was trained on the labelled ones alone, or with `--teacher all` on all training
digits with their labels, as one from elsewhere is, which knows more than the student's
labels tell. All is measured on the validation split, which none of them has seen; the
settings are the demo's, the accuracies those of the last epoch.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import tempfile

import keras
import numpy as np
import tensorflow as tf
from scipy.special import stdtrit

from keras_hsakd import Distiller, TeacherTrainer, data, models
from keras_hsakd.data.datasets import _read_digits
from keras_hsakd.data.subsets import choose, few
from keras_hsakd.files import write_json
from keras_hsakd.optimizers import SGD, step_decay
from keras_hsakd.runs.intervals import spread
from keras_hsakd.runs.settings import DemoSettings

LABELLED, UNLABELLED = 10, 60  # of each class
RATIO = (LABELLED + UNLABELLED) // LABELLED  # of the steps of an epoch
SETTINGS = DemoSettings(examples_per_class=LABELLED)


def write_unlabelled(folder, seed):
    """Writes digits that are neither labelled with this seed nor measured on."""
    train, test, _ = _read_digits("digits", None)
    positions = np.arange(len(train[1]))
    everything = positions, train[1]
    part = (everything, None, True)
    (labelled, _), _ = choose(*part, examples_per_class=LABELLED, seed=seed)
    (trained, labels), _ = choose(*part, examples_per_class=None, seed=seed)
    rest = ~np.isin(trained, labelled)
    chosen, _ = few(trained[rest], labels[rest], UNLABELLED, seed)
    for position in chosen:
        content = tf.io.encode_png(train[0][position])
        tf.io.write_file(os.path.join(folder, f"{position}.png"), content)


def load(seed, per_class, unlabeled=None):
    return data.load(
        "digits",
        batch_size=SETTINGS.batch_size,
        image_size=SETTINGS.image_size,
        examples_per_class=per_class,
        validation=True,
        seed=seed,
        unlabeled=unlabeled,
    )


def create(name, seed):
    keras.utils.set_random_seed(seed)
    size = SETTINGS.image_size
    return models.create(name, 10, input_shape=(size, size, 3))


def fit(trainer, seed, epochs, per_class=LABELLED, unlabeled=None):
    """Returns the accuracy on validation images after a number of epochs."""
    train, test = load(seed, per_class, unlabeled)
    rate = step_decay(SETTINGS.learning_rate, epochs, len(train))
    trainer.compile(
        SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
        weighted_metrics=["accuracy"],
    )
    keras.utils.set_random_seed(seed)
    trainer.fit(train, epochs=epochs, verbose=0)
    return trainer.evaluate(test, verbose=0, return_dict=True)["accuracy"]


def accuracies(seed, epochs, labels):
    """Returns the accuracies of one seed; `epochs` are those over all images."""
    teacher = create(SETTINGS.teacher, seed)
    per_class = LABELLED if labels == "labelled" else None
    trainer = TeacherTrainer(teacher)
    found = {"teacher": fit(trainer, seed, SETTINGS.teacher_epochs, per_class)}
    with tempfile.TemporaryDirectory() as folder:
        write_unlabelled(folder, seed)
        for name, longer, unlabeled in (
            ("labelled", RATIO, None),
            ("with_unlabelled", 1, folder),
        ):
            distiller = Distiller(teacher, create(SETTINGS.student, seed))
            found[name] = fit(distiller, seed, longer * epochs, unlabeled=unlabeled)
    print(f"Seed {seed}:", *(f"{k} {v:.2%}" for k, v in found.items()), flush=True)
    return found


def summary(values):
    mean, deviation = spread(values)
    half = stdtrit(len(values) - 1, 0.975) * deviation / math.sqrt(len(values))
    return {
        "mean": round(mean, 4),
        "standard_deviation": round(deviation, 4),
        "interval_95": [round(mean - half, 4), round(mean + half, 4)],
        "by_seed": [round(value, 4) for value in values],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, choices=(2, 3, 4, 5, 6, 8, 10))
    parser.add_argument("--epochs", type=int, default=20, help="over all images")
    parser.add_argument("--teacher", default="labelled", choices=("labelled", "all"))
    parser.add_argument("--output", type=pathlib.Path, help="file to write")
    options = parser.parse_args()
    rows = [
        accuracies(seed, options.epochs, options.teacher)
        for seed in range(options.seeds)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["difference"] = [r["with_unlabelled"] - r["labelled"] for r in rows]
    result = {
        "data": "digits, accuracy on the validation split after the last epoch",
        "labelled_a_class": LABELLED,
        "unlabelled_a_class": UNLABELLED,
        "networks": [SETTINGS.teacher, SETTINGS.student],
        "teacher_trained_on": options.teacher,
        "epochs": options.epochs,
        **{name: summary(values) for name, values in columns.items()},
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result, indent=2))
    if options.output:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
