"""Adapters agree on one closed form; closed forms with numerical integration; networks with finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from depura._check import InputError
from depura.diffusion.denoisers import Clipped, EdmDenoiser, EpsDenoiser, ScoreDenoiser, VDenoiser, edm_coefficients
from depura.diffusion.exact import GaussianDenoiser, MixtureDenoiser, empirical_denoiser
from depura.diffusion.schedules import VP, TimeLabel, vp_scale
from depura.models.networks.small import SmallClassifier, SmallUNet
from toys import rand, randn

MEAN, STD = 0.5 * randn(2, 3, 3, seed=1), 0.1 + rand(2, 3, 3, seed=2)


def posterior_mean(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] of N(MEAN, STD^2) by the conditioning formula of joint Gaussians."""
    return (MEAN * sigma**2 + x * STD**2) / (STD**2 + sigma**2)


def level(label: Tensor) -> float:
    assert label.ndim == 1
    assert len(label.unique()) == 1
    return float(label[0])


def eps_network(x_t: Tensor, label: Tensor) -> Tensor:
    """(x_t - sqrt(abar) x0) / sqrt(1 - abar), the label being sigma."""
    abar = 1 / (1 + level(label) ** 2)
    x0 = posterior_mean(x_t / math.sqrt(abar), level(label))
    return (x_t - math.sqrt(abar) * x0) / math.sqrt(1 - abar)


def score_network_vp(x_t: Tensor, label: Tensor) -> Tensor:
    """Gradient of the log density of x_t = sqrt(abar) x0 + sqrt(1 - abar) n."""
    abar = 1 / (1 + level(label) ** 2)
    return -(x_t - math.sqrt(abar) * MEAN) / (abar * STD**2 + 1 - abar)


def score_network_ve(x: Tensor, label: Tensor) -> Tensor:
    return -(x - MEAN) / (STD**2 + level(label) ** 2)


def v_network(x_t: Tensor, label: Tensor) -> Tensor:
    """v = alpha n - s x0 with alpha^2 + s^2 = 1 and x_t = alpha x0 + s n."""
    angle = math.atan(level(label))
    x0 = posterior_mean(x_t / math.cos(angle), level(label))
    n = (x_t - math.cos(angle) * x0) / math.sin(angle)
    return math.cos(angle) * n - math.sin(angle) * x0


def raw_network(scaled: Tensor, label: Tensor) -> Tensor:
    """The F for which c_skip x + c_out F = posterior mean, sigma_data = 0.5."""
    sigma = math.exp(4 * level(label))
    total = math.sqrt(sigma**2 + 0.25)
    x = scaled * total
    return (posterior_mean(x, sigma) - 0.25 / total**2 * x) / (sigma * 0.5 / total)


def identity(sigma: float) -> float:
    return sigma


ADAPTERS = {
    "eps": EpsDenoiser(eps_network, label=identity),
    "score of VP": ScoreDenoiser(score_network_vp, label=identity, scale=vp_scale),
    "score of VE": ScoreDenoiser(score_network_ve, label=identity),
    "v": VDenoiser(v_network, label=identity),
    "EDM": EdmDenoiser(raw_network, sigma_data=0.5),
    "closed form": GaussianDenoiser(MEAN, STD),
}


@pytest.mark.parametrize("sigma", [0.02, 0.3388, 1.0, 7.5])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_give_back_the_closed_form(name: str, sigma: float) -> None:
    x = MEAN + sigma * randn(4, 2, 3, 3, seed=3)
    torch.testing.assert_close(ADAPTERS[name](x, sigma), posterior_mean(x, sigma), rtol=0, atol=1e-12)


def test_labels_have_one_entry_per_image_in_the_dtype_of_the_images() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return x

    x = rand(3, 1, 2, 2).float()
    for denoiser in (EpsDenoiser(network, label=TimeLabel(VP())), EdmDenoiser(network)):
        denoiser(x, VP().sigma(0.1))
    assert [tuple(s.shape) for s in seen] == [(3,), (3,)]
    assert {s.dtype for s in seen} == {torch.float32}
    assert seen[0].tolist() == pytest.approx([99.9] * 3, rel=1e-6)
    assert seen[1].tolist() == pytest.approx([math.log(VP().sigma(0.1)) / 4] * 3, rel=1e-6)


