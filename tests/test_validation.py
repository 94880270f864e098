"""Values checked against types: what each takes, and what it says of others."""

import dataclasses
import numbers
import typing
from typing import Annotated, Literal, NotRequired, TypedDict

import pytest

from keras_hsakd.validation import Count, MismatchError, Positive, Range, converted


@dataclasses.dataclass
class Size:
    height: Count
    width: Count = 1


class Film(TypedDict):
    title: str
    years: tuple[int, ...]
    size: NotRequired[Size]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (float("inf"), numbers.Real, float("inf")),
        ("a", Literal["a", "b"], "a"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2.0], tuple[int, float], (1, 2.0)),
        ({"beta": 6}, dict[str, float], {"beta": 6.0}),
        (None, int | None, None),
        ("fit", float | Literal["fit"], "fit"),
        (2, float | Literal["fit"], 2.0),
        ({"height": 2}, Size, Size(2, 1)),
        ({"title": "x", "years": [], "more": 1}, Film, None),
    ],
)
def test_what_suits(value, hint, expected):
    found = converted(value, hint)
    if expected is None and value is not None:  # of JSON, what is not read may stay
        expected = {**value, "years": ()}
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, "a whole number. Received: True"),
        (2**63, int, "a whole number"),
        (1.0, int, "a whole number"),
        (float("nan"), float, "a finite number"),
        ("1", float, "a finite number. Received: '1'"),
        (0, Count, "at least 1. Received: 0"),
        (0.0, Positive, "above 0"),
        (1, Annotated[float, Range(at_least=0, below=1)], "at least 0 and below 1"),
        ("c", Literal["a", "b"], r"one of \('a', 'b'\)"),
        ("ab", tuple[str, ...], "a list"),
        ([1], tuple[int, int], "a list of 2"),
        (None, int, "a whole number"),
        ("fat", float | Literal["fit"], "a finite number or one of"),
        ([], Film, "an object"),
        ({"height": 1, "depth": 2}, Size, "settings of this version.*'depth'"),
    ],
)
def test_what_does_not(value, hint, message):
    with pytest.raises(MismatchError, match=f"Expected {message}"):
        converted(value, hint)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"years": []}, "title"),
        ({"title": "x", "years": [1, "2"]}, "years[1]"),
        ({"title": "x", "years": [], "size": {"height": 0}}, "size.height"),
    ],
)
def test_the_place_of_a_fault_is_named(value, place):
    with pytest.raises(MismatchError) as caught:
        converted(value, Film)
    assert caught.value.place == place


def test_unions_tell_of_the_part_that_came_closest():
    hint = typing.Union[Film, Size]  # noqa: UP007
    with pytest.raises(MismatchError) as caught:
        converted({"title": "x", "years": ["1"]}, hint)
    assert caught.value.place == "years[0]"
