r"""Makes one of the networks that come with the package of a run folder.

    python benchmarks/pretrained.py RUN resnet20-cifar10 --also cifar10_exact \
        --data "50,000 JPEG copies of the training images of CIFAR-10" \
        --command "keras-hsakd study benchmarks/mlperf_tiny.txt"

Writes `keras_hsakd/pretrained/NAME.npz`, the weights after the last epoch in half
precision, by the names of Keras' variables, and `NAME.json`, its card. The accuracies
in the card are those of the rounded weights, on the run's test images and on those of
the folders in `--also`. What was written is loaded again and compared.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from results import for_others

from keras_hsakd import digests, models, pretrained
from keras_hsakd.files import atomic_write, write_json
from keras_hsakd.graph import PREPROCESSING
from keras_hsakd.heads import is_plain, strip_heads
from keras_hsakd.runs import Run
from keras_hsakd.runs.evaluation import images_measured_on, measure


def make(run, name, data, command, licence="Apache-2.0", also=()):
    """Writes the files of a network, and returns its card."""
    run = Run.open(run)
    model = run.record["training"]["model"]
    if model not in models.names():
        raise ValueError(
            f"Expected a run of a network of the zoo. Received: '{run.path}', of "
            f"{model}"
        )
    network = run.network()
    weights = {}
    for variable in network.variables:
        weights[variable.path] = np.asarray(variable).astype("float16")
        variable.assign(weights[variable.path].astype("float32"))
        if not np.isfinite(weights[variable.path]).all():
            raise ValueError(
                "Expected weights that half precision has. "
                f"Received: larger ones in {variable.path} of '{run.path}'"
            )
    accuracy = {}
    for folder in (None, *also):
        changes = {} if folder is None else {"data": os.fspath(folder)}
        images = images_measured_on(run, {"validation": False, **changes})
        found = measure(network, images.test, run.views, verbose=0)
        of = os.path.basename(os.path.normpath(folder or run.data_settings().data))
        accuracy[of] = found["accuracy"]
    preprocessing = network.get_layer(PREPROCESSING)
    # What is left out has no meaning for a named data set, if one has the name.
    record = {**for_others(run.record), "data": {"data": next(iter(accuracy))}}
    card = {
        "data": data,
        "command": command,
        "seed": run.training_settings().seed,
        "accuracy": accuracy,
        "licence": licence,
        "digest": digests.of_values(weights[key] for key in sorted(weights)),
        "heads": not is_plain(network),
        "preprocessing": {
            "scale": preprocessing.scale,
            "offset": preprocessing.offset,
        },
        "record": record,
    }
    with atomic_write(pretrained.path(name)) as temporary:
        np.savez_compressed(temporary, **weights)
    write_json(pretrained.FOLDER / f"{name}.json", card)
    sample = next(iter(images.test))[0]
    np.testing.assert_array_equal(
        models.pretrained(name)(sample), strip_heads(network)(sample)
    )
    return card


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("name", help="of the network, as resnet20-cifar10")
    parser.add_argument("--data", required=True, help="what it was trained on")
    parser.add_argument("--command", required=True, help="that it was trained by")
    parser.add_argument("--licence", default="Apache-2.0")
    parser.add_argument(
        "--also", type=pathlib.Path, nargs="+", default=[], help="folders to measure on"
    )
    options = parser.parse_args()
    card = make(**vars(options))
    print(f"Wrote {pretrained.path(options.name)}: accuracy {card['accuracy']}")


if __name__ == "__main__":
    main()
