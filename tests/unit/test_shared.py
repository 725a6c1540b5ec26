"""The shared step against brute force over all steps in two dimensions, and its fixed points against their equation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from depura.attacks.selective import Shared, shared_step
from depura.attacks.threat import Ball
from toys import randn

NORMS = ["linf", "l2"]


def every_step(norm: str, size: float) -> np.ndarray:
    """Steps of two pixels on a fine grid of the ball and on its border."""
    line = np.linspace(-size, size, 161)
    grid = np.stack([a.ravel() for a in np.meshgrid(line, line)], 1)
    if norm == "linf":
        return grid
    angle = np.linspace(0, 2 * math.pi, 1441)
    return np.concatenate([grid[np.hypot(*grid.T) <= size], size * np.stack([np.cos(angle), np.sin(angle)], 1)])


def expected(step: np.ndarray, losses: np.ndarray, gradients: np.ndarray, sharpness: float) -> np.ndarray:
    """J by its definition: (P, 2) steps of one image."""
    return (1 / (1 + np.exp(-sharpness * (losses + step @ gradients.T)))).sum(1)


def problems(n: int, m: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws of which some are broken already, with gradients of two pixels in all directions."""
    return randn(n, m, seed=seed) - 0.5, 2 * randn(n, m, 1, 1, 2, seed=seed + 1)


@pytest.mark.parametrize("norm", NORMS)
def test_no_step_breaks_many_more_draws(norm: str) -> None:
    losses, gradients = problems(100, 6)
    steps = every_step(norm, 0.8)
    for sharpness, lowest, mean in ((1.0, 0.95, 0.005), (5.0, 0.8, 0.06)):
        found = shared_step(Ball(norm, 1.0), losses, gradients, size=0.8, sharpness=sharpness, n_rounds=30)
        assert found.step.shape == (100, 1, 1, 2)
        assert bool((Ball(norm, 1.0).distance(found.step, torch.zeros_like(found.step)) <= 0.8 + 1e-12).all())
        gaps = []
        for i in range(100):
            own_losses, own_gradients = losses[i].numpy(), gradients[i].flatten(1).numpy()
            own = expected(found.step[i].reshape(1, 2).numpy(), own_losses, own_gradients, sharpness)[0]
            assert float(found.broken[i]) == pytest.approx(own, abs=1e-9), "the value is that of the step"
            gaps.append(expected(steps, own_losses, own_gradients, sharpness).max() - own)
        assert np.mean(np.array(gaps) < 0.01) >= lowest, "nearly always the best there is"
        assert np.mean(gaps) < mean


@pytest.mark.parametrize("norm", NORMS)
def test_the_end_is_stationary(norm: str) -> None:
    """Weights are the derivative's; the step points along the weighted gradient, or that gradient has vanished."""
    ball, (losses, gradients) = Ball(norm, 1.0), problems(60, 5, seed=3)
    found = shared_step(ball, losses, gradients, size=0.5, sharpness=2.0, n_rounds=400)
    step = found.step.clone().requires_grad_()
    z = 2.0 * (losses + (gradients * step[:, None]).flatten(2).sum(2))
    q = torch.sigmoid(z) * (1 - torch.sigmoid(z))
    torch.testing.assert_close(found.weights, (q / q.sum(1, keepdim=True)).detach())
    (slope,) = torch.autograd.grad(torch.sigmoid(z).sum(), step)
    # How much a move to any point of the ball could gain, to first order: 0 at a stationary point.
    gain = ((0.5 * ball.unit(slope) - found.step) * slope).flatten(1).sum(1)
    assert float(gain.min()) > -1e-9
    assert float(gain.quantile(0.6)) < 1e-5
    assert float(gain.max()) < 0.05, "where the end lies inside or on a face, it is approached slowly"
    on_border = ball.distance(found.step, torch.zeros_like(found.step)) > 0.5 - 1e-9
    assert float(on_border.double().mean()) > 0.5, "the fixed point of the loop"
    if norm == "l2":
        torch.testing.assert_close(found.step[on_border], 0.5 * ball.unit(slope[on_border]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_the_expectation_never_falls_with_more_rounds(norm: str) -> None:
    losses, gradients = problems(50, 6, seed=5)
    found = [
        shared_step(Ball(norm, 1.0), losses, gradients, size=0.8, sharpness=5.0, n_rounds=n).broken
        for n in (1, 2, 3, 5, 10, 30)
    ]
    for less, more in pairwise(found):
        assert bool((more >= less - 1e-9).all())
    assert float((found[-1] - found[0]).mean()) > 0.03


def test_one_draw_is_followed_to_the_border() -> None:
    u = randn(3, 1, 2, 3, 3, seed=2)
    for norm, steepest in (
        ("linf", u[:, 0].sign()),
        ("l2", u[:, 0] / u[:, 0].flatten(1).norm(dim=1)[:, None, None, None]),
    ):
        found = shared_step(Ball(norm, 0.1), torch.zeros(3, 1, dtype=u.dtype), u, size=0.1, sharpness=5.0, n_rounds=3)
        torch.testing.assert_close(found.step, 0.1 * steepest)
        assert found.weights.tolist() == [[1], [1], [1]]


def only(pixel: list[float]) -> Tensor:
    return torch.tensor(pixel, dtype=torch.float64).reshape(1, len(pixel), 1, 1, 1)


def two(losses: list[float], gradients: list[float], sharpness: float = 5.0) -> Shared:
    """Draws whose gradients lie on one line."""
    return shared_step(
        Ball("l2", 1.0),
        torch.tensor([losses], dtype=torch.float64),
        only(gradients),
        size=0.5,
        sharpness=sharpness,
        n_rounds=20,
    )


def test_opposite_draws_do_not_cancel() -> None:
    found = two([-0.3, -0.3, -0.3, -0.3], [1, -1, 1, -1])
    assert float(found.step.abs()) == pytest.approx(0.5)
    assert float(found.broken) > 1.4
    assert float(max(found.weights[0, :2].sum(), found.weights[0, 2:].sum())) == pytest.approx(0.5)
    assert float((found.weights[0] * torch.tensor([1, -1, 1, -1])).sum().abs()) > 0.8


def test_draws_that_no_step_changes_have_no_weight() -> None:
    """Where the published weights, sigmoid(z), would follow the draw that is broken anyway."""
    found = two([4.0, -0.1], [1.0, -1.0])
    assert float(found.step) == pytest.approx(-0.5)
    assert float(found.weights[0, 1]) > 0.99
    found = two([-9.0, -0.1], [1.0, -1.0])
    assert float(found.step) == pytest.approx(-0.5)
    assert float(found.weights[0, 1]) > 0.99


def test_the_best_step_may_be_short() -> None:
    """Two draws just broken, with opposite gradients: any long step loses one of them."""
    found = two([0.2, 0.2], [3.0, -3.0])
    assert abs(float(found.step)) < 0.02
    assert float(found.broken) == pytest.approx(2 / (1 + math.exp(-1)), abs=1e-3)


def test_hopeless_draws_are_still_told_apart() -> None:
    """sigmoid(-1000) is 0 in floating point; its ratio to sigmoid(-995) is not."""
    found = two([-200.0, -199.0], [1.0, -1.0])
    assert bool(found.weights.isfinite().all())
    assert float(found.step) == pytest.approx(-0.5)
    assert float(found.weights[0, 1]) > 0.99


def test_zero_gradients_give_no_step() -> None:
    found = two([-1.0, 0.0], [0.0, 0.0])
    assert float(found.step) == 0
    assert bool(found.weights.isfinite().all())
