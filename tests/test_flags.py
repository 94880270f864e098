"""Flags of typed functions: what they read, their help, and what is refused."""

import dataclasses
from typing import Literal

import pytest

from keras_hsakd.flags import Command, Parser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheels:
    """What a car stands on.

    Attributes:
        count: How many there are.
        winter: Whether they are for snow.
    """

    count: int = 4
    winter: bool = False


def drive(
    place: str,
    *,
    speed: float | None = None,
    gear: Literal["low", "high"] = "low",
    stops: tuple[str, ...] = (),
    tuning: dict[str, float] | None = None,
    temperature: float | Literal["fit"] = 1.0,
    wheels: Wheels,
):
    """Drives to a place.

    Args:
        place: Where to.
        speed: 50 % of what is allowed. Defaults to what is seen fit.
        gear: How to climb.
        stops: Where to rest.
        tuning: Settings of the motor.
        temperature: Of the motor.
        wheels: Not shown.
    """
    return place, speed, gear, stops, tuning, temperature, wheels


@pytest.fixture
def parser():
    parser = Parser(prog="drive")
    Command(drive).add_flags(parser)
    return parser


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("home", ("home", None, "low", (), None, 1.0, Wheels())),
        ("home --speed 3 --gear high", ("home", 3.0, "high", (), None, 1.0, Wheels())),
        ("home --stops a b", ("home", None, "low", ["a", "b"], None, 1.0, Wheels())),
        ("home --tuning x=1", ("home", None, "low", (), {"x": 1.0}, 1.0, Wheels())),
        ("home --temperature fit", ("home", None, "low", (), None, "fit", Wheels())),
        (
            "home --count 3 --winter",
            ("home", None, "low", (), None, 1.0, Wheels(count=3, winter=True)),
        ),
        ("home --no-winter", ("home", None, "low", (), None, 1.0, Wheels())),
    ],
)
def test_a_function_gets_what_its_flags_say(parser, words, expected):
    assert Command(drive)(vars(parser.parse_args(words.split()))) == expected


def test_help_is_what_docstrings_say(parser):
    text = " ".join(parser.format_help().split())
    for said in (
        "50 % of what is allowed (default: what is seen fit)",
        "How to climb (default: low)",
        "Whether they are for snow (default: no)",
        "wheels: --count",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: place"),
        ("home --spede 3", "--spede 3 (did you mean '--speed'?)"),
        ("home --wint", "unrecognized arguments: --wint"),
        ("home --gear middle", "invalid choice: 'middle'"),
        ("home --tuning x", "--tuning NAME=NUMBER. Received: ['x']"),
        ("home --temperature hot", "a number, or fit. Received: 'hot'"),
        ("home --count many", "argument --count: invalid int value"),
    ],
)
def test_words_that_do_not_suit(parser, capsys, words, message):
    with pytest.raises(SystemExit):
        parser.parse_args(words.split())
    assert message in capsys.readouterr().err
