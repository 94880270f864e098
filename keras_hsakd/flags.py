"""Commands of typed functions: their flags, with the help that docstrings have.

A parameter is a word of the command, a keyword-only one a flag; one whose type is a
dataclass is a group of flags, one for each field. One without a type has no flag.
"""

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from keras_hsakd import sizes
from keras_hsakd.suggestions import did_you_mean


class Group(NamedTuple):
    """Flags for the fields of a dataclass, as in `Annotated[dict, Group(Settings)]`.

    The function gets a dict of what is given where `dict` is annotated, else all of it
    as the dataclass.

    Attributes:
        settings: The dataclass.
        default: Whose values hold where none are given. Defaults to `""`, its own.
        omit: Names of fields without a flag. Defaults to none.
    """

    settings: type
    default: str = ""
    omit: tuple[str, ...] = ()


class Command(NamedTuple):
    """A function that is called with flags.

    Attributes:
        function: The function.
        types: Types of parameters in place of those that it has. Defaults to none.
        described: What has the docstring with the summary. Defaults to the function.

    Example:
    >>> def double(number: int, *, times: int = 1):
    ...     '''Prints a number, doubled.
    ...
    ...     Args:
    ...         number: The number.
    ...         times: How many times it is doubled.
    ...     '''
    ...     print(number * 2**times)
    >>> command, parser = Command(double), Parser(prog="double")
    >>> sorted(command.add_flags(parser))
    ['number', 'times']
    >>> command(vars(parser.parse_args(["3", "--times", "2"])))
    12
    """

    function: Callable
    types: Mapping[str, Any] = types.MappingProxyType({})
    described: Any = None

    @property
    def about(self) -> str:
        """What the docstring says before it comes to arguments."""
        text = inspect.getdoc(self.described or self.function)
        return re.split(r"\n\n(?:\w+:\n|Reference: )", text)[0]

    def add_flags(self, parser: argparse.ArgumentParser) -> set[str]:
        """Adds a flag, or a word, for each parameter, and returns their names."""
        return _add_all(parser, self.function, self._types())

    def __call__(self, given: Mapping[str, Any], **others: Any) -> Any:
        """Calls the function.

        Args:
            given: What was given, by the names of the flags.
            **others: Arguments without a flag.
        """
        arguments = others
        for name, hint in self._types().items():
            if group := _group(hint):
                fields = {field.name for field in dataclasses.fields(group.settings)}
                values = {k: v for k, v in given.items() if k in fields}
                as_given = _plain(hint) is dict
                arguments[name] = values if as_given else group.settings(**values)
            elif name in given:
                arguments[name] = given[name]
        return self.function(**arguments)

    def _types(self):
        found = typing.get_type_hints(self.function, include_extras=True)
        return {**found, **self.types}


class Parser(argparse.ArgumentParser):
    """Takes flags that are written in full alone, and names those that are near."""

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        """Parses, and ends the process where a word is unknown."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = re.findall(r"--[a-z][a-z-]*", self.format_usage())
            wrong = next((word for word in unknown if word.startswith("-")), "")
            hint = did_you_mean(wrong.partition("=")[0], flags)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def _plain(hint):
    """Returns a type without what is annotated to it."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _group(hint):
    """Returns the group of flags that a type stands for, or None."""
    if dataclasses.is_dataclass(hint):
        return Group(hint)
    annotated = getattr(hint, "__metadata__", ())
    return next((each for each in annotated if isinstance(each, Group)), None)


def _add_all(parser, of, hints, default="", omit=()):
    """Adds what a function or a dataclass takes."""
    names, helps = set(), _helps(of)
    for name, parameter in inspect.signature(of).parameters.items():
        if name in omit or name not in hints:
            continue
        if group := _group(hints[name]):
            settings, *others = group
            title = settings.__name__.removesuffix("Settings").lower()
            fields = typing.get_type_hints(settings, include_extras=True)
            inner = parser.add_argument_group(title)
            names |= _add_all(inner, settings, fields, *others)
            continue
        names.add(name)
        options = _reading(hints[name])
        options["help"] = _help(helps[name], default, parameter.default)
        is_required = parameter.default is parameter.empty and not default
        if parameter.kind is not parameter.KEYWORD_ONLY:
            if not is_required:
                options["nargs"] = "?"
        else:
            options["required"] = is_required
            name = f"--{name.replace('_', '-')}"
        parser.add_argument(name, default=argparse.SUPPRESS, **options)
    return names


def _helps(of):
    """Returns what the docstrings of a function or class say of its parts, by name."""
    found = {}
    for each in reversed(inspect.getmro(of)) if inspect.isclass(of) else [of]:
        text = inspect.cleandoc(each.__doc__ or "")
        told = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
        found |= {name: " ".join(words.split()) for name, words in told}
    return found


def _help(text, inherited, default):
    """Returns the help of a flag, which ends with its default."""
    text, _, told = text.removesuffix(".").partition(". Defaults to ")
    if inherited:
        told = inherited
    elif isinstance(default, bool):
        told = "yes" if default else "no"
    elif isinstance(default, tuple):
        told = " ".join(map(str, default))
    elif isinstance(default, str | int | float):
        told = str(default)
    return (f"{text} (default: {told})" if told else text).replace("%", "%%")


def _reading(hint):
    """Returns how argparse reads a value of a type."""
    hint = _plain(hint)
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = typing.get_args(hint) if is_union else (hint,)
    kinds = tuple(_plain(kind) for kind in kinds if kind is not types.NoneType)
    if kinds == typing.get_args(sizes.ImageSize):
        return {"type": _image_size, "metavar": "SIZE"}
    (kind, *others) = kinds
    if others:
        return {"type": lambda text: _number_or_word(text, typing.get_args(others[0]))}
    name, of = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if name is Literal:
        return {"type": type(of[0]), "choices": of}
    if name is tuple:
        many = "+" if of[1:] == (...,) else len(of)
        return _reading(of[0]) | {"nargs": many}
    if kind is dict or name is dict:
        return {"action": _Pairs, "nargs": "+", "metavar": "NAME=NUMBER"}
    return {"type": kind}


def _image_size(text):
    """Reads the value of a flag; argparse puts the flag's name before the error."""
    try:
        return sizes.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number_or_word(text, words):
    """Reads the value of a flag, as `_image_size` does."""
    try:
        return text if text in words else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"Expected a number, or {', '.join(words)}. Received: '{text}'"
        ) from None


class _Pairs(argparse.Action):
    """Keeps words of the form NAME=NUMBER as a dict."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            pairs = dict(word.split("=") for word in values)
            numbers = {name: float(number) for name, number in pairs.items()}
        except ValueError:
            parser.error(f"Expected {option_string} NAME=NUMBER. Received: {values}")
        setattr(namespace, self.dest, numbers)
