"""Linear maps of images: resampling and blurring, all differentiable as often as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check

MODES = ("nearest", "bilinear", "bicubic")
"""Interpolations of `Upsampled`, in torch's words."""


@dataclass(frozen=True)
class Upsampled:
    """Interpolation onto a finer grid, align_corners=False.

    Attributes:
        mode: "nearest", "bilinear" or "bicubic".
        factor: how much finer.
    """

    mode: str = "bilinear"
    factor: int = 4

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            _check.fail("Upsampled", f"one of {', '.join(MODES)}", repr(self.mode))
        _check.integer("Upsampled", "factor", self.factor, low=1)

    def __call__(self, images: Tensor) -> Tensor:
        """Interpolate, (B, C, H, W) -> (B, C, factor H, factor W)."""
        return F.interpolate(images, scale_factor=self.factor, mode=self.mode)


@dataclass(frozen=True)
class Blurred:
    """Convolution with a Gaussian of unit sum, edges repeated outwards.

    Attributes:
        std: standard deviation in pixels.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        _check.number("Blurred", "std", self.std, low=0.0, low_open=True)

    def __call__(self, images: Tensor) -> Tensor:
        """Blur, (B, C, H, W) -> (B, C, H, W)."""
        radius = max(1, round(3 * self.std))
        padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
        return filtered(padded, gaussian_window(radius, self.std, padded))


def gaussian_window(radius: int, std: float, like: Tensor) -> Tensor:
    """Samples of a Gaussian at -radius .. radius, of unit sum, in the dtype and on the device of `like`."""
    offsets = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    window = torch.exp(-(offsets**2) / (2 * std**2))
    return window / window.sum()


def filtered(images: Tensor, window: Tensor, *, padding: int = 0) -> Tensor:
    """Every channel convolved with the outer product of a symmetric window with itself, zeros outside.

    Args:
        images: (B, C, H, W).
        window: (2 r + 1,).
        padding: rows and columns of zeros on each side.

    Returns:
        (B, C, H + 2 padding - 2 r, W + 2 padding - 2 r).
    """
    c = images.shape[1]
    kernel = (window[:, None] * window[None, :]).expand(c, 1, -1, -1)
    return F.conv2d(images, kernel, padding=padding, groups=c)


def bilinear(images: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolation to a size (H, W), align_corners=False, no antialiasing."""
    return F.interpolate(images, size=list(size), mode="bilinear", align_corners=False, antialias=False)
