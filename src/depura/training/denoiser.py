"""Training a denoiser: EDM's weighted denoising loss (Karras et al. 2022, section 5)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from depura import _check
from depura.data.imageset import ImageSet
from depura.denoisers import Denoiser, EdmDenoiser, edm_coefficients
from depura.networks.small import SmallUNet
from depura.noise import Kind, Noise, Stream
from depura.training.loop import Progress, Recipe, seeded, train

P_MEAN, P_STD = -1.2, 1.2
"""ln(sigma) ~ N(P_MEAN, P_STD^2) in training; Karras et al. 2022, table 1."""


class EdmLoss:
    """E over sigma and n of lambda(sigma) |D(x0 + sigma n; sigma) - x0|^2, lambda = (sigma^2 + s^2) / (sigma s)^2.

    In terms of the raw network F the weight is 1: the loss is |F - (x0 - c_skip x) / c_out|^2, mean over pixels.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float) -> None:
        """Set up.

        Args:
            network: raw network, takes (c_in x, ln(sigma) / 4).
            sigma_data: standard deviation of the data in [-1, 1] units.
        """
        self.network = network
        self.sigma_data = sigma_data

    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Loss of a batch.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: not used.
            noise: of the training step.

        Returns:
            Scalar.
        """
        x0 = 2 * images - 1
        levels = noise(torch.empty(len(x0)), kind=Kind.AUGMENT)
        sigma = torch.exp(P_MEAN + P_STD * levels)
        return self.at(x0, sigma, noise(x0, kind=Kind.FORWARD))

    def at(self, x0: Tensor, sigma: Tensor, n: Tensor) -> Tensor:
        """Loss at given levels.

        Args:
            x0: (B, C, H, W) in [-1, 1].
            sigma: (B,).
            n: standard normal, like x0.

        Returns:
            Scalar.
        """
        rows = torch.tensor([edm_coefficients(float(s), self.sigma_data) for s in sigma], dtype=x0.dtype)
        skip, out, into, label = rows.T
        x = x0 + _column(sigma) * n
        predicted = self.network(_column(into) * x, label)
        return ((predicted - (x0 - _column(skip) * x) / _column(out)) ** 2).mean()


def data_std(images: Tensor) -> float:
    """Standard deviation of all pixels in [-1, 1] units, to two digits (EDM's sigma_data)."""
    return round(math.sqrt(float((2 * images - 1).double().var())), 2)


def _column(v: Tensor) -> Tensor:
    return v[:, None, None, None]


def train_denoiser(
    data: ImageSet,
    recipe: Recipe,
    *,
    width: int = 24,
    checkpoint: Path | None = None,
    every: int = 500,
    progress: Progress | None = None,
) -> tuple[EdmDenoiser, dict[str, object]]:
    """Train a `SmallUNet` as an EDM denoiser.

    Args:
        data: training images, of even height and width.
        recipe: how.
        width: channels at the full resolution, a multiple of 8; twice as many at half of it.
        checkpoint: file to save to and go on from.
        every: steps between checkpoints.
        progress: told of each step.

    Returns:
        The denoiser, and what its weight file says about itself.

    Raises:
        InputError: a width that is no multiple of 8.
    """
    if _check.integer("train_denoiser", "width", width, low=8) % 8:
        _check.fail("train_denoiser", "a width that is a multiple of 8", f"{width}")
    architecture = {"channels": data.images.shape[1], "width": width, "inner": 2 * width, "embed": 32}
    sigma_data = data_std(data.images)
    network = seeded(lambda: SmallUNet(**architecture), recipe.seed)
    loss = EdmLoss(network, sigma_data=sigma_data)
    train(network, loss, data.images, data.labels, recipe, checkpoint=checkpoint, every=every, progress=progress)
    return EdmDenoiser(network, sigma_data=sigma_data), {"architecture": architecture, "sigma_data": sigma_data}


@torch.no_grad()
def denoising_error(denoiser: Denoiser, images: Tensor, *, sigma: float, seed: int = 0) -> float:
    """Root mean square error per pixel of the estimate, in [-1, 1] units, at one noise level.

    Args:
        denoiser: any denoiser.
        images: (N, C, H, W) in [0, 1].
        sigma: noise level.
        seed: of the noise.

    Returns:
        The error; sigma itself would be the error of not denoising.
    """
    x0 = 2 * images - 1
    noise = Noise(seed, tuple(range(len(x0))), stream=Stream.PROBE)
    x = x0 + sigma * noise(x0, kind=Kind.FORWARD)
    return float((denoiser(x, sigma) - x0).double().square().mean().sqrt())
