"""Denoisers in closed form: an affine purifier, whose matrix is known, and one so small that a grid attacks it best."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from checks import largest
from depura.attacks.apgd import APGD
from depura.attacks.attack import Attack
from depura.attacks.losses import margin
from depura.attacks.pgd import PGD
from depura.attacks.selective import Selective, Turning
from depura.attacks.threat import Ball
from depura.defence import Defence
from depura.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from depura.diffusion.guidance import State, minus_gradient
from depura.diffusion.schedules import Step
from depura.diffusion.solvers import Ancestral, from_input, from_noise
from depura.gradients import Direct, StoredState
from depura.noise import Kind, Noise
from depura.purifiers.purifier import DiffusionPurifier
from toys import NOISE, SOLVERS, numerical, purifier_of, rand, randn, value_and_gradient

# --- T10: a linear denoiser makes the purifier affine, P(x) = A x + w, with A known -----------------------------------

MEAN, STD = 0.4 * randn(1, 4, 4, seed=11), 0.2 + 0.5 * rand(1, 4, 4, seed=12)


def gain(sigma: float) -> Tensor:
    return STD**2 / (STD**2 + sigma**2)


def factor_and_spread(name: str, step: Step) -> tuple[Tensor, float]:
    """x' - mean = factor (x - mean) + spread z for a Gaussian, from the papers' formulas."""
    a, b = step.sigma, step.sigma_next
    slope, slope_next = a / (STD**2 + a**2), b / (STD**2 + b**2)
    abar, before = 1 / (1 + a**2), 1 / (1 + b**2)
    if name in ("Euler", "DpmSolverPP"):
        return 1 + (b - a) * slope, 0.0
    if name == "Heun":
        euler = 1 + (b - a) * slope
        return (1 + (b - a) / 2 * (slope + slope_next * euler) if b > 0 else euler), 0.0
    if name == "EulerMaruyama":
        return 1 - (a**2 - b**2) / (STD**2 + a**2), math.sqrt(a**2 - b**2)
    if name.startswith("Ancestral") or name == "DpmSolverPP, stochastic":
        eta = 0.5 if name.endswith("0.5") else 1.0
        u = eta * math.sqrt((1 - before) / (1 - abar) * (1 - abar / before)) / math.sqrt(before)
        return gain(a) + math.sqrt(b**2 - u**2) * slope, u
    rate = (0.1 + 19.9 * step.t) * (step.t - step.t_next)
    ratio = math.exp((-9.95 * step.t**2 - 0.1 * step.t + 9.95 * step.t_next**2 + 0.1 * step.t_next) / 2)
    scale_next = math.exp((-9.95 * step.t_next**2 - 0.1 * step.t_next) / 2)
    # The VP step acts on x_t itself, whose mean is not that of x: add what it does to the mean separately.
    return ratio * ((1 + rate / 2) - rate * (1 + a**2) / (STD**2 + a**2)), math.sqrt(rate) / scale_next


def drift_of_mean(name: str, step: Step) -> Tensor:
    """What a step at x = mean adds to it: 0, but for the VP step, which also grows x_t as a whole."""
    if name != "EulerMaruyamaVP":
        return torch.zeros_like(MEAN)
    rate = (0.1 + 19.9 * step.t) * (step.t - step.t_next)
    ratio = math.exp((-9.95 * step.t**2 - 0.1 * step.t + 9.95 * step.t_next**2 + 0.1 * step.t_next) / 2)
    return (ratio * (1 + rate / 2) - 1) * MEAN


def lead(name: str, steps: tuple[Step, ...], k: int) -> float:
    """What multiplies the change of the estimate since the step before in DPM-Solver++(2M): 0 elsewhere, at the first
    step and to sigma 0. Lu et al. 2022, with h the steps' lengths in log(1 / sigma)."""
    if not name.startswith("DpmSolverPP") or k == 0 or steps[k].sigma_next == 0:
        return 0.0
    h, h_before = (math.log(s.sigma / s.sigma_next) for s in (steps[k], steps[k - 1]))
    return -math.expm1(-(2 if name.endswith("stochastic") else 1) * h) * h / (2 * h_before)


