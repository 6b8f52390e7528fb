"""Student's interval of a mean of few values, such as the differences of two arms over the seeds."""

import math
from collections.abc import Collection


def mean_interval(values: Collection[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """(mean, low, high): the mean of n >= 1 values and the two-sided interval of Student's t, n - 1 degrees of freedom.

    One value has no interval: low and high are None.
    """
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return mean, None, None
    from scipy.stats import t  # slow to import, and only needed here

    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(t.ppf((1 + level) / 2, count - 1)) * math.sqrt(variance / count)
    return mean, mean - half, mean + half


def p_value(values: Collection[float]) -> float | None:
    """Two-sided p of Student's one-sample t-test that the mean is zero; None under two values.

    Values that are all alike give 0, or 1 where they are all zero.
    """
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return None
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    if variance == 0:
        return float(mean == 0)
    from scipy.stats import t

    return float(2 * t.sf(abs(mean) / math.sqrt(variance / count), count - 1))
