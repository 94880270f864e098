"""The authors' PyTorch checkpoints to and from our models, and Keras files."""

import argparse
import importlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_hsakd import models
from keras_hsakd.files import atomic_write
from keras_hsakd.heads import strip_heads
from keras_hsakd.models.naming import BACKBONE, HEADS

# Where scripts put the weights that were trained, beside an average or a teacher.
_TRAINED = re.compile("(net|network|model|module|state|dict|weights|params|[._])*")
# What DataParallel, torch.compile and FSDP put before the names of what they wrap.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
# Count updates, of a batch normalization and of an average; nothing here reads them.
_COUNTER = "num_batches_tracked"
_COUNTERS = {_COUNTER, "n_averaged"}
# What scripts keep beside the weights and PyTorch refuses: an accuracy or the state of
# a generator as NumPy's numbers, before and since NumPy 2, and paths of folders.
_BESIDE = (
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)
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
            is read without executing code (`torch.load(weights_only=True)`), or what
            one holds: a state dict of tensors or arrays, or a mapping in which it
            stands at any depth. Of several, that of the trained weights is taken
            (`model` and not `model_ema`); for another, name it in `prefix` or give it
            alone. What DataParallel, `torch.compile` and FSDP put in the keys
            (`module.`, `_orig_mod.`) is passed over.
        classifiers: Whether to load the layers that depend on the number of classes.
            Defaults to `True`; with `False` they are passed over, and may have another
            number of classes or be missing.
        prefix: Part of the state dict to load, for example `"net1."` of the authors'
            online checkpoints or `"model."` of Lightning's. Defaults to all of it.

    Returns:
        The model.

    Raises:
        ImportError: If a file is given and the package that reads it is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read or holds no state dict, or if a key is
            missing, left over, of another shape, or has values that are no weights:
            not dense, not of floats, not finite, a negative variance.

    Example:
    >>> teacher = keras_hsakd.models.create("wrn_40_2", num_classes=100)
    >>> load_torch(teacher, "wrn_40_2_aux.pth.tar")  # doctest: +SKIP
    """
    content = path_or_state_dict
    if not isinstance(content, Mapping):
        content = _read(content)
    state = _state_dict(content, prefix)
    if any(key.startswith(BACKBONE) for key in state):
        entries = _entries(model)
    else:
        entries = _entries(strip_heads(model))  # the heads may be of any kind
        entries = {key.removeprefix(BACKBONE): e for key, e in entries.items()}
        # CRD's MobileNetV2 has its classifier in a Sequential of one.
        state = {k.replace("classifier.0.", "classifier."): v for k, v in state.items()}
    if not classifiers:
        passed_over = {key for key, entry in entries.items() if entry.classifier}
        entries = {k: v for k, v in entries.items() if k not in passed_over}
        state = {k: v for k, v in state.items() if k not in passed_over}
    values = _fitting(model, entries, state, prefix)
    for key, value in values.items():
        entries[key].variable.assign(value)
    return model


def load_keras(model: keras.Model, path: str | os.PathLike) -> keras.Model:
    """Loads the weights of a Keras `.h5` file into a network of the same layers.

    That is how MLPerf Tiny publishes its image classifier, and what its scripts save.
    The arrays alone are read, layer by layer in the file's order, and nothing in it is
    executed. They go into the network without its heads, which keep their weights.
    Either every weight is loaded or, on an error, none.

    Args:
        model: A network of `keras_hsakd.models.create`.
        path: File that `keras.Model.save` wrote, or `save_weights` of Keras 2.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or has other layers or weights that are not
            finite.

    Example:
    >>> network = keras_hsakd.models.create("mlperf_resnet8", num_classes=10)
    >>> load_keras(network, "pretrainedResnet.h5")  # doctest: +SKIP
    """
    layers = [layer for layer in strip_heads(model).layers if layer.weights]
    variables = [variable for layer in layers for variable in layer.weights]
    values = _read_h5(path)
    wanted, found = ([tuple(x.shape) for x in each] for each in (variables, values))
    if wanted != found:
        pairs = enumerate(itertools.zip_longest(found, wanted), start=1)
        number, (one, other) = next((n, pair) for n, pair in pairs if len({*pair}) > 1)
        raise ValueError(
            f"Expected a file with the {len(wanted)} weights of `{model.name}`, in "
            f"their order. Received: '{path}', with {len(found)}; number {number} has "
            f"the shape {one} instead of {other}"
        )
    if not all(np.isfinite(value).all() for value in values):
        raise ValueError(f"Expected finite weights. Received: others in '{path}'")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return model


def _read_h5(path):
    """Returns the weights in a Keras file in its order."""
    import h5py

    if not os.path.isfile(path):
        raise FileNotFoundError(f"Expected a Keras .h5 file. Received: '{path}'")
    try:
        with h5py.File(path) as file:
            layers = file.get("model_weights", file)
            return [
                layers[layer][weight][()]
                for layer in layers.attrs["layer_names"]
                for weight in layers[layer].attrs["weight_names"]
            ]
    except (OSError, KeyError) as error:  # what is not HDF5, or not Keras'
        raise ValueError(
            "Expected a Keras .h5 file, with the names of its layers. "
            f"Received: '{path}' ({type(error).__name__}: {error})"
        ) from error


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
        ValueError: If the file cannot be read or holds no state dict.

    Example:
    >>> state = read_torch("wrn_40_2_aux.pth.tar")  # doctest: +SKIP
    """
    return _state_dict(_read(path), prefix)


