"""One training from its settings to a run folder: the place that ties all together."""

import contextlib
import dataclasses
import datetime
import math
import os
import time
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from keras_hsakd import checkpoints, distribution, drawings, models
from keras_hsakd.callbacks import KeepInterrupt, SaveNetwork, StepSeconds, Throughput
from keras_hsakd.files import best_effort
from keras_hsakd.heads import multiply_adds_by_part, strip_heads
from keras_hsakd.machine import machine, versions
from keras_hsakd.network_files import CHECKPOINTS, checkpoint_path, save_with_results
from keras_hsakd.resume import Resume, list_snapshots
from keras_hsakd.runs import networks, optimization, sources
from keras_hsakd.runs.caching import with_cache
from keras_hsakd.runs.costs import image_multiply_adds
from keras_hsakd.runs.evaluation import measure
from keras_hsakd.runs.folder import Run, differences, writing
from keras_hsakd.runs.images import (
    Images,
    absolute,
    check_settings,
    fingerprint,
    is_moved,
    load,
    load_to_measure,
)
from keras_hsakd.runs.kinds import Job, Kind, Origin
from keras_hsakd.runs.planning import planned
from keras_hsakd.runs.record import FORMAT
from keras_hsakd.runs.settings import DataSettings, ExecutionSettings, TrainingSettings
from keras_hsakd.runs.tensorboard import TensorBoard
from keras_hsakd.sizes import edges, is_square
from keras_hsakd.trainers.fitting import FitCallback


def train(
    kind: Kind,
    output: str | os.PathLike,
    training: TrainingSettings,
    data: DataSettings | Mapping | None = None,
    execution: ExecutionSettings = ExecutionSettings(),
    overwrite: bool = False,
    verbose: int = 1,
    recipe: str | None = None,
) -> Run:
    """Trains a network, and leaves a run folder.

    Args:
        kind: What is trained: `Teacher()`, `Baseline()`, `Distill(teacher=folder)`,
            `Mutual()` or `Linear(backbone=folder)` of `keras_hsakd.runs`, with their
            options.
        output: Run folder to write, see `Run`.
        training: Which network, and how.
        data: Which images. For a kind that takes them from another run, a dict of the
            settings that differ from that one's. Defaults to `None`, none differs.
        execution: On which devices, with which snapshots, and whether to go on with
            the run in `output`. Defaults to `ExecutionSettings()`.
        overwrite: Whether to replace a run in `output`. Defaults to `False`.
        verbose: As in `keras.Model.fit`. Defaults to 1, a progress bar.
        recipe: Name of the experiment whose result it is, for the record. Defaults to
            `None`, none.

    Returns:
        The finished `Run`.

    Raises:
        BlockingIOError: If another process writes to `output`; says which.
        FileExistsError: If `output` holds something; says what.
        FileNotFoundError: If the run that it starts from, or the data, is not there.
        FloatingPointError: If a term of the loss is not finite.
        ValueError: If a setting does not suit, before anything is written.

    Example:
    >>> from keras_hsakd.runs import Baseline
    >>> images = DataSettings(data="digits", image_size=8, examples_per_class=5)
    >>> training = TrainingSettings(model="resnet8", epochs=1)
    >>> run = train(Baseline(), "baseline", training, images, verbose=0)
    >>> run.network().output.shape
    (None, 10)
    """
    strategy = _prepare(training, execution, overwrite)
    if getattr(kind, "cached_variants", None) and kind.cache is None:
        with claimed(output, overwrite or execution.resume, strategy):
            pass  # checks the folder now: writing a cache takes long
        folder = f"{os.path.normpath(output)}-cache"
        kind = with_cache(kind, folder, training, data, strategy, verbose)
    origin = kind.origin()
    _check_apart(output, origin)
    data = kind.data_settings(data, origin)
    wanted = settings_record(kind, training, data, origin)
    if execution.resume and (run := _finished(output, wanted, kind)):
        return run
    kind.check_settings(training, data, origin)
    with claimed(output, overwrite or execution.resume, strategy):
        found = _found(output, wanted, kind) if execution.resume else None
        if found is not None and found.is_finished:
            return found

        checked = None if found is None else found.record["images"]
        images = load(
            data,
            training.batch_size,
            training.seed,
            checked,
            training.drop_remainder,
            execution.stream,
        )
        kind.check_images(images, origin)
        if found is None:
            images.say_shared()
        with networks.construction(training.precision, strategy):
            job = kind.job(training, images, origin)
        views = getattr(job.trainer, "views", None)
        record = {
            **wanted,
            **_facts(job.network, job.monitor, views, images),
            "execution": dataclasses.asdict(execution),
            "recipe": recipe,
        }
        compile_job(job, training, images, execution)
        at_once = job.trainer.steps_per_execution
        record["execution"]["steps_per_execution"] = at_once
        record["image_multiply_adds"] = image_multiply_adds(job.trainer)
        if execution.plan is not None:
            record["planned"] = planned(execution.plan, record)
        goes_on = found is not None and _goes_on(found)
        run = Run(os.path.abspath(output), record)
        if goes_on:
            run = _updated(found, record)
        return _fit(job, run, goes_on, images, training, execution, verbose)


