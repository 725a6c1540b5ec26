"""Every published setting against its transcription in the paper's coordinates, with the same noise.

The table of settings is tests/cases.py, the transcriptions are in tests/transcriptions.py; gradients are in
test_preset_gradients.py. Acceptance tests that run over all methods are here as well: results do not depend on the
batch (J4), no purifier touches a global generator or keeps weights that require a gradient (J11).
"""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import transcriptions as by_hand
from cases import CASES, DEPTHS, EDM, EPS, EPS_TIME, NET, NFE, told
from checks import largest
from depura.defence import Defence, Vote
from depura.diffusion.guidance import State
from depura.diffusion.schedules import VP
from depura.diffusion.solvers import EulerMaruyamaVP
from depura.image_ops import minus_mse, ssim
from depura.methods import diffpure, gradual, likelihood
from depura.methods.mimicdiffusion import mimicdiffusion
from depura.noise import Kind, Noise
from depura.purifiers.purifier import DiffusionPurifier
from toys import TanhClassifier, rand

NOISE = Noise(7, images=(3, 9), draws=(0, 1))
ONE_DRAW = Noise(7, images=(3, 9))
GUIDED = [name for name in CASES if name.split("_")[0].rstrip(",") in ("gdmp", "agdm", "mimic") or "ldsde" in name]


def images(size: int, n: int = 2, *, seed: int = 1) -> Tensor:
    return rand(n, 1, size, size, seed=seed)


@pytest.mark.parametrize("name", CASES)
def test_a_preset_equals_its_transcription(name: str) -> None:
    case = CASES[name]
    x = images(case.size)
    expected = case.transcription(x.clone().requires_grad_(), NOISE).detach()
    ours = case.purifier(x, NOISE)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-10)
    assert largest(ours, x) > 1e-2, "a purifier that does nothing would agree with many mistakes"


@pytest.mark.parametrize("name", GUIDED)
def test_the_guidance_of_a_preset_is_not_lost_in_its_tolerance(name: str) -> None:
    case = CASES[name]
    x = images(case.size)
    assert largest(case.purifier(x, NOISE), case.purifier.with_(guidance=None)(x, NOISE)) > 1e-5


class Counting(nn.Module):
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: nn.Module, calls: list[float]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.calls = calls

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        self.calls.append(sigma)
        return self.denoiser(x, sigma)


@pytest.mark.parametrize("name", NFE)
def test_a_preset_costs_as_many_evaluations_as_published(name: str) -> None:
    calls: list[float] = []
    with torch.no_grad():
        CASES[name].purifier.over(lambda denoiser: Counting(denoiser, calls))(images(CASES[name].size), ONE_DRAW)
    assert len(calls) == NFE[name]


# --- over all methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_j4_the_result_of_an_image_does_not_depend_on_its_batch(name: str) -> None:
    case = CASES[name]
    x, noise = images(case.size, 4), Noise(7, images=(3, 9, 3, 5), draws=(0, 1, 2, 0))
    together = case.purifier(x, noise)
    for rows in ([2, 0], [1]):
        part = case.purifier(x[rows], noise.take(rows))
        torch.testing.assert_close(part, together[rows], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_j11_global_generators_and_weights_are_left_alone(name: str) -> None:
    def states() -> tuple[bytes, str, str]:
        return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())

    case = CASES[name]
    before = states()
    x = images(case.size).requires_grad_()
    case.purifier(x, NOISE).sum().backward()
    assert states() == before
    assert not any(weight.requires_grad for weight in case.purifier.parameters())
    assert all(weight.grad is None for weight in case.purifier.parameters())


# --- details of single methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", range(4))
def test_a_random_t_star_is_where_noising_and_walk_both_start(row: int) -> None:
    """Each row equals plain DiffPure at exactly one of the thirty t*, and differs from all others."""
    noise = Noise(5, images=(1, 2, 3, 4), draws=(0, 0, 7, 8))
    x = images(4, 4)
    out = diffpure.diffpure_random(EPS_TIME, n_steps=10)(x, noise)
    stars = [k / 1000 for k in range(85, 115)]
    plain = [by_hand.diffpure(told(NET), x[[row]], noise.take([row]), t_star=t, n=10) for t in stars]
    errors = sorted(largest(out[[row]], other) for other in plain)
    assert errors[0] <= 1e-10
    assert errors[1] > 1e-4


def test_random_t_stars_are_uniform_over_thirty_thousandths() -> None:
    """Chi-square with 29 degrees of freedom, and as likely for draws of one image as for images."""
    sigmas: list[tuple[float, int]] = []

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        sigmas.append((sigma, len(x)))
        return x

    purifier = diffpure.diffpure_random(denoiser, n_steps=1)
    n = 3000
    for noise in (Noise(1, images=tuple(range(n))), Noise(1, images=(4,) * n, draws=tuple(range(n)))):
        sigmas.clear()
        purifier(torch.full((n, 1, 1, 1), 0.5, dtype=torch.float64), noise)
        counts = Counter({round(1000 * VP().t(sigma)): rows for sigma, rows in sigmas})
        assert sorted(counts) == list(range(85, 115))
        assert sum((c - n / 30) ** 2 / (n / 30) for c in counts.values()) < 58, "one in a thousand beyond that"