@pytest.mark.parametrize("kappa", [0.0, 0.15])
@pytest.mark.parametrize("start", [from_input, from_noise])
@pytest.mark.parametrize("name", SOLVERS)
def test_t10_linear_gaussian(name: str, start, kappa: float) -> None:
    """T10: value and gradient. Guidance by kappa |x0 - x_in|^2 / 2 displaces by -kappa gain (x0 - x_in)."""

    def toward(at: State) -> Tensor:
        return kappa * minus_gradient(0.5 * (at.x0 - at.x_in).square().flatten(1).sum(1), at.x)

    solver, steps = SOLVERS[name]
    x = rand(2, 1, 4, 4, seed=1)
    noise = Noise(7, images=(3, 4))
    x_in = 2 * x - 1
    state = steps[0].sigma * noise(x, kind=Kind.FORWARD) + (x_in if start is from_input else 0)
    jacobian = torch.full((1, 4, 4), 1.0 if start is from_input else 0.0, dtype=torch.float64)
    x0, slope = state, jacobian
    for k, step in enumerate(steps):
        x0_before, slope_before = x0, slope
        factor, spread = factor_and_spread(name, step)
        g = gain(step.sigma)
        x0, slope = MEAN + g * (state - MEAN), g * jacobian
        ahead = lead(name, steps, k)
        moved = MEAN + drift_of_mean(name, step) + factor * (state - MEAN) + ahead * (x0 - x0_before)
        state = moved - kappa * g * (x0 - x_in)
        if spread:
            state = state + spread * noise(x, kind=Kind.REVERSE, step=step.index)
        jacobian = factor * jacobian + ahead * (slope - slope_before) - kappa * g * (slope - 1)
    expected = (steps[-1].scale_next * state + 1) / 2
    jacobian = steps[-1].scale_next * jacobian
    guidance = toward if kappa else None
    v = randn(2, 1, 4, 4, seed=3)
    for route in (StoredState(), Direct()):
        purifier = DiffusionPurifier(
            GaussianDenoiser(MEAN, STD), steps=steps, solver=solver, guidance=guidance, start=start, gradient=route
        )
        if kappa == 0 and start is from_noise and isinstance(route, Direct):
            continue  # no path at all: automatic differentiation has nothing to differentiate
        out, gradient = value_and_gradient(purifier, x, v, noise)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, jacobian * v, rtol=0, atol=1e-12)


def test_t10_one_draw_is_the_mean_over_draws() -> None:
    """T10: A does not depend on the noise, so the mean gradient over draws is that of any one of them."""
    purifier = DiffusionPurifier(GaussianDenoiser(MEAN, STD), steps=SOLVERS["Ancestral"][1], solver=Ancestral())
    gradients = [value_and_gradient(purifier, noise=NOISE.draw(k))[1] for k in range(8)]
    assert float(gradients[0].abs().max()) > 1e-3
    for gradient in gradients:
        assert largest(gradient, torch.stack(gradients).mean(0)) <= 1e-10
    curved = purifier_of("Ancestral")
    assert largest(value_and_gradient(curved)[1], value_and_gradient(curved, noise=NOISE.draw(1))[1]) > 1e-3


# --- T11: two pixels, and the exact denoiser of a mixture of Gaussians ------------------------------------------------

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


def attacked(logits: Callable[[Tensor, list[int]], Tensor], attack: Attack) -> Tensor:
    """Largest loss of the candidates of several starts, (3,)."""
    rows = [row for row in range(3) for _ in range(STARTS)]
    init = Noise(1, images=tuple(rows), draws=tuple(range(STARTS)) * 3)
    images, labels = IMAGES[rows], LABELS[rows]
    candidates = attack(lambda x: logits(x, rows), images, labels, init=init).images
    assert bool(torch.stack([attack.ball.contains(x, images) for x in candidates]).all())
    with torch.no_grad():
        losses = torch.stack([margin(logits(x, rows), labels) for x in candidates])
    return losses.amax(0).reshape(3, STARTS).amax(1)


@cache
@torch.no_grad()
def optima(solver: str, guided: str, n_draws: int, ball: Ball) -> list[float]:
    """Largest loss of the points of the grid around each image: one for all attacks."""
    logits, found = pinned(solver, guided, n_draws, StoredState()), list[float]()
    for i in range(3):
        points = fine_grid(ball, IMAGES[i : i + 1])
        found.append(float(margin(logits(points, [i] * len(points)), LABELS[i].expand(len(points))).max()))
    return found


ATTACKS: dict[str, Callable[[Ball], Attack]] = {
    "pgd": lambda ball: PGD(ball, n_steps=200, step_size=ball.eps / 80),
    "apgd": lambda ball: APGD(ball, n_steps=80, common=0),
    "selective": lambda ball: Selective(
        ball, n_steps=100, step_size=ball.eps / 20, eot=1, n_restarts=1, losses=(Turning(margin),)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("ball", [Ball("linf", 0.1), Ball("l2", 0.15)], ids=str)
@pytest.mark.parametrize(("solver", "guided", "n_draws"), WALKS)
def test_t11_attack_reaches_the_optimum_that_a_grid_finds(
    solver: str, guided: str, n_draws: int, ball: Ball, attack: str
) -> None:
    """T11: attacks through stored states end within 1e-3 of the best point of the whole ball; the image is not."""
    logits = pinned(solver, guided, n_draws, StoredState())
    found = attacked(logits, ATTACKS[attack](ball))
    with torch.no_grad():
        before = margin(logits(IMAGES, [0, 1, 2]), LABELS)
    for i, optimum in enumerate(optima(solver, guided, n_draws, ball)):
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
