"""The first steps of a training, timed in a process of its own.

    python -m keras_hsakd.runs.timing TASK RESULT

reads a JSON file of what to do, and writes one of what came out. A process of its own
has its own peak of memory, and gives back what it took; `planning.py` starts them.
"""

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_hsakd import teachers
from keras_hsakd.callbacks import StepSeconds
from keras_hsakd.files import read_json, write_json
from keras_hsakd.heads import Signature, multiply_adds_by_part
from keras_hsakd.machine import machine, memory, versions
from keras_hsakd.optional import own_module
from keras_hsakd.runs import networks
from keras_hsakd.runs.costs import image_multiply_adds
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.images import Images, load
from keras_hsakd.runs.kinds import KINDS, Job, Origin
from keras_hsakd.runs.planning import identity
from keras_hsakd.runs.settings import DataSettings, ExecutionSettings, TrainingSettings
from keras_hsakd.runs.training import compile_job
from keras_hsakd.teachers import Teacher
from keras_hsakd.trainers import Distiller

# Steps that are measured, after the first one, which compiles: the fewest, the most.
_FEWEST, _MOST = 3, 20


class ConstantTeacher(Teacher):
    """A teacher that costs nothing, nearly as one whose outputs are in a cache."""

    def __init__(self, signature: Signature):
        self._signature = signature

    @property
    def signature(self):
        return self._signature

    def targets(self, batch, in_step):
        rows = ops.shape(batch["images"])[0]
        widths = self.signature.outputs
        return {name: ops.zeros((rows, width)) for name, width in widths.items()}


class _NotTrained(NamedTuple):
    """A network in place of the run that it will be."""

    made: keras.Model
    views: str

    def network(self, checkpoint):
        return self.made


class Pair:
    """Teacher, student and images of a plan.

    Args:
        task: What `plan` writes for this process.
    """

    def __init__(self, task: dict):
        self.task = task
        self.training = training = TrainingSettings(**task["training"])
        # Their files are not decoded to see whether they can be: that is done once
        # before a training, and is no part of its steps.
        self.images: Images = load(
            DataSettings(**task["data"]),
            training.batch_size,
            training.seed,
            {},
            training.drop_remainder,
        )

    def teacher(self) -> Origin:
        """Returns the teacher, trained or not."""
        if self.task["is_run"]:
            first, *others = (
                Origin(Run.open(path), "last", "teacher")
                for path in self.task["teacher"]
            )
            return first._replace(others=tuple(others))
        training = networks.of_another(self.training, self.task["teacher"])
        (made,) = networks.create(training, self.images, self.task["views"])
        return Origin(_NotTrained(made, self.task["views"]), "last", "teacher")

    def job(self, way: dict, training: TrainingSettings) -> Job:
        """Makes what is trained in a way."""
        kind = KINDS[way["kind"]](**way["options"])
        with networks.construction(training.precision, tf.distribute.get_strategy()):
            origin = self.teacher() if way["kind"] == "distill" else None
            job = kind.job(training, self.images, origin)
            if way["cached"]:
                trainer = Distiller(
                    ConstantTeacher(teachers.get(job.trainer.teacher).signature),
                    job.network,
                    views=job.trainer.views,
                    sampled_views=kind.sampled_views,
                    terms=job.trainer.terms,
                )
                job = job._replace(trainer=trainer)
        return job


def look(pair: Pair) -> dict:
    """Returns what a plan has to know of networks, images and device."""
    images, views = pair.images, pair.task["views"]
    all_networks = [origin.network() for origin in pair.teacher().all]
    teacher = teachers.get(all_networks)
    of_teacher = Counter()
    for network in all_networks:
        of_teacher.update(multiply_adds_by_part(network))
    (student,) = networks.create(pair.training, images, views)
    return {
        "num_views": Distiller(teacher, student, views=views).num_views,
        "parts": {
            "teacher": dict(of_teacher),
            "student": multiply_adds_by_part(student),
        },
        "widths": teacher.signature.outputs,
        "images": images.record(),
        "steps": len(images.train),
        "test_batches": len(images.test),
        "half_precision": _half_precision(),
        "machine": machine(),
        "versions": versions("keras_hsakd", "keras", "tensorflow", "jax"),
    }


def measure(pair: Pair) -> dict:
    """Trains for 20 steps after the first one, and returns what a step took.

    It is the training that a run is, on the images of a run.

    Returns:
        Dict of the median `seconds_a_step`, the number of `executions` behind it,
        `memory_bytes`, `seconds_a_test_batch`, and `of`, by what it is known.
    """
    way, images, seconds = pair.task["way"], pair.images, pair.task["seconds"]
    training = pair.training
    if way["kind"] == "teacher":
        training = networks.of_another(training, pair.task["teacher"])
    training = dataclasses.replace(
        training,
        precision=way["precision"],
        # No teacher is trained yet, and what it says may ruin a student: stand still.
        learning_rate=1e-9,
    )
    job = pair.job(way, training)
    compile_job(job, training, images, ExecutionSettings())
    memory_since = _memory_since()
    step, test_batch = _Few(seconds), _Few(seconds / 4)
    job.trainer.fit(
        images.train.repeat(),
        steps_per_epoch=1 + _MOST,
        callbacks=[step],
        shuffle=False,
        verbose=0,
    )
    found = {
        "seconds_a_step": step.median,
        "executions": step.count,
        "memory_bytes": memory_since(),
    }
    job.trainer.evaluate(
        images.test.repeat(), steps=1 + _MOST, callbacks=[test_batch], verbose=0
    )
    found["seconds_a_test_batch"] = test_batch.median
    multiply_adds = image_multiply_adds(job.trainer)
    settings = dataclasses.asdict(training)
    of = identity(way["kind"], settings, images.record(), multiply_adds)
    return {**found, "of": of}


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
        if capability >= (7, 0):
            return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"
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
    try:
        for module in task["modules"]:
            own_module(module)
        pair = Pair(task)
        return look(pair) if task["way"] is None else measure(pair)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return {"error": lines[0]}


if __name__ == "__main__":
    write_json(sys.argv[2], answer(read_json(sys.argv[1])))