def has_heads(state: Mapping) -> bool:
    """Returns whether a state dict is that of a network with auxiliary heads.

    Args:
        state: A state dict, or a mapping in which it stands.

    Returns:
        `True` if it has the weights of heads.

    Raises:
        ValueError: If it is no state dict.

    Example:
    >>> has_heads({"conv1.weight": np.zeros((16, 3, 3, 3))})
    False
    """
    return any(key.startswith(HEADS) for key in _state_dict(state))


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


def _state_dict(content, prefix="") -> dict:
    """Returns the state dict in a checkpoint, or the part that a prefix names."""
    prefix = _plain(prefix).rstrip(".")
    prefix = prefix and f"{prefix}."
    places = dict(_state_dicts(content))
    parts = _parts(places, prefix)
    if not parts:  # the prefix may also name where a state dict stands
        full = {
            path: {_plain(path) + key: value for key, value in state.items()}
            for path, state in places.items()
        }
        parts = _parts(full, prefix)
    if len(parts) > 1:
        parts = {p: v for p, v in parts.items() if _TRAINED.fullmatch(p)} or parts
    if len(parts) == 1:
        return parts.popitem()[1]
    if parts:
        raise ValueError(
            "Expected a checkpoint with one state dict, or `prefix` to name one. "
            f"Received: {len(parts)}, {_some([_quoted(path) for path in parts])}"
        )
    if places:
        names = [*places, *(key for state in places.values() for key in state)]
        starts = dict.fromkeys(name.partition(".")[0] + "." for name in names if name)
        raise ValueError(
            f"Expected `prefix` to begin keys of the state dict. Received: {prefix!r} "
            f"for keys that begin with {_some([_quoted(start) for start in starts])}"
        )
    raise ValueError(
        "Expected a state dict of PyTorch, with keys as 'conv1.weight'. "
        f"Received: a mapping with the keys {_some([repr(key) for key in content])}"
    )


def _state_dicts(content, path="") -> Iterator[tuple[str, dict]]:
    """Yields where each state dict in a checkpoint stands, and its weights."""
    # The state of an optimizer has mappings by such names, or none of them.
    if any(
        str(key).endswith(".weight") and hasattr(value, "dtype")
        for key, value in content.items()
    ):
        yield path, _weights(content)
        return
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _state_dicts(value, f"{path}{key}.")


def _weights(state):
    """Returns the weights of a state dict by their names in the bare network."""
    weights = {}
    for key, value in state.items():
        name = _plain(key)
        if name in weights:
            raise ValueError(
                "Expected a state dict with each weight once. "
                f"Received: '{key}' beside another '{name}'"
            )
        if name.split(".")[-1] not in _COUNTERS:
            weights[name] = value
    return weights


def _parts(places, prefix):
    """Returns the part under a prefix of each state dict that has one."""
    parts = {
        path: {k.removeprefix(prefix): v for k, v in s.items() if k.startswith(prefix)}
        for path, s in places.items()
    }
    return {path: part for path, part in parts.items() if part}


