"""LiteRT, once TensorFlow Lite: for phones and small machines."""

import functools
import re
import zipfile

import numpy as np
import tensorflow as tf

from keras_hsakd.export.formats import Format, Predict, in_graph, optional_module
from keras_hsakd.export.serving import Served


def write(served: Served, path: str, weights: str = "float32") -> None:
    """Writes a file of LiteRT's own operations; see `Format`.

    Args:
        served: What is written. The names of its classes are in the file as
            `labels.txt`, which is a ZIP archive, too.
        path: Path that does not exist.
        weights: `"float32"`; `"float16"`, which halves the file; or `"int8"`, with
            which the layers compute in 8 bits, in the ranges that they have on
            `served.images`.

    Raises:
        ValueError: If there are no images for `"int8"`, or the student has an operation
            that LiteRT lacks.
    """
    module = in_graph(served.model)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.serve.get_concrete_function()], module
    )
    if weights != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if weights == "int8":
        if served.images is None:
            raise ValueError(
                "Expected `images` for litert-int8, which finds the ranges of the "
                "layers on them: some 100 training images. Received: images=None"
            )
        # Each alone: the ranges are those of any batch.
        batches = [np.asarray(image)[np.newaxis] for image in served.images]
        converter.representative_dataset = lambda: ({"images": x} for x in batches)
    content = _converted(converter, served.student.name)
    with open(path, "wb") as file:
        file.write(content)
    if served.class_names is not None:
        with zipfile.ZipFile(path, "a") as archive:
            names = "".join(f"{name}\n" for name in served.class_names)
            archive.writestr("labels.txt", names)


def _converted(converter, name):
    """Returns the content of a file, of LiteRT's own operations alone.

    TensorFlow's may be added to a file, but no runtime that is installed with `pip`
    loads it then, so that it could not be checked.
    """
    try:
        return converter.convert()
    except Exception as error:  # its class is none of TensorFlow's API
        foreign = re.findall(r"^(?:TF Select|Custom) ops: (.*)$", str(error), re.M)
        if not foreign:
            raise
        raise ValueError(
            f"Expected `{name}` to have operations of LiteRT alone; the format "
            f"'saved_model' takes all. Received: {', '.join(sorted(set(foreign)))}"
        ) from None


def load(path: str) -> Predict:
    """Loads a file in LiteRT's own interpreter; see `Format`."""
    interpreter = optional_module("ai_edge_litert.interpreter").Interpreter(path)
    run = interpreter.get_signature_runner()
    return lambda images: run(images=images)


LITERT = Format(write, load, suffix=".tflite", runtime="ai-edge-litert")
LITERT_FLOAT16 = Format(
    functools.partial(write, weights="float16"),
    load,
    suffix="-float16.tflite",
    runtime="ai-edge-litert",
    tolerance=1e-2,
)
LITERT_INT8 = Format(
    functools.partial(write, weights="int8"),
    load,
    suffix="-int8.tflite",
    runtime="ai-edge-litert",
    tolerance=0.5,
)
