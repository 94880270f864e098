"""What is served: a student with its preprocessing, and what belongs to it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd.classifier import Classifier
from keras_hsakd.heads import strip_heads
from keras_hsakd.logits import check_logits
from keras_hsakd.suggestions import did_you_mean

# Images on which an artefact is compared with the student.
_SAMPLE = 16

Preprocessing = keras.layers.Layer | Callable


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Returns images of floats from 0 to 255 as they are served, uint8.

    Example:
    >>> as_pixels([0.4, 254.6]).tolist()
    [0, 255]
    """
    return np.rint(images).clip(0, 255).astype("uint8")


def serving_model(
    student: keras.Model,
    preprocessing: Preprocessing | None = None,
    temperature: float = 1.0,
) -> keras.Model:
    """Returns the model that is served: raw images in, named predictions out.

    Args:
        student: A functional model with or without auxiliary heads.
        preprocessing: Layer, model or function of Keras operations from raw images,
            values 0 to 255, to what the student was trained on, for example
            `keras_hsakd.data.info("cifar100").preprocessing()`. A model's own input
            decides on the size of the images that are served. Defaults to `None`: the
            student takes raw values, as one does that has its preprocessing inside.
        temperature: Float that the logits are divided by before the softmax, see
            `fit_temperature`. Defaults to 1.

    Returns:
        A functional `keras.Model` from uint8 images `(B, height, width, channels)` to
        `{"logits": (B, N), "probabilities": (B, N)}`, sharing the student's weights.

    Raises:
        ValueError: If the student does not map one batch of images to class logits,
            `preprocessing` does not give the images that it takes, or the temperature
            is not positive.

    Example:
    >>> model = serving_model(keras_hsakd.models.create("resnet8", num_classes=100))
    >>> model.input.dtype, sorted(model.output)
    ('uint8', ['logits', 'probabilities'])
    """
    images, _, _, outputs = _tensors(student, preprocessing, temperature)
    return keras.Model(images, outputs, name=f"{student.name}_serving")


def _tensors(student, preprocessing, temperature):
    """Returns uint8 images, the same as floats and preprocessed, and the outputs."""
    if not 0 < temperature < float("inf"):
        raise ValueError(
            "Expected `temperature` to be a number > 0. "
            f"Received: temperature={temperature!r}"
        )
    plain = strip_heads(student)
    check_logits(plain)
    shape = plain.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or len(plain.output_shape) != 2:
        raise ValueError(
            f"Expected `student` to map images (batch, height, width, channels) to "
            f"class logits (batch, classes). Received: `{student.name}` from {shape} "
            f"to {plain.output_shape}"
        )
    (raw,) = _inputs(preprocessing) or plain.inputs
    images = keras.Input(raw.shape[1:], dtype="uint8", name="images")
    taken = floats = keras.ops.cast(images, "float32")
    if not keras.backend.is_float_dtype(raw.dtype):
        taken = keras.ops.round(floats)  # which Keras would truncate
    if preprocessing is not None:
        taken = _preprocessed(taken, preprocessing, shape)
    logits = plain(taken)
    scaled = logits if temperature == 1 else logits / temperature
    probabilities = keras.layers.Softmax(dtype=logits.dtype, name="probabilities")
    outputs = {"logits": logits, "probabilities": probabilities(scaled)}
    return images, floats, taken, outputs


def _inputs(preprocessing):
    """Returns the symbolic images that a built model takes; none of anything else."""
    inputs = getattr(preprocessing, "inputs", None) or []
    return inputs if len(inputs) == 1 else []


