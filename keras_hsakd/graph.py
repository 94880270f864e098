"""The graph of a functional model: walking it, flattening it, computing it anew."""

import inspect
import math
from collections.abc import Callable, Iterable

import keras
from keras import tree

from keras_hsakd.compat import layers_of, node_of
from keras_hsakd.layers import finalize_states


def ancestors(
    tensors: Iterable[keras.KerasTensor], stop_at: frozenset[int] = frozenset()
) -> list[keras.KerasTensor]:
    """Returns tensors and all that they are computed from in a functional model.

    Args:
        tensors: Symbolic tensors, such as `model.outputs`.
        stop_at: Set of `id(tensor)` whose own ancestors are left out.

    Returns:
        List of `keras.KerasTensor`, each once and before all that is computed from it.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> ancestors(model.outputs)[0] is model.input
    True
    """
    found, ordered = set(), []
    pending = [(tensor, False) for tensor in reversed(list(tensors))]
    while pending:
        tensor, is_done = pending.pop()
        if is_done:
            ordered.append(tensor)
        elif id(tensor) not in found:
            found.add(id(tensor))
            pending.append((tensor, True))
            if id(tensor) not in stop_at:
                inputs = node_of(tensor).input_tensors
                pending.extend((x, False) for x in reversed(inputs))
    return ordered


def operation_of(tensor: keras.KerasTensor) -> keras.Operation:
    """Returns the layer or other operation that computes a tensor."""
    return node_of(tensor).operation


def has_kernel(operation: keras.Operation) -> bool:
    """Returns whether an operation has weights of a convolution or a linear layer."""
    weights = getattr(operation, "weights", ())
    return any(len(weight.shape) > 1 for weight in weights)


def is_quantized(operation: keras.Operation) -> bool:
    """Returns whether a layer was quantized, after which it does not learn."""
    return getattr(operation, "quantization_mode", None) is not None


def check_channels_last(model: keras.Model | None = None) -> None:
    """Raises a ValueError where channels come before the positions of images.

    Args:
        model: A functional model, whose layers and operations are looked at. Defaults
            to `None`, the setting of Keras alone.

    Raises:
        ValueError: If an operation, or by default a layer that is made now, has
            channels first.

    Example:
    >>> check_channels_last(keras_hsakd.models.create("resnet8", num_classes=10))
    """
    if model is None:
        received = {
            "keras.config.image_data_format()": keras.config.image_data_format()
        }
    else:
        operations = [operation_of(tensor) for tensor in ancestors(model.outputs)]
        received = {
            f"'{each.name}' of `{model.name}`": getattr(each, "data_format", None)
            for each in (*operations, *layers_of(model))
        }
    first = [name for name, layout in received.items() if layout == "channels_first"]
    if first:
        raise ValueError(
            "Expected images and feature maps with channels last: (batch, height, "
            f"width, channels). Received: {first[0]} with 'channels_first'"
        )


def replay(
    outputs: list[keras.KerasTensor],
    values: dict[int, keras.KerasTensor],
    apply: Callable = lambda operation, args, kwargs: operation(*args, **kwargs),
) -> list[keras.KerasTensor]:
    """Computes tensors of a functional model anew, from other values than before.

    Args:
        outputs: Symbolic tensors to compute.
        values: Dict from `id(tensor)` to its new value, for tensors on each path to
            `outputs`; it is extended on the way.
        apply: Function `apply(operation, args, kwargs)` that stands in for
            `operation(*args, **kwargs)`, which is the default.

    Returns:
        The new values of `outputs`.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> images = keras.Input((16, 16, 3))
    >>> replay(model.outputs, {id(model.input): images})[0].shape
    (None, 10)
    """
    for tensor in ancestors(outputs, frozenset(values)):
        if id(tensor) in values:
            continue
        node = node_of(tensor)
        args, kwargs = node.arguments.convert(
            lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x
        )
        results = tree.flatten(apply(node.operation, args, kwargs))
        values.update(zip(map(id, node.outputs), results, strict=True))
    return [values[id(tensor)] for tensor in outputs]


