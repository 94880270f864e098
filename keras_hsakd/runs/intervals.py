"""Means over seeds, how far they spread, and how sure a difference is."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """What several seeds gave.

    Attributes:
        mean: Their mean.
        deviation: Their standard deviation, with n - 1; `None` of one.
    """

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """What one method gave more than another, with the seeds that both have.

    Attributes:
        mean: Mean of the differences seed by seed.
        low: Lower end of its 95 % interval; `None` of one seed.
        high: Upper end.
        seeds: Number of seeds.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Returns mean and standard deviation.

    Args:
        values: One number or more.

    Example:
    >>> spread([1.0, 2.0, 6.0])
    Spread(mean=3.0, deviation=2.6457513110645907)
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation)


def paired_difference(
    values: Mapping[int, float], others: Mapping[int, float]
) -> Difference | None:
    """Returns how much larger values are than others, with Student's t over the seeds.

    Args:
        values: Numbers by seed.
        others: Numbers to compare with, by seed.

    Returns:
        A `Difference`, or `None` where no seed is in both.

    Example:
    >>> found = paired_difference({0: 3.0, 1: 5.0}, {0: 2.0, 1: 2.0, 2: 9.0})
    >>> found.mean, found.seeds, round(found.low, 2), round(found.high, 2)
    (2.0, 2, -10.71, 14.71)
    """
    seeds = values.keys() & others.keys()
    if not seeds:
        return None
    mean, deviation = spread([values[seed] - others[seed] for seed in sorted(seeds)])
    if deviation is None:
        return Difference(mean, None, None, 1)
    half = t_quantile(0.975, len(seeds) - 1) * deviation / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds))


def t_quantile(probability: float, freedom: int) -> float:
    """Returns a quantile of Student's t distribution.

    Args:
        probability: From 0.5 to below 1.
        freedom: Degrees of freedom, 1 or more.

    Example:
    >>> round(t_quantile(0.975, 4), 3)
    2.776
    """
    low, high = 0.0, 1.0
    while _below(high, freedom) < probability:
        high *= 2
    for _ in range(100):  # to the last digit
        middle = (low + high) / 2
        if _below(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def _below(t, freedom):
    """Returns the probability of a value below t >= 0.

    Abramowitz and Stegun, 26.7.3 and 26.7.4: a finite sum for whole degrees of freedom.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine, odd = math.cos(angle), math.sin(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (k - 1) / k * cosine**2
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2
