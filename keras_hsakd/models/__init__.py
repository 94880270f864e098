"""The zoo: the paper's networks, with auxiliary heads."""

import math

import keras

from keras_hsakd.heads import head_names, strip_heads
from keras_hsakd.models import mobilenet_v2, resnet, shufflenet, vgg, wrn
from keras_hsakd.models.costs import multiply_adds
from keras_hsakd.ops import NUM_ROTATIONS
from keras_hsakd.suggestions import did_you_mean

__all__ = ["create", "default_image_size", "multiply_adds", "names", "table"]

_FAMILIES = {
    name: family
    for family in (wrn, resnet, vgg, mobilenet_v2, shufflenet)
    for name in family.VARIANTS
}


def names() -> list[str]:
    """Returns the names that `create` knows."""
    return list(_FAMILIES)


def create(
    name: str,
    num_classes: int,
    input_shape: tuple[int, int, int] | None = None,
    heads: bool = True,
    num_views: int = NUM_ROTATIONS,
) -> keras.Model:
    """Returns a network of the paper, initialised as the authors'.

    Args:
        name: One of `names()`, for example `"wrn_16_2"`.
        num_classes: Number of classes `N >= 2`.
        input_shape: Shape `(height, width, channels)` of an image. Defaults to
            `(32, 32, 3)`, and to `(224, 224, 3)` for ImageNet's networks.
        heads: Whether to add the auxiliary heads. Defaults to `True`.
        num_views: Number `M >= 2` of views that the heads tell apart, see
            `keras_hsakd.views`. Defaults to 4, the rotations.

    Returns:
        A functional `keras.Model` from normalised images `(B, height, width, channels)`
        to `{"logits": (B, N), "aux_1": (B, M * N), ..., "aux_L": (B, M * N)}`,
        shallowest head first; without heads, to the class logits `(B, N)`.

    Raises:
        ValueError: If the name is unknown, there are fewer than two classes or views,
            or `input_shape` has not three numbers.

    Example:
    >>> student = keras_hsakd.models.create("wrn_16_2", num_classes=100)
    >>> student.output["aux_1"].shape
    (None, 400)
    """
    if name not in _FAMILIES:
        raise ValueError(
            f"Expected `name` to be one of {names()}. "
            f"Received: name={name!r}{did_you_mean(name, _FAMILIES)}"
        )
    for argument, value in (("num_classes", num_classes), ("num_views", num_views)):
        if value < 2:
            raise ValueError(
                f"Expected `{argument}` to be at least 2. Received: {argument}={value}"
            )
    if input_shape is None:
        input_shape = (default_image_size(name),) * 2 + (3,)
    if len(input_shape) != 3:
        raise ValueError(
            "Expected `input_shape` to be (height, width, channels). "
            f"Received: input_shape={tuple(input_shape)}"
        )
    return _FAMILIES[name].create(
        name,
        num_classes=num_classes,
        input_shape=tuple(input_shape),
        num_views=num_views if heads else 0,
    )


def default_image_size(name: str) -> int:
    """Returns the height and width of the images that a network is made for.

    Args:
        name: One of `names()`.

    Returns:
        The size in pixels.

    Example:
    >>> default_image_size("resnet34_imagenet")
    224
    """
    return getattr(_FAMILIES[name].VARIANTS[name], "image_size", 32)


def table(image_size: int | None = None, num_classes: int = 100) -> str:
    """Returns what the networks cost, as a Markdown table.

    Args:
        image_size: Height and width of an image. Defaults to what each is made for.
        num_classes: Number of classes. Defaults to 100.

    Returns:
        A string with a line for each of `names()`: trained parameters (without the
        statistics of batch normalization, as in the paper) and multiply-adds of the
        network that is deployed, number of heads, trained parameters with heads.

    Example:
    >>> print(table().splitlines()[4])  # doctest: +SKIP
    | wrn_16_2 | 703,284 | 101,118,464 | 3 | 2,631,588 |
    """
    lines = [
        "| network | trained parameters | multiply-adds | heads | with heads |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names():
        side = image_size or default_image_size(name)
        # Shapes are enough: the weights of the largest would take gigabytes.
        with keras.StatelessScope(initialize_variables=False):
            network = create(name, num_classes, (side, side, 3))
        deployed = strip_heads(network)
        lines.append(
            f"| {name} | {_trained(deployed):,} | {multiply_adds(deployed):,} "
            f"| {len(head_names(network))} | {_trained(network):,} |"
        )
    return "\n".join(lines)


def _trained(network):
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)
