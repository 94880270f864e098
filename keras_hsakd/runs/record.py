"""The shape of `run.json`, and whether a file has it."""

import dataclasses
import json
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import keras_hsakd
from keras_hsakd.runs.settings import DataSettings, TrainingSettings
from keras_hsakd.sizes import LARGEST, ImageSize, edges

# Of the layout of `run.json`.
FORMAT = 4
_LONGEST_TEXT = 4096  # a path, for example

Results = dict[str, numbers.Real]


class Images(TypedDict):
    """What a training saw."""

    class_names: list[str]
    image_size: ImageSize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: int
    test: int
    measured_on: str
    unlabeled: NotRequired[int]
    skipped: NotRequired[list[str]]


class Cache(TypedDict):
    """The outputs that a student learned from in place of its teacher."""

    path: str
    digest: str
    variants: int


class Settings(TypedDict):
    """What a run was told, and those before it."""

    kind: str
    options: dict[str, object]
    data: DataSettings
    training: TrainingSettings
    origin: "Settings | None"
    fingerprint: NotRequired[dict[str, str]]


class Machine(TypedDict):
    """What a training ran on."""

    processor: str
    cores: int
    devices: list[str]


class Origin(TypedDict):
    """The run that a training started from."""

    run: str
    model: str
    checkpoint: str
    weights: NotRequired[str]
    settings: NotRequired[Settings]
    parts: NotRequired[dict[str, int]]
    cache: NotRequired[Cache]


class Record(TypedDict):
    """What is read of `run.json`; it may have more."""

    format: int
    kind: str
    options: dict[str, object]
    data: DataSettings
    training: TrainingSettings
    origin: Origin | None
    execution: dict[str, object]
    views: str
    status: str
    epochs_done: int
    monitor: str
    last: Results | None
    best: Results | None
    images: Images
    seconds: float
    fingerprint: NotRequired[dict[str, str]]
    recipe: NotRequired[str | None]
    files: NotRequired[dict[str, str]]
    parts: NotRequired[dict[str, int]]
    machine: NotRequired[Machine]
    versions: NotRequired[dict[str, str]]


def check(record: Mapping, path: str) -> None:
    """Raises a ValueError unless a record has all that is read of it.

    Args:
        record: Content of a `run.json`.
        path: The file, for errors.

    Raises:
        ValueError: In one line, what is wrong.

    Example:
    >>> check({"format": 4}, "run.json")
    Traceback (most recent call last):
    ValueError: Expected `kind` in 'run.json' to be there. Received: nothing
    """
    found = record.get("format", 1)  # the first had no number
    if found != FORMAT:
        versions = record.get("versions")
        by = versions.get("keras_hsakd") if isinstance(versions, dict) else None
        by = _line(by) if isinstance(by, str) else "of an unknown version"
        raise ValueError(
            f"Expected '{path}' to be the record of a run of keras_hsakd "
            f"{keras_hsakd.__version__}, format {FORMAT}. Received: format "
            f"{reprlib.repr(found)}, by keras_hsakd {by}"
        )
    fault = _fault(record, Record, "") or _out_of_range(record)
    if fault:
        name, expected, received = fault
        raise ValueError(
            f"Expected {f'`{_line(name)}` in ' if name else ''}'{path}' to be "
            f"{expected}. Received: {received}"
        )


def are_results(results: object, monitor: str) -> bool:
    """Returns whether these are the results of an epoch, with the quantity that counts.

    Args:
        results: Whatever was read.
        monitor: Name of that quantity.

    Example:
    >>> are_results({"epoch": 3, "val_accuracy": 0.5}, "val_accuracy")
    True
    """
    return not (
        _fault(results, Results, "")
        or _fault(results.get("epoch"), int, "")
        or not math.isfinite(results.get(monitor, math.nan))
    )


