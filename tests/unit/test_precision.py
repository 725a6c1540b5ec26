import math

import numpy as np
import pytest

from depura._check import InputError
from depura.statistics.precision import Spread, spread


def test_the_two_parts_of_the_variance_are_those_of_the_population() -> None:
    """Error rates 0.1 (70 %) and 0.8 (30 %): between 0.7 * 0.3 * 0.7^2, within 0.7 * 0.09 + 0.3 * 0.16."""
    rng, n, k = np.random.default_rng(0), 20_000, 16
    p = np.where(rng.random(n) < 0.7, 0.1, 0.8)
    found = spread((rng.random((n, k)) >= p[:, None]).astype(np.float64))
    assert (found.images, found.draws) == (n, k)
    assert found.between == pytest.approx(0.1029, rel=0.03)
    assert found.within == pytest.approx(0.111, rel=0.03)
    assert found.owed_to_draws == pytest.approx(0.111 / 16 / (0.1029 + 0.111 / 16), rel=0.05)


def test_images_that_are_all_alike_have_no_variance_between_them() -> None:
    rng = np.random.default_rng(1)
    found = [spread((rng.random((64, 8)) < 0.3).astype(np.float64)) for _ in range(200)]
    assert all(s.between >= 0 for s in found)
    assert np.mean([s.between + s.within / 8 for s in found]) == pytest.approx(0.21 / 8, rel=0.1)
    assert np.median([s.owed_to_draws for s in found]) > 0.8


def test_the_width_that_was_promised_is_the_width_that_comes() -> None:
    """From 64 images and 4 draws the standard error of other runs, of 200 and 32, is foretold."""
    rng = np.random.default_rng(2)

    def run(n: int, k: int) -> np.ndarray:
        p = rng.beta(0.5, 1.5, (n, 1))
        return (rng.random((n, k)) >= p).astype(np.float64)

    promised = np.mean([spread(run(64, 4)).half_width(images=200, draws=32) for _ in range(200)])
    means = [run(200, 32).mean() for _ in range(2000)]
    assert promised == pytest.approx(1.959964 * np.std(means), rel=0.05)


@pytest.mark.parametrize(("gap", "images"), [(0.123, 256), (0.087, 512), (0.062, 1000)])
def test_images_for_an_unpaired_gap_at_45_percent(gap: float, images: int) -> None:
    """The gap that 80 % power needs between two accuracies of 45 %: 12.3 points at 256 images and so on."""
    found = Spread(2 * 0.45 * 0.55, 0.0, 100, 1).images_to_detect(gap)
    assert found == pytest.approx(images, rel=0.02)


def test_that_many_images_do_detect_it() -> None:
    """A paired z test of a mean difference of 0.1 with standard deviation 0.4 finds it in 80 % of runs."""
    n = Spread(0.16, 0.0, 50, 1).images_to_detect(0.1)
    rng = np.random.default_rng(3)
    z = rng.normal(0.1, 0.4, (4000, n)).mean(1) / (0.4 / math.sqrt(n))
    assert np.mean(z > 1.959964) == pytest.approx(0.8, abs=0.025)


def test_advice_is_what_narrows_the_interval_most() -> None:
    images, draws = Spread(0.1, 0.1, 64, 64), Spread(0.001, 0.2, 64, 4)
    assert images.advice.endswith("more images would narrow it most.")
    assert draws.advice.endswith("more draws would narrow it most.")
    half = 196 * math.sqrt(0.1 * (1 + 1 / 64) / 64)
    assert f"±{half:.1f} points; twice the images would make it ±{half / math.sqrt(2):.1f}" in images.advice
    assert "cannot be told apart" in spread(np.eye(4)[:, :1]).advice


def test_a_paired_difference_of_common_draws_has_less_variance_within() -> None:
    """Draws that both defences share cancel: equal outcomes have none at all."""
    rng = np.random.default_rng(4)
    right = (rng.random((64, 16)) < 0.5).astype(np.float64)
    assert spread(right - right)[:2] == (0.0, 0.0)
    assert spread(right - right).owed_to_draws == 0.0
    other = (rng.random((64, 16)) < 0.5).astype(np.float64)
    assert spread(right - other).within == pytest.approx(0.5, rel=0.15)


def test_what_cannot_be_asked() -> None:
    found = Spread(0.1, 0.1, 64, 64)
    with pytest.raises(InputError, match="at least two images"):
        spread(np.ones((1, 4)))
    with pytest.raises(InputError, match="difference in"):
        found.images_to_detect(0.0)
    with pytest.raises(InputError, match="power in"):
        found.images_to_detect(0.1, power=1.0)
    with pytest.raises(InputError, match="images at least 1"):
        found.half_width(images=0)
    with pytest.raises(InputError, match="draws at least 1"):
        found.half_width(draws=0)
