r"""Our networks on CIFAR-10 beside the image classifiers that MLPerf Tiny publishes.

    pip install 'keras_hsakd[export]'
    python benchmarks/mlperf_tiny.py --peers mlperf_tiny --data cifar10 \
        --exact cifar10_exact runs/mlperf_tiny/*/seed_*/* \
        --output benchmarks/mlperf_tiny.json

All are files of LiteRT: the published `.tflite` files in `--peers`, and of each run its
exports in float32 and in 8 bits. Each classifies the test images of `--data` (JPEG
copies, which our runs are trained on) and of `--exact` (PNG, pixel for pixel, as the
published were), which are foreign to one side each. Intervals are of 95 %: Wilson's of
an accuracy, that of paired proportions of a difference, whose probability is
McNemar's, exact. Latency is the median of one image on one thread; memory is the
highest of a process with an interpreter, above what it has before the file is loaded.
Both are ratios to the smallest published file of the same precision, whose process
ran in the same round; the median of the rounds is told. They count on an idle machine
alone. Of `.h5` files in `--peers` it is told whether `checkpoints.load_keras` gives
what the `.tflite` of the same name does.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_hsakd
from keras_hsakd import runs
from keras_hsakd.data import decoding
from keras_hsakd.files import write_json
from keras_hsakd.machine import machine, versions
from keras_hsakd.runs.methods import grouped

Z = 1.959964  # of the normal distribution, for 95 %

# Of a process of its own, without TensorFlow.
MEASURE = """
import json, statistics, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(x.split()[1]) for x in file if x.startswith(name)) * 1024

