"""Installs the wheel as a stranger does, and runs README's examples there.

    make release-check

For each Python that is found: a fresh environment, the wheel without extras, the
command line from a teacher to an exported student on a folder of images, then README's
ten lines, whose digits need scikit-learn. Ends with the first command that fails.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
PYTHONS = ("3.11", "3.13")  # the oldest and the newest of setup.cfg

IMAGES = """
import numpy, tensorflow as tf
generator = numpy.random.default_rng(0)
for part, count in (("train", 8), ("test", 4)):
    for value, name in ((60, "dark"), (180, "light")):
        for number in range(count):
            image = (value + generator.integers(0, 60, (16, 16, 3))).astype("uint8")
            path = f"photos/{part}/{name}/{number}.png"
            tf.io.write_file(path, tf.io.encode_png(image))
"""
SMALL = "--epochs 1 --batch-size 8 --verbose 0"
COMMANDS = (
    f"teacher --data photos --image-size 16 --model resnet8 --output teacher {SMALL} "
    "--tensorboard-images 1",
    f"distill --teacher teacher --model wrn_10_1 --output student {SMALL}",
    "evaluate student --heads --verbose 0",
    "evaluate student --quality --verbose 0",
    "export student serving/student/1",
    "models --image-size 16",
)
IMPORTED = """
import importlib.util, pathlib, sys, keras_hsakd, keras_hsakd.pretrained
folder = pathlib.Path(keras_hsakd.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert (folder / "py.typed").exists()
optional = ("torch", "jax", "sklearn", "keras_cv", "safetensors")
there = [name for name in optional if importlib.util.find_spec(name)]
assert not there, f"Expected no extras. Received: {there}"
for name in keras_hsakd.pretrained.names():
    assert keras_hsakd.models.pretrained(name).count_params()
"""


def found(python):
    """Returns the program of a version of Python, also one that pyenv has, or None."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    for program in (f"python{python}", *pyenv.glob(f"versions/{python}.*/bin/python")):
        # pyenv's own `python3.13` is there, and fails, where it is not chosen.
        version = [program, "--version"]
        if (
            shutil.which(program)
            and not subprocess.run(version, capture_output=True).returncode
        ):
            return program
    return None


def check(program, wheel, folder):
    """Installs the wheel for a Python, and runs what README says, in a folder."""

    def run(*command, expected=0):
        print("  $", " ".join(map(str, command))[:100].replace("\n", " "), flush=True)
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode != expected:
            print(result.stdout[-2000:], result.stderr[-4000:])
            sys.exit(
                f"Expected exit code {expected}, under {program}. "
                f"Received: {result.returncode}"
            )
        return result.stdout + result.stderr

    run(program, "-m", "venv", "environment")
    programs = folder / "environment" / "bin"
    pip = programs / "python", "-m", "pip", "install", "--quiet"
    run(*pip, wheel)
    run(programs / "python", "-c", IMPORTED)
    run(programs / "python", "-c", IMAGES)
    for line in COMMANDS:
        run(programs / "keras-hsakd", *line.split())
    readme = (ROOT / "README.md").read_text()
    ten_lines = re.search(r"## Ten lines\n.*?```python\n(.*?)```", readme, re.S)[1]
    ten_lines = ten_lines.replace("epochs=10", "epochs=1").replace(
        "serving/student/1", "serving/student/2"
    )
    told = run(programs / "python", "-c", ten_lines, expected=1)
    if "keras_hsakd[demo]" not in told:
        sys.exit(f"Expected to be told of the extra. Received: {told[-1000:]}")
    run(*pip, "scikit-learn")
    run(programs / "python", "-c", ten_lines)
    for version in ("1", "2"):
        assert (folder / "serving/student" / version / "saved_model.pb").exists()


def main():
    programs = {python: found(python) for python in PYTHONS}
    with tempfile.TemporaryDirectory() as temporary:
        # Of a copy: in place, what an earlier build left in `build/` would come along.
        source = pathlib.Path(temporary, "source")
        ignored = shutil.ignore_patterns(".*", "build", "demo", "*.egg-info")
        shutil.copytree(ROOT, source, ignore=ignored)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*build, "--wheel-dir", temporary, str(source)], check=True)
        (wheel,) = pathlib.Path(temporary).glob("*.whl")
        print(wheel.name)
        for python, program in programs.items():
            if program is None:
                print(f"Python {python} is not here: not checked")
                continue
            print(f"Python {python}", flush=True)
            began = time.perf_counter()
            folder = pathlib.Path(temporary, python)
            folder.mkdir()
            check(program, wheel, folder)
            print(f"  all well, in {time.perf_counter() - began:.0f} seconds")


if __name__ == "__main__":
    main()
