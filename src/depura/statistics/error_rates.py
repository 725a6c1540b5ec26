"""What kinds of images an accuracy is made of, and how often one may be resubmitted: from recorded draws.

Pure functions of arrays.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from depura.statistics.intervals import Ints, Proportion, any_of, errors_of, mean_with_interval


class Shares(NamedTuple):
    """Images by their share of wrong draws. The three values add up to 1.

    Attributes:
        right: share of images that are wrong in fewer than 5 % of their recorded draws.
        unsure: in 5 % to 50 %.
        wrong: in more than 50 %.
    """

    right: Proportion
    unsure: Proportion
    wrong: Proportion


def error_shares(predictions: Ints, labels: Ints) -> Shares:
    """Shares of images that are nearly always right, sometimes wrong, and mostly wrong, with Wilson's intervals.

    They are of recorded draws, whose number K belongs to the claim: an image whose error rate is near 5 % or 50 % may
    be counted on either side, and where K is 20 or less the first share is of images with no error at all.

    Args:
        predictions: (n, K), the label of each draw.
        labels: (n,).

    Returns:
        The shares.
    """
    errors, k = errors_of(predictions, labels), predictions.shape[1]
    right, wrong = 20 * errors < k, 2 * errors > k
    return Shares(*(mean_with_interval(part.astype(np.float64)) for part in (right, ~right & ~wrong, wrong)))


class Submissions(NamedTuple):
    """Submissions of the same image until the first error. Infinite: more than were recorded.

    Attributes:
        value: the least N by which an error is as likely as not.
        low: lower end of its 95 % interval.
        high: upper end.
        draws: K, recorded for each image.
    """

    value: float
    low: float
    high: float
    draws: int

    def __str__(self) -> str:
        """As "4 (2-never within 64)", with a dash of its own; the value alone where both ends are it."""
        value, low, high = (
            f"never within {self.draws}" if math.isinf(n) else f"{n:.0f}" for n in (self.value, self.low, self.high)
        )
        return value if value == low == high else f"{value} ({low}–{high})"


def submissions(predictions: Ints, labels: Ints) -> Submissions:
    """How often the same image can be submitted until an error is as likely as not, over images and draws.

    The median of the number of the first wrong draw: the least N at which `any_of`, the probability to survive N
    submissions, is 1/2 or less. An image's number is geometric, but its error rate is known from K draws only; any-of-N
    is unbiased all the same, while a median over images of log(1/2) / log(1 - errors / K) is not. The interval has
    every N at which the interval of any-of-N reaches both sides of 1/2, so it covers as often as that one does.

    Args:
        predictions: (n, K), the label of each draw.
        labels: (n,).

    Returns:
        The number and its interval, from 1 to K, or infinite where more than K would be needed.
    """
    k = predictions.shape[1]

    @cache
    def surviving(n: int) -> Proportion:
        return mean_with_interval(any_of(predictions, labels, n))

    def first(fallen: Callable[[Proportion], bool]) -> float:
        n = bisect_left(range(1, k + 1), True, key=lambda n: fallen(surviving(n))) + 1
        return n if n <= k else math.inf

    return Submissions(
        value=first(lambda estimate: estimate.value <= 0.5),
        low=first(lambda estimate: estimate.low <= 0.5),
        high=first(lambda estimate: estimate.high <= 0.5),
        draws=k,
    )
