"""Known bugs of purification gradients, each written down small: the check that passes honest code must flag it.

Every test measures an honest version and the bug with the same function, most of them in checks.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from checks import (
    coordinate_error,
    directional_errors,
    grad_mode_error,
    grid_mismatches,
    largest,
    merged,
    relative,
    replay_error,
    split_error,
)
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.defence import Defence
from depura.diffusion.denoisers import EpsDenoiser
from depura.diffusion.guidance import State, minus_gradient
from depura.diffusion.schedules import VP, Step, TruncatedLabel, uniform_steps
from depura.diffusion.solvers import Ancestral, EulerMaruyamaVP, from_noise
from depura.gradients import Adjoint, Direct, Relaxed, StoredState
from depura.noise import Kind, Noise
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import GradientMode
from mutants import MixedStates, Private, Relabelled, Rewound, accumulated, batch_mean
from toys import (
    NOISE,
    Jittered,
    TanhClassifier,
    TanhNet,
    Toward,
    V,
    X,
    numerical,
    purifier_of,
    randn,
    tanh_eps,
    value_and_gradient,
)

WRONG = 1e-3
"""What counts as wrong: four orders above what the checks let pass."""


# --- a plain stored-state walk, with seams ----------------------------------------------------------------------------


@pytest.mark.parametrize("guided", ["unguided", "toward", "toward noised", "toward from noise"])
def test_the_walk_with_seams_is_exact_without_bugs(guided: str) -> None:
    purifier = purifier_of("Ancestral", guided, gradient=Rewound())
    assert coordinate_error(purifier) <= 1e-7
    assert replay_error(purifier) == 0
    assert grid_mismatches(purifier) == 0


def test_a_step_that_is_half_detached_is_noticed() -> None:
    """The smallest slip: part of one step's Jacobian."""

    def half(advance, x: Tensor, x_in: Tensor, step: Step) -> Tensor:
        return advance((0.5 * (x + x.detach()) if step.index == 2 else x,), x_in, step)[0]

    for guided in ("unguided", "toward"):
        assert coordinate_error(purifier_of("Ancestral", guided, gradient=Rewound(again=half))) > WRONG


def test_a_detaching_denoiser_is_noticed_by_finite_differences_only() -> None:
    """Every route through automatic differentiation sees the same wrong Jacobian."""
    purifier, inner = purifier_of("Ancestral"), tanh_eps()
    broken = purifier.with_(denoiser=lambda x, sigma: inner(x.detach(), sigma))
    _, stored = value_and_gradient(broken)
    assert largest(stored, value_and_gradient(broken.with_(gradient=Direct()))[1]) <= 1e-12
    assert largest(stored, numerical(broken)) > WRONG


# --- B1: the adjoint as if it were exact ------------------------------------------------------------------------------


def test_b1_adjoint_is_not_exact() -> None:
    """B1: in DiffPure's setting (t* = 0.1) with steps of 0.01, its values are right and its gradient is not."""
    steps = uniform_steps(VP(), t_start=0.1, n_steps=10, t_end=1e-3)
    honest = purifier_of("EulerMaruyamaVP", steps=steps, gradient=StoredState(1))
    bug = honest.with_(gradient=Relabelled())
    assert torch.equal(honest(X, NOISE), bug(X, NOISE))
    assert coordinate_error(honest) <= 1e-7
    assert coordinate_error(bug) > WRONG
    assert float(directional_errors(honest, value_and_gradient(honest)[1], (1e-5,)).max()) <= 1e-6
    assert float(directional_errors(bug, value_and_gradient(bug)[1], (1e-5,)).max()) > WRONG
    assert Adjoint.mode is GradientMode.ADJOINT, "reports must not call it exact"


# --- B2: noise that is not replayed -----------------------------------------------------------------------------------