def finished_run(
    kind: Kind,
    output: str | os.PathLike,
    training: TrainingSettings,
    data: DataSettings | Mapping | None = None,
) -> Run | None:
    """Returns the run in a folder if it is what `train` would make, and finished.

    No image is read for it, and no network.
    """
    try:
        origin = kind.origin()
    except (FileNotFoundError, ValueError):
        return None
    data = kind.data_settings(data, origin)
    return _finished(output, settings_record(kind, training, data, origin), kind)


def _finished(output, wanted, kind):
    """Returns the run in a folder if it is the one that is wanted, and finished."""
    try:
        found = Run.open(output)
    except (FileNotFoundError, ValueError):
        return None
    if not found.is_finished or _differences(wanted, found, kind):
        return None
    found.tidy()
    return found


def check_goes_on(
    kind: Kind,
    output: str | os.PathLike,
    training: TrainingSettings,
    data: DataSettings | Mapping | None = None,
    resume: bool = True,
) -> None:
    """Raises an error where `train` would, as far as it is seen without images.

    Raises:
        FileNotFoundError: If the run that it starts from, or the data, is not there.
        ValueError: If a setting does not suit, or `output` has a run of other settings,
            which is to be resumed.
    """
    origin = kind.origin()
    data = kind.data_settings(data, origin)
    check_settings(data)
    kind.check_settings(training, data, origin)
    if resume:
        _found(output, settings_record(kind, training, data, origin), kind)


def settings_record(
    kind: Kind,
    training: TrainingSettings,
    data: DataSettings,
    origin: Origin | None,
) -> dict:
    """Returns the part of a run's record that is known before an image is read."""
    return {
        "format": FORMAT,
        "kind": kind.name,
        "options": kind.options(),
        "data": dataclasses.asdict(data),
        "training": dataclasses.asdict(sources.absolute(training)),
        "files": sources.digests(training),
        "origin": None if origin is None else origin.record(),
    }


def _prepare(training, execution, overwrite):
    """Returns the strategy that a run runs under.

    A strategy of several workers must be made before TensorFlow does anything.
    """
    if overwrite and execution.resume:
        raise ValueError(
            "Expected `overwrite` or `resume`, not both: a run is replaced or goes on. "
            "Received: both"
        )
    strategy = distribution.make_strategy(execution.strategy)
    _check_together(training, execution, strategy)
    if training.deterministic:
        keras.utils.set_random_seed(training.seed)
        tf.config.experimental.enable_op_determinism()
    return strategy


def _check_together(training, execution, strategy):
    """Raises a ValueError where Keras would not do what settings say."""
    if execution.jit_compile and training.deterministic:
        raise ValueError(
            "Expected no `jit_compile` with `deterministic`, for which Keras does not "
            "compile steps by XLA. Received: both"
        )
    if strategy.num_replicas_in_sync == 1:
        return
    for name, unset in (("gradient_accumulation", 1), ("clip_norm", None)):
        if (value := getattr(training, name)) != unset:
            raise ValueError(
                f"Expected no `{name}` on several devices, each of which has a part of "
                f"the gradients when Keras looks at them. Received: {name}={value} on "
                f"{strategy.num_replicas_in_sync} devices"
            )


def claimed(
    output: str | os.PathLike, overwrite: bool, strategy: tf.distribute.Strategy
) -> contextlib.AbstractContextManager[None]:
    """Keeps a folder for a training, as `writing`, by the chief for all its workers."""
    with strategy.scope():
        is_chief = distribution.worker_index() == 0
    return writing(output, overwrite, True) if is_chief else contextlib.nullcontext()


