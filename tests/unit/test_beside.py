"""What stands beside an accuracy, counted by hand: errors during a search, and indicators without gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.records import ByHand
from torch import Tensor

import depura
from depura.analysis.details import details
from depura.analysis.results import Results
from depura.evaluation.diagnostics import Watched, nothing, sees_what_is_judged
from depura.noise import Noise
from depura.records.directory import Unit

BY_HAND = ByHand([0, 1, 2])


def results(*units: Unit) -> Results:
    """Of some rows, and a null with no, one and four wrong draws of four."""
    rows = [BY_HAND.row(unit.facts.row, "adaptive") for unit in units]
    return Results.of(BY_HAND.header(rows), [*units, BY_HAND.null("null-defence", [0, 1, 4])])


def test_errors_of_a_search_stand_beside_as_many_draws_of_the_null() -> None:
    """Images first wrong at draw 3, at draw 6 and never, of 8, 8 and 20 draws; the null has 4 of each."""
    seen = BY_HAND.attacked("a", 0, seen_draws=[8, 8, 20], first_hit=[3, 6, 0])
    (found,) = details(results(seen, BY_HAND.attacked("blind", 0))).searches
    assert (found.row, found.n, found.draws) == ("a", 4, 12.0)
    assert found.never_wrong.value == pytest.approx(1 / 3)
    assert found.first.value == pytest.approx(2 / 3)
    assert found.null.value == pytest.approx(1 / 3)


def test_an_error_at_the_last_of_the_first_draws_counts() -> None:
    (found,) = details(results(BY_HAND.attacked("a", 0, seen_draws=[8, 8, 8], first_hit=[4, 5, 0]))).searches
    assert found.first.value == pytest.approx(2 / 3)


def test_a_short_search_is_compared_on_the_draws_it_saw() -> None:
    (found,) = details(results(BY_HAND.attacked("a", 0, seen_draws=[2, 3, 2], first_hit=[0, 3, 1]))).searches
    assert found.n == 2
    assert found.first.value == pytest.approx(2 / 3)
    assert found.null.value == pytest.approx((1 + 0.5 + 0) / 3)  # of 4 draws, 1 wrong: half of all pairs are right


def test_indicators_are_medians_of_what_is_there() -> None:
    arrays = {
        "pinned_predictions": [0, 0, 0],
        "pinned_clean": [0, 1, 0],
        "compression": [0.2, np.nan, 0.4],
        "compression_random": [0.1, 0.1, 0.7],
    }
    (found,) = details(results(BY_HAND.attacked("a", 0, **arrays), BY_HAND.attacked("without", 0))).indicators
    assert found.row == "a"
    assert found.fixed.value == pytest.approx(1 / 3)
    assert found.fixed_clean.value == pytest.approx(2 / 3)
    assert found.left == pytest.approx(0.3)
    assert found.left_random == pytest.approx(0.1)


def test_fixed_noise_without_a_finite_prediction_is_wrong() -> None:
    """Also of class 0."""
    nothing = dict.fromkeys(("compression", "compression_random"), [np.nan] * 3)
    (found,) = details(
        results(BY_HAND.attacked("a", 0, pinned_predictions=[-1, 1, -1], pinned_clean=[0, 1, 2], **nothing))
    ).indicators
    assert (found.fixed.value, found.fixed_clean.value) == (pytest.approx(1 / 3), 1)
    assert np.isnan(found.left)
    assert np.isnan(found.left_random)


class Answers(torch.nn.Module):
    """Says the first pixel's class."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].round().long(), 2).to(images.dtype)


def test_a_watched_defence_counts_draws_and_the_first_error() -> None:
    """Two images of class 1, asked twice at once in the order 7, 3, 7, 3 and then 3, 7."""
    watched = Watched(depura.Defence(nothing(), Answers()), (7, 3), torch.tensor([1, 1]))
    right, wrong = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    watched(torch.cat([right, right, wrong, right]), Noise(0, (7, 3, 7, 3)))
    watched(torch.cat([wrong, wrong]), Noise(0, (3, 7)))
    watched(wrong)  # without noise nobody can say which image it is
    assert watched.draws.tolist() == [3, 3]
    assert watched.errors.tolist() == [2, 1]
    assert watched.first.tolist() == [2, 3]


def test_only_the_walk_and_rule_that_are_judged_are_watched() -> None:
    defence = depura.Defence(nothing(), Answers())
    attack = depura.PGD(depura.Ball("linf", 0.1))
    bare, voted = defence.with_(purifier=None), defence.with_(rule=depura.Vote(3))
    bpda = defence.with_(gradient=depura.StraightThrough())
    for against, judged in ((defence, defence), (bpda, defence), (bare, bare)):
        assert sees_what_is_judged(depura.AttackRun("r", "r", attack, against, judged))
    for against, judged in ((bare, defence), (defence, voted)):
        assert not sees_what_is_judged(depura.AttackRun("r", "r", attack, against, judged))
