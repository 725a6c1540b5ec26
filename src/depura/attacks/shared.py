"""One step for many draws: the change of an image that is expected to break most draws of a randomised model.

The inner problem of DiffHammer (Wang et al., NeurIPS 2024), from its mathematics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from depura.attacks.ball import Ball

SHORTER = tuple(2.0**-k for k in range(10))
"""Shares of the way to the next iterate that a round of `shared_step` tries."""


class Shared(NamedTuple):
    """One step for all draws of an image, and what it decides.

    Attributes:
        step: (R, C, H, W), at most the given size long.
        weights: (R, m), >= 0, sum 1: how much each draw still depends on the step.
        broken: (R,), expected number of broken draws, sum_i sigmoid(sharpness (l_i + <step, u_i>)).
    """

    step: Tensor
    weights: Tensor
    broken: Tensor


def shared_step(
    ball: Ball, losses: Tensor, gradients: Tensor, *, size: float, sharpness: float, n_rounds: int
) -> Shared:
    """The step r, |r| <= size, that maximises J(r) = sum_i sigmoid(sharpness (l_i + <r, u_i>)).

    The derivative of J weighs draw i by q_i = sigmoid'(z_i), z_i being the argument above. So the maximiser over the
    ball, unless it lies inside, solves r = size * unit(sum_i q_i(r) u_i), which is iterated. J is neither convex nor
    concave and the full move may overshoot; so a round takes whichever share of the way raises J most, and stays where
    none does: J never falls. As there may be several maxima, the rounds begin at no step at all and at the step of each
    draw alone, and the best end is kept. Nothing of it asks the model.

    Args:
        ball: for its norm.
        losses: (R, m), 0 at the border.
        gradients: (R, m, C, H, W).
        size: longest step.
        sharpness: slope, > 0.
        n_rounds: of the iteration, at most.

    Returns:
        The step in float64, the weights q_i / sum_j q_j at it, and J.
    """
    shape, flat = gradients.shape, gradients.flatten(2).double()

    def unit(directions: Tensor) -> Tensor:
        return ball.unit(directions.reshape(-1, *shape[2:])).reshape(directions.shape)

    def reach(steps: Tensor) -> Tensor:
        return sharpness * (losses.double()[:, None] + steps @ flat.mT)

    step = size * torch.cat([torch.zeros_like(flat[:, :1]), unit(flat)], dim=1)
    z = reach(step)
    shares = torch.tensor(SHORTER, dtype=z.dtype, device=z.device)
    for _ in range(n_rounds):
        aim = size * unit(_weights(z) @ flat)
        aimed = reach(aim)
        tried = z + shares[:, None, None, None] * (aimed - z)
        value, which = _log_broken(tried).max(0)
        share = torch.where(value > _log_broken(z) + 1e-12, shares[which], 0.0)[..., None]
        step, z = step + share * (aim - step), z + share * (aimed - z)
        if not bool((share > 0).any()):
            break
    rows, end = torch.arange(len(z), device=z.device), _log_broken(z).argmax(1)
    return Shared(
        step[rows, end].reshape(shape[0], *shape[2:]), _weights(z)[rows, end], _log_broken(z)[rows, end].exp()
    )


def _weights(z: Tensor) -> Tensor:
    """sigmoid'(z), made to sum to 1 over the last axis; in logarithms, as all may be too small for floating point."""
    return torch.softmax(logsigmoid(z) + logsigmoid(-z), dim=-1)


def _log_broken(z: Tensor) -> Tensor:
    """log sum sigmoid(z) over the last axis: rises with the sum, and does not underflow."""
    return torch.logsumexp(logsigmoid(z), dim=-1)
