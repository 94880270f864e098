"""Few photographs, for `benchmarks/photographs.txt`: 500 training images a class.

    python benchmarks/photographs.py cifar10.tar.xz --output photographs

The archive holds CIFAR-10 as image files, `cifar10/{train,test}/<class>/NNNN.jpg`. The
first 500 training images of each class by file name are trained on, and all test images
measured on; with `--choose`, the next 1,000 of each class, to choose settings by.
"""

import argparse
import pathlib
import shutil
import tarfile
import tempfile

TRAINED, CHOSEN_BY = 500, 1000  # of each class


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default="photographs")
    parser.add_argument(
        "--choose", action="store_true", help="measure on other training images"
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent) as folder:
        with tarfile.open(options.archive) as file:
            file.extractall(folder, filter="data")
        found = pathlib.Path(folder, "cifar10")
        for name in sorted(entry.name for entry in (found / "train").iterdir()):
            training = sorted((found / "train" / name).iterdir())
            measured = sorted((found / "test" / name).iterdir())
            if options.choose:
                measured = training[TRAINED : TRAINED + CHOSEN_BY]
            for part, files in (("train", training[:TRAINED]), ("test", measured)):
                (options.output / part / name).mkdir(parents=True)
                for file in files:
                    shutil.move(file, options.output / part / name)


if __name__ == "__main__":
    main()