def test_b2_noise_that_is_not_replayed() -> None:
    """B2: forward walks agree with each other; the recomputed steps do not agree with them."""
    honest = purifier_of("Ancestral", solver=Jittered(), gradient=StoredState(1))
    bug = honest.with_(solver=Private(), start=Private().begin)
    assert torch.equal(bug(X, NOISE), bug(X, NOISE))
    assert (replay_error(honest), coordinate_error(honest) <= 1e-7) == (0, True)
    assert replay_error(bug) > WRONG
    assert coordinate_error(bug) > WRONG
    assert coordinate_error(bug.with_(gradient=Direct())) <= 1e-7, "the graph of the walk itself has the right noise"


# --- B3: a grid of its own for the recomputation ----------------------------------------------------------------------


def test_b3_a_grid_of_its_own() -> None:
    """B3: times that are 1e-8 off make integer labels that are 1 off; noise levels alone look right to six digits."""
    steps, labels, network = uniform_steps(VP(), t_start=0.1, n_steps=100, t_end=1e-5), [], TanhNet()
    grid = accumulated(steps)
    assert max(abs(a.sigma - b.sigma) for a, b in zip(steps, grid, strict=True)) < 1e-6

    def told(x: Tensor, label: Tensor) -> Tensor:
        labels.append(int(label[0]))
        return network(x, label / 10)

    def again(advance, x: Tensor, x_in: Tensor, step: Step) -> Tensor:
        return advance((x,), x_in, grid[step.index])[0]

    denoiser = EpsDenoiser(told, label=TruncatedLabel(VP()))
    honest = DiffusionPurifier(denoiser, steps=steps, solver=EulerMaruyamaVP(), gradient=StoredState(1))
    bug = honest.with_(gradient=Rewound(again=again))
    assert grid_mismatches(honest) == 0
    assert grid_mismatches(bug) >= 99
    gradients = []
    for purifier in (honest, bug):
        labels.clear()
        gradients.append(value_and_gradient(purifier)[1])
        off = sum(a != b for a, b in zip(labels[:100], reversed(labels[100:]), strict=True))
        assert off == 0 if purifier is honest else off > 10
    assert relative(gradients[0], numerical(honest)) <= 1e-6
    assert relative(gradients[1], numerical(honest)) > WRONG


# --- B4, B5, B7: guidance left out, in part, or made up ---------------------------------------------------------------


def distance(at: State) -> Tensor:
    return torch.sqrt(0.1 + (at.x0 - at.x_in).square()).flatten(1).sum(1)


def without_create_graph(at: State) -> Tensor:
    """The displacement by a gradient that is not recorded."""
    (gradient,) = torch.autograd.grad(distance(at).sum(), at.x, retain_graph=True)
    return -0.3 * gradient


def detached(at: State) -> Tensor:
    return 0.3 * minus_gradient(distance(at), at.x).detach()


def under_no_grad(at: State) -> Tensor:
    """As guidance functions of samplers are written: everything under no_grad but for a gradient of its own."""
    displacement = Toward(0.3)(at)
    with torch.no_grad():
        return displacement + 0


@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
@pytest.mark.parametrize("guidance", [without_create_graph, detached, under_no_grad])
def test_b4_guidance_left_out_of_the_gradient(guidance, solver: str) -> None:
    """B4: the purified image is the same to the last bit, every route agrees, and only differences tell."""
    honest = purifier_of(solver, "toward", gradient=StoredState(1))
    bug = honest.with_(guidance=guidance)
    assert torch.equal(honest(X, NOISE), bug(X, NOISE))
    assert coordinate_error(honest) <= 1e-7
    assert coordinate_error(bug) > WRONG
    assert largest(*(value_and_gradient(bug.with_(gradient=r))[1] for r in (StoredState(1), Direct()))) <= 1e-12
    assert float(directional_errors(bug, value_and_gradient(bug)[1], (1e-5,)).max()) > WRONG


