"""What the formats have in common: a student is written, loaded again, compared."""

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd.export.serving import serving_model

# From raw uint8 images to named predictions.
Predict = Callable[[np.ndarray], dict[str, np.ndarray]]


class Format(NamedTuple):
    """A format that students are shipped in.

    Attributes:
        write: Function `write(model, path)` that writes what `serving_model` returned
            to a path that does not exist.
        load: Function `load(path)` that returns what was written as a function of
            images, as whoever serves it loads it.
    """

    write: Callable[[keras.Model, str], None]
    load: Callable[[str], Predict]


def ship(
    format: Format,
    student: keras.Model,
    path: str | os.PathLike,
    preprocessing: keras.layers.Layer | None = None,
) -> str:
    """Writes a student in a format, and checks what was written.

    It is loaded again and compared with the student before it gets its name, so that
    nothing wrong or half-written is ever at `path`.

    Args:
        format: The `Format`.
        student: A functional model with or without auxiliary heads.
        path: Path that does not exist.
        preprocessing: As in `serving_model`.

    Returns:
        The path.

    Raises:
        FileExistsError: If `path` exists.
        RuntimeError: If what was written predicts something else than the student.
        ValueError: As in `serving_model`.
    """
    path = os.fspath(path)
    if os.path.exists(path):
        raise FileExistsError(
            f"Expected `path` to be a folder that does not exist. Received: '{path}'"
        )
    model = serving_model(student, preprocessing)
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".export-", dir=parent)
    try:
        written = os.path.join(temporary, "model")
        format.write(model, written)
        _check(format.load(written), model)
        os.rename(written, path)
    finally:
        shutil.rmtree(temporary)
    return path


def _check(predict, model):
    """Raises a RuntimeError if a loaded model does not predict as the one written."""
    size = [edge or 32 for edge in model.input_shape[1:]]
    images = np.random.default_rng(0).integers(0, 256, (2, *size), "uint8")
    received = predict(images)
    for name, value in model(images, training=False).items():
        difference = float(np.max(np.abs(received[name] - value)))
        # On a CPU the two are equal; a GPU may choose other kernels, in TF32 or half
        # precision. Wrong weights or preprocessing are off by the size of the logits.
        if not difference <= 1e-2 * float(np.max(np.abs(value))):
            raise RuntimeError(
                f"Expected the exported model to predict as `{model.name}`. "
                f"Received: '{name}' differs by {difference}"
            )
