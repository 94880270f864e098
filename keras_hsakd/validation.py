"""Values checked against types, of settings and of JSON.

Types are those of Python; `Annotated[int, Range(at_least=1)]` says the range of a
number.
"""

import dataclasses
import functools
import math
import numbers
import operator
import reprlib
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple

_COMPARED = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


class Range(NamedTuple):
    """Bounds of a number.

    Attributes:
        at_least: The least that it may be. Defaults to `None`, any.
        above: What it must be more than. Defaults to `None`, any.
        at_most: The most that it may be. Defaults to `None`, any.
        below: What it must be less than. Defaults to `None`, any.

    Example:
    >>> str(Range(at_least=0, below=1)), 1 in Range(at_least=0, below=1)
    ('at least 0 and below 1', False)
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def _bounds(self):
        return [(k, v) for k, v in self._asdict().items() if v is not None]

    def __str__(self):
        return " and ".join(f"{k.replace('_', ' ')} {v}" for k, v in self._bounds())

    def __contains__(self, number):
        return all(_COMPARED[name](number, bound) for name, bound in self._bounds())


Count = Annotated[int, Range(at_least=1)]
NonNegative = Annotated[float, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]


class MismatchError(ValueError):
    """What is wrong with a value.

    Attributes:
        place: Where in it, such as `"training.epochs"`; empty for the value itself.
        expected: What was expected there, in words.
        received: What is there, in words.
    """

    def __init__(self, place: str, expected: str, received: str):
        super().__init__(f"Expected {expected}. Received: {received}")
        self.place, self.expected, self.received = place, expected, received


def converted(value: object, hint: Any, place: str = "") -> Any:
    """Returns a value in its type: a tuple of a list, for example.

    Args:
        value: What JSON, a flag or somebody in Python gave.
        hint: The type: of Python's own, a `Literal`, a dataclass, a `TypedDict`, which
            may have more keys, or several with `|`. A `float` is finite, and
            `numbers.Real` any number.
        place: Where the value is in a larger one. Defaults to the empty string.

    Raises:
        MismatchError: If it is not of that type.

    Example:
    >>> converted([1, 2], tuple[Count, ...])
    (1, 2)
    >>> converted(0, Count)
    Traceback (most recent call last):
    keras_hsakd.validation.MismatchError: Expected at least 1. Received: 0
    """
    kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is object:
        return value
    if kind is Annotated:
        found = converted(value, of[0], place)
        if found not in of[1]:
            raise MismatchError(place, str(of[1]), reprlib.repr(value))
        return found
    if kind is typing.NotRequired:
        return converted(value, of[0], place)
    if kind in (types.UnionType, typing.Union):
        return _one_of(value, of, place)
    if kind is Literal:
        if value not in of:
            raise MismatchError(place, f"one of {of}", reprlib.repr(value))
        return value
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return _object(value, kind, place)
    if not _is(value, kind):
        raise MismatchError(place, _WORDS[kind], reprlib.repr(value))
    if kind in (list, tuple):
        return _sequence(value, kind, of, place)
    if kind is dict:
        return {k: converted(v, of[1], _joined(place, k)) for k, v in value.items()}
    return float(value) if kind is float else value


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    numbers.Real: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


def _is(value, kind):
    if kind in (int, float, numbers.Real):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, int):  # of 64 bits, as whatever takes it
            return -(2**63) <= value < 2**63
        return kind is numbers.Real or (kind is float and math.isfinite(value))
    return isinstance(value, (list, tuple) if kind in (list, tuple) else kind)


def _joined(place, key):
    return f"{place}.{key}" if place else key


def _one_of(value, kinds, place):
    """Converts to the first type that suits."""
    if value is None and types.NoneType in kinds:
        return None
    faults = []
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return converted(value, kind, place)
            except MismatchError as error:
                faults.append(error)
    deepest = max(faults, key=lambda fault: len(fault.place))
    if deepest.place == place:
        expected = " or ".join(fault.expected for fault in faults)
        raise MismatchError(place, expected, deepest.received)
    raise deepest


def _sequence(value, kind, of, place):
    if kind is list or of[1:] == (...,):
        of = of[:1] * len(value)
    if len(value) != len(of):
        raise MismatchError(place, f"a list of {len(of)}", reprlib.repr(value))
    places = [f"{place}[{number}]" for number in range(len(value))]
    return kind(map(converted, value, of, places))


def _object(value, kind, place):
    """Converts to a dataclass, or to a dict with the keys of a `TypedDict`."""
    if not isinstance(value, dict):
        raise MismatchError(place, "an object", reprlib.repr(value))
    hints, required = fields(kind)
    for key in hints:
        if key in required and key not in value:
            raise MismatchError(_joined(place, key), "there", "nothing")
    found = {
        key: converted(part, hints[key], _joined(place, key)) if key in hints else part
        for key, part in value.items()
    }
    if typing.is_typeddict(kind):
        return found
    for key in found.keys() - hints:
        received = f"one more, {reprlib.repr(key)}"
        raise MismatchError(place, "settings of this version", received)
    try:
        return kind(**found)
    except ValueError as error:
        raise MismatchError(place, "settings that suit", str(error)) from error


@functools.cache
def fields(kind: type) -> tuple[dict[str, Any], frozenset[str]]:
    """Returns the types of what a dataclass or a `TypedDict` has, and what it must.

    Example:
    >>> fields(typing.TypedDict("Film", {"name": str}))
    ({'name': <class 'str'>}, frozenset({'name'}))
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        return hints, kind.__required_keys__
    of = dataclasses.fields(kind)
    required = (
        field.name
        for field in of
        if field.default is field.default_factory is dataclasses.MISSING
    )
    return {field.name: hints[field.name] for field in of}, frozenset(required)
