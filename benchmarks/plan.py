"""Whether a plan foretells what a step takes: each way planned, then trained.

    pip install 'keras_hsakd[demo]'
    python benchmarks/plan.py --output benchmarks/plan.json

The commands that a user gives, on scikit-learn's digits: `keras-hsakd plan`, then a
training of `--steps` steps for each of its rows. What is compared is the median of the
seconds of a step: a ratio of 1 is what was foretold.
"""

import argparse
import math
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import subprocess

from keras_hsakd import data
from keras_hsakd.files import read_json, write_json

_COMMAND = "import sys; from keras_hsakd import cli; sys.exit(cli.main())"


def keras_hsakd(folder, *words):
    subprocess.run([sys.executable, "-c", _COMMAND, *words], cwd=folder, check=True)


def flags_of(row):
    """Returns how a row of a plan is trained on the command line."""
    way, options = row["way"], row["way"]["options"]
    model = row["of"]["model"]
    words = [way["kind"], "--model", model, "--precision", way["precision"]]
    if way["kind"] != "distill":
        return words
    words += ["--cache", "cache"] if way["cached"] else ["--teacher", "teacher"]
    if "sampled_views" in options:
        words += ["--sampled-views", str(options["sampled_views"])]
    if "terms" in options:
        words += ["--terms", *options["terms"]]
    return words + (["--no-heads"] if options.get("heads") is False else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", default="10", help="as of the command")
    parser.add_argument(
        "--output", type=pathlib.Path, help="JSON file to write (default: none)"
    )
    options = parser.parse_args()
    size, batch_size = str(options.image_size), str(options.batch_size)
    train, _ = data.load("digits", batch_size=options.batch_size)
    epochs = str(math.ceil(options.steps / len(train)))
    images = ["--data", "digits", "--image-size", size]
    training = ["--batch-size", batch_size, "--epochs", epochs]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        keras_hsakd(
            *(folder, "plan", "--teacher", options.teacher, "--model", options.model),
            *(*images, *training, "--seconds", options.seconds),
            *("--output", "plan.json"),
        )
        plan = read_json(os.path.join(folder, "plan.json"))
        for number, row in enumerate(plan["rows"]):
            kind, cached = row["way"]["kind"], row["way"]["cached"]
            output = kind if kind == "teacher" else str(number)
            if cached and not os.path.exists(os.path.join(folder, "cache")):
                keras_hsakd(
                    *(folder, "cache", "--teacher", "teacher", "--output", "cache"),
                    *("--variants", str(plan["variants"])),
                )
            keras_hsakd(
                *(folder, *flags_of(row), *training, "--verbose", "0"),
                *([] if kind == "distill" else images),
                *("--plan", "plan.json", "--output", output),
            )
            record = read_json(os.path.join(folder, output, "run.json"))
            foretold = record["planned"]["seconds_a_step"]
            took = record["took"]["seconds_a_step"]
            results.append(
                {
                    "name": row["name"],
                    "planned_seconds_a_step": foretold,
                    "took_seconds_a_step": took,
                    "ratio": took / foretold,
                    "planned_hours": record["planned"]["hours"],
                    "took_hours": record["took"]["hours"],
                }
            )
    for result in results:
        print(f"{result['name']}: took {result['ratio']:.2f} times what was foretold")
    if options.output:
        known = ("teacher", "training", "images", "machine", "versions")
        content = {key: plan[key] for key in known}
        write_json(options.output, {**content, "steps": options.steps, "rows": results})


if __name__ == "__main__":
    main()
