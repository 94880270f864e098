"""One experiment of each kind, scaled down, on photographs: that all of it runs.

    python benchmarks/recipes.py tiny_imagenet32_100.tar.xz cifar10.tar.xz

The first archive holds `tiny_imagenet32_100/{train,test}/<class>/*.JPEG`, 100 classes
of 32x32 pixels, the shape of CIFAR-100; the second `cifar10/{train,test}/<class>/`.
With a few hundred images and an epoch or two the accuracies say nothing of the method.
Results go to `benchmarks/recipes.json`.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tarfile
import time

RESULTS = pathlib.Path(__file__).with_suffix(".json")
SMALL = "--limit 500 --epochs 2 --seed 0 --verbose 0"
COMMANDS = {
    "cifar100/resnet56-resnet20": "",
    "cifar100/resnet56-resnet20/frozen": "",
    "cifar100/resnet56-resnet20/labels-25": "--teacher {output}/0/teacher",
    "cifar100/resnet20/baseline": "",
    "cifar100/wrn_40_2-wrn_16_2/heads-3": "--limit 250",
    "cifar100/shufflenet_v1/online": "--limit 250",
    "stl10/linear": "--target-data {output}/cifar10 --limit 250 --epochs 1",
    "imagenet/resnet34_imagenet-resnet18_imagenet": "--image-size 64 --limit 250",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", nargs=2, type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default="runs/recipes")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    for archive in options.archives:
        with tarfile.open(archive) as file:
            file.extractall(options.output, filter="data")
    program = pathlib.Path(sys.executable).parent / "keras-hsakd"
    results = {"cores": os.cpu_count(), "recipes": {}}
    for number, (name, more) in enumerate(COMMANDS.items()):
        words = f"run {name} --data {{output}}/tiny_imagenet32_100 {SMALL} {more}"
        folder = options.output / str(number)
        words = [
            *shlex.split(words.format(output=options.output)),
            *("--output", str(folder)),
        ]
        print("keras-hsakd", shlex.join(words), flush=True)
        began = time.monotonic()
        subprocess.run([program, *words], check=True)
        steps = {}
        for record in sorted(folder.glob("*/run.json"), key=os.path.getmtime):
            run = json.loads(record.read_text())
            steps[record.parent.name] = {
                "model": run["training"]["model"],
                "epochs": run["epochs_done"],
                "last": run["last"][run["monitor"]],
                "best": run["best"][run["monitor"]],
                "seconds": run["seconds"],
            }
        results["recipes"][name] = {
            "seconds": round(time.monotonic() - began),
            "steps": steps,
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
