import itertools
import math

import numpy as np
import pytest
from scipy import stats

from depura.records.kinds import NOT_FINITE
from depura.statistics.error_rates import error_shares, submissions
from depura.statistics.intervals import any_of, errors_of, majority, mean_with_interval, single_draw


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


def test_a_prediction_that_is_not_finite_is_never_right() -> None:
    """Whatever the class, also 0; the other predictions of an image are right."""
    n, k = 4, 6
    labels = np.arange(n)
    predictions = np.repeat(labels[:, None], k, axis=1)
    for image in range(n):
        predictions[image, : image + 1] = NOT_FINITE
    assert errors_of(predictions, labels).tolist() == [1, 2, 3, 4]
    assert single_draw(predictions, labels) == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6])
    # Of 15 pairs of 6 draws those that are right: 5 of 5, 4 of 4 and so on choose 2.
    assert any_of(predictions, labels, 2) == pytest.approx([10 / 15, 6 / 15, 3 / 15, 1 / 15])
    assert [share.value for share in error_shares(predictions, labels)] == [0, 3 / 4, 1 / 4]


def test_a_vote_for_what_is_not_finite_is_wrong() -> None:
    """Votes of three: none finite, also for class 0; one of three finite; two of three; three different answers."""
    lost = [NOT_FINITE] * 3
    assert majority(np.array([lost, lost]), np.array([0, 1]), 3).tolist() == [0, 0]
    one, two = [NOT_FINITE, NOT_FINITE, 2], [NOT_FINITE, 2, 2]
    assert majority(np.array([one, two]), np.array([2, 2]), 3).tolist() == [0, 1]
    assert majority(np.array([[*one, *two]]), np.array([2]), 3).tolist() == [1 / 2]
    tied = [NOT_FINITE, 0, 1]  # ties go to the lowest label, and this one is the lowest of all
    assert majority(np.array([tied]), np.array([0]), 3).tolist() == [0]
    assert majority(np.array([[NOT_FINITE, 3, 3]]), np.array([0]), 3).tolist() == [0]