def test_learned_variances_are_dropped() -> None:
    def twice_the_channels(x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([eps_network(x, label), torch.tanh(x) + 1e3], dim=1)

    x = randn(2, 2, 3, 3, seed=4)
    got = EpsDenoiser(twice_the_channels, label=identity)(x, 0.4)
    torch.testing.assert_close(got, posterior_mean(x, 0.4), rtol=0, atol=1e-12)


def test_with_label_changes_the_label_and_keeps_the_network() -> None:
    first = EpsDenoiser(lambda x, label: x * label[:, None, None, None], label=identity, scale=lambda sigma: 1.0)
    second = first.with_label(lambda sigma: 3.0)
    x = rand(1, 1, 2, 2)
    assert second.network is first.network
    torch.testing.assert_close(second(x, 0.5), x - 0.5 * 3 * x)
    torch.testing.assert_close(first(x, 0.5), x - 0.5 * 0.5 * x)


def test_clipped() -> None:
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64).reshape(1, 1, 1, 5).requires_grad_()
    out = Clipped(lambda x, sigma: 2 * x)(x, 0.1)
    assert out.flatten().tolist() == [-1, -1, 0, 1, 1]
    (gradient,) = torch.autograd.grad(Clipped(lambda x, sigma: 1.5 * x)(x, 0.1).sum(), x)
    assert gradient.flatten().tolist() == [0, 1.5, 1.5, 1.5, 0]


def test_edm_coefficients_keep_unit_variances() -> None:
    """Karras et al. 2022, appendix B.6: the network has input and target of unit variance."""
    for sigma in (0.002, 0.5, 80.0):
        skip, out, into, label = edm_coefficients(sigma, 0.5)
        assert into**2 * (0.25 + sigma**2) == pytest.approx(1, rel=1e-13)
        assert (1 - skip) ** 2 * 0.25 + skip**2 * sigma**2 == pytest.approx(out**2, rel=1e-12)
        assert math.exp(4 * label) == pytest.approx(sigma, rel=1e-13)
    with pytest.raises(InputError, match=r"EdmDenoiser: expected sigma_data in \(0, inf\), got 0.0"):
        EdmDenoiser(raw_network, sigma_data=0.0)


def integrated(density, x: float, sigma: float) -> float:
    """E[x0 | x0 + sigma n = x] by quadrature."""

    def weight(x0: float) -> float:
        return density(x0) * norm.pdf(x, loc=x0, scale=sigma)

    limits = {"points": [-0.5, 0.0, 0.3, 0.9, x], "limit": 400, "epsabs": 1e-13, "epsrel": 1e-12}
    return quad(lambda v: v * weight(v), -8, 8, **limits)[0] / quad(weight, -8, 8, **limits)[0]


@pytest.mark.parametrize("sigma", [0.15, 0.8, 2.0])
@pytest.mark.parametrize("x", [-1.2, 0.1, 0.7])
def test_gaussian_against_quadrature(x: float, sigma: float) -> None:
    denoiser = GaussianDenoiser(torch.full((1, 1, 1), 0.3).double(), torch.full((1, 1, 1), 0.4).double())
    got = float(denoiser(torch.full((1, 1, 1, 1), x, dtype=torch.float64), sigma))
    assert got == pytest.approx(integrated(lambda v: norm.pdf(v, 0.3, 0.4), x, sigma), abs=1e-6)


