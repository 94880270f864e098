"""Checks of arguments, made before any work starts."""

import numbers


def check_integer(name: str, value: int, minimum: int) -> None:
    """Checks that an argument is an integer and not below `minimum`.

    Args:
        name: String, the argument as the user typed it.
        value: The value received.
        minimum: Int, the smallest value allowed.

    Raises:
        ValueError: If `value` is not an integer, or is below `minimum`.

    Example:
    >>> check_integer("batch_size", 0, minimum=1)
    Traceback (most recent call last):
    ValueError: Expected `batch_size` to be an integer >= 1. Received: batch_size=0
    """
    if not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(
            f"Expected `{name}` to be an integer >= {minimum}. "
            f"Received: {name}={value!r}"
        )
