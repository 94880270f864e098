"""Wide residual networks for 32x32 images.

Reference: [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146).
"""

import functools

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import batch_norm, conv, relu, repeat

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
    blocks = (depth - 4) // 6
    return builder.build(
        name,
        stem=lambda images: conv(images, 16, 3, 1, "stem_conv"),
        stages=[
            (
                functools.partial(
                    repeat,
                    block=_pre_activation_block,
                    filters=width * widening,
                    blocks=blocks,
                ),
                stride,
            )
            for width, stride in ((16, 1), (32, 2), (64, 2))
        ],
        neck=lambda x, name: relu(batch_norm(x, f"{name}_bn"), f"{name}_relu"),
        zero_bias=(True, True),
        **arguments,
    )


def _pre_activation_block(x, filters, stride, name):
    activated = relu(batch_norm(x, f"{name}_bn1"), f"{name}_relu1")
    shortcut = x
    if x.shape[-1] != filters:
        shortcut = conv(activated, filters, 1, stride, f"{name}_shortcut_conv")
    x = conv(activated, filters, 3, stride, f"{name}_conv1")
    x = relu(batch_norm(x, f"{name}_bn2"), f"{name}_relu2")
    x = conv(x, filters, 3, 1, f"{name}_conv2")
    return keras.layers.Add(name=f"{name}_add")([shortcut, x])
