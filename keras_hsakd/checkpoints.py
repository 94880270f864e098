"""The authors' PyTorch checkpoints to and from our models."""

import argparse
import importlib
import os
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd import models
from keras_hsakd.files import atomic_write
from keras_hsakd.heads import strip_heads
from keras_hsakd.models.naming import BACKBONE, HEADS

# Where training scripts put the state dict in a checkpoint.
_WRAPPERS = ("net", "state_dict", "model")
# Counts the updates of a batch normalization, in PyTorch alone; nothing reads it.
_COUNTER = "num_batches_tracked"
# By layer class: our variable, the name in a state dict, and PyTorch's axes in ours.
_VARIABLES = {
    keras.layers.DepthwiseConv2D: (("kernel", "weight", (2, 3, 0, 1)),),
    keras.layers.Conv2D: (
        ("kernel", "weight", (2, 3, 1, 0)),
        ("bias", "bias", (0,)),
    ),
    keras.layers.Dense: (("kernel", "weight", (1, 0)), ("bias", "bias", (0,))),
    keras.layers.BatchNormalization: (
        ("gamma", "weight", (0,)),
        ("beta", "bias", (0,)),
        ("moving_mean", "running_mean", (0,)),
        ("moving_variance", "running_var", (0,)),
    ),
}


class _Entry(NamedTuple):
    """An entry of a state dict.

    Attributes:
        variable: Our variable.
        axes: PyTorch's axes in the variable's order.
        classifier: Whether it depends on the number of classes.
    """

    variable: keras.Variable
    axes: tuple[int, ...]
    classifier: bool

    @property
    def shape(self):
        """Shape in PyTorch."""
        return tuple(
            self.variable.shape[self.axes.index(i)] for i in range(len(self.axes))
        )


def load_torch(
    model: keras.Model,
    path_or_state_dict: str | os.PathLike | Mapping,
    classifiers: bool = True,
    prefix: str = "",
) -> keras.Model:
    """Loads a PyTorch checkpoint of the authors' kind into a network of the zoo.

    It may hold a network with heads, or a backbone alone, as CRD, SSKD and torchvision
    publish them (`wrn_40_2.pth`, `resnet34-333f7ec4.pth`). A backbone goes into a
    network without heads, or into that part of one with heads, which keep their
    weights. Either every weight is loaded or, on an error, none.

    Args:
        model: A network of `keras_hsakd.models.create`.
        path_or_state_dict: Path of a `.pth`, `.pth.tar` or `.safetensors` file, which
            is read without executing code (`torch.load(weights_only=True)`), or a
            state dict of tensors or arrays. The state dict may stand under `net`,
            `state_dict` or `model`, its keys may start with `module.`.
        classifiers: Whether to load the layers that depend on the number of classes.
            Defaults to `True`; with `False` they are passed over, and may have another
            number of classes or be missing.
        prefix: Part of the state dict to load, for example `"net1."` of the authors'
            online checkpoints. Defaults to all of it.

    Returns:
        The model.

    Raises:
        ImportError: If a file is given and the package that reads it is not installed.
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
    state = _unwrapped(state, prefix)
    if any(key.startswith(BACKBONE) for key in state):
        entries = _entries(model)
    else:
        # CRD's MobileNetV2 has its classifier in a Sequential of one.
        state = {
            BACKBONE + key.replace("classifier.0.", "classifier."): value
            for key, value in state.items()
        }
        entries = _entries(strip_heads(model))  # the heads may be of any kind
    if not classifiers:
        passed_over = {key for key, entry in entries.items() if entry.classifier}
        entries = {k: v for k, v in entries.items() if k not in passed_over}
        state = {k: v for k, v in state.items() if k not in passed_over}
    values = _fitting(model, entries, state)
    for key, value in values.items():
        entries[key].variable.assign(value)
    return model


def read_torch(path: str | os.PathLike, prefix: str = "") -> dict:
    """Reads the state dict of a PyTorch checkpoint, without executing code.

    Args:
        path: As in `load_torch`.
        prefix: As in `load_torch`.

    Returns:
        A dict of tensors or arrays, for `load_torch`.

    Raises:
        ImportError: If the package that reads the file is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read.

    Example:
    >>> state = read_torch("wrn_40_2_aux.pth.tar")  # doctest: +SKIP
    """
    return _unwrapped(_read(path), prefix)


def has_heads(state: Mapping) -> bool:
    """Returns whether a state dict is that of a network with auxiliary heads.

    Example:
    >>> has_heads({"conv1.weight": np.zeros((16, 3, 3, 3))})
    False
    """
    return any(key.startswith(HEADS) for key in state)


def torch_state_dict(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the weights of a network of the zoo as the authors' state dict.

    Args:
        model: A network of `keras_hsakd.models.create`; one without heads gives the
            state dict of a backbone alone.

    Returns:
        A dict from the authors' keys to arrays in PyTorch's axes.

    Raises:
        ValueError: If the model is not of the zoo.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> torch_state_dict(model)["backbone.conv1.weight"].shape
    (16, 3, 3, 3)
    """
    state = {}
    for key, (variable, axes, _) in _entries(model).items():
        value = keras.ops.convert_to_numpy(variable)
        state[key] = np.ascontiguousarray(value.transpose(np.argsort(axes)))
        if key.endswith("running_var"):
            state[key.replace("running_var", _COUNTER)] = np.zeros((), "int64")
    if not has_heads(state):
        state = {key.removeprefix(BACKBONE): value for key, value in state.items()}
    return state


