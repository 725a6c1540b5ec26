"""Indicators against closed forms: a linear-Gaussian purifier contracts by a known diagonal matrix. Errors during a
search, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.records import ByHand
from torch import Tensor

import depura
from depura._check import InputError
from depura.analysis.details import details
from depura.analysis.results import Results
from depura.defence import Defence, Vote
from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.schedules import EDM, steps_at
from depura.diffusion.solvers import Ancestral, Euler
from depura.evaluation.diagnostics import (
    Watched,
    compression,
    nothing,
    pinned_predictions,
    random_direction,
    sees_what_is_judged,
)
from depura.methods.baselines import noise_only
from depura.noise import Kind, Noise, Stream
from depura.purifiers.composed import FixedNoise
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.directory import Unit
from toys import TanhClassifier, rand, randn

IMAGES = rand(5, 1, 4, 4, seed=1)
MOVES = 0.1 * randn(5, 1, 4, 4, seed=2)
NOISE = Noise(3, images=(7, 8, 9, 10, 11), stream=Stream.REPORT)
CLASSIFIER = TanhClassifier(16)


def linear(std: Tensor, *, solver=None, rounds: int = 1) -> Defence:
    """Noise of 0.8 is added and taken away in steps by the exact denoiser of N(0.2, std^2), a linear map."""
    denoiser = GaussianDenoiser(torch.full((1, 4, 4), 0.2).double(), std.expand(1, 4, 4))
    steps = steps_at(EDM(), [0.8, 0.4, 0.1, 0.0])
    return Defence(DiffusionPurifier(denoiser, steps=steps, solver=solver or Euler(), rounds=rounds), CLASSIFIER)


def kept(std: Tensor) -> Tensor:
    """What Euler's three steps keep of a difference, element by element: x + (sigma' / sigma - 1) (x - D(x))."""
    share = torch.ones_like(std)
    for sigma, to in ((0.8, 0.4), (0.4, 0.1), (0.1, 0.0)):
        slope = std**2 / (std**2 + sigma**2)
        share = share * (slope + to / sigma * (1 - slope))
    return share


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_linear_purifier_compresses_by_its_matrix(rounds: int) -> None:
    std = 0.05 + rand(1, 4, 4, seed=3)
    found = compression(linear(std, rounds=rounds), IMAGES, IMAGES + MOVES, NOISE)
    expected = (kept(std) ** rounds * MOVES).flatten(1).norm(dim=1) / MOVES.flatten(1).norm(dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert 0.1 < float(found.min()) < float(found.max()) < 0.95


def test_directions_that_are_kept_compress_less() -> None:
    """Only the first pixel has variance: a move of it survives, a move of another one vanishes."""
    std = torch.full((1, 4, 4), 1e-6).double()
    std[0, 0, 0] = 100.0
    moved = IMAGES.repeat(2, 1, 1, 1)[:2].clone()
    moved[0, 0, 0, 0] += 0.1
    moved[1, 0, 2, 2] += 0.1
    found = compression(linear(std), IMAGES.repeat(2, 1, 1, 1)[:2], moved, NOISE.take([0, 1]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]).double(), rtol=0, atol=1e-4)


def test_both_images_get_the_same_noise() -> None:
    """Noise alone takes nothing away and adds the same to both, though the walk is random."""
    torch.testing.assert_close(
        compression(Defence(noise_only(std=0.5), CLASSIFIER), IMAGES, IMAGES + MOVES, NOISE),
        torch.ones(5).double(),
        rtol=1e-9,
        atol=0,
    )
    std = 0.3 * torch.ones(1, 4, 4).double()
    ratio = compression(linear(std, solver=Ancestral()), IMAGES, IMAGES + MOVES, NOISE)
    assert float(ratio.std()) == pytest.approx(0, abs=1e-9), "a multiple of the identity, whatever the noise"


def test_a_constant_purifier_leaves_nothing() -> None:
    found = compression(linear(torch.zeros(1, 4, 4).double()), IMAGES, IMAGES + MOVES, NOISE)
    torch.testing.assert_close(found, torch.zeros(5).double(), rtol=0, atol=1e-12)


def test_without_a_purifier_or_a_perturbation_there_is_no_ratio() -> None:
    assert compression(Defence(None, CLASSIFIER), IMAGES, IMAGES + MOVES, NOISE).isnan().all()
    moved = IMAGES + MOVES
    moved[2] = IMAGES[2]
    found = compression(linear(torch.ones(1, 4, 4).double()), IMAGES, moved, NOISE)
    assert found.isnan().tolist() == [False, False, True, False, False]


def test_random_directions_have_the_length_and_stay_in_the_box() -> None:
    images, lengths = torch.cat([IMAGES, IMAGES.round()]), torch.linspace(0, 1.5, 10).double()
    noise = Noise(3, images=tuple(range(10)))
    moves = random_direction(images, lengths, noise) - images
    torch.testing.assert_close(moves.flatten(1).norm(dim=1), lengths)
    inside = images + moves
    assert float(inside.min()) >= 0
    assert float(inside.max()) <= 1
    alone = random_direction(images[4:5], lengths[4:5], noise.take([4]))
    torch.testing.assert_close(alone - images[4:5], moves[4:5])


def test_random_directions_are_of_the_attack_kind_and_favour_none() -> None:
    grey = torch.full((1, 1, 4, 4), 0.5).double()
    noise = Noise(5, images=(0,))
    drawn = noise(grey, kind=Kind.ATTACK)
    torch.testing.assert_close(
        random_direction(grey, torch.tensor([0.4]).double(), noise) - grey, 0.4 * drawn / drawn.norm()
    )
    many = grey.expand(4000, 1, 4, 4)
    moves = random_direction(many, torch.full((4000,), 0.4).double(), Noise(5, images=tuple(range(4000)))) - many
    unit = moves.flatten(1) / 0.4
    torch.testing.assert_close(unit.T @ unit / 4000, torch.eye(16).double() / 16, rtol=0, atol=0.01)
    assert float(unit.mean(0).abs().max()) < 4 / (16 * 4000) ** 0.5


def test_one_tape_is_the_same_for_all_images_whatever_their_batch() -> None:
    """With noise this large the label is the tape's: equal images get equal labels, and other draws other ones."""
    defence = Defence(noise_only(std=3.0), CLASSIFIER)
    equal, tape = IMAGES[:1].repeat(5, 1, 1, 1), NOISE
    by_draw = torch.stack([pinned_predictions(defence, equal, tape.draw(k)) for k in range(12)])
    assert (by_draw == by_draw[:, :1]).all()
    assert len(by_draw[:, 0].unique()) > 1
    assert len(defence(equal, tape).argmax(1).unique()) > 1, "without the pin they differ"
    whole = pinned_predictions(defence, IMAGES, NOISE)
    alone = [pinned_predictions(defence, IMAGES[k : k + 1], NOISE.take([k])) for k in range(5)]
    assert whole.tolist() == torch.cat(alone).tolist()


