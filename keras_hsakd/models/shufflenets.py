"""ShuffleNetV1 and ShuffleNetV2 for 32x32 images.

References: [Zhang et al., 2018](https://arxiv.org/abs/1707.01083) and
[Ma et al., 2018](https://arxiv.org/abs/1807.11164), in the variants of the authors'
implementation: a stem of one 1x1 convolution, without pooling.
"""

import itertools
from functools import partial
from typing import Unpack

import keras

from keras_hsakd.layers import ChannelShuffle, ChannelSplit
from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization, Options, repeat
from keras_hsakd.models.naming import Place, TorchNames

_STEM_FILTERS = 24
_GROUPS = 3  # of the first version's 1x1 convolutions


def shufflenet(
    version: int,
    filters: tuple[int, int, int],
    num_classes: int,
    neck_filters: int | None = None,
    blocks: tuple[int, int, int] = (4, 8, 4),
    name: str | None = None,
    **options: Unpack[Options],
) -> keras.Model:
    """Returns a ShuffleNet of the first or the second version.

    Args:
        version: 1 or 2.
        filters: Filters of each of the three stages: for version 1 growing multiples
            of 12 above 24, for version 2 even.
        num_classes: Number of classes `N >= 2`.
        neck_filters: Filters of the last 1x1 convolution, which version 1 does not
            have. Defaults to `None`, no convolution.
        blocks: Number of blocks in each stage. Defaults to `(4, 8, 4)`, as published.
        name: Name of the model. `checkpoints` knows the family by its beginning,
            `"shufflenet"`. Defaults to `"shufflenet_v{version}"`.
        **options: `input_shape`, `heads`, `num_views` and `head`, as in
            `keras_hsakd.models.create`.

    Returns:
        A functional `keras.Model`, as `keras_hsakd.models.create` does.

    Raises:
        ValueError: If an argument does not suit; says what was expected.

    Example:
    >>> network = keras_hsakd.models.shufflenet(
    ...     2, (24, 48, 96), num_classes=10, neck_filters=64, heads=False
    ... )
    >>> network.name
    'shufflenet_v2'

    References: [Zhang et al., 2018](https://arxiv.org/abs/1707.01083) and
    [Ma et al., 2018](https://arxiv.org/abs/1807.11164).
    """
    if version not in _STAGES:
        raise ValueError(
            f"Expected `version` to be 1 or 2. Received: version={version}"
        )
    builder.check_sizes(filters=filters, blocks=blocks)
    channels = (_STEM_FILTERS, *filters)
    grow = all(a < b for a, b in itertools.pairwise(channels))
    if version == 1 and not (grow and all(n % (4 * _GROUPS) == 0 for n in filters)):
        raise ValueError(
            f"Expected `filters` of version 1 to be growing multiples of {4 * _GROUPS} "
            f"above {_STEM_FILTERS}. Received: filters={filters}"
        )
    if version == 2 and any(n % 2 for n in filters):
        raise ValueError(
            f"Expected `filters` of version 2 to be even. Received: filters={filters}"
        )
    uniform = Initialization(conv="uniform")
    return builder.build(
        name or f"shufflenet_v{version}",
        stem=lambda scope, x: _conv_bn_relu(scope, x, _STEM_FILTERS),
        stages=[
            (partial(_STAGES[version], filters=width, blocks=count), 2)
            for width, count in zip(filters, blocks, strict=True)
        ],
        neck=lambda scope, x: (
            x if neck_filters is None else _conv_bn_relu(scope, x, neck_filters)
        ),
        backbone_initialization=uniform,
        head_initialization=(
            Initialization(zero_bias=True) if version == 1 else uniform
        ),
        num_classes=num_classes,
        **options,
    )


def torch_names(at: Place, layers: frozenset[str]) -> TorchNames:
    """Returns what the authors call the layers at a place."""
    stage, neck_conv, neck_bn = f"layer{at.stage}", "conv2", "bn2"
    if at.head:
        # A flat list, in which the neck follows the head's stages, of three in all.
        extractor = f"block_extractor{at.head}"
        stages = max(3 - at.head, 1)
        stage = f"{extractor}.{at.position}"
        neck_conv, neck_bn = f"{extractor}.{stages}", f"{extractor}.{stages + 1}"
    return TorchNames(
        f"{stage}.{at.block - 1}",
        {
            "stem_conv": "conv1",
            "stem_bn": "bn1",
            "neck_conv": neck_conv,
            "neck_bn": neck_bn,
        },
        classifier="linear",
    )