@pytest.mark.parametrize("guided", ["toward", "toward noised", "toward from noise"])
def test_b5_reference_path_ignored(guided: str) -> None:
    """B5: the recomputed step pulls toward a constant."""

    def again(advance, x: Tensor, x_in: Tensor, step: Step) -> Tensor:
        return advance((x,), x_in.detach(), step)[0]

    honest = purifier_of("Ancestral", guided, gradient=Rewound())
    bug = honest.with_(gradient=Rewound(again=again))
    assert coordinate_error(honest) <= 1e-7
    assert coordinate_error(bug) > WRONG
    assert largest(value_and_gradient(honest)[1], value_and_gradient(bug)[1]) > 1e-6


def linearity_error(purifier: DiffusionPurifier) -> float:
    """A gradient is linear in the cotangent."""
    _, once = value_and_gradient(purifier)
    _, thrice = value_and_gradient(purifier, v=-3 * V)
    return largest(thrice, -3 * once)


def test_b7_a_constant_in_place_of_a_product() -> None:
    """B7: what guidance adds to the image's gradient does not depend on what it is the gradient of."""

    def constant(by_reference: Tensor, cotangent: Tensor) -> Tensor:
        return 0.01 * torch.ones_like(by_reference)

    honest = purifier_of("Ancestral", "toward", gradient=Rewound())
    bug = honest.with_(gradient=Rewound(to_input=constant))
    assert linearity_error(honest) <= 1e-12
    assert linearity_error(bug) > WRONG
    assert coordinate_error(honest) <= 1e-7
    assert coordinate_error(bug) > WRONG
    assert float(directional_errors(bug, value_and_gradient(bug)[1], (1e-5,)).max()) > WRONG


# --- B6: a surrogate that mixes two walks -----------------------------------------------------------------------------


def test_b6_coarse_coefficients_on_fine_states() -> None:
    """B6: a surrogate is a walk of its own; pulled back at the states of another one it is nobody's gradient."""
    fine = uniform_steps(VP(), t_start=0.3, n_steps=8, t_end=1e-3)
    coarse = merged(fine, 2)

    surrogate = purifier_of("EulerMaruyamaVP", steps=coarse, gradient=StoredState(1))
    whole = surrogate.with_(steps=fine)
    bug = surrogate.with_(gradient=MixedStates(fine=fine))
    assert coordinate_error(surrogate) <= 1e-7
    assert coordinate_error(bug, program=surrogate) > WRONG
    assert coordinate_error(bug, program=whole) > WRONG


# --- B8, B9: images that feel each other, attacks that run another process --------------------------------------------


class LastSeed(Ancestral):
    """Reverse noise of the whole batch from the id of its last image."""

    def step(self, denoise, x: Tensor, step: Step, noise: Noise):
        shared = replace(noise, images=noise.images[-1:] * len(x), draws=0)
        return super().step(denoise, x, step, shared)


def test_b8_noise_seeded_from_the_last_image() -> None:
    """B8: alone an image gets other noise than in company."""
    honest = purifier_of("Ancestral", gradient=StoredState(1))
    value, gradient = split_error(honest)
    assert max(value, gradient) <= 1e-12
    assert min(split_error(honest.with_(solver=LastSeed()))) > WRONG


class OtherWhenAttacked(Ancestral):
    """Every step draws the noise of step 0 while gradients are recorded."""

    def step(self, denoise, x: Tensor, step: Step, noise: Noise):
        if torch.is_grad_enabled() and x.requires_grad:
            fixed = noise(x, kind=Kind.REVERSE, step=0) - noise(x, kind=Kind.REVERSE, step=step.index)
            result = super().step(denoise, x, step, noise)
            return result._replace(x_next=result.x_next + 0.1 * step.sigma_next * fixed)
        return super().step(denoise, x, step, noise)


def test_b8_attack_process_differs_from_test_process() -> None:
    """B8: by stored states the recomputation shows it, in one graph the output does."""
    honest, bug = (
        purifier_of("Ancestral", solver=s, gradient=StoredState(1)) for s in (Ancestral(), OtherWhenAttacked())
    )
    assert (replay_error(honest), grad_mode_error(honest.with_(gradient=Direct()))) == (0, 0)
    assert replay_error(bug) > WRONG
    assert grad_mode_error(bug.with_(gradient=Direct())) > WRONG


