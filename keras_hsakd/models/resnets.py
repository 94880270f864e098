"""ResNets: of three stages and of four for 32x32 images, and ImageNet's.

References: [He et al., 2016](https://arxiv.org/abs/1512.03385), section 4.2 for those
of three stages, in the variants of the authors' implementation; torchvision's
`resnet.py` for ImageNet's.
"""

from functools import partial
from typing import Unpack

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization, Options, repeat
from keras_hsakd.models.naming import Place, TorchNames


def resnet(
    blocks: tuple[int, ...],
    filters: tuple[int, ...],
    num_classes: int,
    block: str = "basic",
    stem_filters: int | None = None,
    image_size: int = 32,
    name: str | None = None,
    **options: Unpack[Options],
) -> keras.Model:
    """Returns a ResNet.

    Args:
        blocks: Number of blocks in each stage.
        filters: Filters of each stage; the output of a bottleneck has four times as
            many.
        num_classes: Number of classes `N >= 2`.
        block: `"basic"`, two 3x3 convolutions, or `"bottleneck"`, a 3x3 convolution
            between two 1x1 convolutions. Defaults to `"basic"`.
        stem_filters: Filters of the stem. Defaults to those of the first stage.
        image_size: Height and width of the images that it is made for. The stem is one
            3x3 convolution up to 32, ImageNet's above. Defaults to 32.
        name: Name of the model. `checkpoints` knows the family by its beginning,
            `"resnet"`. Defaults to `"resnet{depth}"`, for ImageNet's stem to
            `"resnet{depth}_imagenet"`.
        **options: `input_shape`, `heads`, `num_views` and `head`, as in
            `keras_hsakd.models.create`.

    Returns:
        A functional `keras.Model`, as `keras_hsakd.models.create` does.

    Raises:
        ValueError: If an argument does not suit; says what was expected.

    Example:
    >>> keras_hsakd.models.resnet((2, 2, 2), (16, 32, 64), num_classes=10).name
    'resnet14'

    Reference: [He et al., 2016](https://arxiv.org/abs/1512.03385).
    """
    if block not in _BLOCKS:
        raise ValueError(
            f"Expected `block` to be one of {list(_BLOCKS)}. Received: block={block!r}"
        )
    builder.check_sizes(blocks=blocks, filters=filters)
    if stem_filters is None:
        stem_filters = filters[0]
    apply, convolutions = _BLOCKS[block]
    stem, suffix = (_stem, "") if image_size <= 32 else (_imagenet_stem, "_imagenet")
    return builder.build(
        name or f"resnet{convolutions * sum(blocks) + 2}{suffix}",
        stem=partial(stem, filters=stem_filters),
        stages=[
            (
                partial(repeat, block=apply, filters=width, blocks=count),
                1 if number == 0 else 2,
            )
            for number, (width, count) in enumerate(zip(filters, blocks, strict=True))
        ],
        # As in the authors' networks of three stages, unlike those of four.
        head_initialization=Initialization(zero_bias=len(blocks) == 3),
        image_size=image_size,
        num_classes=num_classes,
        **options,
    )


def torch_names(at: Place, layers: frozenset[str]) -> TorchNames:
    """Returns what the authors call the layers at a place."""
    # They took those of four stages for 32x32 images from somewhere else.
    is_other = "stage4_block1_conv1" in layers and "stem_pool" not in layers
    shortcut = "shortcut" if is_other else "downsample"
    stage = f"block_extractor{at.head}.{at.position}" if at.head else f"layer{at.stage}"
    return TorchNames(
        f"{stage}.{at.block - 1}",
        {
            "stem_conv": "conv1",
            "stem_bn": "bn1",
            "shortcut_conv": f"{shortcut}.0",
            "shortcut_bn": f"{shortcut}.1",
        },
        classifier="linear" if is_other else "fc",
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


# By name: the block, and its number of convolutions.
_BLOCKS = {"basic": (_basic_block, 2), "bottleneck": (_bottleneck, 3)}


def _three_stages(depth, widening=1, **arguments):
    filters = tuple(widening * n for n in (16, 32, 64))
    return partial(resnet, 3 * ((depth - 2) // 6,), filters, **arguments)


def _four_stages(*blocks, **arguments):
    return partial(resnet, blocks, (64, 128, 256, 512), **arguments)


VARIANTS = {
    "resnet8": _three_stages(8),
    "resnet14": _three_stages(14),
    "resnet20": _three_stages(20),
    "resnet32": _three_stages(32),
    "resnet44": _three_stages(44),
    "resnet56": _three_stages(56),
    "resnet110": _three_stages(110),
    "resnet8x4": _three_stages(8, 4, stem_filters=32),
    "resnet32x4": _three_stages(32, 4, stem_filters=32),
    "resnet50": _four_stages(3, 4, 6, 3, block="bottleneck"),
    "resnet101": _four_stages(3, 4, 23, 3, block="bottleneck"),
    "resnet152": _four_stages(3, 8, 36, 3, block="bottleneck"),
    "resnet18_imagenet": _four_stages(2, 2, 2, 2, image_size=224),
    "resnet34_imagenet": _four_stages(3, 4, 6, 3, image_size=224),
    "resnet50_imagenet": _four_stages(3, 4, 6, 3, block="bottleneck", image_size=224),
}
