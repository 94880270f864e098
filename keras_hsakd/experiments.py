"""Whole experiments: data, network, schedule, callbacks and results tied together."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_hsakd import checkpoints, data, distribution, export, models, plots
from keras_hsakd.callbacks import KeepInterrupt, SaveNetwork, Throughput
from keras_hsakd.files import atomic_write
from keras_hsakd.heads import head_names, strip_heads
from keras_hsakd.optimizers import SGD, step_decay
from keras_hsakd.recipes import Recipe
from keras_hsakd.runs import CHECKPOINTS, Run, check_output
from keras_hsakd.settings import DataSettings, ExecutionSettings, TrainingSettings
from keras_hsakd.snapshots import Preempted, Resume, list_snapshots
from keras_hsakd.trainers import (
    BaselineTrainer,
    Distiller,
    MutualDistiller,
    TeacherTrainer,
)

# By kind of data, the settings that only the other kind has.
_ONLY_FOLDER = ("flip", "mean", "std", "corrupt")
_ONLY_NAMED = ("data_dir",)


def train_teacher(
    output: str | os.PathLike,
    data_settings: DataSettings,
    training: TrainingSettings,
    backbone: str | os.PathLike | None = None,
    head_metrics: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> Run:
    """Trains a network with auxiliary heads on labels, to teach others.

    Args:
        output: Run folder to write, see `keras_hsakd.runs.Run`.
        data_settings: Which images.
        training: Which network, and how.
        backbone: Run folder of the same network, trained with or without heads, whose
            backbone is taken over and frozen: the heads alone are trained. Defaults
            to `None`, all is trained jointly.
        head_metrics: Whether to report the accuracies of the heads as well, which
            makes validation take four times as long. Defaults to `False`.
        overwrite: Whether to replace a run in `output`. Defaults to `False`.
        verbose: As in `keras.Model.fit`. Defaults to 1, a progress bar.
        execution: On which devices, with which snapshots, and whether to go on with
            the run in `output`. Defaults to `ExecutionSettings()`.

    Returns:
        The finished `Run`.

    Raises:
        FileExistsError: If `output` holds something; says what.
        FloatingPointError: If a term of the loss is not finite.
        ValueError: If a setting does not suit, before anything is written.

    Example:
    >>> images = DataSettings(data="cifar100")
    >>> training = TrainingSettings(model="wrn_40_2")
    >>> run = train_teacher("teacher", images, training)  # doctest: +SKIP
    >>> run.record["last"]["val_accuracy"]  # doctest: +SKIP
    """
    strategy = _begin(output, overwrite, training, execution)
    record = {"kind": "teacher"}
    if backbone is not None:
        backbone_run = Run.open(backbone)
        trained = strip_heads(backbone_run.network())
    images = _load(data_settings, training)
    with _making(training, strategy):
        network = _create(training, images)
        trainer = TeacherTrainer(network, freeze_backbone=backbone is not None)
    if backbone is not None:
        _check_same_images(backbone_run, images, "backbone")
        _take_over(trained, strip_heads(network), backbone_run)
        record["backbone"] = _origin(backbone_run, "last")
    return _train(
        Run(os.path.abspath(output), record),
        trainer,
        network,
        images,
        training,
        execution,
        verbose,
        head_metrics=head_metrics,
    )


def train_baseline(
    output: str | os.PathLike,
    data_settings: DataSettings,
    training: TrainingSettings,
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> Run:
    """Trains a network without heads on labels alone, to compare students with.

    Args:
        output: As in `train_teacher`.
        data_settings: As in `train_teacher`.
        training: As in `train_teacher`.
        overwrite: As in `train_teacher`.
        verbose: As in `train_teacher`.
        execution: As in `train_teacher`.

    Returns:
        The finished `Run`.

    Raises:
        FileExistsError: If `output` holds something; says what.
        FloatingPointError: If the loss is not finite.
        ValueError: If a setting does not suit, before anything is written.

    Example:
    >>> images = DataSettings(data="digits", image_size=8, examples_per_class=5)
    >>> training = TrainingSettings(model="resnet8", epochs=1)
    >>> run = train_baseline("baseline", images, training, verbose=0)
    >>> run.network().output.shape
    (None, 10)
    """
    strategy = _begin(output, overwrite, training, execution)
    images = _load(data_settings, training)
    with _making(training, strategy):
        # Its weights at the start are those of a student with heads of this seed.
        network = strip_heads(_create(training, images))
        trainer = BaselineTrainer(network)
    record = {"kind": "baseline"}
    return _train(
        Run(os.path.abspath(output), record),
        trainer,
        network,
        images,
        training,
        execution,
        verbose,
    )


def distill(
    output: str | os.PathLike,
    teacher: str | os.PathLike,
    training: TrainingSettings,
    temperature: float = 3.0,
    checkpoint: str = "last",
    loss_weights: dict[str, float] | None = None,
    head_metrics: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
    **data_changes,
) -> Run:
    """Distils a student from the teacher in a run folder.

    Classes, size and normalisation of the images are the teacher's.

    Args:
        output: As in `train_teacher`.
        teacher: Run folder of a network with heads.
        training: Which student, and how.
        temperature: As in `keras_hsakd.Distiller`. Defaults to 3.
        checkpoint: `"last"` or `"best"` of the teacher. Defaults to `"last"`, as in
            the authors' experiments.
        loss_weights: As in `keras_hsakd.Distiller.compile`. Defaults to `None`, the
            method.
        head_metrics: As in `train_teacher`.
        overwrite: As in `train_teacher`.
        verbose: As in `train_teacher`.
        execution: As in `train_teacher`.
        **data_changes: Attributes of `DataSettings` that differ from the teacher's.

    Returns:
        The finished `Run`.

    Raises:
        FileExistsError: If `output` holds something; says what.
        FileNotFoundError: If `teacher` is not a run folder with a finished epoch.
        FloatingPointError: If a term of the loss is not finite.
        ValueError: If a setting does not suit, or the data has other classes than the
            teacher, before anything is written.

    Example:
    >>> training = TrainingSettings(model="wrn_16_2")
    >>> run = distill("student", "teacher", training)  # doctest: +SKIP
    """
    strategy = _begin(output, overwrite, training, execution)
    teacher_run = Run.open(teacher)
    if os.path.realpath(output) == os.path.realpath(teacher):
        raise FileExistsError(
            "Expected `output` to be another folder than `teacher`. "
            f"Received: '{output}'"
        )
    with strategy.scope():
        teacher_network = teacher_run.network(checkpoint)
    try:
        head_names(teacher_network)
    except ValueError:
        raise ValueError(
            "Expected `teacher` to be the run of a network with auxiliary heads, by "
            "`keras-hsakd teacher` or `distill`. "
            f"Received: '{teacher}', a {teacher_run.describe()}"
        ) from None
    images = _load(_changed_data(teacher_run, data_changes), training)
    _check_same_images(teacher_run, images, "teacher")
    with _making(training, strategy):
        student = _create(training, images)
        distiller = Distiller(teacher_network, student, temperature)
    record = {
        "kind": "distill",
        "temperature": temperature,
        "loss_weights": loss_weights or {},
        "teacher": _origin(teacher_run, checkpoint),
    }
    return _train(
        Run(os.path.abspath(output), record),
        distiller,
        student,
        images,
        training,
        execution,
        verbose,
        head_metrics=head_metrics,
        loss_weights=loss_weights,
    )


def train_mutual(
    output: str | os.PathLike,
    data_settings: DataSettings,
    training: TrainingSettings,
    peers: Sequence[str] | None = None,
    temperature: float = 3.0,
    head_metrics: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> Run:
    """Trains networks that teach each other, without a teacher (online HSSAKD).

    Args:
        output: As in `train_teacher`. The folder keeps the network of
            `training.model`, which is `net_1` among the logged quantities.
        data_settings: As in `train_teacher`.
        training: As in `train_teacher`.
        peers: Names of the networks that it learns with. Defaults to one more of
            `training.model`.
        temperature: As in `keras_hsakd.MutualDistiller`. Defaults to 3.
        head_metrics: As in `train_teacher`.
        overwrite: As in `train_teacher`.
        verbose: As in `train_teacher`.
        execution: As in `train_teacher`.

    Returns:
        The finished `Run`.

    Raises:
        FileExistsError: If `output` holds something; says what.
        FloatingPointError: If a term of the loss is not finite.
        ValueError: If a setting does not suit, before anything is written.

    Example:
    >>> images = DataSettings(data="cifar100")
    >>> training = TrainingSettings(model="wrn_40_2")
    >>> run = train_mutual("online", images, training)  # doctest: +SKIP
    """
    strategy = _begin(output, overwrite, training, execution)
    peers = [training.model] if peers is None else list(peers)
    images = _load(data_settings, training)
    with _making(training, strategy):
        network = _create(training, images)
        others = [_network(name, training, images) for name in peers]
        distiller = MutualDistiller([network, *others], temperature)
    record = {"kind": "mutual", "temperature": temperature, "peers": peers}
    return _train(
        Run(os.path.abspath(output), record),
        distiller,
        network,
        images,
        training,
        execution,
        verbose,
        monitor="val_net_1_accuracy",
        head_metrics=head_metrics,
    )


def train_linear(
    output: str | os.PathLike,
    backbone: str | os.PathLike,
    data_settings: DataSettings,
    training: TrainingSettings,
    checkpoint: str = "last",
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> Run:
    """Trains a linear classifier on the frozen features of a trained network.

    Measures how well the features of a network carry over to other images.

    Args:
        output: As in `train_teacher`.
        backbone: Run folder of the network, with or without heads.
        data_settings: Which images; they get the size that the network was trained on.
        training: How; `training.model` must be the network of the run.
        checkpoint: `"last"` or `"best"` of the network. Defaults to `"last"`.
        overwrite: As in `train_teacher`.
        verbose: As in `train_teacher`.
        execution: As in `train_teacher`.

    Returns:
        The finished `Run`.

    Raises:
        FileExistsError: If `output` holds something; says what.
        FileNotFoundError: If `backbone` is not a run folder with a finished epoch.
        FloatingPointError: If the loss is not finite.
        ValueError: If a setting does not suit, before anything is written.

    Example:
    >>> images = DataSettings(data="stl10", crop="resized", center_crop=1.0)
    >>> training = TrainingSettings(
    ...     model="mobilenet_v2", epochs=100, learning_rate=0.1, weight_decay=0.0
    ... )
    >>> run = train_linear("linear", "student", images, training)  # doctest: +SKIP

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 4.4, and
    the authors' `eval_rep.py`.
    """
    strategy = _begin(output, overwrite, training, execution)
    backbone_run = Run.open(backbone)
    _check_model(backbone_run, training)
    with strategy.scope():
        trained = strip_heads(backbone_run.network(checkpoint))
    size = backbone_run.record["images"]["image_size"]
    images = _load(dataclasses.replace(data_settings, image_size=size), training)
    with _making(training, strategy):
        network = _linear_classifier(trained, training, images)
        trainer = BaselineTrainer(network)
    record = {"kind": "linear", "backbone": _origin(backbone_run, checkpoint)}
    return _train(
        Run(os.path.abspath(output), record),
        trainer,
        network,
        images,
        training,
        execution,
        verbose,
    )


_KINDS = {
    "teacher": train_teacher,
    "baseline": train_baseline,
    "distill": distill,
    "mutual": train_mutual,
    "linear": train_linear,
}


def run_recipe(
    recipe: Recipe,
    output: str | os.PathLike,
    given: Mapping[str, str | os.PathLike] | None = None,
    overwrite: bool = False,
    verbose: int = 1,
    execution: ExecutionSettings = ExecutionSettings(),
) -> dict[str, Run]:
    """Runs an experiment of the paper, each training in a run folder of its own.

    A training that is finished already, with the same settings, is not run again.

    Args:
        recipe: A row of `keras_hsakd.recipes`, scaled or not.
        output: Folder to write.
        given: Run folders that stand for steps of the recipe, for example
            `{"teacher": "runs/teacher"}`. Defaults to `None`, all steps are run.
        overwrite: Whether to replace runs in `output` with other settings, or that
            were not finished. Defaults to `False`.
        verbose: As in `keras.Model.fit`. Defaults to 1, a progress bar.
        execution: As in `train_teacher`, of each training. Defaults to
            `ExecutionSettings()`.

    Returns:
        The runs by the names of the steps.

    Raises:
        FileExistsError: If a folder of `output` holds something else; says what.
        ValueError: If a setting does not suit, or `given` names no step.

    Example:
    >>> recipe = keras_hsakd.recipes.get("cifar100/wrn_16_2/baseline")
    >>> recipe = recipe.scaled(data="digits", epochs=1, limit=40)
    >>> list(run_recipe(recipe, "baseline", verbose=0))  # doctest: +SKIP
    ['baseline']
    """
    distribution.make_strategy(execution.strategy)  # before anything else
    given = dict(given or {})
    steps = recipe.without(*given).steps
    folders = {step.name: os.path.join(output, step.name) for step in steps}
    for step in steps:  # before anything is trained
        if not _is_done(folders[step.name], step):
            check_output(folders[step.name], overwrite or execution.resume)
    os.makedirs(output, exist_ok=True)
    runs = {}
    for step in steps:
        folder = folders[step.name]
        if _is_done(folder, step):
            runs[step.name] = Run.open(folder)
            print(f"{step.name}: {folder} has it, a {runs[step.name].describe()}")
            continue
        print(f"{step.name}: {step.training.model}, {step.training.epochs} epochs")
        arguments = {name: (folders | given)[of] for name, of in step.needs.items()}
        if step.data is not None:
            arguments["data_settings"] = step.data
        runs[step.name] = _KINDS[step.kind](
            folder,
            training=step.training,
            overwrite=overwrite,
            verbose=verbose,
            execution=execution,
            **arguments,
            **step.options,
        )
    return runs


def _is_done(folder, step):
    """Returns whether a folder holds the finished run of a step."""
    try:
        record = Run.open(folder).record
    except (FileNotFoundError, ValueError):
        return False
    wanted = {"kind": step.kind, "status": "finished", **step.options}
    wanted["training"] = dataclasses.asdict(step.training)
    known = {**record["data"], **record}
    if step.data is not None:
        settings = _absolute(step.data)
        wanted |= {k: v for k, v in vars(settings).items() if k != "image_size"}
        known |= record["data"]
    # As JSON has no tuples.
    wanted = json.loads(json.dumps(wanted))
    return all(known.get(name) == value for name, value in wanted.items())


def import_torch(
    output: str | os.PathLike,
    source: str | os.PathLike,
    model: str,
    data_settings: DataSettings,
    prefix: str = "",
    overwrite: bool = False,
    verbose: int = 1,
) -> Run:
    """Makes a run folder of a PyTorch checkpoint, as if it had been trained here.

    The network is measured on the test images, so that its published accuracy can be
    compared. A network with heads can then teach (`distill`), and a backbone without
    heads can be given some (`train_teacher(backbone=...)`).

    Args:
        output: Run folder to write.
        source: File as `keras_hsakd.checkpoints.load_torch` reads it.
        model: Which network it is, one of `keras_hsakd.models.names()`.
        data_settings: The images that it was trained on.
        prefix: As in `keras_hsakd.checkpoints.load_torch`.
        overwrite: As in `train_teacher`.
        verbose: As in `keras.Model.evaluate`.

    Returns:
        The `Run`.

    Raises:
        FileExistsError: If `output` holds something; says what.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read or does not fit, before anything is
            written.

    Example:
    >>> images = DataSettings(data="cifar100")
    >>> import_torch(
    ...     "teacher", "wrn_40_2_aux.pth.tar", "wrn_40_2", images
    ... )  # doctest: +SKIP
    """
    check_output(output, overwrite)
    state = checkpoints.read_torch(source, prefix)
    training = TrainingSettings(model=model)
    images = _load(data_settings, training)
    network = _create(training, images)
    if not checkpoints.has_heads(state):
        network = strip_heads(network)
    checkpoints.load_torch(network, state)
    results = {
        f"val_{k}": v for k, v in _measure(network, images.test, verbose).items()
    }
    results = {"epoch": 0, **results}
    run = Run(os.path.abspath(output), {"kind": "converted"})
    run.record.update(
        _record(network, images, training, monitor="val_accuracy"),
        status="finished",
        source=os.path.abspath(source),
        last=results,
        best=results,
    )
    run.begin()
    for checkpoint in CHECKPOINTS:
        with atomic_write(os.path.join(run.path, f"{checkpoint}.keras")) as temporary:
            network.save(temporary)
    return run


def export_torch(
    run: str | os.PathLike, output: str | os.PathLike, checkpoint: str = "last"
) -> None:
    """Writes the network of a run as the authors' scripts save theirs.

    Args:
        run: Run folder of a network of `keras_hsakd.models`.
        output: File as `keras_hsakd.checkpoints.save_torch` writes it.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.

    Raises:
        FileNotFoundError: If `run` is not a run folder with a finished epoch.
        ImportError: If PyTorch is not installed.

    Example:
    >>> export_torch("student", "wrn_16_2_aux.pth.tar")  # doctest: +SKIP
    """
    checkpoints.save_torch(Run.open(run).network(checkpoint), output)


def evaluate(
    run: str | os.PathLike,
    checkpoint: str = "last",
    heads: bool = False,
    verbose: int = 1,
    **data_changes,
) -> dict[str, float]:
    """Evaluates the network of a run.

    Args:
        run: Run folder.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.
        heads: Whether to add the accuracies of the heads on rotated images. Defaults
            to `False`.
        verbose: As in `keras.Model.evaluate`. Defaults to 1, a progress bar.
        **data_changes: Attributes of `DataSettings` that differ from the run's, such
            as `validation=False`.

    Returns:
        A dict of `accuracy`, `loss` (cross-entropy of the classes) and, with `heads`,
        `aux_1_joint_accuracy`, `aux_1_class_accuracy` and so on.

    Raises:
        FileNotFoundError: If `run` is not a run folder with a finished epoch.
        ValueError: If the data has other classes than the run, or heads are asked for
            where there are none.

    Example:
    >>> sorted(evaluate("student"))  # doctest: +SKIP
    ['accuracy', 'loss']
    """
    opened = Run.open(run)
    network = opened.network(checkpoint)
    with_heads = isinstance(network.output, dict)
    if heads and not with_heads:
        raise ValueError(
            "Expected the run of a network with auxiliary heads for `heads`. "
            f"Received: '{run}', a {opened.describe()}"
        )
    # How training images were chosen and altered does not matter here.
    changes = {
        "examples_per_class": None,
        "label_fraction": None,
        "augment": None,
        **data_changes,
    }
    images = _load(_changed_data(opened, changes), opened.training_settings())
    _check_same_images(opened, images, "run")
    return _measure(network, images.test, verbose, heads)


def export_run(
    run: str | os.PathLike, output: str | os.PathLike, checkpoint: str = "last"
) -> str:
    """Exports the network of a run as a SavedModel for TF Serving.

    Args:
        run: Run folder.
        output: Folder to make, see `keras_hsakd.export.saved_model`.
        checkpoint: `"last"` or `"best"`. Defaults to `"last"`.

    Returns:
        The folder.

    Raises:
        FileExistsError: If `output` exists.
        FileNotFoundError: If `run` is not a run folder with a finished epoch.

    Example:
    >>> export_run("student", "serving/student/1")  # doctest: +SKIP
    'serving/student/1'
    """
    opened = Run.open(run)
    return export.saved_model(
        opened.network(checkpoint), output, opened.preprocessing()
    )


def _measure(network, test, verbose, heads=False):
    """Returns loss and accuracies of a network, with heads or without, as floats."""
    if isinstance(network.output, dict):
        model = TeacherTrainer(network).compile(metrics=["accuracy"])
        results = model.evaluate(test, heads=heads, verbose=verbose, return_dict=True)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(loss=loss, metrics=["accuracy"])
        results = network.evaluate(test, verbose=verbose, return_dict=True)
    return {name: float(value) for name, value in results.items()}


class _Images(NamedTuple):
    """The two pipelines, what they were told, and the normalisation they share."""

    settings: DataSettings
    train: tf.data.Dataset
    test: tf.data.Dataset
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def record(self):
        part = "validation" if self.settings.validation else "test"
        return {
            "class_names": self.train.class_names,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "train": self.train.num_examples,
            "test": self.test.num_examples,
            "measured_on": f"{part} images",
        }


def _load(settings, training):
    given = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if value is not None and name != "data"
    }
    named = settings.data in data.names()
    kind = "a named data set" if named else "a folder"
    for name in _ONLY_FOLDER if named else _ONLY_NAMED:
        if name in given:
            raise ValueError(
                f"Expected no `{name}` for {kind}. "
                f"Received: {name}={given[name]!r} for data={settings.data!r}"
            )
    if not named and not os.path.isdir(settings.data):
        raise FileNotFoundError(
            f"Expected `data` to be one of {data.names()}, or a folder of images. "
            f"Received: '{settings.data}'"
        )
    read = data.load if named else data.image_folder
    train, test = read(
        settings.data, batch_size=training.batch_size, seed=training.seed, **given
    )
    source = data.info(settings.data) if named else settings
    return _Images(
        _absolute(settings),
        train,
        test,
        train.element_spec[0].shape[1],
        tuple(source.mean or data.IMAGENET_MEAN),
        tuple(source.std or data.IMAGENET_STD),
    )


def _absolute(settings):
    """Returns data settings that mean the same wherever a command is started."""
    if settings.data in data.names():
        return settings
    return dataclasses.replace(settings, data=os.path.abspath(settings.data))


def _changed_data(run, changes):
    """Returns a run's data settings with some of them changed."""
    settings = run.data_settings()
    images = run.record["images"]
    source = changes.get("data", settings.data)
    kept = {}
    if source != settings.data:
        # How files are found and read belongs to the old place.
        kept |= dict.fromkeys((*_ONLY_FOLDER, *_ONLY_NAMED))
    if source not in data.names():
        kept |= {"mean": images["mean"], "std": images["std"]}
    fixed = {"image_size": images["image_size"]}
    return dataclasses.replace(settings, **(kept | changes | fixed))


