"""Calls as Python spells them, read without running them."""

import ast
from typing import Any, NamedTuple


class Call(NamedTuple):
    """What a text calls.

    Attributes:
        name: Name of the function or class.
        args: Its positional arguments.
        settings: Its other arguments, by name.
    """

    name: str
    args: tuple
    settings: dict[str, Any]


def parse_call(text: str) -> Call:
    """Returns the name and the arguments of a call, which are literals.

    Args:
        text: For example `"KL(4.0, on='heads')"`.

    Raises:
        ValueError: If the text is no such call.

    Example:
    >>> parse_call("KL(4.0, on='heads')")
    Call(name='KL', args=(4.0,), settings={'on': 'heads'})
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        return Call(
            call.func.id,
            tuple(map(ast.literal_eval, call.args)),
            {word.arg: ast.literal_eval(word.value) for word in call.keywords},
        )
    except (AttributeError, SyntaxError, ValueError):
        raise ValueError(
            "Expected a term as Python spells it, such as \"KL(4.0, on='heads')\". "
            f"Received: {text!r}"
        ) from None
