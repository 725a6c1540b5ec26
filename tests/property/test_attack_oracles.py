"""What attacks must find, in closed form: on linear models, behind the linear-Gaussian purifier, and nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.attack import Attack
from depura.attacks.baselines import RandomPoints
from depura.attacks.ensembles import rand, standard
from depura.attacks.fab import FAB
from depura.attacks.losses import cross_entropy, margin
from depura.attacks.pgd import PGD, Momentum
from depura.attacks.selective import Selective
from depura.attacks.spsa import SPSA
from depura.attacks.square import Square
from depura.attacks.threat import Ball
from depura.defence import Defence
from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.noise import Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from slow import slow_among
from toys import rand as uniform
from toys import randn

N = 4
INIT = Noise(1, images=tuple(range(N)), stream=Stream.INIT)
EOT = Noise(1, images=tuple(range(N)), stream=Stream.EOT)
W = randn(1, 4, 4, seed=7)
IMAGES = 0.4 + 0.2 * uniform(N, 1, 4, 4, seed=1)
LABELS = torch.zeros(N, dtype=torch.int64)


@dataclass(frozen=True)
class Found:
    """How an attack is built, and which share of the best possible gain it must reach."""

    build: Callable[[Ball], Attack]
    share: float


ASCENTS: dict[str, Found] = {
    "pgd": Found(lambda b: PGD(b, n_steps=40, step_size=b.eps, eot=2), 0.999),
    "pgd, cross entropy": Found(lambda b: PGD(b, n_steps=40, step_size=b.eps, eot=2, loss=cross_entropy), 0.999),
    "momentum": Found(lambda b: PGD(b, n_steps=40, step_size=b.eps, eot=2, momentum=Momentum()), 0.999),
    "nesterov": Found(lambda b: PGD(b, n_steps=40, step_size=b.eps, eot=2, momentum=Momentum(nesterov=True)), 0.999),
    "apgd": Found(lambda b: APGD(b, n_steps=150, eot=2, common=4), 0.999),
    "targeted apgd": Found(lambda b: TargetedAPGD(b, n_steps=60, n_targets=3, eot=2, common=4), 0.999),
    "selective": Found(lambda b: Selective(b, n_steps=40, eot=4), 0.999),
    "rand": Found(lambda b: rand(b, n_steps=60, eot=2), 0.999),
    "spsa": Found(lambda b: SPSA(b, n_steps=24, n_pairs=64), 0.95),
    "square": Found(lambda b: Square(b, n_queries=1500, renew=None), 0.9),
}
BY_SCORES = {"spsa", "square"}
"""Slow, since they ask far more often; their own tests have an optimum for each that is quick to reach."""


class Linear(nn.Module):
    """Four classes; logit 1 minus logit 0 is <w, x - 1/2> - bias, the others are far below."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, images: Tensor) -> Tensor:
        z = ((images - 0.5) * W).flatten(1).sum(1) - self.bias
        return torch.stack([0 * z, z, 0 * z - 80, 0 * z - 90], dim=1)


def direction(norm: str, w: Tensor) -> Tensor:
    """Where a linear loss rises most, per unit of the norm."""
    return w.sign() if norm == "linf" else w / w.norm()