def _check_same_images(run, images, argument):
    """Raises a ValueError unless images are what a run's network was trained on."""
    expected = run.record["images"]
    names, wanted = images.train.class_names, run.class_names
    if names != wanted:
        differing = sorted(set(names) ^ set(wanted))
        raise ValueError(
            f"Expected data of the {len(wanted)} classes of `{argument}`, "
            f"'{run.path}'. Received: {len(names)} classes; "
            + (f"not in both: {differing[:5]}" if differing else "in another order")
        )
    for name in ("mean", "std"):
        if list(getattr(images, name)) != list(expected[name]):
            raise ValueError(
                f"Expected images normalised with {name}={tuple(expected[name])}, as "
                f"those of `{argument}`, '{run.path}'. "
                f"Received: {name}={getattr(images, name)}"
            )


def _begin(output, overwrite, training, execution):
    """Checks where a run is to be, and returns the strategy that it runs under.

    A strategy of several workers must be made before TensorFlow does anything.
    """
    if overwrite and execution.resume:
        raise ValueError(
            "Expected `overwrite` or `resume`, not both: a run is replaced or goes on. "
            "Received: both"
        )
    strategy = distribution.make_strategy(execution.strategy)
    with strategy.scope():
        if distribution.worker_index() == 0:
            check_output(output, overwrite or execution.resume)
    if training.deterministic:
        keras.utils.set_random_seed(training.seed)
        tf.config.experimental.enable_op_determinism()
    return strategy


