"""Wide residual networks for 32x32 images.

Reference: [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146).
"""

from functools import partial
from typing import Unpack

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization, Options, repeat
from keras_hsakd.models.naming import Place, TorchNames


def wrn(
    depth: int,
    widening: int,
    num_classes: int,
    name: str | None = None,
    **options: Unpack[Options],
) -> keras.Model:
    """Returns a wide residual network, WRN-`depth`-`widening`.

    Args:
        depth: Number of layers, `6n + 4` for `n` blocks in each of the three stages.
        widening: Factor of the filters, which are 16, 32 and 64 for 1.
        num_classes: Number of classes `N >= 2`.
        name: Name of the model. `checkpoints` knows the family by its beginning,
            `"wrn"`. Defaults to `"wrn_{depth}_{widening}"`.
        **options: `input_shape`, `heads`, `num_views` and `head`, as in
            `keras_hsakd.models.create`.

    Returns:
        A functional `keras.Model`, as `keras_hsakd.models.create` does.

    Raises:
        ValueError: If an argument does not suit; says what was expected.

    Example:
    >>> keras_hsakd.models.wrn(22, 1, num_classes=10).name
    'wrn_22_1'

    Reference:
    [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146).
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(
            "Expected `depth` to be 6n + 4, for n >= 1 blocks in each stage. "
            f"Received: depth={depth}"
        )
    builder.check_sizes(widening=widening)
    stages = [
        (
            partial(
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
        name or f"wrn_{depth}_{widening}",
        stem=lambda scope, images: scope.conv(images, 16, 3, 1, "conv"),
        stages=stages,
        neck=lambda scope, x: scope.relu(scope.batch_norm(x, "bn"), "relu"),
        backbone_initialization=Initialization(zero_bias=True),
        head_initialization=Initialization(zero_bias=True),
        num_classes=num_classes,
        **options,
    )


def torch_names(at: Place, layers: frozenset[str]) -> TorchNames:
    """Returns what the authors call the layers at a place."""
    stage = f"block_extractor{at.head}.{at.position}" if at.head else f"block{at.stage}"
    return TorchNames(
        f"{stage}.layer.{at.block - 1}",
        {
            "stem_conv": "conv1",
            "shortcut_conv": "convShortcut",
            "neck_bn": f"bn{at.head or 1}",
        },
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


VARIANTS = {
    "wrn_10_1": partial(wrn, depth=10, widening=1),
    "wrn_16_1": partial(wrn, depth=16, widening=1),
    "wrn_16_2": partial(wrn, depth=16, widening=2),
    "wrn_40_1": partial(wrn, depth=40, widening=1),
    "wrn_40_2": partial(wrn, depth=40, widening=2),
}
