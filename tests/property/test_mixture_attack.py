"""T11: two pixels and the exact denoiser of a mixture of Gaussians, so small that a grid finds the best attack."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from checks import largest
from depura.attacks.ball import Ball
from depura.attacks.losses import margin
from depura.attacks.pgd import PGD
from depura.exact import MixtureDenoiser
from depura.gradients import Direct, StoredState
from depura.noise import Noise
from depura.purifier import Defence
from toys import numerical, purifier_of, value_and_gradient

MEANS = torch.tensor([[-0.6, -0.4], [0.5, -0.3], [0.1, 0.7]], dtype=torch.float64).reshape(3, 1, 1, 2)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
CENTRES = torch.tensor([[0.25, 0.35], [0.45, 0.4]], dtype=torch.float64)
IMAGES = torch.tensor([[0.3, 0.35], [0.5, 0.35], [0.04, 0.5]], dtype=torch.float64).reshape(3, 1, 1, 2)
LABELS = torch.tensor([0, 1, 0])
WALKS = [("EulerMaruyamaVP", "unguided", 2), ("Ancestral", "toward", 1)]
"""Solver, guidance, and the number of pinned draws whose mean is attacked."""
STARTS = 4


def bowls(images: Tensor) -> Tensor:
    """Two classes, each a bowl of its own width: their difference has a maximum inside the square."""
    squared = (images.flatten(1)[:, None] - CENTRES).square().sum(2)
    return -torch.tensor([2.0, 9.0], dtype=images.dtype) * squared


def pinned(solver: str, guided: str, n_draws: int, route=None) -> Callable[[Tensor, list[int]], Tensor]:
    """Mean logits over some draws, which are always the same ones: images and the number of each -> (B, 2)."""
    purifier = purifier_of(solver, guided, denoiser=MixtureDenoiser(MEANS, std=0.3, weights=WEIGHTS), gradient=route)
    defence = Defence(purifier, bowls)

    def logits(images: Tensor, ids: list[int]) -> Tensor:
        noise = Noise(5, images=tuple(ids)).expand(range(n_draws))
        return defence(images.repeat_interleave(n_draws, 0), noise).reshape(len(ids), n_draws, 2).mean(1)

    return logits


def fine_grid(ball: Ball, image: Tensor) -> Tensor:
    """401 x 401 points of the ball and of the square; for l2 those inside, and 4,000 on the circle."""
    ticks = torch.linspace(-ball.eps, ball.eps, 401, dtype=torch.float64)
    offsets = torch.cartesian_prod(ticks, ticks)
    if ball.norm == "l2":
        angle = torch.arange(4000, dtype=torch.float64) * (2 * math.pi / 4000)
        circle = ball.eps * torch.stack([angle.cos(), angle.sin()], 1)
        offsets = torch.cat([offsets[offsets.norm(dim=1) <= ball.eps], circle])
    points = image + offsets.reshape(-1, 1, 1, 2)
    if ball.norm == "linf":
        return points.clamp(0, 1)
    return points[((points >= 0) & (points <= 1)).flatten(1).all(1)]


def attacked(logits: Callable[[Tensor, list[int]], Tensor], attack: PGD) -> Tensor:
    """Largest loss of the candidates of several starts, (3,)."""
    rows = [row for row in range(3) for _ in range(STARTS)]
    init = Noise(1, images=tuple(rows), draws=tuple(range(STARTS)) * 3)
    images, labels = IMAGES[rows], LABELS[rows]
    candidates = attack(lambda x: logits(x, rows), images, labels, init=init).images
    assert bool(torch.stack([attack.ball.contains(x, images) for x in candidates]).all())
    with torch.no_grad():
        losses = torch.stack([margin(logits(x, rows), labels) for x in candidates])
    return losses.amax(0).reshape(3, STARTS).amax(1)


@pytest.mark.parametrize("ball", [Ball("linf", 0.1), Ball("l2", 0.15)], ids=str)
@pytest.mark.parametrize(("solver", "guided", "n_draws"), WALKS)
def test_t11_attack_reaches_the_optimum_that_a_grid_finds(solver: str, guided: str, n_draws: int, ball: Ball) -> None:
    """T11: PGD through stored states ends within 1e-3 of the best point of the whole ball; the image is not."""
    logits = pinned(solver, guided, n_draws, StoredState())
    found = attacked(logits, PGD(ball, n_steps=200, step_size=ball.eps / 80))
    with torch.no_grad():
        before = margin(logits(IMAGES, [0, 1, 2]), LABELS)
    for i in range(3):
        points = fine_grid(ball, IMAGES[i : i + 1])
        with torch.no_grad():
            optimum = float(margin(logits(points, [i] * len(points)), LABELS[i].expand(len(points))).max())
        assert abs(float(found[i]) - optimum) <= 1e-3
        assert float(before[i]) < optimum - 4e-3, "an attack that does nothing must not pass"


@pytest.mark.parametrize(("solver", "guided", "n_draws"), WALKS)
def test_t11_gradient_of_the_loss(solver: str, guided: str, n_draws: int) -> None:
    """T11: the attack's own gradient, route against route and both coordinates against differences."""
    one = torch.ones(1, dtype=torch.float64)
    for i in range(3):

        def loss(x: Tensor, noise: Noise, route=None, i: int = i) -> Tensor:
            return margin(pinned(solver, guided, n_draws, route)(x, [i] * len(x)), LABELS[i].expand(len(x)))

        _, stored = value_and_gradient(loss, IMAGES[i : i + 1], one)
        _, direct = value_and_gradient(lambda x, noise: loss(x, noise, Direct()), IMAGES[i : i + 1], one)
        assert float(stored.norm()) > 1e-2
        assert largest(stored, direct) <= 1e-12
        assert largest(stored, numerical_loss(loss, IMAGES[i : i + 1])) <= 1e-7


def numerical_loss(loss: Callable[[Tensor, Noise], Tensor], x: Tensor) -> Tensor:
    """Differences of a loss of shape (B,) by each pixel."""
    return numerical(lambda batch, noise: loss(batch, noise)[:, None], x, torch.ones(1, dtype=torch.float64))
