"""Time of an HSAKD step with our batch normalization, as a ratio to Keras' layer.

    python benchmarks/batch_norm.py [--pairs 5] [--batch-size 16]

Both steps run in turn, pair by pair, in one process, so that a machine whose speed
drifts slows both; the median of the ratios is the figure to quote.
"""

import argparse
import json
import os
import platform
import statistics
import time
from unittest import mock

import keras
import numpy as np

import keras_hsakd
from keras_hsakd.models import builder


def keras_layer(name):
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def make_distiller(teacher, student, layer):
    with mock.patch.object(builder, "BatchNormalization", layer):
        networks = [keras_hsakd.models.create(n, 100) for n in (teacher, student)]
    optimizer = keras_hsakd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4)
    return keras_hsakd.Distiller(*networks).compile(optimizer)


def seconds(distiller, batch, steps):
    begin = time.perf_counter()
    for _ in range(steps):
        distiller.train_on_batch(*batch)
    return (time.perf_counter() - begin) / steps


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="wrn_40_2")
    parser.add_argument("--student", default="wrn_16_2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch_size, 32, 32, 3)).astype("float32")
    batch = images, rng.integers(0, 100, options.batch_size)
    distillers = {
        kind: make_distiller(options.teacher, options.student, layer)
        for kind, layer in (
            ("ours", keras_hsakd.layers.BatchNormalization),
            ("keras", keras_layer),
        )
    }
    for distiller in distillers.values():
        seconds(distiller, batch, 2)  # compile and warm up
    pairs = [
        {kind: seconds(d, batch, options.steps) for kind, d in distillers.items()}
        for _ in range(options.pairs)
    ]
    ratios = [pair["ours"] / pair["keras"] for pair in pairs]
    result = {
        **vars(options),
        "seconds_a_step": {
            kind: round(statistics.median(pair[kind] for pair in pairs), 4)
            for kind in distillers
        },
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
