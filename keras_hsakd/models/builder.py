"""The one builder of the zoo: a backbone and its auxiliary heads from stages."""

from collections.abc import Callable
from typing import NamedTuple, TypedDict

import keras

from keras_hsakd import light
from keras_hsakd.graph import check_channels_last
from keras_hsakd.layers import BatchNormalization, Conv2D
from keras_hsakd.names import HEADS
from keras_hsakd.ops import NUM_ROTATIONS


class Initialization(NamedTuple):
    """How the weights of a backbone, or of the heads, start.

    Attributes:
        conv: `"normal"`, N(0, sqrt(2 / (k * k * filters))), whatever the groups; or
            `"uniform"`, PyTorch's default U(+-1 / sqrt(fan_in)).
        dense: `"normal"`, N(0, 0.01); `"uniform"` as above; or an initializer of
            Keras by its name.
        zero_bias: Whether biases start at zero instead of PyTorch's default
            U(+-1 / sqrt(fan_in)).
    """

    conv: str = "normal"
    dense: str = "uniform"
    zero_bias: bool = False


class Scope(NamedTuple):
    """A place in a network: makes layers that are named and initialised for it.

    Attributes:
        name: Prefix of the names of its layers; empty for the whole backbone.
        initialization: How its weights start.
    """

    name: str
    initialization: Initialization

    def within(self, name: str) -> "Scope":
        """Returns the place `name` in this one."""
        return self._replace(name=self.path(name))

    def path(self, name: str) -> str:
        """Returns the name of a layer."""
        return f"{self.name}_{name}" if self.name else name

    def conv(
        self,
        x: keras.KerasTensor,
        filters: int,
        kernel_size: int,
        stride: int,
        name: str,
        groups: int = 1,
        use_bias: bool = False,
    ) -> keras.KerasTensor:
        """Applies a convolution that pads as PyTorch's `padding=k // 2`.

        At stride 1 that is Keras' "same"; at stride 2 Keras would pad right and bottom
        only.
        """
        fan_in = kernel_size**2 * x.shape[-1] // groups
        x, padding = self._pad(x, kernel_size, stride, name)
        return Conv2D(
            filters,
            kernel_size,
            strides=stride,
            padding=padding,
            groups=groups,
            use_bias=use_bias,
            kernel_initializer=self._conv_initializer(kernel_size, filters, fan_in),
            bias_initializer=self._bias_initializer(fan_in),
            name=self.path(name),
        )(x)

    def depthwise_conv(
        self, x: keras.KerasTensor, kernel_size: int, stride: int, name: str
    ) -> keras.KerasTensor:
        """Applies a convolution of each channel by itself, padding as `conv`."""
        x, padding = self._pad(x, kernel_size, stride, name)
        return keras.layers.DepthwiseConv2D(
            kernel_size,
            strides=stride,
            padding=padding,
            use_bias=False,
            depthwise_initializer=self._conv_initializer(
                kernel_size, x.shape[-1], fan_in=kernel_size**2
            ),
            name=self.path(name),
        )(x)

    def batch_norm(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Applies batch normalization with PyTorch's settings."""
        return BatchNormalization(name=self.path(name))(x)

    def relu(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Applies a rectified linear unit."""
        return keras.layers.ReLU(name=self.path(name))(x)

    def dense(self, x: keras.KerasTensor, units: int, name: str) -> keras.KerasTensor:
        """Applies a linear layer.

        Its output is float32 or wider also under mixed precision, as logits must be.
        """
        fan_in = x.shape[-1]
        ours = {
            "normal": keras.initializers.RandomNormal(stddev=0.01),
            "uniform": _uniform(fan_in),
        }
        dense = self.initialization.dense
        return keras.layers.Dense(
            units,
            kernel_initializer=ours.get(dense, dense),
            bias_initializer=self._bias_initializer(fan_in),
            dtype=keras.backend.result_type(
                keras.config.dtype_policy().variable_dtype, "float32"
            ),
            name=self.path(name),
        )(x)

    def _pad(self, x, kernel_size, stride, name):
        """Returns the padded input, and Keras' padding for the convolution."""
        if stride == 1:
            return x, "same"
        if kernel_size > 1:
            pad = keras.layers.ZeroPadding2D(
                kernel_size // 2, name=self.path(f"{name}_pad")
            )
            x = pad(x)
        return x, "valid"

    def _conv_initializer(self, kernel_size, filters, fan_in):
        if self.initialization.conv == "uniform":
            return _uniform(fan_in)
        deviation = (2 / (kernel_size**2 * filters)) ** 0.5
        return keras.initializers.RandomNormal(stddev=deviation)

    def _bias_initializer(self, fan_in):
        return "zeros" if self.initialization.zero_bias else _uniform(fan_in)


def _uniform(fan_in):
    """Returns PyTorch's default, `kaiming_uniform_(a=sqrt(5))`."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


_DEFAULT = Initialization()
Stem = Callable[[Scope, keras.KerasTensor], keras.KerasTensor]
Stage = Callable[[Scope, keras.KerasTensor, int], keras.KerasTensor]
Block = Callable[[Scope, keras.KerasTensor, int, int], keras.KerasTensor]


class Options(TypedDict, total=False):
    """Arguments of all networks, see `keras_hsakd.models.create`."""

    input_shape: tuple[int, int, int] | None
    heads: bool
    num_views: int
    head: str


def build(
    name: str,
    stem: Stem,
    stages: list[tuple[Stage, int]],
    num_classes: int,
    input_shape: tuple[int, int, int] | None = None,
    heads: bool = True,
    num_views: int = NUM_ROTATIONS,
    head: str = "copy",
    image_size: int = 32,
    neck: Stem = lambda scope, x: x,
    backbone_initialization: Initialization = _DEFAULT,
    head_initialization: Initialization = _DEFAULT,
) -> keras.Model:
    """Returns a backbone, with an auxiliary head after each of its stages.

    Head `l` taps the output of stage `l`. A copied one repeats the stages after it and
    the neck with weights of its own. Nothing follows the last stage, so the last head
    repeats that stage itself, at stride 1.

    Args:
        name: Name of the model.
        stem: Function `stem(scope, images)`.
        stages: Pairs of a function `stage(scope, x, stride)` and its stride.
        num_classes: Number of classes `N >= 2`.
        input_shape: Shape `(height, width, channels)` of an image. Defaults to color
            images of `image_size`.
        heads: Whether to add the auxiliary heads. Defaults to `True`.
        num_views: Number `M >= 2` of views that the heads tell apart. Defaults to 4.
        head: `"copy"` or `"light"`, see `keras_hsakd.light`. Defaults to `"copy"`.
        image_size: Height and width of the images that the network is made for.
            Defaults to 32.
        neck: Function `neck(scope, x)` from feature maps to what is pooled. Defaults
            to the identity.
        backbone_initialization: How the backbone's weights start.
        head_initialization: How the heads' weights start.

    Returns:
        A functional model from images to `{"logits": (B, N), "aux_1": (B, M * N), ...}`
        or, without heads, to the class logits alone.

    Raises:
        ValueError: If there are fewer than two classes or views, no such heads,
            `input_shape` has not three numbers, or Keras is set to channels first.

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.2 and
    the authors' implementation.
    """
    if input_shape is None:
        input_shape = (image_size, image_size, 3)
    _check(num_classes, input_shape, num_views, head)

    def classify(scope, x, units, name):
        pool = keras.layers.GlobalAveragePooling2D(name=scope.path(f"{name}_pool"))
        return scope.dense(pool(x), units, name)

    backbone = Scope("", backbone_initialization)
    images = keras.Input(input_shape, name="images")
    x = stem(backbone.within("stem"), images)
    taps = []
    for number, (stage, stride) in enumerate(stages, start=1):
        x = stage(backbone.within(f"stage{number}"), x, stride)
        taps.append(x)
    x = neck(backbone.within("neck"), x)
    logits = classify(backbone, x, num_classes, "logits")
    if not heads:
        return keras.Model(images, logits, name=name)

    outputs = {"logits": logits}
    if head == "light":
        outputs |= light.heads(logits, taps, num_views, logits.dtype)
        return keras.Model(images, outputs, name=name)
    everywhere = Scope("", head_initialization)
    numbered = [(number, *stage) for number, stage in enumerate(stages, start=1)]
    last_number, last_stage, _ = numbered[-1]
    for index, x in enumerate(taps, start=1):
        name_of_head = f"aux_{index}"
        head = everywhere.within(name_of_head)
        for number, stage, stride in numbered[index:] or [(last_number, last_stage, 1)]:
            x = stage(head.within(f"stage{number}"), x, stride)
        x = neck(head.within("neck"), x)
        outputs[name_of_head] = classify(
            everywhere, x, num_views * num_classes, name_of_head
        )
    return keras.Model(images, outputs, name=name)


def repeat(
    scope: Scope,
    x: keras.KerasTensor,
    stride: int,
    block: Block,
    filters: int,
    blocks: int,
) -> keras.KerasTensor:
    """Applies a stage of equal blocks, the first of which has the stride."""
    for number in range(1, blocks + 1):
        x = block(
            scope.within(f"block{number}"), x, filters, stride if number == 1 else 1
        )
    return x


def check_sizes(**sizes: int | tuple[int, ...]) -> None:
    """Raises a ValueError unless sizes are positive, and tuples equally long."""
    received = ", ".join(f"{name}={value}" for name, value in sizes.items())
    for name, value in sizes.items():
        if min(keras.tree.flatten(value), default=0) < 1:
            raise ValueError(
                f"Expected `{name}` to be at least 1. Received: {received}"
            )
    if len({len(keras.tree.flatten(value)) for value in sizes.values()}) > 1:
        raise ValueError(
            f"Expected {' and '.join(f'`{name}`' for name in sizes)} to have a number "
            f"for each stage. Received: {received}"
        )


def _check(num_classes, input_shape, num_views, head):
    check_channels_last()
    for argument, value in (("num_classes", num_classes), ("num_views", num_views)):
        if value < 2:
            raise ValueError(
                f"Expected `{argument}` to be at least 2. Received: {argument}={value}"
            )
    if head not in HEADS:
        raise ValueError(
            f"Expected `head` to be one of {HEADS}. Received: head={head!r}"
        )
    if len(input_shape) != 3:
        raise ValueError(
            "Expected `input_shape` to be (height, width, channels). "
            f"Received: input_shape={tuple(input_shape)}"
        )
