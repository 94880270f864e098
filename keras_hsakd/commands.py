"""The commands of `keras-hsakd`: functions whose parameters are words and flags.

Words are parsed, and help is printed, without Keras and TensorFlow, which take seconds
to import: a command imports what it runs, or takes it from `runs`.
"""

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from keras_hsakd import lock, runs, sizes, zoo
from keras_hsakd.files import check_parent, read_json, write_json
from keras_hsakd.flags import Command, Group, Parser
from keras_hsakd.names import WEIGHT_FILES, Checkpoint, Format, Preprocessing, Views
from keras_hsakd.network_files import CHECKPOINTS
from keras_hsakd.optional import own_module
from keras_hsakd.runs import (
    KINDS,
    CacheSettings,
    DataSettings,
    Distill,
    ExecutionSettings,
    Kind,
    TrainingSettings,
)
from keras_hsakd.runs.settings import (
    OF_THE_NETWORK,
    OF_TRAINING,
    PRESETS,
    DemoSettings,
)
from keras_hsakd.sizes import ImageSize

Verbose = Literal[0, 1, 2]


def call(arguments: Sequence[str] | None = None) -> None:
    """Calls the command that words name.

    Args:
        arguments: The words. Defaults to `None`, those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    typed = {word for word in words if word in COMMANDS}
    given = vars(parser(typed).parse_args(words))
    command = COMMANDS[given.pop("command")]
    modules = given.pop("import_modules")
    chosen, presets = given.pop("preset", ()), given.pop("presets", {})
    for module in modules:
        _import(module)
    told = {}
    for preset in chosen:
        told |= presets[preset]
    # Processes that are started import them, too.
    command(told | given, **{"modules": modules} if command.function is plan else {})


def parser(with_flags: Collection[str] | None = None) -> argparse.ArgumentParser:
    """Returns what parses all commands.

    Args:
        with_flags: Names of the commands that get flags, which take time to make.
            Defaults to `None`, all.
    """
    parser = argparse.ArgumentParser(
        prog="keras-hsakd",
        description="Hierarchical self-supervised augmented knowledge distillation.",
    )
    commands = parser.add_subparsers(
        required=True, metavar="command", dest="command", parser_class=Parser
    )
    for name, command in COMMANDS.items():
        summary = command.about.partition("\n")[0].replace("%", "%%")
        each = commands.add_parser(name, help=summary, description=command.about)
        if with_flags is not None and name not in with_flags:
            continue
        names = command.add_flags(each)
        _add_presets(each, names)
        each.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="Show where an error was raised",
        )
        each.add_argument(
            "--import",
            action="append",
            default=[],
            dest="import_modules",
            metavar="MODULE",
            help="Python module with layers of your own, registered with Keras, that "
            "networks have",
        )
    return parser


def _add_presets(parser, names):
    """Adds the presets whose settings a command has, those of `distill` aside."""
    presets = {
        preset: {key: value for key, value in settings.items() if key in names}
        for preset, settings in PRESETS.items()
        if names | {"cached_variants"} >= set(settings)
    }
    if not presets:
        return
    parser.set_defaults(presets=presets)
    meaning = "; ".join(
        f"{name}: {' '.join(f'{k} {v}' for k, v in preset.items())}"
        for name, preset in presets.items()
    )
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=tuple(presets),
        default=[],
        help=f"Other defaults of some flags, one preset or several ({meaning})",
    )


def _import(module):
    """Imports a module that registers layers."""
    try:
        own_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            "Expected `--import` to name a module that is here or installed. "
            f"Received: '{module}'; {error}"
        ) from error


def train(
    *,
    kind: Kind,
    data: dict,
    training: TrainingSettings,
    output: str,
    overwrite: bool = False,
    verbose: Verbose = 1,
    execution: ExecutionSettings,
):
    """Trains a network.

    Args:
        output: Run folder to write.
        overwrite: Replace the run in that folder.
        verbose: 0 is silent, 1 a progress bar, 2 a line an epoch.
    """
    run = runs.train(
        kind,
        output=output,
        training=training,
        data=data,
        execution=execution,
        overwrite=overwrite,
        verbose=verbose,
    )
    _report(run)


def plan(
    *,
    teacher: tuple[str, ...],
    teacher_epochs: int | None = None,
    variants: int = 8,
    sampled_views: int = 2,
    seconds: float = 10.0,
    views: Views = "rotations",
    output: str | None = None,
    data: Annotated[
        dict, Group(DataSettings, "the teacher's, of a run folder", ("unlabeled",))
    ],
    training: TrainingSettings,
    modules=(),
):
    """Estimates what a teacher and its student will cost, before training them.

    It gives multiply-adds, hours and memory on this machine, for the method and for
    each way to pay less, from 20 steps of each on the images of the training.

    Args:
        teacher: Run folder of the teacher, or of several; or a network to train as the
            teacher.
        teacher_epochs: Epochs of the teacher's training. Defaults to --epochs.
        variants: Augmentations of each image in a cache.
        sampled_views: Views in a step where they are sampled.
        seconds: Seconds after which fewer than 20 steps of a way are enough.
        views: Views of a teacher that is to be trained.
        output: JSON file to write, for --plan. Defaults to none.
    """
    from keras_hsakd.runs import planning

    kept = contextlib.nullcontext()
    if output:
        check_parent(output, "output")
        kept = lock.held_beside(output)
    with kept:
        found = runs.plan(
            teacher,
            training,
            data,
            teacher_epochs,
            views,
            variants,
            sampled_views,
            seconds,
            modules,
        )
        print(planning.table(found))
        if output:
            write_json(output, found)
            print(f"Wrote {output}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """Folders that stand for steps of an experiment.

    Attributes:
        teacher: Run folder of a teacher, in place of training one.
        backbone: Run folder of a teacher's backbone, the same way.
        student: Run folder of a student, the same way.
        cache: Cache of a teacher's outputs, the same way.
    """

    teacher: str | None = None
    backbone: str | None = None
    student: str | None = None
    cache: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """What an experiment has otherwise than the paper.

    Attributes:
        epochs: Epochs of the last training; others change in proportion.
        seed: Seed of all trainings.
        batch_size: Images in a batch.
        data: Other images: a named data set, tfds:NAME, or a folder.
        target_data: Other images of the linear classifier.
        data_dir: Folder of tensorflow-datasets.
        image_size: Height and width of the images, or HEIGHTxWIDTH, for padded
            rotations.
        limit: Most training images, and test images.
    """

    epochs: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    data: str | None = None
    target_data: str | None = None
    data_dir: str | None = None
    image_size: ImageSize | None = None
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds:
    """An experiment with several seeds.

    Attributes:
        seeds: Seeds, each of which has trainings of its own in folders seed_N. Defaults
            to that of --seed.
        one_teacher: With --seeds: train all steps but the last once, with the first
            seed.
    """

    seeds: tuple[int, ...] | None = None
    one_teacher: bool = False


def run(
    name: str | None = None,
    *,
    list: bool = False,
    output: str | None = None,
    given: Annotated[dict, Group(Given)],
    scale: Annotated[dict, Group(Scale, "the paper's")],
    repeated: Annotated[dict, Group(Seeds)],
    overwrite: bool = False,
    verbose: Verbose = 1,
    execution: ExecutionSettings,
):
    """Runs an experiment of the paper with the authors' settings.

    Trainings that are finished already are not run again.

    Args:
        name: Experiment, see --list.
        list: Print all experiments and end.
        output: Folder to write.
        overwrite: Replace other runs in that folder.
        verbose: 0 is silent, 1 a progress bar, 2 a line an epoch.
    """
    from keras_hsakd.runs import recipes

    if list:
        print(recipes.table())
        return
    for word, value in (("name", name), ("output", output)):
        if value is None:
            raise ValueError(
                "Expected the name of an experiment and `--output`, or `--list`. "
                f"Received: no {word}"
            )
    line = _line(name, given=given, scale=scale, repeated=repeated)
    recipe = line.recipe
    running = {"overwrite": overwrite, "verbose": verbose, "execution": execution}
    if "seeds" in repeated:
        found = runs.run_seeds(
            recipe, output, line.seeds, line.one_teacher, line.given, **running
        )
    else:
        found = runs.run_recipe(recipe, output=output, given=line.given, **running)
    for each in found.values():
        _report(each)
    if recipe.published:
        print(f"Published, best epoch on the test images: {recipe.published} %")


def _line(
    name: str,
    *,
    given: Annotated[dict, Group(Given)],
    scale: Annotated[dict, Group(Scale)],
    repeated: Annotated[dict, Group(Seeds)],
):
    """Returns the experiment of a line of a study, or of the command line.

    Args:
        name: Experiment.
    """
    from keras_hsakd.runs import recipes

    seeds, seed = repeated.get("seeds"), scale.get("seed")
    one_teacher = repeated.get("one_teacher", False)
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
    recipe = recipes.get(name)
    recipe.without(*given)  # which there must be
    recipe = recipe.scaled(given=given, **scale)
    seeds = seeds or (recipe.steps[-1].training.seed,)
    return runs.Line(recipe, name, seeds, one_teacher, given)


def study(
    file: str,
    *,
    output: str,
    scale: Annotated[dict, Group(Scale, "that of the line, or the paper's")],
    repeated: Annotated[dict, Group(Seeds)],
    verbose: Verbose = 1,
    execution: Annotated[
        ExecutionSettings, Group(ExecutionSettings, omit=("resume", "plan"))
    ],
):
    """Runs many experiments; started again, it runs those that are missing.

    A text file has an experiment on each line: the words of `keras-hsakd run`, without
    --output. A # begins a comment. Experiments share their teachers. Started again, a
    study continues where it stopped.

    Args:
        file: Text file with a line for each experiment.
        output: Folder to write.
        verbose: 0 is silent, 1 a progress bar, 2 a line an epoch.
    """
    lines = _lines(file, {**scale, **repeated})
    if target := scale.get("target_data"):
        steps = [step for line in lines for step in line.recipe.steps]
        if all(step.kind != "linear" for step in steps):
            raise ValueError(
                "Expected a line with a linear classifier for `--target-data`. "
                f"Received: --target-data {target}, and none in '{file}'"
            )
    found = runs.run_study(lines, output, verbose, execution)
    for by_seed in found.values():
        for each in by_seed.values():
            _report(each)
    print(f"Compare them: keras-hsakd report {output}")


class _LineParser(Parser):
    """Raises what is wrong with a line, in place of ending the process."""

    def error(self, message):
        raise ValueError(f"Expected words of `keras-hsakd run`. Received: {message}")


def _lines(path, defaults):
    """Returns the experiments in a file, with flags that hold for all lines."""
    command, parser, lines = Command(_line), _LineParser(add_help=False), []
    command.add_flags(parser)
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                words = shlex.split(text, comments=True)
                if words:
                    told = vars(parser.parse_args(words))
                    line = command(_with_defaults(told, defaults))
                    lines.append(dataclasses.replace(line, name=folder_of(told)))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not lines:
        raise ValueError(
            f"Expected the name of an experiment in a line of '{path}'. Received: none"
        )
    return lines


def _with_defaults(told, defaults):
    """Returns the flags of a line, and those for all lines that it does not have."""
    from keras_hsakd.runs import recipes

    left_out = set()
    if "seed" in told:
        left_out |= {"seeds", "one_teacher"}
    if "seeds" in told:
        left_out.add("seed")
    steps = recipes.get(told["name"]).steps
    if all(step.kind != "linear" for step in steps):
        left_out.add("target_data")  # it is for the other lines
    return {k: v for k, v in defaults.items() if k not in left_out} | told


def folder_of(told: dict) -> str:
    """Returns the name of the folder for what a line of a study tells.

    Args:
        told: Name and flags of the experiment; its folder is the same for all seeds.

    Example:
    >>> folder_of({"name": "cifar100/wrn_40_2-wrn_16_2", "seeds": [0], "epochs": 24})
    'cifar100--wrn_40_2-wrn_16_2--epochs-24'
    """
    words = [told["name"]]
    for field in (
        f for each in (Given, Scale, Seeds) for f in dataclasses.fields(each)
    ):
        name, value = field.name, told.get(field.name)
        if name in ("seed", "seeds") or value is None or value is False:
            continue
        if name == "image_size":
            value = sizes.written(value)
        words.append(name.replace("_", "-") if value is True else f"{name}-{value}")
    return "--".join(word.replace("/", "--") for word in words)


def report(
    folders: tuple[str, ...], *, against: str | None = None, output: str | None = None
):
    """Compares finished trainings: mean, spread and differences over seeds.

    It gives mean and standard deviation over seeds, paired differences with 95 %
    intervals, the cost, and published figures.

    Args:
        folders: Run folders, or folders with run folders below them.
        against: Method to compare the others with: one of its run folders, a folder
            above, or its name in the table. Defaults to the first method.
        output: Folder for report.md, report.csv, report.html and the pictures. Defaults
            to none.
    """
    found = runs.compare(folders, against)
    print(found.markdown(), end="")
    if output is not None:
        found.write(output)
        print(f"Wrote {output}: report.md, report.csv, report.html")


def cache(
    *,
    output: str,
    check: bool = False,
    verbose: Verbose = 1,
    settings: CacheSettings,
    data: Annotated[dict, Group(DataSettings, "the teacher's", Distill.fixed)],
):
    """Keeps a teacher's outputs, for students to learn from.

    It writes class logits and joint logits of the heads for all views, on fixed
    augmentations of each training image. `keras-hsakd distill --cache` learns from
    them without running the teacher. A cache that was begun is continued.

    Args:
        output: Folder to write.
        check: Recompute a sample, and print how far the cache is from it. A cache that
            exists is only checked.
        verbose: 0 is silent, 1 a progress bar, 2 a line an epoch.
    """
    if not (check and os.path.exists(output)):
        written = runs.cache_teacher(output, settings, data, verbose)
        print(f"Wrote {written.path}. Learn from it: keras-hsakd distill --cache ...")
    if check:
        print("output   KL at temperature 3: largest     mean   largest difference")
        for name, found in runs.check_cache(output, settings.teacher).items():
            print(
                f"{name:8} {found.largest:28.2e} {found.mean:8.1e} "
                f"{found.difference:20.2e}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What the command needs to know of the network that it converts.

    Attributes:
        model: Checkpoint: its network, one of `keras-hsakd models`; weights:
            applications/NAME.
        preprocessing: .keras: as of `teacher`.
        prefix: Checkpoint: part of its keys, for example net1.
        checkpoint: Run folder: checkpoint to write, of the last epoch or of the epoch
            with the best val_accuracy. Defaults to last.
        overwrite: Replace the run in that folder.
    """

    model: str | None = None
    preprocessing: Preprocessing | None = None
    prefix: str | None = None
    checkpoint: Checkpoint | None = None
    overwrite: bool = False


