"""Solvers against transcriptions in the papers' scaled coordinates, diffusers and torchsde, over whole walks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchsde
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from depura.diffusion.denoisers import EpsDenoiser
from depura.diffusion.exact import MixtureDenoiser
from depura.diffusion.schedules import (
    VP,
    DiscreteLinear,
    Step,
    TableLabel,
    TimeLabel,
    ddpm_steps,
    karras_steps,
    log_snr_steps,
    steps_at,
    uniform_steps,
)
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
from toys import rand, randn

MEANS = 0.6 * randn(3, 2, 4, 4, seed=1)
SHAPE = (2, 2, 4, 4)
NOISE = Noise(5, images=(3, 8))
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def eps_of(x_t: Tensor, abar: float) -> Tensor:
    """Exact noise prediction for an equal mixture of Gaussians of standard deviation 0.15, in scaled coordinates."""
    variance = abar * 0.15**2 + 1 - abar
    squared = ((x_t[:, None] - math.sqrt(abar) * MEANS) ** 2).sum((2, 3, 4))
    share = torch.softmax(-squared / (2 * variance), dim=1)
    centre = (share[:, :, None, None, None] * MEANS).sum(1)
    return math.sqrt(1 - abar) * (x_t - math.sqrt(abar) * centre) / variance


def network_of(abar: Callable[[float], float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x_t, label: eps_of(x_t, abar(float(label[0])))


def discrete_denoiser(steps: tuple[Step, ...]) -> EpsDenoiser:
    """The label of a discrete network is its index."""
    return EpsDenoiser(network_of(lambda i: float(ABAR[round(i)])), label=TableLabel(steps))


def continuous_abar(t: float) -> float:
    return math.exp(-9.95 * t * t - 0.1 * t)


def continuous_denoiser() -> EpsDenoiser:
    return EpsDenoiser(network_of(lambda label: continuous_abar(label / 999)), label=TimeLabel(VP()))


def walk(solver: Solver, denoiser, steps: tuple[Step, ...], x_t: Tensor) -> list[Tensor]:
    """States of depura's walk, in the scaled coordinates x_t."""
    x, states, following = x_t / steps[0].scale, [], solver
    for step in steps:
        x, x0, _ = following.step(denoiser, x, step, NOISE)
        following = solver.after(Before(x0, step.sigma)) if isinstance(solver, Multistep) else solver
        states.append(step.scale_next * x)
    return states


def draw(k: int) -> Tensor:
    return NOISE(torch.zeros(SHAPE, dtype=torch.float64), kind=Kind.REVERSE, step=k)


def abar_after(index: int) -> float:
    return 1.0 if index < 0 else float(ABAR[index])


def ddpm(x_t: Tensor, index: int, stride: int, z: Tensor) -> Tensor:
    """Ho et al. 2020, algorithm 2 and eq. 7: posterior mean and variance, with betas of the strided chain."""
    abar, before = float(ABAR[index]), abar_after(index - stride)
    alpha = abar / before
    mean = (x_t - (1 - alpha) / math.sqrt(1 - abar) * eps_of(x_t, abar)) / math.sqrt(alpha)
    return mean + math.sqrt((1 - before) / (1 - abar) * (1 - alpha)) * z