@contextlib.contextmanager
def _making(training, strategy):
    """Makes networks for a strategy, under the dtype policy of the settings."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(training.precision)
    try:
        with strategy.scope(), distribution.lost_workers_named():
            yield
    finally:
        keras.config.set_dtype_policy(before)


def _create(training, images):
    keras.utils.set_random_seed(training.seed)
    return _network(training.model, training, images)


def _network(name, training, images):
    network = models.create(
        name,
        num_classes=len(images.train.class_names),
        input_shape=tuple(images.train.element_spec[0].shape[1:]),
    )
    if training.synchronize_batch_norm:
        distribution.synchronize_batch_norm(network)
    return network


def _linear_classifier(trained, training, images):
    """Returns a trained network with a new classifier, all else frozen."""
    keras.utils.set_random_seed(training.seed)
    trained.trainable = False  # batch normalization then keeps to its statistics
    classifier = trained.get_layer("logits")
    new = type(classifier).from_config(
        {**classifier.get_config(), "units": len(images.train.class_names)}
    )
    new.trainable = True
    return keras.Model(trained.input, new(classifier.input), name=trained.name)


def _origin(run, checkpoint):
    """Returns what a run's record says of the network it started from."""
    return {
        "run": run.path,
        "model": run.record["training"]["model"],
        "checkpoint": checkpoint,
        **(run.record[checkpoint] or {}),
    }


