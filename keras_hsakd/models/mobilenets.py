"""MobileNetV2 for 32x32 images.

Reference: [Sandler et al., 2018](https://arxiv.org/abs/1801.04381), in the variant of
the authors' implementation: stem and second group at stride 1.
"""

from functools import partial
from typing import Unpack

import keras

from keras_hsakd.models import builder
from keras_hsakd.models.builder import Initialization, Options
from keras_hsakd.models.naming import Place, TorchNames

# Of each stage, its stride and its groups of blocks: (expansion, filters, blocks).
_STAGES = (
    (1, ((1, 16, 1), (6, 24, 2))),
    (2, ((6, 32, 3),)),
    (2, ((6, 64, 4), (6, 96, 3))),
    (2, ((6, 160, 3), (6, 320, 1))),
)
_NECK_FILTERS = 1280


def mobilenet_v2(
    width: float, num_classes: int, name: str | None = None, **options: Unpack[Options]
) -> keras.Model:
    """Returns a MobileNetV2.

    Args:
        width: Factor of the filters, which are rounded down. The last convolution
            always has 1280.
        num_classes: Number of classes `N >= 2`.
        name: Name of the model. `checkpoints` knows the family by its beginning,
            `"mobilenet_v2"`. Defaults to just that.
        **options: `input_shape`, `heads`, `num_views` and `head`, as in
            `keras_hsakd.models.create`.

    Returns:
        A functional `keras.Model`, as `keras_hsakd.models.create` does.

    Raises:
        ValueError: If an argument does not suit; says what was expected.

    Example:
    >>> network = keras_hsakd.models.mobilenet_v2(0.25, num_classes=10, heads=False)
    >>> network.get_layer("stem_conv").filters
    8

    Reference: [Sandler et al., 2018](https://arxiv.org/abs/1801.04381).
    """
    if 16 * width < 1:
        raise ValueError(
            "Expected `width` to be at least 1 / 16, so that each layer has a filter. "
            f"Received: width={width}"
        )
    initialization = Initialization(dense="normal", zero_bias=True)
    return builder.build(
        name or "mobilenet_v2",
        stem=lambda scope, x: _conv_bn_relu(scope, x, int(32 * width), 3),
        stages=[
            (partial(_stage, groups=groups, width=width), stride)
            for stride, groups in _STAGES
        ],
        neck=lambda scope, x: _conv_bn_relu(scope, x, _NECK_FILTERS, 1),
        backbone_initialization=initialization,
        head_initialization=initialization,
        num_classes=num_classes,
        **options,
    )


def torch_names(at: Place, layers: frozenset[str]) -> TorchNames:
    """Returns what the authors call the layers at a place."""
    before = _STAGES[at.first_stage - 1 : at.stage - 1]
    position = sum(len(groups) for _, groups in before) + at.group - 1
    groups = f"block_extractor{at.head}" if at.head else "blocks"
    neck = f"conv2_{at.head}" if at.head else "conv2"
    return TorchNames(
        f"{groups}.{position}.{at.block - 1}",
        {
            "stem_conv": "conv1.0",
            "stem_bn": "conv1.1",
            "conv1": "conv.0",
            "bn1": "conv.1",
            "conv2": "conv.3",
            "bn2": "conv.4",
            "conv3": "conv.6",
            "bn3": "conv.7",
            "neck_conv": f"{neck}.0",
            "neck_bn": f"{neck}.1",
        },
        classifier="classifier",
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


VARIANTS = {"mobilenet_v2": partial(mobilenet_v2, width=0.5)}