def flatten(model: keras.Model) -> keras.Model:
    """Returns a functional model without models in it, sharing all layers.

    A model that is called as a layer of another, such as a backbone or a `Sequential`,
    is replaced by its own layers. Without one, the result has the model's own tensors,
    so that `layer.output` of its layers is among them.

    Args:
        model: A functional or built `Sequential` model.

    Returns:
        A functional `keras.Model` that computes the same from the same weights.

    Raises:
        ValueError: If the model, or one in it, has a `call` of its own or is not built,
            two layers have the same name, or one has channels first.

    Example:
    >>> backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> model = keras.Sequential([backbone, keras.layers.GlobalMaxPooling2D()])
    >>> [type(layer).__name__ for layer in flatten(model).layers]
    ['InputLayer', 'Conv2D', 'GlobalMaxPooling2D']
    """
    flat = _functional(model)
    if any(isinstance(layer, keras.Model) for layer in flat.layers):
        inputs = tree.map_structure(
            lambda x: keras.Input(
                batch_shape=x.shape, dtype=x.dtype, name=operation_of(x).name
            ),
            flat.input,
        )
        values = dict(zip(map(id, flat.inputs), tree.flatten(inputs), strict=True))
        outputs = replay(flat.outputs, values, _apply_flat)
        _check_names(model, outputs)
        structure = tree.pack_sequence_as(flat.output, outputs)
        flat = keras.Model(inputs, structure, name=model.name)
    check_channels_last(flat)
    return flat


def _apply_flat(operation, args, kwargs):
    if not isinstance(operation, keras.Model):
        return operation(*args, **kwargs)
    model = _functional(operation)
    training = kwargs.get("training")

    def apply(inner, inner_args, inner_kwargs):
        if training is not None and _takes_training(inner):
            inner_kwargs = {**inner_kwargs, "training": training}
        return _apply_flat(inner, inner_args, inner_kwargs)

    given = tree.flatten(args[0] if args else kwargs["inputs"])
    values = dict(zip(map(id, model.inputs), given, strict=True))
    outputs = replay(model.outputs, values, apply)
    return tree.pack_sequence_as(model.output, outputs)


def check_functional(model: keras.Model) -> None:
    """Raises a ValueError unless the graph of a model is all that it computes.

    Args:
        model: Anything.

    Raises:
        ValueError: If it is no model, not built, or has a `call` of its own.

    Example:
    >>> check_functional(keras_hsakd.models.create("resnet8", num_classes=10))
    """
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Expected `{model.name}` to be built: begin it with `keras.Input(shape)`. "
            "Received: a keras.Sequential that has not seen the shape of an image"
        )
    graph = getattr(model, "inputs", None) and getattr(model, "outputs", None)
    calls = [type(keras.Model(x := keras.Input((1,)), x)).call, keras.Sequential.call]
    if not graph or getattr(type(model), "call", None) not in calls:
        raise ValueError(
            "Expected a functional keras.Model, also inside of it: a model with a call "
            "of its own cannot be taken apart. Build it as keras.Model(inputs, outputs)"
            ", or give it its heads by hand, as examples/keras_cv_backbone.py does. "
            f"Received: `{getattr(model, 'name', model)}` of type "
            f"{type(model).__name__}"
        )


def _functional(model):
    """Returns a model whose graph can be walked."""
    check_functional(model)
    if isinstance(model, keras.Sequential):
        outputs = model.outputs if len(model.outputs) > 1 else model.outputs[0]
        return keras.Model(model.inputs[0], outputs, name=model.name)
    return model


def _takes_training(operation):
    return "training" in inspect.signature(operation.call).parameters


def _check_names(model, outputs):
    operations = {}
    for tensor in ancestors(outputs):
        operation = operation_of(tensor)
        other = operations.setdefault(operation.name, operation)
        if other is not operation:
            raise ValueError(
                f"Expected the layers of `{model.name}` and of the models in it to "
                "have different names (`layer.name = ...` renames one). "
                f"Received: two named '{operation.name}'"
            )


# Name of the layer in front of a network that takes images of 0 to 255.
PREPROCESSING = "preprocessing"


