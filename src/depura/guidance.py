"""Guidance: a displacement added to the state after each step of the reverse process."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from depura.noise import Noise
from depura.schedules import Step


class State(NamedTuple):
    """What guidance may look at.

    Attributes:
        x: state at step.sigma, (B, C, H, W), x0 + sigma n coordinates.
        x0: estimate of the clean image, attached to the graph of x.
        x_in: the image being purified, [-1, 1] units, attached to the graph of the input.
        step: row of the step table.
        noise: randomness of this walk (draw with Kind.GUIDANCE).
    """

    x: Tensor
    x0: Tensor
    x_in: Tensor
    step: Step
    noise: Noise


class Guidance(Protocol):
    """Displacement of the next state."""

    def __call__(self, at: State, /) -> Tensor:
        """The displacement, in x0 + sigma n coordinates.

        Args:
            at: the state; `at.x` requires grad, so `pull` works whatever the caller's grad mode.

        Returns:
            (B, C, H, W).
        """
        ...


def pull(distance: Tensor, x: Tensor) -> Tensor:
    """Minus the gradient of a distance, image by image; itself differentiable.

    Summing over the batch keeps images apart: each distance depends on its own image only.

    Args:
        distance: one number per image, (B,), attached to the graph of x.
        x: what to differentiate by, (B, C, H, W).

    Returns:
        -d distance_b / d x_b, (B, C, H, W).
    """
    (gradient,) = torch.autograd.grad(distance.sum(), x, create_graph=True)
    return -gradient
