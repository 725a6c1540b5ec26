"""The random changes that Square tries: flat squares in linf, bumps whose mass moves from window to window in l2.

Andriushchenko et al. 2020 (arXiv:1912.00049), algorithms 2 and 3. Where randomness is needed it is handed over as
uniform numbers, a row for each image, so that a search can be replayed on recorded ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from depura import _check
from depura.attacks.ball import Ball, per_image


class Moves(Protocol):
    """How a random search begins and what it tries."""

    def n_uniforms(self, shape: Sequence[int]) -> tuple[int, int]:
        """Uniform numbers per image (C, H, W) that the start takes, and that a proposal takes."""
        ...

    def start(self, ball: Ball, images: Tensor, u: Tensor) -> Tensor:
        """Where the search begins, (B, C, H, W), with uniform numbers u (B, n)."""
        ...

    def propose(self, ball: Ball, images: Tensor, best: Tensor, share: float, u: Tensor) -> Tensor:
        """A point to try next to the best so far, (R, C, H, W), that alters about a share of the pixels."""
        ...


@dataclass(frozen=True)
class FlatSquares:
    """Add +-2 eps to every channel of a square, and return to the ball; begin with vertical stripes of +-eps.

    The uniform numbers are: the signs of the stripes, (C, W); then for a proposal row, column and C signs.
    """

    def n_uniforms(self, shape: Sequence[int]) -> tuple[int, int]:
        """Uniform numbers that the start takes, and that a proposal takes."""
        return shape[0] * shape[2], 2 + shape[0]

    def side(self, shape: Sequence[int], share: float) -> int:
        """Side of the square, in pixels."""
        return min(max(round((share * shape[1] * shape[2]) ** 0.5), 1), *shape[1:])

    def start(self, ball: Ball, images: Tensor, u: Tensor) -> Tensor:
        """Stripes."""
        stripes = signs(u).reshape(len(images), images.shape[1], 1, images.shape[3])
        return ball.project(images + ball.eps * stripes, images)

    def propose(self, ball: Ball, images: Tensor, best: Tensor, share: float, u: Tensor) -> Tensor:
        """One more square."""
        square = _Window.of(images, self.side(images.shape[1:], share), u[:, :2]).inside()
        return ball.project(best + 2 * ball.eps * (signs(u[:, 2:])[:, :, None, None] * square), images)


@dataclass(frozen=True)
class Bumps:
    """Move what one window carries of the change to another, there add a bump, and fill up to the radius.

    A bump is two halves of opposite sign, each highest in its middle, side by side or one above the other. The start
    tiles the image with bumps of a fifth of its shorter side.

    The uniform numbers are: for every tile, row by row, orientation and C signs; then for a proposal row and column of
    the window that grows, row and column of the window that is emptied, orientation and C signs.

    Attributes:
        offset: rows above and columns left of the first tile. By default the tiles are centred; the released code
            leaves (H - 5 (H div 5)) div 2, which for 8 pixels is 1 and pushes the last tiles over the border.
    """

    offset: int | None = None

    def __post_init__(self) -> None:
        if self.offset is not None:
            _check.integer("Bumps", "offset", self.offset)

    def n_uniforms(self, shape: Sequence[int]) -> tuple[int, int]:
        """Uniform numbers that the start takes, and that a proposal takes."""
        tile = self._tile(shape)
        return (shape[1] // tile) * (shape[2] // tile) * (1 + shape[0]), 5 + shape[0]

    def side(self, shape: Sequence[int], share: float) -> int:
        """Side of the windows, in pixels: odd, unless the image is smaller."""
        return min(max(round((share * shape[1] * shape[2]) ** 0.5), 3) | 1, *shape[1:])

    def start(self, ball: Ball, images: Tensor, u: Tensor) -> Tensor:
        """Tiles."""
        b, c, h, w = images.shape
        tile = self._tile((c, h, w))
        down, across = h // tile, w // tile
        top, left = ((n % tile) // 2 if self.offset is None else self.offset for n in (h, w))
        each = u.reshape(b, down * across, 1 + c)
        delta = torch.zeros_like(images)
        for number in range(down * across):
            row, column = top + number // across * tile, left + number % across * tile
            there = delta[:, :, row : row + tile, column : column + tile]
            sign = signs(each[:, number, 1:])[:, :, None, None]
            shape = _oriented(bump(tile, like=images), each[:, number, 0]) * sign
            there += shape[:, :, : there.shape[2], : there.shape[3]]
        return _at_radius(ball, images, delta)

    def propose(self, ball: Ball, images: Tensor, best: Tensor, share: float, u: Tensor) -> Tensor:
        """Mass from the second window to the first."""
        delta, c = best - images, images.shape[1]
        side = self.side(images.shape[1:], share)
        grows, empties = _Window.of(images, side, u[:, :2]), _Window.of(images, side, u[:, 2:4])
        first, second = grows.inside(), empties.inside()
        inside = delta * first
        shape = grows.place(_oriented(bump(side, like=images), u[:, 4])) * signs(u[:, 5:])[:, :, None, None]
        shape = shape + inside / (1e-12 + _per_channel(inside))
        free = (ball.eps**2 - delta.flatten(1).square().sum(1)).clamp_min(0) / c
        size = (per_image(free) + _per_channel(delta * (first | second)) ** 2).sqrt()
        shape = shape / (1e-12 + _per_channel(shape)) * size
        return _at_radius(ball, images, torch.where(first, shape, delta * ~second))

    def _tile(self, shape: Sequence[int]) -> int:
        return max(min(shape[1:]) // 5, 1)


def bump(side: int, *, like: Tensor) -> Tensor:
    """A bump of norm 1, (side, side): the upper half positive, the lower negative, each of norm 1 before scaling.

    Args:
        side: in pixels.
        like: dtype and device.

    Returns:
        The bump. In a half of p x side pixels the height at (i, j) is the sum of 1 / (k + 1)^2 over k from
        max(|i - p div 2|, |j - side div 2|) to max(p, side) div 2.
    """
    upper = side // 2
    parts = [_half(upper, side, like), -_half(side - upper, side, like)]
    whole = torch.cat(parts)
    return whole / whole.square().sum().sqrt()


def signs(u: Tensor) -> Tensor:
    """-1 below 1/2, else 1."""
    return torch.where(u < 0.5, -1.0, 1.0).to(u.dtype)


class _Window(NamedTuple):
    """Squares, one per image: rows and columns of all pixels counted from the square's corner."""

    rows: Tensor
    columns: Tensor
    side: int

    @classmethod
    def of(cls, images: Tensor, side: int, u: Tensor) -> _Window:
        """Everywhere with equal chance, for uniform numbers (R, 2)."""
        counted: list[Tensor] = []
        for n, number in zip(images.shape[2:], u.unbind(1), strict=True):
            corner = ((n - side + 1) * number).floor().clamp_max(n - side).long()
            counted.append(torch.arange(n, device=images.device)[None, :] - corner[:, None])
        return cls(counted[0], counted[1], side)

    def inside(self) -> Tensor:
        """Which pixels are in the square, (R, 1, H, W)."""
        rows, columns = ((k >= 0) & (k < self.side) for k in (self.rows, self.columns))
        return rows[:, None, :, None] & columns[:, None, None, :]

    def place(self, shape: Tensor) -> Tensor:
        """Put (R, 1, side, side) in the square, 0 outside, (R, 1, H, W)."""
        rows, columns = (k.clamp(0, self.side - 1) for k in (self.rows, self.columns))
        image = torch.arange(len(shape), device=shape.device)[:, None, None]
        return shape[image, 0, rows[:, :, None], columns[:, None, :]][:, None] * self.inside()


