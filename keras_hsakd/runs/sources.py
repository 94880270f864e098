"""Where the network of `--model` comes from: the zoo, Keras, a file, your function."""

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_hsakd import heads, models
from keras_hsakd.attach import as_classifier, with_new_classifier
from keras_hsakd.compat import layers_of
from keras_hsakd.graph import (
    bottlenecks,
    check_channels_last,
    flatten,
    operation_of,
    replay,
    with_preprocessing,
)
from keras_hsakd.heads import is_plain, strip_heads
from keras_hsakd.names import WEIGHT_FILES
from keras_hsakd.optional import own_module
from keras_hsakd.runs import applications
from keras_hsakd.runs.folder import load_network
from keras_hsakd.runs.images import Images
from keras_hsakd.runs.settings import PRECISIONS, TrainingSettings
from keras_hsakd.suggestions import did_you_mean


def check_name(model: str) -> None:
    """Raises a ValueError unless a network has that name, or is where it says."""
    if is_file(model) or is_function(model) or model in models.names():
        return
    known = [applications.PREFIX + name for name in applications.names()]
    if model not in known:
        raise ValueError(
            "Expected `model` to be a network of `keras-hsakd models`, "
            f"{applications.PREFIX}NAME, a .keras file or package.module:function. "
            f"Received: '{model}'{did_you_mean(model, [*models.names(), *known])}"
        )


def is_application(name: str) -> bool:
    """Returns whether a name is one of a classifier of `keras.applications`."""
    return name.startswith(applications.PREFIX)


def is_file(name: str) -> bool:
    """Returns whether a name is the path of a network that Keras saved."""
    return name.endswith((".keras", *WEIGHT_FILES))


def is_function(name: str) -> bool:
    """Returns whether a name is one of a function, `package.module:function`."""
    return ":" in name and not is_file(name)


class Made(NamedTuple):
    """A classifier of images of 0 to 255, or a network with heads.

    Attributes:
        model: A functional `keras.Model`.
        loaded: Its layers whose weights are not random.
    """

    model: keras.Model
    loaded: tuple[keras.layers.Layer, ...] = ()

    @property
    def new(self) -> list[str]:
        """Names of the layers whose weights are random."""
        known = {id(layer) for layer in self.loaded}
        return [x.name for x in self.model.layers if x.weights and id(x) not in known]


def make(training: TrainingSettings, images: Images, num_views: int) -> Made:
    """Returns the network of settings, whatever heads it comes with.

    Args:
        training: Which network.
        images: Images it takes, and whose classes it predicts.
        num_views: Number of views that the heads of a network of the zoo tell apart.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If there is no such network, it does not suit the images, or a
            setting does not suit it.
    """
    name = training.model
    check_channels_last()
    check_name(name)
    shape = tuple(images.train.element_spec[0].shape[1:])
    is_others = is_file(name) or is_function(name)
    if training.weights is not None and not is_application(name):
        raise ValueError(
            "Expected `weights` only for a classifier of keras.applications. "
            f"Received: weights='{training.weights}' for '{name}'"
        )
    if training.preprocessing is not None and not is_others:
        raise ValueError(
            "Expected `preprocessing` only for a file or a function, whose own is not "
            f"known. Received: preprocessing='{training.preprocessing}' for '{name}'"
        )
    if is_application(name):
        return _of_applications(training, images, shape)
    if is_others:
        of = _of_a_file if is_file(name) else _of_a_function
        return of(name, training, images, shape)
    network = models.create(
        name,
        len(images.class_names),
        input_shape=shape,
        num_views=num_views,
        head=training.head,
    )
    return Made(with_preprocessing(network, images.preprocessing()))


def _of_applications(training, images, shape):
    name, weights = training.model, training.weights
    made = applications.create(
        name.removeprefix(applications.PREFIX), shape, len(images.class_names), weights
    )
    if weights is None:
        print(f"{name}: random weights; `--weights` loads others", flush=True)
        return Made(made.model)
    layers = [layer for layer in made.model.layers if layer.name in made.loaded]
    return _told(name, f"weights of {weights}", Made(made.model, tuple(layers)))


def _of_a_file(path, training, images, shape):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Expected `model` to be a file. Received: '{path}'")
    model = load_network(path)
    model = free(_prepared(path, model, training, images, shape))
    before = {id(layer) for layer in model.layers}
    classes = len(images.class_names)
    if is_plain(model):
        model = as_classifier(model)
    if heads.signature(model).num_classes != classes:
        model = with_new_classifier(strip_heads(model), classes)
    loaded = [
        layer
        for layer in model.layers
        if layer.weights and {id(layer), id(getattr(layer, "layer", None))} & before
    ]
    return _told(path, "its weights", Made(model, tuple(loaded)))


def _of_a_function(name, training, images, shape):
    model = _function(name)(shape, len(images.class_names))
    model = _prepared(name, model, training, images, shape)
    if is_plain(model):
        model = as_classifier(model)
    if (classes := heads.signature(model).num_classes) != len(images.class_names):
        raise ValueError(
            f"Expected '{name}' to return a model of {len(images.class_names)} "
            f"classes, as it was told. Received: {classes} classes"
        )
    return Made(model)


