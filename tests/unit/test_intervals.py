import itertools
import math

import numpy as np
import pytest
from scipy import stats

from depura.statistics.intervals import (
    Recount,
    any_of,
    errors_of,
    holm,
    majority,
    mcnemar,
    mean_with_interval,
    paired_difference,
    paired_gain,
    single_draw,
)

LABELS = np.array([0, 1, 2, 0])
PREDICTIONS = np.array([[0, 0, 1, 0, 0, 0], [1, 2, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


def test_single_draw_counts_errors() -> None:
    assert errors_of(PREDICTIONS, LABELS).tolist() == [1, 4, 6, 0]
    assert single_draw(PREDICTIONS, LABELS).tolist() == pytest.approx([5 / 6, 2 / 6, 0, 1])


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_any_of_equals_the_share_of_clean_subsets(n: int) -> None:
    right = LABELS[:, None] == PREDICTIONS
    expected = [np.mean([row[list(s)].all() for s in itertools.combinations(range(6), n)]) for row in right]
    assert any_of(PREDICTIONS, LABELS, n) == pytest.approx(expected)


def test_any_of_is_unbiased() -> None:
    p, k, n, repeats = 0.2, 16, 5, 40_000
    rng = np.random.default_rng(1)
    values = any_of((rng.random((repeats, k)) < p).astype(np.int64), np.zeros(repeats, dtype=np.int64), n)
    spread = values.std() / math.sqrt(repeats)
    assert abs(values.mean() - (1 - p) ** n) < 4 * spread


def test_majority_equals_counting_by_hand() -> None:
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 4, (50, 13)), rng.integers(0, 4, 50)
    expected = []
    for row, label in zip(predictions, labels, strict=True):
        votes = [row[k : k + 3].tolist() for k in range(0, 12, 3)]
        winners = [max(sorted(set(v)), key=v.count) for v in votes]
        expected.append(np.mean([w == label for w in winners]))
    assert majority(predictions, labels, 3) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [any_of, majority])
@pytest.mark.parametrize("n", [0, 7])
def test_more_draws_than_recorded_are_refused(metric, n: int) -> None:
    with pytest.raises(ValueError, match="6 recorded draws"):
        metric(PREDICTIONS, LABELS, n)


@pytest.mark.parametrize(("k", "n"), [(0, 64), (4, 64), (30, 64), (64, 64), (241, 512), (3, 16)])
def test_zero_one_outcomes_get_wilsons_interval(k: int, n: int) -> None:
    found = mean_with_interval(np.array([1.0] * k + [0.0] * (n - k)))
    ends = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert found.method == "Wilson"
    assert found[:3] == pytest.approx((k / n, ends.low, ends.high))


@pytest.mark.parametrize(("k", "n"), [(1, 64), (2, 64), (3, 64), (1, 16), (2, 16), (1, 256)])
def test_a_few_of_one_kind_get_poissons_bound(k: int, n: int) -> None:
    """At the lower end as many or more come by chance in 5 % of runs; the other end is Wilson's."""
    found = mean_with_interval(np.array([1.0] * k + [0.0] * (n - k)))
    assert stats.poisson.sf(k - 1, n * found.low) == pytest.approx(0.05)
    assert found.high == pytest.approx(stats.binomtest(k, n).proportion_ci(method="wilson").high)
    mirrored = mean_with_interval(np.array([0.0] * k + [1.0] * (n - k)))
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high))


def with_added(values: list[float], extremes: list[float], weight: float) -> tuple[float, float]:
    """The normal interval of the values and of two more with a weight each, by numpy's weighted moments."""
    added, weights = np.array([*values, *extremes]), np.array([1.0] * len(values) + [weight] * 2)
    mean = np.average(added, weights=weights)
    error = math.sqrt(np.average((added - mean) ** 2, weights=weights) / weights.sum())
    return mean - 1.959964 * error, mean + 1.959964 * error


def test_the_interval_of_a_mean_is_the_normal_one_with_two_images_of_each_extreme_added() -> None:
    values = np.random.default_rng(3).beta(2, 2, 40)
    found = mean_with_interval(values)
    assert found.method == "Agresti-Coull for means"
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(with_added(values.tolist(), [0.0, 1.0], 1.959964**2 / 2), abs=1e-6)


