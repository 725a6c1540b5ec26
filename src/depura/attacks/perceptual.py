"""How different two images look, as a threat model: not how far apart their pixels are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from depura import _check
from depura.attacks.threat import per_image
from depura.image_ops import dssim
from depura.noise import Kind, Noise

Dissimilarity = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images, (B, C, H, W) each, to one number per image, (B,): 0 for equal images, larger for less alike.

Differentiable by the first; each image by itself."""

HALVINGS = 40
"""Of the interval in which the farthest image allowed is looked for."""


@dataclass(frozen=True)
class Perceptual:
    """All images in [0, 1] whose dissimilarity from an image is at most eps.

    Attributes:
        eps: largest dissimilarity, >= 0. It depends on the measure: 0.05 of one is not 0.05 of another.
        measure: the dissimilarity; default (1 - SSIM) / 2, which needs no network. LPIPS (Zhang et al. 2018,
            arXiv:1801.03924) is another, whose weights are not in this library.
    """

    eps: float = 0.05
    measure: Dissimilarity = dssim

    def __post_init__(self) -> None:
        advice = "It is a dissimilarity in units of the measure, such as 0.05."
        _check.number("Perceptual", "eps", self.eps, low=0.0, advice=advice)
        if not callable(self.measure):
            what = type(self.measure).__name__
            raise _check.InputTypeError(
                f"Perceptual: expected measure to be a callable of two batches of images, got {what}."
            )

    @property
    def norm(self) -> str:
        """The measure is not a norm; this is the name of the threat model."""
        return "perceptual"

    def distance(self, x: Tensor, origin: Tensor) -> Tensor:
        """Dissimilarity of each image from its origin, computed in float64.

        Args:
            x: (B, C, H, W).
            origin: of the same shape.

        Returns:
            (B,), float64.

        Raises:
            InputError: a measure that does not give one number per image.
        """
        found = self.measure(x.double(), origin.double())
        if found.shape != (len(x),):
            _check.fail("Perceptual", f"a measure that gives {len(x)} numbers, one per image", f"{tuple(found.shape)}")
        return found

    def contains(self, x: Tensor, origin: Tensor, *, slack: float = 1e-6) -> Tensor:
        """Whether each image lies in [0, 1] and differs by at most eps, and rounding: (B,), bool."""
        low, high = torch.aminmax(x.flatten(1), dim=1)
        return (self.distance(x, origin) <= self.eps + slack) & (low >= 0) & (high <= 1)

    def project(self, x: Tensor, origin: Tensor) -> Tensor:
        """Bring each image inside: into [0, 1], and back along the straight line to its origin as far as need be.

        The share of the change that is kept is found by bisection. Where the dissimilarity does not rise all along the
        line it is one at which the border is crossed, not always the largest.

        Args:
            x: (B, C, H, W).
            origin: in [0, 1].

        Returns:
            (B, C, H, W), at most eps from the origin.
        """
        ahead = x.clamp(0, 1)
        inside = self.distance(ahead, origin) <= self.eps
        if bool(inside.all()):
            return ahead
        low, high = torch.zeros_like(inside, dtype=torch.float64), torch.ones_like(inside, dtype=torch.float64)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            allowed = self.distance(_between(origin, ahead, middle), origin) <= self.eps
            low, high = torch.where(allowed, middle, low), torch.where(allowed, high, middle)
        return torch.where(per_image(inside), ahead, _between(origin, ahead, low))

    def corner(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random change of the largest size: from the image towards random black and white pixels, until eps.

        Args:
            origin: (B, C, H, W).
            noise: the randomness, one image id per row.
            step: address of the draw, to make several.

        Returns:
            (B, C, H, W).
        """
        return self.project((noise(origin, kind=Kind.ATTACK, step=step) > 0).to(origin.dtype), origin)

    def sample(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random point: from the image towards uniform pixels, a uniform share of the way that is allowed."""
        target = noise.uniform(origin, kind=Kind.ATTACK, step=step)
        share = noise.uniform(origin[:, 0, 0, 0].double(), kind=Kind.AUGMENT, step=step)
        return self.project(_between(origin, self.project(target, origin), share), origin)


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From a towards b, a share (B,) of the way, within [0, 1] and in the dtype of a."""
    return torch.lerp(a.double(), b.double(), per_image(share.double())).clamp(0, 1).to(a.dtype)
