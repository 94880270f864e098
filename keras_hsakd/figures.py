"""Numbers as people read them."""


def rounded(value: float) -> str:
    """Returns a number with three figures, or all that it has before the point.

    Args:
        value: The number.

    Example:
    >>> rounded(0.12345), rounded(1234.5)
    ('0.123', '1,234')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def amount(value: float, unit: str = "") -> str:
    """Returns a large number with three figures and a prefix.

    Args:
        value: The number.
        unit: What is counted. Defaults to nothing.

    Example:
    >>> amount(49_920, "B"), amount(95_181_996_032)
    ('49.9 kB', '95.2 G')
    """
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 999.5 and prefix != "T":
        value, prefix = value / 1000, next(prefixes)
    return f"{rounded(value)} {prefix}{unit}".strip()