def test_the_tape_is_the_one_of_a_pinned_purifier() -> None:
    """On the report stream it differs from the deploy stream's, so the pinned purifier is built by hand."""
    purifier = linear(0.5 * torch.ones(1, 4, 4).double(), solver=Ancestral()).purifier
    assert purifier is not None
    tape = Noise(3, images=(0,) * 5, stream=Stream.REPORT)
    by_hand = CLASSIFIER(purifier(IMAGES, tape)).argmax(1)
    assert pinned_predictions(Defence(purifier, CLASSIFIER), IMAGES, NOISE).tolist() == by_hand.tolist()
    pinned = Defence(FixedNoise(purifier, seed=3), CLASSIFIER)
    assert pinned_predictions(pinned, IMAGES, NOISE).tolist() == pinned(IMAGES, NOISE).argmax(1).tolist()


def test_a_vote_under_one_tape_counts_the_same_draws_for_every_image() -> None:
    defence = Defence(noise_only(std=1.0), CLASSIFIER, rule=Vote(5))
    votes = torch.stack(
        [CLASSIFIER(IMAGES + Noise(3, (0,), k, Stream.REPORT)(IMAGES[:1], kind=Kind.FORWARD)) for k in range(5)]
    ).argmax(2)
    expected = [max(sorted(set(v)), key=v.count) for v in votes.T.tolist()]
    assert pinned_predictions(defence, IMAGES, NOISE).tolist() == expected


def test_wrong_inputs_are_refused() -> None:
    defence = linear(torch.ones(1, 4, 4).double())
    with pytest.raises(InputError, match=r"compression: expected images in \[0, 1\]"):
        compression(defence, 2 * IMAGES, IMAGES, NOISE)
    with pytest.raises(InputError, match="perturbed images of shape"):
        compression(defence, IMAGES, IMAGES[:1], NOISE)
    for lengths in (torch.ones(4), torch.full((5,), -1.0), torch.full((5,), torch.nan)):
        with pytest.raises(InputError, match="5 lengths, finite and >= 0"):
            random_direction(IMAGES, lengths, NOISE)
    with pytest.raises(InputError, match="the eot stream"):
        pinned_predictions(defence, IMAGES, NOISE.on(Stream.EOT))
    with pytest.raises(InputError, match="noise of 5 rows"):
        pinned_predictions(defence, IMAGES, NOISE.take([0]))


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