def _out_of_range(record):
    in_lines = {name: record[name] for name in ("kind", "status", "monitor", "views")}
    in_lines["training.model"] = record["training"]["model"]
    for name, text in in_lines.items():
        if not text.isprintable() or len(text) > _LONGEST_TEXT:
            return name, "a short line of text", reprlib.repr(text)
    for name in ("last", "best"):
        if record[name] and not are_results(record[name], record["monitor"]):
            expected = f"results with `epoch` and a finite `{record['monitor']}`"
            return name, expected, reprlib.repr(record[name])
    images = record["images"]
    size = images["image_size"]
    if not all(1 <= edge <= LARGEST for edge in edges(size)):
        return "images.image_size", f"from 1 to {LARGEST:,}", reprlib.repr(size)
    if len(names := images["class_names"]) < 2:
        return "images.class_names", "the names of two classes or more", names
    return None


# Faults: the name of a part, what was expected of it, and what it is; None for none.

_IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    numbers.Real: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


def _fault(value, hint, name):
    """Returns where and how JSON values are not what a type says."""
    if hint is object:
        return None
    if isinstance(hint, types.UnionType):
        kinds = typing.get_args(hint)
        if value is None and type(None) in kinds:
            return None
        of, *others = (of for of in kinds if of is not type(None))
        # What is wrong is told of the kind that the value is of.
        of = next((other for other in others if _is(value, _kind(other))), of)
        return _fault(value, of, name)
    if dataclasses.is_dataclass(hint):
        return _fault_of_settings(value, hint, name)
    if typing.is_typeddict(hint):
        return _fault_of_object(
            value, typing.get_type_hints(hint), hint.__required_keys__, name
        )
    kind, arguments = _kind(hint), typing.get_args(hint)
    if not _is(value, kind):
        return name, _IN_WORDS[kind], reprlib.repr(value)
    if kind is dict:
        items = [(f"{name}.{key}", item, arguments[1]) for key, item in value.items()]
    elif kind is list or arguments[1:] == (...,):
        items = [(f"{name}[{n}]", item, arguments[0]) for n, item in enumerate(value)]
    elif kind is tuple:
        if len(value) != len(arguments):
            return name, f"a list of {len(arguments)}", reprlib.repr(value)
        items = [
            (f"{name}[{n}]", *pair)
            for n, pair in enumerate(zip(value, arguments, strict=True))
        ]
    else:
        items = []
    return _first(_fault(item, of, part) for part, item, of in items)


def _fault_of_object(value, hints, required, name):
    if not isinstance(value, dict):
        return name, "an object", reprlib.repr(value)
    beginning = f"{name}." if name else ""
    for key in hints:
        if key in required and key not in value:
            return f"{beginning}{key}", "there", "nothing"
    return _first(
        _fault(value[key], hint, f"{beginning}{key}")
        for key, hint in hints.items()
        if key in value
    )


def _fault_of_settings(value, settings, name):
    fields = {field.name: field for field in dataclasses.fields(settings)}
    without_default = {
        key
        for key, field in fields.items()
        if field.default is field.default_factory is dataclasses.MISSING
    }
    fault = _fault_of_object(
        value, typing.get_type_hints(settings), without_default, name
    )
    if fault:
        return fault
    for key, item in value.items():
        if key not in fields:
            return name, "settings of this version", f"one more, {reprlib.repr(key)}"
        choices = fields[key].metadata.get("choices")
        if choices and item is not None and item not in choices:
            return f"{name}.{key}", f"one of {tuple(choices)}", reprlib.repr(item)
    try:
        settings(**value)
    except ValueError as error:
        return name, "settings that suit", str(error)
    return None


def _kind(hint):
    return typing.get_origin(hint) or hint


def _is(value, kind):
    if kind in (int, float, numbers.Real):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, int):  # of 64 bits, as whatever takes it
            return -(2**63) <= value < 2**63
        return kind is numbers.Real or (kind is float and math.isfinite(value))
    return isinstance(value, list if kind is tuple else kind)


def _line(text):
    """Returns a text in one line."""
    return json.dumps(text)[1:-1]


def _first(faults):
    return next(filter(None, faults), None)
