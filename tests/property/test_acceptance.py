"""Statements about methods that the papers and their codes make or break, each with its number.

J1 levels and clocks: tests/unit/test_schedules.py (tables, inverses), the labels here. J2 kernels: here, and whole
walks in tests/reference/test_solvers.py. J3 the SDE on a Gaussian: test_convergence.py, its numbers of steps in
tests/unit/test_schedules.py. J4 batches and J11 global state, over all methods: tests/reference/test_presets.py. J5
MimicDiffusion's signs: here, and its gradients in tests/reference/test_preset_gradients.py, as are those of J6, all
methods'. J7 the adjoint, J8 the bridge, J9 indices of smoothing and J12 GDMP's strength: here.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from checks import largest
from depura.diffusion.denoisers import EpsDenoiser, EpsVarianceDenoiser
from depura.diffusion.exact import MixtureDenoiser
from depura.diffusion.guidance import State
from depura.diffusion.schedules import VP, Cosine, DiscreteLinear, IndexLabel, Step, TimeLabel
from depura.diffusion.solvers import Ancestral, AncestralLarge, AncestralLearned, Euler, EulerMaruyama, Solver
from depura.gradients import Adjoint, StoredState
from depura.image_ops import Blurred, Upsampled
from depura.methods.adbm import bridge, bridge_weight
from depura.methods.diffpure import diffpure
from depura.methods.gdmp import gdmp
from depura.methods.mimicdiffusion import Mimic, constant, mimicdiffusion, through_network, unprojected
from depura.methods.smoothing import smoothing_index
from depura.noise import Kind, Noise
from toys import rand, randn, tanh_eps

NOISE = Noise(3, images=(4, 8))


@pytest.mark.parametrize("i", [0, 9, 99, 499, 999])
def test_j1_a_continuous_network_is_told_0_999_times_i_plus_1_where_a_discrete_one_is_told_i(i: int) -> None:
    assert TimeLabel(VP())(VP().sigma((i + 1) / 1000)) == pytest.approx(0.999 * (i + 1), rel=1e-12)
    assert IndexLabel(DiscreteLinear())(DiscreteLinear().sigma(float(i))) == i


# --- J2: kernels in x_t and in x --------------------------------------------------------------------------------------


def random_step(seed: int) -> tuple[Step, float, float]:
    """A step between two random levels of a variance-preserving process, with abar before and after."""
    drawn = random.Random(seed)
    a, b = sorted(drawn.uniform(0.001, 0.999) for _ in range(2))
    sigma, after = (math.sqrt((1 - v) / v) for v in (a, b))
    return Step(seed, 1.0, 0.0, sigma, after, math.sqrt(a), math.sqrt(b), 0.0), a, b


def kernels(a: float, b: float, share: Tensor) -> dict[str, tuple[Solver, Tensor | float, float]]:
    """Solvers, the variances of their noise in x_t, and by how much of it the mean keeps the predicted noise."""
    beta = 1 - a / b
    small = beta * (1 - b) / (1 - a)
    learned = torch.exp(share * math.log(beta) + (1 - share) * math.log(small))
    return {
        "DDPM": (Ancestral(), small, small),
        "DDIM, eta 0.3": (Ancestral(0.3), 0.09 * small, 0.09 * small),
        "DDIM": (Euler(), 0.0, 0.0),
        "large": (AncestralLarge(), beta, small),
        "learned": (AncestralLearned(), learned, small),
        "Euler-Maruyama": (EulerMaruyama(), b * ((1 - a) / a - (1 - b) / b), small),
    }


@pytest.mark.parametrize("name", kernels(0.2, 0.5, torch.zeros(1)))
@pytest.mark.parametrize("seed", range(8))
def test_j2_kernels_agree_in_both_coordinates(name: str, seed: int) -> None:
    """DDIM's eq. 12 with the part of the noise that is drawn afresh, and for the ancestral ones DDPM's eq. 7."""
    step, a, b = random_step(seed)
    x_t, eps, v = (randn(2, 1, 4, 4, seed=10 * seed + k) for k in range(3))
    v = torch.tanh(v)
    solver, variance, fresh = kernels(a, b, (v + 1) / 2)[name]
    x0 = (x_t - math.sqrt(1 - a) * eps) / math.sqrt(a)
    mean = math.sqrt(b) * x0 + math.sqrt(1 - b - fresh) * eps
    if fresh == kernels(a, b, v)["DDPM"][2]:
        beta = 1 - a / b
        posterior = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x_t
        assert largest(posterior, mean) <= 1e-10, "DDIM of eta 1 is DDPM"
    z = NOISE(x_t, kind=Kind.REVERSE, step=seed)
    adapter = EpsVarianceDenoiser if name == "learned" else EpsDenoiser
    denoiser = adapter(lambda x, label: torch.cat([eps, v], dim=1), label=lambda sigma: 0.0)
    result = solver.step(denoiser, x_t / step.scale, step, NOISE)
    spread = torch.as_tensor(variance, dtype=torch.float64).broadcast_to(x_t.shape)
    torch.testing.assert_close(step.scale_next * result.x_next, mean + spread.sqrt() * z, rtol=0, atol=1e-10)
    told = torch.as_tensor(result.variance, dtype=torch.float64) * step.scale_next**2
    torch.testing.assert_close(told.broadcast_to(x_t.shape), spread, rtol=1e-9, atol=1e-15)


# --- J5: MimicDiffusion -----------------------------------------------------------------------------------------------


def mimic_state(size: int, batch: int, *, index: float = 499.0, channels: int = 3) -> State:
    """A state of the default walk, with the estimate of a network."""
    step = next(s for s in mimicdiffusion(tanh_eps(channels)).steps if s.t == index)
    x = (3 * step.sigma * randn(batch, channels, size, size, seed=1)).requires_grad_()
    x_in = 2 * rand(batch, channels, size, size, seed=2) - 1
    return State(x, tanh_eps(channels)(x, step.sigma), x_in, step, Noise(0, images=tuple(range(batch))))


@pytest.mark.parametrize("jacobian", [constant, through_network])
def test_j5_nearest_up_sampling_repeats_the_plain_term_and_other_projections_do_not(jacobian) -> None:
    at = mimic_state(8, 2)
    nearest, plain, alone = (
        Mimic(jacobian, projection)(at).detach() for projection in (Upsampled("nearest"), unprojected, None)
    )
    scale = float(plain.abs().max())
    assert largest(nearest, plain) <= 1e-12 * scale
    assert largest(plain, 2 * alone) <= 1e-12 * scale
    for other in (Upsampled("bilinear"), Upsampled("bicubic"), Blurred(1.0)):
        assert largest(Mimic(jacobian, other)(at).detach(), plain) > 0.1 * scale


def test_j5_linear_interpolation_is_a_majority_of_signs_at_a_cosine_of_0_78() -> None:
    v = randn(1, 1, 64, 64, seed=3).requires_grad_()
    (signs,) = torch.autograd.grad(Upsampled("bilinear")(v).abs().sum() / 16, v)
    assert float(torch.cosine_similarity(signs.flatten(), v.sign().flatten(), dim=0).detach()) == pytest.approx(
        0.78, abs=0.01
    )


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("index", [789.0, 499.0, 109.0])
def test_j5_the_released_guidance_is_a_step_of_0_3662_in_x_t_whatever_the_batch(index: float, batch: int) -> None:
    """The state after a guided step less that of an unguided one, at 32 x 32."""
    at = mimic_state(32, batch, index=index)
    purifier = mimicdiffusion(tanh_eps(3), released=True, batch_ref=16)
    x = at.x.detach()
    guided, plain = (
        p.advance((x,), at.x_in, at.step, at.noise)[0][0] for p in (purifier, purifier.with_(guidance=None))
    )
    moved = at.step.scale_next * (guided - plain)
    assert round(float(moved.abs().min()), 4) == round(float(moved.abs().max()), 4) == 0.3662
    assert torch.equal(moved.sign(), -(at.x0 - at.x_in).sign())
    assert Mimic(constant, unprojected).strength(32, 32) == pytest.approx(6000 / (16 * 32 * 32), rel=1e-15)


@pytest.mark.parametrize("index", [999.0, 799.0, 99.0, 9.0])
def test_j5_steps_outside_the_window_are_not_guided(index: float) -> None:
    assert not Mimic(constant, unprojected)(mimic_state(8, 1, index=index)).any()


def test_j5_where_the_estimate_is_farther_than_the_perturbation_the_guidance_does_not_see_it() -> None:
    """The long-range lemma, on random vectors; nearer than that, some signs flip."""
    at, eps = mimic_state(32, 4, channels=1), 2 * 8 / 255
    delta = eps * (2 * rand(*at.x_in.shape, seed=4) - 1)
    near = at._replace(x0=at.x_in + 4 * eps * randn(*at.x_in.shape, seed=5))
    near.x0.requires_grad_()
    clean, perturbed = (Mimic(constant, None)(near._replace(x_in=x)) for x in (at.x_in, at.x_in + delta))
    far = (near.x0 - at.x_in - delta).abs() > eps
    assert torch.equal(clean[far], perturbed[far])
    assert 0.01 < float((clean[~far] != perturbed[~far]).double().mean()) < 1


# --- J7: the adjoint --------------------------------------------------------------------------------------------------


def test_j7_the_adjoint_is_right_on_smooth_densities_and_wrong_on_sharp_ones() -> None:
    """Ten Gaussians in 48 dimensions, DiffPure at t* = 0.1: cosine near 1 at std 0.05, lost at 0.01."""
    means, cosines = 2 * rand(10, 3, 4, 4, seed=1) - 1, {}
    noise, weights = Noise(1, images=tuple(range(8))), randn(8, 3, 4, 4, seed=2)
    for std in (0.05, 0.01):
        x = ((means[:8] + std * randn(8, 3, 4, 4, seed=3) + 1) / 2).clamp(0, 1)
        found = []
        for route in (StoredState(), Adjoint()):
            leaf = x.clone().requires_grad_()
            purified = diffpure(MixtureDenoiser(means, std=std), gradient=route)(leaf, noise)
            found.append(torch.autograd.grad((purified * weights).sum(), leaf)[0].flatten(1))
        cosines[std] = torch.cosine_similarity(*found, dim=1)
    assert float(cosines[0.05].min()) > 0.999
    assert float(cosines[0.01].median()) < 0.9


# --- J8: ADBM ---------------------------------------------------------------------------------------------------------


def test_j8_a_bridge_leads_from_the_adversarial_image_to_the_clean_one() -> None:
    """k_T = sqrt(abar_T), k_0 = 0; the estimate of x0 by the training target is the clean image, at every t."""
    x0, delta, z = (randn(2, 3, 4, 4, seed=k) for k in range(3))
    for t_end in (0.1, 0.15, 0.2):
        end = VP().scale(t_end) ** 2
        assert bridge_weight(end, end) == pytest.approx(math.sqrt(end), rel=1e-14)
        assert bridge_weight(1.0, end) == 0
        for t in (1e-5, 0.01, 0.07, t_end):
            abar = VP().scale(t) ** 2
            x_t, target = bridge(x0, delta, z, abar=abar, abar_end=end)
            estimate = (x_t - math.sqrt(1 - abar) * target) / math.sqrt(abar)
            torch.testing.assert_close(estimate, x0, rtol=0, atol=1e-12)
        x_t, _ = bridge(x0, delta, z, abar=end, abar_end=end)
        adversarial = math.sqrt(end) * (x0 + delta) + math.sqrt(1 - end) * z
        torch.testing.assert_close(x_t, adversarial, rtol=0, atol=1e-12)


# --- J9: indices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "indices"), [(DiscreteLinear(), [145, 259, 396]), (Cosine(4000), [1158, 1984, 2809])], ids=str
)
def test_j9_indices_of_denoised_smoothing(schedule, indices: list[int]) -> None:
    assert [smoothing_index(std, schedule) for std in (0.25, 0.5, 1.0)] == indices


# --- J12: GDMP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "percent"), [(100, 2.6), (20, 12), (1, 94)])
def test_j12_how_far_gdmp_pulls_to_the_input_in_one_round(batch: int, percent: float) -> None:
    """Measured on the guidance's displacements at 3 x 32 x 32, over the steps of a round: 1 - prod(1 - a_i)."""
    purifier = gdmp(tanh_eps(3), batch_ref=batch)
    assert purifier.guidance is not None
    x_in, noise = 2 * rand(1, 3, 32, 32, seed=1) - 1, Noise(2, images=(6,))
    kept, shares = 1.0, {}
    for step in purifier.steps:
        x = (x_in + step.sigma * randn(1, 3, 32, 32, seed=step.index)).requires_grad_()
        _, x0, variance = purifier.solver.step(purifier.denoise, x, step, noise)
        moved = step.scale_next * purifier.guidance(State(x, x0, x_in, step, noise, variance)).detach()
        target = step.scale * (x_in + step.sigma * noise(x_in, kind=Kind.GUIDANCE, step=step.index))
        way = target - step.scale * x.detach()
        share = float((moved * way).sum() / way.square().sum())
        assert largest(moved, share * way) <= 1e-12 * float(way.abs().max()), "straight to the noised input"
        shares[int(step.t)] = share
        kept *= 1 - share
    assert 100 * (1 - kept) == pytest.approx(percent, abs=0.5 * 10.0 ** -(batch == 100))
    if batch == 100:
        assert [shares[i] for i in (35, 20, 10)] == pytest.approx([1.9e-3, 7.4e-4, 2.6e-4], rel=0.03)
        assert shares[0] == pytest.approx(1e-5, rel=0.5)
