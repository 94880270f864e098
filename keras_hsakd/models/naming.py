"""The names of weights in the authors' PyTorch code, from those of our layers."""

import re
from typing import NamedTuple

# The authors' two parts of a network with heads.
BACKBONE = "backbone."
HEADS = "auxiliary_classifier."

# Our layer name: head, stage, group and block where there are any, then its own.
_LAYER_NAME = re.compile(
    r"(?:aux_(?P<head>\d+)_|(?=stem_|stage\d|neck_))"
    r"(?:stage(?P<stage>\d+)_(?:group(?P<group>\d+)_)?block(?P<block>\d+)_)?"
    r"(?P<leaf>\w+)"
)


class Naming(NamedTuple):
    """How the authors name the layers of a family in a state dict.

    The names are templates, which may hold these fields:

    - `{head}`, `{stage}`: number of the head and of the stage, from 1.
    - `{block}`: number of the block in its group, from 0.
    - `{index}`, `{position}`: number of the group in the backbone and in the head,
      from 0.
    - `{after_pooling}`, `{conv}`, `{bn}`: positions in the flat lists of VGG's layers.
    - `{neck_conv}`, `{neck_bn}`: positions of the neck in ShuffleNetV2's heads.

    Attributes:
        block: Path of a block of the backbone.
        head_block: Path of a block of a head.
        leaves: Names of layers that they call other than we do.
        head_leaves: The same, for layers of heads that have another name there.
        classifier: Name of the backbone's classifier.
        groups: Number of groups of blocks in each stage, where it isn't one.
    """

    block: str
    head_block: str = "block_extractor{head}.{position}.{block}"
    leaves: dict[str, str] = {}
    head_leaves: dict[str, str] = {}
    classifier: str = "fc"
    groups: tuple[int, ...] = ()

    def torch_name(self, layer_name: str) -> str:
        """Returns the name of one of our layers in a state dict.

        Args:
            layer_name: Name of a layer with weights.

        Returns:
            What stands before `.weight` in the authors' key.

        Raises:
            ValueError: If it is not named as a layer of the zoo.

        Example:
        >>> naming = Naming(block="layer{stage}.{block}")
        >>> naming.torch_name("stage2_block1_conv1")
        'backbone.layer2.0.conv1'
        >>> naming.torch_name("aux_1_stage2_block1_conv1")
        'auxiliary_classifier.block_extractor1.0.0.conv1'
        """
        if layer_name == "logits":
            return BACKBONE + self.classifier
        if layer_name.startswith("aux_") and layer_name[4:].isdigit():
            return f"{HEADS}fc{layer_name[4:]}"
        match = _LAYER_NAME.fullmatch(layer_name)
        if not match:
            raise ValueError(
                "Expected a network whose layers are named as those of "
                "`keras_hsakd.models.create`, 'stage1_block1_conv1'. "
                f"Received: a layer named '{layer_name}'"
            )
        head, stage, group, block = (
            int(match[name] or 0) for name in ("head", "stage", "group", "block")
        )
        leaves = self.leaves | (self.head_leaves if head else {})
        path = [leaves.get(match["leaf"], match["leaf"])]
        if stage:
            path.insert(0, self.head_block if head else self.block)
        fields = self._template_fields(head, stage, group or 1, block)
        return (HEADS if head else BACKBONE) + ".".join(path).format(**fields)

    def _template_fields(self, head, stage, group, block):
        groups = self.groups or (1,) * max(stage, 1)
        index = sum(groups[: stage - 1]) + group - 1
        # A head begins with the stage after its tap; the last repeats the last stage.
        first_stage = stage if stage == head else head + 1
        position = index - sum(groups[: first_stage - 1])
        return {
            "head": head,
            "stage": stage,
            "block": block - 1,
            "index": index,
            "position": position,
            # A head of VGG is a flat list of pooling, convolutions and activation; the
            # second group of a stage, and the head that repeats one, have no pooling.
            "after_pooling": 3 * position + 1 - (group > 1) - (stage == head),
            "conv": 3 * (block - 1),
            "bn": 3 * (block - 1) + 1,
            # ShuffleNetV2: the neck comes after the head's stages, of three in all.
            "neck_conv": max(3 - head, 1),
            "neck_bn": max(3 - head, 1) + 1,
        }
