"""Checksums that tell whether weights, images and settings are the same."""

import hashlib
import json
from collections.abc import Iterable

import keras
import numpy as np

_DIGITS = 16


def of_values(values: Iterable) -> str:
    """Returns a checksum of the values of variables, or of arrays.

    Args:
        values: `keras.Variable`s, arrays or strings of bytes; none of objects.

    Returns:
        The beginning of a SHA-256, in hexadecimal digits.

    Example:
    >>> of_values([np.arange(3, dtype="int32")])
    'ad5dc1478de06a4c'
    """
    digest = hashlib.sha256()
    for value in values:
        if not isinstance(value, bytes | np.ndarray):
            value = keras.ops.convert_to_numpy(value)
        if not isinstance(value, bytes):  # bfloat16 has no buffer of its own
            value = np.ascontiguousarray(value).reshape(-1).view("uint8")
        digest.update(value)
    return digest.hexdigest()[:_DIGITS]


def of_json(content) -> str:
    """Returns a checksum of JSON values, whatever the order in dicts.

    Args:
        content: Values that JSON has, nested.

    Returns:
        The beginning of a SHA-256, in hexadecimal digits.

    Example:
    >>> of_json({"a": 1, "b": [2]}) == of_json({"b": [2], "a": 1})
    True
    """
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
