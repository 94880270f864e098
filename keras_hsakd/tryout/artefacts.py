"""Artefacts of an export, asked about image files: each by its own runtime."""

import json
import os
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.data.decoding import decode_file
from keras_hsakd.export.formats import optional_module
from keras_hsakd.export.onnx import CLASS_NAMES
from keras_hsakd.export.serving import as_pixels
from keras_hsakd.tryout.answers import (
    Answer,
    Answering,
    likeliest,
    timed,
    warmed_up,
)

# Longer edge of a whole image that is shown.
_SHOWN = 256


class _Loaded(NamedTuple):
    """An artefact as it was loaded.

    Attributes:
        predict: Function from uint8 images, or from files, to named outputs.
        size: Height and width of the images; `None` if it takes files.
        class_names: Names of the classes, where the artefact has them.
    """

    predict: Callable[[np.ndarray], dict]
    size: tuple[int, int] | None
    class_names: list[str] | None


def _saved_model(path):
    loaded = tf.saved_model.load(path)
    asset = os.path.join(path, "assets", "class_names.txt")
    class_names = None
    if os.path.isfile(asset):
        with open(asset, encoding="utf-8") as file:
            class_names = file.read().splitlines()
    # The signature of files reads them as evaluation does.
    takes_files = "image_bytes" in loaded.signatures
    name, taken = ("image_bytes",) * 2 if takes_files else ("serving_default", "images")
    signature = loaded.signatures[name]

    def predict(given, _kept=loaded):  # without it the signature loses its variables
        return signature(**{taken: tf.constant(given)})

    shape = signature.structured_input_signature[1][taken].shape
    return _Loaded(predict, None if takes_files else _size(shape), class_names)


def _litert(path):
    interpreter = optional_module("ai_edge_litert.interpreter").Interpreter(path)
    run = interpreter.get_signature_runner()
    class_names = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            class_names = archive.read("labels.txt").decode().splitlines()
    shape = run.get_input_details()["images"]["shape_signature"]
    return _Loaded(lambda images: run(images=images), _size(shape), class_names)


def _onnx(path):
    runtime = optional_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    class_names = session.get_modelmeta().custom_metadata_map.get(CLASS_NAMES)

    def predict(images):
        (probabilities,) = session.run(["probabilities"], {"images": images})
        return {"probabilities": probabilities}

    (images,) = session.get_inputs()
    return _Loaded(
        predict, _size(images.shape), class_names and json.loads(class_names)
    )


def _keras(path):
    model = keras.saving.load_model(path, compile=False)
    return _Loaded(model.predict_on_batch, _size(model.input_shape), None)


def _size(shape):
    """Returns height and width of images that have both, and three channels."""
    _, *edges, channels = shape
    if channels != 3 or not all(isinstance(x, int | np.integer) for x in edges):
        raise ValueError(
            f"Expected images of one size with three channels, not {shape}"
        )
    height, width = edges
    return int(height), int(width)


# By the ending of its name: what a file is called, and how it is loaded.
_FILES: dict[str, tuple[str, Callable[[str], _Loaded]]] = {
    ".tflite": ("LiteRT", _litert),
    ".onnx": ("ONNX", _onnx),
    ".keras": ("Keras", _keras),
}


def open_artefact(path: str | os.PathLike) -> Answering:
    """Loads what `keras-hsakd export` wrote.

    Args:
        path: Folder of a SavedModel, or file that ends in `.tflite`, `.onnx` or
            `.keras`.

    Returns:
        An `Answering`.

    Raises:
        FileNotFoundError: If there is no artefact.
        ImportError: If its runtime is not installed.
        ValueError: If it cannot be loaded, or takes or gives something else than an
            export does.

    Example:
    >>> student = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> path = keras_hsakd.export.saved_model(student, "serving/student/1")
    >>> image = tf.io.encode_png(tf.zeros((40, 50, 3), tf.uint8)).numpy()
    >>> answer = open_artefact(path)(image)
    >>> answer.title, len(answer.predictions)
    ('SavedModel · serving/student/1', 5)
    """
    path = os.fspath(path)
    ending = os.path.splitext(path)[1]
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        title, load = "SavedModel", _saved_model
    elif os.path.isfile(path) and ending in _FILES:
        title, load = _FILES[ending]
    else:
        raise FileNotFoundError(
            "Expected a run folder, the folder of a SavedModel, or a file that ends in "
            f"{', '.join(_FILES)}. Received: '{path}', which "
            + ("is none of them" if os.path.lexists(path) else "does not exist")
        )
    try:
        answering = _answering(f"{title} · {path}", load(path))
        # Whatever gives no probabilities shows now.
        return warmed_up(answering)
    except ImportError:
        raise
    except Exception as error:  # each runtime raises what it likes
        raise ValueError(
            f"Expected '{path}' to be what `keras-hsakd export` wrote. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _answering(title, loaded):
    def answer(content):
        image = decode_file(content, "")
        if loaded.size is None:
            given, shown = [content], _shrunk(image)
        else:
            resized = tf.image.resize(image, loaded.size, antialias=True)
            shown = as_pixels(resized)
            given = shown[np.newaxis]
        outputs, milliseconds = timed(loaded.predict, given)
        probabilities = np.asarray(outputs["probabilities"])[0]
        predictions = likeliest(probabilities, loaded.class_names)
        return Answer(title, predictions, milliseconds, shown)

    return answer


def _shrunk(image):
    if max(image.shape) <= _SHOWN:
        return image.numpy()
    height, width, _ = image.shape
    size = [max(1, edge * _SHOWN // max(height, width)) for edge in (height, width)]
    return as_pixels(tf.image.resize(image, size, antialias=True))
