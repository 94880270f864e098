"""The command `keras-hsakd`: parses, and hands over to `runs`, `tryout` and `demo`.

Words are parsed, and help is printed, without Keras and TensorFlow, which take seconds
to import: what a flag offers comes from `names` and from settings, and a command
imports what it runs.
"""

import argparse
import contextlib
import dataclasses
import functools
import inspect
import os
import re
import shlex
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence

from keras_hsakd import lock, runs, signals, sizes, zoo
from keras_hsakd.files import check_parent, read_json, write_json
from keras_hsakd.names import CARD, FORMATS, PREPROCESSINGS, VIEWS, WEIGHT_FILES
from keras_hsakd.optional import own_module
from keras_hsakd.results import CHECKPOINTS
from keras_hsakd.runs import (
    KINDS,
    CacheSettings,
    DataSettings,
    Distill,
    ExecutionSettings,
    TrainingSettings,
)
from keras_hsakd.runs.settings import (
    OF_THE_NETWORK,
    OF_TRAINING,
    PRESETS,
    DemoSettings,
)
from keras_hsakd.suggestions import did_you_mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words of the command line. Defaults to those of the process.

    Returns:
        The exit status: 0, 1 after an error, or 130 when interrupted. A training that
        SIGTERM ended with a snapshot raises `keras_hsakd.Preempted`, which exits with
        75.
    """
    debug = False
    try:
        with (
            signals.closed_pipes_ignored(),
            signals.KeptInterrupt(last_words=signals.INTERRUPTED),
        ):
            options = vars(_parser().parse_args(arguments))
            run, debug = options.pop("run_command"), options.pop("debug")
            modules = options.pop("import_modules")
            for module in modules:
                _import(module)
            if run is _plan:  # which starts processes
                options["modules"] = modules
            run(options)
    except KeyboardInterrupt:
        print(signals.INTERRUPTED, file=sys.stderr)
        return 130
    except Exception as error:
        message = _in_one_line(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        # What is raised on purpose says what was expected.
        hint = "" if debug or "Expected" in message else " (--debug shows where)"
        print(f"keras-hsakd: {message}{hint}", file=sys.stderr)
        return 1
    return 0


def _import(module):
    """Imports a module that registers layers."""
    try:
        own_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            "Expected `--import` to name a module that is here or installed. "
            f"Received: '{module}'; {error}"
        ) from error


_WITH_MESSAGE = (ArithmeticError, ImportError, OSError, RuntimeError, ValueError)


def _in_one_line(error):
    """Returns the message of an error that has one for people, or None."""
    if isinstance(error, _WITH_MESSAGE):
        return str(error)
    if "tensorflow" not in sys.modules:
        return None
    import tensorflow as tf

    from keras_hsakd.data import decoding

    return decoding.why(error) if isinstance(error, tf.errors.OpError) else None


class _Parser(argparse.ArgumentParser):
    """Takes flags that are written in full alone, and names those that are near."""

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = re.findall(r"--[a-z][a-z-]*", self.format_usage())
            wrong = next((word for word in unknown if word.startswith("-")), "")
            hint = did_you_mean(wrong.partition("=")[0], flags)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-hsakd",
        description="Hierarchical self-supervised augmented knowledge distillation.",
    )
    commands = parser.add_subparsers(
        required=True, metavar="command", parser_class=_Parser
    )

    def add(name: str, run: Callable, help: str, description: str = ""):
        command = commands.add_parser(
            name,
            help=help,
            description=description or f"{help[0].upper()}{help[1:]}.",
        )
        command.set_defaults(run_command=run)
        command.add_argument(
            "--debug", action="store_true", help="show where an error was raised"
        )
        command.add_argument(
            "--import",
            action="append",
            default=[],
            dest="import_modules",
            metavar="MODULE",
            help="Python module with layers of your own, registered with Keras, that "
            "networks have",
        )
        return command

    for kind in KINDS.values():
        summary, _, details = inspect.getdoc(kind).partition("\n")
        command = add(
            kind.name,
            functools.partial(_train, kind_class=kind),
            f"{summary[0].lower()}{summary[1:]}".replace("trains", "train", 1).rstrip(
                "."
            ),
            f"{summary}{details.partition('Reference')[0]}",
        )
        _add_settings(command, kind)
        _add_settings(command, DataSettings, inherited=kind.inherits, omit=kind.fixed)
        _add_training(command, kind)
        group = command.add_argument_group("output")
        group.add_argument("--output", required=True, help="run folder to write")
        group.add_argument(
            "--overwrite", action="store_true", help="replace the run in that folder"
        )
        _add_verbose(group)
        _add_settings(command, ExecutionSettings)

    command = add(
        "plan",
        _plan,
        "tell what a teacher and its student will cost, before they are trained",
        "Tells what a teacher and its student will cost on this machine, before they "
        "are trained: multiply-adds, hours, memory, for the method and for each way to "
        "pay less. Each is measured for some seconds, on the images that it will have.",
    )
    command.add_argument(
        "--teacher",
        required=True,
        help="run folder of the teacher, or the network that is to be trained as one",
    )
    for flag, type_, default, help in (
        ("teacher-epochs", int, None, "epochs of that training (default: --epochs)"),
        ("variants", int, 8, "augmentations of each image in a cache"),
        ("sampled-views", int, 2, "views in a step where they are sampled"),
        ("seconds", float, 10.0, "seconds for which each way is measured"),
        ("timeout", float, 600.0, "seconds after which one is given up"),
    ):
        shown = "" if default is None else f" (default: {default:g})"
        command.add_argument(
            f"--{flag}", type=type_, default=default, help=help + shown
        )
    command.add_argument(
        "--views",
        choices=VIEWS,
        default="rotations",
        help="views of a teacher that is to be trained (default: rotations)",
    )
    command.add_argument(
        "--output", help="JSON file to write, for --plan (default: none)"
    )
    _add_settings(
        command,
        DataSettings,
        inherited="the teacher's, of a run folder",
        omit=("unlabeled",),
    )
    _add_training(command)

    command = add(
        "run",
        _run_recipe,
        "run an experiment of the paper",
        "Runs an experiment of the paper with the authors' settings; trainings that "
        "are finished already are not run again.",
    )
    command.add_argument("name", nargs="?", help="experiment, see --list")
    command.add_argument(
        "--list", action="store_true", help="print all experiments and end"
    )
    command.add_argument("--output", help="folder to write")
    _add_given(command)
    _add_scale(command)
    command.add_argument(
        "--overwrite", action="store_true", help="replace other runs in that folder"
    )
    _add_verbose(command)
    _add_settings(command, ExecutionSettings)

    command = add(
        "study",
        _study,
        "run many experiments, and what is missing of them when started again",
        "Runs the experiments in a text file, one a line: the words of `keras-hsakd "
        "run`, without --output; what follows a # is for people. Teachers that several "
        "need are trained once. Started again, it goes on where it was stopped.",
    )
    command.add_argument("file", help="text file with a line for each experiment")
    command.add_argument("--output", required=True, help="folder to write")
    _add_scale(command, "that of the line, or the paper's")
    _add_verbose(command)
    _add_settings(command, ExecutionSettings, omit=("resume", "plan"))

    command = add(
        "report",
        _report_runs,
        "compare trainings: mean, spread and differences over seeds",
        "Compares finished trainings: mean and standard deviation over seeds, paired "
        "differences with 95 % intervals, what was spent, published figures beside.",
    )
    command.add_argument(
        "runs", nargs="+", help="run folders, or folders with run folders below them"
    )
    command.add_argument(
        "--against",
        help="method that the others are compared with: a run folder of it, or a "
        "folder above, or its name in the table (default: the first)",
    )
    command.add_argument(
        "--output",
        help="folder for report.md, report.csv and report.html, where the drawings are "
        "(default: none)",
    )

    command = add(
        "cache",
        _cache,
        "keep a teacher's outputs, for students to learn from",
        "Writes the outputs of a teacher, class logits and heads for all views, on "
        "some fixed augmentations of each training image. `keras-hsakd distill "
        "--cache` learns from them, and spends nothing on the teacher. A cache that "
        "was begun is gone on with.",
    )
    command.add_argument("--output", required=True, help="folder to write")
    command.add_argument(
        "--check",
        action="store_true",
        help="recompute a sample, and print how far what is kept is from it; of a "
        "cache that is there, do nothing else",
    )
    _add_verbose(command)
    _add_settings(command, CacheSettings)
    _add_settings(command, DataSettings, inherited="the teacher's", omit=Distill.fixed)

    command = add(
        "convert",
        _convert,
        "make a run folder of a trained network, or a PyTorch checkpoint of one",
        "Makes a run folder of a network that was trained elsewhere, so that it can "
        "teach: a .keras file, or .h5 of a whole network, weights (.weights.h5, .h5) "
        "of a classifier of "
        "keras.applications, or a PyTorch checkpoint of the authors' kind (.pth, "
        ".pth.tar, .safetensors); or, from a run folder, writes such a checkpoint.",
    )
    command.add_argument("source", help="file, or run folder")
    command.add_argument("output", help="run folder, or checkpoint, to write")
    command.add_argument(
        "--model",
        help="checkpoint: network of `keras-hsakd models` that it holds; weights: "
        "applications/NAME",
        default=argparse.SUPPRESS,
    )
    command.add_argument(
        "--preprocessing",
        choices=PREPROCESSINGS,
        help=".keras: as of `teacher`",
        default=argparse.SUPPRESS,
    )
    command.add_argument(
        "--prefix",
        default=argparse.SUPPRESS,
        help="checkpoint: part of its keys, for example net1.",
    )
    _add_settings(
        command, DataSettings, inherited="as for `teacher`", omit=("unlabeled",)
    )
    _add_checkpoint(command, "to write, of a run folder", argparse.SUPPRESS)
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run in that folder",
        default=argparse.SUPPRESS,
    )
    _add_verbose(command)

    command = add("evaluate", _evaluate, "measure the network of a run folder")
    command.add_argument("run", help="run folder")
    _add_checkpoint(command, "to measure")
    command.add_argument(
        "--heads",
        action="store_true",
        help="add the accuracies of the heads on rotated images",
    )
    group = command.add_argument_group("quality")
    group.add_argument(
        "--quality",
        action="store_true",
        help="measure more than accuracy: calibration, agreement with the teacher, "
        "heads by rotation and class, corruptions; the flags below do so, too",
    )
    group.add_argument(
        "--teacher",
        help="run folder of the teacher (default: the one that the run learned from)",
    )
    group.add_argument(
        "--beside", help="run folder of a network to compare each class with"
    )
    group.add_argument(
        "--severity", type=int, help="of the corruptions, from 1 to 5 (default: 3)"
    )
    group.add_argument(
        "--output", help="JSON file to write (default: quality.json in the run folder)"
    )
    _add_settings(
        command, DataSettings, inherited="the run's", omit=OF_THE_NETWORK + OF_TRAINING
    )
    _add_verbose(command)

    command = add(
        "export",
        _export,
        "write the network of a run folder for production",
        "Writes the network of a run folder for production, as a SavedModel for TF "
        "Serving or in other formats. Each is compared with the network before it gets "
        "its name. Nothing is replaced.",
    )
    command.add_argument("run", help="run folder")
    command.add_argument(
        "output",
        help="folder of versions, in which the next one is made; or a version, a path "
        "that ends in a number",
    )
    command.add_argument(
        "--format",
        dest="formats",
        nargs="+",
        choices=FORMATS,
        default=("saved_model",),
        help="formats to write (default: saved_model)",
    )
    command.add_argument(
        "--top-k",
        type=int,
        help="number of the most likely classes that a SavedModel tells beside "
        "(default: none)",
    )
    command.add_argument(
        "--features",
        metavar="LAYER",
        help="layer whose outputs a SavedModel gives by a signature of its own "
        "(default: none)",
    )
    command.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        help="what the logits are divided by before the softmax; fit, what makes the "
        "labels of the run's validation images likeliest (default: 1)",
    )
    _add_checkpoint(command, "to export")
    group = command.add_argument_group("report")
    group.add_argument(
        "--report",
        action="store_true",
        help="measure each artefact on the run's test images: accuracy, calibration, "
        "size, latency; the flags below do so, too",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        help="most accuracy that an artefact may lose, from 0 to 1; one that loses "
        "more is kept aside (default: any)",
    )
    group.add_argument("--teacher", help="run folder of the teacher, measured beside")
    group.add_argument(
        "--plain", help="run folder of a network without a teacher, the same way"
    )
    group.add_argument(
        "--card",
        metavar="FILE",
        help=f"JSON file with texts for the model card: {', '.join(CARD)}",
    )

    command = add(
        "try",
        _try,
        "open a page to try a network on images of your own",
        "Opens a local page on which you drop an image, and see the likeliest classes "
        "and the time that they took; of a run also where the network looks, what its "
        "heads say of each view, and its teacher's answer.",
    )
    command.add_argument("path", help="run folder, or what `export` wrote")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to bind to; with another one, whoever reaches this machine can "
        "use the page (default: 127.0.0.1)",
    )
    command.add_argument(
        "--port", type=int, help="port (default: the first free one from 7860)"
    )
    command.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="open a browser (default: yes)",
    )
    _add_checkpoint(command, "to try, of a run")

    command = add("models", _models, "list the networks and what they cost")
    command.add_argument(
        "--image-size",
        type=_image_size,
        metavar="SIZE",
        help="height and width of an image, or HEIGHTxWIDTH (default: what each is "
        "made for)",
    )
    command.add_argument(
        "--num-classes", type=int, default=100, help="classes (default: 100)"
    )

    command = add(
        "demo",
        _demo,
        "the main job on handwritten digits, in minutes",
        "Trains a teacher on handwritten digits and a student four ways on few labels, "
        "prints a table, draws the curves, exports the student and classifies images "
        "with the exported model.",
    )
    command.add_argument(
        "--output", default="demo", help="folder to write (default: demo)"
    )
    command.add_argument(
        "--seeds", type=int, default=5, help="number of repetitions (default: 5)"
    )
    command.add_argument(
        "--validation",
        action="store_true",
        help="measure on held-out training images, to choose settings",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace an existing folder"
    )
    _add_settings(command, DemoSettings)
    return parser


def _add_settings(command, settings_class, inherited="", omit=()):
    """Adds a flag for each field of a dataclass.

    Args:
        command: The `argparse.ArgumentParser`.
        settings_class: A dataclass of `keras_hsakd.settings.setting` fields.
        inherited: Whose settings those are that are not given. Defaults to the
            dataclass's own.
        omit: Names of fields without a flag.
    """
    group = command.add_argument_group(
        settings_class.__name__.removesuffix("Settings").lower() or "settings"
    )
    types_by_name = typing.get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        if field.name in omit:
            continue
        help = field.metadata["help"]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if inherited:
            help = f"{help.partition(' (default')[0]} (default: {inherited})"
        elif default not in (None, {}, dataclasses.MISSING):
            shown = " ".join(map(str, default)) if type(default) is tuple else default
            help += f" (default: {shown})"
        required = default is dataclasses.MISSING and not inherited
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            required=required,
            default=None if required else argparse.SUPPRESS,
            help=help,
            **_parsing(types_by_name[field.name], field.metadata),
        )


def _add_training(command, *settings_classes):
    """Adds flags for the settings of a training, and presets of many flags at once.

    Args:
        command: The `argparse.ArgumentParser`.
        settings_classes: Dataclasses of the command's other settings.
    """
    _add_settings(command, TrainingSettings)
    of_command = (TrainingSettings, *settings_classes)
    known = {field.name for each in of_command for field in dataclasses.fields(each)}
    presets = {name: preset for name, preset in PRESETS.items() if known >= set(preset)}
    meaning = "; ".join(
        f"{name}: {' '.join(f'{k} {v}' for k, v in preset.items())}"
        for name, preset in presets.items()
    )
    command.add_argument(
        "--preset",
        nargs="+",
        choices=tuple(presets),
        default=[],
        help=f"other defaults of some flags, one preset or several ({meaning})",
    )


def _with_presets(options):
    """Returns options with the settings of the presets that they name."""
    told = {}
    for name in options.pop("preset"):
        told |= PRESETS[name]
    return told | options


def _parsing(hint, metadata):
    """Returns how argparse reads a value of a type."""
    if hint == sizes.ImageSize | None:
        return {"type": _image_size, "metavar": "SIZE"}
    if isinstance(hint, types.UnionType):  # with None
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is tuple:
        first, *others = typing.get_args(hint)
        many = "+" if others == [...] else 1 + len(others)
        return {"type": first, "nargs": many}
    if typing.get_origin(hint) is dict:
        return {"action": _Pairs, "nargs": "+", "metavar": metadata["metavar"]}
    return {"type": hint, "choices": metadata.get("choices")}


def _image_size(text):
    """Reads the value of a flag; argparse puts the flag's name before the error."""
    try:
        return sizes.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _temperature(text):
    """Reads the value of a flag, as `_image_size` does."""
    try:
        return text if text == "fit" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"Expected a number, or fit. Received: '{text}'"
        ) from None


