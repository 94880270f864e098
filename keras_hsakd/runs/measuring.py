"""A short measurement of a training, in a process of its own.

    python -m keras_hsakd.runs.measuring TASK RESULT

reads a JSON file of what to do, and writes one of what came out. A process of its own
has its own peak of memory, and gives back what it took; `planning.py` starts them.
"""

import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from keras_hsakd import views
from keras_hsakd.callbacks import StepSeconds
from keras_hsakd.files import read_json, write_json
from keras_hsakd.heads import multiply_adds_by_part, strip_heads
from keras_hsakd.machine import machine, memory, versions
from keras_hsakd.optional import own_module
from keras_hsakd.runs import networks
from keras_hsakd.runs.costs import Way
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.images import Images, check_same, load
from keras_hsakd.runs.kinds import Baseline, Job, Origin, Teacher
from keras_hsakd.runs.settings import DataSettings, ExecutionSettings, TrainingSettings
from keras_hsakd.runs.training import compile_job
from keras_hsakd.teachers import get
from keras_hsakd.teachers.cache_writing import Outputs
from keras_hsakd.terms import KL, CrossEntropy
from keras_hsakd.trainers import Distiller

# Steps that are measured, after the first one, which compiles: the fewest, the most.
_FEWEST, _MOST = 3, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Teacher, student and images of a plan.

    Attributes:
        teacher: Run folder of the teacher, or its name in the zoo.
        is_run: Whether it is a run folder.
        views: Name of the views that the heads tell apart.
        training: How the student is trained.
        data: Which images.
    """

    teacher: str
    is_run: bool
    views: str
    training: TrainingSettings
    data: DataSettings

    @classmethod
    def from_json(cls, content: dict) -> "Pair":
        """Returns the pair of what `dataclasses.asdict` made of one."""
        training = TrainingSettings(**content["training"])
        data = DataSettings(**content["data"])
        return cls(**{**content, "training": training, "data": data})

    def images(self) -> Images:
        """Returns the images, whose files are not all decoded to see whether they can.

        That is done once before a training, and is no part of its steps.
        """
        training = self.training
        return load(
            self.data, training.batch_size, training.seed, {}, training.drop_remainder
        )

    def teacher_network(self, images: Images) -> keras.Model:
        """Returns the teacher, trained or not."""
        if self.is_run:
            origin = Origin(Run.open(self.teacher), "last", "teacher")
            check_same(origin.run, images, "teacher")
            return origin.network()
        training = networks.of_another(self.training, self.teacher)
        with networks.construction(training.precision, tf.distribute.get_strategy()):
            (teacher,) = networks.create(training, images, self.views)
        return teacher

    def job(self, way: Way, training: TrainingSettings, images: Images) -> Job:
        """Makes the network and its trainer.

        Args:
            way: The way to train.
            training: How its network is trained.
            images: The images.
        """
        teacher = self.teacher_network(images) if way.kind == "distill" else None
        with networks.construction(training.precision, tf.distribute.get_strategy()):
            if way.kind == "teacher":
                return Teacher(views=self.views).job(training, images, None)
            if way.kind == "baseline":
                return Baseline().job(training, images, None)
            (student,) = networks.create(
                training, images, self.views, with_heads=bool(way.heads)
            )
            if not way.heads:
                return Job(Distiller(strip_heads(teacher), student), student)
            kind = ConstantTeacher if way.cached else Distiller
            few = way.views < len(views.get(self.views))
            arguments = {"sampled_views": way.views} if few else {}
            learning = [KL(3.0), KL(3.0, on=list(way.heads))]
            distiller = kind(
                teacher,
                student,
                views=self.views,
                terms=[CrossEntropy(), *learning],
                **arguments,
            )
        return Job(distiller, student)


class ConstantTeacher(Distiller):
    """A distiller whose teacher costs nothing, nearly as one that a cache replaces."""

    def targets(self, batch):
        rows = ops.shape(batch["images"])[0]
        return {
            name: ops.zeros((rows, output.shape[-1]), output.dtype)
            for name, output in self.teacher.output.items()
        }


def look(pair: Pair) -> dict:
    """Returns what a plan has to know of networks, images and device.

    Raises:
        FileNotFoundError: If the data are not there.
        ImportError: If a package is missing.
        ValueError: If something does not suit; says what.
    """
    images = pair.images()
    teacher = pair.teacher_network(images)
    (student,) = networks.create(pair.training, images, pair.views)
    distiller = Distiller(teacher, student, views=pair.views)
    return {
        "parts": {
            "teacher": multiply_adds_by_part(teacher),
            "student": multiply_adds_by_part(student),
        },
        "widths": {name: x.shape[-1] for name, x in teacher.output.items()},
        "pairs": distiller.pairs,
        "num_views": distiller.num_views,
        "images": {
            "train": images.train.num_examples,
            "test": images.test.num_examples,
            "image_size": images.image_size,
            "classes": len(images.class_names),
        },
        "steps": len(images.train),
        "test_batches": len(images.test),
        "half_precision": _half_precision(),
        "machine": machine(),
        "versions": versions("keras_hsakd", "keras", "tensorflow", "jax"),
    }


def measure(pair: Pair, way: Way, model: str, seconds: float) -> dict:
    """Trains for 20 steps after the first one, and returns what a step took.

    It is the training that a run is, on the images of a run.

    Args:
        pair: Teacher, student and images.
        way: The way to train.
        model: Name of the network that is trained.
        seconds: After how many fewer steps are enough, three at least.

    Returns:
        Dict of the median `seconds_a_step`, the number of `executions` behind it,
        `memory_bytes`, `seconds_a_test_batch` and, of a cached teacher,
        `seconds_a_cached_batch`.
    """
    images = pair.images()
    training = dataclasses.replace(
        networks.of_another(pair.training, model),
        precision=way.precision,
        # No teacher is trained yet, and what it says may ruin a student: stand still.
        learning_rate=1e-9,
    )
    job = pair.job(way, training, images)
    compile_job(job, training, images, ExecutionSettings())
    memory_since = _memory_since()
    step = _Few(seconds)
    job.trainer.fit(
        images.train.repeat(),
        steps_per_epoch=1 + _MOST,
        callbacks=[step],
        shuffle=False,
        verbose=0,
    )
    measured = {
        "seconds_a_step": step.median,
        "executions": step.count,
        "memory_bytes": memory_since(),
    }
    test_batch = _Few(seconds / 4)
    job.trainer.evaluate(
        images.test.repeat(), steps=1 + _MOST, callbacks=[test_batch], verbose=0
    )
    measured["seconds_a_test_batch"] = test_batch.median
    if way.cached:
        trainer, seconds_each = job.trainer, []
        size = images.train.pipeline.batch_size
        outputs = Outputs(get(trainer.teacher), trainer.view_functions, size)
        for batch, *_ in images.train.repeat().take(2 + _FEWEST):
            begun = time.perf_counter()
            outputs.of(batch)
            seconds_each.append(time.perf_counter() - begun)
        measured["seconds_a_cached_batch"] = statistics.median(seconds_each[1:])
    return measured


class _Few(StepSeconds):
    """Measures steps of training or evaluation, and ends it after some seconds."""

    def __init__(self, seconds):
        super().__init__()
        self._until = seconds

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.count >= _FEWEST and sum(self._seconds) >= self._until:
            self.model.stop_training = self.model.stop_evaluating = True

    def on_test_begin(self, logs=None):
        self.on_epoch_begin(0)

    def on_test_batch_begin(self, batch, logs=None):
        self.on_train_batch_begin(batch)

    def on_test_batch_end(self, batch, logs=None):
        self.on_train_batch_end(batch)


def _half_precision():
    """Returns the dtype policy that the device is faster with, or None."""
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        capability = details.get("compute_capability", (0, 0))
        if capability >= (8, 0):
            return "mixed_bfloat16"
        if capability >= (7, 0):
            return "mixed_float16"
    return None


def _memory_since() -> Callable[[], int | None]:
    """Returns a function that tells the most bytes since, above those in use now.

    Of the first GPU, else of the process; None where the system does not tell.
    """
    if tf.config.list_physical_devices("GPU"):
        info = tf.config.experimental.get_memory_info
        tf.config.experimental.reset_memory_stats("GPU:0")
        before = info("GPU:0")["current"]
        return lambda: info("GPU:0")["peak"] - before
    if memory() is None:
        return lambda: None
    # The peak of the imports is none of the training's.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = memory()
    return lambda: memory(peak=True) - before


def answer(task: dict) -> dict:
    """Returns what came out of a task, an error too."""
    pair = Pair.from_json(task["pair"])
    try:
        for module in task["modules"]:
            own_module(module)
        if task["way"] is None:
            return look(pair)
        way = Way(**task["way"])
        return measure(pair, way, task["model"], task["seconds"])
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return {"error": lines[0], "kind": type(error).__name__}


if __name__ == "__main__":
    write_json(sys.argv[2], answer(read_json(sys.argv[1])))
