"""The authors' PyTorch checkpoints into our models."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd.models import resnet, wrn


class _Naming(NamedTuple):
    """How the authors name the layers of a family in a state dict.

    Attributes:
        block: A block of the backbone.
        head_block: A block of a head, below `block_extractor{head}.{stage}.`.
        leaves: The layers that they call other than we do.
    """

    block: str
    head_block: str
    leaves: dict[str, str]


_FAMILIES = {
    resnet: _Naming(
        block="layer{stage}.{block}",
        head_block="{block}",
        leaves={
            "stem_conv": "conv1",
            "stem_bn": "bn1",
            "shortcut_conv": "downsample.0",
            "shortcut_bn": "downsample.1",
        },
    ),
    wrn: _Naming(
        block="block{stage}.layer.{block}",
        head_block="layer.{block}",
        leaves={
            "stem_conv": "conv1",
            "shortcut_conv": "convShortcut",
            "neck_bn": "bn{number}",
        },
    ),
}
_NAMINGS = {name: row for family, row in _FAMILIES.items() for name in family.VARIANTS}

# Our layer name: head, stage and block where there are any, then the layer's own.
_LAYER_NAME = re.compile(
    r"(?:aux_(?P<head>\d+)_)?(?:stage(?P<stage>\d+)_block(?P<block>\d+)_)?(?P<leaf>\w+)"
)

# By layer class: our variable, the name in a state dict, and our axes in PyTorch's.
_VARIABLES = {
    keras.layers.Conv2D: (("kernel", "weight", (2, 3, 1, 0)),),
    keras.layers.Dense: (("kernel", "weight", (1, 0)), ("bias", "bias", (0,))),
    keras.layers.BatchNormalization: (
        ("gamma", "weight", (0,)),
        ("beta", "bias", (0,)),
        ("moving_mean", "running_mean", (0,)),
        ("moving_variance", "running_var", (0,)),
    ),
}

# Where training scripts put the state dict in a checkpoint.
_WRAPPERS = ("net", "state_dict", "model")


def load_torch(
    model: keras.Model, path_or_state_dict: str | os.PathLike | Mapping
) -> keras.Model:
    """Loads one of the authors' PyTorch checkpoints into a network of the zoo.

    Either every weight is loaded or, on an error, none.

    Args:
        model: A network of `keras_hsakd.models.create`, with its auxiliary heads.
        path_or_state_dict: Path of a `.pth` or `.pth.tar` file, which is read with
            `torch.load(weights_only=True)` and so never executes code, or a state dict
            of tensors or arrays; the state dict may stand under `net`, `state_dict` or
            `model`, its keys may start with `module.`.

    Returns:
        The model.

    Raises:
        ImportError: If a file is given and PyTorch is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or if a key is missing, left over or of
            another shape; all of them are named.

    Example:
    >>> teacher = keras_hsakd.models.create("wrn_40_2", num_classes=100)
    >>> load_torch(teacher, "wrn_40_2_aux.pth.tar")  # doctest: +SKIP
    """
    state = path_or_state_dict
    if not isinstance(state, Mapping):
        state = _read(state)
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    state = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    targets = {key: (variable, axes) for key, variable, axes in _entries(model)}
    missing = [key for key in targets if key not in state]
    extra = [key for key in state if key not in targets]
    if missing or extra:
        raise ValueError(
            f"Expected a state dict with the {len(targets)} keys of `{model.name}`. "
            f"Received: {len(missing)} missing, {_some(missing)}; {len(extra)} left "
            f"over, {_some(extra)}"
        )
    values = {}
    wrong = []
    for key, (variable, axes) in targets.items():
        value = np.asarray(state[key])
        expected = tuple(variable.shape[axes.index(i)] for i in range(len(axes)))
        if value.shape != expected:
            wrong.append(f"{key}: {value.shape} instead of {expected}")
        else:
            values[key] = value.transpose(axes)
    if wrong:
        raise ValueError(
            f"Expected a state dict with the shapes of `{model.name}`. Received: "
            f"{len(wrong)} others, {_some(wrong)}"
        )
    for key, value in values.items():
        targets[key][0].assign(value)
    return model


def _entries(model) -> Iterator[tuple[str, keras.Variable, tuple[int, ...]]]:
    """Yields state-dict key, variable, and PyTorch's axes in the variable's order."""
    for layer in model.layers:
        for layer_class, rows in _VARIABLES.items():
            if isinstance(layer, layer_class):
                prefix = _torch_name(model, layer.name)
                for attribute, name, axes in rows:
                    yield f"{prefix}.{name}", getattr(layer, attribute), axes


def _torch_name(model, layer_name):
    if model.name not in _NAMINGS:
        raise ValueError(
            "Expected a network of `keras_hsakd.models.create`, known by its name. "
            f"Received: a model named '{model.name}'"
        )
    if layer_name == "logits":
        return "backbone.fc"
    if layer_name.startswith("aux_") and layer_name[4:].isdigit():
        return f"auxiliary_classifier.fc{layer_name[4:]}"
    match = _LAYER_NAME.fullmatch(layer_name)
    head, stage, block = (
        group and int(group) for group in match.group("head", "stage", "block")
    )
    naming = _NAMINGS[model.name]
    leaf = naming.leaves.get(match["leaf"], match["leaf"]).format(number=head or 1)
    path = ["auxiliary_classifier" if head else "backbone"]
    if head and stage:
        # The last head repeats the last stage.
        path.append(f"block_extractor{head}.{max(stage - head - 1, 0)}")
    if stage:
        name = naming.head_block if head else naming.block
        path.append(name.format(stage=stage, block=block - 1))
    return ".".join([*path, leaf])


def _read(path):
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"Expected `path_or_state_dict` to be a PyTorch checkpoint. Received: "
            f"'{path}', which is not a file"
        )
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading a PyTorch file needs PyTorch: pip install 'keras_hsakd[torch]'"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parsers do
        raise ValueError(
            "Expected `path_or_state_dict` to be a PyTorch checkpoint that can be "
            f"loaded without executing code. Received: '{path}', which is corrupt or "
            f"holds more than weights ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(
            "Expected `path_or_state_dict` to hold a state dict. "
            f"Received: '{path}', which holds a {type(state).__name__}"
        )
    return state


def _some(names, most=5):
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown + (", ..." if len(names) > most else "")
