"""Whether images that are measured on are among those that are trained on."""

import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Shared(NamedTuple):
    """What is known of images that are in two data sets.

    Attributes:
        count: How many images of the second are in the first, too.
        example: Two names of one that is.
        seconds: Those after which looking ended before all was seen, or `None`.
    """

    count: int = 0
    example: tuple[str, str] | None = None
    seconds: float | None = None


def shared(
    train: tf.data.Dataset, test: tf.data.Dataset, seconds: float = 5.0
) -> Shared:
    """Looks for images that are in two data sets.

    Files are the same if their bytes are; those of other sizes are not read. Images of
    TensorFlow Datasets are, if they are the same record.

    Args:
        train: Data set of `image_folder` or `load`.
        test: The other one.
        seconds: How long to look.

    Returns:
        What was found; nothing in a data set with a name of its own.

    Example:
    >>> shared(*keras_hsakd.data.load("digits", image_size=8))
    Shared(count=0, example=None, seconds=None)
    """
    if hasattr(test, "files"):
        return _shared_files(train.files, test.files, seconds)
    if not hasattr(test, "records"):
        return Shared()
    both = np.flatnonzero(np.isin(test.records, train.records))
    if not len(both):
        return Shared()
    place = int(np.flatnonzero(train.records == test.records[both[0]])[0])
    return Shared(len(both), (f"number {both[0]}", f"number {place}"))


def _shared_files(train: Sequence[str], test: Sequence[str], seconds: float) -> Shared:
    end = time.monotonic() + seconds

    def in_time(files):
        return itertools.takewhile(lambda file: time.monotonic() < end, files)

    sizes = [{file: _size(file) for file in in_time(files)} for files in (train, test)]
    alike = set(sizes[0].values()) & set(sizes[1].values()) - {None}
    pairs = itertools.zip_longest(
        *([file for file, size in of.items() if size in alike] for of in sizes)
    )
    by_digest = {}, {}
    for pair in in_time(pairs):
        for file, known in zip(pair, by_digest, strict=True):
            if file is not None and (digest := _digest(file)) is not None:
                known.setdefault(digest, []).append(file)
    found = [digest for digest in by_digest[1] if digest in by_digest[0]]
    return Shared(
        sum(len(by_digest[1][digest]) for digest in found),
        (by_digest[1][found[0]][0], by_digest[0][found[0]][0]) if found else None,
        seconds if time.monotonic() >= end else None,
    )


def _size(file):
    try:
        return os.stat(file).st_size or None
    except OSError:
        return None


def _digest(file):
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return None