def with_preprocessing(
    network: keras.Model,
    layer: keras.layers.Layer,
    preprocessed: keras.KerasTensor | None = None,
) -> keras.Model:
    """Returns a copy of a network with a preprocessing layer in front.

    The layer is named `"preprocessing"`, and takes the place of one of that name that
    the network begins with. All other layers keep their names and values; the network
    itself stays as it is.

    Args:
        network: A functional model of one batch of images, with heads or without.
        layer: A layer without weights from the images that the result takes to those
            that the layers of `network` were made for.
        preprocessed: Symbolic tensor of `network` whose place its output takes; what
            that was computed by is left out. Defaults to the images, or the output of
            the layer of that name.

    Returns:
        A functional `keras.Model` with the outputs of `network`.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> layer = keras.layers.Rescaling(1 / 127.5, offset=-1)
    >>> [layer.name for layer in with_preprocessing(network, layer).layers][:3]
    ['images', 'preprocessing', 'stem_conv']
    """
    (taken,) = network.inputs
    images = keras.Input(
        batch_shape=taken.shape, dtype=taken.dtype, name=operation_of(taken).name
    )
    layer = type(layer).from_config({**layer.get_config(), "name": PREPROCESSING})
    if preprocessed is None:
        preprocessed = _preprocessed(network)
    outputs = replay(network.outputs, {id(preprocessed): layer(images)})
    structure = tree.pack_sequence_as(network.output, outputs)
    network = keras.Model(images, structure, name=network.name)
    # Layers that were called twice would have the outputs of before as `layer.output`.
    copy = keras.models.clone_model(network)
    for variable, value in zip(copy.variables, network.variables, strict=True):
        variable.assign(value)
    finalize_states(copy)
    return copy


def _preprocessed(network):
    """Returns the tensor that comes after a network's preprocessing."""
    (images,) = network.inputs
    for tensor in ancestors(network.outputs):
        sources = node_of(tensor).input_tensors
        if operation_of(tensor).name == PREPROCESSING and sources[0] is images:
            return tensor
    return images


def bottlenecks(
    image: keras.KerasTensor, output: keras.KerasTensor
) -> list[keras.KerasTensor]:
    """Returns the tensors that every path from an image to an output goes through.

    Args:
        image: Symbolic tensor.
        output: Symbolic tensor computed from it.

    Returns:
        List of symbolic tensors from `image` to `output`. No skip connection crosses
        one of them: all that follows depends on it alone.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> tensors = bottlenecks(model.input, model.output)
    >>> [operation_of(tensor).name for tensor in tensors][-4:]
    ['stage3_block1_add', 'stage3_block1_relu2', 'logits_pool', 'logits']
    """
    ordered = ancestors([output])
    last_use = {}
    for tensor in ordered:
        for source in node_of(tensor).input_tensors:
            last_use[id(source)] = id(tensor)
    found = []
    open_tensors = set()
    for tensor in ordered:
        open_tensors -= {x for x in open_tensors if last_use[x] == id(tensor)}
        if not open_tensors:
            found.append(tensor)
        open_tensors.add(id(tensor))
    start = next(i for i, tensor in enumerate(found) if tensor is image)
    return found[start:]


def multiply_adds(
    outputs: Iterable[keras.KerasTensor],
    stop_at: frozenset[int] = frozenset(),
    passes: Callable[[keras.layers.Layer], int] = lambda layer: 1,
) -> int:
    """Returns the multiply-adds of one image through a part of a graph.

    Counts convolutions and linear layers, without biases and batch normalization.

    Args:
        outputs: Symbolic tensors that are computed, of known sizes.
        stop_at: Set of `id(tensor)` that are given.
        passes: How often a layer counts. Defaults to once each.

    Returns:
        The number of multiply-adds.

    Example:
    >>> model = keras_hsakd.models.create("wrn_16_2", 100, heads=False)
    >>> multiply_adds(model.outputs)
    101118464
    """
    total = 0
    for tensor in ancestors(outputs, stop_at):
        layer = operation_of(tensor)
        if id(tensor) not in stop_at and isinstance(layer, keras.layers.Layer):
            # Each weight of a kernel is used once at each position of the output.
            kernels = [w for w in layer.weights if len(w.shape) > 1]
            positions = math.prod(tensor.shape[1:-1])
            an_output = positions * sum(math.prod(kernel.shape) for kernel in kernels)
            total += passes(layer) * an_output
    return total


def num_kernel_weights(outputs: Iterable[keras.KerasTensor]) -> int:
    """Returns the number of weights in kernels that tensors are computed with.

    Args:
        outputs: Symbolic tensors that are computed.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> num_kernel_weights(model.outputs), model.count_params()
    (77360, 78714)
    """
    layers = {id(op): op for op in map(operation_of, ancestors(outputs))}
    kernels = {
        id(weight): math.prod(weight.shape)
        for layer in layers.values()
        for weight in getattr(layer, "weights", ())
        if len(weight.shape) > 1
    }
    return sum(kernels.values())
