"""Classifiers of `keras.applications`, with their preprocessing inside."""

import inspect
import os
import warnings
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd import data
from keras_hsakd.attach import as_classifier, with_new_classifier
from keras_hsakd.compat import node_of
from keras_hsakd.graph import ancestors, flatten, operation_of, with_preprocessing
from keras_hsakd.layers import finalize_states
from keras_hsakd.names import WEIGHT_FILES
from keras_hsakd.suggestions import did_you_mean

# What the names begin with on the command line.
PREFIX = "applications/"


def names() -> list[str]:
    """Returns the names of the classifiers of `keras.applications`.

    Example:
    >>> from keras_hsakd.runs import applications
    >>> "EfficientNetB0" in applications.names()
    True
    """
    return [
        name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)
    ]


class Application(NamedTuple):
    """A classifier of images of 0 to 255, and what is known of its weights.

    Attributes:
        model: A functional `keras.Model` to class logits.
        loaded: Names of the layers whose weights were loaded.
    """

    model: keras.Model
    loaded: frozenset[str] = frozenset()


def create(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    weights: str | os.PathLike | None = None,
) -> Application:
    """Returns a classifier of `keras.applications`.

    What its `preprocess_input` does, and the preprocessing layers that it begins with,
    become one `Rescaling` in front. Weights that are given are loaded all, or an error
    is raised; only a classifier of other classes may stay as it was initialised.

    Args:
        name: One of `names()`.
        input_shape: Shape `(height, width, channels)` of the images.
        num_classes: Number of classes.
        weights: `"imagenet"`, which Keras downloads, or a file that it reads them from:
            `.weights.h5`, or the `.h5` that are downloaded. Defaults to `None`, random
            ones.

    Returns:
        An `Application`.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If they cannot be downloaded.
        ValueError: If the name is unknown, the images are too small, or the file is of
            another network.

    Example:
    >>> made = create("MobileNetV3Small", (32, 32, 3), num_classes=10)
    >>> [layer.name for layer in made.model.layers][1], made.model.output_shape
    ('preprocessing', (None, 10))
    """
    if name not in names():
        raise ValueError(
            f"Expected `model` to be `{PREFIX}` and the name of a classifier of "
            f"keras.applications. Received: '{PREFIX}{name}'"
            + did_you_mean(name, names())
        )
    if weights is None:
        model, missing = _made(name, input_shape, classes=num_classes), None
    elif weights == "imagenet":
        model, missing = _downloaded(name, input_shape), []
    else:
        model, missing = _read(name, input_shape, num_classes, os.fspath(weights))
    model = flatten(model)
    loaded = set()
    if missing is not None:
        loaded = {layer.name for layer in model.layers if layer.weights} - set(missing)
    rescaling, preprocessed, turned = _preprocessing(name, model)
    if loaded and turned:
        _turn_colors(model)
    model = with_preprocessing(model, rescaling, preprocessed)
    if len(model.output_shape) == 4:
        model = with_new_classifier(model, num_classes)
    else:
        model = as_classifier(model)
    return Application(
        model, frozenset(loaded & {layer.name for layer in model.layers})
    )


def _made(name, input_shape, **arguments):
    defaults = {"weights": None, "include_top": True, "classifier_activation": None}
    return getattr(keras.applications, name)(
        input_shape=input_shape, **(defaults | arguments)
    )


def _downloaded(name, input_shape):
    try:
        return _made(name, input_shape, weights="imagenet", include_top=False)
    except Exception as error:  # Keras raises that class where a download fails
        if type(error) is not Exception and not isinstance(error, OSError):
            raise
        raise RuntimeError(
            f"Expected Keras to download the weights of {name}. Received: {error}; "
            "fetch that file elsewhere, and give its path as `weights`"
        ) from error


