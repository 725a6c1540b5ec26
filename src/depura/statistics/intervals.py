"""From counts of errors to accuracies with intervals. Pure functions of arrays; knows nothing else of depura.

An image's error rate p under fresh draws is the primitive; every metric is a function of the p of all images.
Intervals are over images (the claim is about images like these), so draws of one image never count as independent
data. They are in closed form, so they need no seed; docs/statistics.md has the coverage of each, measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Z95 = float(special.ndtri(0.975))
"""Half-width of a 95 % interval in standard errors, 1.96."""


class Proportion(NamedTuple):
    """A share, or the mean of numbers in [0, 1], over images: an accuracy.

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


def mean_with_interval(values: Floats, *, level: float = 0.95) -> Proportion:
    """Mean over images of a number in [0, 1], with an interval for the mean of all images like these.

    Wilson's interval if every value is 0 or 1 (with Poisson's bound where 3 or fewer are of one kind). Else Agresti
    and Coull's (1998) rule, carried over from shares to means: z^2 images are added, half of them 0 and half 1, and
    mean +- z standard errors of all of them is the interval. It makes room for the rare image of another kind that a
    sample of n images can miss (with probability 0.95 those are fewer than 3 in n), which a t interval or a bootstrap
    of the same images cannot know of. The noise of an image's draws is in the spread of the values, so it needs no
    resampling of its own.

    At 95 % it covers the truth in 93 to 97 % of runs for most populations, and in no fewer; Wilson's can fall to 92.7 %
    at 64 images and 91.5 % at 16, since counts are whole numbers. It is too cautious (up to 100 %) where nearly all
    images have nearly the same value or one close to 0 or 1, which cannot be told from having missed some.

    Args:
        values: one per image, (n,).
        level: of the interval.

    Returns:
        The estimate; its value is the mean itself and lies in the interval.
    """
    n, mean, z = len(values), float(np.mean(values)), float(special.ndtri((1 + level) / 2))
    if ((values == 0) | (values == 1)).all():
        low, high = _wilson(round(float(values.sum())), n, z=z, tail=1 - level)
        return Proportion(mean, low, high, "Wilson")
    low, high = _with_pseudo_images(values, (0.0, 1.0), n_each=z**2 / 2, z=z)
    return Proportion(mean, max(low, 0.0), min(high, 1.0), "Agresti-Coull for means")


def _wilson(right: int, n: int, *, z: float, tail: float) -> tuple[float, float]:
    """Wilson's interval of a share, with Poisson's bound at the ends after Brown, Cai and DasGupta (2001, eq. 10).

    Where 1 to 3 of n are right (2, up to 50 images) the lower end is the mean of the Poisson distribution that exceeds
    that number with probability `tail`, over n; the upper end where as few are wrong likewise.
    """
    mean, few = right / n, 2 if n <= 50 else 3
    middle = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    ends = [middle - half, 1 - (middle + half)]
    for k, count in enumerate((right, n - right)):
        if count <= few:
            ends[k] = float(special.gammaincinv(count, tail)) / n if count else 0.0
    return ends[0], 1 - ends[1]


def _with_pseudo_images(
    values: Floats, extremes: tuple[float, float], *, n_each: float, z: float
) -> tuple[float, float]:
    """Mean +- z standard errors after n_each images of each of two extreme values were added."""
    n = len(values) + 2 * n_each
    mean = (float(values.sum()) + n_each * sum(extremes)) / n
    squares = (float(np.square(values).sum()) + n_each * sum(e**2 for e in extremes)) / n
    half = z * math.sqrt((squares - mean**2) / n)
    return mean - half, mean + half


def paired_gain(before: Floats, after: Floats) -> tuple[float, float]:
    """95 % interval of the mean difference before - after of two numbers per image.

    Bonett and Price's (2012) rule for paired shares, carried over to means: two images with differences of +m and -m
    are added, and mean +- 1.96 standard errors of all is the interval. m is 1 where every difference is -1, 0 or 1, as
    they have it, else the largest difference there is, in size.

    It covers the truth in at least 93 % of runs, from 64 images up; fewer images can miss a kind of image that makes
    the difference. Where nearly no image differs it is too cautious.

    Args:
        before: one per image in [0, 1], (n,).
        after: of the same images, (n,).

    Returns:
        Lower and upper end, in [-1, 1], with the difference itself between them.
    """
    differences = before - after
    m = 1.0 if np.isin(differences, (-1.0, 0.0, 1.0)).all() else float(np.abs(differences).max())
    low, high = _with_pseudo_images(differences, (-m, m), n_each=1.0, z=Z95)
    return max(low, -1.0), min(high, 1.0)


class PairedDifference(NamedTuple):
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


def paired_difference(first: Floats, second: Floats, *, seed: int = 0) -> PairedDifference:
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
    low, high = paired_gain(first, second)
    difference = first - second
    changed = difference[difference != 0]  # an image without a difference is the same either way round
    if np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        p, test = mcnemar(int((changed > 0).sum()), int((changed < 0).sum())), "exact McNemar"
    else:
        p, test = _swapped(changed, seed=seed), "paired permutation"
    return PairedDifference(float(np.mean(difference)), low, high, p, test)


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p-value of McNemar's exact test, from the pairs that differ: those won and those lost."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _swapped(differences: Floats, *, seed: int) -> float:
    """Two-sided p-value of the mean of paired differences, none of them 0, when each may have either sign."""
    if len(differences) < 2:
        return 1.0
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        batch=max(1, 2**22 // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


class Recount(NamedTuple):
    """Errors of some images, counted twice, on as many draws that differ.

    Attributes:
        row: what was attacked and judged.
        draws: of each image, each time.
        recorded: (n,), wrong draws the first time.
        again: (n,), the second time.
    """

    row: str
    draws: int
    recorded: Ints
    again: Ints

    @property
    def p(self) -> float:
        """Two-sided p-value that both counts are of the same error rates, whatever these are.

        Given how many of an image's 2K draws were wrong, the first count is hypergeometric; the sum over images is
        compared with the exact distribution of such a sum, which is symmetric.
        """
        total, k = self.recorded + self.again, self.draws
        law = np.ones(1)
        for wrong in map(int, total):
            ways: Floats = stats.hypergeom.pmf(np.arange(wrong + 1), 2 * k, wrong, k)
            law = np.convolve(law, ways)
        middle = total.sum() / 2
        far = np.abs(np.arange(len(law)) - middle) >= abs(self.recorded.sum() - middle)
        return float(min(1.0, law[far].sum()))


class Remade(NamedTuple):
    """A unit of an attack made again, and what is on record.

    Attributes:
        unit: its name.
        differing: names of the arrays that are not the same to the last bit.
        recount: wrong report draws of each image, as recorded and as made again, on the same draws.
    """

    unit: str
    differing: tuple[str, ...]
    recount: Recount


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
    errors, image = np.unique(errors_of(predictions, labels), return_inverse=True)
    all_ways = math.comb(k, n_draws)  # whole numbers, as large as they get: their ratio is exact
    return np.array([math.comb(k - int(e), n_draws) / all_ways for e in errors], dtype=np.float64)[image]


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
    classes = np.arange(-1, int(max(predictions.max(), labels.max())) + 1)  # -1: not finite, and never right
    at_once = max(1, 2**24 // (votes[0].size * len(classes)))  # images: the comparison takes 16 MiB
    parts = [votes[i : i + at_once] for i in range(0, n, at_once)]
    winners = [classes[(part[..., None] == classes).sum(2).argmax(2)] for part in parts]
    return (np.concatenate(winners) == labels[:, None]).mean(1)