@pytest.mark.parametrize("route", [StoredState(1), Direct()], ids=str)
def test_b9_guidance_by_a_mean_over_the_batch(route) -> None:
    """B9: exact for each batch, and another defence in every batch."""
    honest = purifier_of("Ancestral", "toward", gradient=route)
    bug = honest.with_(guidance=batch_mean)
    assert largest(honest(X, NOISE), bug(X, NOISE)) <= 1e-14, "one image at a time there is no difference"
    assert max(split_error(honest)) <= 1e-12
    assert min(split_error(bug)) > WRONG


# --- B12: a gradient that is zero almost everywhere -------------------------------------------------------------------


def by_sign(at: State) -> Tensor:
    """Minus the gradient of an L1 distance of the state to the image: a sign."""
    return 0.3 * minus_gradient((at.x - at.x_in).abs().flatten(1).sum(1), at.x)


def wide_quotients(module, x: Tensor, v: Tensor, noise: Noise, *, h: float) -> Tensor:
    """Central differences of second order over a width that a finite move of the image has."""
    n = x.numel()
    offsets = h * torch.eye(n, dtype=x.dtype).reshape(n, *x.shape[1:])
    with torch.no_grad():
        difference = module(x + offsets, noise.take([0] * n)) - module(x - offsets, noise.take([0] * n))
    return ((difference * v).flatten(1).sum(1) / (2 * h)).reshape(x.shape)


def test_b12_a_gradient_of_zero_and_one_that_is_relaxed() -> None:
    """B12: guided by signs from pure noise, a finite move of the image moves the output, and the gradient is 0.

    Relaxed gives the slope over such a move: over 12 draws its cosine with differences over +-0.2 is 0.86 in the mean
    and at least 0.58. Cosines of unrelated vectors of 16 pixels have a standard deviation of 0.25, their mean over 12
    one of 0.07.
    """
    purifier, x = purifier_of("Ancestral", guidance=by_sign, start=from_noise, gradient=StoredState(1)), 0.25 + 0.5 * X
    relaxed = purifier.with_(gradient=Relaxed(0.3))
    assert coordinate_error(purifier) <= 1e-7, "zero is the exact gradient"
    cosines = []
    for seed in range(12):
        v, noise = randn(*X.shape, seed=300 + seed), NOISE.draw(seed)
        out, zero = value_and_gradient(purifier, x, v, noise)
        same, gradient = value_and_gradient(relaxed, x, v, noise)
        assert float(zero.abs().max()) == 0
        assert torch.equal(same, out)
        assert largest(purifier(x + 0.2, noise), out) > 0.1
        wide = wide_quotients(purifier, x, v, noise, h=0.2)
        cosines.append(float(torch.cosine_similarity(gradient.flatten(), wide.flatten(), dim=0)))
    assert min(cosines) > 0.4
    assert sum(cosines) / 12 > 0.75


def test_b12_the_detector_fires() -> None:
    """B12: PGD counts draws whose gradient is exactly zero: all by stored states, none when relaxed or smooth."""
    hard = Defence(
        purifier_of("Ancestral", guidance=by_sign, start=from_noise, gradient=StoredState(1)), TanhClassifier(16)
    )
    smooth = hard.with_(guidance=Toward())
    labels = torch.tensor([0])
    attack = PGD(Ball("linf", 0.1), n_steps=3, eot=2)
    for defence, share in ((hard, 1.0), (hard.with_(gradient=Relaxed(0.3)), 0.0), (smooth, 0.0)):
        found = attack(defence, X, labels, init=NOISE, eot=NOISE)
        assert found.gradients.zero.tolist() == [share]
        assert found.gradients.bad.tolist() == [0.0]