def _check_apart(output, origin):
    if origin and os.path.realpath(output) == os.path.realpath(origin.run.path):
        raise FileExistsError(
            f"Expected `output` to be another folder than `{origin.argument}`. "
            f"Received: '{output}'"
        )


def _found(output, wanted, kind):
    """Returns the run in a folder, which must be the one that is to go on, or None."""
    try:
        found = Run.open(output)
    except FileNotFoundError:
        return None
    differing = _differences(wanted, found, kind)
    for name, (expected, received) in differing.items():
        raise ValueError(
            f"Expected the settings of the run in '{found.path}' to go on with it: "
            f"{name} {received}. Received: {expected}"
        )
    return found


def _differences(wanted, found, kind):
    """Returns what differs in two runs, but for the place where their images are."""
    differing = differences(wanted, found.record, kind.default_options())
    if list(differing) == ["data"] and is_moved(*differing["data"]):
        known = found.record.get("fingerprint")
        if known and fingerprint(DataSettings(**wanted["data"])) == known:
            return {}
    return differing


def _goes_on(found):
    """Returns whether a run is gone on with; False if nothing of it is there.

    Raises:
        ValueError: If what its networks and its log need, to go on, is not there.
    """
    has_snapshots = bool(list_snapshots(found.snapshots))
    is_logged = os.path.isfile(found.log) and os.path.getsize(found.log) > 0
    names = [name for name in CHECKPOINTS if found.record[name]]
    if not (has_snapshots or is_logged or names):
        return False
    expected = [checkpoint_path(found.path, name) for name in names]
    expected += [found.log] if names else []
    missing = [path for path in expected if not os.path.isfile(path)]
    missing += [] if has_snapshots else [found.snapshots]
    if missing:
        raise ValueError(
            f"Expected all that the run in '{found.path}' left, to go on with it. "
            f"Received: a {found.describe()}, without "
            f"{', '.join(os.path.basename(path) for path in missing)}; `--overwrite` "
            "trains it anew"
        )
    return True


def _updated(found, record):
    """Returns a run that goes on with the same images, and what is new of it."""
    for name in ("fingerprint", "images", "views"):
        if found.record.get(name) != record[name]:
            raise ValueError(
                f"Expected the images of the run in '{found.path}' to go on with it. "
                f"Received: other {name}"
            )
    changing = ("data", "execution", "status", "versions", "machine", "planned")
    found.record.update({name: record[name] for name in changing if name in record})
    found.record.pop("error", None)
    return found


def _facts(network, monitor, views, images):
    """Returns the rest of the record of a run that begins."""
    deployed = strip_heads(network)
    return {
        # Without heads, those that it can be asked about.
        "views": views
        or ("rotations" if is_square(images.image_size) else "padded_rotations"),
        "status": "running",
        "epochs_done": 0,
        "monitor": monitor,
        "last": None,
        "best": None,
        "images": images.record(),
        "fingerprint": images.fingerprint(),
        "parameters": deployed.count_params(),
        "multiply_adds": models.multiply_adds(deployed),
        "parts": multiply_adds_by_part(network),
        "versions": versions("keras_hsakd", "keras", "tensorflow", "jax", "numpy"),
        "machine": machine(),
        "began": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0,
        "took": None,
    }


# Reading the logs after every 50 steps costs as good as nothing. Of larger batches than
# 64 of CIFAR's images there are fewer: their steps take longer, and between executions
# signals are heard, snapshots taken and losses looked at.
_MOST_STEPS = 50
_MOST_PIXELS = 2**22


def _steps_per_execution(execution, training, images):
    """Returns the steps that run in a row: as even parts of an epoch as there are."""
    if execution.steps_per_execution is not None:
        return execution.steps_per_execution
    if all(device.startswith("cpu") for device in keras.distribution.list_devices()):
        return 1
    pixels = math.prod(edges(images.image_size))
    most = _MOST_PIXELS // (training.batch_size * pixels)
    most = max(1, min(most, _MOST_STEPS, execution.snapshot_steps or _MOST_STEPS))
    steps = len(images.train)
    return math.ceil(steps / math.ceil(steps / most))


def compile_job(
    job: Job,
    training: TrainingSettings,
    images: Images,
    execution: ExecutionSettings,
) -> None:
    """Compiles a job's trainer with the optimizer and the schedule of the settings."""
    compiled = execution.jit_compile
    with distribution.scope_of(job.trainer):
        job.trainer.compile(
            optimizer=optimization.optimizer(training, len(images.train)),
            weighted_metrics=["accuracy"],
            jit_compile="auto" if compiled is None else compiled,
            steps_per_execution=_steps_per_execution(execution, training, images),
            **job.compiling,
        )


