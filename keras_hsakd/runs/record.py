"""The shape of `run.json`, and whether a file has it."""

import json
import math
import numbers
import reprlib
from collections.abc import Mapping
from typing import Annotated, NotRequired, TypedDict

import keras_hsakd
from keras_hsakd.runs.settings import DataSettings, TrainingSettings
from keras_hsakd.sizes import LARGEST
from keras_hsakd.validation import MismatchError, Range, converted

# Of the layout of `run.json`.
FORMAT = 4
_LONGEST_TEXT = 4096  # a path, for example

Edge = Annotated[int, Range(at_least=1, at_most=LARGEST)]
Results = dict[str, numbers.Real]


class Images(TypedDict):
    """What a training saw."""

    class_names: list[str]
    image_size: Edge | tuple[Edge, Edge]
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
    multiply_adds: NotRequired[int]


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
    cache: NotRequired[Cache]
    others: NotRequired[list["Origin"]]


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
    image_multiply_adds: NotRequired[int]
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
    try:
        converted(record, Record)
        _check_results(record)
    except MismatchError as error:
        of = f"`{_line(error.place)}` in " if error.place else ""
        raise ValueError(
            f"Expected {of}'{path}' to be {error.expected}. Received: {error.received}"
        ) from None


def are_results(results: object, monitor: str) -> bool:
    """Returns whether these are the results of an epoch, with the quantity that counts.

    Args:
        results: Whatever was read.
        monitor: Name of that quantity.

    Example:
    >>> are_results({"epoch": 3, "val_accuracy": 0.5}, "val_accuracy")
    True
    """
    try:
        converted(results, Results)
    except MismatchError:
        return False
    return "epoch" in results and math.isfinite(results.get(monitor, math.nan))


def _line(text):
    """Returns a text in one line."""
    return json.dumps(text)[1:-1]


def _check_results(record):
    """Raises a MismatchError for what cannot be read of a record, or printed."""
    in_lines = {name: record[name] for name in ("kind", "status", "monitor", "views")}
    in_lines["training.model"] = record["training"]["model"]
    for name, text in in_lines.items():
        if not text.isprintable() or len(text) > _LONGEST_TEXT:
            raise MismatchError(name, "a short line of text", reprlib.repr(text))
    for name in ("last", "best"):
        if record[name] and not are_results(record[name], record["monitor"]):
            expected = f"results with `epoch` and a finite `{record['monitor']}`"
            raise MismatchError(name, expected, reprlib.repr(record[name]))
    if len(names := record["images"]["class_names"]) < 2:
        expected = "the names of two classes or more"
        raise MismatchError("images.class_names", expected, reprlib.repr(names))
