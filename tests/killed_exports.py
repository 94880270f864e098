"""Kills exports with SIGKILL at each file that they open, make, rename or remove.

    python tests/killed_exports.py [--formats saved_model keras]

After each kill the folder of versions must hold nothing that a server would take for a
version, or a whole one; and the next export must end well, and leave nothing behind of
the one before. `make test-kills` runs it; `test_export.py` has the short version.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile

import keras
import processes
from processes import KILLED, end_of

from keras_hsakd import export

# What Python tells of before it does it: see `sys.addaudithook`. What TensorFlow writes
# by itself lies in a folder that is made and renamed in Python.
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def write(folder, formats, moment=None):
    """Exports a student, and kills itself at a moment, counted from 0."""
    count = 0

    def kill(event, arguments):
        nonlocal count
        if event not in EVENTS or not str(arguments[0]).startswith(folder):
            return
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    student = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    sys.addaudithook(kill)
    for result in export.ship(student, folder, formats).values():
        if result.error is not None:
            raise result.error
    print(count)


def versions(folder):
    """Returns what a server, or a person, takes for versions."""
    return {path.name for path in pathlib.Path(folder).iterdir() if path.name[0] != "."}


def check(folder, formats):
    """Raises an AssertionError unless all there is in a folder is whole."""
    for name in versions(folder) - {"models.config", "batching.config"}:
        for format in formats:
            suffix = export.FORMATS[format].suffix
            if name.endswith(suffix) and name.removesuffix(suffix).isdigit():
                load = export.shipping.FORMATS[format].load
                load(os.path.join(folder, name))
                break
        else:
            raise AssertionError(f"{name} is no version")


def run(formats, moments=None):
    """Kills at each of some moments, or at all, and returns how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        number = int(end_of(processes.start(write, folder, formats)).split()[-1])
    for moment in range(number) if moments is None else moments:
        with tempfile.TemporaryDirectory() as folder:
            end_of(processes.start(write, folder, formats, moment % number), KILLED)
            check(folder, formats)
            end_of(processes.start(write, folder, formats))
            check(folder, formats)
            left = [name for name in os.listdir(folder) if name.startswith(".export")]
            assert not left, f"moment {moment} of {number}: {left} is left"
    return number


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--formats", nargs="+", default=["saved_model", "keras"])
    options = parser.parse_args()
    number = run(options.formats)
    print(f"{number} moments of an export: what was there was whole, and nothing left.")


if __name__ == "__main__":
    main()
