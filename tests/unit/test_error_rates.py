import itertools
import math

import numpy as np
import pytest
from scipy import stats

from depura.evaluation.error_rates import error_shares, submissions
from depura.evaluation.statistics import any_of, mean_with_interval


def drawn(errors: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions with so many wrong draws of each image, the first ones, and labels of 0."""
    return (np.arange(k) < np.array(errors)[:, None]).astype(np.int64), np.zeros(len(errors), dtype=np.int64)


def test_images_are_counted_by_their_wrong_draws() -> None:
    """Of 40 draws: 1 is 2.5 %, 2 are 5 % (no longer right), 20 are 50 % (not yet wrong), 21 more."""
    found = error_shares(*drawn([0, 1, 1, 2, 3, 20, 21, 40] * 5, 40))
    assert [s.value for s in found] == [3 / 8, 3 / 8, 2 / 8]
    for share, count in zip(found, (15, 15, 10), strict=True):
        ends = stats.binomtest(count, 40).proportion_ci(method="wilson")
        assert (share.low, share.high) == pytest.approx((ends.low, ends.high))


def test_submissions_equal_a_count_of_all_orders_of_the_draws() -> None:
    """The first error of 5 draws, in any order: the median over orders and images of its number."""
    predictions, labels = drawn([1, 0, 2, 1, 5], 5)
    numbers = [
        next((k for k, draw in enumerate(order, 1) if draw), math.inf)
        for row in predictions.tolist()
        for order in itertools.permutations(row)
    ]
    ordered = sorted(numbers)
    assert submissions(predictions, labels).value == ordered[(len(ordered) - 1) // 2]


def test_submissions_of_images_that_are_all_alike() -> None:
    """Error rate 0.06 gives the geometric median 12, and intervals that shrink around it."""
    rng = np.random.default_rng(0)
    few, many = (
        submissions((rng.random((n, 128)) < 0.06).astype(np.int64), np.zeros(n, dtype=np.int64)) for n in (64, 20_000)
    )
    assert many.value == pytest.approx(stats.geom.median(0.06), abs=1)
    assert few.low <= many.low <= many.value <= many.high <= few.high
    assert many.high - many.low <= 2


def test_ends_are_where_the_intervals_of_any_of_n_pass_one_half() -> None:
    predictions, labels = drawn([0] * 20 + [1] * 20 + [4] * 20 + [16] * 4, 16)
    at = [mean_with_interval(any_of(predictions, labels, n)) for n in range(1, 17)]
    found = submissions(predictions, labels)
    for end, field in ((found.value, "value"), (found.low, "low"), (found.high, "high")):
        passed = [n for n, estimate in enumerate(at, 1) if getattr(estimate, field) <= 0.5]
        assert end == (passed[0] if passed else math.inf)
    assert 1 < found.low < found.value < found.high


def test_a_number_that_was_not_reached_is_told() -> None:
    robust = submissions(*drawn([0] * 200 + [1], 16))
    assert robust == (math.inf, math.inf, math.inf, 16)
    assert str(robust) == "never within 16"
    assert str(submissions(*drawn([16] * 64, 16))) == "1"
    half = submissions(*drawn([16, 0] * 10, 16))
    assert str(half) == "1 (1–never within 16)"
