"""Terms that compare features of a student with features of a teacher."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import keras

from keras_hsakd import ops
from keras_hsakd.layers import BatchNormalization
from keras_hsakd.terms.base import STAGES, Term


@dataclasses.dataclass(repr=False)
class OnFeatures(Term):
    """Base class of the terms whose features are one metric, named as the term."""

    on: str | Sequence[str] = dataclasses.field(default=STAGES, kw_only=True)

    is_summed: ClassVar[bool] = True


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class Hint(OnFeatures):
    """Mean squared difference of features, the hints of FitNets.

    `mean((teacher - regressor(student))^2)`, reported as `hint`. The regressor is a
    convolution, batch normalization and a ReLU, which learn with the student and are in
    no file of it. Its convolution makes a map of the teacher's size: 1x1 where the
    sizes are the same, 3x3 at stride 2 where the student's is twice as large, a
    transposed one of 4x4 where it is half as large. Its weights start from a seed of
    their own, so that the student starts as without it.

    Args:
        regressor: Whether there is a regressor. Defaults to `None`: where the shapes
            differ.
        seed: Seed of its weights. Defaults to 0.
        on: See `Term`. Defaults to `"stages"`; FitNets have one in the middle of the
            networks, such as `"stage_2"`.
        **kwargs: `weight`, `warmup`, `teacher` and `name`, see `Term`. The weight of
            the CRD benchmark is 100, with a regressor on `"stage_2"`.

    Raises:
        ValueError: If a setting is out of range; where a trainer is made, if there is
            no regressor for two shapes.

    Example:
    >>> float(Hint().values(np.zeros((1, 4)), np.full((1, 4), 2.0), None)[0])
    4.0

    References: [Romero et al., 2015](https://arxiv.org/abs/1412.6550), and the
    [CRD benchmark](https://github.com/HobbitLong/RepDistiller).
    """

    regressor: bool | None = dataclasses.field(default=None, kw_only=True)
    seed: int = dataclasses.field(default=0, kw_only=True)

    def values(self, teacher, student, labels):
        return ops.mean_squared_difference(teacher, student)

    def make_layer(self, teacher_shape, student_shape):
        teacher_shape, student_shape = tuple(teacher_shape), tuple(student_shape)
        is_needed = teacher_shape != student_shape
        if not (is_needed if self.regressor is None else self.regressor):
            if is_needed:
                raise ValueError(
                    "Expected features of the same shape without a regressor. Received:"
                    f" {teacher_shape[1:]} of the teacher, {student_shape[1:]} of the "
                    "student"
                )
            return None
        return _regressor(teacher_shape, student_shape, self.seed)


@keras.saving.register_keras_serializable("keras_hsakd")
@dataclasses.dataclass(repr=False)
class Attention(OnFeatures):
    """Difference of where two networks have large features.

    An attention map is the mean over channels of the squared features, divided by its
    L2 norm over all positions. The value is the mean over positions of the squared
    difference of two maps, summed over all features that the term is on, and reported
    as `attention`. A larger map is first pooled to the size of the smaller one; the
    numbers of channels may differ.

    Args:
        on: See `Term`. Defaults to `"stages"`.
        **kwargs: `weight`, `warmup`, `teacher` and `name`, see `Term`. The weight of
            the CRD benchmark is 1000.

    Raises:
        ValueError: If a setting is out of range; where a trainer is made, if the
            features are no maps of known sizes.

    Example:
    >>> maps = np.ones((1, 2, 2, 3), "float32")
    >>> float(Attention().values(maps, 5 * maps, None)[0])
    0.0

    References: [Zagoruyko and Komodakis, 2017](https://arxiv.org/abs/1612.03928), and
    the [CRD benchmark](https://github.com/HobbitLong/RepDistiller).
    """

    def values(self, teacher, student, labels):
        return ops.attention_difference(teacher, student)

    def make_layer(self, teacher_shape, student_shape):
        check_sizes(teacher_shape, student_shape, maps=True)


def _regressor(teacher_shape, student_shape, seed):
    """Returns the layer that makes a teacher's features of a student's."""
    units = teacher_shape[-1]
    # PyTorch's default, U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
    weights = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed)
    # Not in half precision, where the squares of what it returns overflow.
    dtype = keras.config.dtype_policy().variable_dtype
    dtype = keras.backend.result_type(dtype, "float32")
    options = {"kernel_initializer": weights, "dtype": dtype}
    if len(teacher_shape) == len(student_shape) == 2:
        layers = [keras.layers.Dense(units, **options)]
    else:
        check_sizes(teacher_shape, student_shape, maps=True)
        layers = _resizing(units, teacher_shape[1:3], student_shape[1:3], options)
    # Of all replicas; on other backends a batch is normalized as a whole anyway.
    is_tensorflow = keras.backend.backend() == "tensorflow"
    layers += [
        BatchNormalization(synchronized=is_tensorflow, dtype=dtype),
        keras.layers.ReLU(dtype=dtype),
    ]
    return keras.Sequential(layers, name="regressor")


def _resizing(units, size, student_size, options):
    """Returns the layers of a convolution from maps of one size to another."""
    if size == student_size:
        return [keras.layers.Conv2D(units, 1, **options)]
    if all(2 * edge == own for edge, own in zip(size, student_size, strict=True)):
        # "same" pads right and bottom alone.
        padding = keras.layers.ZeroPadding2D(1, dtype=options["dtype"])
        return [padding, keras.layers.Conv2D(units, 3, strides=2, **options)]
    if all(edge == 2 * own for edge, own in zip(size, student_size, strict=True)):
        layer = keras.layers.Conv2DTranspose
        return [layer(units, 4, strides=2, padding="same", **options)]
    raise ValueError(
        "Expected feature maps of the same size, or twice or half as large, for a "
        f"regressor. Received: {size} of the teacher, {student_size} of the student"
    )


def check_sizes(teacher_shape, student_shape, maps: bool = False) -> None:
    """Raises a ValueError unless the sizes of features are known.

    Args:
        teacher_shape: Shape of the teacher's features.
        student_shape: The same of the student's.
        maps: Whether both must be feature maps. Defaults to `False`.
    """
    expected = "features of known sizes: build the network with `input_shape`"
    if maps:
        expected = "feature maps of known sizes, (batch, height, width, channels)"
    for whose, shape in (("teacher", teacher_shape), ("student", student_shape)):
        if None in shape[1:] or (maps and len(shape) != 4):
            raise ValueError(
                f"Expected {expected}. Received: {tuple(shape)} of the {whose}"
            )