def save_torch(model: keras.Model, path: str | os.PathLike) -> None:
    """Saves a network of the zoo as the authors' scripts save and load theirs.

    Args:
        model: A network of `keras_hsakd.models.create`, with or without heads.
        path: File to write: `.pth` or `.pth.tar`, with the state dict under `net`, or
            `.safetensors`. An existing file is replaced.

    Raises:
        ImportError: If the package that writes the file is not installed.
        ValueError: If the model is not of the zoo.

    Example:
    >>> save_torch(student, "wrn_16_2_aux.pth.tar")  # doctest: +SKIP
    """
    state = torch_state_dict(model)
    if os.fspath(path).endswith(".safetensors"):
        numpy = _optional("safetensors.numpy")
        with atomic_write(path) as temporary:
            numpy.save_file(state, temporary)
        return
    torch = _optional("torch")
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    with atomic_write(path) as temporary:
        torch.save({"net": tensors}, temporary)


def _unwrapped(state, prefix):
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    return {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(prefix) and not key.endswith(_COUNTER)
    }


def _fitting(model, entries, state):
    """Returns the values of all entries in our axes, or raises a ValueError."""
    missing = [key for key in entries if key not in state]
    extra = [key for key in state if key not in entries]
    if missing or extra:
        raise ValueError(
            f"Expected a state dict with the {len(entries)} keys of `{model.name}`. "
            f"Received: {len(missing)} missing, {_some(missing)}; {len(extra)} left "
            f"over, {_some(extra)}"
        )
    values = {}
    wrong = {}
    for key, entry in entries.items():
        value = np.asarray(state[key])
        if value.shape != entry.shape:
            wrong[key] = f"{key}: {value.shape} instead of {entry.shape}"
        else:
            values[key] = value.transpose(entry.axes)
    if wrong:
        hint = ""
        if all(entries[key].classifier for key in wrong):
            hint = ". `classifiers=False` loads all but the classifiers"
        raise ValueError(
            f"Expected a state dict with the shapes of `{model.name}`. Received: "
            f"{len(wrong)} others, {_some(list(wrong.values()))}{hint}"
        )
    return values


def _entries(model) -> dict[str, _Entry]:
    """Returns the entries of a state dict of the whole model by the authors' keys."""
    names = models.torch_names(model)
    entries = {}
    for layer in model.layers:
        rows = next((r for c, r in _VARIABLES.items() if isinstance(layer, c)), ())
        for attribute, name, axes in rows:
            variable = getattr(layer, attribute)
            if variable is not None:
                classifier = isinstance(layer, keras.layers.Dense)
                key = f"{names[layer.name]}.{name}"
                entries[key] = _Entry(variable, axes, classifier)
    return entries


def _read(path):
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"Expected `path_or_state_dict` to be a PyTorch checkpoint. Received: "
            f"'{path}', which is not a file"
        )
    if path.endswith(".safetensors"):
        load = _optional("safetensors.numpy").load_file
    else:
        torch = _optional("torch")

        def load(path):
            # CRD's checkpoints hold their arguments, which are data alone.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True)

    try:
        state = load(path)
    except Exception as error:  # the libraries raise whatever their parsers do
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


def _optional(module):
    """Returns a module of the extra `torch`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"PyTorch's files need {module.partition('.')[0]}: "
            "pip install 'keras_hsakd[torch]'"
        ) from error


def _some(names, most=5):
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown + (", ..." if len(names) > most else "")