def _check_model(run, training):
    model = run.record["training"]["model"]
    if model != training.model:
        raise ValueError(
            f"Expected `backbone` to be a run of {training.model}. "
            f"Received: '{run.path}', a {run.describe()}"
        )


def _take_over(trained, network, run):
    """Gives a network the weights of a trained one of the same architecture."""
    shapes = [
        {v.path: tuple(v.shape) for v in model.variables}
        for model in (trained, network)
    ]
    if shapes[0] != shapes[1]:
        differing = sorted(dict(shapes[0].items() ^ shapes[1].items()))
        raise ValueError(
            f"Expected `backbone` to be a run of {network.name}, on the same images. "
            f"Received: '{run.path}', a {run.describe()}; different: {differing[:5]}"
        )
    values = {v.path: v for v in trained.variables}
    for variable in network.variables:
        variable.assign(values[variable.path])


def _train(
    run,
    model,
    network,
    images,
    training,
    execution,
    verbose,
    monitor="val_accuracy",
    **compiling,
):
    """Compiles and trains a model, and keeps the run folder up to date."""
    with distribution.scope_of(model):
        optimizer = SGD(
            step_decay(
                training.learning_rate,
                training.epochs,
                len(images.train),
                training.milestones,
            ),
            momentum=training.momentum,
            nesterov=training.nesterov,
            weight_decay=training.weight_decay,
        )
        model.compile(optimizer=optimizer, metrics=["accuracy"], **compiling)
    run.record.update(_record(network, images, training, monitor))
    snapshots = os.path.join(run.path, "snapshots")
    goes_on = False
    if execution.resume and run.exists():
        run = _found(run)
        if run.record["status"] == "finished":
            return run
        goes_on = bool(list_snapshots(snapshots))
    is_chief = distribution.worker_index(model) == 0
    saving = SaveNetwork(network, run.path, monitor)
    if goes_on:
        saving.last, saving.best = run.record["last"], run.record["best"]
    recorder = _Recorder(run, saving)
    log = os.path.join(run.path, "log.csv")
    files = [
        keras.callbacks.CSVLogger(log),
        keras.callbacks.TensorBoard(
            os.path.join(run.path, "tensorboard"), write_graph=False
        ),
        saving,
        recorder,
    ]
    resume = Resume(
        snapshots,
        execution.snapshot_steps,
        execution.snapshot_seconds,
        execution.snapshots,
    )
    if is_chief:
        try:
            plots.pyplot()
        except ImportError as error:
            print(f"No curves.png: {error}")
    try:
        with KeepInterrupt() as keep_interrupt:
            if is_chief and goes_on:
                run.go_on()
            elif is_chief:
                run.begin()
            distribution.wait_for_workers(model)
            model.fit(
                images.train,
                validation_data=images.test,
                epochs=training.epochs,
                callbacks=[
                    keep_interrupt,
                    Throughput(images.train.num_examples),
                    *(files if is_chief else ()),
                    resume,
                ],
                verbose=verbose if is_chief else 0,
                shuffle=False,
            )
        run.record["status"] = "finished"
    except KeyboardInterrupt:
        run.record["status"] = "interrupted"
        raise
    except Preempted:
        run.record["status"] = "preempted"
        raise
    except BaseException as error:
        run.record.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        if is_chief:
            recorder.write()
        if is_chief and saving.last:
            with contextlib.suppress(ImportError):
                plots.training_curves(
                    log, os.path.join(run.path, "curves.png"), run.describe()
                )
    if is_chief:
        run.finish()
    distribution.wait_for_workers(model)  # they may read what was written
    return run


