"""Students as SavedModels, with their preprocessing and without their heads."""

import os
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.heads import strip_heads


def serving_model(
    student: keras.Model, preprocessing: keras.layers.Layer | None = None
) -> keras.Model:
    """Returns the model that is served: raw images in, named predictions out.

    Args:
        student: A functional model with or without auxiliary heads.
        preprocessing: Layer from raw images, values 0 to 255, to what the student was
            trained on, for example `keras_hsakd.data.info("cifar100").preprocessing()`.
            Defaults to `None`: the student takes raw values, as one does that has its
            preprocessing inside.

    Returns:
        A functional `keras.Model` from uint8 images `(B, height, width, channels)` to
        `{"logits": (B, N), "probabilities": (B, N)}`, sharing the student's weights.

    Raises:
        ValueError: If the student does not map one batch of images to class logits.

    Example:
    >>> model = serving_model(keras_hsakd.models.create("resnet8", num_classes=100))
    >>> model.input.dtype, sorted(model.output)
    ('uint8', ['logits', 'probabilities'])
    """
    plain = strip_heads(student)
    shape = plain.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or len(plain.output_shape) != 2:
        raise ValueError(
            f"Expected `student` to map images (batch, height, width, channels) to "
            f"class logits (batch, classes). Received: `{student.name}` from {shape} "
            f"to {plain.output_shape}"
        )
    images = keras.Input(shape[1:], dtype="uint8", name="images")
    if preprocessing is None:
        preprocessing = keras.layers.Rescaling(1.0, name="cast")
    logits = plain(preprocessing(images))
    probabilities = keras.layers.Softmax(dtype=logits.dtype, name="probabilities")
    outputs = {"logits": logits, "probabilities": probabilities(logits)}
    return keras.Model(images, outputs, name=f"{student.name}_serving")


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
        preprocessing: As in `serving_model`.

    Returns:
        The path.

    Raises:
        FileExistsError: If `path` exists.
        RuntimeError: If the Keras backend is not TensorFlow, or the reloaded model
            predicts something else than the student.
        ValueError: As in `serving_model`.

    Example:
    >>> student = keras_hsakd.models.create("resnet8", num_classes=100)
    >>> preprocessing = keras_hsakd.data.info("cifar100").preprocessing()
    >>> keras_hsakd.export.saved_model(student, "serving/resnet8/1", preprocessing)
    'serving/resnet8/1'
    """
    path = os.fspath(path)
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Expected the TensorFlow backend to export a SavedModel: save the student "
            "as a .keras file and export it under KERAS_BACKEND=tensorflow. "
            f"Received: backend '{keras.backend.backend()}'"
        )
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
        model.export(written, verbose=False)
        _check(written, model)
        os.rename(written, path)
    finally:
        shutil.rmtree(temporary)
    return path


def _check(path, model):
    """Raises a RuntimeError if a SavedModel does not predict as its model."""
    size = [edge or 32 for edge in model.input_shape[1:]]
    images = np.random.default_rng(0).integers(0, 256, (2, *size), "uint8")
    expected = model(images, training=False)
    received = tf.saved_model.load(path).signatures["serving_default"](
        images=tf.constant(images)
    )
    for name, value in expected.items():
        difference = float(np.max(np.abs(received[name] - value)))
        # On a CPU the two are equal; a GPU may choose other kernels, in TF32 or half
        # precision. Wrong weights or preprocessing are off by the size of the logits.
        if not difference <= 1e-2 * float(np.max(np.abs(value))):
            raise RuntimeError(
                f"Expected the exported model to predict as `{model.name}`. "
                f"Received: '{name}' differs by {difference}"
            )
