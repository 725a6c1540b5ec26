"""Guidance: a displacement added to the state after each step of the reverse process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from depura.diffusion.schedules import Step
from depura.noise import Noise

R = TypeVar("R", bound="tuple[Any, ...]")


class State(NamedTuple):
    """What guidance is given.

    Attributes:
        x: state at step.sigma, (B, C, H, W), x0 + sigma n coordinates.
        x0: estimate of the clean image, attached to the graph of x.
        x_in: the image being purified, [-1, 1] units, attached to the graph of the input.
        step: row of the step table.
        noise: randomness of this purification (draw with Kind.GUIDANCE).
        variance: of the noise that the step adds, in x0 + sigma n coordinates; a tensor where the network learned it.
    """

    x: Tensor
    x0: Tensor
    x_in: Tensor
    step: Step
    noise: Noise
    variance: Tensor | float = 0.0


class Guidance(Protocol):
    """Displacement of the next state."""

    def __call__(self, at: State, /) -> Tensor:
        """The displacement, in x0 + sigma n coordinates.

        Args:
            at: the state; `at.x` requires grad, so `minus_gradient` works whatever the caller's grad mode.

        Returns:
            (B, C, H, W).
        """
        ...


def minus_gradient(distance: Tensor, x: Tensor) -> Tensor:
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


def chosen_class(logits: Tensor) -> Tensor:
    """1 at the largest logit and 0 elsewhere, by signs, of which `depura.gradients.Relaxed` knows a derivative.

    Args:
        logits: (B, K), K >= 2.

    Returns:
        (B, K); halves where two are the largest, NaN for an image with a logit that is not finite.
    """
    top = logits.topk(2, dim=1).values
    leads = logits - torch.where(logits == top[:, :1], top[:, 1:], top[:, :1])
    return ((1 + leads.sign()) / 2).masked_fill(~logits.isfinite().all(1, keepdim=True), torch.nan)


def mean_shift(at: State) -> Tensor | float:
    """Weight of a gradient of log p by x that makes it DDPM's mean shift, Sigma grad_{x_t} log p.

    Dhariwal and Nichol 2021 (arXiv:2105.05233), algorithm 1, where x_t = scale x and Sigma is the variance of the
    step's noise there. In x0 + sigma n coordinates: variance * scale_next / scale. 0 on a step without noise.

    Args:
        at: the state.

    Returns:
        The weight, a tensor where the variance is learned.
    """
    return at.variance * (at.step.scale_next / at.step.scale)


def score_shift(at: State) -> float:
    """Weight of a gradient of log p by x that adds it to the score of the reverse SDE: sigma^2 - sigma'^2.

    Song et al. 2021 (arXiv:2011.13456), eq. 14 (controllable generation).

    Args:
        at: the state.

    Returns:
        The weight.
    """
    return at.step.sigma**2 - at.step.sigma_next**2


def recorded(f: Callable[[Tensor], R], x: Tensor, x_in: Tensor) -> R:
    """f(x) for an f that differentiates inside: it runs with a graph, and returns one only if the caller records.

    So values do not depend on grad mode.

    Args:
        f: function of the state; it may close over x_in.
        x: the state.
        x_in: the image being purified.

    Returns:
        What f gives, detached if nobody records.
    """
    recording = torch.is_grad_enabled() and (x.requires_grad or x_in.requires_grad)
    with torch.enable_grad():
        out = f(x if recording and x.requires_grad else x.detach().requires_grad_())
    if recording:
        return out
    bare: list[Any] = [part.detach() if isinstance(part, Tensor) else part for part in out]
    return type(out)(*bare) if hasattr(out, "_fields") else type(out)(bare)
