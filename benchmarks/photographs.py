r"""Few photographs to train on, for `photographs.txt` and `photographs-100.txt`.

    python benchmarks/photographs.py cifar10.tar.xz --output photographs
    python benchmarks/photographs.py tiny_imagenet32_100.tar.xz --images 50 \
        --output photographs-100

An archive holds image files, `NAME/{train,test}/<class>/<image>`. The first 500
training images of each class by file name, or `--images`, are trained on, and all test
images measured on; with `--choose`, the next 1,000 of each class, or those that there
are, to choose settings by.
"""

import argparse
import pathlib
import shutil
import tarfile
import tempfile

CHOSEN_BY = 1000  # of each class


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default="photographs")
    parser.add_argument(
        "--images", type=int, default=500, help="training images of each class"
    )
    parser.add_argument(
        "--choose", action="store_true", help="measure on other training images"
    )
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"Expected a new folder as --output. Received: {options.output}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent) as folder:
        with tarfile.open(options.archive) as file:
            file.extractall(folder, filter="data")
        (found,) = pathlib.Path(folder).iterdir()
        for name in sorted(entry.name for entry in (found / "train").iterdir()):
            training = sorted((found / "train" / name).iterdir())
            trained, others = training[: options.images], training[options.images :]
            if len(trained) < options.images:
                parser.error(
                    f"Expected {options.images} training images of each class. "
                    f"Received: {len(trained)} of {name}"
                )
            measured = sorted((found / "test" / name).iterdir())
            if options.choose:
                measured = others[:CHOSEN_BY]
            for part, files in (("train", trained), ("test", measured)):
                (options.output / part / name).mkdir(parents=True)
                for file in files:
                    shutil.move(file, options.output / part / name)


if __name__ == "__main__":
    main()
