"""Wide residual networks for 32x32 images.

Reference: [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146).
"""

import functools

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization, repeat

# name: (depth, widening factor)
VARIANTS = {
    "wrn_10_1": (10, 1),
    "wrn_16_1": (16, 1),
    "wrn_16_2": (16, 2),
    "wrn_40_1": (40, 1),
    "wrn_40_2": (40, 2),
}


def create(name: str, **arguments) -> keras.Model:
    """Returns the variant `name`; see `keras_hsakd.models.create`."""
    depth, widening = VARIANTS[name]
    stages = [
        (
            functools.partial(
                repeat,
                block=_pre_activation_block,
                filters=width * widening,
                blocks=(depth - 4) // 6,
            ),
            stride,
        )
        for width, stride in ((16, 1), (32, 2), (64, 2))
    ]
    return builder.build(
        name,
        stem=lambda scope, images: scope.conv(images, 16, 3, 1, "conv"),
        stages=stages,
        neck=lambda scope, x: scope.relu(scope.batch_norm(x, "bn"), "relu"),
        backbone_initialization=Initialization(zero_bias=True),
        head_initialization=Initialization(zero_bias=True),
        **arguments,
    )


def _pre_activation_block(scope, x, filters, stride):
    activated = scope.relu(scope.batch_norm(x, "bn1"), "relu1")
    shortcut = x
    if x.shape[-1] != filters:
        shortcut = scope.conv(activated, filters, 1, stride, "shortcut_conv")
    x = scope.conv(activated, filters, 3, stride, "conv1")
    x = scope.relu(scope.batch_norm(x, "bn2"), "relu2")
    x = scope.conv(x, filters, 3, 1, "conv2")
    return keras.layers.Add(name=scope.path("add"))([shortcut, x])
