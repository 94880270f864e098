"""Auxiliary heads that cost a small part of their network."""

import math

import keras

from keras_hsakd.graph import multiply_adds, num_kernel_weights
from keras_hsakd.layers import BatchNormalization

# Of all heads of a network together, over the network without them.
MULTIPLY_ADDS, PARAMETERS = 0.15, 0.25
# Numbers of channels that heads may have.
_WIDTHS = range(8, 257, 4)
# Feature maps are pooled to that many positions, in height and width.
_EDGE = 4


def heads(
    logits: keras.KerasTensor,
    taps: list[keras.KerasTensor],
    num_views: int,
    dtype: str,
) -> dict[str, keras.KerasTensor]:
    """Returns the joint logits of light heads, by their names.

    Each is average pooling to at most 4 x 4 positions; a 1x1 convolution; one of each
    channel by itself over all positions, which unlike pooling tells the views apart;
    another 1x1 one, with batch normalization and ReLU each; a linear layer to features
    of each view; and one to the classes, the same for all views, so that many classes
    do not take most of a head.
    All have as many channels, up to 256, as keep them within the budget together; no
    fewer than 8, with which they may cost more.

    Args:
        logits: Symbolic tensor `(B, N)` of the class logits of a network.
        taps: The feature maps of it that have a head each, shallowest first.
        num_views: Number `M` of views that the heads tell apart.
        dtype: Dtype of the joint logits.

    Returns:
        Dict from `"aux_1"`, `"aux_2"`, ... to symbolic tensors `(B, M * N)`.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> tap = network.get_layer("stage2_block1_relu2").output
    >>> heads(network.output, [tap], num_views=4, dtype="float32")["aux_1"].shape
    (None, 40)
    """
    sizes = logits.shape[-1], num_views
    channels = _affordable_channels(logits, taps, *sizes)
    return {
        f"aux_{number}": _head(tap, channels, *sizes, dtype, f"aux_{number}")
        for number, tap in enumerate(taps, start=1)
    }


def _affordable_channels(logits, taps, classes, views):
    """Returns the most channels with which all heads are within the budget."""
    most = MULTIPLY_ADDS * multiply_adds([logits])
    # Kernels alone, so that it holds however parameters are counted.
    largest = PARAMETERS * num_kernel_weights([logits])
    affordable = _WIDTHS[0]
    for channels in _WIDTHS:
        costs = [_cost(tap.shape, channels, classes, views) for tap in taps]
        multiplied, parameters = map(sum, zip(*costs, strict=True))
        if multiplied <= most and parameters <= largest:
            affordable = channels
    return affordable


def _cost(shape, channels, classes, views):
    """Returns multiply-adds and parameters of a head."""
    _, *edges, depth = shape
    size = _pooling(shape)
    positions = math.prod(math.ceil(edge / size) for edge in edges)
    of_a_view = min(channels, classes)
    views_layer, classes_layer = channels * views * of_a_view, of_a_view * classes
    biases = views * of_a_view + classes
    return (
        channels * (positions * (depth + 1) + channels)
        + views_layer
        + views * classes_layer,
        channels * (depth + positions + channels + 12)
        + views_layer
        + classes_layer
        + biases,
    )


def _pooling(shape):
    return math.ceil(max(shape[1:3]) / _EDGE)


def _head(tap, channels, classes, views, dtype, name):
    """Returns the joint logits of a head."""
    layers = keras.layers
    x = tap
    if (size := _pooling(tap.shape)) > 1:
        x = layers.AveragePooling2D(size, padding="same", name=f"{name}_pool")(x)
    for number, convolution in enumerate(
        (
            layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_conv1"),
            layers.DepthwiseConv2D(x.shape[1:3], use_bias=False, name=f"{name}_conv2"),
            layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_conv3"),
        ),
        start=1,
    ):
        x = BatchNormalization(name=f"{name}_bn{number}")(convolution(x))
        x = layers.ReLU(name=f"{name}_relu{number}")(x)
    x = layers.Flatten(name=f"{name}_features")(x)
    of_a_view = min(channels, classes)
    x = layers.Dense(views * of_a_view, name=f"{name}_views", dtype=dtype)(x)
    x = layers.Reshape((views, of_a_view), name=f"{name}_rows", dtype=dtype)(x)
    x = layers.Dense(classes, name=f"{name}_classes", dtype=dtype)(x)
    x = layers.Permute((2, 1), name=f"{name}_joint", dtype=dtype)(x)  # as joint labels
    return layers.Flatten(name=name, dtype=dtype)(x)
