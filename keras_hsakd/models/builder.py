"""The one builder of the zoo: a backbone and its auxiliary heads from stages."""

from collections.abc import Callable

import keras

from keras_hsakd.layers import BatchNormalization
from keras_hsakd.ops import NUM_ROTATIONS

Block = Callable[..., keras.KerasTensor]


def build(
    name: str,
    stem: Block,
    stages: list[tuple[Block, int]],
    neck: Block,
    num_classes: int,
    input_shape: tuple[int, int, int],
    heads: bool,
    zero_bias: tuple[bool, bool],
) -> keras.Model:
    """Returns a backbone, with a copy of all that follows each stage as its head.

    Head `l` taps the output of stage `l` and repeats the stages after it and the neck
    with weights of its own. Nothing follows the last stage, so the last head repeats
    that stage itself, at stride 1.

    Args:
        name: Name of the model.
        stem: Function `stem(images)`.
        stages: Pairs of a function `stage(x, stride, name)` and its stride.
        neck: Function `neck(x, name)` from feature maps to what is pooled.
        num_classes: Number of classes `N`.
        input_shape: Shape `(height, width, channels)` of an image.
        heads: Whether to add the auxiliary heads.
        zero_bias: Whether the biases of the backbone's classifier, and of the heads',
            start at zero instead of PyTorch's uniform values.

    Returns:
        A functional model from images to `{"logits": (B, N), "aux_1": (B, 4N), ...}`,
        or to the class logits alone without heads.

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.2 and
    the authors' implementation.
    """

    def classify(x, units, zero, name):
        x = keras.layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
        return dense(x, units, zero, name)

    images = keras.Input(input_shape, name="images")
    x = stem(images)
    taps = []
    for number, (stage, stride) in enumerate(stages, start=1):
        x = stage(x, stride, f"stage{number}")
        taps.append(x)
    logits = classify(neck(x, "neck"), num_classes, zero_bias[0], "logits")
    if not heads:
        return keras.Model(images, logits, name=name)

    outputs = {"logits": logits}
    numbered = [(number, *stage) for number, stage in enumerate(stages, start=1)]
    last_number, last_stage, _ = numbered[-1]
    for index, x in enumerate(taps, start=1):
        head = f"aux_{index}"
        for number, stage, stride in numbered[index:] or [(last_number, last_stage, 1)]:
            x = stage(x, stride, f"{head}_stage{number}")
        outputs[head] = classify(
            neck(x, f"{head}_neck"), NUM_ROTATIONS * num_classes, zero_bias[1], head
        )
    return keras.Model(images, outputs, name=name)


def repeat(
    x: keras.KerasTensor,
    stride: int,
    name: str,
    block: Block,
    filters: int,
    blocks: int,
) -> keras.KerasTensor:
    """Applies a stage of equal blocks, the first of which has the stride."""
    for number in range(1, blocks + 1):
        x = block(x, filters, stride if number == 1 else 1, f"{name}_block{number}")
    return x


def conv(
    x: keras.KerasTensor, filters: int, kernel_size: int, stride: int, name: str
) -> keras.KerasTensor:
    """Applies a convolution without bias that pads as PyTorch's `padding=k // 2`.

    At stride 1 that is Keras' "same"; at stride 2 Keras would pad right and bottom
    only. The weights start at N(0, sqrt(2 / (k * k * filters))).
    """
    padding = "same"
    if stride > 1:
        padding = "valid"
        if kernel_size > 1:
            x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        ),
        name=name,
    )(x)


def batch_norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Applies batch normalization with PyTorch's settings."""
    return BatchNormalization(name=name)(x)


def relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Applies a rectified linear unit."""
    return keras.layers.ReLU(name=name)(x)


def dense(
    x: keras.KerasTensor, units: int, zero_bias: bool, name: str
) -> keras.KerasTensor:
    """Applies a linear layer that starts as PyTorch's, U(+-1 / sqrt(fan_in)).

    Its output is float32 or wider also under mixed precision, as logits must be.
    """
    limit = x.shape[-1] ** -0.5
    uniform = keras.initializers.RandomUniform
    return keras.layers.Dense(
        units,
        kernel_initializer=uniform(-limit, limit),
        bias_initializer="zeros" if zero_bias else uniform(-limit, limit),
        dtype=keras.backend.result_type(
            keras.config.dtype_policy().variable_dtype, "float32"
        ),
        name=name,
    )(x)
