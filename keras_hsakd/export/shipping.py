"""A student in several formats at once."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd.export.formats import (
    REJECTED,
    Format,
    RejectedError,
    version_path,
    write_alone,
    writing_to,
)
from keras_hsakd.export.keras import KERAS
from keras_hsakd.export.litert import LITERT, LITERT_FLOAT16, LITERT_INT8
from keras_hsakd.export.measuring import Exam, Trial
from keras_hsakd.export.onnx import ONNX
from keras_hsakd.export.report import REPORT, write_report
from keras_hsakd.export.serving import Preprocessing, Served
from keras_hsakd.export.tensorflow import SAVED_MODEL, write_server_configs
from keras_hsakd.suggestions import did_you_mean

FORMATS: dict[str, Format] = {
    "saved_model": SAVED_MODEL,
    "litert": LITERT,
    "litert-float16": LITERT_FLOAT16,
    "litert-int8": LITERT_INT8,
    "onnx": ONNX,
    "keras": KERAS,
}


class Shipped(NamedTuple):
    """What became of a student in one format.

    Attributes:
        path: Path of the artefact, or `None` if there is none. One that lost more
            accuracy than it may is kept aside under a name that ends in `.rejected`.
        error: What went wrong, or `None`.
        report: Folder of its report, or `None`.
    """

    path: str | None = None
    error: Exception | None = None
    report: str | None = None


def ship(
    student: keras.Model,
    folder: str | os.PathLike,
    formats: Sequence[str] = ("saved_model",),
    preprocessing: Preprocessing | None = None,
    *,
    class_names: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    center_crop: float | None = None,
    features: str | None = None,
    trial: Trial | None = None,
) -> dict[str, Shipped]:
    """Exports a student in several formats, each checked, whole or absent.

    All are one version, a number: that in which `folder` ends, otherwise the next one
    in `folder`. What is there already is never replaced.

    | format | file | loaded by |
    | --- | --- | --- |
    | `saved_model` | `1/` | TF Serving; TensorFlow |
    | `litert` | `1.tflite` | LiteRT |
    | `litert-float16` | `1-float16.tflite` | LiteRT, half the size |
    | `litert-int8` | `1-int8.tflite` | LiteRT, computes in 8 bits |
    | `onnx` | `1.onnx` | ONNX Runtime |
    | `keras` | `1.keras` | Keras |

    Each takes raw uint8 `images`, a batch of any size, and gives `logits` and
    `probabilities`; what a SavedModel has beside is in
    `keras_hsakd.export.saved_model`. Beside the first one come `models.config` and
    `batching.config` for TF Serving, to be changed as you need.

    Args:
        student: A functional model with or without auxiliary heads.
        folder: Folder of the student's versions, or a path in it that ends in a number.
        formats: Names of formats. Defaults to a SavedModel alone.
        preprocessing: As in `keras_hsakd.export.saved_model`.
        class_names: As in `keras_hsakd.export.saved_model`. The LiteRT file has them
            as `labels.txt` (it is a ZIP archive, too), the ONNX file in its metadata.
        images: Real images as they will be served, uint8 of shape
            `(count, height, width, channels)`, on which each artefact is compared with
            the student; `litert-int8` needs some 100. Defaults to `None`, random ones.
        top_k: As in `keras_hsakd.export.saved_model`.
        temperature: As in `keras_hsakd.export.saved_model`.
        center_crop: As in `keras_hsakd.export.saved_model`.
        features: As in `keras_hsakd.export.saved_model`.
        trial: What each artefact is measured on before it gets its name, a
            `keras_hsakd.export.Trial`. Its report is then in a folder beside it, whose
            name ends in `.report`. Defaults to `None`: none is measured.

    Returns:
        A dict from the names of the formats to what became of each, a `Shipped`: an
        error in one does not keep back the others.

    Raises:
        BlockingIOError: If another process exports to the folder; says which.
        ValueError: If a format is unknown, the student does not map one batch of images
            to class logits, or an argument does not suit it; nothing is written then.

    Example:
    >>> student = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> ship(student, "serving/student", ["keras"])
    {'keras': Shipped(path='serving/student/1.keras', error=None, report=None)}
    """
    for name in formats:
        if name not in FORMATS:
            raise ValueError(
                f"Expected `formats` to be of {list(FORMATS)}. Received: {name!r}"
                + did_you_mean(name, FORMATS)
            )
    served = Served(
        student=student,
        preprocessing=preprocessing,
        temperature=temperature,
        class_names=class_names,
        images=images,
        top_k=top_k,
        center_crop=center_crop,
        features=features,
    )
    exam = None if trial is None else Exam(trial, served)
    with writing_to(os.path.dirname(os.path.abspath(version_path(folder)))):
        return _shipped(formats, served, exam, version_path(folder))


def _shipped(formats, served, exam, version):
    """Returns what became of a student in each format."""
    results = {}
    for name in formats:
        path = version + FORMATS[name].suffix
        try:
            if exam is None:
                results[name] = Shipped(write_alone(FORMATS[name], served, path))
            else:
                results[name] = _examined(name, exam, path)
        except Exception as error:  # converters raise anything
            results[name] = Shipped(error=error)
    if "saved_model" in results and results["saved_model"].error is None:
        write_server_configs(os.path.dirname(version))
    return results


def _examined(name, exam, path):
    """Returns what became of a student in one format that is measured, too."""
    for taken in (path + REPORT, path + REJECTED, path + REJECTED + REPORT):
        if os.path.lexists(taken):
            raise FileExistsError(
                f"Expected a version without a report. Received: '{path}', beside "
                f"'{taken}'"
            )
    report, error = {}, None

    def examine(written):
        report.update(exam.report(name, FORMATS[name], written))
        exam.check(report)

    try:
        path = write_alone(FORMATS[name], exam.served, path, examine)
    except RejectedError as rejected:
        path, error = rejected.path, rejected
    images = exam.images(mistake["index"] for mistake in report["mistakes"])
    return Shipped(path, error, write_report(report, images, path + REPORT))