def _read(name, input_shape, num_classes, path):
    """Returns a network with weights of a file, and the layers that it has none for."""
    if not path.endswith(WEIGHT_FILES):
        raise ValueError(
            "Expected `weights` to be 'imagenet' or a file of weights, .weights.h5 or "
            f".h5; a whole network, .keras, is given as `model`. Received: '{path}'"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Expected `weights` to be a file. Received: '{path}'")
    all_missing = []
    for include_top in (True, False):
        arguments = {"classes": num_classes} if include_top else {}
        model = _made(name, input_shape, include_top=include_top, **arguments)
        missing = _load(model, path)
        classifier = next(layer for layer in model.layers[::-1] if layer.weights)
        if set(missing) <= ({classifier.name} if include_top else set()):
            return model, missing
        all_missing.append(missing)
    missing = min(all_missing, key=len)
    raise ValueError(
        f"Expected `weights` to be of {name}. Received: '{path}', which has none that "
        f"suit {len(missing)} of its layers: {missing[:5]}"
    )


def _load(model, path):
    """Loads what suits of a file, and returns the names of the other layers.

    Keras does not tell which those are: they are seen in the values.
    """
    floats = [v for v in model.weights if "float" in v.dtype]
    initial = [(variable, variable.numpy()) for variable in floats]
    _spoil(floats)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.load_weights(path, skip_mismatch=True)
        except ValueError:  # of another number of layers
            _spoil(floats)
        except Exception as error:  # a damaged file shows as whatever its parser raises
            raise ValueError(
                "Expected `weights` to be a whole file. "
                f"Received: '{path}', {type(error).__name__}: {error}"
            ) from error
    unknown = {id(v): value for v, value in initial if np.isnan(v.numpy()).any()}
    missing = [
        layer.name
        for layer in model.layers
        if any(id(variable) in unknown for variable in layer.weights)
    ]
    for variable, value in initial:
        if id(variable) in unknown:
            variable.assign(value)
    finalize_states(model)
    return missing


def _spoil(variables):
    for variable in variables:
        variable.assign(np.full(variable.shape, np.nan))


def _preprocessing(name, model):
    """Returns all that a network does to images of 0 to 255 first.

    Args:
        name: Its name in `keras.applications`.
        model: The network.

    Returns:
        A `Rescaling`, which is that; the symbolic tensor of `model` that it gives; and
        whether the weights are for blue, green, red, see `_turn_colors`.
    """
    (images,) = model.inputs
    preprocessed, layers = images, []
    while isinstance(layer := operation_of(after := _after(model, preprocessed)), _OWN):
        preprocessed = after
        layers.append(layer)
    if layers:
        compute = keras.Model(images, preprocessed).predict_on_batch
    else:
        module = inspect.getmodule(getattr(keras.applications, name))
        compute = module.preprocess_input
    colors = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], "float64")
    shape = (len(colors), *model.input_shape[1:])
    pixels = np.broadcast_to(colors[:, np.newaxis, np.newaxis], shape)
    black, white, red = np.asarray(compute(pixels.copy()), "float64")[:, 0, 0]
    turned = red[0] == black[0]
    scale, offset = (white - black) / 255, black
    if turned:
        scale, offset = scale[::-1], offset[::-1]
    variances = [
        np.ravel(layer.variance)
        for layer in layers
        if isinstance(layer, keras.layers.Normalization)
    ]
    # Files of EfficientNet have deviations for variances, and where Keras downloads
    # them another layer makes up for that.
    deviation = np.array(data.IMAGENET_STD)
    if len(layers) == 2 and variances and np.allclose(variances, deviation, atol=1e-3):
        scale, offset = scale / np.sqrt(deviation), offset / np.sqrt(deviation)
    rescaling = keras.layers.Rescaling(scale.tolist(), offset.tolist(), dtype="float32")
    return rescaling, preprocessed, turned


# Layers of preprocessing that a network may begin with.
_OWN = (keras.layers.Normalization, keras.layers.Rescaling)


def _after(model, tensor):
    """Returns the first tensor of a network that is computed from one."""
    return next(
        x
        for x in ancestors(model.outputs)
        if any(source is tensor for source in node_of(x).input_tensors)
    )


def _turn_colors(model):
    """Lets a network take red, green, blue that was trained on blue, green, red."""
    first = next(layer for layer in model.layers if layer.weights)
    first.kernel.assign(np.flip(first.kernel.numpy(), axis=2))
