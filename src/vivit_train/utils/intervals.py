"""95 % confidence intervals of scores."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = NormalDist().inv_cdf(0.975)
RESAMPLES, FEWEST_RESAMPLES = 1000, 100


def wilson(successes: ArrayLike, n: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the ends of Wilson's interval of a proportion; NaN where n is 0.

    Unlike the normal approximation, it stays within 0 to 1 and has a width if all or none succeed. It contains the
    proportion (E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927).
    """
    n = np.asarray(n, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.asarray(successes, float) / n
        center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # If all or none succeed, an end is the proportion itself, but for rounding.
    low, high = np.clip(center - half, 0, share), np.clip(center + half, share, 1)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], ArrayLike], group_N: NDArray[Any], cost: int = 0
) -> NDArray[np.float64]:
    """Returns the 2.5 % and 97.5 % quantiles of a statistic over resampled rows, [2, ...]; NaN where undefined.

    Rows of one group are drawn together, because clips of one video are not independent. The draws are the same in
    every call.

    Args:
        statistic: A function of how often each row is drawn, int64 [N], which returns one or more numbers.
        group_N: The group of each row, of any type.
        cost: The number of operations of one call. Above 200,000, there are fewer than 1,000 resamples.
    """
    _, group_N = np.unique(group_N, return_inverse=True)
    groups = int(group_N.max()) + 1
    draw = np.random.default_rng(0)
    resamples = int(np.clip(200_000_000 // max(cost, 1), FEWEST_RESAMPLES, RESAMPLES))
    values = [
        np.asarray(statistic(np.bincount(draw.integers(groups, size=groups), minlength=groups)[group_N]), float)
        for _ in range(resamples)
    ]
    return quantiles(np.stack(values))


def quantiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the 2.5 % and 97.5 % quantiles of each column, without NaN; NaN for a column of NaN."""
    undefined = np.isnan(values).all(0)
    return np.where(undefined, np.nan, np.nanquantile(np.where(undefined, 0, values), (0.025, 0.975), axis=0))
