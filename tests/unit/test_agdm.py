"""AGDM's guidance of the reverse SDE is an addition to the score."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import minus_gradient
from depura.methods.agdm import agdm_sde
from depura.methods.diffpure import diffpure
from depura.noise import Noise
from toys import TanhClassifier, rand, tanh_eps

HEAD = TanhClassifier(16, seed=1)


class WithScore:
    """A denoiser whose score has the gradient of log p added to it: D + sigma^2 grad."""

    def __init__(self, denoiser: Denoiser, x_in: Tensor) -> None:
        self.denoiser = denoiser
        self.x_in = x_in

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = self.denoiser(leaf, sigma)
            seen, label = (x0 + 1) / 2, HEAD(self.x_in).argmax(1)
            energy = 50 * (seen - self.x_in).square().flatten(1).mean(1)
            energy = energy + 50 * F.cross_entropy(HEAD(seen), label, reduction="none")
            return (x0 + sigma**2 * minus_gradient(energy, leaf)).detach()


@pytest.mark.parametrize("n_steps", [7, 70])
def test_guidance_is_added_to_the_score(n_steps: int) -> None:
    """However long the steps are: DiffPure around the denoiser of the sum of both scores."""
    x, noise = rand(2, 1, 4, 4, seed=2), Noise(3, images=(1, 2))
    guided = agdm_sde(tanh_eps(), features=lambda images: images, scale=50.0, classifier=HEAD, n_steps=n_steps)
    summed = diffpure(WithScore(tanh_eps(), x), t_star=0.07, n_steps=n_steps)
    torch.testing.assert_close(guided(x, noise), summed(x, noise), rtol=0, atol=1e-12)
    assert float((guided(x, noise) - guided.with_(guidance=None)(x, noise)).abs().max()) > 1e-3