def ddim(x_t: Tensor, index: int, stride: int, z: Tensor, eta: float) -> Tensor:
    """Song et al. 2021 (DDIM), eq. 12 and 16."""
    abar, before = float(ABAR[index]), abar_after(index - stride)
    eps = eps_of(x_t, abar)
    sigma = eta * math.sqrt((1 - before) / (1 - abar)) * math.sqrt(1 - abar / before)
    x0 = (x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
    return math.sqrt(before) * x0 + math.sqrt(1 - before - sigma**2) * eps + sigma * z


def large(x_t: Tensor, index: int, stride: int, z: Tensor) -> Tensor:
    """The ancestral mean with the spread of a Brownian motion in sigma^2, scaled: sqrt(abar' (sigma^2 - sigma'^2))."""
    abar, before = float(ABAR[index]), abar_after(index - stride)
    return ddpm(x_t, index, stride, torch.zeros_like(z)) + math.sqrt(before / abar - 1) * z


TRANSCRIPTIONS = [
    pytest.param(Ancestral(), ddpm, id="DDPM"),
    pytest.param(Ancestral(eta=1.0), lambda x, i, s, z: ddim(x, i, s, z, 1.0), id="DDIM eta 1"),
    pytest.param(Ancestral(eta=0.0), lambda x, i, s, z: ddim(x, i, s, z, 0.0), id="DDIM eta 0"),
    pytest.param(Ancestral(eta=0.35), lambda x, i, s, z: ddim(x, i, s, z, 0.35), id="DDIM eta 0.35"),
    pytest.param(Euler(), lambda x, i, s, z: ddim(x, i, s, z, 0.0), id="Euler is DDIM"),
    pytest.param(EulerMaruyama(), large, id="Euler-Maruyama"),
]


@pytest.mark.parametrize(("n_noise", "n_steps"), [(60, 60), (960, 24), (200, 5)])
@pytest.mark.parametrize(("solver", "transcription"), TRANSCRIPTIONS)
def test_discrete_walks(solver: Solver, transcription, n_noise: int, n_steps: int) -> None:
    steps = ddpm_steps(DiscreteLinear(), n_noise=n_noise, n_steps=n_steps)
    stride = n_noise // n_steps
    x_t = math.sqrt(ABAR[n_noise - 1]) * MEANS[:2] + math.sqrt(1 - ABAR[n_noise - 1]) * randn(*SHAPE, seed=2)
    for k, ours in enumerate(walk(solver, discrete_denoiser(steps), steps, x_t)):
        x_t = transcription(x_t, n_noise - 1 - k * stride, stride, draw(k))
        torch.testing.assert_close(ours, x_t, rtol=0, atol=1e-12, msg=lambda m, k=k: f"step {k}: {m}")


def test_last_euler_maruyama_step_adds_noise_and_last_ancestral_step_does_not() -> None:
    steps = ddpm_steps(DiscreteLinear(), n_noise=3)
    x = randn(*SHAPE, seed=3)
    ancestral = Ancestral().step(discrete_denoiser(steps), x, steps[-1], NOISE)
    assert torch.equal(ancestral.x_next, ancestral.x0)
    noisy = EulerMaruyama().step(discrete_denoiser(steps), x, steps[-1], NOISE)
    torch.testing.assert_close(noisy.x_next - noisy.x0, steps[-1].sigma * draw(2), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("t_star", "n"), [(0.1, 100), (0.15, 150), (0.4, 10)])
def test_vp_sde_walk(t_star: float, n: int) -> None:
    """DiffPure's loop: x <- x + h (beta/2 x + beta s) + sqrt(beta h) z, s = -eps / sqrt(1 - abar)."""
    steps = uniform_steps(VP(), t_start=t_star, n_steps=n, t_end=1e-5)
    x = math.sqrt(continuous_abar(t_star)) * MEANS[:2] + randn(*SHAPE, seed=4) * math.sqrt(1 - continuous_abar(t_star))
    times = [t_star - t_star / n * k for k in range(n)] + [1e-5]
    for k, ours in enumerate(walk(EulerMaruyamaVP(), continuous_denoiser(), steps, x)):
        t, h = times[k], times[k] - times[k + 1]
        beta, abar = 0.1 + 19.9 * t, continuous_abar(t)
        score = -eps_of(x, abar) / math.sqrt(1 - abar)
        x = x + h * (beta / 2 * x + beta * score) + math.sqrt(beta * h) * draw(k)
        torch.testing.assert_close(ours, x, rtol=0, atol=1e-11, msg=lambda m, k=k: f"step {k}: {m}")


def test_heun_against_algorithm_1_in_numpy() -> None:
    """Karras et al. 2022, algorithm 1 with sigma(t) = t and s(t) = 1."""
    means, spread = MEANS.numpy(), 0.15

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        squared = ((x[:, None] - means) ** 2).sum((2, 3, 4)) / (2 * (spread**2 + t**2))
        share = np.exp(-(squared - squared.min(1, keepdims=True)))
        centre = np.einsum("bk,kchw->bchw", share / share.sum(1, keepdims=True), means)
        return centre + spread**2 / (spread**2 + t**2) * (x - centre)

    steps = karras_steps(sigma_max=5.0, n_steps=12)
    times = [*((5.0 ** (1 / 7) + np.arange(12) / 11 * (0.002 ** (1 / 7) - 5.0 ** (1 / 7))) ** 7), 0.0]
    x = 5.0 * randn(*SHAPE, seed=5).numpy()
    ours = walk(Heun(), MixtureDenoiser(MEANS, std=spread), steps, torch.from_numpy(x))
    for k, (t, t_next) in enumerate(itertools.pairwise(times)):
        d = (x - denoise(x, t)) / t
        x_next = x + (t_next - t) * d
        if t_next != 0:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (d / 2 + d_next / 2)
        x = x_next
        np.testing.assert_allclose(ours[k].numpy(), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_diffusers_ddim(eta: float) -> None:
    scheduler = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    # diffusers keeps its table in single precision; the same table in double precision
    scheduler.alphas_cumprod = torch.from_numpy(ABAR)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(50)
    x_t = randn(*SHAPE, seed=6)
    steps = ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=50)
    ours = walk(Ancestral(eta), discrete_denoiser(steps), steps, x_t)
    for k, t in enumerate(scheduler.timesteps.tolist()):
        eps = eps_of(x_t, float(ABAR[t]))
        x_t = scheduler.step(eps, t, x_t, eta=eta, variance_noise=draw(k) if eta else None).prev_sample
        torch.testing.assert_close(ours[k], x_t, rtol=0, atol=1e-12, msg=lambda m, t=t: f"index {t}: {m}")


def test_diffusers_ddpm(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type="fixed_small")
    scheduler.alphas_cumprod = torch.from_numpy(ABAR)
    scheduler.one = torch.ones((), dtype=torch.float64)
    x_t = math.sqrt(ABAR[59]) * MEANS[:2] + math.sqrt(1 - ABAR[59]) * randn(*SHAPE, seed=7)
    steps = ddpm_steps(DiscreteLinear(), n_noise=60)
    ours = walk(Ancestral(), discrete_denoiser(steps), steps, x_t)
    for k, t in enumerate(range(59, -1, -1)):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, k=k, **kwargs: draw(k))
        x_t = scheduler.step(eps_of(x_t, float(ABAR[t])), t, x_t).prev_sample
        torch.testing.assert_close(ours[k], x_t, rtol=0, atol=1e-12, msg=lambda m, t=t: f"index {t}: {m}")