class _Pairs(argparse.Action):
    """Keeps words of the form NAME=NUMBER as a dict."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            pairs = dict(word.split("=") for word in values)
            numbers = {name: float(number) for name, number in pairs.items()}
        except ValueError:
            parser.error(f"Expected {option_string} NAME=NUMBER. Received: {values}")
        setattr(namespace, self.dest, numbers)


def _add_given(command):
    """Adds flags for folders that stand for steps of an experiment."""
    command.add_argument(
        "--teacher", help="run folder of a teacher, in place of training one"
    )
    command.add_argument(
        "--backbone", help="run folder of a teacher's backbone, the same way"
    )
    command.add_argument("--student", help="run folder of a student, the same way")
    command.add_argument("--cache", help="cache of a teacher's outputs, the same way")


def _add_scale(command, default="the paper's"):
    """Adds flags for what an experiment has otherwise than the paper."""
    for flag, type_, help in _SCALE:
        command.add_argument(
            f"--{flag}", type=type_, help=f"{help} (default: {default})"
        )
    command.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="seeds, each of which has trainings of its own in folders seed_N",
    )
    command.add_argument(
        "--one-teacher",
        action="store_true",
        help="with --seeds: train all steps but the last once, with the first seed",
    )


_SCALE = (
    ("epochs", int, "epochs of the last training; others change in proportion"),
    ("seed", int, "seed of all trainings"),
    ("batch-size", int, "images in a batch"),
    ("data", str, "other images: a named data set, tfds:NAME, or a folder"),
    ("target-data", str, "other images of the linear classifier"),
    ("data-dir", str, "folder of tensorflow-datasets"),
    (
        "image-size",
        _image_size,
        "height and width of the images, or HEIGHTxWIDTH, for padded rotations",
    ),
    ("limit", int, "most training images, and test images"),
)


def _add_verbose(command):
    command.add_argument(
        "--verbose",
        type=int,
        choices=(0, 1, 2),
        default=1,
        help="0 is silent, 1 a progress bar, 2 a line an epoch (default: 1)",
    )


def _add_checkpoint(command, which, default="last"):
    command.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        default=default,
        help=f"network {which}: after the last epoch, or after that of the best "
        "val_accuracy (default: last)",
    )


def _taken(options, settings_class):
    """Takes the fields of a dataclass out of the options."""
    names = {field.name for field in dataclasses.fields(settings_class)}
    return {name: options.pop(name) for name in names & set(options)}


def _train(options, kind_class):
    options = _with_presets(options)
    run = runs.train(
        kind_class(**_taken(options, kind_class)),
        data=_taken(options, DataSettings),
        training=TrainingSettings(**_taken(options, TrainingSettings)),
        execution=ExecutionSettings(**_taken(options, ExecutionSettings)),
        **options,
    )
    _report(run)


def _plan(options):
    from keras_hsakd.runs import planning

    options = _with_presets(options)
    output = options.pop("output")
    kept = contextlib.nullcontext()
    if output:
        check_parent(output, "output")
        kept = lock.held_beside(output)
    with kept:
        found = runs.plan(
            training=TrainingSettings(**_taken(options, TrainingSettings)),
            data=_taken(options, DataSettings),
            **options,
        )
        print(planning.table(found))
        if output:
            write_json(output, found)
            print(f"Wrote {output}")


def _run_recipe(options):
    from keras_hsakd.runs import recipes

    if options.pop("list"):
        print(recipes.table())
        return
    for name in ("name", "output"):
        if options[name] is None:
            raise ValueError(
                "Expected the name of an experiment and `--output`, or `--list`. "
                f"Received: no {name}"
            )
    running = {k: options.pop(k) for k in ("output", "overwrite", "verbose")}
    running["execution"] = ExecutionSettings(**_taken(options, ExecutionSettings))
    line = _line(options)
    recipe, of_all = line.recipe, {"given": line.given, **running}
    if options["seeds"] is None:
        found = runs.run_recipe(recipe, **of_all)
    else:
        found = runs.run_seeds(
            recipe, seeds=line.seeds, one_teacher=line.one_teacher, **of_all
        )
    for run in found.values():
        _report(run)
    if recipe.published:
        print(f"Published, best epoch on the test images: {recipe.published} %")


def _line(options):
    """Returns the experiment of a line of a study, or of the command line."""
    from keras_hsakd.runs import recipes

    options = dict(options)
    name, seeds, seed = (options.pop(key) for key in ("name", "seeds", "seed"))
    one_teacher = options.pop("one_teacher")
    if seeds is None and one_teacher:
        raise ValueError("Expected `--seeds` with `--one-teacher`. Received: none")
    if seeds is not None and seed is not None:
        raise ValueError(
            f"Expected `--seed` or `--seeds`. Received: both, {seed} and {seeds}"
        )
    if seeds is not None and (min(seeds) < 0 or len(set(seeds)) < len(seeds)):
        raise ValueError(
            f"Expected `--seeds` to be different numbers from 0 on. Received: {seeds}"
        )
    steps = ("teacher", "backbone", "student", "cache")
    given = {k: v for k in steps if (v := options.pop(k)) is not None}
    recipe = recipes.get(name)
    recipe.without(*given)  # which there must be
    recipe = recipe.scaled(seed=seed, given=given, **options)
    return runs.Line(
        recipe,
        name,
        seeds or (recipe.steps[-1].training.seed,),
        one_teacher,
        given,
    )


class _LineParser(_Parser):
    """Raises what is wrong with a line, in place of ending the process."""

    def error(self, message):
        raise ValueError(f"Expected words of `keras-hsakd run`. Received: {message}")


def _study(options):
    path, output = options.pop("file"), options.pop("output")
    verbose = options.pop("verbose")
    execution = ExecutionSettings(**_taken(options, ExecutionSettings))
    parser = _LineParser(add_help=False)
    parser.add_argument("name")
    _add_given(parser)
    _add_scale(parser)
    lines = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                words = shlex.split(text, comments=True)
                if words:
                    told = vars(parser.parse_args(words))
                    line = _line(_with_defaults(told, options))
                    lines.append(dataclasses.replace(line, name=_folder_of(told)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not lines:
        raise ValueError(
            f"Expected the name of an experiment in a line of '{path}'. Received: none"
        )
    if target := options["target_data"]:
        steps = [step for line in lines for step in line.recipe.steps]
        if all(step.kind != "linear" for step in steps):
            raise ValueError(
                "Expected a line with a linear classifier for `--target-data`. "
                f"Received: --target-data {target}, and none in '{path}'"
            )
    found = runs.run_study(lines, output, verbose, execution)
    for by_seed in found.values():
        for run in by_seed.values():
            _report(run)
    print(f"Compare them: keras-hsakd report {output}")


def _with_defaults(told, defaults):
    """Returns the flags of a line, and those for all lines that it does not have."""
    from keras_hsakd.runs import recipes

    defaults = dict(defaults)
    for name, other in (("seed", "seeds"), ("seeds", "seed")):
        if told[name] is not None:
            defaults[other] = None
    if told["seed"] is not None:
        defaults["one_teacher"] = False
    steps = recipes.get(told["name"]).steps
    if all(step.kind != "linear" for step in steps):
        defaults["target_data"] = None  # it is for the other lines
    # 0 is a seed, and no flag that was left out.
    return {
        k: defaults.get(k) if v is None or v is False else v for k, v in told.items()
    }


def _folder_of(told):
    """Returns the name of the folder for what a line tells, whatever its seeds."""
    words = [told["name"]]
    for name, value in told.items():
        if value is None or value is False or name in ("name", "seed", "seeds"):
            continue
        if name == "image_size":
            value = sizes.written(value)
        words += [name.replace("_", "-")] if value is True else [f"{name}-{value}"]
    return "--".join(word.replace("/", "--") for word in words)


def _report_runs(options):
    report = runs.compare(options["runs"], options["against"])
    print(report.markdown(), end="")
    if options["output"] is not None:
        report.write(options["output"])
        print(f"Wrote {options['output']}: report.md, report.csv, report.html")


def _cache(options):
    output, check = options.pop("output"), options.pop("check")
    settings = CacheSettings(**_taken(options, CacheSettings))
    if not (check and os.path.exists(output)):
        data = _taken(options, DataSettings)
        cache = runs.cache_teacher(output, settings, data, **options)
        print(f"Wrote {cache.path}. Learn from it: keras-hsakd distill --cache ...")
    if check:
        print("output   KL at temperature 3: largest     mean   largest difference")
        for name, found in runs.check_cache(output, settings.teacher).items():
            print(
                f"{name:8} {found.largest:28.2e} {found.mean:8.1e} "
                f"{found.difference:20.2e}"
            )


def _convert(options):
    source, output = options.pop("source"), options.pop("output")
    if not os.path.exists(source):
        raise FileNotFoundError(
            "Expected a run folder, or the file of a network. "
            f"Received: '{source}', where nothing is"
        )
    is_run = os.path.isdir(source)
    is_network = not is_run and _is_network(source)
    is_weights = source.endswith(WEIGHT_FILES)
    if is_run:
        kind, unused = "a run folder", set(options) - {"checkpoint", "verbose"}
    elif is_network:
        kind = f"a {os.path.splitext(source)[1]} file of a network"
        unused = {"checkpoint", "model", "prefix"}
    elif is_weights:
        kind, unused = "a file of weights", {"checkpoint", "preprocessing", "prefix"}
    else:
        kind, unused = "a PyTorch checkpoint", {"checkpoint", "preprocessing"}
    for name in sorted(unused & set(options)):
        flag = name.replace("_", "-")
        raise ValueError(
            f"Expected no `--{flag}` for {kind}, where it has no effect. "
            f"Received: {name}={options[name]!r} for '{source}'"
        )
    if is_run:
        runs.export_torch(source, output, options.get("checkpoint", "last"))
        print(f"Wrote {output}")
        return
    for name in ("data",) if is_network else ("model", "data"):
        if options.get(name) is None:
            raise ValueError(
                f"Expected `--{name}`, for a run folder tells what network it has and "
                f"what images it was trained on. Received: no `--{name}`"
            )
    settings = DataSettings(**_taken(options, DataSettings))
    model = options.pop("model", None)
    if is_network or is_weights:
        training = TrainingSettings(
            model=source if is_network else model,
            weights=None if is_network else source,
            preprocessing=options.pop("preprocessing", None),
        )
        run = runs.import_keras(output, training, settings, **options)
    else:
        run = runs.import_torch(output, source, model, settings, **options)
    print(f"Wrote {run.path}. Accuracy {run.record['last']['val_accuracy']:.2%}")


def _is_network(path):
    """Returns whether a file has a network of Keras, and not its weights alone."""
    if not path.endswith(WEIGHT_FILES):
        return path.endswith(".keras")
    import h5py

    with contextlib.suppress(OSError), h5py.File(path) as file:
        return "model_config" in file.attrs
    return False


def _report(run):
    if run.record["last"] is None:  # a worker that writes no files
        print(f"Done; the first worker writes {run.path}")
        return
    last, best = (run.record[checkpoint] for checkpoint in CHECKPOINTS)
    monitor = run.record["monitor"]
    print(
        f"Wrote {run.path}. {monitor}, on {run.record['images']['measured_on']}: "
        f"last epoch {last[monitor]:.2%}, best epoch {best[monitor]:.2%} "
        f"({best['epoch']}); {run.record['seconds']:.0f} seconds."
    )


def _evaluate(options):
    wanted = options.pop("quality")
    names = ("teacher", "beside", "severity", "output")
    given = {k: v for k in names if (v := options.pop(k)) is not None}
    if wanted or given:
        _measure_quality(options, given)
        return
    for name, value in runs.evaluate(**options).items():
        print(f"{name} {value:.4f}")


def _measure_quality(options, given):
    from keras_hsakd.runs import quality

    options.pop("heads")  # they are among it
    print(quality.table(runs.measure_quality(**options, **given)))
    print(f"Wrote {given.get('output', runs.Run.open(options['run']).quality)}")


def _export(options):
    if options["card"] is not None:
        options["card"] = read_json(options["card"])
    results = runs.export_run(**options)
    for name, result in results.items():
        if result.error is None:
            print(f"Wrote {result.path} ({name})")
        elif result.path is not None:
            print(f"Kept aside {result.path} ({name})")
        if result.report is not None:
            print(f"Wrote {result.report}")
    failed = {name: result.error for name, result in results.items() if result.error}
    if failed:
        received = "; ".join(
            f"{name}: {_in_one_line(error) or error}" for name, error in failed.items()
        )
        first, *_ = failed.values()
        raise RuntimeError(
            f"Expected all formats to be written. Received: {received}"
        ) from first


def _try(options):
    from keras_hsakd import tryout

    tryout.serve(**options)


def _models(options):
    print(zoo.table(**options))


def _demo(options):
    from keras_hsakd import demo

    settings = DemoSettings(**_taken(options, DemoSettings))
    demo.run(settings=settings, **options)
