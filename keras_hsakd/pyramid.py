"""A network as the backbone of a detector: its features by level."""

import math
from collections.abc import Mapping, Sequence

import keras

from keras_hsakd.classifier import Classifier
from keras_hsakd.compat import node_of
from keras_hsakd.graph import ancestors, has_kernel, operation_of, replay
from keras_hsakd.heads import head_names, is_plain
from keras_hsakd.suggestions import did_you_mean


@keras.saving.register_keras_serializable("keras_hsakd")
class Backbone(keras.Model):
    """A functional model of features by level, as keras-cv and keras-hub expect it."""

    @property
    def pyramid_level_inputs(self) -> dict[str, str]:
        """Names of the layers that output the features, by level, for keras-cv."""
        return {level: level for level in self.output}

    @property
    def pyramid_outputs(self) -> dict[str, keras.KerasTensor]:
        """Symbolic tensors of the features by level, for keras-hub."""
        return dict(self.output)


def backbone(
    student: keras.Model,
    levels: Sequence[str] | Mapping[str, str] | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
) -> Backbone:
    """Returns a network's features by level, to detect or segment with.

    Level `"Pk"` has stride `2^k`: its feature maps are `2^k` times smaller than the
    images. It is the last tensor of that stride that every path from the images to the
    classifier goes through, as for `keras_hsakd.find_taps`. Heads and classifier are
    left out, and preprocessing stays inside.

    All layers are shared: training a detector on the result trains `student`, moving
    averages of batch normalization included. With `backbone.trainable = False` both
    stay as they are.

    Args:
        student: A functional or `Sequential` model of one batch of images, with heads
            or without, or one that ends in feature maps.
        levels: Names of levels such as `["P3", "P4", "P5"]`, or a dict of levels and
            the layers whose outputs they are. Defaults to `None`, all levels.
        input_shape: Shape `(height, width, channels)` of the images, where it is to be
            another one than that of `student`; edges may be `None`. Defaults to that
            of `student`.

    Returns:
        A functional `keras.Model` from images to `{"P3": (B, H / 8, W / 8, C), ...}`.
        Its `pyramid_level_inputs` and `pyramid_outputs` are those of backbones of
        keras-cv and keras-hub.

    Raises:
        ValueError: If the model cannot be taken apart, has no such level or layer, or
            has an operation on the way to its features that does not take images of
            another size.

    Example:
    >>> student = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> features = backbone(student, input_shape=(64, 64, 3))
    >>> {level: tensor.shape for level, tensor in features.output.items()}
    {'P0': (None, 64, 64, 16), 'P1': (None, 32, 32, 32), 'P2': (None, 16, 16, 64)}
    """
    if not is_plain(student):
        head_names(student)
    network = Classifier(student)
    _check_images(network.flat)
    images = network.images
    path = _maps(network)
    chosen = _named(network, levels) if isinstance(levels, Mapping) else {}
    tensors = [*path, *chosen.values()]
    taken, values = images, {}
    if input_shape is not None:
        taken = _new_images(network.name, images, input_shape)
        values = _resized(network.name, images, tensors, taken)
    measured = values if None not in taken.shape[1:3] else {}
    exponents = _exponents(network.name, images, tensors, measured)
    if values and None not in images.shape[1:3]:
        _check_resized(network.name, images, tensors, values, exponents)
    if chosen:
        _check_levels(chosen, exponents)
    else:
        # The last one of each level stays.
        found = {f"P{exponents[id(x)]}": x for x in path if _is_feature(x)}
        chosen = _selected(network.name, found, levels)
    outputs = {
        # A layer called twice has as `layer.output` what it made of the first images.
        level: keras.layers.Identity(name=level)(values.get(id(tensor), tensor))
        for level, tensor in chosen.items()
    }
    return Backbone(taken, outputs, name=network.name)


def _check_images(flat):
    """Raises a ValueError unless a model takes images alone."""
    if len(flat.inputs) != 1 or len(flat.inputs[0].shape) != 4:
        raise ValueError(
            f"Expected `{flat.name}` to take one batch of images (batch, height, width,"
            f" channels). Received inputs: {[tensor.shape for tensor in flat.inputs]}"
        )


def _maps(network):
    """Returns the maps that every path goes through, up to the classifier's pooling."""
    is_map = [len(x.shape) == 4 and not _pools_all(x) for x in network.path]
    return network.path[: [*is_map, False].index(False)]


