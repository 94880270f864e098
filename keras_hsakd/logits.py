"""Telling class logits from probabilities, and taking a softmax off.

A softmax can be spelt as a layer, an activation, an operation, a function of another
library or a lambda, so names tell little: the steps of a graph are computed on numbers.
"""

import keras
import numpy as np
from keras import ops

from keras_hsakd.graph import (
    ancestors,
    bottlenecks,
    check_functional,
    flatten,
    has_kernel,
    is_quantized,
    operation_of,
    replay,
)
from keras_hsakd.layers import Logits

# Layers that a classifier can end in.
CLASSIFIERS = (keras.layers.Dense, keras.layers.Conv2D)


def check_logits(model: keras.Model) -> None:
    """Raises a ValueError unless all outputs of a network are logits.

    They are probabilities where, whatever the features that the last layer with a
    kernel takes, no value is negative and all rows have the same sum (a softmax), or
    all values are between 0 and 1 (a sigmoid).

    Args:
        model: A functional model of one batch of images, with or without heads.

    Raises:
        ValueError: If an output is of probabilities, has a single unit, or cannot be
            followed, since the model has a `call` of its own.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> check_logits(network)
    >>> check_logits(keras.Sequential([network, keras.layers.Softmax()], name="mine"))
    Traceback (most recent call last):
    ValueError: Expected `mine` to output class logits. Received: probabilities, \
rows without negative values that all have the same sum: leave the softmax out, as \
`keras_hsakd.strip_heads` does where it is the last step
    """
    check_functional(model)
    flat = _flat_or_opaque(model)
    outputs = getattr(flat, "output", None)  # a Sequential has none before it is called
    if not isinstance(outputs, dict):
        outputs = {None: flat.outputs[0]}
    for name, output in outputs.items():
        what = f"output '{name}' of `{model.name}`" if name else f"`{model.name}`"
        _check(what, flat.inputs[0], output)


def without_softmax(model: keras.Model) -> keras.Model:
    """Returns a classifier up to its class logits, sharing weights.

    The softmax may be followed by operations that change no probabilities: casts,
    reshapes, identities, clips.

    Args:
        model: A functional or `Sequential` model from one batch of images to class
            logits or probabilities `(B, N)`.

    Returns:
        A functional `keras.Model`; the model itself if it ends in no softmax. What
        another function made of logits is for `check_logits` to find.

    Raises:
        ValueError: If the model has a `call` of its own.

    Example:
    >>> images = keras.Input((8,))
    >>> logits = keras.layers.Dense(3)(images)
    >>> model = keras.Model(images, ops.clip(ops.softmax(logits), 1e-7, 1))
    >>> without_softmax(model).output is logits
    True
    """
    check_functional(model)
    flat = _flat_or_opaque(model)
    (images,), (output,) = flat.inputs, flat.outputs
    logits = _before_softmax(images, output)
    # Keras gives a list of outputs, or takes one of images, for a list of one.
    is_single = isinstance(model, keras.Sequential) or not (
        isinstance(model.input, list) or isinstance(model.output, list)
    )
    if logits is output and is_single:
        return model
    return keras.Model(images, logits, name=model.name)


def _flat_or_opaque(model):
    """Returns a model without models in it, or itself where that cannot be."""
    try:
        return flatten(model)
    except ValueError:
        return model


def _check(what, images, logits):
    """Raises a ValueError unless a tensor is of logits."""
    if len(logits.shape) != 2 or logits.shape[-1] < 2:
        raise ValueError(
            f"Expected {what} to output logits of two classes or more, of shape "
            "(batch, classes); a classifier with a single unit needs a Dense layer of "
            f"two in its place. Received: shape {tuple(logits.shape)}"
        )
    source = images
    for before, after in _steps_back(images, logits):
        if any(map(has_kernel, _operations(before, after))):
            source = before
            break
    values = _compute(source, logits, _samples(source))
    if fault := _why_no_logits(values):
        raise ValueError(
            f"Expected {what} to output class logits. Received: probabilities, {fault}"
        )


