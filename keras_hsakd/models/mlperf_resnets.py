"""MLPerf Tiny's image classifier, a ResNet of three blocks for 32x32 images.

References: [Banbury et al., 2021](https://arxiv.org/abs/2106.07597), and
`resnet_v1_eembc` of [mlcommons/tiny](https://github.com/mlcommons/tiny).
"""

from functools import partial
from typing import Unpack

import keras

from keras_hsakd.layers import BatchNormalization
from keras_hsakd.models import builder, resnets
from keras_hsakd.models.builder import Initialization, Options

_INITIALIZATION = Initialization(dense="he_normal", zero_bias=True)


def mlperf_resnet(
    filters: int,
    num_classes: int,
    name: str | None = None,
    **options: Unpack[Options],
) -> keras.Model:
    """Returns MLPerf Tiny's ResNet-8, with heads.

    It has the layers of the published Keras model: convolutions with biases and Keras'
    "same" padding, batch normalization with an epsilon of 0.001 and a momentum of 0.99,
    shortcuts without one. So `keras_hsakd.checkpoints.load_keras` loads its file. Two
    things differ: the output is logits, and no layer has a regularizer. Theirs,
    `l2(1e-4)` of each convolution's kernel, is a weight decay of 2e-4; here the decay
    is the optimizer's, see `keras_hsakd.optimizers.SGD`, and is of all weights.

    Args:
        filters: Filters of the first of the three stages; the others have twice and
            four times as many.
        num_classes: Number of classes `N >= 2`.
        name: Name of the model. `checkpoints` knows the family by its beginning,
            `"mlperf_resnet"`. Defaults to `"mlperf_resnet8_{filters}"`.
        **options: `input_shape`, `heads`, `num_views` and `head`, as in
            `keras_hsakd.models.create`.

    Returns:
        A functional `keras.Model`, as `keras_hsakd.models.create` does. That of 16
        filters has 78,666 parameters for 10 classes, without heads.

    Raises:
        ValueError: If an argument does not suit; says what was expected.

    Example:
    >>> keras_hsakd.models.mlperf_resnet(16, 10, heads=False).count_params()
    78666

    Reference: [Banbury et al., 2021](https://arxiv.org/abs/2106.07597).
    """
    builder.check_sizes(filters=filters)
    return builder.build(
        name or f"mlperf_resnet8_{filters}",
        stem=partial(_stem, filters=filters),
        stages=[
            (partial(_stage, filters=filters), 1),
            (partial(_stage, filters=2 * filters), 2),
            (partial(_stage, filters=4 * filters), 2),
        ],
        backbone_initialization=_INITIALIZATION,
        head_initialization=_INITIALIZATION,
        num_classes=num_classes,
        **options,
    )


# There is no PyTorch code of it: its weights are named as those of other ResNets.
torch_names = resnets.torch_names


def _conv(scope, x, filters, kernel_size, stride, name):
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding="same",
        kernel_initializer="he_normal",
        name=scope.path(name),
    )(x)


def _batch_norm(scope, x, name):
    return BatchNormalization(momentum=0.99, epsilon=1e-3, name=scope.path(name))(x)


def _stem(scope, images, filters):
    x = _conv(scope, images, filters, 3, 1, "conv")
    return scope.relu(_batch_norm(scope, x, "bn"), "relu")


def _stage(scope, x, stride, filters):
    scope = scope.within("block1")
    y = _conv(scope, x, filters, 3, stride, "conv1")
    y = scope.relu(_batch_norm(scope, y, "bn1"), "relu1")
    y = _conv(scope, y, filters, 3, 1, "conv2")
    y = _batch_norm(scope, y, "bn2")
    if stride > 1:
        x = _conv(scope, x, filters, 1, stride, "shortcut_conv")
    return scope.relu(keras.layers.Add(name=scope.path("add"))([x, y]), "relu2")


VARIANTS = {
    "mlperf_resnet8": partial(mlperf_resnet, 16),
    # That of their distillation script, and the largest that they publish.
    "mlperf_resnet8_26": partial(mlperf_resnet, 26),
    "mlperf_resnet8_40": partial(mlperf_resnet, 40),
}
