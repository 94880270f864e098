"""The file format of snapshots, and the folder that they are in."""

import dataclasses
import io
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_hsakd import digests
from keras_hsakd.files import atomic_write, errors_explained, remove_partial

FORMAT = 3

_NAME = re.compile(r"epoch-(\d+)-step-(\d+)-([0-9a-f]{16})\.npz")


class DamagedError(ValueError):
    """The content of a file is not what was written."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a training at the end of a step.

    A file holds arrays and JSON, no code. Its name has its place in the training and
    the beginning of its SHA-256: `epoch-00003-step-0000150-<sha>.npz` is 150 steps into
    the fourth epoch.

    Attributes:
        epoch: Epochs done.
        step: Steps done in the epoch at hand.
        state: Dict of what is kept: JSON values and NumPy arrays, nested. Tuples are
            read as lists.

    Example:
    >>> path = Snapshot(epoch=3, step=150, state={"x": np.ones(2)}).write(".")
    >>> path[:27]
    './epoch-00003-step-0000150-'
    >>> Snapshot.read(path).state["x"]
    array([1., 1.])
    """

    epoch: int
    step: int
    state: dict

    def write(self, folder: str | os.PathLike) -> str:
        """Writes a file, whole, and returns its path."""
        arrays = {}
        record = {"format": FORMAT, "epoch": self.epoch, "step": self.step}
        record["state"] = _packed(self.state, arrays)
        buffer = io.BytesIO()
        record = np.frombuffer(json.dumps(record).encode(), "uint8")
        np.savez(buffer, record=record, **arrays)
        content = buffer.getbuffer()
        place = f"epoch-{self.epoch:05d}-step-{self.step:07d}"
        path = os.path.join(folder, f"{place}-{_digest(content)}.npz")
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
        return path

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Snapshot":
        """Reads a file.

        Raises:
            DamagedError: If its content is not what was written.
            PermissionError: If it may not be read.
            ValueError: If another version of the package wrote it.
        """
        try:
            with open(path, "rb") as file:
                content = file.read()
        except PermissionError:
            raise
        except OSError as error:  # of a disk, or a folder of that name
            raise DamagedError(
                f"Expected '{path}' to be a file. Received: {error.strerror}"
            ) from error
        *expected_place, expected = _NAME.fullmatch(os.path.basename(path)).groups()
        if _digest(content) != expected:
            raise DamagedError(
                f"Expected '{path}' to have the checksum {expected}. "
                f"Received: {_digest(content)}, of {len(content)} bytes"
            )
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
            record = json.loads(arrays.pop("record").tobytes())
            received = record.get("format", 1)  # the first had no number
            if received == FORMAT:
                place = [record["epoch"], record["step"]]
                if place != [*map(int, expected_place)]:
                    raise ValueError(f"another place than its name says, {place}")
                return cls(*place, _unpacked(record["state"], arrays))
        except Exception as error:  # shows as whatever its parsers raise
            raise DamagedError(
                f"Expected '{path}' to be a snapshot. "
                f"Received: {type(error).__name__}: {error}"
            ) from error
        raise ValueError(
            f"Expected a snapshot of this version of keras_hsakd, format {FORMAT}. "
            f"Received: '{path}', format {received}; go on with the version that "
            "wrote it, or remove the snapshots to train anew"
        )

    def __str__(self):
        return place(self.epoch, self.step)


def place(epoch: int, step: int) -> str:
    """Returns what to call a moment of a training: epochs done, then steps."""
    return f"step {step} of epoch {epoch + 1}" if step else f"epoch {epoch}"


def _digest(content):
    return digests.of_values([content])


# Nested structures as JSON, with their arrays apart.

_ARRAY = "$array"


def _packed(value, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        return {str(key): _packed(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        reference = {_ARRAY: f"array_{len(arrays)}"}
        if value.dtype.isbuiltin == 2:  # bfloat16 and others that NumPy cannot write
            reference["dtype"] = value.dtype.name
            value = value[..., None].view("uint8")
        arrays[reference[_ARRAY]] = value
        return reference
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        "Expected the state of a callback to be of JSON values and NumPy arrays. "
        f"Received: a {type(value).__name__}"
    )


def _unpacked(value, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if _ARRAY not in value:
            return {key: _unpacked(item, arrays) for key, item in value.items()}
        array = arrays[value[_ARRAY]]
        return array.view(value["dtype"])[..., 0] if "dtype" in value else array
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    return value


# Folders.


def list_snapshots(folder: str | os.PathLike) -> list[str]:
    """Returns the paths of the snapshots in a folder, the newest first.

    Args:
        folder: The folder; it may be missing.

    Returns:
        A list of paths, whether the files are damaged or not.

    Example:
    >>> paths = [Snapshot(epoch, step=0, state={}).write(".") for epoch in (4, 5)]
    >>> list_snapshots(".")[:2] == [paths[1], paths[0]]
    True
    """
    if not os.path.isdir(folder):
        return []
    names = sorted(filter(_NAME.fullmatch, os.listdir(folder)), reverse=True)
    return [os.path.join(folder, name) for name in names]


def newest_snapshot(
    folder: str | os.PathLike, check: Callable[[Snapshot], None] = lambda snapshot: None
) -> tuple[str | None, Snapshot | None, dict[str, str]]:
    """Finds the newest snapshot of a folder that is whole.

    Args:
        folder: The folder; it may be missing.
        check: Function that raises an error of a snapshot that is not whole. Defaults
            to one that takes any.

    Returns:
        A tuple `(path, snapshot, damaged)`, the first two `None` where there is none.
        `damaged` has the error of each newer file, by its path.

    Raises:
        ValueError: If there are snapshots, and all of them are damaged; if another
            version of the package wrote the newest.
    """
    damaged = {}
    for path in list_snapshots(folder):
        try:
            snapshot = Snapshot.read(path)
            check(snapshot)
            return path, snapshot, damaged
        except DamagedError as error:
            damaged[path] = str(error)
    if damaged:
        raise ValueError(
            f"Expected a whole snapshot in '{folder}', or none. "
            f"Received: {len(damaged)} damaged ones: {next(iter(damaged.values()))}"
        )
    return None, None, damaged


def set_aside(path: str) -> None:
    """Renames a damaged snapshot, which is then no longer among the newest."""
    folder, name = os.path.split(path)
    os.replace(path, os.path.join(folder, f"damaged-{name}"))


def prepare_folder(folder: str | os.PathLike) -> None:
    """Makes a folder for snapshots, and removes what was left half-written in it.

    Raises:
        OSError: If it cannot be written.
    """
    with errors_explained(folder, "a folder for snapshots that can be written"):
        os.makedirs(folder, exist_ok=True)
        remove_partial(folder)
        probe = os.path.join(folder, "probe")
        with atomic_write(probe) as temporary, open(temporary, "w"):
            pass
        os.remove(probe)
