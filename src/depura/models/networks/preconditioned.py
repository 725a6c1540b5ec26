"""Preconditioners of Karras et al. 2022 (arXiv:2206.00364), table 1, as the published pickles have them.

Each holds the network as `model`, so that state dicts have the published names, and gives D(x; sigma), the posterior
mean of the clean image in [-1, 1] units: with one noise level for the batch each is a denoiser. Factors and labels are
computed in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from depura import _check


class Preconditioned(nn.Module, ABC):
    """D = skip x + out F(into x; label), with the four of each noise level."""

    model: Callable[..., Tensor]

    def __init__(self, model: nn.Module) -> None:
        """Wrap a network, called as model(input, label, classes=, augment=)."""
        super().__init__()
        self.model = model

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Skip, out, into and label of noise levels (B,), float64, > 0: four times (B,), float64."""

    def forward(
        self, x: Tensor, sigma: float | Tensor, classes: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Estimate the clean image.

        Args:
            x: x0 + sigma n, (B, C, H, W).
            sigma: noise level, > 0, or (B,) of them.
            classes: for a class-conditional network: (B,) int64, or (B, classes) shares.
            augment: (B, augment) of an augmentation in training.

        Returns:
            Estimate of x0, (B, C, H, W), in [-1, 1] units.
        """
        if isinstance(sigma, Tensor):
            levels = sigma.to(x.device, torch.float64).expand(len(x))
        else:  # made on the device, which a copy would wait for
            levels = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        *factors, label = self.coefficients(levels)
        skip, out, into = (factor.to(x.dtype)[:, None, None, None] for factor in factors)
        f = self.model(into * x, label, classes=classes, augment=augment)
        return skip * x + out * f[:, : x.shape[1]]


class EdmPreconditioned(Preconditioned):
    """Karras et al.'s own: skip s^2 / r^2, out sigma s / r, into 1 / r, label ln(sigma) / 4; r^2 = sigma^2 + s^2."""

    def __init__(self, model: nn.Module, *, sigma_data: float = 0.5) -> None:
        """Wrap a network.

        Args:
            model: takes (input, label, classes=, augment=), as `SongUNet` and `DhariwalUNet` do.
            sigma_data: s, the standard deviation of the data in [-1, 1] units, > 0.
        """
        super().__init__(model)
        self.sigma_data = _check.number("EdmPreconditioned", "sigma_data", sigma_data, low=0.0, low_open=True)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Skip, out, into and label of noise levels (B,)."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4


class VpPreconditioned(Preconditioned):
    """Song et al. 2021's variance-preserving one: skip 1, out -sigma, into 1/sqrt(1 + sigma^2), label (steps - 1) t.

    t = (sqrt(beta_min^2 + 2 beta_slope ln(1 + sigma^2)) - beta_min) / beta_slope.
    """

    def __init__(self, model: nn.Module, *, beta_slope: float = 19.9, beta_min: float = 0.1, steps: int = 1000) -> None:
        """Wrap a network.

        Args:
            model: takes (input, label, classes=, augment=).
            beta_slope: rise of the noise's rate over unit time, > 0.
            beta_min: rate at time 0, > 0.
            steps: labels run from 0 to steps - 1.
        """
        super().__init__(model)
        self.beta_slope = _check.number("VpPreconditioned", "beta_slope", beta_slope, low=0.0, low_open=True)
        self.beta_min = _check.number("VpPreconditioned", "beta_min", beta_min, low=0.0, low_open=True)
        self.steps = _check.integer("VpPreconditioned", "steps", steps, low=1)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Skip, out, into and label of noise levels (B,)."""
        squared = sigma**2
        root = (self.beta_min**2 + 2 * self.beta_slope * squared.log1p()).sqrt()
        t = (root - self.beta_min) / self.beta_slope
        return torch.ones_like(sigma), -sigma, (1 + squared).rsqrt(), (self.steps - 1) * t


class VePreconditioned(Preconditioned):
    """Song et al. 2021's variance-exploding one: skip 1, out sigma, into 1, label ln(sigma / 2)."""

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Skip, out, into and label of noise levels (B,)."""
        one = torch.ones_like(sigma)
        return one, sigma, one, (sigma / 2).log()


class IddpmPreconditioned(Preconditioned):
    """Nichol and Dhariwal 2021's: skip 1, out -sigma, into 1/sqrt(1 + sigma^2), label steps - 1 - (nearest entry of u).

    u, part of the weights, is the decreasing table of noise levels: u_steps = 0, and u_{j-1}^2 = (u_j^2 + 1) /
    max(a_{j-1}/a_j, ratio_floor) - 1, where a_j = sin^2(pi j / (2 steps (offset + 1))). Noise levels are rounded to it
    for the label only. Of six outputs, the last three (variances) are left.
    """

    u: Tensor

    def __init__(
        self, model: nn.Module, *, ratio_floor: float = 0.001, offset: float = 0.008, steps: int = 1000
    ) -> None:
        """Wrap a network.

        Args:
            model: takes (input, label, classes=, augment=).
            ratio_floor: C1 of table 1, > 0.
            offset: C2 of table 1, >= 0.
            steps: M of table 1; the table has one entry more.
        """
        super().__init__(model)
        _check.number("IddpmPreconditioned", "ratio_floor", ratio_floor, low=0.0, low_open=True)
        _check.number("IddpmPreconditioned", "offset", offset, low=0.0)
        _check.integer("IddpmPreconditioned", "steps", steps, low=1)
        a = [math.sin(math.pi / 2 * j / (steps * (offset + 1))) ** 2 for j in range(steps + 1)]
        u = [0.0] * (steps + 1)
        for j in range(steps, 0, -1):
            u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(a[j - 1] / a[j], ratio_floor) - 1)
        self.register_buffer("u", torch.tensor(u, dtype=torch.float32))

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Skip, out, into and label of noise levels (B,)."""
        nearest = (self.u.double() - sigma[:, None]).abs().argmin(dim=1)
        label = (len(self.u) - 2 - nearest).to(sigma.dtype)
        return torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), label