def _function(name: str) -> Callable:
    """Returns the function of a name as `package.module:function`."""
    module_name, _, function_name = name.partition(":")
    try:
        module = own_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            "Expected `model` to name a module that can be imported, from here or "
            f"installed, before the colon. Received: '{name}'; {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"Expected `model` to name a function of '{module_name}' after the colon. "
            f"Received: '{name}'{did_you_mean(function_name, known)}"
        )
    try:
        inspect.signature(function).bind((), 0)
    except TypeError as error:
        raise ValueError(
            f"Expected '{name}' to take the shape (height, width, channels) of the "
            f"images and the number of classes. Received: {error}"
        ) from error
    return function


def _prepared(name, model, training, images, shape):
    """Returns somebody's model as one that takes the images of a run, of 0 to 255."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected '{name}' to return a keras.Model. Received: {model!r} of type "
            f"{type(model).__name__}"
        )
    model = flatten(model)
    taken = model.input_shape[1:] if len(model.inputs) == 1 else None
    if taken is None or len(taken) != 3:
        raise ValueError(
            f"Expected '{name}' to take one batch of images. Received: input shape "
            f"{model.input_shape}"
        )
    if any(
        wanted not in (None, edge) for wanted, edge in zip(taken, shape, strict=True)
    ):
        raise ValueError(
            f"Expected images of the size that '{name}' takes, {taken[0]} x {taken[1]} "
            f"with {taken[2]} channels (`--image-size`). Received: {shape[0]} x "
            f"{shape[1]} with {shape[2]} channels"
        )
    if None in taken:
        model = _of_shape(model, shape)
    if is_file(name):
        model = of_precision(model, training.precision)
    preprocessing = training.preprocessing
    if preprocessing is None:
        if not _begins_with_preprocessing(model):
            raise ValueError(
                f"Expected `preprocessing`, for '{name}' does not begin with layers of "
                "its own: 'inside' if it takes images of 0 to 255 as they are, "
                "'normalize' if --mean and --std are to be applied before it. "
                "Received: none"
            )
        preprocessing = "inside"
    if preprocessing == "normalize":
        model = with_preprocessing(model, images.preprocessing())
    return model


def _of_shape(model, shape):
    """Returns a model for images of one shape, sharing all layers."""
    images = keras.Input(shape, name=operation_of(model.inputs[0]).name)
    outputs = replay(model.outputs, {id(model.inputs[0]): images})
    structure = keras.tree.pack_sequence_as(model.output, outputs)
    return keras.Model(images, structure, name=model.name)


# Layers and operations that images are preprocessed by.
_PREPROCESSING = ("Rescaling", "Normalization", "Divide", "TrueDivide", "Multiply")


def _begins_with_preprocessing(model):
    """Returns whether something is done to the values of images before all weights."""
    for tensor in bottlenecks(model.inputs[0], model.outputs[0]):
        operation = operation_of(tensor)
        if type(operation).__name__ in _PREPROCESSING:
            return True
        if getattr(operation, "weights", ()):
            return False
    return False


def free(model: keras.Model) -> keras.Model:
    """Returns a flat model after what was frozen when it was saved is free again."""
    for layer in model.layers:
        layer.trainable = True
    return model


def of_precision(model: keras.Model, precision: str) -> keras.Model:
    """Returns a trained flat model after its layers were given a dtype policy.

    Under a mixed policy its outputs stay as they are, float32 for the most part; one
    that was made under that policy keeps all its layers.

    Args:
        model: A functional model without models in it, whose layers are changed.
        precision: As in `TrainingSettings`.
    """
    layers = [
        layer
        for layer in layers_of(model)
        if not isinstance(layer, keras.Model | keras.layers.InputLayer)
        and layer.dtype_policy.name in PRECISIONS
    ]
    if precision != "float32":
        if any(layer.dtype_policy.name == precision for layer in layers):
            return model
        ends = [operation_of(tensor) for tensor in model.outputs]
        layers = [layer for layer in layers if layer not in ends]
    others = [layer for layer in layers if layer.dtype_policy.name != precision]
    for layer in others:
        layer.dtype_policy = precision
    return _of_shape(model, model.input_shape[1:]) if others else model


def _told(name, source, made):
    """Prints where weights come from, and returns the network."""
    classes = made.model.output_shape[-1] if made.new else None
    classifier = f"; a new classifier of {classes} classes" if made.new else ""
    print(f"{name}: {source}{classifier}", flush=True)
    return made


def absolute(training: TrainingSettings) -> TrainingSettings:
    """Returns settings that mean the same wherever a command is started."""
    paths = {name: os.path.abspath(path) for name, path in _files_of(training).items()}
    return dataclasses.replace(training, **paths)


def _files_of(training):
    """Returns the files that the first weights of a network are read from."""
    given = {"model": training.model, "weights": training.weights}
    if not is_file(training.model):
        del given["model"]
    if training.weights in (None, "imagenet"):
        del given["weights"]
    return given


def digests(training: TrainingSettings) -> dict[str, str]:
    """Returns checksums of the files that a network's first weights are read from.

    Args:
        training: Which network.

    Returns:
        A dict from the names of settings to the beginnings of SHA-256 sums.

    Raises:
        FileNotFoundError: If one is not there.
    """
    found = {}
    for name, path in _files_of(training).items():
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"Expected `{name}` to be a file. Received: '{path}'"
            )
        with open(path, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return found
