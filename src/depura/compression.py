"""JPEG compression as a map of tensors: what a decoder gives back of an image that was encoded (ITU-T T.81, JFIF).

The same on every device and for every batch, and differentiable by `depura.gradients.Relaxed`, which gives rounding and
clamping the derivative 1; the true derivative is zero almost everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check

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