def _fit(job, run, goes_on, images, training, execution, verbose):
    """Trains, with the run folder up to date, and returns the finished run."""
    trainer = job.trainer
    is_chief = distribution.worker_index(trainer) == 0
    saving = SaveNetwork(job.network, run.path, job.monitor)
    recorder = Recorder(run, saving)
    keep_interrupt = KeepInterrupt()

    @contextlib.contextmanager
    def recorded():
        distribution.wait_for_workers(trainer)  # they have read what was there
        with contextlib.ExitStack() as stack:
            if is_chief:
                stack.enter_context(recorder.outcome(goes_on))
            stack.enter_context(keep_interrupt)
            stack.enter_context(images.errors_named())
            distribution.wait_for_workers(trainer)
            yield

    with images.errors_named():
        trainer.fit(
            images.train,
            validation_data=images.test,
            epochs=training.epochs,
            callbacks=[
                AroundFit(recorded),
                keep_interrupt,
                *callbacks(recorder, images, training, execution, is_chief),
            ],
            verbose=verbose if is_chief else 0,
            shuffle=False,
            augment_on_device=execution.augment_on_device,
        )
    distribution.wait_for_workers(trainer)  # they may read what was written
    return run


def callbacks(
    recorder: "Recorder",
    images: Images,
    training: TrainingSettings,
    execution: ExecutionSettings,
    is_chief: bool = True,
) -> list[keras.callbacks.Callback]:
    """Returns what is called in a training beside Keras' own.

    Args:
        recorder: Of the run that is trained.
        images: What it is trained on.
        training: Of which the moving average and the end matter.
        execution: Of which snapshots, pictures and the time matter.
        is_chief: Whether this process writes the files. Defaults to `True`.
    """
    run, monitor = recorder.run, recorder.saving.monitor
    shown = min(images.train.num_examples, len(images.train) * training.batch_size)
    of_training = []
    if training.ema is not None:  # before the others, which are to see the average
        of_training.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    if training.patience is not None:
        of_training.append(
            keras.callbacks.EarlyStopping(
                monitor, patience=training.patience, mode="max"
            )
        )
    files = [
        keras.callbacks.CSVLogger(run.log),
        TensorBoard(
            run, recorder.saving.network, images.test, execution.tensorboard_images
        ),
        recorder.saving,
        recorder.step_seconds,
        recorder,
    ]
    return [
        Throughput(shown),
        *of_training,
        *(files if is_chief else ()),
        Resume(
            run.snapshots,
            execution.snapshot_steps,
            execution.snapshot_seconds,
            execution.snapshots,
            execution.max_hours and execution.max_hours * 3600,
        ),
    ]


class AroundFit(FitCallback):
    """Surrounds a `fit` whose arguments and first batch were checked.

    Args:
        surround: Function that returns the context manager.
    """

    def __init__(self, surround: Callable[[], contextlib.AbstractContextManager]):
        super().__init__()
        self._surround = surround

    @contextlib.contextmanager
    def around_fit(self, model, fit):
        with self._surround():
            yield fit


class Recorder(keras.callbacks.Callback):
    """Keeps `run.json` up to date: a run that is killed has one, too.

    Args:
        run: The run that is trained.
        saving: The callback that saves its network.

    Attributes:
        step_seconds: The callback that measures its steps.
    """

    def __init__(self, run: Run, saving: SaveNetwork):
        super().__init__()
        self.run = run
        self.saving = saving
        self.step_seconds = StepSeconds()
        self.began = time.perf_counter()

    def get_state(self):
        """Returns what a snapshot keeps: the seconds until now."""
        return time.perf_counter() - self.began

    def set_state(self, state):
        """Goes on with what a snapshot kept."""
        self.began = time.perf_counter() - state

    def on_epoch_end(self, epoch, logs=None):
        self.write()

    def write(self):
        """Writes how far the run is."""
        self._update()
        self.run.write()

    def _update(self):
        """Records how far the run is."""
        last = self.saving.last
        seconds = time.perf_counter() - self.began
        self.run.record.update(
            epochs_done=last["epoch"] if last else 0,
            last=last,
            best=self.saving.best,
            seconds=round(seconds, 1),
            took={"seconds_a_step": self.step_seconds.median, "hours": seconds / 3600},
        )

    @contextlib.contextmanager
    def outcome(self, goes_on: bool = False):
        """Begins, and writes and draws how training in the block ends.

        Args:
            goes_on: As of `Run.begun`.
        """
        try:
            with self.run.begun(goes_on):
                try:
                    yield
                finally:
                    self._update()
                # Nothing is done any more for a run that has finished.
                self._draw({**self.run.record, "status": "finished"})
        except BaseException:
            self._draw(self.run.record)
            raise

    def _draw(self, record):
        if self.saving.last:
            with best_effort("curves.png"):
                picture = os.path.join(self.run.path, "curves.png")
                title = Run(self.run.path, record).describe()
                drawings.training_curves(self.run.log, picture, title)


