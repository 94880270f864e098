"""Kills what writes, with SIGKILL, at each file that it opens, renames or removes.

    python tests/killed_writers.py [--writers train overwrite convert ...]

After each kill nothing half-written has the name of something whole. The same again
ends well, makes what it would have made, and leaves nothing behind of what was killed.
`make test-kills` runs it; `test_bad_days.py` has a short version.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import keras
import processes
from processes import KILLED, end_of

from keras_hsakd import checkpoints, data, export, models
from keras_hsakd.files import read_json
from keras_hsakd.runs import (
    Baseline,
    DataSettings,
    ExecutionSettings,
    Line,
    Run,
    Teacher,
    TrainingSettings,
    compare,
    export_torch,
    import_torch,
    measure_quality,
    run_study,
    train,
)
from keras_hsakd.runs.recipes import Recipe, Step
from keras_hsakd.teachers import TeacherCache

# What Python tells of before it does it: see `sys.addaudithook`. What TensorFlow writes
# by itself lies in a folder that is made and renamed in Python.
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FORMATS = ("saved_model", "keras")
IMAGES = DataSettings(data="digits", image_size=8, examples_per_class=1, limit=10)
TRAINING = TrainingSettings(model="resnet8", epochs=2, batch_size=5, deterministic=True)
RESUME = ExecutionSettings(resume=True, snapshot_steps=1)


class Writer:
    """Something that writes into a folder, and can be done again after a kill."""

    every = 1  # moment, or only the second, the third of them

    def prepare(self, folder):
        """Puts there what is there before it is done."""

    def write(self, folder):
        """Does it."""
        raise NotImplementedError

    def check(self, folder):
        """Raises an AssertionError if something half-written has a name."""

    def made(self, folder):
        """Returns what tells that what it made is undisturbed."""
        raise NotImplementedError


class Train(Writer):
    """A training that goes on where it was killed."""

    def write(self, folder):
        train(Baseline(), f"{folder}/run", TRAINING, IMAGES, RESUME, verbose=0)

    def check(self, folder):
        for path in _runs(folder):
            run = Run.open(path)
            if os.path.exists(f"{run.path}/last.keras"):
                run.weights_digest()
            assert not run.is_finished or run.weights_digest()

    def made(self, folder):
        return {str(path.relative_to(folder)): _made(path) for path in _runs(folder)}


def _runs(folder):
    return [record.parent for record in pathlib.Path(folder).rglob("run.json")]


def _made(path):
    run = Run.open(path)
    assert run.is_finished
    files = sorted(os.listdir(run.path))
    return run.weights_digest(), run.weights_digest("best"), files


class Overwrite(Train):
    """A training in the place of another run."""

    def prepare(self, folder):
        other = TrainingSettings(model="resnet8", epochs=1, batch_size=5, seed=1)
        train(Baseline(), f"{folder}/run", other, IMAGES, verbose=0)
        # As of a run that was stopped: nothing may go on from them.
        os.mkdir(f"{folder}/run/snapshots")
        pathlib.Path(f"{folder}/run/snapshots/epoch").touch()

    def write(self, folder):
        train(Baseline(), f"{folder}/run", TRAINING, IMAGES, overwrite=True, verbose=0)


class Convert(Train):
    """A PyTorch checkpoint that becomes a run."""

    def prepare(self, folder):
        keras.utils.set_random_seed(0)
        network = models.create("resnet8", num_classes=10, input_shape=(8, 8, 3))
        checkpoints.save_torch(network, f"{folder}/network.safetensors")

    def write(self, folder):
        source = f"{folder}/network.safetensors"
        arguments = f"{folder}/run", source, "resnet8", IMAGES
        import_torch(*arguments, overwrite=True, verbose=0)


class Study(Train):
    """A teacher and its student by a study, and the report of it."""

    every = 7  # its trainings write as others do

    STEPS = (
        Step("teacher", "teacher", TRAINING, IMAGES),
        Step("student", "distill", TRAINING, {}, {"teacher": "teacher"}),
    )

    def write(self, folder):
        lines = [Line(Recipe("tiny", "of a minute", self.STEPS), "tiny")]
        run_study(lines, f"{folder}/study", 0, RESUME)
        compare([f"{folder}/study"]).write(f"{folder}/report")

    def made(self, folder):
        return super().made(folder), sorted(os.listdir(f"{folder}/report"))


class Quality(Train):
    """What is measured of a run, in its folder."""

    def prepare(self, folder):
        once = dataclasses.replace(TRAINING, epochs=1)
        train(Teacher(), f"{folder}/run", once, IMAGES, verbose=0)

    def write(self, folder):
        measure_quality(f"{folder}/run", verbose=0)

    def check(self, folder):
        super().check(folder)
        if os.path.exists(f"{folder}/run/quality.json"):
            read_json(f"{folder}/run/quality.json")

    def made(self, folder):
        return super().made(folder), read_json(f"{folder}/run/quality.json")["accuracy"]


class Checkpoint(Quality):
    """A run that becomes a PyTorch checkpoint."""

    def write(self, folder):
        export_torch(f"{folder}/run", f"{folder}/torch/network.safetensors")

    def check(self, folder):
        path = f"{folder}/torch/network.safetensors"
        if os.path.exists(path):
            keras.utils.set_random_seed(0)
            network = models.create("resnet8", num_classes=10, input_shape=(8, 8, 3))
            checkpoints.load_torch(network, path)

    def made(self, folder):
        return sorted(os.listdir(f"{folder}/torch"))


class Export(Writer):
    """A student in several formats."""

    def write(self, folder):
        student = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3),
            ]
        )
        for result in export.ship(student, f"{folder}/net", FORMATS).values():
            if result.error is not None:
                raise result.error

    def check(self, folder):
        """Looks at what a server, or a person, takes for versions."""
        for path in pathlib.Path(folder).glob("net/[!.]*"):
            if path.suffix == ".config":
                continue
            for name in FORMATS:
                suffix = export.FORMATS[name].suffix
                if path.name.removesuffix(suffix).isdigit() and path.suffix == suffix:
                    export.shipping.FORMATS[name].load(str(path))
                    break
            else:
                raise AssertionError(f"{path.name} is no version")

    def made(self, folder):
        assert pathlib.Path(folder, "net", "models.config").exists()


class Cache(Writer):
    """A teacher's outputs."""

    def write(self, folder):
        keras.utils.set_random_seed(0)
        teacher = models.create("resnet8", num_classes=10, input_shape=(8, 8, 3))
        images, _ = data.load("digits", image_size=8, batch_size=5, limit=10)
        with contextlib.suppress(FileExistsError):  # it was whole when it was killed
            TeacherCache.write(f"{folder}/cache", teacher, images, 2, verbose=0)

    def check(self, folder):
        if os.path.exists(f"{folder}/cache"):
            TeacherCache(f"{folder}/cache")

    def made(self, folder):
        return TeacherCache(f"{folder}/cache").header["digest"]


