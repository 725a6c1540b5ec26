"""How alike two images are, one number per image."""

from __future__ import annotations

from torch import Tensor

from depura.filters import filtered, gaussian_window

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