# What may differ between a run and what goes on with it.
_OF_A_START = (
    *("status", "epochs_done", "last", "best", "versions", "machine", "began"),
    *("seconds", "error"),
)


def _found(run):
    """Returns the run in a folder, which must be the one that is to go on."""
    found = Run.open(run.path)
    wanted = json.loads(json.dumps(run.record))
    for name, value in wanted.items():
        received = found.record.get(name)
        if name in _OF_A_START or received == value:
            continue
        if isinstance(value, dict) and isinstance(received, dict):
            differing = {k for k in value if value[k] != received.get(k)}
            value = {key: value[key] for key in sorted(differing)}
            received = {key: received.get(key) for key in sorted(differing)}
        raise ValueError(
            f"Expected the settings of the run in '{run.path}' to go on with it: "
            f"{name} {received}. Received: {value}"
        )
    if found.record["status"] != "finished":
        found.record["status"] = "running"
        found.record.pop("error", None)
    return found


def _record(network, images, training, monitor):
    """Returns the record of a run that begins."""
    deployed = strip_heads(network)
    return {
        "status": "running",
        "epochs_done": 0,
        "monitor": monitor,
        "last": None,
        "best": None,
        "data": dataclasses.asdict(images.settings),
        "training": dataclasses.asdict(training),
        "images": images.record(),
        "parameters": deployed.count_params(),
        "multiply_adds": models.multiply_adds(deployed),
        "versions": _versions(),
        "machine": _machine(),
        "began": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0,
    }


class _Recorder(keras.callbacks.Callback):
    """Keeps `run.json` up to date: a run that is killed has one, too."""

    def __init__(self, run, saving):
        super().__init__()
        self.run = run
        self.saving = saving
        self.began = time.perf_counter()

    def get_state(self):
        return time.perf_counter() - self.began

    def set_state(self, state):
        self.began = time.perf_counter() - state

    def on_epoch_end(self, epoch, logs=None):
        self.write()

    def write(self):
        last = self.saving.last
        self.run.record.update(
            epochs_done=last["epoch"] if last else 0,
            last=last,
            best=self.saving.best,
            seconds=round(time.perf_counter() - self.began, 1),
        )
        self.run.write()


def _versions():
    packages = ("keras_hsakd", "keras", "tensorflow", "jax", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _machine():
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": keras.distribution.list_devices(),
    }
