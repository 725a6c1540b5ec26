"""AGDM's guidance of the reverse SDE is an addition to the score."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import State, chosen_class, mean_shift, minus_gradient
from depura.gradients import Relaxed
from depura.methods.agdm import agdm, agdm_sde, on_estimate
from depura.methods.diffpure import diffpure
from depura.noise import Noise
from depura.purifiers.purifier import DiffusionPurifier
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
    guided = agdm_sde(
        tanh_eps(), guide=HEAD, features=lambda images: images, scale=50.0, sees=on_estimate, n_steps=n_steps
    )
    summed = diffpure(WithScore(tanh_eps(), x), t_star=0.07, n_steps=n_steps)
    torch.testing.assert_close(guided(x, noise), summed(x, noise), rtol=0, atol=1e-12)
    assert float((guided(x, noise) - guided.with_(guidance=None)(x, noise)).abs().max()) > 1e-3


CENTRES = torch.linspace(-0.8, 0.9, 3 * 16, dtype=torch.float64).reshape(3, 16).sin()
"""Of a Gaussian mixture, so that a linear network's softmax is its posterior of the components."""


def linear_logits(images: Tensor) -> Tensor:
    """c(x): logits of a mixture of unit Gaussians at CENTRES, images in [-1, 1] units."""
    x = 2 * images.flatten(1) - 1
    return x @ CENTRES.T - CENTRES.square().sum(1) / 2


@pytest.mark.parametrize("label", [True, False])
def test_the_default_step_is_the_published_product_of_densities(label: bool) -> None:
    """One step on a closed-form denoiser, its terms written out: x_t itself is seen, D is an MSE of logits."""
    n, s, tau = 40, 3.0, 0.5
    x, noise = rand(2, 1, 4, 4, seed=5), Noise(7, images=(0, 1))
    states: list[Tensor] = []

    def denoiser(y: Tensor, sigma: float) -> Tensor:
        """E[x0 | x0 + sigma n] of data N(0, tau^2 I)."""
        states.append(y.detach().flatten(1))
        return tau**2 / (tau**2 + sigma**2) * y

    purifier = agdm(denoiser, guide=linear_logits, scale=s, label=label, n_noise=n)
    plain = purifier.with_(guidance=None)
    guided_end = purifier(x, noise)
    guided = list(states)
    states.clear()
    plain(x, noise)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = (1 - beta).cumprod(0)
    t = n - 1
    assert torch.equal(guided[0], states[0])
    # Written out by hand: logits are linear, c(x) = x W - b, so the gradients are those of two elementary functions.
    x_t, x_in, w = abar[t].sqrt() * guided[0], (2 * x - 1).flatten(1), CENTRES
    c_t, c_in = x_t @ w.T - w.square().sum(1) / 2, x_in @ w.T - w.square().sum(1) / 2
    g = -s * 2 / 3 * (c_t - c_in) @ w
    if label:
        y = c_in.argmax(1)
        g = g + s * (w[y] - c_t.softmax(1) @ w)
    variance = beta[t] * (1 - abar[t - 1]) / (1 - abar[t])
    shift = abar[t - 1].sqrt() * (guided[1] - states[1])
    torch.testing.assert_close(shift, variance * g, rtol=0, atol=1e-12)
    assert float(shift.abs().max()) > 1e-4
    assert guided_end.shape == x.shape


def test_its_gradient_is_that_of_finite_differences() -> None:
    """Through all steps, the label term and the logits of a network that is not linear; float64."""
    x, noise = rand(2, 1, 4, 4, seed=6), Noise(8, images=(0, 1))
    purifier = agdm(tanh_eps(), guide=HEAD, scale=5.0, n_noise=8, n_steps=4)
    leaf = x.clone().requires_grad_()
    weights = rand(2, 1, 4, 4, seed=9) - 0.5
    (gradient,) = torch.autograd.grad((purifier(leaf, noise) * weights).sum(), leaf)
    direction = rand(2, 1, 4, 4, seed=10) - 0.5
    h = 1e-5
    with torch.no_grad():
        up, down = ((purifier(x + k * h * direction, noise) * weights).sum() for k in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(), (up - down) / (2 * h), rtol=1e-6, atol=1e-9)


def test_the_guide_runs_once_on_each_where_its_logits_are_all_that_is_taken() -> None:
    calls: list[int] = []

    def counted(images: Tensor) -> Tensor:
        calls.append(len(images))
        return HEAD(images)

    agdm(tanh_eps(), guide=counted, scale=1.0, n_noise=4)(rand(2, 1, 4, 4, seed=6), Noise(8, images=(0, 1)))
    assert len(calls) == 2 * 4


def test_the_label_is_the_largest_logit_and_its_relaxed_derivative_that_of_tanh() -> None:
    """Exactly no derivative otherwise, which is why it is to be attacked through `Relaxed`, too."""
    logits = torch.tensor([[1.0, 3.0, 2.5], [0.0, 0.0, -1.0], [torch.inf, 0.0, 0.0]], dtype=torch.float64)
    found = chosen_class(logits)
    assert found[0].tolist() == [0, 1, 0]
    assert found[1].tolist() == [0.5, 0.5, 0]
    assert bool(found[2].isnan().all())
    x, noise, tau = rand(1, 1, 4, 4, seed=6), Noise(8, images=(0,)), 2.0

    def image(purifier: DiffusionPurifier, values: Tensor) -> Tensor:
        return purifier(values, noise).sum()

    def slope(purifier: DiffusionPurifier) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(image(purifier, leaf), leaf)[0]

    hard = agdm(tanh_eps(), guide=HEAD, features=torch.zeros_like, scale=5.0, n_noise=8, n_steps=2)
    exact, relaxed = slope(hard), slope(hard.with_(gradient=Relaxed(tau)))
    assert not torch.allclose(exact, relaxed, rtol=1e-3)
    smooth = hard.with_(guidance=Smooth(HEAD, 5.0, tau))
    (expected,) = torch.autograd.grad(image(smooth, leaf := x.clone().requires_grad_()), leaf)
    torch.testing.assert_close(relaxed, expected, rtol=1e-9, atol=1e-12)


class Smooth:
    """AGDM's label term with the value of signs and the slope of tanh, written out."""

    def __init__(self, head: TanhClassifier, scale: float, tau: float) -> None:
        self.head, self.scale, self.tau = head, scale, tau

    def __call__(self, at: State) -> Tensor:
        z = self.head((at.x_in + 1) / 2)
        rival = torch.stack(
            [z[:, [j for j in range(z.shape[1]) if j != k]].max(1).values for k in range(z.shape[1])], 1
        )
        soft, hard = torch.tanh((z - rival) / self.tau), torch.sign(z - rival)
        one_hot = (1 + hard.detach() + soft - soft.detach()) / 2
        seen = (at.step.scale * at.x + 1) / 2
        return mean_shift(at) * minus_gradient(-self.scale * (one_hot * self.head(seen).log_softmax(1)).sum(1), at.x)