def _half(height: int, width: int, like: Tensor) -> Tensor:
    """Half of a bump, norm 1."""
    reach = max(height, width) // 2
    heights = [sum(1 / (k + 1) ** 2 for k in range(distance, reach + 1)) for distance in range(reach + 1)]
    i, j = torch.arange(height)[:, None], torch.arange(width)[None, :]
    distance = torch.maximum((i - height // 2).abs(), (j - width // 2).abs())
    half = torch.tensor(heights, dtype=like.dtype)[distance].to(like.device)
    return half / half.square().sum().sqrt() if height else half


def _oriented(shape: Tensor, u: Tensor) -> Tensor:
    """The bump for each image, transposed where u (R,) is above 1/2: (R, 1, side, side)."""
    return torch.where(per_image(u) > 0.5, shape.T, shape)


def _per_channel(x: Tensor) -> Tensor:
    """Norm of each channel, (R, C, 1, 1)."""
    return x.square().sum((2, 3), keepdim=True).sqrt()


def _at_radius(ball: Ball, images: Tensor, delta: Tensor) -> Tensor:
    """The image changed by eps in the direction of delta, in [0, 1]."""
    size = delta.flatten(1).square().sum(1).sqrt()
    return ball.project((images + ball.eps * delta / (per_image(size) + 1e-12)).clamp(0, 1), images)