def convert(
    source: str,
    output: str,
    *,
    told: Annotated[dict, Group(Conversion)],
    data: Annotated[dict, Group(DataSettings, "as for `teacher`", ("unlabeled",))],
    verbose: Verbose = 1,
):
    """Makes a run folder of a trained network, or a PyTorch checkpoint of one.

    A network that was trained elsewhere can then teach: a .keras or .h5 file of a
    whole network, weights (.weights.h5, .h5) of a classifier of keras.applications, or
    a PyTorch checkpoint like the authors' (.pth, .pth.tar, .safetensors). From a run
    folder, the command writes such a checkpoint.

    Args:
        source: File, or run folder.
        output: Run folder, or checkpoint, to write.
        verbose: 0 is silent, 1 a progress bar, 2 a line an epoch.
    """
    if not os.path.exists(source):
        raise FileNotFoundError(
            "Expected a run folder, or the file of a network. "
            f"Received: '{source}', where nothing is"
        )
    is_run = os.path.isdir(source)
    is_network = not is_run and _is_network(source)
    is_weights = not (is_run or is_network) and source.endswith(WEIGHT_FILES)
    if is_run:
        kind, unused = "a run folder", {**told, **data}.keys() - {"checkpoint"}
    elif is_network:
        kind = f"a {os.path.splitext(source)[1]} file of a network"
        unused = {"checkpoint", "model", "prefix"}
    elif is_weights:
        kind, unused = "a file of weights", {"checkpoint", "preprocessing", "prefix"}
    else:
        kind, unused = "a PyTorch checkpoint", {"checkpoint", "preprocessing"}
    _check_used({**told, **data}, unused, kind, source)
    if is_run:
        runs.export_torch(source, output, told.get("checkpoint", "last"))
        print(f"Wrote {output}")
        return
    for name in ("data",) if is_network else ("model", "data"):
        if name not in {**told, **data}:
            raise ValueError(
                f"Expected `--{name}`, for a run folder tells what network it has and "
                f"what images it was trained on. Received: no `--{name}`"
            )
    settings, model = DataSettings(**data), told.pop("model", None)
    if is_network or is_weights:
        training = TrainingSettings(
            model=source if is_network else model,
            weights=None if is_network else source,
            preprocessing=told.pop("preprocessing", None),
        )
        found = runs.import_keras(output, training, settings, verbose=verbose, **told)
    else:
        found = runs.import_torch(
            output, source, model, settings, verbose=verbose, **told
        )
    print(f"Wrote {found.path}. Accuracy {found.record['last']['val_accuracy']:.2%}")