def multistep(x_t: Tensor, abars: list[float], z: Callable[[int], Tensor], *, stochastic: bool) -> list[Tensor]:
    """Lu et al. 2022, algorithm 2 and its SDE counterpart, in alpha, sigma and lambda of the scaled coordinates."""
    alphas, sigmas = [math.sqrt(a) for a in abars], [math.sqrt(1 - a) for a in abars]
    lambdas = [math.log(a / s) if s > 0 else math.inf for a, s in zip(alphas, sigmas, strict=True)]
    states, predictions = [], []
    for i in range(1, len(abars)):
        eps = eps_of(x_t, abars[i - 1])
        predictions.append((x_t - sigmas[i - 1] * eps) / alphas[i - 1])
        d, h = predictions[-1], lambdas[i] - lambdas[i - 1]
        if i > 1 and sigmas[i] > 0:
            r = (lambdas[i - 1] - lambdas[i - 2]) / h
            d = (1 + 1 / (2 * r)) * predictions[-1] - 1 / (2 * r) * predictions[-2]
        shrink = sigmas[i] / sigmas[i - 1]
        if stochastic:
            fresh = sigmas[i] * math.sqrt(-math.expm1(-2 * h))
            x_t = shrink * math.exp(-h) * x_t - alphas[i] * math.expm1(-2 * h) * d + fresh * z(i - 1)
        else:
            x_t = shrink * x_t - alphas[i] * math.expm1(-h) * d
        states.append(x_t)
    return states


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("grid", ["uniform", "uniform to 0", "log SNR", "stretched"])
def test_dpm_solver_pp_in_the_papers_coordinates(grid: str, stochastic: bool) -> None:
    steps = {
        "uniform": uniform_steps(VP(), t_start=0.3, n_steps=7, t_end=1e-3),
        "uniform to 0": uniform_steps(VP(), t_start=0.3, n_steps=7),
        "log SNR": log_snr_steps(VP(), t_start=0.3, n_steps=7),
        "stretched": steps_at(VP(), [0.9, 0.5, 0.4, 0.39, 0.1, 0.05, 0.04]),
    }[grid]
    x_t = steps[0].scale * MEANS[:2] + math.sqrt(1 - steps[0].scale ** 2) * randn(*SHAPE, seed=10)
    abars = [continuous_abar(s.t) for s in steps] + [continuous_abar(steps[-1].t_next)]
    theirs = multistep(x_t, abars, draw, stochastic=stochastic)
    for k, ours in enumerate(walk(DpmSolverPP(stochastic), continuous_denoiser(), steps, x_t)):
        torch.testing.assert_close(ours, theirs[k], rtol=0, atol=1e-11, msg=lambda m, k=k: f"step {k}: {m}")


