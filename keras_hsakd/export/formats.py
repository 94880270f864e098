"""What the formats have in common: a student is written, loaded again, compared."""

import contextlib
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd import lock, optional
from keras_hsakd.compat import layers_of
from keras_hsakd.export.metrics import softmax
from keras_hsakd.export.serving import Served

# From raw uint8 images to named predictions.
Predict = Callable[[np.ndarray], dict[str, np.ndarray]]


class Format(NamedTuple):
    """A format that students are shipped in.

    Attributes:
        write: Function `write(served, path)` that writes a `Served` to a path that
            does not exist.
        load: Function `load(path)` that returns what was written as a function of
            images, as whoever serves it loads it.
        suffix: What the names of its files end in, after the version.
        runtime: Name of the package that loads it.
        tolerance: Float, the largest difference that is let pass between its
            predictions and the student's, as a part of the largest. Operations that a
            runtime fuses or reorders round in another place: in float32 the difference
            is 6e-6 for the deepest networks, and 1e-6 for others. Wrong weights or
            another preprocessing are off by the size of the predictions.
    """

    write: Callable[[Served, str], None]
    load: Callable[[str], Predict]
    suffix: str
    runtime: str
    tolerance: float = 1e-4


class RejectedError(RuntimeError):
    """An artefact predicts as the student, roughly, and is not good enough.

    Attributes:
        path: Where it is kept, under a name that no server takes.
    """

    path: str


def version_path(folder: str | os.PathLike) -> str:
    """Returns the path of the version that an export makes.

    Args:
        folder: A path that ends in a number, which is the version itself; or a folder
            of versions, in which it is the next one.

    Returns:
        The path.

    Example:
    >>> version_path("serving/student/7")
    'serving/student/7'
    >>> version_path("serving/student")
    'serving/student/1'
    """
    folder = os.path.normpath(folder)
    if re.fullmatch(r"\d+", os.path.basename(folder)):
        return folder
    there = os.listdir(folder) if os.path.isdir(folder) else []
    numbers = [int(found[0]) for name in there if (found := re.match(r"\d+", name))]
    return os.path.join(folder, str(max(numbers, default=0) + 1))


# Names begin with it of what is not whole; no server takes that for a version.
UNFINISHED = ".export-"
# What is added to the name of an artefact that is kept aside.
REJECTED = ".rejected"


def write_checked(
    format: Format,
    served: Served,
    path: str | os.PathLike,
    examine: Callable[[str], None] | None = None,
) -> str:
    """Writes a student in a format, and checks what was written.

    It is loaded again and compared with the student before it gets its name, so that
    nothing wrong or half-written is ever at `path`. One process at a time writes to a
    folder; the next one removes what was left by one that was killed.

    Args:
        format: The `Format`.
        served: What is written.
        path: Path that does not exist.
        examine: Function of the path where it lies before it gets its name, which
            raises a `RejectedError` if it is not good enough; it is then kept at `path`
            and `.rejected`. Defaults to `None`: what passes the check is good enough.

    Returns:
        The path.

    Raises:
        BlockingIOError: If another process exports to the folder; says which.
        FileExistsError: If `path` exists.
        RejectedError: If `examine` raised it.
        RuntimeError: If what was written predicts something else than the student, or
            the Keras backend is not TensorFlow.
    """
    path = os.path.normpath(path)
    with writing_to(os.path.dirname(os.path.abspath(path))):
        return write_alone(format, served, path, examine)


def write_alone(
    format: Format,
    served: Served,
    path: str,
    examine: Callable[[str], None] | None = None,
) -> str:
    """Does as `write_checked`, within `writing_to`."""
    check_backend()
    _check_free(path)
    parent = os.path.dirname(os.path.abspath(path))
    temporary = tempfile.mkdtemp(prefix=UNFINISHED, dir=parent)
    try:
        written = os.path.join(temporary, f"model{format.suffix}")
        format.write(served, written)
        with tf.device("CPU"):  # a GPU may compute in TF32
            _check(format, served, format.load(written))
        try:
            if examine is not None:
                examine(written)
        except RejectedError as error:
            error.path = path + REJECTED
            _name(written, error.path)
            raise
        _name(written, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it hides no other error
    return path


@contextlib.contextmanager
def writing_to(folder: str) -> Iterator[None]:
    """Keeps a folder for the exports of this process, within the context.

    Args:
        folder: The folder; what exports that were killed left there is removed.

    Raises:
        BlockingIOError: If another process exports to it; says which.
    """
    with lock.held(folder) as is_locked:
        if is_locked:  # otherwise it may be that of an export under way
            for name in os.listdir(folder):
                if name.startswith(UNFINISHED):
                    shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        yield


def check_backend() -> None:
    """Raises a RuntimeError unless the Keras backend is TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Expected the TensorFlow backend to export a student: save it as a .keras "
            "file and export that under KERAS_BACKEND=tensorflow. "
            f"Received: backend '{keras.backend.backend()}'"
        )


def _name(written, path):
    """Gives an artefact its name, which no other has."""
    _check_free(path)
    os.rename(written, path)


def _check_free(path):
    if os.path.lexists(path):
        raise FileExistsError(
            f"Expected `path` to be one that does not exist. Received: '{path}'"
        )


def _check(format, served, predict):
    """Raises a RuntimeError if what was loaded does not predict as the student."""
    tolerance = format.tolerance
    if _computes_in_half(served.student):
        tolerance = max(tolerance, 3e-2)

    def check(name, received, expected):
        if received.shape != expected.shape:
            difference = f"has shape {received.shape} instead of {expected.shape}"
        else:
            most = float(np.max(np.abs(received - expected)))
            if most <= tolerance * float(np.max(np.abs(expected))):
                return
            difference = f"differs by {most}"
        raise RuntimeError(
            f"Expected the exported model to predict as `{served.student.name}`. "
            f"Received: '{name}' {difference}"
        )

    images, outputs = served.sample
    for count in (len(images), 1):
        received, own = predict(images[:count]), outputs[:count]
        received = {name: np.asarray(value) for name, value in received.items()}
        logits = received["logits"].astype("float64")
        if _are_probabilities(own):
            check("probabilities", softmax(logits), own)
        else:
            check("logits", logits, own)
        check(
            "probabilities",
            received["probabilities"],
            softmax(logits / served.temperature),
        )


def _computes_in_half(student):
    dtypes = {layer.compute_dtype for layer in layers_of(student)}
    return bool(dtypes & {"float16", "bfloat16"})


def _are_probabilities(values):
    return values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-3)


def in_graph(model: keras.Model) -> tf.Module:
    """Returns what is served for converters: a module with a function `serve`.

    Args:
        model: What `serving_model` returned.
    """
    module = tf.Module()
    module.kept = [variable.value for variable in model.variables]
    spec = tf.TensorSpec(model.input.shape, tf.uint8, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def serve(images):
        with plain_operations():
            return model(images, training=False)

    module.serve = serve
    return module


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Has functions that are called while a graph is made become a part of it.

    Keras compiles a grouped convolution by XLA, as a function: no converter takes it,
    and a server may be built without XLA.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


optional_module = functools.partial(
    optional.optional_module,
    purpose="this format",
    requirement="'keras_hsakd[export]'",
)
