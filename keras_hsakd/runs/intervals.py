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
    # Its quantiles alone; `scipy.stats` takes four times as long to import.
    from scipy.special import stdtrit

    half = float(stdtrit(len(seeds) - 1, 0.975)) * deviation / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds))
