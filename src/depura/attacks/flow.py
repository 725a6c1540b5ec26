"""Bending an image instead of adding to it: a flow field, the sampling, and its size as a threat model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check
from depura.noise import Kind, Noise


@dataclass(frozen=True)
class Flow:
    """All images that come of moving each sampling point of an image by at most eps along each axis.

    In grid units: an image spans [-1, 1] along each axis, so that eps is eps W / 2 pixels to the sides and eps H / 2 up
    or down. All channels move together. A point that leaves the pixel centres at the border meets black.

    A flow cannot be read off a bent image. `distance` is therefore the largest change of a pixel, which eps does not
    bound; and `contains` is a necessary condition, which some images that no flow makes pass too (see there).

    Attributes:
        eps: largest shift along each axis, in grid units, >= 0; 0.05 in DiffPure's evaluation.
    """

    eps: float = 0.05

    def __post_init__(self) -> None:
        advice = "It is a shift in grid units, where the image spans [-1, 1], such as 0.05."
        _check.number("Flow", "eps", self.eps, low=0.0, high=2.0, advice=advice)

    @property
    def norm(self) -> str:
        """The largest shift of a sampling point."""
        return "flow"

    def distance(self, x: Tensor, origin: Tensor) -> Tensor:
        """Largest change of a pixel, in [0, 1] units: (B, C, H, W) twice -> (B,)."""
        return (x - origin).flatten(1).abs().amax(1)

    def contains(self, x: Tensor, origin: Tensor, *, slack: float = 1e-5) -> Tensor:
        """Whether each image lies in [0, 1] and every pixel in it is a mixture of the neighbours within reach: (B,).

        The weight of the pixel itself is at least (1 - eps W / 2) (1 - eps H / 2), where both are positive; the rest is
        shared by pixels at most ceil(eps W / 2), ceil(eps H / 2) away, and black outside the image. Channel by channel.

        Args:
            x: (B, C, H, W).
            origin: the image that is bent.
            slack: for rounding, in [0, 1] units.

        Returns:
            (B,), bool.
        """
        x, origin = x.double(), origin.double()
        h, w = origin.shape[2:]
        up, side = self.eps * h / 2, self.eps * w / 2
        # No further than the image is wide: beyond it there is only black.
        reach = (min(math.ceil(up), h), min(math.ceil(side), w))
        padded = F.pad(origin, (reach[1], reach[1], reach[0], reach[0]))
        window = (2 * reach[0] + 1, 2 * reach[1] + 1)
        highest, lowest = F.max_pool2d(padded, window, stride=1), -F.max_pool2d(-padded, window, stride=1)
        others = 1 - max(0.0, 1 - up) * max(0.0, 1 - side)
        below = x >= origin + others * (lowest - origin) - slack
        above = x <= origin + others * (highest - origin) + slack
        return (below & above & (x >= 0) & (x <= 1)).flatten(1).all(1)

    def grid(self, images: Tensor) -> Tensor:
        """The sampling points that leave images as they are, (B, H, W, 2): column and row coordinate of pixel centres.

        Coordinates are (2 j + 1) / W - 1 and (2 i + 1) / H - 1, by torch's own function: the bilinear surface has a
        kink at pixel centres, and which slope is taken there hangs on the last bit.
        """
        still = torch.eye(2, 3, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
        return F.affine_grid(still, list(images.shape), align_corners=False)

    def project(self, points: Tensor, still: Tensor) -> Tensor:
        """Sampling points into [-1, 1], then to within eps of where they began; (B, H, W, 2) twice, and the result."""
        return torch.clamp(points.clamp(-1, 1) - still, -self.eps, self.eps) + still

    def corner(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """Images bent by a random flow of the largest size: every point by eps along each axis, within the image.

        Args:
            origin: (B, C, H, W).
            noise: the randomness, one image id per row.
            step: address of the draw, to make several.

        Returns:
            (B, C, H, W).
        """
        still = self.grid(origin)
        signs = noise(still, kind=Kind.ATTACK, step=step).sign()
        return sampled(origin, self.project(still + self.eps * signs, still))

    def sample(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """Images bent by a random flow, uniform in [-eps, eps] along each axis; as `corner`."""
        still = self.grid(origin)
        shares = 2 * noise.uniform(still, kind=Kind.ATTACK, step=step) - 1
        return sampled(origin, self.project(still + self.eps * shares, still))


def sampled(images: Tensor, points: Tensor) -> Tensor:
    """Images read at sampling points, bilinearly; black outside, within [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        points: (B, H, W, 2), column and row coordinate in [-1, 1] grid units.

    Returns:
        (B, C, H, W).
    """
    return warped(images, points).clamp(0, 1)


def warped(images: Tensor, points: Tensor) -> Tensor:
    """As `sampled`, without the clamp that only rounding needs, to be differentiated by the points."""
    return F.grid_sample(images, points, mode="bilinear", padding_mode="zeros", align_corners=False)


def roughness(flow: Tensor) -> Tensor:
    """Sum over pixels and their four neighbours of sqrt(|f_p - f_q|^2 + 1e-10): how unevenly a flow moves.

    Flow loss of Xiao et al. 2018 (arXiv:1801.02612), smoothed at 0 as released. Beyond the border the difference is 0.

    Args:
        flow: (B, H, W, 2).

    Returns:
        (B,).
    """
    b, h, w, _ = flow.shape
    down = (flow[:, 1:] - flow[:, :-1]).square().sum(3)
    right = (flow[:, :, 1:] - flow[:, :, :-1]).square().sum(3)
    inner = torch.cat([(d.reshape(b, -1) + 1e-10).sqrt() for d in (down, right)], dim=1).sum(1)
    return 2 * inner + 2 * (h + w) * 1e-5
