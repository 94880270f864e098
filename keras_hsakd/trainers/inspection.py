"""Inspection of data before a trainer reads them."""

import itertools
import time
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras

from keras_hsakd import compat
from keras_hsakd.trainers.checks import is_tf_dataset
from keras_hsakd.trainers.feeding import upstream

_SECONDS = 0.2


class Inspection(NamedTuple):
    """What was seen of data.

    Attributes:
        data: The data to read in their place: of a generator, one that still has the
            batch.
        first_batch: Their first batch, or all the data of arrays; `None` where it
            cannot be looked at.
        more_labels: Labels of other batches, as far as they are known.
    """

    data: Any
    first_batch: Any = None
    more_labels: list = []


def inspect_data(x, y=None, argument: str = "x") -> Inspection:
    """Returns what can be seen of data without reading them all.

    More than the first batch is seen of data sets of `keras_hsakd.data`, which know all
    their labels, and, for a moment, of a `tf.data.Dataset` that draws nothing at random
    while it is read: of others, as many batches as time allows must not be missing from
    a sequence of random numbers.

    Args:
        x: See `keras.Model.fit`.
        y: See `keras.Model.fit`.
        argument: Name of the argument that the data come in. Defaults to `"x"`.

    Raises:
        ValueError: If there is no batch.
    """
    until = time.perf_counter() + _SECONDS
    if y is not None or hasattr(x, "shape") or isinstance(x, (dict, list, tuple)):
        return Inspection(x, (x, y))
    if isinstance(x, keras.utils.PyDataset):
        batches = iter([] if x.num_batches == 0 else [x[0]])
    elif isinstance(x, types.GeneratorType):
        batches = x
    elif is_tf_dataset(x) or _is_read_again(x):
        batches = iter(x)
    else:
        return Inspection(x)
    first = next(batches, None)
    if first is None:
        raise ValueError(
            f"Expected `{argument}` to have at least one batch. Received: none"
        )
    if batches is x:
        # Keras takes no other iterator than a generator.
        return Inspection((batch for batch in itertools.chain([first], x)), first)
    return Inspection(
        x, first, _more_labels(x, batches, until) if is_tf_dataset(x) else []
    )


def _is_read_again(x):
    """Returns whether data of unknown make, as a `DataLoader`, begin anew each time."""
    distributed = hasattr(x, "element_spec")  # whose batches are in parts
    return isinstance(x, Iterable) and not hasattr(x, "__next__") and not distributed


def _more_labels(dataset, batches, until):
    known = _known_labels(dataset)
    if known is not None:
        return [known]
    if not all(map(compat.reads_alike, upstream(dataset))):
        return []
    labels = []
    while time.perf_counter() < until and (batch := next(batches, None)) is not None:
        labels.append(keras.utils.unpack_x_y_sample_weight(batch)[1])
    return [found for found in labels if found is not None]


def _known_labels(dataset):
    """Returns the labels of a data set of ours, if its batches are as they were."""
    while type(dataset).__name__ in compat.UNCHANGED and not hasattr(dataset, "labels"):
        (dataset,) = compat.made_of(dataset)
    return getattr(dataset, "labels", None)
