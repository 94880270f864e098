"""AP50 of detectors on drawn images, by what their backbone has learned before.

    python benchmarks/detection.py [--seeds 0 1 2] [--output benchmarks/detection.json]

For each seed `examples/detection.py` trains three detectors on few images in VOC's
format, shapes on noise, and for as long: from random weights, from a student trained on
images of single shapes by their labels alone, and from the same student by HSAKD.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import keras

import keras_hsakd as hsakd

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import drawn_voc  # noqa: E402


def students(options, seed, folder):
    """Writes the three students of a seed, and returns their accuracies."""
    size = options.image_size
    images, labels = drawn_voc.classes(options.images, size, seed)
    tests = drawn_voc.classes(1000, size, seed=1000 + seed)
    fitting = {"batch_size": 32, "epochs": options.student_epochs, "verbose": 0}

    def made(width):
        keras.utils.set_random_seed(seed)
        return hsakd.attach_heads(drawn_voc.classifier(width, size), head="light")

    teacher = made(16)
    hsakd.TeacherTrainer(teacher).compile("adam").fit(images, labels, **fitting)
    by_labels, by_hsakd = hsakd.strip_heads(made(8)), made(8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    by_labels.compile("adam", loss)
    by_labels.fit(images, labels, **fitting)
    distiller = hsakd.Distiller(teacher, by_hsakd).compile("adam")
    distiller.fit(images, labels, **fitting)
    networks = {"random": made(8), "labels": by_labels, "hsakd": by_hsakd}
    accuracies = {}
    for name, network in networks.items():
        network.save(folder / f"{name}.keras")
        classes = hsakd.strip_heads(network).predict(tests[0], verbose=0).argmax(-1)
        accuracies[name] = float((classes == tests[1]).mean())
    return accuracies


def detect(options, student, seed, data_dir, output):
    """Returns AP50 of a detector that is trained on a student."""
    example = ROOT / "examples" / "detection.py"
    command = [sys.executable, example, student, "--data", "voc/2007", "--seed", seed]
    command += ["--data-dir", data_dir, "--image-size", options.image_size]
    command += ["--epochs", options.epochs, "--output", output]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(result.stderr[-3000:])
    return float(re.search(r"^AP50 (\S+)$", result.stdout, re.M)[1])


def spread(values):
    return {
        "mean": round(statistics.mean(values), 4),
        "deviation": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        "values": values,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1500, help="to train students on")
    parser.add_argument("--student-epochs", type=int, default=4)
    parser.add_argument("--detection-images", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=10, help="of a detector")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()

    began = time.perf_counter()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for seed in options.seeds:
            drawn_voc.build(
                folder / f"data{seed}",
                train=options.detection_images - 2,
                val=2,
                test=300,
                size=options.image_size,
                seed=seed,
            )
            accuracies = students(options, seed, folder)
            for name, accuracy in accuracies.items():
                arm = found.setdefault(name, {"accuracy": [], "ap50": []})
                arm["accuracy"].append(accuracy)
                ap50 = detect(
                    options,
                    folder / f"{name}.keras",
                    seed,
                    folder / f"data{seed}",
                    folder / f"{name}{seed}",
                )
                arm["ap50"].append(ap50)
                print(f"seed {seed}, {name}: AP50 {ap50:.3f}", flush=True)
    result = {
        **{k: v for k, v in vars(options).items() if k != "output"},
        "backbones": {
            name: {key: spread(values) for key, values in arm.items()}
            for name, arm in found.items()
        },
        "seconds": round(time.perf_counter() - began),
        "keras": keras.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