def _check_used(told, unused, kind, source):
    """Raises a ValueError of flags that have no effect for what is converted."""
    for name in sorted(unused & told.keys()):
        raise ValueError(
            f"Expected no `--{name.replace('_', '-')}` for {kind}, where it has no "
            f"effect. Received: {name}={told[name]!r} for '{source}'"
        )


def _is_network(path):
    """Returns whether a file has a network of Keras, and not its weights alone."""
    if not path.endswith(WEIGHT_FILES):
        return path.endswith(".keras")
    import h5py

    with contextlib.suppress(OSError), h5py.File(path) as file:
        return "model_config" in file.attrs
    return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """What is measured beyond accuracy, and against which networks.

    Attributes:
        quality: Measure more than accuracy: calibration, agreement with the teacher,
            heads by rotation and class, corruptions. The flags below imply it.
        teacher: Run folder of the teacher. Defaults to the run's own teacher.
        beside: Run folder of a network to compare each class with.
        severity: Severity of the corruptions, from 1 to 5.
        output: JSON file to write. Defaults to quality.json in the run folder.
    """

    quality: bool = False
    teacher: str | None = None
    beside: str | None = None
    severity: int = 3
    output: str | None = None


def evaluate(
    run: str,
    *,
    checkpoint: Checkpoint = "last",
    heads: bool = False,
    quality: Annotated[dict, Group(Quality)],
    data: Annotated[
        dict, Group(DataSettings, "the run's", OF_THE_NETWORK + OF_TRAINING)
    ],
    verbose: Verbose = 1,
):
    """Measures the network of a run folder.

    Args:
        run: Run folder.
        checkpoint: Checkpoint to measure: of the last epoch, or of the epoch with the
            best val_accuracy.
        heads: Add the accuracies of the heads on rotated images.
        verbose: 0 is silent, 1 a progress bar, 2 a line an epoch.
    """
    if quality.pop("quality", False) or quality:
        _measure_quality(run, checkpoint, quality, verbose, data)
        return
    for name, value in runs.evaluate(run, checkpoint, heads, verbose, **data).items():
        print(f"{name} {value:.4f}")