def _is_feature(tensor):
    """Returns whether a map is more than an image, and no mere padding of others."""
    is_padding = isinstance(operation_of(tensor), keras.layers.ZeroPadding2D)
    return not is_padding and any(
        has_kernel(operation_of(x)) for x in ancestors([tensor])
    )


def _pools_all(tensor):
    """Returns whether a map is what the pooling before a classifier outputs."""
    operation = operation_of(tensor)
    is_average = isinstance(operation, keras.layers.AveragePooling2D)
    return "Global" in type(operation).__name__ or (
        is_average and max(operation.pool_size) > 3
    )


def _named(network, levels):
    """Returns the outputs of layers, by the levels that they are to be."""
    maps = {
        operation_of(tensor).name: tensor
        for tensor in ancestors([network.logits])
        if len(tensor.shape) == 4
    }
    for layer in levels.values():
        if layer not in maps:
            raise ValueError(
                f"Expected `levels` to name layers of `{network.name}` that output "
                f"feature maps, of {', '.join(maps)}. Received: '{layer}'"
                f"{did_you_mean(layer, maps)}"
            )
    return {level: maps[layer] for level, layer in levels.items()}


def _selected(name, found, levels):
    """Returns the features of some levels, or of all."""
    missing = [level for level in levels or () if level not in found]
    if missing or not found:
        there = {level: operation_of(tensor).name for level, tensor in found.items()}
        raise ValueError(
            f"Expected `levels` to be of those of `{name}`, {there}; a dict names other"
            f" layers. Received: {missing or levels}"
        )
    return {level: found[level] for level in levels or found}


def _new_images(name, images, shape):
    if len(shape) != 3 or shape[-1] != images.shape[-1]:
        raise ValueError(
            "Expected `input_shape` to be (height, width, channels), with the "
            f"{images.shape[-1]} channels of `{name}`. Received: input_shape={shape}"
        )
    return keras.Input(shape, dtype=images.dtype, name=operation_of(images).name)


def _resized(name, images, tensors, taken):
    """Returns tensors, and all before them, as computed from other images, by id."""

    def apply(operation, args, kwargs):
        try:
            return operation(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise _not_resizable(name, operation, taken) from error

    values = {id(images): taken}
    replay(tensors, values, apply)
    return values


def _not_resizable(name, operation, taken):
    return ValueError(
        f"Expected all layers on the way to the features of `{name}` to follow the size"
        f" of the images, to take input_shape={tuple(taken.shape[1:])}. Received: "
        f"'{operation.name}', which is made for one size"
    )


def _exponents(name, images, tensors, values):
    """Returns the `k` of the strides `2^k` of maps and all before them, by id.

    Sizes are compared from one operation to the next: what convolutions without padding
    take off the edges does not add up.
    """

    def size(tensor):
        shape = values.get(id(tensor), tensor).shape[1:3]
        if None in shape:
            raise ValueError(
                f"Expected `{name}` to have feature maps of known sizes: give "
                f"`input_shape`. Received: {shape} of '{operation_of(tensor).name}'"
            )
        return math.sqrt(math.prod(shape))

    found = {id(images): 0}
    for tensor in ancestors(tensors):
        sources = [x for x in node_of(tensor).input_tensors if id(x) in found]
        if sources and len(tensor.shape) == 4:
            source = max(sources, key=size)
            halvings = round(math.log2(size(source) / size(tensor)))
            found[id(tensor)] = found[id(source)] + halvings
    for tensor in tensors:
        if id(tensor) not in found:
            raise ValueError(
                f"Expected the features of `{name}` to come of feature maps alone. "
                f"Received: '{operation_of(tensor).name}', which follows a flat tensor"
            )
    return found


def _check_resized(name, images, tensors, values, exponents):
    """Raises a ValueError where maps do not grow or shrink as the images do."""
    for tensor in tensors:
        scale = 2 ** exponents[id(tensor)]
        for axis in (1, 2):
            old, new = tensor.shape[axis], values[id(tensor)].shape[axis]
            image, new_image = images.shape[axis], values[id(images)].shape[axis]
            is_open = new_image is None
            if is_open != (new is None) or (
                # Both are rounded down or up, by less than one in all.
                not is_open and abs(new - old - (new_image - image) / scale) >= 1
            ):
                raise _not_resizable(name, operation_of(tensor), values[id(images)])


def _check_levels(chosen, exponents):
    for level, tensor in chosen.items():
        found = exponents[id(tensor)]
        if level != f"P{found}":
            raise ValueError(
                "Expected `levels` to call stride 2^k 'Pk'. Received: "
                f"{level!r} for '{operation_of(tensor).name}', which is 'P{found}'"
            )
