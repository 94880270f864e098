"""A record of files that have been decoded: unchanged, they need not be again."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_hsakd.files import atomic_write


class Checked:
    """The files of a folder that have been decoded, by this command or one before.

    A file counts as the same while its path, its size and the time of its last change
    are. The record is a file for each folder in the user's cache, 8 bytes for each
    image; where it cannot be read or written, files are decoded again.

    Args:
        folder: Path of the folder.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = os.fspath(folder)
        name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:16]
        self._path = os.path.join(_cache_folder(), f"{name}.npy")
        self._keys = np.zeros(0, "uint64")
        with contextlib.suppress(OSError, ValueError, EOFError):
            self._keys = np.load(self._path).astype("uint64")

    def keys(self, files: Sequence[str]) -> np.ndarray:
        """Returns what tells files in their present state from others.

        Args:
            files: Paths below the folder.

        Returns:
            A uint64 array; 0 for what is no file.
        """
        return np.array([self._key(file) for file in files], "uint64")

    def _key(self, file):
        with contextlib.suppress(OSError):
            status = os.stat(file)
            if stat.S_ISREG(status.st_mode):
                # What one version of TensorFlow decodes, another one need not.
                state = status.st_size, status.st_mtime_ns, tf.__version__
                name = os.fsencode(file.removeprefix(self._folder))
                content = name + repr(state).encode()
                digest = hashlib.blake2b(content, digest_size=8).digest()
                return int.from_bytes(digest, "little") or 1
        return 0

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Returns which of the `keys` of files are those of files in the record."""
        return np.isin(keys, self._keys)

    def add(self, keys: np.ndarray) -> None:
        """Adds files, and writes the record."""
        both = np.union1d(self._keys, keys[keys > 0])
        if len(both) == len(self._keys):
            return
        self._keys = both
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with atomic_write(self._path) as temporary:
                np.save(temporary, both)


def _cache_folder():
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(caches, "keras_hsakd", "checked")
