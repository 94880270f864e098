"""The names of weights in the authors' PyTorch code, from those of our layers."""

import re
from collections.abc import Callable
from typing import NamedTuple

# The authors' two parts of a network with heads.
BACKBONE = "backbone."
HEADS = "auxiliary_classifier."

_CLASSIFIER = re.compile(r"logits|aux_(\d+)")
_LAYER = re.compile(
    r"(?:aux_(\d+)_)?"
    r"(?:stage(\d+)_(?:group(\d+)_)?block(\d+)_|(?=stem_|neck_))"
    r"(\w+)"
)


class Place(NamedTuple):
    """Where a layer stands, as its name tells. All numbers count from 1.

    Attributes:
        head: Number of the head, 0 in the backbone.
        stage: Number of the stage, 0 in stem and neck.
        group: Number of the group of blocks in the stage, 0 where there are none.
        block: Number of the block in its group, 0 in stem and neck.
        layer: Name of the layer in its block, or with that of stem or neck.
    """

    head: int
    stage: int
    group: int
    block: int
    layer: str

    @property
    def first_stage(self) -> int:
        """The stage that the backbone, or the head, begins with.

        That after its tap for a head; the last head repeats the last stage.
        """
        return min(self.head + 1, self.stage)

    @property
    def position(self) -> int:
        """How many stages of the backbone, or of the head, come before."""
        return self.stage - self.first_stage


class TorchNames(NamedTuple):
    """What the authors call the layers at a place.

    Attributes:
        block: Path of the block; of no meaning in stem and neck.
        layers: Their names of layers, where they differ from ours.
        classifier: Name of the backbone's classifier.
    """

    block: str
    layers: dict[str, str] = {}
    classifier: str = "fc"


def torch_name(layer_name: str, names: Callable[[Place], TorchNames]) -> str:
    """Returns the name of one of our layers in the authors' state dict.

    Args:
        layer_name: Name of a layer with weights.
        names: Function of a family from a place to what the authors call it.

    Returns:
        What stands before `.weight` in the authors' key.

    Raises:
        ValueError: If the layer is not named as one of the zoo.

    Example:
    >>> names = lambda at: TorchNames(f"layer{at.stage}.{at.block - 1}")
    >>> torch_name("stage2_block1_conv1", names)
    'backbone.layer2.0.conv1'
    """
    if match := _CLASSIFIER.fullmatch(layer_name):
        if match[1]:
            return f"{HEADS}fc{match[1]}"
        return BACKBONE + names(Place(0, 0, 0, 0, layer_name)).classifier
    match = _LAYER.fullmatch(layer_name)
    if not match:
        raise ValueError(
            "Expected a network whose layers are named as those of "
            "`keras_hsakd.models.create`, 'stage1_block1_conv1'. "
            f"Received: a layer named '{layer_name}'"
        )
    *numbers, layer = match.groups(default=0)
    at = Place(*map(int, numbers), layer)
    block, layers, _ = names(at)
    path = f"{block}." if at.stage else ""
    return (HEADS if at.head else BACKBONE) + path + layers.get(layer, layer)