def test_the_gradual_schedule_votes_over_ten() -> None:
    classifier = TanhClassifier(16, seed=3)
    x, noise = 0.4 + 0.2 * images(4, 6), Noise(2, images=tuple(range(6)))
    scores = Defence(gradual.gradual(EPS, depths=gradual.SVHN), classifier, rule=Vote(gradual.N_VOTES))(x, noise)
    paths = by_hand.gradual(told(NET), x.repeat_interleave(10, dim=0), noise.split(10), schedule=DEPTHS["SVHN"])
    labels = classifier(paths).argmax(1).reshape(6, 10)
    shares = torch.stack([(labels == k).sum(1) for k in range(3)], dim=1)
    assert gradual.N_VOTES == 10
    assert int((shares.max(1).values < 10).sum()) > 0, "not all of one mind"
    assert all(shares[b, scores[b].argmax()] == shares[b].max() for b in range(6))


def test_similarities_are_one_number_per_image() -> None:
    """A mean over the batch has the same gradient once it is summed, so that the settings above do not show it."""
    a, b = images(8, 3), images(8, 3, seed=2)
    torch.testing.assert_close(minus_mse(a, b), -by_hand.mse(a, b), rtol=1e-12, atol=0)
    torch.testing.assert_close(ssim(a, b), by_hand.ssim(a, b), rtol=0, atol=1e-12)


def test_likelihood_steps_are_those_of_torchs_adam() -> None:
    """Image by image on the mean loss, and as a batch on the sum of the images' losses: Adam sees single entries."""
    x, noise = images(4), Noise(7, images=(3, 9))
    for rows in ([0], [1], [0, 1]):
        tape, z = noise.take(rows), (2 * x[rows] - 1).requires_grad_()
        optimiser = torch.optim.Adam([z], lr=0.1)
        for k in range(5):
            sigma = by_hand.level(noise, 0, k)
            optimiser.zero_grad()
            n = tape(z.detach(), kind=Kind.REVERSE, step=k)
            (EDM(z + sigma * n, sigma) - z).square().mean((1, 2, 3)).sum().backward()
            optimiser.step()
        expected = ((z.detach() + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(likelihood.likelihood(EDM)(x[rows], tape), expected, rtol=0, atol=1e-10)


def test_noise_levels_of_the_likelihood_are_uniform_fresh_in_each_step_and_one_for_each_draw() -> None:
    purifier = likelihood.likelihood(EDM, n_steps=40)
    calls: list[float] = []
    counted = purifier.over(lambda denoiser: Counting(denoiser, calls))
    counted(images(4, 6), Noise(1, images=tuple(range(6))))
    assert len(set(calls)) == len(calls) == 40, "images of one draw share a call"
    calls.clear()
    counted(images(4, 20), Noise(1, images=(5,) * 20, draws=tuple(range(20))))
    assert len(set(calls)) == 800
    assert 0.4 < min(calls) < 0.402 < 0.598 < max(calls) < 0.6
    assert np.mean(calls) == pytest.approx(0.5, abs=4 * 0.2 / math.sqrt(12 * 800))


@pytest.mark.parametrize("released", [False, True])
def test_mimicdiffusion_step_by_step_at_its_published_strength(released: bool) -> None:
    """The guided walk is chaotic, so each step is compared from depura's own state: to 1e-10 of the state's size."""
    x, kappa = images(4), 6000 / (16 * 16)
    ref = 2 * x - 1
    walk = list(mimicdiffusion(EPS, released=released).trajectory(x, NOISE))
    assert [m.step.t for m in walk] == [999 - 10 * c for c in range(100)]
    for m, (k, i, a, b) in zip(walk, by_hand.pairs(range(999, -1, -10), by_hand.ABAR), strict=True):
        x_t = (math.sqrt(a) * m.x).requires_grad_()
        z = NOISE(ref, kind=Kind.REVERSE, step=k)
        x_next = by_hand.mimic_step(told(NET), x_t, ref, z, (i, a, b), kappa=kappa, released=released)
        ours = math.sqrt(b) * m.x_next
        assert largest(ours, x_next.detach()) <= 1e-10 * max(1.0, float(ours.abs().max()))
    assert largest(walk[0].x * math.sqrt(by_hand.ABAR[999]), NOISE(ref, kind=Kind.FORWARD)) <= 1e-12, "N(0, I)"


@pytest.mark.parametrize("solver", [EulerMaruyamaVP()], ids=lambda s: type(s).__name__)
def test_guidance_of_a_reverse_sde_is_told_the_variance_of_its_noise(solver: EulerMaruyamaVP) -> None:
    """beta h in x_t, so that DDPM's mean shift and an addition to the score are one and the same."""
    seen: list[State] = []

    def guidance(at: State) -> Tensor:
        seen.append(at)
        return torch.zeros_like(at.x)

    purifier = diffpure.diffpure(EPS_TIME, t_star=0.07, n_steps=70)
    DiffusionPurifier(EPS_TIME, steps=purifier.steps, solver=solver, guidance=guidance)(images(4), NOISE)
    for at in seen:
        rate = (0.1 + 19.9 * at.step.t) * (at.step.t - at.step.t_next)
        assert at.variance * at.step.scale_next**2 == pytest.approx(rate, rel=1e-12)
