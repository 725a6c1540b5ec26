"""From counts of errors to accuracies with intervals. Pure functions of arrays; knows nothing else of depura.

An image's error rate p under fresh draws is the primitive; every metric is a function of the p of all images.
Intervals are over images (the claim is about images like these), so draws of one image never count as independent
data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


class Difference(NamedTuple):
    """Two numbers per image, compared image by image.

    Attributes:
        value: mean of first - second.
        low: lower end of its 95 % interval.
        high: upper end.
        p: two-sided p-value of the test that neither is better.
        test: which test that was.
    """

    value: float
    low: float
    high: float
    p: float
    test: str

    @property
    def detectable(self) -> bool:
        """Whether there is a difference to speak of: p at most 0.05 and an interval that does not contain 0."""
        return self.p <= 0.05 and (self.low > 0 or self.high < 0)


def paired_difference(first: Floats, second: Floats, *, seed: int = 0) -> Difference:
    """Compare two accuracies of the same images.

    The interval is that of `paired_gain`. The test is McNemar's, exact, where all numbers are 0 or 1; else the
    permutation test that swaps the two numbers of an image (exact where all ways number at most 9,999, else as many
    random ones, seeded).

    Args:
        first: one per image in [0, 1], (n,).
        second: of the same images, (n,).
        seed: of the resampling.

    Returns:
        The difference.
    """
    low, high = paired_gain(first, second, seed=seed)
    difference = first - second
    changed = difference[difference != 0]  # an image without a difference is the same either way round
    if np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        p, test = mcnemar(int((changed > 0).sum()), int((changed < 0).sum())), "exact McNemar"
    else:
        p, test = _swapped(changed, seed=seed), "paired permutation"
    return Difference(float(np.mean(difference)), low, high, p, test)


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p-value of McNemar's exact test, from the pairs that differ: those won and those lost."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _swapped(differences: Floats, *, seed: int) -> float:
    """Two-sided p-value of the mean of paired differences, none of them 0, when each may have either sign."""
    if len(differences) < 2:
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        batch=max(1, 2**22 // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's correction: p-values that may be compared with 0.05 though several tests were made (Holm 1979).

    Args:
        p_values: of all tests that are printed, in any order.

    Returns:
        Corrected ones in the same order, none smaller than before and none larger than 1.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = largest
    return tuple(corrected)


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
