"""Denoisers in closed form: oracles for tests and for seeing what a method does without a network's error.

All are posterior means E[x0 | x0 + sigma n = x] of a stated distribution of x0, in [-1, 1] units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depura import _check


class GaussianDenoiser(nn.Module):
    """x0 ~ N(mean, diag(std^2)):  D = mean + std^2 / (std^2 + sigma^2) (x - mean)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """Set the distribution.

        Args:
            mean: (C, H, W).
            std: standard deviation of each element, (C, H, W) or broadcastable to it.
        """
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Posterior mean."""
        variance = self.std**2
        return self.mean + variance / (variance + sigma**2) * (x - self.mean)


class MixtureDenoiser(nn.Module):
    """x0 ~ sum_k weight_k N(mean_k, std^2 I).

    With r_k the posterior probabilities of the components given x (a softmax of -|x - mean_k|^2 / 2(std^2 + sigma^2)
    plus log weights), D = m + std^2 / (std^2 + sigma^2) (x - m), m = sum_k r_k mean_k.
    """

    means: Tensor
    log_weights: Tensor

    def __init__(self, means: Tensor, *, std: float, weights: Tensor | None = None) -> None:
        """Set the distribution.

        Args:
            means: (K, C, H, W).
            std: common standard deviation, >= 0.
            weights: (K,), positive; default equal.

        Raises:
            InputError: negative std or misshapen means.
        """
        super().__init__()
        if means.ndim != 4:
            _check.fail("MixtureDenoiser", "means of shape (K, C, H, W)", f"shape {tuple(means.shape)}")
        weights = torch.ones(len(means), dtype=means.dtype) if weights is None else weights
        self.std = _check.number("MixtureDenoiser", "std", std, low=0.0)
        self.register_buffer("means", means)
        self.register_buffer("log_weights", torch.log(weights / weights.sum()))

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        """Posterior mean."""
        variance = self.std**2 + sigma**2
        squared = (x[:, None] - self.means[None]).flatten(2).square().sum(2)
        share = torch.softmax(self.log_weights - squared / (2 * variance), dim=1)
        m = torch.einsum("bk,kchw->bchw", share, self.means)
        return m + self.std**2 / variance * (x - m)


def empirical_denoiser(images: Tensor) -> MixtureDenoiser:
    """The exact denoiser of a finite set of images: a mixture of points.

    Args:
        images: (K, C, H, W) in [-1, 1].

    Returns:
        The denoiser; its output is a convex combination of the images.
    """
    return MixtureDenoiser(images, std=0.0)
