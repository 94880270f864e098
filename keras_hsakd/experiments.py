"""Whole experiments: data, network, schedule, callbacks and results tied together."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import time
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_hsakd import data, export, models, plots
from keras_hsakd.callbacks import KeepInterrupt, SaveNetwork, Throughput
from keras_hsakd.heads import head_names, strip_heads
from keras_hsakd.optimizers import SGD, step_decay
from keras_hsakd.runs import Run, check_output
from keras_hsakd.settings import DataSettings, TrainingSettings
from keras_hsakd.trainers import Distiller, TeacherTrainer
from keras_hsakd.trainers.checks import StopOnNonFiniteLoss

_MONITOR = "val_accuracy"
# By kind of data, the settings that only the other kind has.
_ONLY_FOLDER = ("flip", "mean", "std", "corrupt")
_ONLY_NAMED = ("data_dir",)


def train_teacher(
    output: str | os.PathLike,
    data_settings: DataSettings,
    training: TrainingSettings,
    head_metrics: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
) -> Run:
    """Trains a network with auxiliary heads on labels, to teach others.

    Args:
        output: Run folder to write, see `keras_hsakd.runs.Run`.
        data_settings: Which images.
        training: Which network, and how.
        head_metrics: Whether to report the accuracies of the heads as well, which
            makes validation take four times as long. Defaults to `False`.
        overwrite: Whether to replace a run in `output`. Defaults to `False`.
        verbose: As in `keras.Model.fit`. Defaults to 1, a progress bar.

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
    check_output(output, overwrite)
    images = _load(data_settings, training)
    with _precision(training):
        network = _create(training, images)
        trainer = TeacherTrainer(network)
    return _train(
        Run(os.path.abspath(output), {"kind": "teacher"}),
        trainer,
        network,
        images,
        training,
        verbose,
        head_metrics=head_metrics,
    )


def train_baseline(
    output: str | os.PathLike,
    data_settings: DataSettings,
    training: TrainingSettings,
    overwrite: bool = False,
    verbose: int = 1,
) -> Run:
    """Trains a network without heads on labels alone, to compare students with.

    Args:
        output: As in `train_teacher`.
        data_settings: As in `train_teacher`.
        training: As in `train_teacher`.
        overwrite: As in `train_teacher`.
        verbose: As in `train_teacher`.

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
    check_output(output, overwrite)
    images = _load(data_settings, training)
    with _precision(training):
        # Its weights at the start are those of a student with heads of this seed.
        network = strip_heads(_create(training, images))
    return _train(
        Run(os.path.abspath(output), {"kind": "baseline"}),
        network,
        network,
        images,
        training,
        verbose,
        callbacks=[StopOnNonFiniteLoss(["loss"])],  # the trainers have their own
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def distill(
    output: str | os.PathLike,
    teacher: str | os.PathLike,
    training: TrainingSettings,
    temperature: float = 3.0,
    checkpoint: str = "last",
    head_metrics: bool = False,
    overwrite: bool = False,
    verbose: int = 1,
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
        head_metrics: As in `train_teacher`.
        overwrite: As in `train_teacher`.
        verbose: As in `train_teacher`.
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
    check_output(output, overwrite)
    teacher_run = Run.open(teacher)
    if os.path.realpath(output) == os.path.realpath(teacher):
        raise FileExistsError(
            "Expected `output` to be another folder than `teacher`. "
            f"Received: '{output}'"
        )
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
    with _precision(training):
        student = _create(training, images)
        distiller = Distiller(teacher_network, student, temperature)
    record = {
        "kind": "distill",
        "temperature": temperature,
        "teacher": {
            "run": teacher_run.path,
            "model": teacher_run.record["training"]["model"],
            "checkpoint": checkpoint,
            **teacher_run.record[checkpoint],
        },
    }
    return _train(
        Run(os.path.abspath(output), record),
        distiller,
        student,
        images,
        training,
        verbose,
        head_metrics=head_metrics,
    )


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
    if with_heads:
        model = TeacherTrainer(network).compile(metrics=["accuracy"])
        results = model.evaluate(
            images.test, heads=heads, verbose=verbose, return_dict=True
        )
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(loss=loss, metrics=["accuracy"])
        results = network.evaluate(images.test, verbose=verbose, return_dict=True)
    return {name: float(value) for name, value in results.items()}


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
    if not named:
        # The next command may be started elsewhere.
        settings = dataclasses.replace(settings, data=os.path.abspath(settings.data))
    return _Images(
        settings,
        train,
        test,
        train.element_spec[0].shape[1],
        tuple(source.mean or data.IMAGENET_MEAN),
        tuple(source.std or data.IMAGENET_STD),
    )


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


@contextlib.contextmanager
def _precision(training):
    """Makes networks under the dtype policy of the settings."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(training.precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _create(training, images):
    keras.utils.set_random_seed(training.seed)
    return models.create(
        training.model,
        num_classes=len(images.train.class_names),
        input_shape=tuple(images.train.element_spec[0].shape[1:]),
    )


def _train(run, model, network, images, training, verbose, callbacks=(), **compiling):
    """Compiles and trains a model, and keeps the run folder up to date."""
    deployed = strip_heads(network)
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
    run.record.update(
        status="running",
        epochs_done=0,
        monitor=_MONITOR,
        last=None,
        best=None,
        data=dataclasses.asdict(images.settings),
        training=dataclasses.asdict(training),
        images=images.record(),
        parameters=deployed.count_params(),
        multiply_adds=models.multiply_adds(deployed),
        versions=_versions(),
        machine=_machine(),
        began=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        seconds=0.0,
    )
    try:
        plots.pyplot()
    except ImportError as error:
        print(f"No curves.png: {error}")

    saving = SaveNetwork(network, run.path, _MONITOR)
    recorder = _Recorder(run, saving)
    log = os.path.join(run.path, "log.csv")
    try:
        with KeepInterrupt() as keep_interrupt:
            run.begin()
            model.fit(
                images.train,
                validation_data=images.test,
                epochs=training.epochs,
                callbacks=[
                    keep_interrupt,
                    *callbacks,
                    Throughput(images.train.num_examples),
                    keras.callbacks.CSVLogger(log),
                    keras.callbacks.TensorBoard(
                        os.path.join(run.path, "tensorboard"), write_graph=False
                    ),
                    saving,
                    recorder,
                ],
                verbose=verbose,
                shuffle=False,
            )
        run.record["status"] = "finished"
    except KeyboardInterrupt:
        run.record["status"] = "interrupted"
        raise
    except BaseException as error:
        run.record.update(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        recorder.write()
        if saving.last:
            with contextlib.suppress(ImportError):
                plots.training_curves(
                    log, os.path.join(run.path, "curves.png"), run.describe()
                )
    return run


class _Recorder(keras.callbacks.Callback):
    """Keeps `run.json` up to date: a run that is killed has one, too."""

    def __init__(self, run, saving):
        super().__init__()
        self.run = run
        self.saving = saving
        self.began = time.perf_counter()

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
