"""MimicDiffusion's guidance is a step of the variance-preserving x_t, whatever coordinates the walk is in."""

from dataclasses import replace

import pytest
import torch

from depura.diffusion.guidance import State
from depura.image_ops import Upsampled
from depura.methods.mimicdiffusion import Mimic, constant, mimicdiffusion, through_network, unprojected
from depura.noise import Noise
from toys import rand, randn, tanh_eps


@pytest.mark.parametrize("guidance", [Mimic(constant, unprojected), Mimic(through_network, Upsampled("bilinear"))])
def test_guidance_is_as_strong_along_an_edm_walk(guidance: Mimic) -> None:
    """One state, told once as one of DDPM and once as one of EDM, where the table's scale is 1."""
    step = mimicdiffusion(tanh_eps()).steps[50]
    x = (3 * step.sigma * randn(2, 1, 8, 8, seed=1)).requires_grad_()
    at = State(x, tanh_eps()(x, step.sigma), 2 * rand(2, 1, 8, 8, seed=2) - 1, step, Noise(0, images=(1, 2)))
    edm = at._replace(step=replace(step, scale=1.0, scale_next=1.0))
    torch.testing.assert_close(guidance(edm), guidance(at), rtol=1e-12, atol=0)
