"""Copies of parts of a graph, with weights of their own that learn."""

import inspect
import warnings
from collections.abc import Callable

import keras
from keras import ops

from keras_hsakd.classifier import Classifier
from keras_hsakd.compat import layers_of
from keras_hsakd.graph import ancestors, is_quantized, node_of, operation_of, replay
from keras_hsakd.layers import finalize_states
from keras_hsakd.logits import CLASSIFIERS


def copied_head(
    classifier: Classifier,
    tap: keras.KerasTensor,
    before: keras.KerasTensor | None,
    units: int,
    name: str,
) -> keras.KerasTensor:
    """Returns the outputs of a copy of all that follows a tap, of another width.

    Args:
        classifier: The classifier that the tap is of.
        tap: A feature map that every path goes through.
        before: The tap before the last one, whose stage is repeated first. Defaults to
            `None` for any other.
        units: Width of the outputs.
        name: Name of the head.
    """
    x = tap if before is None else _repeated_stage(tap, before, name)
    (features,) = replay([classifier.features], {id(tap): x}, _copying(f"{name}_"))
    return copied_end(classifier, features, units, name, f"{name}_")


def copied_end(
    classifier: Classifier,
    features: keras.KerasTensor,
    units: int,
    name: str,
    prefix: str = "",
) -> keras.KerasTensor:
    """Returns what a classifier makes of features, of another number of classes.

    Its class weights, and all that follows them, are copies.

    Args:
        classifier: The classifier.
        features: Symbolic tensor as its own features.
        units: Number of classes of the copy.
        name: Name of the copy of the layer with the class weights.
        prefix: Put before the names of other copies.

    Raises:
        ValueError: As `copied_rest`, or if the layer cannot be copied.
    """
    layer = classifier.layer
    kind = type(layer)
    if classifier.had_softmax:
        # A subclass may take the softmax in its own `call`.
        (kind,) = (parent for parent in kind.mro() if parent in CLASSIFIERS)
    size = "units" if isinstance(layer, keras.layers.Dense) else "filters"
    changes = {"name": name, "activation": "linear", size: units}
    own = _copied(layer, changes | {"dtype": classifier.dtype}, kind)
    if not classifier.had_softmax:
        own.activation = layer.activation
    return copied_rest(classifier, own(features), units, prefix)


def copied_rest(
    classifier: Classifier, products: keras.KerasTensor, units: int, prefix: str
) -> keras.KerasTensor:
    """Applies a copy of what follows the class weights, such as a scale.

    Args:
        classifier: The classifier.
        products: Symbolic tensor of `units` values in place of each class's one.
        units: Their number.
        prefix: Put before the names of copies.

    Raises:
        ValueError: If that is for as many classes as there are; names the operation.
    """
    if classifier.logits is classifier.products:
        return products
    copy, classes = _copying(prefix), classifier.num_classes

    def apply(operation, args, kwargs):
        try:
            if type(operation).__name__ != "Reshape":
                return copy(operation, args, kwargs)
            shape = getattr(operation, "target_shape", None) or operation.newshape[1:]
            shape = [units if edge == classes else edge for edge in shape]
            return keras.layers.Reshape(shape, name=f"{prefix}{operation.name}")(*args)
        except Exception as error:  # it may be anybody's layer
            raise ValueError(
                f"Expected what follows '{classifier.layer.name}' to take {units} "
                "classes as well, as a copy of it has; take the model up to that "
                f"layer. Received: '{operation.name}': {type(error).__name__}"
            ) from error

    # Numbers first: some layers tell the shape of what they cannot compute.
    numbers = ops.ones((2, *products.shape[1:]), products.dtype)
    for start in (numbers, products):
        (logits,) = replay([classifier.logits], {id(classifier.products): start}, apply)
        if logits.shape[-1] != units:
            raise ValueError(
                f"Expected what follows '{classifier.layer.name}' to keep the number "
                f"of classes. Received: {logits.shape[-1]} of {units}"
            )
    if keras.backend.standardize_dtype(logits.dtype) != classifier.dtype:
        cast = keras.layers.Activation(
            "linear", dtype=classifier.dtype, name=f"{prefix}logits"
        )
        logits = cast(logits)
    return logits