def diffusers_multistep(*, stochastic: bool, clean: bool, final: bool, n_steps: int) -> DPMSolverMultistepScheduler:
    """Second-order midpoint, every n-th index; `final`: its own first-order last step where there are few."""
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=final,
        final_sigmas_type="zero" if clean else "sigma_min",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(n_steps)
    return scheduler


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("n_steps", [5, 20])
def test_diffusers_multistep(n_steps: int, clean: bool, stochastic: bool) -> None:
    """To noise level 0 diffusers' last step is of first order, as ours; above 0 with lower_order_final off ours again.

    Its own loop decides on the orders, in single precision; its two updates are asked again in double precision.
    """
    scheduler = diffusers_multistep(stochastic=stochastic, clean=clean, final=clean, n_steps=n_steps)
    indices = scheduler.timesteps.tolist()
    levels = [math.sqrt((1 - ABAR[i]) / ABAR[i]) for i in indices]
    last = 0.0 if clean else math.sqrt((1 - ABAR[0]) / ABAR[0])
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*levels, last], rtol=2e-4)
    end = [-1.0] if clean else [0.0]
    steps = steps_at(DiscreteLinear(), [float(i) for i in indices] + end)
    x_t = single = randn(*SHAPE, seed=11)
    ours = walk(DpmSolverPP(stochastic), discrete_denoiser(steps), steps, x_t)
    for k, i in enumerate(indices):
        eps = eps_of(single, float(ABAR[i]))
        single = scheduler.step(eps, i, single, variance_noise=draw(k)).prev_sample
        torch.testing.assert_close(ours[k], single.double(), rtol=0, atol=2e-4, msg=lambda m, i=i: f"index {i}: {m}")
    scheduler.sigmas = torch.tensor([*levels, last], dtype=torch.float64)
    estimates: list[Tensor] = []
    for k, i in enumerate(indices):
        scheduler._step_index = k
        estimates.append(scheduler.convert_model_output(eps_of(x_t, float(ABAR[i])), sample=x_t))
        noise = draw(k) if stochastic else None
        if k == 0 or (clean and k == n_steps - 1):
            x_t = scheduler.dpm_solver_first_order_update(estimates[-1], sample=x_t, noise=noise)
        else:
            x_t = scheduler.multistep_dpm_solver_second_order_update(estimates, sample=x_t, noise=noise)
        torch.testing.assert_close(ours[k], x_t, rtol=0, atol=1e-11, msg=lambda m, i=i: f"index {i}: {m}")


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("stochastic", [False, True])
def test_diffusers_lower_order_final_differs_in_the_last_step_only(stochastic: bool) -> None:
    """With few steps diffusers takes the last one to a level above 0 at first order; depura at second."""
    scheduler = diffusers_multistep(stochastic=stochastic, clean=False, final=True, n_steps=5)
    indices = scheduler.timesteps.tolist()
    steps = steps_at(DiscreteLinear(), [float(i) for i in indices] + [0.0])
    x_t = randn(*SHAPE, seed=11)
    ours = walk(DpmSolverPP(stochastic), discrete_denoiser(steps), steps, x_t)
    for k, i in enumerate(indices):
        x_t = scheduler.step(eps_of(x_t, float(ABAR[i])), i, x_t, variance_noise=draw(k)).prev_sample
        gap = float((ours[k] - x_t).abs().max())
        assert gap > 1e-2 if k == 4 else gap < 2e-4, f"index {i}"


