"""The networks of a training as files, each with its results inside."""

import json
import os
import zipfile
from typing import TYPE_CHECKING, get_args

from keras_hsakd.files import atomic_write
from keras_hsakd.names import Checkpoint

if TYPE_CHECKING:
    import keras

CHECKPOINTS = get_args(Checkpoint)


def checkpoint_path(folder: str | os.PathLike, checkpoint: str) -> str:
    """Returns the path of a network in a folder, one of `CHECKPOINTS`."""
    return os.path.join(folder, f"{checkpoint}.keras")


def save_with_results(
    network: "keras.Model", path: str | os.PathLike, results: dict
) -> None:
    """Saves a network as a Keras file that has its results inside.

    One file, so that whatever happens in between, the two belong together.

    Args:
        network: The network to save.
        path: Path of the `.keras` file, written whole.
        results: What was measured of it, as JSON has it.

    Example:
    >>> network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> save_with_results(network, "last.keras", {"epoch": 3})
    >>> read_results("last.keras")
    {'epoch': 3}
    >>> keras.saving.load_model("last.keras").output_shape
    (None, 1)
    """
    with atomic_write(path) as temporary:
        network.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = json.dumps(results).encode()


def read_results(path: str | os.PathLike) -> dict | None:
    """Returns what `save_with_results` kept in a file, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.comment) if archive.comment else None
    except (FileNotFoundError, zipfile.BadZipFile, ValueError):
        return None