@pytest.mark.parametrize("sigma", [0.15, 0.8, 2.0])
@pytest.mark.parametrize("x", [-1.2, 0.1, 0.7])
def test_mixture_against_quadrature(x: float, sigma: float) -> None:
    centres, weights = [-0.5, 0.3, 0.9], [0.2, 0.5, 0.3]
    means = torch.tensor(centres, dtype=torch.float64).reshape(3, 1, 1, 1)
    denoiser = MixtureDenoiser(means, std=0.2, weights=7 * torch.tensor(weights, dtype=torch.float64))
    got = float(denoiser(torch.full((1, 1, 1, 1), x, dtype=torch.float64), sigma))

    def density(v: float) -> float:
        return sum(w * norm.pdf(v, c, 0.2) for w, c in zip(weights, centres, strict=True))

    assert got == pytest.approx(integrated(density, x, sigma), abs=1e-8)


def test_mixture_in_many_pixels_is_the_gradient_of_the_log_density() -> None:
    """Tweedie: D = x + sigma^2 grad log p(x), with the density summed in plain form."""
    means, sigma = 0.7 * randn(4, 1, 3, 3, seed=5), 0.6
    x = randn(3, 1, 3, 3, seed=6).requires_grad_()
    variance = 0.25**2 + sigma**2
    log_p = torch.stack([-((x - m) ** 2).sum((1, 2, 3)) / (2 * variance) for m in means]).logsumexp(0)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    got = MixtureDenoiser(means, std=0.25)(x, sigma)
    torch.testing.assert_close(got, x + sigma**2 * score, rtol=0, atol=1e-12)


def test_empirical_denoiser_is_a_softmax_average() -> None:
    images, x, sigma = 2 * rand(5, 1, 2, 2, seed=7) - 1, randn(3, 1, 2, 2, seed=8), 0.5
    distances = ((x.numpy()[:, None] - images.numpy()[None]) ** 2).sum((2, 3, 4))
    share = np.exp(-distances / (2 * sigma**2))
    share /= share.sum(1, keepdims=True)
    expected = np.einsum("bk,kchw->bchw", share, images.numpy())
    got = empirical_denoiser(images)(x, sigma)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-13)
    nearest = empirical_denoiser(images)(images + 0.01, 0.005)
    torch.testing.assert_close(nearest, images, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MixtureDenoiser(rand(3, 4, 4), std=0.1),
            r"expected means of shape \(K, C, H, W\), got shape \(3, 4, 4\)",
        ),
        (lambda: MixtureDenoiser(rand(3, 1, 4, 4), std=-0.1), r"MixtureDenoiser: expected std in \[0, inf\), got -0.1"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """All weights random: a layer that starts at zero would hide the layers before it."""
    for k, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * randn(*parameter.shape, seed=k)
    return module.double().requires_grad_(False)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (2, 6)])
def test_small_networks_keep_their_shapes(channels: int, size: int) -> None:
    x, label = rand(5, channels, size, size).float(), torch.linspace(-1, 1, 5)
    assert SmallUNet(channels=channels)(x, label).shape == x.shape
    assert SmallClassifier(channels=channels, classes=7)(x).shape == (5, 7)


def test_small_networks_have_true_gradients() -> None:
    unet = randomised(SmallUNet(width=8, inner=8, embed=4))
    x, label = (
        randn(2, 1, 4, 4, seed=1).requires_grad_(),
        torch.tensor([0.3, -0.7], dtype=torch.float64).requires_grad_(),
    )
    assert float(unet(x, label).detach().std()) > 1e-3
    assert torch.autograd.gradcheck(unet, (x, label))
    classifier = randomised(SmallClassifier(width=3, classes=4))
    assert torch.autograd.gradcheck(classifier, (rand(2, 1, 5, 5).requires_grad_(),))


def test_small_networks_treat_images_one_by_one() -> None:
    unet = randomised(SmallUNet(width=8, inner=8, embed=4))
    x, label = randn(4, 1, 4, 4, seed=1), torch.tensor([0.3, -0.7, 0.1, 0.9], dtype=torch.float64)
    alone = torch.cat([unet(x[k : k + 1], label[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(unet(x, label), alone, rtol=0, atol=1e-12)
    assert float((unet(x, label) - unet(x, label.flip(0))).abs().max()) > 1e-3, "the label must matter"
