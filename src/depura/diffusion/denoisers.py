"""One interface around every network: D(x; sigma) -> E[x0 | x], with x = x0 + sigma n and x0 in [-1, 1].

Tweedie's formula ties the usual network outputs to it (score = (D - x) / sigma^2, noise = (x - D) / sigma). Networks
are called as `network(input, label)` with `label` a tensor of shape (B,) in the input's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from depura import _check
from depura.diffusion.schedules import LabelRule, unit_scale, vp_scale

Network = Callable[[Tensor, Tensor], Tensor]
"""(input of shape (B, C, H, W), labels of shape (B,)) -> output of shape (B, C or more, H, W)."""


class Denoiser(Protocol):
    """Posterior mean of the clean image at a noise level, one level for the whole batch."""

    def __call__(self, x: Tensor, sigma: float, /) -> Tensor:
        """Estimate x0 from x.

        Args:
            x: noisy images x0 + sigma n, (B, C, H, W).
            sigma: noise level, > 0.

        Returns:
            Estimate of x0, (B, C, H, W), in [-1, 1] units.
        """
        ...


class EpsDenoiser(nn.Module):
    """Around a network that predicts the noise of a variance-preserving process (DDPM, ADM, score_sde's VP networks).

    D = x - sigma * eps(scale x, label). Ho et al. 2020, eq. 15, in x = x0 + sigma n coordinates.
    """

    def __init__(self, network: Network, *, label: LabelRule, scale: Callable[[float], float] = vp_scale) -> None:
        """Wrap the network.

        Args:
            network: takes (scaled images, labels), gives the noise in its first C channels; further channels (learned
                variances) are dropped.
            label: from noise level to label.
            scale: from noise level to the factor of the network's input.
        """
        super().__init__()
        self.network = network
        self.label = label
        self.scale = scale

    def with_label(self, label: LabelRule) -> EpsDenoiser:
        """The same network under another label rule (for instance the exact labels of one table, `TableLabel`)."""
        return type(self)(self.network, label=label, scale=self.scale)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x."""
        eps = self.network(self.scale(sigma) * x, x.new_full((len(x),), self.label(sigma)))
        return torch.sub(x, eps[:, : x.shape[1]], alpha=sigma)


class EpsVarianceDenoiser(EpsDenoiser):
    """Around a network that predicts noise and variance (ADM, improved-diffusion): gives x0 and the variance's share.

    Further channels v of the network become f = (v + 1) / 2, between the small (0) and the large variance (1), behind
    those of x0. For `AncestralLearned`; every other solver takes `EpsDenoiser` around the same network.
    """

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x, (B, C, H, W) -> (B, 2C, H, W): x0, then f."""
        c = x.shape[1]
        out = self.network(self.scale(sigma) * x, x.new_full((len(x),), self.label(sigma)))
        if out.shape[1] != 2 * c:
            _check.fail(
                "EpsVarianceDenoiser", f"a network with {2 * c} output channels", f"{out.shape[1]}", "Use EpsDenoiser."
            )
        return torch.cat([torch.sub(x, out[:, :c], alpha=sigma), (out[:, c:] + 1) / 2], dim=1)


class ScoreDenoiser(nn.Module):
    """Around a network that gives the score, the gradient of log p_t at scale * x.

    D = x + sigma^2 * scale * score(scale x, label): Tweedie's formula.
    """

    def __init__(self, network: Network, *, label: LabelRule, scale: Callable[[float], float] = unit_scale) -> None:
        """Wrap the network.

        Args:
            network: takes (scaled images, labels), gives the score.
            label: from noise level to label.
            scale: from noise level to the factor of the network's input; `vp_scale` for variance-preserving networks.
        """
        super().__init__()
        self.network = network
        self.label = label
        self.scale = scale

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x."""
        scale = self.scale(sigma)
        score = self.network(scale * x, x.new_full((len(x),), self.label(sigma)))
        return torch.add(x, score, alpha=sigma**2 * scale)


class VDenoiser(nn.Module):
    """Around a network that predicts the velocity v = scale n - sqrt(1 - scale^2) x0 of a variance-preserving process.

    x0 = scale x_t - sqrt(1 - scale^2) v. Salimans and Ho 2022, arXiv:2202.00512, section 4.
    """

    def __init__(self, network: Network, *, label: LabelRule) -> None:
        """Wrap the network.

        Args:
            network: takes (scaled images, labels), gives the velocity.
            label: from noise level to label.
        """
        super().__init__()
        self.network = network
        self.label = label

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x."""
        scale = vp_scale(sigma)
        scaled = scale * x
        velocity = self.network(scaled, x.new_full((len(x),), self.label(sigma)))
        return torch.sub(scale * scaled, velocity, alpha=scale * sigma)


class EdmDenoiser(nn.Module):
    """Around a raw network F with the preconditioning of Karras et al. 2022, table 1 (column "EDM").

    D = c_skip x + c_out F(c_in x, ln(sigma) / 4), with c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 +
    s^2), c_in = 1 / sqrt(sigma^2 + s^2), where s is the standard deviation of the data in [-1, 1] units.
    """

    def __init__(self, network: Network, *, sigma_data: float = 0.5) -> None:
        """Wrap the network.

        Args:
            network: takes (preconditioned images, labels).
            sigma_data: standard deviation of the data.

        Raises:
            InputError: sigma_data not positive.
        """
        super().__init__()
        self.network = network
        self.sigma_data = _check.number("EdmDenoiser", "sigma_data", sigma_data, low=0.0, low_open=True)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x."""
        skip, out, into, label = edm_coefficients(sigma, self.sigma_data)
        return torch.add(skip * x, self.network(into * x, x.new_full((len(x),), label)), alpha=out)


class Clipped(nn.Module):
    """A denoiser whose estimate is clamped to [-1, 1]; the gradient is zero where the clamp acts.

    Shares of learned variances, if there are any behind the estimate, are left as they are.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        """Wrap the denoiser.

        Args:
            denoiser: any denoiser.
        """
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Estimate x0 from x."""
        c = x.shape[1]
        out = self.denoiser(x, sigma)
        return out.clamp(-1, 1) if out.shape[1] == c else torch.cat([out[:, :c].clamp(-1, 1), out[:, c:]], dim=1)


def edm_coefficients(sigma: float, sigma_data: float) -> tuple[float, float, float, float]:
    """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022, table 1."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4
