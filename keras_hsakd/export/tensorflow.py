"""SavedModels, which TF Serving takes."""

import os

import keras
import tensorflow as tf

from keras_hsakd.export.formats import Format, Predict, ship


def write(model: keras.Model, path: str) -> None:
    """Writes a served model as a SavedModel; see `Format`."""
    model.export(path, verbose=False)


def load(path: str) -> Predict:
    """Loads a SavedModel by its signature; see `Format`."""
    signature = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: signature(images=tf.constant(images))


SAVED_MODEL = Format(write, load)


def saved_model(
    student: keras.Model,
    path: str | os.PathLike,
    preprocessing: keras.layers.Layer | None = None,
) -> str:
    """Exports a student as a SavedModel for TF Serving, and checks the result.

    The auxiliary heads are stripped and the preprocessing baked in: the signature
    `serving_default` takes raw uint8 `images` and returns `logits` and
    `probabilities`. What was written is loaded again and compared with the student
    before it gets its name, so that nothing wrong or half-written is ever at `path`.

    Args:
        student: A functional model with or without auxiliary heads.
        path: Folder to make. TF Serving wants the model's version as its last part:
            `serving/student/1`.
        preprocessing: Layer from raw images to what the student was trained on, see
            `keras_hsakd.export.serving_model`. Defaults to `None`: the student takes
            raw values.

    Returns:
        The path.

    Raises:
        FileExistsError: If `path` exists.
        RuntimeError: If the Keras backend is not TensorFlow, or the reloaded model
            predicts something else than the student.
        ValueError: If the student does not map one batch of images to class logits.

    Example:
    >>> student = keras_hsakd.models.create("resnet8", num_classes=100)
    >>> preprocessing = keras_hsakd.data.info("cifar100").preprocessing()
    >>> keras_hsakd.export.saved_model(student, "serving/resnet8/1", preprocessing)
    'serving/resnet8/1'
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Expected the TensorFlow backend to export a SavedModel: save the student "
            "as a .keras file and export it under KERAS_BACKEND=tensorflow. "
            f"Received: backend '{keras.backend.backend()}'"
        )
    return ship(SAVED_MODEL, student, path, preprocessing)
