"""The printed intervals hold the truth as often as they say, over 2,000 simulated runs of known error probabilities.

Images are drawn anew in each run, and the truth is that of the population. docs/statistics.md shows the table.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats

from depura.statistics.intervals import any_of, errors_of, mean_with_interval
from experiments.coverage import N_ANY, POPULATIONS, Cell, error_rates, simulate, truths

RUNS, DRAWS = 2000, 64
MAIN = ("right or wrong", "Beta(0.5, 1.5)", "robust, borderline, broken", "nearly all robust")
METRICS = tuple(truths(POPULATIONS[MAIN[0]], DRAWS))
SIZES = [*((name, 64) for name in MAIN), *((name, 256) for name in MAIN[:2])]
"""Populations and numbers of images; those of 256 take four times as long."""


@cache
def cells(population: str, n: int) -> dict[str, Cell]:
    return {cell.metric: cell for cell in simulate(population, n, runs=RUNS, draws=DRAWS)}


def at_an_end(cell: Cell) -> bool:
    """The truth is within 5 points of 0 or 1, or a whole number: no interval can be exact there, only cautious."""
    return not 0.05 < abs(cell.truth) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("population", "n"), SIZES)
def test_the_interval_covers_the_truth_as_often_as_it_says(population: str, n: int, metric: str) -> None:
    cell = cells(population, n)[metric]
    assert cell.covered >= 0.93
    if not at_an_end(cell):
        assert cell.covered <= 0.97
        assert 0.005 < cell.below < 0.05, "neither side has all the misses"


@pytest.mark.slow
def test_most_of_them_are_not_at_an_end() -> None:
    found = [cell for population in MAIN for cell in cells(population, 64).values()]
    assert sum(not at_an_end(cell) for cell in found) >= len(found) / 2
    assert {cell.metric for cell in found if not at_an_end(cell)} >= set(METRICS[:3])


@pytest.mark.slow
@pytest.mark.parametrize(("population", "n"), SIZES)
def test_estimates_of_means_are_unbiased(population: str, n: int) -> None:
    """Within 3.5 standard errors each, as some seventy are compared."""
    for cell in cells(population, n).values():
        if cell.metric != "submissions":
            assert abs(cell.mean - cell.truth) <= 3.5 * cell.error + 1e-12, cell.metric


@pytest.mark.parametrize("population", ["Beta(0.5, 1.5)", "robust, borderline, broken", "nearly all robust"])
def test_any_of_n_is_unbiased_and_the_plug_in_is_not(population: str) -> None:
    """E[(1 - p)^N] by quadrature; (1 - errors / K)^N is too high, by theorem and by more than 3 standard errors."""
    rng = np.random.default_rng(7)
    p = error_rates(POPULATIONS[population], 200_000, rng)
    predictions = (rng.random((len(p), 16)) < p[:, None]).astype(np.int64)
    labels = np.zeros(len(p), dtype=np.int64)
    truth = truths(POPULATIONS[population], 16)[f"any of {N_ANY}"]
    unbiased = any_of(predictions, labels, N_ANY)
    plugged = (1 - errors_of(predictions, labels) / 16) ** N_ANY
    assert abs(unbiased.mean() - truth) <= 3 * unbiased.std() / math.sqrt(len(p))
    assert plugged.mean() - truth > 3 * plugged.std() / math.sqrt(len(p))


@pytest.mark.parametrize(("n", "least"), [(16, 0.915), (64, 0.927), (256, 0.927), (1000, 0.927)])
def test_wilsons_interval_covers_every_share_by_an_exact_sum(n: int, least: float) -> None:
    """No simulation: the probabilities of all counts whose interval holds the share."""
    share = np.concatenate(
        [np.linspace(1e-4, 0.02, 400), np.linspace(0.02, 0.98, 2000), np.linspace(0.98, 0.9999, 400)]
    )
    ends = np.array([mean_with_interval((np.arange(n) < k).astype(np.float64))[1:3] for k in range(n + 1)])
    holds = (ends[:, :1] <= share) & (share <= ends[:, 1:])
    covered = (stats.binom.pmf(np.arange(n + 1)[:, None], n, share) * holds).sum(0)
    assert covered.min() >= least
    inner = (share >= 0.05) & (share <= 0.95)
    assert covered[inner].mean() == pytest.approx(0.952, abs=0.004)


@pytest.mark.slow
@pytest.mark.parametrize("population", sorted(set(POPULATIONS) - set(MAIN)))
def test_in_awkward_populations_the_intervals_are_cautious(population: str) -> None:
    """Rare broken images, rare right ones, images that are all alike: never far below 95 %, at 64 images."""
    assert min(cell.covered for cell in cells(population, 64).values()) >= 0.925