def test_dpm_solver_pp_starts_as_the_solver_of_first_order() -> None:
    steps = uniform_steps(VP(), t_start=0.3, n_steps=3)
    x = randn(*SHAPE, seed=12)
    for solver, first in ((DpmSolverPP(), Euler()), (DpmSolverPP(stochastic=True), Ancestral())):
        assert isinstance(solver, Multistep)
        assert not isinstance(first, Multistep)
        ours, theirs = (s.step(continuous_denoiser(), x, steps[0], NOISE) for s in (solver, first))
        torch.testing.assert_close(ours.x_next, theirs.x_next, rtol=0, atol=1e-14)
        assert ours.variance == pytest.approx(theirs.variance, rel=1e-14)
        clean = solver.after(Before(x, steps[1].sigma)).step(continuous_denoiser(), x, steps[2], NOISE)
        assert torch.equal(clean.x_next, clean.x0)
        assert clean.variance == 0


class ReverseVP(torch.nn.Module):
    """The reverse VP-SDE in time 1 - t, for torchsde."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, clock: Tensor, y: Tensor) -> Tensor:
        t = 1 - float(clock)
        beta, abar = 0.1 + 19.9 * t, continuous_abar(t)
        x = y.reshape(SHAPE)
        return (beta / 2 * x - beta * eps_of(x, abar) / math.sqrt(1 - abar)).reshape(y.shape)

    def g(self, clock: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, math.sqrt(0.1 + 19.9 * (1 - float(clock))))


class KnownPath:
    """A Brownian path whose increments are the draws, asked for in order."""

    levy_area_approximation = "none"

    def __init__(self) -> None:
        self.shape = (SHAPE[0], math.prod(SHAPE[1:]))
        self.asked = 0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        self.asked += 1
        return math.sqrt(float(b - a)) * draw(self.asked - 1).reshape(self.shape)


@pytest.mark.parametrize(("t_star", "n"), [(0.075, 75), (0.1, 100)])
def test_torchsde(t_star: float, n: int) -> None:
    x_t = math.sqrt(continuous_abar(t_star)) * MEANS[:2] + 0.3 * randn(*SHAPE, seed=8)
    path = KnownPath()
    clock = torch.tensor([1 - t_star, 1 - 1e-5], dtype=torch.float64)
    theirs = torchsde.sdeint(ReverseVP(), x_t.flatten(1), clock, bm=path, method="euler", dt=1e-3)[-1].reshape(SHAPE)
    ours = walk(
        EulerMaruyamaVP(), continuous_denoiser(), uniform_steps(VP(), t_start=t_star, n_steps=n, t_end=1e-5), x_t
    )
    assert path.asked == n
    torch.testing.assert_close(ours[-1], theirs, rtol=0, atol=1e-10)


def test_deterministic_solvers_draw_nothing() -> None:
    class NoDraws:
        def __call__(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
            raise AssertionError("a deterministic solver drew noise")

    steps = karras_steps(sigma_max=2.0, n_steps=4)
    x = rand(*SHAPE, seed=9)
    for solver in (Euler(), Heun(), Ancestral(eta=0.0), DpmSolverPP()):
        for step in steps:
            for at in (solver, solver.after(Before(x, 2 * step.sigma)) if isinstance(solver, Multistep) else solver):
                at.step(MixtureDenoiser(MEANS, std=0.2), x, step, NoDraws())  # type: ignore[arg-type]
