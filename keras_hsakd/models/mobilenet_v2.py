"""MobileNetV2 for 32x32 images, of half the width.

Reference: [Sandler et al., 2018](https://arxiv.org/abs/1801.04381), in the variant of
the authors' implementation: stem and second group at stride 1.
"""

import functools

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization

# name: factor of the filters
VARIANTS = {"mobilenet_v2": 0.5}

# Of each stage, its stride and its groups of blocks: (expansion, filters, blocks).
_STAGES = (
    (1, ((1, 16, 1), (6, 24, 2))),
    (2, ((6, 32, 3),)),
    (2, ((6, 64, 4), (6, 96, 3))),
    (2, ((6, 160, 3), (6, 320, 1))),
)
_NECK_FILTERS = 1280


def create(name: str, **arguments) -> keras.Model:
    """Returns the variant `name`; see `keras_hsakd.models.create`."""
    width = VARIANTS[name]
    initialization = Initialization(dense="normal", zero_bias=True)
    return builder.build(
        name,
        stem=lambda scope, x: _conv_bn_relu(scope, x, int(32 * width), 3),
        stages=[
            (functools.partial(_stage, groups=groups, width=width), stride)
            for stride, groups in _STAGES
        ],
        neck=lambda scope, x: _conv_bn_relu(scope, x, _NECK_FILTERS, 1),
        backbone_initialization=initialization,
        head_initialization=initialization,
        **arguments,
    )


def _conv_bn_relu(scope, x, filters, kernel_size):
    x = scope.conv(x, filters, kernel_size, 1, "conv")
    return scope.relu(scope.batch_norm(x, "bn"), "relu")


def _stage(scope, x, stride, groups, width):
    for group, (expansion, filters, blocks) in enumerate(groups, start=1):
        for number in range(1, blocks + 1):
            x = _inverted_residual(
                scope.within(f"group{group}_block{number}"),
                x,
                int(filters * width),
                stride if group == number == 1 else 1,
                expansion,
            )
    return x


def _inverted_residual(scope, x, filters, stride, expansion):
    shortcut = x
    x = scope.conv(x, expansion * x.shape[-1], 1, 1, "conv1")
    x = scope.relu(scope.batch_norm(x, "bn1"), "relu1")
    x = scope.depthwise_conv(x, 3, stride, "conv2")
    x = scope.relu(scope.batch_norm(x, "bn2"), "relu2")
    x = scope.conv(x, filters, 1, 1, "conv3")
    x = scope.batch_norm(x, "bn3")
    if stride > 1 or shortcut.shape[-1] != filters:
        return x
    return keras.layers.Add(name=scope.path("add"))([shortcut, x])
