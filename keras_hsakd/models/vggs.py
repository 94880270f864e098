"""VGG with batch normalization, without its hidden linear layers, for 32x32 images.

Reference: [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556), in the
variants of the authors' implementation.
"""

from functools import partial
from typing import Unpack

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization, Options
from keras_hsakd.models.naming import Place, TorchNames

_FILTERS = (64, 128, 256, 512, 512)  # of each block


def vgg(
    convolutions: tuple[int, int, int, int, int],
    num_classes: int,
    name: str | None = None,
    **options: Unpack[Options],
) -> keras.Model:
    """Returns a VGG with batch normalization and one linear layer.

    Args:
        convolutions: Number of convolutions in each of the five blocks.
        num_classes: Number of classes `N >= 2`.
        name: Name of the model. `checkpoints` knows the family by its beginning,
            `"vgg"`. Defaults to `"vgg{depth}_bn"`, where the depth counts the three
            linear layers of the original.
        **options: `input_shape`, `heads`, `num_views` and `head`, as in
            `keras_hsakd.models.create`.

    Returns:
        A functional `keras.Model`, as `keras_hsakd.models.create` does.

    Raises:
        ValueError: If an argument does not suit; says what was expected.

    Example:
    >>> keras_hsakd.models.vgg((1, 1, 1, 1, 2), num_classes=10, heads=False).name
    'vgg9_bn'

    Reference: [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556).
    """
    if len(convolutions) != len(_FILTERS) or min(convolutions) < 1:
        raise ValueError(
            "Expected `convolutions` to be the number in each of five blocks, at least "
            f"1. Received: convolutions={convolutions}"
        )
    blocks = list(zip(_FILTERS, convolutions, strict=True))
    # The last stage has two blocks, with no pooling between them.
    stages = [blocks[0:1], blocks[1:2], blocks[2:3], blocks[3:5]]
    return builder.build(
        name or f"vgg{sum(convolutions) + 3}_bn",
        stem=lambda scope, images: images,
        stages=[
            (partial(_stage, blocks=blocks), stride)
            for blocks, stride in zip(stages, (1, 2, 2, 2), strict=True)
        ],
        backbone_initialization=Initialization(dense="normal", zero_bias=True),
        head_initialization=Initialization(conv="uniform"),
        num_classes=num_classes,
        **options,
    )


def torch_names(at: Place, layers: frozenset[str]) -> TorchNames:
    """Returns what the authors call the layers at a place."""
    # Only the last stage has a second group.
    position = at.position + at.group - 1
    block = f"block{position}"
    if at.head:
        # A flat list of pooling, block and activation; the second group, and the last
        # head, have no pooling.
        position = 3 * position + 1 - (at.group > 1) - (at.stage == at.head)
        block = f"block_extractor{at.head}.{position}"
    conv = 3 * (at.block - 1)
    return TorchNames(
        block, {"conv": f"{conv}", "bn": f"{conv + 1}"}, classifier="classifier"
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


VARIANTS = {
    "vgg8_bn": partial(vgg, convolutions=(1, 1, 1, 1, 1)),
    "vgg11_bn": partial(vgg, convolutions=(1, 1, 2, 2, 2)),
    "vgg13_bn": partial(vgg, convolutions=(2, 2, 2, 2, 2)),
    "vgg16_bn": partial(vgg, convolutions=(2, 2, 3, 3, 3)),
    "vgg19_bn": partial(vgg, convolutions=(2, 2, 4, 4, 4)),
}
