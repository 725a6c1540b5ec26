"""The threat model as a value: a norm and a radius, around an image, inside [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from depura import _check
from depura.noise import Kind, Noise

Norm = Literal["linf", "l2", "l1"]


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
        norm: "linf", "l2" or "l1", over all pixels and channels of one image.
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
        if self.norm == "linf":
            return difference.abs().amax(1)
        return difference.square().sum(1).sqrt() if self.norm == "l2" else difference.abs().sum(1)

    def contains(self, x: Tensor, origin: Tensor, *, slack: float = 1e-6) -> Tensor:
        """Whether each image lies in the ball (radius eps (1 + slack), and float32 rounding) and in [0, 1]: (B,).

        In l1 the rounding errors of all entries that were changed add up.
        """
        changed = (x != origin).flatten(1).sum(1) if self.norm == "l1" else 1
        inside = self.distance(x.double(), origin.double()) <= self.eps * (1 + slack) + 1e-7 * changed
        low, high = torch.aminmax(x.flatten(1), dim=1)
        return inside & (low >= 0) & (high <= 1)

    def project(self, x: Tensor, origin: Tensor) -> Tensor:
        """Bring each image into the ball and into [0, 1].

        For linf and l1 this is the nearest point. For l2: onto the ball, into the box, onto the ball again (which
        cannot leave the box, as the segment towards the origin lies in it).

        Args:
            x: (B, C, H, W).
            origin: centre, in [0, 1].

        Returns:
            (B, C, H, W).
        """
        if self.norm == "linf":
            return torch.clamp(torch.minimum(torch.maximum(x, origin - self.eps), origin + self.eps), 0, 1)
        if self.norm == "l1":
            return _onto_l1_and_box(x, origin, self.eps)
        return self._shrink(self._shrink(x, origin).clamp(0, 1), origin)

    def sample(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random point: uniform in the ball, then into [0, 1] (for l1 by the nearest point of both).

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
        n = direction[0].numel()
        if self.norm == "l1":
            spread = -torch.log(uniform.to(torch.float64).clamp_min(2.0**-33))
            fill = -torch.log(noise.uniform(spread, kind=Kind.GUIDANCE, step=step)).flatten(1)[:, 0]
            whole = per_image(spread.flatten(1).sum(1) + fill)
            return self.project(origin + self.eps * (direction.sign() * spread / whole).to(origin.dtype), origin)
        radius = self.eps * uniform.flatten(1)[:, 0] ** (1 / n)
        return self.project(origin + per_image(radius) * self.unit(direction), origin)

    def corner(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random point of the largest size: signs (linf) or a direction at radius eps, then into [0, 1].

        For l1 it is `unit` of a normal draw: some pixels by as much as each other.

        Args:
            origin: centre, (B, C, H, W).
            noise: the randomness, one image id per row.
            step: address of the draw, to make several.

        Returns:
            (B, C, H, W).
        """
        return self.project(origin + self.eps * self.unit(noise(origin, kind=Kind.ATTACK, step=step)), origin)

    def surface(self, origin: Tensor, noise: Noise, *, step: int = 0) -> Tensor:
        """A random point from which APGD starts: a draw of the cube (linf) or of directions scaled to length eps.

        Args:
            origin: centre, (B, C, H, W).
            noise: the randomness, one image id per row.
            step: address of the draw, to make several.

        Returns:
            (B, C, H, W), in the ball and in [0, 1].
        """
        if self.norm == "l1":
            return self.sample(origin, noise, step=step)
        if self.norm == "linf":
            drawn = 2 * noise.uniform(origin, kind=Kind.ATTACK, step=step) - 1
            length = drawn.flatten(1).abs().amax(1)
        else:
            drawn = noise(origin, kind=Kind.ATTACK, step=step)
            length = drawn.flatten(1).square().sum(1).sqrt()
        return self.project(origin + self.eps * drawn / per_image(length + 1e-12), origin)

    def unit(self, gradient: Tensor) -> Tensor:
        """Ascent direction of unit norm (0 where g is 0).

        The steepest one for linf, sign(g), and l2, g / |g|. For l1 the steepest moves a single entry; here the signs of
        the largest twentieth of the entries share the length, as steps of practical attacks do (Tramer and Boneh 2019,
        arXiv:1904.13000).
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l1":
            few = max(1, gradient[0].numel() // 20)
            return signs_of_largest(gradient, torch.full(gradient.shape[:1], few, device=gradient.device))
        length = gradient.flatten(1).square().sum(1).sqrt()
        return gradient / per_image(torch.where(length > 0, length, torch.ones_like(length)))

    def free(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient; for l1 without the entries that the walls of [0, 1] hold at x: sparse steps on them are lost.

        Steps in linf and l2 move all entries anyway.
        """
        if self.norm != "l1":
            return gradient
        held = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
        return torch.where(held, 0.0, gradient)

    def _shrink(self, x: Tensor, origin: Tensor) -> Tensor:
        length = (x - origin).flatten(1).square().sum(1).sqrt()
        factor = torch.where(length > self.eps, self.eps / length.clamp_min(torch.finfo(x.dtype).tiny), 1.0)
        return origin + per_image(factor).to(x.dtype) * (x - origin)


