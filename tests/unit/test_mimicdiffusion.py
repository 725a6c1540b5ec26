"""MimicDiffusion's guidance is a step of the variance-preserving x_t, whatever coordinates the walk is in."""

from dataclasses import replace

import pytest
import torch

from depura.diffusion.guidance import State
from depura.image_ops import Upsampled
from depura.methods.mimicdiffusion import (
    Mimic,
    constant,
    euclidean,
    manhattan,
    mimicdiffusion,
    through_network,
    unprojected,
)
from depura.noise import Noise
from depura.records.describe import describe
from toys import rand, randn, tanh_eps


@pytest.mark.parametrize("guidance", [Mimic(constant, unprojected), Mimic(through_network, Upsampled("bilinear"))])
def test_guidance_is_as_strong_along_an_edm_walk(guidance: Mimic) -> None:
    """One state, told once as one of DDPM and once as one of EDM, where the table's scale is 1."""
    step = mimicdiffusion(tanh_eps()).steps[50]
    x = (3 * step.sigma * randn(2, 1, 8, 8, seed=1)).requires_grad_()
    at = State(x, tanh_eps()(x, step.sigma), 2 * rand(2, 1, 8, 8, seed=2) - 1, step, Noise(0, images=(1, 2)))
    edm = at._replace(step=replace(step, scale=1.0, scale_next=1.0))
    torch.testing.assert_close(guidance(edm), guidance(at), rtol=1e-12, atol=0)


def state() -> State:
    step = mimicdiffusion(tanh_eps()).steps[50]
    x = (3 * step.sigma * randn(2, 1, 8, 8, seed=1)).requires_grad_()
    return State(x, tanh_eps()(x, step.sigma), 2 * rand(2, 1, 8, 8, seed=2) - 1, step, Noise(0, images=(1, 2)))


def test_the_euclidean_gradient_is_as_long_as_the_manhattan_one() -> None:
    """And points along the difference: sqrt(N) (x0 - x_in) / |x0 - x_in|_2."""
    a, b = (rand(3, 2, 4, 4, seed=k).requires_grad_() for k in (1, 2))
    slopes = [torch.autograd.grad(f(a, b).sum(), a)[0].flatten(1) for f in (manhattan, euclidean)]
    difference = (a - b).detach().flatten(1)
    torch.testing.assert_close(slopes[1], 32**0.5 * difference / difference.norm(dim=1, keepdim=True))
    torch.testing.assert_close(slopes[0].norm(dim=1), slopes[1].norm(dim=1))
    assert bool(euclidean(a.detach(), a.detach()).isfinite().all())


def test_both_terms_are_the_long_and_the_short_one_together() -> None:
    at, u = state(), Upsampled("bilinear")
    both, long, short = (
        Mimic(constant, p, long_range=its)(at).detach() for p, its in ((u, True), (None, True), (u, False))
    )
    torch.testing.assert_close(both, long + short)
    assert float(short.abs().max()) > 0
    assert Mimic(projection=u, long_range=False).strength(8, 8) == Mimic().strength(8, 8)
    assert not Mimic(constant, None, long_range=False)(at).any()


def test_what_was_added_is_described_where_it_is_used() -> None:
    """Records of before say nothing of it, and describe the same guidance."""
    usual, other = describe(Mimic()), describe(Mimic(distance=euclidean, long_range=False))
    assert {"distance", "long_range"}.isdisjoint(usual)
    assert (other["distance"], other["long_range"]) == ("depura.euclidean", False)
