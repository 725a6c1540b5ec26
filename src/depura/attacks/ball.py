"""The threat model as a value: a norm and a radius, around an image, inside [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from depura import _check
from depura.noise import Kind, Noise

Norm = Literal["linf", "l2"]


class Threat(Protocol):
    """What an attacker may do to an image. A `Ball` is one; attacks that bend images have others."""

    @property
    def norm(self) -> str:
        """How the size of a change is measured."""
        ...

    @property
    def eps(self) -> float:
        """Largest size."""
        ...

    def distance(self, x: Tensor, origin: Tensor) -> Tensor:
        """Size of each image's change, (B,)."""
        ...

    def contains(self, x: Tensor, origin: Tensor) -> Tensor:
        """Whether each image is allowed, (B,)."""
        ...

    def corner(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random change of the largest size."""
        ...


@dataclass(frozen=True)
class Ball:
    """All images within eps of an image in a norm, and within [0, 1].

    Attributes:
        norm: "linf" or "l2", over all pixels and channels of one image.
        eps: radius in [0, 1] units, >= 0.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            _check.fail("Ball", f"norm among {', '.join(get_args(Norm))}", repr(self.norm))
        _check.number("Ball", "eps", self.eps, low=0.0, advice="It is a radius in [0, 1] units, such as 8/255.")

    def distance(self, x: Tensor, origin: Tensor) -> Tensor:
        """Norm of x - origin, image by image: (B, C, H, W) twice -> (B,)."""
        difference = (x - origin).flatten(1)
        return difference.abs().amax(1) if self.norm == "linf" else difference.square().sum(1).sqrt()

    def contains(self, x: Tensor, origin: Tensor, *, slack: float = 1e-6) -> Tensor:
        """Whether each image lies in the ball (radius eps (1 + slack), and float32 rounding) and in [0, 1]: (B,)."""
        inside = self.distance(x.double(), origin.double()) <= self.eps * (1 + slack) + 1e-7
        low, high = torch.aminmax(x.flatten(1), dim=1)
        return inside & (low >= 0) & (high <= 1)

    def project(self, x: Tensor, origin: Tensor) -> Tensor:
        """Bring each image into the ball and into [0, 1].

        For linf this is the nearest point. For l2: onto the ball, into the box, onto the ball again (which cannot leave
        the box, as the segment towards the origin lies in it).

        Args:
            x: (B, C, H, W).
            origin: centre, in [0, 1].

        Returns:
            (B, C, H, W).
        """
        if self.norm == "linf":
            return torch.clamp(torch.minimum(torch.maximum(x, origin - self.eps), origin + self.eps), 0, 1)
        return self._shrink(self._shrink(x, origin).clamp(0, 1), origin)

    def sample(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random point: uniform in the ball, then into [0, 1].

        Args:
            origin: centre, (B, C, H, W).
            noise: the randomness, one image id per row.
            step: address of the draw, to make several.

        Returns:
            (B, C, H, W).
        """
        uniform = noise.uniform(origin, kind=Kind.ATTACK, step=step)
        if self.norm == "linf":
            return self.project(origin + self.eps * (2 * uniform - 1), origin)
        direction = noise(origin, kind=Kind.AUGMENT, step=step)
        radius = self.eps * uniform.flatten(1)[:, 0] ** (1 / direction[0].numel())
        return self.project(origin + per_image(radius) * self.unit(direction), origin)

    def corner(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random point of the largest size: signs (linf) or a direction (l2) at radius eps, then into [0, 1].

        Args:
            origin: centre, (B, C, H, W).
            noise: the randomness, one image id per row.
            step: address of the draw, to make several.

        Returns:
            (B, C, H, W).
        """
        return self.project(origin + self.eps * self.unit(noise(origin, kind=Kind.ATTACK, step=step)), origin)

    def unit(self, gradient: Tensor) -> Tensor:
        """Steepest ascent direction of unit norm: sign(g) for linf, g / |g| for l2 (0 where g is 0)."""
        if self.norm == "linf":
            return gradient.sign()
        length = gradient.flatten(1).square().sum(1).sqrt()
        return gradient / per_image(torch.where(length > 0, length, torch.ones_like(length)))

    def _shrink(self, x: Tensor, origin: Tensor) -> Tensor:
        length = (x - origin).flatten(1).square().sum(1).sqrt()
        factor = torch.where(length > self.eps, self.eps / length.clamp_min(torch.finfo(x.dtype).tiny), 1.0)
        return origin + per_image(factor).to(x.dtype) * (x - origin)


def per_image(v: Tensor) -> Tensor:
    """One number per image, (B,), shaped to go with images: (B, 1, 1, 1)."""
    return v[:, None, None, None]