def _plain(key):
    """Returns a key without what wraps modules, wherever it stands."""
    return ".".join(part for part in str(key).split(".") if part not in _WRAPPERS)


def _fitting(model, entries, state, prefix):
    """Returns the values of all entries in our axes, or raises a ValueError."""
    missing = [key for key in entries if key not in state]
    extra = [key for key in state if key not in entries]
    if missing or extra:
        raise ValueError(
            f"Expected a state dict with the {len(entries)} keys of `{model.name}`. "
            f"Received: {len(missing)} missing, {_some(missing)}; {len(extra)} left "
            f"over, {_some(extra)}{_hint(entries, state, prefix)}"
        )
    arrays = {key: _floats(state[key]) for key in entries}
    _refuse(
        f"dense tensors of floats for `{model.name}`",
        [f"{key}: {_kind(state[key])}" for key in entries if arrays[key] is None],
    )
    wrong = [key for key, entry in entries.items() if arrays[key].shape != entry.shape]
    of_classifiers = all(entries[key].classifier for key in wrong)
    _refuse(
        f"the shapes of `{model.name}`",
        [f"{k}: {arrays[k].shape} instead of {entries[k].shape}" for k in wrong],
        ". `classifiers=False` loads all but the classifiers" if of_classifiers else "",
    )
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        arrays = {k: v.astype(entries[k].variable.dtype) for k, v in arrays.items()}
    _refuse(
        "finite weights and no negative running_var",
        [
            key
            for key, array in arrays.items()
            if not np.isfinite(array).all()
            or (key.endswith("running_var") and (array < 0).any())
        ],
    )
    return {key: arrays[key].transpose(entry.axes) for key, entry in entries.items()}


def _refuse(expected, wrong, hint=""):
    if wrong:
        raise ValueError(
            f"Expected a state dict with {expected}. "
            f"Received: {len(wrong)} others, {_some(wrong)}{hint}"
        )


def _hint(entries, state, prefix):
    """Returns how to load what stands whole under longer prefixes, if anything does."""
    first = next(iter(entries))
    found = [key.removesuffix(first) for key in state if key.endswith(first)]
    longer = {
        more.removesuffix(BACKBONE)
        for more in found
        if all(more + key in state for key in entries)
    }
    start = prefix and prefix.rstrip(".") + "."
    return "".join(
        f". `prefix={_quoted(start + more)}` loads a part"
        for more in sorted(longer - {""})
    )


def _floats(value):
    """Returns a dense tensor of floats as an array, and anything else as None."""
    if "float" not in str(getattr(value, "dtype", "")):
        return None
    if hasattr(value, "detach"):  # PyTorch's
        if str(value.layout) != "torch.strided" or value.is_meta:
            return None
        # Exact for all of them; NumPy itself has no bfloat16.
        return value.cpu().double().numpy(force=True)
    return np.asarray(value)


def _kind(value):
    traits = [str(getattr(value, name, "")) for name in ("layout", "device", "dtype")]
    return " ".join(filter(None, [type(value).__name__, *traits]))


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


class _NotRead:
    """Stands in a checkpoint for what is beside the weights, of which no code runs."""

    dtype = "(no tensor of PyTorch)"

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


def _read(path):
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            "Expected the path of a PyTorch checkpoint, or a state dict. "
            f"Received: a {type(path).__name__}"
        )
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"Expected the path of a PyTorch checkpoint. Received: '{path}', which is "
            "not a file"
        )
    if path.endswith(".safetensors"):
        load = _optional("safetensors.numpy").load_file
    else:
        torch = _optional("torch")

        def load(path):
            # CRD's checkpoints hold their arguments, which are data alone.
            allowed = [argparse.Namespace, *((_NotRead, name) for name in _BESIDE)]
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)

    try:
        state = load(path)
    except Exception as error:  # the libraries raise whatever their parsers do
        raise ValueError(
            "Expected a PyTorch checkpoint that can be loaded without executing code. "
            f"Received: '{path}', which is corrupt or holds more than weights "
            f"({type(error).__name__}: {''.join(str(error).splitlines()[:1])})"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(
            "Expected a PyTorch checkpoint that holds a state dict. "
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


def _quoted(name):
    return f'"{name}"'


def _some(names, most=5):
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown + (", ..." if len(names) > most else "")