def _preprocessed(images, preprocessing, shape):
    """Returns preprocessed symbolic images, as a student takes them."""
    try:
        result = preprocessing(images)
        given = tuple(result.shape)
    except Exception as error:  # it may be anything
        raise ValueError(
            "Expected `preprocessing` to be a Keras layer, model or function of Keras "
            f"operations that takes images of shape {tuple(images.shape)}. "
            f"Received: {preprocessing!r}, which fails with {type(error).__name__}: "
            f"{error}"
        ) from error
    if len(given) != len(shape) or any(
        None not in sizes and sizes[0] != sizes[1]
        for sizes in zip(given, shape, strict=True)
    ):
        raise ValueError(
            f"Expected `preprocessing` to give images of shape {shape}, as `student` "
            f"takes them. Received: {given}, of images of shape {tuple(images.shape)}"
        )
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A student as it is served, and what belongs to it; a format takes what it can.

    Attributes:
        student: A functional model with or without auxiliary heads.
        preprocessing: As in `serving_model`.
        temperature: As in `serving_model`.
        class_names: Names of the classes, in the order of the logits. Defaults to
            `None`: unknown.
        images: Real images as they will be served, uint8 of shape
            `(count, height, width, channels)`. Defaults to `None`: there are none.
        top_k: Int, number of the most likely classes that are told beside. Defaults to
            `None`, none.
        center_crop: Float, the part of the shorter side of an encoded image that is
            kept, as in `keras_hsakd.data.image_folder`. Defaults to `None`, which
            resizes whole images.
        features: Name of a layer of the student whose outputs are served, too. Defaults
            to `None`, none.

    Raises:
        ValueError: As in `serving_model`, or if anything else does not suit.
    """

    student: keras.Model
    preprocessing: Preprocessing | None = None
    temperature: float = 1.0
    class_names: Sequence[str] | None = None
    images: np.ndarray | None = None
    top_k: int | None = None
    center_crop: float | None = None
    features: str | None = None

    def __post_init__(self):
        _ = self.model  # now, for its errors
        if self.center_crop is not None and not 0 < self.center_crop <= 1:
            raise ValueError(
                "Expected `center_crop` to be > 0 and at most 1. "
                f"Received: center_crop={self.center_crop!r}"
            )
        if self.top_k is not None and not 1 <= self.top_k <= self.num_classes:
            raise ValueError(
                f"Expected `top_k` to be 1 to {self.num_classes}, the classes of "
                f"`student`. Received: top_k={self.top_k!r}"
            )
        if self.features is not None:
            _ = self.model_of_features
        if self.class_names is not None:
            self._check_class_names()
        if self.images is not None:
            self._check_images()

    def _check_class_names(self):
        names = [str(name) for name in self.class_names]
        if len(set(names)) != self.num_classes or len(names) != self.num_classes:
            raise ValueError(
                f"Expected `class_names` to be {self.num_classes} different names, one "
                f"a class of `student`. Received: {len(names)} names, "
                f"{len(set(names))} different ones"
            )
        broken = [name for name in names if name.splitlines() != [name]]
        if broken:
            raise ValueError(
                f"Expected `class_names` of one line each. Received: {broken[:5]}"
            )

    def _check_images(self):
        dtype, shape = np.asarray(self.images).dtype, np.shape(self.images)
        wanted = self.model.input.shape
        if (
            dtype != "uint8"
            or len(shape) != 4
            or shape[0] == 0
            or any(w not in (None, s) for w, s in zip(wanted, shape, strict=True))
        ):
            raise ValueError(
                f"Expected `images` to be a uint8 array of shape {tuple(wanted)}, raw "
                f"images as they will be served. Received: {dtype} of shape {shape}"
            )

    @functools.cached_property
    def _tensors(self):
        return _tensors(self.student, self.preprocessing, self.temperature)

    @functools.cached_property
    def model(self) -> keras.Model:
        """What is served, as `serving_model` returns it."""
        images, _, _, outputs = self._tensors
        return keras.Model(images, outputs, name=f"{self.student.name}_serving")

    @functools.cached_property
    def model_of_floats(self) -> keras.Model:
        """The same of float32 images with values 0 to 255."""
        _, floats, _, outputs = self._tensors
        return keras.Model(floats, outputs)

    @functools.cached_property
    def model_of_features(self) -> keras.Model:
        """The features of float32 images, averaged over positions."""
        plain = Classifier(strip_heads(self.student))
        if self.features not in plain.layers:
            raise ValueError(
                "Expected `features` to name a layer of `student`. "
                f"Received: features={self.features!r}"
                + did_you_mean(self.features, plain.layers)
            )
        _, floats, taken, _ = self._tensors
        features = keras.Model(plain.images, plain.layers[self.features])(taken)
        if len(features.shape) > 2:
            features = keras.ops.mean(features, axis=range(1, len(features.shape) - 1))
        return keras.Model(floats, {"features": keras.ops.cast(features, "float32")})

    @property
    def num_classes(self) -> int:
        """Number of the classes."""
        return self.model.output["logits"].shape[-1]

    @functools.cached_property
    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Some images and what the student itself says of them, as `predict` does.

        Real ones where there are any. The latter are its class logits; or
        probabilities, if it ends in a softmax.
        """
        if self.images is None:
            size = [edge or 32 for edge in self.model.input.shape[1:]]
            images = np.random.default_rng(0).integers(0, 256, (2, *size), "uint8")
        else:
            images = np.asarray(self.images[:_SAMPLE])

        # As a graph: Keras' Resizing rounds otherwise.
        @tf.function(autograph=False)
        def run(images):
            if self.preprocessing is not None:
                images = self.preprocessing(images)
            return self.student(images, training=False)

        with tf.device("CPU"):  # a GPU may compute in TF32
            outputs = run(tf.constant(images, tf.float32))
            if isinstance(outputs, dict):
                outputs = outputs["logits"]
            return images, tf.cast(outputs, tf.float32).numpy()
