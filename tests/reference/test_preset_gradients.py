"""Gradients of every published setting: of each exact route against its transcription, differentiated by autograd.

The transcriptions keep the graph of guidance that is itself a gradient, and the input enters them twice: by the noising
and as the reference. test_presets.py compares the values.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import transcriptions as by_hand
from cases import CASES, EPS, NET, told
from checks import relative
from depura.diffusion.schedules import DiscreteLinear, ddpm_steps
from depura.diffusion.solvers import from_unit_noise
from depura.gradients import Direct, Relaxed, StoredState
from depura.methods.mimicdiffusion import mimicdiffusion
from depura.noise import Noise
from toys import rand, randn

NOISE = Noise(7, images=(3, 9), draws=(0, 1))
ROUTES = [StoredState(1), Direct()]
SIGNS = [name for name in CASES if name.startswith("mimic")]
SMOOTH = [name for name in CASES if name not in SIGNS]


def gradient(module, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of its product with fixed weights."""
    leaf = x.clone().requires_grad_()
    out = module(leaf, noise)
    weights = randn(len(x), *x.shape[1:], seed=2)
    (found,) = torch.autograd.grad((out * weights).sum(), leaf)
    return out.detach(), found


@pytest.mark.parametrize("name", SMOOTH)
def test_exact_routes_give_the_gradient_of_the_transcription(name: str) -> None:
    case = CASES[name]
    x = rand(2, 1, case.size, case.size, seed=1)
    _, expected = gradient(case.transcription, x, NOISE)
    assert float(expected.abs().max()) > 0.1
    for route in ROUTES:
        _, ours = gradient(case.purifier.with_(gradient=route), x, NOISE)
        assert relative(ours, expected) <= 1e-10, route


@pytest.mark.parametrize("name", SIGNS)
def test_the_exact_gradient_of_mimicdiffusion_is_zero(name: str) -> None:
    """J5: the input enters by signs only. Any route, and a shift of 1e-9 of all pixels changes nothing at all."""
    case = CASES[name]
    x = rand(2, 1, case.size, case.size, seed=1)
    for route in ROUTES:
        out, ours = gradient(case.purifier.with_(gradient=route), x, NOISE)
        assert torch.equal(ours, torch.zeros_like(x))
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(case.transcription(leaf, NOISE).sum(), leaf, allow_unused=True)
    assert theirs is None or torch.equal(theirs, torch.zeros_like(x))
    assert torch.equal(case.purifier(x + 1e-9, NOISE), out)
    assert not torch.equal(case.purifier(1 - x, NOISE), out)


@pytest.mark.parametrize("released", [False, True])
def test_the_relaxed_gradient_of_mimicdiffusion_is_that_of_a_smooth_sign(released: bool) -> None:
    """J5: backward only, signs are tanh(v / tau): against a transcription with such signs, twenty steps long."""
    tau, x = 0.3, rand(2, 1, 4, 4, seed=1)
    purifier = mimicdiffusion(
        EPS,
        steps=ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=20),
        batch_ref=1600,
        released=released,
        start=from_unit_noise,
    )
    soft = partial(by_hand.mimic, told(NET), n=20, batch=1600, released=released, tau=tau)
    value, expected = gradient(soft, x, NOISE)
    for inner in ROUTES:
        out, ours = gradient(purifier.with_(gradient=Relaxed(tau, inner)), x, NOISE)
        torch.testing.assert_close(out, value, rtol=0, atol=1e-9)
        assert float(ours.abs().max()) > 1e-6
        assert relative(ours, expected) <= 1e-8
    assert relative(gradient(purifier.with_(gradient=Relaxed(2 * tau)), x, NOISE)[1], expected) > 1e-2


FAMILIES = [
    "diffpure_cifar_linf",
    "diffpure_imagenet",
    "diffpure_adm",
    "diffpure_ode",
    "diffpure_ldsde",
    "diffpure_random",
    "lk_gradual_svhn",
    "lk_surrogate_cifar",
    "gdmp_cifar",
    "gdmp_imagenet",
    "agdm_cifar, label",
    "agdm_sde, label, on x_t",
    "adbm_cifar",
    "lm_cifar_edm",
    "scoreopt",
    "dds",
    "averaged",
    "one after another",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_finite_differences(name: str) -> None:
    """Fourth-order central differences of one image, in six directions."""
    case = CASES[name]
    x, noise, h = rand(1, 1, case.size, case.size, seed=4), NOISE.take([1] * 6), 1e-5
    weights, u = randn(1, *x.shape[1:], seed=2), randn(6, *x.shape[1:], seed=3)

    def f(offset: Tensor) -> Tensor:
        return (case.purifier.purify(x + offset, noise) * weights).flatten(1).sum(1)

    slopes = (8 * (f(h * u) - f(-h * u)) - (f(2 * h * u) - f(-2 * h * u))) / (12 * h)
    _, exact = gradient(case.purifier.with_(gradient=StoredState(budget=0)), x, NOISE.take([1]))
    assert relative((exact * u).flatten(1).sum(1), slopes) <= 1e-6


class Unreferenced:
    """The guidance, with no gradient to the image that it pulls toward."""

    def __init__(self, guidance) -> None:
        self.guidance = guidance

    def __call__(self, at):
        return self.guidance(at._replace(x_in=at.x_in.detach()))


@pytest.mark.parametrize("name", ["gdmp_cifar", "gdmp_cifar, SSIM", "gdmp_imagenet", "agdm_cifar", "agdm_sde"])
def test_the_reference_of_the_guidance_is_a_second_path_of_the_input(name: str) -> None:
    case = CASES[name]
    x = rand(2, 1, case.size, case.size, seed=1)
    value, exact = gradient(case.purifier, x, NOISE)
    cut = case.purifier.map(lambda leaf: leaf.with_(guidance=Unreferenced(leaf.guidance)))
    same, other = gradient(cut, x, NOISE)
    assert torch.equal(same, value), "the values do not show it"
    assert relative(other, exact) > 1e-3
