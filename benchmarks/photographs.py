"""The command line on photographs: CIFAR-10 with 500 training images a class.

Trains a resnet20 teacher, a resnet8 on labels alone and a resnet8 by HSAKD, 10 epochs
each, and copies their run files to `benchmarks/photographs/`:

    python benchmarks/photographs.py cifar10.tar.xz --output runs/photographs

The archive holds `cifar10/{train,test}/<class>/NNNN.jpg`; the first 500 images of each
class by file name are trained on, all 10,000 test images are measured on.
"""

import argparse
import pathlib
import shlex
import shutil
import subprocess
import sys
import tarfile

PER_CLASS = 500
RESULTS = pathlib.Path(__file__).parent / "photographs"
TRAINING = "--epochs 10 --batch-size 64 --learning-rate 0.05 --seed 0 --verbose 2"
COMMANDS = {
    "teacher": "teacher --data {output}/cifar10 --model resnet20 --head-metrics",
    "baseline": "baseline --data {output}/cifar10 --model resnet8",
    "student": "distill --teacher {output}/teacher --model resnet8 --head-metrics",
}


def unpack(archive, output):
    output.mkdir(parents=True)
    with tarfile.open(archive) as file:
        file.extractall(output, filter="data")
    for folder in sorted((output / "cifar10" / "train").iterdir()):
        for file in sorted(folder.iterdir())[PER_CLASS:]:
            file.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default="runs/photographs")
    options = parser.parse_args()
    unpack(options.archive, options.output)
    for name, command in COMMANDS.items():
        run = options.output / name
        words = shlex.split(f"{command} {TRAINING} --output {{output}}/{name}")
        words = [word.format(output=options.output) for word in words]
        print("keras-hsakd", shlex.join(words), flush=True)
        program = pathlib.Path(sys.executable).parent / "keras-hsakd"
        subprocess.run([program, *words], check=True)
        (RESULTS / name).mkdir(parents=True, exist_ok=True)
        for file in ("run.json", "log.csv", "curves.png"):
            shutil.copy(run / file, RESULTS / name)


if __name__ == "__main__":
    main()
