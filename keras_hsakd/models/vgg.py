"""VGG with batch normalization, without its hidden linear layers, for 32x32 images.

Reference: [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556), in the
variants of the authors' implementation.
"""

import functools

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization

# name: convolutions of each of the five blocks
VARIANTS = {
    "vgg8_bn": (1, 1, 1, 1, 1),
    "vgg11_bn": (1, 1, 2, 2, 2),
    "vgg13_bn": (2, 2, 2, 2, 2),
    "vgg16_bn": (2, 2, 3, 3, 3),
    "vgg19_bn": (2, 2, 4, 4, 4),
}


def create(name: str, **arguments) -> keras.Model:
    """Returns the variant `name`; see `keras_hsakd.models.create`."""
    blocks = list(zip((64, 128, 256, 512, 512), VARIANTS[name], strict=True))
    # The last stage has two blocks, with no pooling between them.
    stages = [blocks[0:1], blocks[1:2], blocks[2:3], blocks[3:5]]
    return builder.build(
        name,
        stem=lambda scope, images: images,
        stages=[
            (functools.partial(_stage, blocks=blocks), stride)
            for blocks, stride in zip(stages, (1, 2, 2, 2), strict=True)
        ],
        backbone_initialization=Initialization(dense="normal", zero_bias=True),
        head_initialization=Initialization(conv="uniform"),
        **arguments,
    )


def _stage(scope, x, stride, blocks):
    if stride > 1:
        x = keras.layers.MaxPooling2D(stride, name=scope.path("pool"))(x)
    for group, (filters, convolutions) in enumerate(blocks, start=1):
        for number in range(1, convolutions + 1):
            block = scope.within(f"group{group}_block{number}")
            x = block.conv(x, filters, 3, 1, "conv", use_bias=True)
            x = block.relu(block.batch_norm(x, "bn"), "relu")
    return x