def _repeated_stage(tap, before, name):
    """Applies a copy of the stage between two taps to the latter, at stride 1."""
    strided = _strided(tap, before)

    def repeat(x):
        # Keras warns of a layer that does not take the channels, and raises then.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*has unbuilt state")
            copying = _copying(f"{name}_repeated_", strided)
            return replay([tap], {id(before): x}, copying)[0]

    try:
        return repeat(tap)
    except ValueError:
        # A skip connection or a squeeze-and-excitation wants its own channels.
        channels = keras.layers.Conv2D(
            before.shape[-1], 1, use_bias=False, name=f"{name}_channels"
        )
        return repeat(channels(tap))


def _strided(tap, before):
    """Returns ids of operations that shrink feature maps, or pad for one that does."""
    found = set()
    for tensor in ancestors([tap], frozenset([id(before)])):
        if tensor is before:
            continue
        operation = operation_of(tensor)
        strides = getattr(operation, "strides", 1)
        if max(strides) > 1 if isinstance(strides, tuple) else strides > 1:
            found.add(id(operation))
            for source in node_of(tensor).input_tensors:
                if isinstance(operation_of(source), keras.layers.ZeroPadding2D):
                    found.add(id(operation_of(source)))
    return found


def _copying(prefix: str, strided: frozenset[int] | set[int] = frozenset()) -> Callable:
    """Returns a function for `replay` that applies copies of operations.

    Args:
        prefix: Put before the names of layers.
        strided: Ids of operations, as of `_strided`, to apply at stride 1.

    Returns:
        A function `apply(operation, args, kwargs)`. An operation with variables has one
        copy, which has its own; one without is applied itself.
    """
    copies = {}

    def copy(operation, changes):
        if not getattr(operation, "variables", ()) and not changes:
            return operation
        if id(operation) not in copies:
            changes |= {"name": f"{prefix}{operation.name}"}
            copies[id(operation)] = _copied(operation, changes)
        return copies[id(operation)]

    def apply(operation, args, kwargs):
        # A frozen backbone's layers may be called in inference mode: the copies train.
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        changes = {}
        if id(operation) in strided:
            if isinstance(operation, keras.layers.ZeroPadding2D):
                return args[0]
            # A whole block as one layer may choose its padding itself.
            changes = {"strides": 1, "padding": "same"}
        own = copy(operation, changes)
        outputs = own(*args, **kwargs)
        if own is not operation:
            _take_over_state(own, operation)
        return outputs

    return apply


def _take_over_state(copy, layer):
    """Gives layers that have weights, but none to train, the values of others'."""
    if not isinstance(layer, keras.layers.Layer):
        return
    for own, other in zip(layers_of(copy), layers_of(layer), strict=True):
        if own.weights and not own.trainable_weights:
            for variable, value in zip(own.weights, other.weights, strict=True):
                variable.assign(value)
            finalize_states(own)


def _copied(operation, changes, kind=None):
    """Returns a new operation of the configuration of another, but for some changes.

    It learns, whatever was frozen or adapted of the other.
    """
    kind = kind or type(operation)
    parts = layers_of(operation) if isinstance(operation, keras.layers.Layer) else []
    if quantized := [part.name for part in parts if is_quantized(part)]:
        raise _no_copy(operation, f"'{quantized[0]}' is quantized")
    try:
        config = _as_built(kind.get_config(operation))
        config |= {key: value for key, value in changes.items() if key in config}
        taken = inspect.signature(kind.__init__).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            # Keras tells these of every layer.
            unknown = {"name", "trainable", "dtype"} - {each.name for each in taken}
            config = {k: v for k, v in config.items() if k not in unknown}
        copy = kind.from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _no_copy(operation, str(error).strip().splitlines()[0]) from error
    copy.name = changes.get("name", copy.name)
    return copy


def _no_copy(operation, reason):
    return ValueError(
        "Expected the layers that follow a tap to have a `get_config()` that their "
        "copies in the heads can be made from; head='light' needs no copies. "
        f"Received: '{operation.name}' of type {type(operation).__name__}: {reason}"
    )


def _as_built(config):
    """Returns a configuration without what was done to a layer since it was built."""
    if isinstance(config, list | tuple):
        return [_as_built(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {k: _as_built(v) for k, v in config.items() if k not in _ADAPTED}
    return config | ({"trainable": True} if "trainable" in config else {})


_ADAPTED = ("lora_rank", "lora_alpha")
