"""Hints for names that were misspelt."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """Returns a hint for an error message, or an empty string.

    Args:
        name: What was received.
        known: Names that would have been right.
        most: The most names to suggest. Defaults to 3.

    Returns:
        A string to append to the message.

    Example:
    >>> did_you_mean("resnet9", ["resnet8", "wrn_16_2"])
    " (did you mean 'resnet8'?)"
    """
    near = difflib.get_close_matches(str(name), known, n=most)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