def only(where: str, ball: Ball, *norms: Norm) -> None:
    """Refuse a ball of a norm other than those that an attack, named by `where`, knows."""
    if ball.norm not in norms:
        _check.fail(where, f"a ball in {' or '.join(norms)}", ball.norm, "For l1 take APGD or TargetedAPGD.")


def signs_of_largest(gradient: Tensor, few: Tensor) -> Tensor:
    """Signs of the `few` (B,) largest entries of each gradient, scaled to l1 length 1 (0 where it is 0)."""
    flat = gradient.flatten(1)
    least = flat.abs().sort(1, descending=True).values.gather(1, few[:, None] - 1)
    chosen = torch.where(flat.abs() >= least, flat.sign(), 0.0)
    return (chosen / chosen.abs().sum(1, keepdim=True).clamp_min(1)).reshape(gradient.shape)


def _onto_l1_and_box(x: Tensor, origin: Tensor, eps: float) -> Tensor:
    """Nearest point (in l2) to x within l1 distance eps of the origin and within [0, 1].

    It is origin + sign(d) clip(|d| - lambda, 0, room) for d = x - origin, room the way to the wall in that direction,
    and the smallest lambda >= 0 that brings the l1 distance to eps or below. The distance is piecewise linear in lambda
    and bends at |d| and at |d| - room, so lambda is found exactly from the sorted bends.
    """
    d = (x - origin).flatten(1).to(torch.float64)
    size, room = d.abs(), torch.where(d > 0, 1 - origin.flatten(1), origin.flatten(1)).to(torch.float64).clamp_min(0)
    bends, order = torch.cat([size, size - room], dim=1).sort(1)
    # Below size - room an entry is at the wall; between the two bends it falls with slope -1.
    slopes = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1).gather(1, order)
    after = slopes.cumsum(1)
    drops = after[:, :-1] * bends.diff(dim=1)
    reached = room.sum(1, keepdim=True) + torch.cat([torch.zeros_like(bends[:, :1]), drops.cumsum(1)], dim=1)
    reached[:, -1] = 0  # what is left of rounding
    k = (reached <= eps).to(torch.int64).argmax(1, keepdim=True)
    inside = (reached[:, :1] <= eps).squeeze(1)
    left = (k - 1).clamp_min(0)
    slope = after.gather(1, left)
    lam = bends.gather(1, left) + (eps - reached.gather(1, left)) / torch.where(slope < 0, slope, -1.0)
    lam = torch.where(inside[:, None], -torch.inf, lam).clamp_min(0)
    moved = d.sign() * (size - lam).clamp_min(0).minimum(room)
    return (origin + moved.to(x.dtype).reshape(x.shape)).clamp(0, 1)


def per_image(v: Tensor) -> Tensor:
    """One number per image, (B,), shaped to go with images: (B, 1, 1, 1)."""
    return v[:, None, None, None]
