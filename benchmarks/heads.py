"""What auxiliary heads cost: multiply-adds, and seconds of a step.

    python benchmarks/heads.py --output benchmarks/heads.json
    python benchmarks/heads.py --steps 5 --output benchmarks/heads.json

Multiply-adds of a view are by arithmetic, for 10 classes. With `--steps`, a step of
EfficientNetB0 that teaches MobileNetV3Small, 96 pixels, 16 images, is timed as well, by
HSAKD in several ways beside plain distillation: each way has a process of its own, with
the whole machine while it runs a block of steps; who comes first changes with the
round. A ratio is the time of a way over that of plain distillation in the same round;
the median and its 95 % interval (bootstrap) are told. A cached teacher is one whose
outputs are there: reading them is not in it.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from step_time import contest, interval, race

APPLICATIONS = ("MobileNetV3Small", "EfficientNetB0", "MobileNetV2", "ResNet50")
ZOO = ("resnet8", "resnet20", "wrn_16_2", "wrn_40_2")
CLASSES, SIZE, BATCH = 10, 96, 16
# Head (none: plain distillation), views in a step, whether the teacher is cached.
WAYS = {
    "plain distillation": (None, 1, False),
    "copied heads, 4 views": ("copy", 4, False),
    "light heads, 4 views": ("light", 4, False),
    "light heads, 2 views": ("light", 2, False),
    "light heads, 2 views, cached teacher": ("light", 2, True),
}
HERE = pathlib.Path(__file__).resolve().parents[1]


def application(name, size):
    import keras

    make = getattr(keras.applications, name)
    return make(
        input_shape=(size, size, 3),
        weights=None,
        classes=CLASSES,
        classifier_activation=None,
    )


def multiply_adds(name, size):
    """Returns the multiply-adds and parameters of a network and of all its heads."""
    from keras_hsakd import attach_heads, models
    from keras_hsakd.compat import shapes_only
    from keras_hsakd.heads import multiply_adds_by_part

    row = {}
    for head in ("light", "copy"):
        with shapes_only():
            if name in ZOO:
                network = models.create(name, CLASSES, (size, size, 3), head=head)
                plain = models.create(name, CLASSES, (size, size, 3), heads=False)
            else:
                plain = application(name, size)
                network = attach_heads(plain, head=head)
        parts = multiply_adds_by_part(network)
        row["backbone"] = parts.pop("backbone")
        row[head] = sum(parts.values())
        parameters = plain.count_params()
        row["parameters"] = parameters
        row[f"parameters_{head}"] = network.count_params() - parameters
    return row


def way(name):
    """A contestant of `step_time.contest`."""
    import tensorflow as tf

    import keras_hsakd
    from keras_hsakd.heads import signature
    from keras_hsakd.runs.timing import ConstantTeacher

    head, views, is_cached = WAYS[name]
    yield
    networks = [application(each, SIZE) for each in APPLICATIONS[1::-1]]
    arguments = {"sampled_views": views} if views == 2 else {}
    if head is not None:
        networks = [keras_hsakd.attach_heads(each, head=head) for each in networks]
    teacher, student = networks
    if is_cached:
        teacher = ConstantTeacher(signature(teacher))
    distiller = keras_hsakd.Distiller(teacher, student, **arguments)
    distiller.compile("sgd", steps_per_execution=1)
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (BATCH, SIZE, SIZE, 3)).astype("float32")
    data = (images, rng.integers(0, CLASSES, BATCH))
    iterator = iter(tf.data.Dataset.from_tensors(data).cache().repeat())
    distiller.make_train_function()
    yield lambda: float(distiller.train_function(iterator)["loss"])
    yield None


class Contestant:
    """A process that waits until it is told to run a block of steps."""

    def __init__(self, name):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--contest", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"A contestant ended: {self._process.args}")
        return json.loads(answer)


def measure(rounds, steps, pause):
    """Returns seconds of a step of each way, and its ratio to plain distillation."""
    contestants = {name: Contestant(name) for name in WAYS}
    blocks = race(contestants, rounds, steps, pause)
    plain = [block["seconds"] for block in blocks["plain distillation"]]
    found = {}
    for name, of_one in blocks.items():
        seconds = [block["seconds"] for block in of_one]
        memory = contestants[name].ask("")["memory"]
        ratios = [own / other for own, other in zip(seconds, plain, strict=True)]
        found[name] = {
            "seconds_a_step": float(f"{statistics.median(seconds):.4g}"),
            "over_plain_distillation": interval(ratios),
            "megabytes": round(memory / 1e6),
        }
    return found


def table(rows):
    """Returns the multiply-adds of all networks as a Markdown table."""
    lines = [
        "| multiply-adds, millions | network | light heads | copied heads |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        cells = (f"{row[part] / 1e6:,.1f}" for part in ("backbone", "light", "copy"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    sys.path.insert(0, str(HERE))
    if sys.argv[1:2] == ["--contest"]:
        return contest(way, sys.argv[2])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=0, help="steps in a block")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before one")
    parser.add_argument("--output", help="JSON file to write (default: none)")
    options = parser.parse_args()
    cases = [(name, size) for name in APPLICATIONS for size in (SIZE, 224)]
    cases += [(name, 32) for name in ZOO]
    rows = {f"{name}, {size} px": multiply_adds(name, size) for name, size in cases}
    print(table(rows), flush=True)
    found = {"classes": CLASSES, "multiply_adds": rows}
    if options.steps:
        found["steps"] = measure(options.rounds, options.steps, options.pause)
        print(json.dumps(found["steps"], indent=2))
    if options.output:
        from keras_hsakd.files import write_json
        from keras_hsakd.machine import machine, versions

        packages = versions("keras", "tensorflow", "numpy")
        write_json(
            options.output, {**found, "machine": machine(), "versions": packages}
        )


if __name__ == "__main__":
    main()
