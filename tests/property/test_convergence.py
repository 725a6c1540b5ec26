"""On a Gaussian the reverse processes have closed forms: order of the ODE solvers, law of the stochastic ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.schedules import EDM, VP, Step, steps_at
from depura.diffusion.solvers import (
    Ancestral,
    Before,
    DpmSolverPP,
    Euler,
    EulerMaruyama,
    EulerMaruyamaVP,
    Heun,
    Multistep,
    Solver,
)
from depura.noise import Kind, Noise
from toys import randn

MEAN, STD = torch.full((1, 2, 2), 0.3, dtype=torch.float64), torch.full((1, 2, 2), 0.4, dtype=torch.float64)
DENOISER = GaussianDenoiser(MEAN, STD)


def walk(solver: Solver, steps: tuple[Step, ...], x: Tensor, noise: Noise, denoiser=DENOISER) -> Tensor:
    following = solver
    for step in steps:
        x, x0, _ = following.step(denoiser, x, step, noise)
        if isinstance(solver, Multistep):
            following = solver.after(Before(x0, step.sigma))
    return x


@pytest.mark.parametrize("grid", ["geometric", "Karras"])
@pytest.mark.parametrize(
    ("solver", "order", "tolerance"), [(Euler(), 1.0, 0.1), (Heun(), 2.0, 0.15), (DpmSolverPP(), 2.0, 0.15)]
)
def test_order_of_the_ode_solvers(solver: Solver, order: float, tolerance: float, grid: str) -> None:
    """Exact flow: x - mean grows as sqrt(std^2 + sigma^2). From sigma 5 to 0.1."""
    x = 5 * randn(2, 1, 2, 2, seed=1)
    exact = MEAN + torch.sqrt((STD**2 + 0.1**2) / (STD**2 + 5.0**2)) * (x - MEAN)
    counts, errors = [16, 32, 64, 128], []
    for n in counts:
        k = np.arange(n + 1) / n
        if grid == "geometric":
            times = 5.0 * (0.1 / 5.0) ** k
        else:
            times = (5.0 ** (1 / 3) + k * (0.1 ** (1 / 3) - 5.0 ** (1 / 3))) ** 3
        got = walk(solver, steps_at(EDM(), times.tolist()), x, Noise(0, images=(0, 1)))
        errors.append(float((got - exact).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=tolerance), errors
    assert errors[-1] < 0.05 * float((x - exact).abs().max())


def closed_form_spread(step: Step, solver: Solver, variance: float) -> float:
    """Variance after one step, from the variance before it, for a Gaussian of standard deviation 0.4."""
    a, b = step.sigma, step.sigma_next
    shrink = a**2 / (0.4**2 + a**2)
    if isinstance(solver, Ancestral):
        return (1 - (1 - b**2 / a**2) * shrink) ** 2 * variance + b**2 * (1 - b**2 / a**2)
    if isinstance(solver, EulerMaruyama):
        return (1 - (1 - b**2 / a**2) * shrink) ** 2 * variance + a**2 - b**2
    rate = (0.1 + 19.9 * step.t) * (step.t - step.t_next)
    kept = 1 / math.sqrt(1 + a**2), math.sqrt(1 + b**2)
    factor = kept[0] * kept[1] * (1 + rate / 2 - rate * (1 + a**2) / (0.4**2 + a**2))
    return factor**2 * variance + rate * (1 + b**2)


SAMPLERS = [Ancestral(), EulerMaruyama(), EulerMaruyamaVP()]


@pytest.mark.parametrize("solver", SAMPLERS, ids=lambda s: type(s).__name__)
def test_distribution_of_the_stochastic_solvers(solver: Solver) -> None:
    """From x0 + sigma n, x0 ~ N(0.3, 0.4^2), at t = 0.6 to t = 0.01, where the marginal is N(0.3, 0.4^2 + sigma^2).

    The distance of the sampled standard deviation falls in proportion to the step, and so does that of the mean.
    """
    schedule, n_values = VP(), 40_000
    first, last = schedule.sigma(0.6), schedule.sigma(0.01)
    exact = math.sqrt(0.4**2 + last**2)
    noise = Noise(3, images=(0, 1))
    shape = torch.zeros(2, 1, 1, n_values // 2, dtype=torch.float64)
    scalar = GaussianDenoiser(MEAN[:, :1, :1], STD[:, :1, :1])
    counts, errors = (8, 32, 128), []
    for n in counts:
        steps = steps_at(schedule, np.linspace(0.6, 0.01, n + 1).tolist())
        start = 0.3 + math.sqrt(0.4**2 + first**2) * noise(shape, kind=Kind.FORWARD)
        out = walk(solver, steps, start, noise, scalar)
        variance, bias = 0.4**2 + first**2, 0.0
        for step in steps:
            variance = closed_form_spread(step, solver, variance)
            if isinstance(solver, EulerMaruyamaVP):
                bias = vp_bias(step, bias)
        # The sampled moments are those of the discrete chain, to within four standard errors.
        assert float(out.std()) == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(2 * n_values))
        assert float(out.mean()) == pytest.approx(0.3 + bias, abs=4 * math.sqrt(variance / n_values))
        errors.append((abs(math.sqrt(variance) - exact), abs(bias)))
    # The chain's moments go to those of the marginal, at first order.
    for coarse, fine, k in [(a, b, k) for a, b in itertools.pairwise(errors) for k in (0, 1)]:
        if coarse[k] > 0:
            assert fine[k] < 0.4 * coarse[k], errors
    assert errors[0][0] > 0.02 * exact, "a coarse walk must be visibly off, or nothing is shown"
    assert errors[-1][0] < 0.05 * exact
    assert errors[-1][1] < 0.01


def vp_bias(step: Step, bias: float) -> float:
    """Mean of the VP chain minus 0.3, after a step: it steps x_t as a whole, whose mean shrinks with the scale."""
    a, b = step.sigma, step.sigma_next
    rate = (0.1 + 19.9 * step.t) * (step.t - step.t_next)
    before, after = 1 / math.sqrt(1 + a**2), 1 / math.sqrt(1 + b**2)
    score = -bias / (before * (0.4**2 + a**2))
    return ((1 + rate / 2) * before * (0.3 + bias) + rate * score) / after - 0.3


def test_law_of_the_stochastic_multistep_solver() -> None:
    """The same start and end in steps of equal length in log sigma: the spread is the marginal's to second order.

    State and estimate before, minus the mean, are a linear chain, whose covariance is known; samples have it.
    """
    schedule, n_values = VP(), 40_000
    first, last = schedule.sigma(0.6), schedule.sigma(0.01)
    noise = Noise(3, images=(0, 1))
    shape = torch.zeros(2, 1, 1, n_values // 2, dtype=torch.float64)
    counts, errors = (16, 32, 64, 128), []
    for n in counts:
        steps = steps_at(schedule, [schedule.t(first * (last / first) ** (k / n)) for k in range(n + 1)])
        covariance = np.array([[0.4**2 + first**2, 0.0], [0.0, 0.0]])
        for k, step in enumerate(steps):
            kept, gain = (step.sigma_next / step.sigma) ** 2, 0.4**2 / (0.4**2 + step.sigma**2)
            share = 0.5 if k else 0.0
            chain = np.array([[kept + (1 - kept) * (1 + share) * gain, -(1 - kept) * share], [gain, 0.0]])
            covariance = chain @ covariance @ chain.T
            covariance[0, 0] += step.sigma_next**2 * (1 - kept)
        errors.append(abs(math.sqrt(covariance[0, 0]) - math.sqrt(0.4**2 + last**2)))
        if n == 16:
            start = 0.3 + math.sqrt(0.4**2 + first**2) * noise(shape, kind=Kind.FORWARD)
            scalar = GaussianDenoiser(MEAN[:, :1, :1], STD[:, :1, :1])
            out = walk(DpmSolverPP(stochastic=True), steps, start, noise, scalar)
            assert float(out.var()) == pytest.approx(covariance[0, 0], rel=4 * math.sqrt(2 / n_values))
            assert float(out.mean()) == pytest.approx(0.3, abs=4 * math.sqrt(covariance[0, 0] / n_values))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(2.0, abs=0.15), errors