WRITERS = {
    "train": Train(),
    "overwrite": Overwrite(),
    "convert": Convert(),
    "study": Study(),
    "quality": Quality(),
    "checkpoint": Checkpoint(),
    "export": Export(),
    "cache": Cache(),
}


def prepare(name, folder):
    WRITERS[name].prepare(folder)


def write(name, folder, moment=None):
    """Writes, and is killed at a moment, counted from 0; prints how many there are."""
    count = 0

    def kill(event, arguments):
        nonlocal count
        if event not in EVENTS or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(kill)
    WRITERS[name].write(folder)
    print(count)


def run(name, moments=None):
    """Kills a writer at some moments, or at all; returns of how many it could be."""
    writer = WRITERS[name]
    with tempfile.TemporaryDirectory() as parent:
        before, whole = f"{parent}/before", f"{parent}/whole"
        os.mkdir(before)
        end_of(processes.start(prepare, name, before))
        shutil.copytree(before, whole)
        number = int(end_of(processes.start(write, name, whole)).split()[-1])
        expected = writer.made(whole)
        for moment in moments or range(0, number, writer.every):
            folder = f"{parent}/{moment}"
            shutil.copytree(before, folder)
            end_of(processes.start(write, name, folder, moment % number), KILLED)
            writer.check(folder)
            end_of(processes.start(write, name, folder))
            writer.check(folder)
            place = f"{name}, moment {moment} of {number}"
            assert writer.made(folder) == expected, place
            left = [str(path) for path in pathlib.Path(folder).rglob(".*")]
            assert not left, f"{place}: {left} is left"
            shutil.rmtree(folder)
    return number


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--writers", nargs="+", choices=WRITERS, default=WRITERS)
    for name in parser.parse_args().writers:
        number, every = run(name), WRITERS[name].every
        count = len(range(0, number, every))
        print(f"{name}: killed at {count} of {number} moments; what was there was")
        print("whole, and the same again left nothing behind.", flush=True)


if __name__ == "__main__":
    main()
