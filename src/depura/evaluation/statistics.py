"""From counts of errors to accuracies with intervals. Pure functions of arrays; knows nothing else of depura.

An image's error rate p under fresh draws is the primitive; every metric is a function of the p of all images.
Intervals are over images (the claim is about images like these), so draws of one image never count as independent
data.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Estimate(NamedTuple):
    """An accuracy.

    Attributes:
        value: in [0, 1].
        low: lower end of the 95 % interval.
        high: upper end.
        method: how the interval was made.
    """

    value: float
    low: float
    high: float
    method: str


def mean_with_interval(values: Floats, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean over images of a number in [0, 1], with an interval.

    Wilson's interval if every value is 0 or 1; Clopper and Pearson's bound at the same mean if all values are equal
    otherwise (no spread to resample); else a BCa bootstrap over images (9,999 resamples, seeded).

    Args:
        values: one per image, (n,).
        level: of the interval.
        seed: of the resampling.

    Returns:
        The estimate.
    """
    n, mean = len(values), float(np.mean(values))
    if np.isin(values, (0.0, 1.0)).all():
        ends = stats.binomtest(round(float(values.sum())), n).proportion_ci(level, method="wilson")
        return Estimate(mean, float(ends.low), float(ends.high), "Wilson")
    if np.ptp(values) == 0:
        tail, k = (1 - level) / 2, n * mean
        low, high = stats.beta.ppf(tail, k, n - k + 1), stats.beta.ppf(1 - tail, k + 1, n - k)
        return Estimate(mean, float(low), float(high), "Clopper-Pearson")
    ends = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=9999, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(mean, float(ends.low), float(ends.high), "BCa bootstrap over images")


def paired_gain(before: Floats, after: Floats, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean difference before - after of two numbers per image (BCa bootstrap over images).

    Args:
        before: one per image, (n,).
        after: one per image, (n,).
        seed: of the resampling.

    Returns:
        Lower and upper end; both are the difference itself where it is the same for all images.
    """
    difference = before - after
    if np.ptp(difference) == 0:
        return float(difference[0]), float(difference[0])
    ends = stats.bootstrap(
        (difference,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(ends.low), float(ends.high)


def errors_of(predictions: Ints, labels: Ints) -> Ints:
    """Number of wrong draws of each image: predictions (n, K), labels (n,) -> (n,)."""
    return (predictions != labels[:, None]).sum(1)


def single_draw(predictions: Ints, labels: Ints) -> Floats:
    """Accuracy of one draw, image by image: 1 - errors / K."""
    return 1 - errors_of(predictions, labels) / predictions.shape[1]


def any_of(predictions: Ints, labels: Ints, n_draws: int) -> Floats:
    """Probability that all of N submissions of an image are classified correctly, image by image.

    C(K - errors, N) / C(K, N), unbiased for (1 - p)^N.

    Args:
        predictions: (n, K).
        labels: (n,).
        n_draws: N, at most K.

    Returns:
        (n,).

    Raises:
        ValueError: N larger than K.
    """
    k = predictions.shape[1]
    if not 1 <= n_draws <= k:
        raise ValueError(f"any_of: expected n_draws from 1 to the {k} recorded draws, got {n_draws}.")
    ways = cast("Floats", special.comb(k - errors_of(predictions, labels), n_draws))
    return ways / math.comb(k, n_draws)


def majority(predictions: Ints, labels: Ints, n_draws: int) -> Floats:
    """Share of votes of N draws that give the true label, image by image.

    The K recorded draws are split, in order, into floor(K / N) votes; ties go to the lowest class.

    Args:
        predictions: (n, K).
        labels: (n,).
        n_draws: N, draws per vote, at most K.

    Returns:
        (n,).

    Raises:
        ValueError: N larger than K.
    """
    n, k = predictions.shape
    if not 1 <= n_draws <= k:
        raise ValueError(f"majority: expected n_draws from 1 to the {k} recorded draws, got {n_draws}.")
    votes = predictions[:, : k // n_draws * n_draws].reshape(n, -1, n_draws)
    classes = np.arange(int(max(predictions.max(), labels.max())) + 1)
    winners = (votes[..., None] == classes).sum(2).argmax(2)
    return (winners == labels[:, None]).mean(1)
