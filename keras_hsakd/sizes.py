"""Sizes of images: one number for both edges of a square, or height and width."""

import numbers
import re
from collections.abc import Sequence

ImageSize = int | tuple[int, int]

# Edges of an image in pipelines; a larger one has more pixels than are decoded.
SMALLEST, LARGEST = 8, 10_000


def edges(size: ImageSize | Sequence[int]) -> tuple[int, int]:
    """Returns height and width.

    Args:
        size: Int, both of them, or (height, width).

    Example:
    >>> edges(224), edges((192, 256))
    ((224, 224), (192, 256))
    """
    if isinstance(size, numbers.Integral):
        return int(size), int(size)
    height, width = size
    return int(height), int(width)


def simplest(size: ImageSize | Sequence[int]) -> ImageSize:
    """Returns a size as one number where it is a square's, else as a tuple.

    Args:
        size: As in `edges`.

    Example:
    >>> simplest([224, 224]), simplest([192, 256])
    (224, (192, 256))
    """
    height, width = edges(size)
    return height if height == width else (height, width)


def as_json(size: ImageSize | Sequence[int]) -> int | list[int]:
    """Returns a size as it is read from a file, which has no tuples.

    Args:
        size: As in `edges`.

    Example:
    >>> as_json(224), as_json((192, 256))
    (224, [192, 256])
    """
    size = simplest(size)
    return list(size) if isinstance(size, tuple) else size


def is_square(size: ImageSize | Sequence[int]) -> bool:
    """Returns whether height and width are the same.

    Args:
        size: As in `edges`.

    Example:
    >>> is_square(224), is_square((192, 256))
    (True, False)
    """
    height, width = edges(size)
    return height == width


def checked(size: ImageSize | Sequence[int]) -> ImageSize:
    """Returns a size that images are to have, as `simplest` does.

    Args:
        size: Whatever was given as `image_size`.

    Raises:
        ValueError: If it is no size, or one that is too small or too large.

    Example:
    >>> checked((192, 256))
    (192, 256)
    """
    both = (size, size) if isinstance(size, numbers.Integral) else size
    if (
        not isinstance(both, Sequence)
        or len(both) != 2
        or not all(isinstance(n, numbers.Integral) for n in both)
        or not all(SMALLEST <= n <= LARGEST for n in both)
    ):
        raise ValueError(
            f"Expected `image_size` to be an integer >= {SMALLEST} and at most "
            f"{LARGEST}, or two of them, (height, width). "
            f"Received: image_size={size!r}"
        )
    return simplest(both)


def parsed(text: str) -> ImageSize:
    """Returns the size that somebody typed.

    Args:
        text: As `written` returns it.

    Raises:
        ValueError: If it is no size.

    Example:
    >>> parsed("224"), parsed("192x256")
    (224, (192, 256))
    """
    if not re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)?", text):
        raise ValueError(
            "Expected height x width in pixels, for example 192x256, or one number "
            f"for both. Received: {text!r}"
        )
    height, _, width = text.partition("x")
    return simplest((int(height), int(width or height)))


def written(size: ImageSize | Sequence[int]) -> str:
    """Returns a size as one types it.

    Args:
        size: As in `edges`.

    Example:
    >>> written(224), written((192, 256))
    ('224', '192x256')
    """
    size = simplest(size)
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def in_words(size: ImageSize | Sequence[int]) -> str:
    """Returns a size as one reads it, both edges of a square too.

    Args:
        size: As in `edges`.

    Example:
    >>> in_words(224)
    '224 x 224'
    """
    return " x ".join(map(str, edges(size)))
