"""What a longer run would show: whether more images or more draws narrow an interval, and how many it takes.

The variance of a mean over n images of K draws each is (between + within / K) / n: *between* is the variance over
images of what infinitely many draws would give, *within* the mean variance of a single draw of an image. More draws
touch the second part only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from depura._check import fail, integer, number
from depura.statistics.intervals import Z95


class Spread(NamedTuple):
    """Where the width of an interval comes from, for planning: the printed intervals make room for rare images too.

    Attributes:
        between: variance over images, as if each had infinitely many draws; at least 0.
        within: mean variance of one draw of an image; 0 where there is one draw, which cannot be told apart.
        images: n, that they were estimated from.
        draws: K, of each image.
    """

    between: float
    within: float
    images: int
    draws: int

    def half_width(self, *, images: int | None = None, draws: int | None = None) -> float:
        """Half of the 95 % interval to expect, 1.96 sqrt((between + within / K) / n).

        Args:
            images: n; as many as there were, if left out.
            draws: K; likewise.

        Returns:
            In the units of the mean: 0.05 is 5 points.

        Raises:
            InputError: less than one image or draw.
        """
        n = integer("Spread.half_width", "images", self.images if images is None else images, low=1)
        k = integer("Spread.half_width", "draws", self.draws if draws is None else draws, low=1)
        return Z95 * math.sqrt((self.between + self.within / k) / n)

    def images_to_detect(self, difference: float, *, power: float = 0.8) -> int:
        """Images at which a test at 5 % sees a true mean of this size in so many of all runs, with K draws as now.

        (z + z_power)^2 (between + within / K) / difference^2, by the normal approximation. Meant for the spread of a
        paired difference.

        Args:
            difference: the true mean, > 0: 0.05 is 5 points.
            power: share of runs, in (0, 1).

        Returns:
            The number, at least 1.

        Raises:
            InputError: a difference that is not positive, or a power outside (0, 1).
        """
        number("Spread.images_to_detect", "difference", difference, low=0.0, low_open=True)
        if not 0 < power < 1:
            fail("Spread.images_to_detect", "power in (0, 1)", f"{power}", "0.8 is customary.")
        z = Z95 + float(special.ndtri(power))
        return max(1, math.ceil(z**2 * (self.between + self.within / self.draws) / difference**2))

    @property
    def owed_to_draws(self) -> float:
        """Share of the variance that infinitely many draws would take away, in [0, 1]; 0 where there is no variance."""
        whole = self.between + self.within / self.draws
        return self.within / self.draws / whole if whole else 0.0

    @property
    def advice(self) -> str:
        """What would narrow the interval, in a sentence.

        Twice the images take 29 % off the width; draws are worth as much only where they make half of the variance.
        """
        if self.draws == 1:
            return "One draw of each image: between images and between draws cannot be told apart."
        now, more = 100 * self.half_width(), 100 * self.half_width(images=2 * self.images)
        limit = 100 * Z95 * math.sqrt(self.between / self.images)
        known = f"±{now:.1f} points; twice the images would make it ±{more:.1f}, draws without end ±{limit:.1f}"
        return f"{known}: {'more draws' if limit < more else 'more images'} would narrow it most."


def spread(outcomes: NDArray[np.float64]) -> Spread:
    """Split the variance of a mean over images into what differs between images and what draws make.

    Args:
        outcomes: one number per image and draw, (n, K), n >= 2: 1 where a draw is right and 0 where it is wrong, or
            differences of such numbers of two defences, draw by draw, for a paired comparison.

    Returns:
        The parts, unbiased but that a negative estimate of the variance between images counts as 0.

    Raises:
        InputError: not a matrix, or of fewer than two images.
    """
    if outcomes.ndim != 2 or len(outcomes) < 2:
        fail("spread", "outcomes of shape (images, draws), at least two images", f"shape {outcomes.shape}")
    n, k = outcomes.shape
    within = float(outcomes.var(1, ddof=1).mean()) if k > 1 else 0.0
    return Spread(max(0.0, float(outcomes.mean(1).var(ddof=1)) - within / k), within, n, k)
