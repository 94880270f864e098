"""ResNets for 32x32 images.

Reference: [He et al., 2016](https://arxiv.org/abs/1512.03385), section 4.2, in the
variants of the authors' implementation.
"""

import functools

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import batch_norm, conv, relu, repeat

# name: (depth, filters of the stem, filters of each stage)
VARIANTS = {
    "resnet8": (8, 16, (16, 32, 64)),
    "resnet14": (14, 16, (16, 32, 64)),
    "resnet20": (20, 16, (16, 32, 64)),
    "resnet32": (32, 16, (16, 32, 64)),
    "resnet44": (44, 16, (16, 32, 64)),
    "resnet56": (56, 16, (16, 32, 64)),
    "resnet110": (110, 16, (16, 32, 64)),
    "resnet8x4": (8, 32, (64, 128, 256)),
    "resnet32x4": (32, 32, (64, 128, 256)),
}


def create(name: str, **arguments) -> keras.Model:
    """Returns the variant `name`; see `keras_hsakd.models.create`."""
    depth, stem_filters, filters = VARIANTS[name]
    blocks = (depth - 2) // 6

    def stem(images):
        x = conv(images, stem_filters, 3, 1, "stem_conv")
        return relu(batch_norm(x, "stem_bn"), "stem_relu")

    return builder.build(
        name,
        stem=stem,
        stages=[
            (
                functools.partial(
                    repeat, block=_basic_block, filters=width, blocks=blocks
                ),
                stride,
            )
            for width, stride in zip(filters, (1, 2, 2), strict=True)
        ],
        neck=lambda x, name: x,
        zero_bias=(False, True),
        **arguments,
    )


def _basic_block(x, filters, stride, name):
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = conv(x, filters, 1, stride, f"{name}_shortcut_conv")
        shortcut = batch_norm(shortcut, f"{name}_shortcut_bn")
    x = conv(x, filters, 3, stride, f"{name}_conv1")
    x = relu(batch_norm(x, f"{name}_bn1"), f"{name}_relu1")
    x = conv(x, filters, 3, 1, f"{name}_conv2")
    x = batch_norm(x, f"{name}_bn2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return relu(x, f"{name}_relu2")
