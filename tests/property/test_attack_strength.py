"""A stronger setting never helps the defender; Square finds what gradients miss only where these are masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.attack import Attack
from depura.attacks.ensembles import Together
from depura.attacks.square import Square
from depura.attacks.threat import Ball
from depura.defence import Defence
from depura.evaluation.scoring import choose, score
from depura.methods.baselines import noise_only
from depura.statistics.intervals import paired_gain
from toys import Streams, TanhClassifier, rand

N = 48
IDS = tuple(range(N))
STREAMS = Streams(3)
BALL = Ball("linf", 0.06)
IMAGES = rand(N, 1, 4, 4, seed=5)
SMOOTH = TanhClassifier(16, 5)
NOISY = Defence(noise_only(std=0.15), SMOOTH)
with torch.no_grad():
    LABELS = SMOOTH(IMAGES).argmax(1)


def survivors(defence: Defence, attack: Attack, *, seed: int = 3) -> np.ndarray:
    """Share of fresh draws that are right after the attack, of each image, chosen and reported as a study does."""
    streams = Streams(seed)
    found = attack(defence, IMAGES, LABELS, init=streams.init(IDS), eot=streams.eot(IDS))
    chosen = choose(defence, found.images, LABELS, STREAMS.select(IDS), draws=range(32)).images
    scores = score(defence, chosen, LABELS, STREAMS.report(IDS), draws=range(128))
    return 1 - scores.errors(LABELS).numpy() / 128


BASE = {"n_steps": 10, "eot": 4, "common": 8}
STRONGER = {
    "twice the steps": {"n_steps": 20},
    "four times the draws": {"eot": 16},
    "a restart": {"n_restarts": 2},
    "all three": {"n_steps": 20, "eot": 16, "n_restarts": 2},
}


@pytest.fixture(scope="module")
def base() -> np.ndarray:
    return survivors(NOISY, APGD(BALL, **BASE))


@pytest.mark.parametrize("change", STRONGER, ids=str)
def test_a_stronger_setting_never_helps_the_defender(base: np.ndarray, change: str) -> None:
    """The paired 95 % interval of what the stronger attack takes from the weaker one's accuracy reaches above zero."""
    stronger = survivors(NOISY, APGD(BALL, **(BASE | STRONGER[change])))
    low, high = paired_gain(base, stronger)
    assert high >= 0
    assert low > -0.02, "nor does it lose more than two points at the worst end"


def test_the_attack_of_these_tests_finds_something(base: np.ndarray) -> None:
    null = 1 - score(NOISY, IMAGES, LABELS, STREAMS.null(IDS), draws=range(128)).errors(LABELS).numpy() / 128
    low, _ = paired_gain(null, base)
    assert low > 0.1


class Rounded(TanhClassifier):
    """The same classifier behind 9 grey levels: its gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((8 * images).round() / 8)


def broken(classifier: torch.nn.Module, attack: Attack) -> Tensor:
    """Which images any candidate breaks."""
    found = attack(classifier, IMAGES, LABELS_OF[classifier], init=STREAMS.init(IDS))
    with torch.no_grad():
        return torch.stack([classifier(x).argmax(1) != LABELS_OF[classifier] for x in found.images]).any(0)


WHITE = Together((APGD(BALL, n_steps=50, common=0), TargetedAPGD(BALL, n_steps=50, n_targets=4, common=0)))
SQUARE = Square(BALL, n_queries=500, renew=None)
MASKED = Rounded(16, 5)
with torch.no_grad():
    LABELS_OF = {SMOOTH: LABELS, MASKED: MASKED(IMAGES).argmax(1)}


def test_square_finds_almost_nothing_that_gradients_miss_on_a_smooth_classifier() -> None:
    white, black = broken(SMOOTH, WHITE), broken(SMOOTH, SQUARE)
    assert 0.2 * N < int(white.sum()) < 0.9 * N, "some images must be breakable, and some not"
    assert int((black & ~white).sum()) <= 0.02 * N


def test_square_finds_much_that_masked_gradients_miss() -> None:
    white, black = broken(MASKED, WHITE), broken(MASKED, SQUARE)
    assert int((black & ~white).sum()) >= 0.1 * N
    assert int((white & ~black).sum()) <= 0.02 * N