def _measure_quality(run, checkpoint, given, verbose, data):
    from keras_hsakd.runs import quality

    found = runs.measure_quality(run, checkpoint, verbose=verbose, **given, **data)
    print(quality.table(found))
    print(f"Wrote {given.get('output', runs.Run.open(run).quality)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """How the exported files are measured.

    Attributes:
        report: Measure each file on the run's test images: accuracy, calibration, size,
            latency. The flags below imply it.
        max_drop: Largest loss of accuracy that is accepted, from 0 to 1; a file that
            loses more is kept aside. Defaults to no limit.
        teacher: Run folder of the teacher, which is measured too.
        plain: Run folder of a network trained without a teacher, which is measured too.
        card: JSON file with texts for the model card: intended_use, data, training,
            limits, licence.
    """

    report: bool = False
    max_drop: float | None = None
    teacher: str | None = None
    plain: str | None = None
    card: str | None = None


def export(
    run: str,
    output: str,
    *,
    format: tuple[Format, ...] = ("saved_model",),
    top_k: int | None = None,
    features: str | None = None,
    temperature: float | Literal["fit"] = 1.0,
    checkpoint: Checkpoint = "last",
    report: Annotated[dict, Group(Report)],
):
    """Writes the network of a run folder for production.

    It writes a SavedModel for TF Serving, or other formats. Each file is compared with
    the network before it gets its name. No file is replaced.

    Args:
        run: Run folder.
        output: Folder of versions, which gets the next version; or a version, a path
            that ends in a number.
        format: Formats to write.
        top_k: Number of most likely classes that a SavedModel also returns. Defaults
            to none.
        features: Layer whose outputs a SavedModel returns by a signature of their own.
            Defaults to none.
        temperature: Divide the logits by this number before the softmax; fit chooses
            the number that fits the labels of the run's validation images best.
        checkpoint: Checkpoint to export: of the last epoch, or of the epoch with the
            best val_accuracy.
    """
    if "card" in report:
        report["card"] = read_json(report["card"])
    results = runs.export_run(
        run,
        output,
        checkpoint=checkpoint,
        formats=format,
        top_k=top_k,
        temperature=temperature,
        features=features,
        **report,
    )
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
            f"{name}: {in_one_line(error) or error}" for name, error in failed.items()
        )
        first, *_ = failed.values()
        raise RuntimeError(
            f"Expected all formats to be written. Received: {received}"
        ) from first


def try_(
    path: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    checkpoint: Checkpoint = "last",
):
    """Opens a page to try a network on images of your own.

    On the local page you drop an image, and see the likeliest classes and the time that
    they took; of a run also where the network looks, what its heads say of each view,
    and its teacher's answer.

    Args:
        path: Run folder, or what `export` wrote.
        host: Address to bind to; with another one, whoever reaches this machine can use
            the page.
        port: Port. Defaults to the first free one from 7860.
        browser: Open a browser.
        checkpoint: Network to try, of a run: after the last epoch, or after that of the
            best val_accuracy.
    """
    from keras_hsakd import tryout

    tryout.serve(path, checkpoint, host, port, browser)


def models(*, image_size: ImageSize | None = None, num_classes: int = 100):
    """Lists the networks and what they cost.

    Args:
        image_size: Height and width of an image, or HEIGHTxWIDTH. Defaults to what each
            is made for.
        num_classes: Classes.
    """
    print(zoo.table(image_size, num_classes))


def demo(
    *,
    output: str = "demo",
    seeds: int = 5,
    validation: bool = False,
    overwrite: bool = False,
    settings: DemoSettings,
):
    """Does the main job on handwritten digits, in minutes.

    Trains a teacher and a student four ways on few labels, prints a table, draws the
    curves, exports the student and classifies images with the exported model.

    Args:
        output: Folder to write.
        seeds: Number of repetitions.
        validation: Measure on held-out training images, to choose settings.
        overwrite: Replace an existing folder.
    """
    from keras_hsakd import demo

    demo.run(output, seeds, validation, overwrite, settings=settings)


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


_WITH_MESSAGE = (ArithmeticError, ImportError, OSError, RuntimeError, ValueError)


def in_one_line(error: Exception) -> str | None:
    """Returns the message of an error that has one for people, or None.

    Example:
    >>> in_one_line(ValueError("Expected a number. Received: 'x'"))
    "Expected a number. Received: 'x'"
    """
    if isinstance(error, _WITH_MESSAGE):
        return str(error)
    if "tensorflow" not in sys.modules:
        return None
    import tensorflow as tf

    from keras_hsakd.data import decoding

    return decoding.why(error) if isinstance(error, tf.errors.OpError) else None


def _of_kind(kind):
    """Returns the command that trains a network of a kind."""
    data = Annotated[dict, Group(DataSettings, kind.inherits, kind.fixed)]
    return Command(train, {"kind": kind, "data": data}, described=kind)


COMMANDS = {name: _of_kind(kind) for name, kind in KINDS.items()} | {
    "plan": Command(plan),
    "run": Command(run),
    "study": Command(study),
    "report": Command(report),
    "cache": Command(cache),
    "convert": Command(convert),
    "evaluate": Command(evaluate),
    "export": Command(export),
    "try": Command(try_),
    "models": Command(models),
    "demo": Command(demo),
}