path, calls = sys.argv[1], int(sys.argv[2])
Interpreter(path)  # what the library itself needs
open("/proc/self/clear_refs", "w").write("5")  # the highest begins anew
before = memory("VmRSS")
interpreter = Interpreter(path, num_threads=1)
interpreter.allocate_tensors()
taken = interpreter.get_input_details()[0]
image = np.random.default_rng(0).integers(0, 128, taken["shape"]).astype(taken["dtype"])
times = []
for _ in range(calls + calls // 10):
    start = time.perf_counter()
    interpreter.set_tensor(taken["index"], image)
    interpreter.invoke()
    interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    times.append(time.perf_counter() - start)
milliseconds = 1000 * statistics.median(times[calls // 10 :])
json.dump({"latency_ms": milliseconds, "memory": memory("VmHWM") - before}, sys.stdout)
"""


def test_images(folder):
    """Returns the test images in a folder as uint8, and their labels."""
    classes = sorted(path for path in (folder / "test").iterdir() if path.is_dir())
    files = [sorted(path.iterdir()) for path in classes]
    images = [decoding.read(str(file)).numpy() for of in files for file in of]
    return np.stack(images), np.repeat(np.arange(len(files)), list(map(len, files)))


def outputs(path, images):
    """Returns what a file answers for images of 0 to 255, one at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    taken, *_ = interpreter.get_input_details()
    given, *_ = interpreter.get_output_details()
    if taken["dtype"] == np.int8:
        scale, zero = taken["quantization"]
        images = np.rint(images / scale + zero)
    answers = []
    for image in images.astype(taken["dtype"]):
        interpreter.set_tensor(taken["index"], image[np.newaxis])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(answers)


def accuracy(right):
    """Returns accuracy and the ends of Wilson's interval, of what was right."""
    count, part = len(right), float(np.mean(right))
    middle = (part + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = math.sqrt(part * (1 - part) / count + (Z / (2 * count)) ** 2)
    half *= Z / (1 + Z**2 / count)
    return {"mean": part, "low": middle - half, "high": middle + half}


def difference(right, other):
    """Returns how much more was right, its interval and McNemar's probability."""
    count = len(right)
    more = int(np.sum(right & ~other))
    less = int(np.sum(~right & other))
    mean = (more - less) / count
    half = Z * math.sqrt((more + less) - (more - less) ** 2 / count) / count
    tail = sum(math.comb(more + less, k) for k in range(min(more, less) + 1))
    probability = min(1.0, 2 * tail / 2 ** (more + less))
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": probability}


def files_of(options, folder):
    """Returns the files by name, with what is known of each, after exporting ours."""
    found = {}
    for path in sorted(options.peers.glob("*.tflite")):
        integers = path.stem.endswith(("_quant", "_int8"))
        precision = "int8" if integers else "float32"
        found[path.stem] = {"path": path, "of": "published", "precision": precision}
    ours = [runs.Run.open(run.resolve()) for run in options.runs]
    for method in grouped(ours):
        for seed, run in method.runs.items():
            name = f"{method.name}, seed {seed}"
            shipped = runs.export_run(
                run.path, os.path.join(folder, name), formats=["litert", "litert-int8"]
            )
            for made, precision in zip(
                shipped.values(), ("float32", "int8"), strict=True
            ):
                if made.error is not None:
                    raise made.error
                found[f"{name}, {precision}"] = {
                    "path": pathlib.Path(made.path),
                    "of": name,
                    "precision": precision,
                    "model": run.record["training"]["model"],
                    "seed": seed,
                    "epochs": run.record["epochs_done"],
                }
    return found


def measure(files, rounds, calls):
    """Adds latency and memory to each file, and their ratios to its reference."""
    of_rounds = []
    for number in range(rounds):
        found = {}
        for name in list(files)[:: 1 if number % 2 == 0 else -1]:
            command = [sys.executable, "-c", MEASURE, files[name]["path"], calls]
            done = subprocess.run(
                list(map(str, command)), capture_output=True, check=True
            )
            found[name] = json.loads(done.stdout)
        of_rounds.append(found)
    for name, file in files.items():
        for figure in ("latency_ms", "memory"):
            values = [each[name][figure] for each in of_rounds]
            others = [each[file["reference"]][figure] for each in of_rounds]
            ratios = (x / y for x, y in zip(values, others, strict=True))
            file[figure] = statistics.median(values)
            file[f"{figure}_ratio"] = statistics.median(ratios)


def compare(files, sets, rounds, calls):
    """Returns all figures of files, and differences of those of one precision."""
    for file in files.values():
        file["bytes"] = file["path"].stat().st_size
    published = [name for name, file in files.items() if file["of"] == "published"]
    references = {
        files[name]["precision"]: name
        for name in sorted(published, key=lambda name: -files[name]["bytes"])
    }
    for file in files.values():
        file["reference"] = references[file["precision"]]
    if rounds:
        measure(files, rounds, calls)
    differences = {name: {} for name in files}
    for of_set, (images, labels) in sets.items():
        right = {}
        for name, file in files.items():
            right[name] = outputs(file["path"], images).argmax(1) == labels
            file[f"accuracy_{of_set}"] = accuracy(right[name])
            print(of_set, name, file[f"accuracy_{of_set}"], flush=True)
        for name, other in itertools.permutations(files, 2):
            if files[name]["precision"] == files[other]["precision"]:
                found = differences[name].setdefault(other, {})
                found[of_set] = difference(right[name], right[other])
    return {
        "machine": machine(),
        "versions": versions("keras", "tensorflow", "ai-edge-litert"),
        "images": {name: len(labels) for name, (_, labels) in sets.items()},
        "files": {
            name: {key: value for key, value in file.items() if key != "path"}
            for name, file in files.items()
        },
        "differences": differences,
    }


def loaded(peers, images, labels):
    """Returns what `load_keras` gives of the `.h5` files, beside their twins."""
    found = {}
    for path in sorted(peers.glob("*.h5")):
        network = keras_hsakd.models.create("mlperf_resnet8", 10, heads=False)
        keras_hsakd.checkpoints.load_keras(network, path)
        logits = network.predict(images.astype("float32"), 128, verbose=0)
        theirs = outputs(path.with_suffix(".tflite"), images)
        apart = np.abs(keras.ops.softmax(logits) - theirs).max()
        right = logits.argmax(1) == labels
        found[path.stem] = {"accuracy": accuracy(right), "difference": float(apart)}
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, help in (
        ("peers", "folder of the published files"),
        ("data", "folder of the JPEG copies"),
        ("exact", "folder of the exact images"),
    ):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True, help=help)
    parser.add_argument("runs", type=pathlib.Path, nargs="*", help="run folders")
    parser.add_argument(
        "--rounds", type=int, default=7, help="of latency and memory, or 0"
    )
    parser.add_argument("--calls", type=int, default=500, help="of a round")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    options = parser.parse_args(arguments)

    sets = {"jpeg": test_images(options.data), "exact": test_images(options.exact)}
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(options, folder)
        results = compare(files, sets, options.rounds, options.calls)
    results["loaded"] = loaded(options.peers, *sets["exact"])
    if options.output:
        write_json(options.output, results)
    return results


if __name__ == "__main__":
    main()
