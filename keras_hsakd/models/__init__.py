"""The zoo: the paper's networks and MLPerf Tiny's, with auxiliary heads."""

from functools import partial

import keras
import numpy as np

from keras_hsakd import digests, graph, views
from keras_hsakd import pretrained as pretrained_files
from keras_hsakd.heads import strip_heads
from keras_hsakd.models import (
    mlperf_resnets,
    mobilenets,
    resnets,
    shufflenets,
    vggs,
    wide_resnets,
)
from keras_hsakd.models.mlperf_resnets import mlperf_resnet
from keras_hsakd.models.mobilenets import mobilenet_v2
from keras_hsakd.models.naming import torch_name
from keras_hsakd.models.resnets import resnet
from keras_hsakd.models.shufflenets import shufflenet
from keras_hsakd.models.vggs import vgg
from keras_hsakd.models.wide_resnets import wrn
from keras_hsakd.ops import NUM_ROTATIONS
from keras_hsakd.sizes import edges
from keras_hsakd.suggestions import did_you_mean
from keras_hsakd.zoo import COSTS, table

__all__ = [
    "create",
    "default_image_size",
    "mlperf_resnet",
    "mobilenet_v2",
    "multiply_adds",
    "names",
    "pretrained",
    "resnet",
    "shufflenet",
    "table",
    "vgg",
    "wrn",
]

# By what the names of their networks begin with.
_FAMILIES = {
    "wrn": wide_resnets,
    "resnet": resnets,
    "vgg": vggs,
    "mobilenet_v2": mobilenets,
    "shufflenet": shufflenets,
    "mlperf_resnet": mlperf_resnets,
}
_VARIANTS = {
    name: variant
    for family in _FAMILIES.values()
    for name, variant in family.VARIANTS.items()
}


def names() -> list[str]:
    """Returns the names that `create` knows."""
    return list(_VARIANTS)


def create(
    name: str,
    num_classes: int,
    input_shape: tuple[int, int, int] | None = None,
    heads: bool = True,
    num_views: int = NUM_ROTATIONS,
    head: str = "copy",
) -> keras.Model:
    """Returns a network of the zoo, initialised as its authors do.

    Args:
        name: One of `names()`, for example `"wrn_16_2"`.
        num_classes: Number of classes `N >= 2`.
        input_shape: Shape `(height, width, channels)` of an image. Defaults to
            `(32, 32, 3)`, and to `(224, 224, 3)` for ImageNet's networks.
        heads: Whether to add the auxiliary heads. Defaults to `True`.
        num_views: Number `M >= 2` of views that the heads tell apart, see
            `keras_hsakd.views`. Defaults to 4, the rotations.
        head: `"copy"`, the paper's heads, or `"light"`, which cost little, see
            `keras_hsakd.attach_heads`. Defaults to `"copy"`.

    Returns:
        A functional `keras.Model` from normalised images `(B, height, width, channels)`
        to `{"logits": (B, N), "aux_1": (B, M * N), ..., "aux_L": (B, M * N)}`,
        shallowest head first; without heads, to the class logits `(B, N)`.

    Raises:
        ValueError: If an argument does not suit; says what was expected.

    Example:
    >>> student = keras_hsakd.models.create("wrn_16_2", num_classes=100)
    >>> student.output["aux_1"].shape
    (None, 400)
    """
    if name not in _VARIANTS:
        raise ValueError(
            f"Expected `name` to be one of {names()}. "
            f"Received: name={name!r}{did_you_mean(name, _VARIANTS)}"
        )
    return _VARIANTS[name](
        num_classes=num_classes,
        input_shape=input_shape,
        heads=heads,
        num_views=num_views,
        head=head,
        name=name,
    )


def pretrained(name: str, heads: bool = False) -> keras.Model:
    """Returns a trained network that comes with the package.

    Its weights are kept in half precision. `keras_hsakd.pretrained.card` tells what it
    was trained on, and how well it does.

    Args:
        name: One of `keras_hsakd.pretrained.names()`, for example
            `"resnet20-cifar10"`.
        heads: Whether to have the auxiliary heads, by which it teaches. Defaults to
            `False`.

    Returns:
        A functional `keras.Model` from images of 0 to 255, which it normalises itself,
        to the class logits; with heads, to the outputs of `create`.

    Raises:
        ValueError: If there is no such network, it has no heads, or its file is
            damaged.

    Example:
    >>> teacher = pretrained("resnet20-cifar10", heads=True)  # doctest: +SKIP
    """
    card = pretrained_files.card(name)
    if heads and not card["heads"]:
        raise ValueError(
            f"Expected a network with heads for `heads`. Received: '{name}', which has "
            "none"
        )
    record = card["record"]
    network = create(
        record["training"]["model"],
        len(record["images"]["class_names"]),
        (*edges(record["images"]["image_size"]), 3),
        heads=card["heads"],
        num_views=len(views.get(record["views"])),
        head=record["training"]["head"],
    )
    network = graph.with_preprocessing(
        network, keras.layers.Rescaling(**card["preprocessing"])
    )
    with np.load(pretrained_files.path(name), allow_pickle=False) as file:
        weights = {key: file[key] for key in file.files}
    if digests.of_values(weights[key] for key in sorted(weights)) != card["digest"]:
        raise ValueError(
            f"Expected the weights that the card of '{name}' tells. Received: others, "
            f"in '{pretrained_files.path(name)}'"
        )
    for variable in network.variables:
        variable.assign(weights[variable.path].astype("float32"))
    return network if heads else strip_heads(network)


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
    return COSTS[name].image_size


def multiply_adds(model: keras.Model) -> int:
    """Returns the multiply-adds of one image through a functional model.

    Counts convolutions and linear layers, without biases and batch normalization.

    Args:
        model: A functional `keras.Model` with a known image size.

    Returns:
        The number of multiply-adds.

    Example:
    >>> multiply_adds(keras_hsakd.models.create("wrn_16_2", 100, heads=False))
    101118464
    """
    return graph.multiply_adds(model.outputs)


def torch_names(model: keras.Model) -> dict[str, str]:
    """Returns how the authors name the layers of a network in a state dict.

    Args:
        model: A network of the zoo, known by its name.

    Returns:
        A dict from the name of each layer with weights to what stands before `.weight`
        in the authors' key.

    Raises:
        ValueError: If the model's name does not begin with that of a family, or a layer
            is not named as those of the zoo.

    Example:
    >>> torch_names(create("wrn_16_2", 100))["aux_1_stage2_block1_conv1"]
    'auxiliary_classifier.block_extractor1.0.layer.0.conv1'
    """
    for beginning, family in _FAMILIES.items():
        if model.name.startswith(beginning):
            layers = frozenset(layer.name for layer in model.layers)
            return {
                layer.name: torch_name(
                    layer.name, partial(family.torch_names, layers=layers)
                )
                for layer in model.layers
                if layer.weights
            }
    raise ValueError(
        "Expected a network of `keras_hsakd.models.create`, known by its name, which "
        f"begins with one of {list(_FAMILIES)}. "
        f"Received: a model named '{model.name}'"
    )
