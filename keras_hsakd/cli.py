"""The command `keras-hsakd`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from keras_hsakd import demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words of the command line. Defaults to those of the process.

    Returns:
        The exit status: 0, 1 after an error, or 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ArithmeticError, ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"keras-hsakd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keras-hsakd: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-hsakd",
        description="Hierarchical self-supervised augmented knowledge distillation.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "demo",
        help="the main job on handwritten digits, in minutes",
        description="Trains a teacher and a student three ways on few labelled digits, "
        "prints a table, draws the curves, exports the student and classifies images "
        "with the exported model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--output", default="demo", help="folder to write")
    command.add_argument("--seeds", type=int, default=3, help="number of repetitions")
    command.add_argument(
        "--validation",
        action="store_true",
        help="measure on held-out training images, to choose settings",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace an existing folder"
    )
    for field in dataclasses.fields(demo.Settings):
        command.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field.type,
            default=field.default,
            help=field.metadata["help"],
        )
    command.set_defaults(run=_demo)
    return parser


def _demo(options):
    settings = demo.Settings(
        **{f.name: getattr(options, f.name) for f in dataclasses.fields(demo.Settings)}
    )
    demo.run(
        options.output, options.seeds, options.validation, options.overwrite, settings
    )