def gains(found: Tensor, w: Tensor) -> Tensor:
    """The best candidate's gain of <w, x>, (N,)."""
    return ((found - IMAGES) * w).flatten(2).sum(2).amax(0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", slow_among(ASCENTS, BY_SCORES))
def test_attacks_reach_the_optimum_of_a_linear_model(name: str, norm: str) -> None:
    eps = {"linf": 0.05, "l2": 0.2}[norm]
    attack, best = ASCENTS[name].build(Ball(norm, eps)), eps * direction(norm, W)
    found = attack(Linear(), IMAGES, LABELS, init=INIT)
    share = 0.6 if (name, norm) == ("square", "l2") else ASCENTS[name].share  # windows of at least 3 pixels on 4x4
    limit = float((best * W).sum())
    assert bool((gains(found.images, W) >= share * limit).all())
    assert bool((gains(found.images, W) <= limit * (1 + 1e-9)).all())
    if share == 0.999:
        nearest = (found.images - IMAGES - best).flatten(2).abs().amax(2).amin(0)
        assert float(nearest.max()) < (1e-9 if norm == "linf" else 0.05 * eps)


STD = 0.2 + 0.5 * uniform(1, 4, 4, seed=3)


def behind_the_gaussian() -> tuple[Defence, Tensor]:
    """The linear model behind DiffPure with the exact denoiser of N(mean, diag STD^2), and the slope of its margin.

    The denoiser, and so the purification, is affine in each pixel by itself: P(x) = A x + noise, A diagonal. A is taken
    from two evaluations on the same noise.
    """
    steps = uniform_steps(VP(), t_start=0.1, n_steps=5)
    purifier = DiffusionPurifier(
        GaussianDenoiser(torch.zeros(1, 4, 4, dtype=torch.float64), STD), steps=steps, solver=Ancestral()
    )
    one = Noise(0, images=(0,))
    low, high = (purifier(torch.full((1, 1, 4, 4), v, dtype=torch.float64), one) for v in (0.25, 0.75))
    return Defence(purifier, Linear()), 2 * (high - low)[0] * W


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "name", slow_among([name for name in ASCENTS if name != "square"], {"spsa", "targeted apgd", "rand"})
)
def test_attacks_reach_the_optimum_behind_the_linear_gaussian_purifier(name: str, norm: str) -> None:
    eps = {"linf": 0.05, "l2": 0.2}[norm]
    defence, slope = behind_the_gaussian()
    assert float((direction("l2", slope) - direction("l2", W)).norm()) > 0.1, "the purifier must turn the gradient"
    found = ASCENTS[name].build(Ball(norm, eps))(defence, IMAGES, LABELS, init=INIT, eot=EOT)
    limit = float((eps * direction(norm, slope) * slope).sum())
    assert bool((gains(found.images, slope) >= ASCENTS[name].share * limit).all())
    assert bool((gains(found.images, slope) <= limit * (1 + 1e-9)).all())


OTHERS: dict[str, Callable[[Ball], Attack]] = {
    "fab": lambda b: FAB(b, n_targets=3),
    "standard": lambda b: standard(b, n_steps=40, n_targets=3, n_queries=200),
    "random": lambda b: RandomPoints(b, n_points=50),
}
SHORT = OTHERS | {
    "spsa": lambda b: SPSA(b, n_steps=24, n_pairs=16),
    "square": lambda b: Square(b, n_queries=300, renew=None),
}
"""Attacks that break the half margin sooner than they reach the optimum."""


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", slow_among([*ASCENTS, *OTHERS], {"spsa", "standard", "rand"}))
def test_no_attack_breaks_a_linear_model_whose_margin_is_larger_than_the_ball(name: str, norm: str) -> None:
    """A margin one part in a thousand above what the ball can take; then one of half of it, which all attacks break."""
    eps = {"linf": 0.05, "l2": 0.2}[norm]
    images = torch.full_like(IMAGES, 0.5)
    reach = float((eps * direction(norm, W) * W).sum())
    attack = SHORT[name](Ball(norm, eps)) if name in SHORT else ASCENTS[name].build(Ball(norm, eps))
    for bias, breaks in [(1.001 * reach, False), (0.5 * reach, True)]:
        found = attack(Linear(bias), images, LABELS, init=INIT)
        wrong = torch.stack([Linear(bias)(x).argmax(1) != LABELS for x in found.images]).any(0)
        if not breaks:
            assert not bool(wrong.any())
            assert bool((found.finished < 0).all())
        elif name != "random":
            assert bool(wrong.all())
    if name == "fab":
        assert float(margin(Linear(0.5 * reach)(found.images[0]), LABELS).abs().max()) < 0.2 * reach, "it stays close"
