"""What a snapshot keeps of a training, and how the training gets it back."""

import os
import random
import re

import keras
import numpy as np

from keras_hsakd.compat import CALLBACK_STATES, global_seed, set_global_seed
from keras_hsakd.distribution import read_replicas
from keras_hsakd.layers import finalize_states
from keras_hsakd.resume.snapshot import DamagedError, Snapshot

# The training itself: what must be the same when it goes on.


def identity(model: keras.Model, frozen: str) -> dict:
    """Returns what tells a training from others.

    Args:
        model: The trainer, with its optimizer built.
        frozen: Checksum of what does not change.
    """
    kinds = variables(model).items()
    return {
        "trainer": type(model).__name__,
        "frozen": frozen,
        "variables": {kind: [_described(kind, v) for v in of] for kind, of in kinds},
    }


def _described(kind, variable):
    # An optimizer that is built in a step has other scopes in its paths.
    path = variable.path if kind == "model" else variable.name
    # Keras numbers what it makes in a process.
    path = re.sub(r"_\d+(?=/|_|$)", "", path)
    return [path, list(variable.shape), variable.dtype]


def first_difference(expected, received) -> tuple:
    """Returns the first entries of two nested structures that differ."""
    if type(expected) is dict and type(received) is dict:
        for key in expected:
            if expected[key] != received.get(key):
                return first_difference(expected[key], received.get(key))
    if type(expected) is list and type(received) is list:
        if len(expected) != len(received):
            return f"{len(expected)} variables", f"{len(received)}"
        for a, b in zip(expected, received, strict=True):
            if a != b:
                return a, b
    return expected, received


# The parts of a state.

PARTS = {
    "identity": dict,
    "values": dict,
    "stop_training": bool,
    "data": list,
    "history": dict,
    "callbacks": list,
    "random": dict,
}


def check(snapshot: Snapshot) -> None:
    """Raises a DamagedError unless a snapshot has all that a training needs.

    Whether it is of the training at hand is another question, see `identity`.
    """
    state = snapshot.state
    kinds = PARTS | ({"metrics": np.ndarray} if snapshot.step else {})
    try:
        for name, kind in kinds.items():
            if not isinstance(state[name], kind):
                raise TypeError(f"'{name}' of type {type(state[name]).__name__}")
        for kind, described in state["identity"]["variables"].items():
            shapes = [shape for _, shape, _ in described]
            if [list(value.shape) for value in state["values"][kind]] != shapes:
                raise ValueError(f"values of other shapes for '{kind}'")
        for name, own in state["callbacks"]:
            if not isinstance(own, dict):
                raise TypeError(f"a state of '{name}' of type {type(own).__name__}")
        _ = state["history"]["history"], state["history"]["epoch"]
        # Generators of their own, which take a state or do not.
        random.Random().setstate(_of_python(state["random"]))
        np.random.RandomState().set_state(tuple(state["random"]["numpy"]))
        if (seed := state["random"]["keras"]) is not None and seed.shape != (2,):
            raise ValueError(f"a seed of Keras of shape {seed.shape}")
    except Exception as error:  # shows as whatever it lacks
        raise DamagedError(
            f"Expected the snapshot after {snapshot} to have the state of a training. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


# Variables.


def variables(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """Returns the variables that training changes, but for those of metrics."""
    return {
        "model": model.changing_variables,
        "optimizer": model.optimizer.variables,
    }


def values(model: keras.Model, moment: str) -> dict[str, list[np.ndarray]]:
    """Returns the values of `variables`.

    Raises:
        FloatingPointError: If one is not finite; names it and the moment.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    kinds = variables(model).items()
    return {kind: [_finite(v, moment) for v in of] for kind, of in kinds}


def _finite(variable, moment):
    value = keras.ops.convert_to_numpy(variable)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise FloatingPointError(
            "Expected the variables to be finite. "
            f"Received: {variable.path} after {moment}"
        )
    return value


def assign(model: keras.Model, values: dict[str, list[np.ndarray]]) -> None:
    """Gives `variables` the values that they had."""
    for kind, of in variables(model).items():
        for variable, value in zip(of, values[kind], strict=True):
            variable.assign(value)
    finalize_states(model)


def metrics(model: keras.Model) -> np.ndarray:
    """Returns the values of the variables of metrics, which replicas have apart."""
    return read_replicas(model, model.metrics_variables)


# History.


def history(model: keras.Model, epoch: int | None = None, logs=None) -> dict:
    """Returns Keras' history, with an epoch that it does not have yet."""
    kept = {name: list(values) for name, values in model.history.history.items()}
    epochs = list(model.history.epoch)
    if epoch is not None:
        epochs.append(epoch)
        for name, value in (logs or {}).items():
            kept.setdefault(name, []).append(value)
    return {"history": kept, "epoch": epochs}


def set_history(model: keras.Model, state: dict) -> None:
    """Gives Keras its history back."""
    model.history.history = state["history"]
    model.history.epoch = state["epoch"]


# Callbacks.


def callback_state(callback: keras.callbacks.Callback) -> dict | None:
    """Returns the state of a callback, or None if it has none."""
    if hasattr(callback, "get_state"):
        return {"own": callback.get_state()}
    if isinstance(callback, keras.callbacks.CSVLogger):
        file = callback.filename
        return {"size": os.path.getsize(file) if os.path.exists(file) else 0}
    for kind, names in CALLBACK_STATES.items():
        if isinstance(callback, kind):
            return {name: getattr(callback, name, None) for name in names}
    return None


def set_callback_state(callback: keras.callbacks.Callback, state: dict) -> None:
    """Gives a callback the state that it had."""
    if "own" in state:
        callback.set_state(state["own"])
    elif not isinstance(callback, keras.callbacks.CSVLogger):
        for name, value in state.items():
            setattr(callback, name, value)


def keep_file(callback: keras.callbacks.Callback, state: dict) -> None:
    """Lets a CSV file go on where it was, before the callback would empty it."""
    if not isinstance(callback, keras.callbacks.CSVLogger):
        return
    if os.path.exists(callback.filename):
        size = min(state["size"], os.path.getsize(callback.filename))
        os.truncate(callback.filename, size)
        callback.append = True


# Random states.


def random_states() -> dict:
    """Returns the states of Python's, NumPy's and Keras' global generators."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "keras": global_seed(),
    }


def set_random_states(states: dict) -> None:
    """Gives the generators the states that they had."""
    random.setstate(_of_python(states))
    np.random.set_state(tuple(states["numpy"]))
    if states["keras"] is not None:
        set_global_seed(states["keras"])


def _of_python(states):
    version, internal, gauss = states["python"]
    return version, tuple(internal), gauss