def test_with_many_images_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(3).beta(2, 2, 40_000)
    found = mean_with_interval(values)
    half = stats.norm.ppf(0.975) * values.std(ddof=1) / 200
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01 * half)


@pytest.mark.parametrize("value", [0.5, 0.97, 0.01, 1e-6])
def test_equal_values_do_not_get_an_interval_of_width_zero(value: float) -> None:
    """There is room for 3 unseen images in n = 64 on the far side, and the mean itself is inside."""
    found = mean_with_interval(np.full(64, value))
    assert 0 <= found.low < value < found.high <= 1
    missed = 3 / 64
    far = value * (1 - missed) if value > 0.5 else value * (1 - missed) + missed
    assert found.low <= far + 1e-9
    assert found.high >= far - 1e-9


def test_a_level_of_its_own() -> None:
    values = np.random.default_rng(3).beta(2, 2, 400)
    narrow, wide = mean_with_interval(values, level=0.5), mean_with_interval(values, level=0.99)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.575829 / 0.674490, rel=0.03)


def test_the_paired_gain_is_the_normal_interval_with_two_images_of_the_largest_difference_added() -> None:
    rng = np.random.default_rng(2)
    before = rng.beta(8, 2, 60)
    after = np.clip(before - 0.1 + 0.05 * rng.standard_normal(60), 0, 1)
    difference = before - after
    m = max(abs(difference))
    assert paired_gain(before, after) == pytest.approx(with_added(difference.tolist(), [-m, m], 1.0), abs=1e-6)
    assert paired_gain(after, before) == pytest.approx(tuple(-e for e in reversed(paired_gain(before, after))))


def test_paired_outcomes_of_zero_and_one_get_bonett_and_prices_interval() -> None:
    """(b + 1 - c - 1) / (n + 2) and the square root of (b + c + 2 - (b - c)^2 / (n + 2)) / (n + 2)^2."""
    n, b, c = 100, 18, 7
    first, second = np.array([1.0] * b + [0.0] * c + [1.0] * 75), np.array([0.0] * b + [1.0] * c + [1.0] * 75)
    middle = (b - c) / (n + 2)
    half = 1.959964 * math.sqrt((b + c + 2 - (b - c) ** 2 / (n + 2)) / (n + 2) ** 2)
    assert paired_gain(first, second) == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_equal_differences_do_not_get_an_interval_of_width_zero() -> None:
    low, high = paired_gain(np.ones(5), np.full(5, 0.25))
    assert 0 < low < 0.75 < high <= 1
    low, high = paired_gain(np.ones(64), np.ones(64))
    assert (low, high) == pytest.approx((-1.959964 * math.sqrt(2) / 66, 1.959964 * math.sqrt(2) / 66), abs=1e-6)


@pytest.mark.parametrize(("wins", "losses", "printed"), [(12, 4, 0.077), (4, 12, 0.077), (18, 7, 0.043), (5, 5, 1.0)])
def test_mcnemars_exact_test_counts_coins(wins: int, losses: int, printed: float) -> None:
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    assert mcnemar(wins, losses) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(wins, losses) == pytest.approx(printed, abs=5e-4)
    assert mcnemar(0, 0) == 1


def test_outcomes_of_zero_and_one_are_compared_by_mcnemars_test() -> None:
    first = np.array([1.0] * 18 + [0.0] * 7 + [1.0] * 30 + [0.0] * 45)
    second = np.array([0.0] * 18 + [1.0] * 7 + [1.0] * 30 + [0.0] * 45)
    found = paired_difference(first, second)
    assert found.test == "exact McNemar"
    assert (found.value, found.p) == pytest.approx((0.11, 0.043285), abs=1e-6)
    assert (found.low, found.high) == paired_gain(first, second)
    assert found.detectable
    back = paired_difference(second, first)
    assert (back.value, back.p) == pytest.approx((-0.11, found.p))
    assert back.detectable


