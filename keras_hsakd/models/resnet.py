"""ResNets: of three stages and of four for 32x32 images, and ImageNet's.

References: [He et al., 2016](https://arxiv.org/abs/1512.03385), section 4.2 for those
of three stages, in the variants of the authors' implementation; torchvision's
`resnet.py` for ImageNet's.
"""

import functools
from typing import NamedTuple

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization, repeat


class Variant(NamedTuple):
    """A row of the table.

    Attributes:
        block: `"basic"`, two 3x3 convolutions, or `"bottleneck"`.
        stem_filters: Filters of the stem.
        filters: Filters of each stage, within a block.
        blocks: Blocks of each stage.
        image_size: Height and width of the images it is made for.
        zero_head_bias: Whether the biases of the heads start at zero.
    """

    block: str
    stem_filters: int
    filters: tuple[int, ...]
    blocks: tuple[int, ...]
    image_size: int = 32
    zero_head_bias: bool = False


def _three_stages(depth, stem_filters=16, filters=(16, 32, 64)):
    blocks = 3 * ((depth - 2) // 6,)
    return Variant("basic", stem_filters, filters, blocks, zero_head_bias=True)


_four_stages = functools.partial(Variant, stem_filters=64, filters=(64, 128, 256, 512))

VARIANTS = {
    "resnet8": _three_stages(8),
    "resnet14": _three_stages(14),
    "resnet20": _three_stages(20),
    "resnet32": _three_stages(32),
    "resnet44": _three_stages(44),
    "resnet56": _three_stages(56),
    "resnet110": _three_stages(110),
    "resnet8x4": _three_stages(8, 32, (64, 128, 256)),
    "resnet32x4": _three_stages(32, 32, (64, 128, 256)),
    "resnet50": _four_stages("bottleneck", blocks=(3, 4, 6, 3)),
    "resnet101": _four_stages("bottleneck", blocks=(3, 4, 23, 3)),
    "resnet152": _four_stages("bottleneck", blocks=(3, 8, 36, 3)),
    "resnet18_imagenet": _four_stages("basic", blocks=(2, 2, 2, 2), image_size=224),
    "resnet34_imagenet": _four_stages("basic", blocks=(3, 4, 6, 3), image_size=224),
    "resnet50_imagenet": _four_stages(
        "bottleneck", blocks=(3, 4, 6, 3), image_size=224
    ),
}


def create(name: str, **arguments) -> keras.Model:
    """Returns the variant `name`; see `keras_hsakd.models.create`."""
    variant = VARIANTS[name]
    stages = [
        (
            functools.partial(
                repeat, block=_BLOCKS[variant.block], filters=width, blocks=blocks
            ),
            1 if number == 0 else 2,
        )
        for number, (width, blocks) in enumerate(
            zip(variant.filters, variant.blocks, strict=True)
        )
    ]
    stem = _imagenet_stem if variant.image_size > 32 else _stem
    return builder.build(
        name,
        stem=functools.partial(stem, filters=variant.stem_filters),
        stages=stages,
        head_initialization=Initialization(zero_bias=variant.zero_head_bias),
        **arguments,
    )


def _stem(scope, images, filters):
    x = scope.conv(images, filters, 3, 1, "conv")
    return scope.relu(scope.batch_norm(x, "bn"), "relu")


def _imagenet_stem(scope, images, filters):
    x = scope.conv(images, filters, 7, 2, "conv")
    x = scope.relu(scope.batch_norm(x, "bn"), "relu")
    # Zeros pad as PyTorch's minus infinity does: nothing is below them here.
    x = keras.layers.ZeroPadding2D(1, name=scope.path("pool_pad"))(x)
    return keras.layers.MaxPooling2D(3, 2, name=scope.path("pool"))(x)


def _shortcut(scope, x, filters, stride):
    if stride == 1 and x.shape[-1] == filters:
        return x
    x = scope.conv(x, filters, 1, stride, "shortcut_conv")
    return scope.batch_norm(x, "shortcut_bn")


def _basic_block(scope, x, filters, stride):
    shortcut = _shortcut(scope, x, filters, stride)
    x = scope.conv(x, filters, 3, stride, "conv1")
    x = scope.relu(scope.batch_norm(x, "bn1"), "relu1")
    x = scope.conv(x, filters, 3, 1, "conv2")
    x = scope.batch_norm(x, "bn2")
    x = keras.layers.Add(name=scope.path("add"))([shortcut, x])
    return scope.relu(x, "relu2")


def _bottleneck(scope, x, filters, stride):
    shortcut = _shortcut(scope, x, 4 * filters, stride)
    x = scope.conv(x, filters, 1, 1, "conv1")
    x = scope.relu(scope.batch_norm(x, "bn1"), "relu1")
    x = scope.conv(x, filters, 3, stride, "conv2")
    x = scope.relu(scope.batch_norm(x, "bn2"), "relu2")
    x = scope.conv(x, 4 * filters, 1, 1, "conv3")
    x = scope.batch_norm(x, "bn3")
    x = keras.layers.Add(name=scope.path("add"))([shortcut, x])
    return scope.relu(x, "relu3")


_BLOCKS = {"basic": _basic_block, "bottleneck": _bottleneck}
