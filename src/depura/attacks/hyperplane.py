"""The shortest way from an image to a hyperplane without leaving [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from depura.attacks.ball import Norm


def dual_norm(norm: Norm, w: Tensor) -> Tensor:
    """Largest <w, d> over changes d of norm 1: the l1 norm for linf, the l2 norm for l2; (B, C, H, W) -> (B,)."""
    flat = w.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.square().sum(1).sqrt()


def to_hyperplane(norm: Norm, x: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """The smallest change d with <w, d> = gap and x + d in [0, 1]; where there is none, the one that comes closest.

    All pixels move at once, pixel i at a speed of 1 (linf) or |w_i| (l2) towards its end of [0, 1], and stop there.
    This is what the conditions of optimality ask for: as a function of time the product <w, d> is concave and piecewise
    linear, with a kink where a pixel stops, so that sorting the times of the stops solves it exactly. The projection of
    Croce and Hein 2020 (arXiv:1907.02044).

    Args:
        norm: "linf" or "l2".
        x: (B, C, H, W) in [0, 1].
        w: normals, (B, C, H, W); pixels where it is zero do not move.
        gap: (B,), how much <w, x> has to grow.

    Returns:
        d, (B, C, H, W).
    """
    point, normal = x.flatten(1), w.flatten(1)
    way = normal.sign() * gap.sign()[:, None]
    room = torch.where(way > 0, 1 - point, point).clamp_min(0) * way.abs()
    weight = normal.abs()
    speed = torch.where((weight == 0) | (norm == "linf"), 1.0, weight)
    stop, order = (room / speed).sort(dim=1)
    gained = (weight * room).gather(1, order)
    before = gained.cumsum(1) - gained
    slope = (weight * speed).gather(1, order).flip(1).cumsum(1).flip(1)
    # The stretch between two stops in which the gap is closed. Beyond the last stop it cannot be: time only goes on.
    stretch = (before + slope * stop < gap.abs()[:, None]).sum(1, keepdim=True)
    here = stretch.clamp_max(stop.shape[1] - 1)
    rate = slope.gather(1, here)
    missing = (gap.abs()[:, None] - before.gather(1, here)).clamp_min(0)
    time = missing / torch.where(rate > 0, rate, 1.0)
    return (way * torch.minimum(time * speed, room)).reshape(x.shape)