def by_enumeration(differences: np.ndarray) -> float:
    """Share of all sign patterns whose sum is at least as far from 0."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    return float(np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12))


def test_shares_are_compared_by_all_swaps_of_pairs() -> None:
    first = np.array([0.9, 0.5, 0.75, 1.0, 0.25, 0.5, 0.3, 0.3])
    second = np.array([0.5, 0.25, 0.8, 0.7, 0.0, 0.4, 0.3, 0.3])
    found = paired_difference(first, second)
    assert found.test == "paired permutation"
    assert found.p == pytest.approx(by_enumeration(first - second))
    assert found.p == pytest.approx(4 / 64)  # of 2^6 patterns: all positive, all but the smallest, and their mirrors
    assert not found.detectable
    assert found == paired_difference(first, second)


def test_many_pairs_are_swapped_at_random() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random(16), rng.random(16) - 0.1
    exact = by_enumeration(first - second)
    spread = math.sqrt(exact * (1 - exact) / 9999)
    assert paired_difference(first, second).p == pytest.approx(exact, abs=5 * spread)


def test_no_difference_is_no_detectable_difference() -> None:
    values = np.array([0.25, 0.5, 1.0])
    same = paired_difference(values, values)
    assert (same.value, same.p) == (0.0, 1.0)
    assert same.low < 0 < same.high
    assert not same.detectable
    one = paired_difference(values, np.array([0.25, 0.5, 0.75]))
    assert one.p == 1.0
    assert not one.detectable


def test_both_the_interval_and_the_test_must_see_a_difference() -> None:
    found = paired_difference(np.full(12, 0.75), np.full(12, 0.5))
    assert found.p == pytest.approx(2 / 2**12)
    assert found.detectable
    assert not found._replace(p=0.051).detectable
    assert not found._replace(low=-0.01).detectable
    assert not found._replace(low=math.nan, high=math.nan).detectable


def test_holms_correction_by_a_worked_example() -> None:
    """0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which must not be smaller than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([0.03]) == (0.03,)
    assert holm([]) == ()


def test_the_p_value_of_a_recount_is_that_of_all_ways_to_share_out_the_wrong_draws() -> None:
    """By enumeration: which K of an image's 2K draws were recorded is equally likely for all choices."""
    recorded, again, k = np.array([2, 3]), np.array([0, 1]), 3
    sums = []
    for ways in itertools.product(itertools.combinations(range(2 * k), k), repeat=2):
        sums.append(sum(sum(at < t for at in way) for way, t in zip(ways, recorded + again, strict=True)))
    far = np.abs(np.array(sums) - (recorded + again).sum() / 2) >= abs(recorded.sum() - (recorded + again).sum() / 2)
    assert Recount("a", k, recorded, again).p == pytest.approx(far.mean())
    assert Recount("a", k, again, recorded).p == pytest.approx(far.mean())


def test_the_p_value_of_a_recount_of_one_image_is_fishers() -> None:
    for a, b in ((0, 16), (3, 9), (5, 5), (0, 0), (16, 16)):
        expected = stats.fisher_exact([[a, 16 - a], [b, 16 - b]]).pvalue
        assert Recount("a", 16, np.array([a]), np.array([b])).p == pytest.approx(expected)


def test_recounts_of_the_same_rates_are_seldom_refused() -> None:
    rng = np.random.default_rng(0)
    rates = np.array([0.02, 0.3, 0.5, 0.97])
    p = np.array([Recount("a", 32, *rng.binomial(32, rates, size=(2, 4))).p for _ in range(2000)])
    assert 0.02 < (p <= 0.05).mean() < 0.055
    other = np.array([Recount("a", 32, rng.binomial(32, rates), rng.binomial(32, 0.5 * rates)).p for _ in range(200)])
    assert (other <= 0.05).mean() > 0.9


def test_any_of_very_many_draws_is_finite() -> None:
    """Binomials of thousands do not fit into a float; their ratio does: (1 - 1/2)(1 - 1/2) nearly, of 4096 draws."""
    drawn = np.zeros((1, 4096), dtype=np.int64)
    drawn[0, :2048] = 1
    assert any_of(drawn, np.zeros(1, dtype=np.int64), 2)[0] == pytest.approx(2048 * 2047 / (4096 * 4095), rel=1e-12)
    assert any_of(drawn, np.zeros(1, dtype=np.int64), 512)[0] > 0
    assert any_of(drawn, np.zeros(1, dtype=np.int64), 2049)[0] == 0