def import_torch(
    output: str | os.PathLike,
    source: str | os.PathLike,
    model: str,
    data: DataSettings,
    prefix: str = "",
    overwrite: bool = False,
    verbose: int = 1,
) -> Run:
    """Makes a run folder of a PyTorch checkpoint, as if it had been trained here.

    The network is measured on the test images, so that its published accuracy can be
    compared. A network with heads can then teach (`Distill`), and a backbone without
    heads can be given some (`Teacher(backbone=folder)`).

    Args:
        output: Run folder to write.
        source: File as `keras_hsakd.checkpoints.load_torch` reads it.
        model: Which network it is, one of `keras_hsakd.models.names()`.
        data: The images that it was trained on.
        prefix: As in `keras_hsakd.checkpoints.load_torch`.
        overwrite: Whether to replace a run in `output`. Defaults to `False`.
        verbose: As in `keras.Model.evaluate`.

    Returns:
        The `Run`.

    Raises:
        BlockingIOError: If another process writes to `output`; says which.
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
    state = checkpoints.read_torch(source, prefix)

    def network_for(training, images):
        with_heads = checkpoints.has_heads(state)
        (network,) = networks.create(training, images, with_heads=with_heads)
        checkpoints.load_torch(network, state)
        return network

    options = {"source": os.path.abspath(source), "prefix": prefix}
    training = TrainingSettings(model=model)
    return _imported(output, network_for, options, training, data, overwrite, verbose)


def import_keras(
    output: str | os.PathLike,
    training: TrainingSettings,
    data: DataSettings,
    overwrite: bool = False,
    verbose: int = 1,
) -> Run:
    """Makes a run folder of a Keras classifier, as if it had been trained here.

    It can then teach: `Distill(teacher=folder, heads=False)`, or, once it was given
    heads by `Teacher(backbone=folder)`, with them.

    Args:
        output: As in `import_torch`.
        training: Which network: a `.keras` file, or a classifier of
            `keras.applications` with a file of weights. All else is left aside.
        data: As in `import_torch`.
        overwrite: As in `import_torch`.
        verbose: As in `import_torch`.

    Returns:
        The `Run`.

    Raises:
        BlockingIOError: As `import_torch`.
        FileExistsError: As `import_torch`.
        FileNotFoundError: As `import_torch`.
        ValueError: As `import_torch`; or if the network has other classes than the
            images, or takes others.

    Example:
    >>> training = TrainingSettings(model="mine.keras")
    >>> images = DataSettings(data="photographs")
    >>> import_keras("teacher", training, images)  # doctest: +SKIP
    """
    return _imported(output, networks.trained, {}, training, data, overwrite, verbose)


def _imported(output, network_for, options, training, data, overwrite, verbose):
    """Makes a run folder of a network that was trained elsewhere."""
    with writing(output, overwrite):
        data = absolute(data)
        images = load_to_measure(data, training.batch_size, training.seed)
        network = network_for(training, images)
        with images.errors_named():
            measured = measure(network, images.test, verbose=verbose)
        results = {"epoch": 0, **{f"val_{name}": v for name, v in measured.items()}}
        run = Run(
            os.path.abspath(output),
            {
                "format": FORMAT,
                "kind": "converted",
                "options": options,
                "data": dataclasses.asdict(data),
                "training": dataclasses.asdict(sources.absolute(training)),
                "files": sources.digests(training),
                "origin": None,
                "execution": {},
                **_facts(network, "val_accuracy", None, images),
                "last": results,
                "best": results,
            },
        )
        with run.begun():
            for checkpoint in CHECKPOINTS:
                path = checkpoint_path(run.path, checkpoint)
                save_with_results(network, path, results)
    return run
