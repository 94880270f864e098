"""The model that is served: with its preprocessing, without auxiliary heads."""

import keras

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