def _why_no_logits(values):
    """Returns what shows that rows of values are probabilities, or None."""
    values = values[np.all(np.isfinite(values), axis=-1)]
    if not len(values) or np.any(values < 0) or not np.any(values):
        return None
    sums = values.sum(axis=-1)
    # A layer whose weights are all zero gives the same for all features.
    wanted = 1 if np.ptp(values, axis=0).max() == 0 else sums[0]
    if np.allclose(sums, wanted, rtol=_HALF_PRECISION):
        return (
            "rows without negative values that all have the same sum: leave the softmax"
            " out, as `keras_hsakd.strip_heads` does where it is the last step"
        )
    if np.all(values <= 1 + _HALF_PRECISION):
        return (
            "values from 0 to 1, as of a sigmoid: leave the last activation out, and "
            "train with one label an image"
        )
    return None


def _before_softmax(images, output):
    """Returns the logits that an output is the softmax of, or the output."""
    for before, after in _steps_back(images, output):
        values = _samples(before)
        if not any(map(has_kernel, _operations(before, after))):
            if _is_softmax(before, output, values, values):
                return _as_rows(before)
            continue
        layer = operation_of(after)
        is_whole = isinstance(layer, CLASSIFIERS) and not is_quantized(layer)
        if is_whole and set(after.shape[1:-1]) <= {1}:
            linear = Logits(layer, name=f"{layer.name}_logits")
            with keras.StatelessScope():
                logits = ops.convert_to_numpy(ops.cast(linear(values), "float32"))
            if _is_softmax(before, output, values, logits):
                return _as_rows(linear(before))
        break
    return output


def _is_softmax(before, output, values, logits):
    """Returns whether, for values of a tensor, an output is the softmax of logits."""
    rows = _compute(before, output, values)
    logits = logits.reshape(len(logits), -1).astype("float64")
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = powers / powers.sum(axis=-1, keepdims=True)
    tensors = ancestors([output], frozenset([id(before)]))
    dtypes = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    is_half = dtypes & {"float16", "bfloat16"}
    tolerance = _HALF_PRECISION if is_half else 1e-4
    return rows.shape == expected.shape and np.allclose(rows, expected, atol=tolerance)


def _steps_back(images, output):
    """Returns pairs of tensors, of which the second depends on the first alone."""
    tensors = bottlenecks(images, output)
    return list(zip(tensors[-2::-1], tensors[:0:-1], strict=True))


def _operations(before, after):
    """Returns the operations of a step."""
    tensors = ancestors([after], frozenset([id(before)]))
    return [operation_of(tensor) for tensor in tensors if tensor is not before]


# Rows of several magnitudes: a sum that a softmax has made is the same in all of them.
_SCALES = (1, 1, 4, 4, 16, 16)
_HALF_PRECISION = 1e-2  # rows of bfloat16 have sums that differ so much


def _samples(tensor):
    """Returns values for a symbolic tensor."""
    rng = np.random.default_rng(0)
    rows = tensor.shape[0] or len(_SCALES)
    shape = (rows, *(edge or 32 for edge in tensor.shape[1:]))
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if "int" in dtype:
        return rng.integers(0, 128, shape).astype(dtype)
    scales = np.resize(_SCALES, [rows] + [1] * (len(shape) - 1))
    return (scales * rng.normal(size=shape)).astype("float32")


def _compute(before, after, values):
    """Returns the rows of a tensor for values of another one, in inference mode."""

    def apply(operation, args, kwargs):
        return operation(*args, **{k: v for k, v in kwargs.items() if k != "training"})

    with keras.StatelessScope():  # leaves all variables as they are
        given = {id(before): ops.cast(values, before.dtype)}
        (result,) = replay([after], given, apply)
        rows = ops.convert_to_numpy(ops.cast(result, "float32"))
    return rows.reshape(len(rows), -1)


def _as_rows(tensor):
    if len(tensor.shape) == 2:
        return tensor
    return keras.layers.Flatten(dtype=tensor.dtype, name="logits_rows")(tensor)
