"""Linear maps of images: resampling and blurring, all differentiable as often as one likes."""

from __future__ import annotations

import math
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


C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for images of range 1 (Wang et al. 2004, section III.B)."""


def minus_mse(a: Tensor, b: Tensor) -> Tensor:
    """Minus the mean squared error, (B, C, H, W) twice -> (B,)."""
    return -(a - b).square().flatten(1).mean(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity, (B, C, H, W) twice -> (B,); 1 for equal images.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    Trans. Image Processing 2004, eq. 13, with their 11 x 11 Gaussian window of 1.5 pixels; zeros outside the image.
    """
    window = gaussian_window(5, 1.5, a)

    def local(x: Tensor) -> Tensor:
        return filtered(x, window, padding=5)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    both = local(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + C1) * (2 * both + C2)
    apart = (mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2)
    return (alike / apart).flatten(1).mean(1)


def dssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural dissimilarity, (1 - `ssim`) / 2: (B, C, H, W) twice -> (B,), 0 for equal images, at most 1."""
    return (1 - ssim(a, b)) / 2


SIDE = 8
"""Pixels along a side of a block."""

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of brightness; ITU-T T.81, table K.1."""

CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(4 * ((99,) * 8,)),
)
"""Quantisation of colour; ITU-T T.81, table K.2."""

TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""From red, green, blue to brightness and two differences of colour; JFIF 1.02."""

FROM_YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
"""The inverse."""


AWAY = 1 + 1e-6
"""Factor that makes halves round away from zero, as encoders do; sums of whole numbers often end in them."""


@dataclass(frozen=True)
class Jpeg:
    """An image encoded and decoded, close to what libjpeg makes of it, whose sums are rounded otherwise.

    Attributes:
        quality: of libjpeg's scale, 1 .. 100.
        subsampled: colour at half the resolution (4:2:0), as encoders do unless told otherwise.
    """

    quality: int = 75
    subsampled: bool = True

    def __post_init__(self) -> None:
        _check.integer("Jpeg", "quality", self.quality, low=1, high=100)

    def __call__(self, images: Tensor) -> Tensor:
        """Encode and decode.

        Args:
            images: (B, 1 or 3, H, W), nominally in [0, 1]; clamped to it.

        Returns:
            The same shape, whole numbers of 255ths.

        Raises:
            InputError: another number of channels.
        """
        if images.shape[1] not in (1, 3):
            _check.fail("Jpeg", "images of 1 or 3 channels", f"{images.shape[1]}")
        pixels = (255 * images).round().clamp(0, 255)
        if images.shape[1] == 1:
            return self._coded(pixels - 128, LUMINANCE).add(128).round().clamp(0, 255) / 255
        levels = images.new_tensor((0.0, 128.0, 128.0)).view(1, 3, 1, 1)
        ycc = (_mixed(pixels, TO_YCC) + levels).round()
        bright = self._coded(ycc[:, :1] - 128, LUMINANCE) + 128
        colour = ycc[:, 1:] - 128
        height, width = images.shape[2:]
        if self.subsampled:
            colour = F.avg_pool2d(_extended(colour, 2), 2).round()
        colour = self._coded(colour, CHROMINANCE).round().clamp(-128, 127)
        if self.subsampled:
            colour = F.interpolate(colour, scale_factor=2.0, mode="bilinear")[..., :height, :width]
        decoded = torch.cat([bright.round().clamp(0, 255), colour], dim=1)
        return _mixed(decoded, FROM_YCC).round().clamp(0, 255) / 255

    def _coded(self, values: Tensor, table: tuple[tuple[int, ...], ...]) -> Tensor:
        """Blocks transformed, quantised and transformed back."""
        scale = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        steps = values.new_tensor([[min(max((q * scale + 50) // 100, 1), 255) for q in row] for row in table])
        height, width = values.shape[2:]
        blocks = _extended(values, SIDE).unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)
        cosines = _cosines(values)
        coefficients = cosines @ blocks @ cosines.T
        found = cosines.T @ ((AWAY * coefficients / steps).round() * steps) @ cosines
        rows = found.permute(0, 1, 2, 4, 3, 5)
        joined = rows.reshape(*values.shape[:2], rows.shape[2] * SIDE, rows.shape[4] * SIDE)
        return joined[..., :height, :width]


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of eight values, as a matrix."""
    rows = [
        [math.sqrt((1 if k == 0 else 2) / SIDE) * math.cos(math.pi * k * (2 * n + 1) / (2 * SIDE)) for n in range(SIDE)]
        for k in range(SIDE)
    ]
    return like.new_tensor(rows)


def _extended(values: Tensor, side: int) -> Tensor:
    """Edges repeated outwards, to the right and below, until both sides are multiples."""
    height, width = values.shape[2:]
    return F.pad(values, (0, -width % side, 0, -height % side), mode="replicate")


def _mixed(colours: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Channels mixed pixel by pixel."""
    return torch.einsum("dc,bchw->bdhw", colours.new_tensor(matrix), colours)
