"""How long the command line takes to answer, beside `import tensorflow`.

    python benchmarks/start_up.py [--rounds 5] [--output start_up.json]

Each line is a process of its own, and the rounds go through all of them in turn. The
seconds are those of a processor, which other programs on the machine do not add to.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys

from keras_hsakd.files import write_json
from keras_hsakd.machine import machine, versions

PROGRAM = str(pathlib.Path(sys.executable).parent / "keras-hsakd")
LINES = {
    "keras-hsakd --help": [PROGRAM, "--help"],
    "keras-hsakd distill --help": [PROGRAM, "distill", "--help"],
    "keras-hsakd run --list": [PROGRAM, "run", "--list"],
    "keras-hsakd models": [PROGRAM, "models"],
    "import tensorflow": [sys.executable, "-c", "import tensorflow"],
}
CHILDREN = ("children_user", "children_system")


def seconds(line):
    """Returns the processor time of a process."""
    before = os.times()
    subprocess.run(line, check=True, capture_output=True)
    after = os.times()
    return sum(getattr(after, n) - getattr(before, n) for n in CHILDREN)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    found = {name: [] for name in LINES}
    for _ in range(options.rounds):
        for name, line in LINES.items():
            found[name].append(seconds(line))
    print("| | processor seconds, median |\n| --- | --- |")
    for name, values in found.items():
        print(f"| `{name}` | {statistics.median(values):.2f} |")
    if options.output:
        about = {"machine": machine(), "versions": versions("keras", "tensorflow")}
        write_json(options.output, {**about, "seconds": found})


if __name__ == "__main__":
    main()