def _conv_bn_relu(scope, x, filters):
    x = scope.conv(x, filters, 1, 1, "conv")
    return scope.relu(scope.batch_norm(x, "bn"), "relu")


def _block_v1(scope, x, filters, stride):
    shortcut = x
    if stride > 1:
        # The zeros count, as in PyTorch's AvgPool2d(3, stride=2, padding=1).
        shortcut = keras.layers.ZeroPadding2D(1, name=scope.path("pool_pad"))(x)
        shortcut = keras.layers.AveragePooling2D(3, stride, name=scope.path("pool"))(
            shortcut
        )
        filters -= x.shape[-1]  # the shortcut adds these
    # The stem's few channels are not grouped.
    groups = 1 if x.shape[-1] == _STEM_FILTERS else _GROUPS
    x = scope.conv(x, filters // 4, 1, 1, "conv1", groups=groups)
    x = scope.relu(scope.batch_norm(x, "bn1"), "relu1")
    x = ChannelShuffle(groups, name=scope.path("shuffle"))(x)
    x = scope.depthwise_conv(x, 3, stride, "conv2")
    x = scope.relu(scope.batch_norm(x, "bn2"), "relu2")
    x = scope.conv(x, filters, 1, 1, "conv3", groups=_GROUPS)
    x = scope.batch_norm(x, "bn3")
    merge = keras.layers.Add if stride == 1 else keras.layers.Concatenate
    return scope.relu(merge(name=scope.path("merge"))([x, shortcut]), "relu3")


def _stage_v2(scope, x, stride, filters, blocks):
    # The first block also has two branches of convolutions at stride 1, in a head.
    x = _join(scope.within("block1"), _down_branches, x, filters // 2, stride)
    for number in range(2, blocks + 1):
        x = _join(scope.within(f"block{number}"), _basic_branches, x)
    return x


def _join(scope, branches, x, *arguments):
    x = keras.layers.Concatenate(name=scope.path("merge"))(
        branches(scope, x, *arguments)
    )
    return ChannelShuffle(2, name=scope.path("shuffle"))(x)


def _down_branches(scope, x, filters, stride):
    left = scope.batch_norm(scope.depthwise_conv(x, 3, stride, "conv1"), "bn1")
    left = scope.conv(left, filters, 1, 1, "conv2")
    left = scope.relu(scope.batch_norm(left, "bn2"), "relu1")
    right = scope.conv(x, filters, 1, 1, "conv3")
    right = scope.relu(scope.batch_norm(right, "bn3"), "relu2")
    right = scope.batch_norm(scope.depthwise_conv(right, 3, stride, "conv4"), "bn4")
    right = scope.conv(right, filters, 1, 1, "conv5")
    return left, scope.relu(scope.batch_norm(right, "bn5"), "relu3")


def _basic_branches(scope, x):
    kept, x = ChannelSplit(name=scope.path("split"))(x)
    filters = x.shape[-1]
    x = scope.conv(x, filters, 1, 1, "conv1")
    x = scope.relu(scope.batch_norm(x, "bn1"), "relu1")
    x = scope.batch_norm(scope.depthwise_conv(x, 3, 1, "conv2"), "bn2")
    x = scope.conv(x, filters, 1, 1, "conv3")
    return kept, scope.relu(scope.batch_norm(x, "bn3"), "relu2")


_STAGES = {1: partial(repeat, block=_block_v1), 2: _stage_v2}

VARIANTS = {
    "shufflenet_v1": partial(shufflenet, 1, (240, 480, 960)),
    "shufflenet_v2_x0_3": partial(shufflenet, 2, (40, 80, 160), neck_filters=512),
    "shufflenet_v2_x0_5": partial(shufflenet, 2, (48, 96, 192), neck_filters=1024),
    "shufflenet_v2": partial(shufflenet, 2, (116, 232, 464), neck_filters=1024),
    "shufflenet_v2_x1_5": partial(shufflenet, 2, (176, 352, 704), neck_filters=1024),
    "shufflenet_v2_x2": partial(shufflenet, 2, (224, 488, 976), neck_filters=2048),
}
