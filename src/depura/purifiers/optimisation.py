"""A purifier that optimises the image instead of a reverse process: a few steps of Adam on a diffusion loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import minus_gradient, recorded
from depura.diffusion.schedules import Step
from depura.gradients import ChainState, FromEnd, GradientRoute, StoredState
from depura.noise import Kind, Noise, Stream
from depura.purifiers.purifier import IterativePurifier

MIN_SQUARE = 1e-30
"""Least second moment under Adam's square root, so that its derivative stays finite where a gradient is zero."""


class Look(NamedTuple):
    """What a descent direction may look at.

    Attributes:
        z: the image being optimised, (B, C, H, W), [-1, 1] units.
        x0: D(z + sigma n; sigma), attached to the graph of z.
    """

    z: Tensor
    x0: Tensor


Direction = Callable[[Look], Tensor]
"""The gradient to descend, (B, C, H, W), per image."""


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), image by image: it sees single entries only.

    Attributes:
        rate: step size, in [-1, 1] image units.
        beta1: decay of the first moment.
        beta2: decay of the second.
        eps: added to the root of the second moment.
    """

    rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check.number("Adam", "rate", self.rate, low=0.0, low_open=True)

    def step(self, z: Tensor, m: Tensor, v: Tensor, gradient: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """One step, the k-th from 0: new image and moments."""
        m = self.beta1 * m + (1 - self.beta1) * gradient
        v = self.beta2 * v + (1 - self.beta2) * gradient.square()
        mean, square = m / (1 - self.beta1 ** (k + 1)), v / (1 - self.beta2 ** (k + 1))
        return z - self.rate * mean / (square.clamp_min(MIN_SQUARE).sqrt() + self.eps), m, v


class Optimised(IterativePurifier):
    """Images in [0, 1] to images that a diffusion model finds likelier: Adam on a diffusion loss, from the input.

    Each step draws a noise level sigma ~ U(low, high) and noise n afresh. A level is drawn per draw number, the same
    for all images of a batch, so that a batch is one call of the denoiser for each draw in it. The state is the
    image with Adam's two moments.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        direction: Direction,
        n_steps: int = 5,
        sigma_range: tuple[float, float] = (0.4, 0.6),
        optimiser: Adam | None = None,
        proximity: float = 0.0,
        gradient: GradientRoute | None = None,
        clamp: bool = True,
    ) -> None:
        """Compose the parts.

        Args:
            denoiser: D(x, sigma) -> x0.
            direction: what is descended.
            n_steps: steps of Adam, one denoiser evaluation each.
            sigma_range: lowest and highest noise level.
            optimiser: default `Adam()`.
            proximity: weight of the mean squared distance to the input, added to the loss.
            gradient: how the steps are differentiated; default `StoredState()`, exact.
            clamp: clamp the result to [0, 1].

        Raises:
            InputError: no steps, or levels that are not positive and ordered.
        """
        super().__init__()
        self.denoiser = denoiser
        self.direction = direction
        count = _check.integer("Optimised", "n_steps", n_steps, low=1, high=65535)
        low = _check.number("Optimised", "lowest sigma", sigma_range[0], low=0.0, low_open=True)
        self.sigma_range = (low, _check.number("Optimised", "highest sigma", sigma_range[1], low=low))
        middle = (low + self.sigma_range[1]) / 2
        self.steps = tuple(Step(k, middle, middle, middle, middle, 1.0, 1.0, middle) for k in range(count))
        self.optimiser = Adam() if optimiser is None else optimiser
        self.proximity = _check.number("Optimised", "proximity", proximity, low=0.0)
        self.gradient = StoredState() if gradient is None else gradient
        self.clamp = clamp
        self.requires_grad_(False).eval()

    @property
    def n_steps(self) -> int:
        """Steps of Adam."""
        return len(self.steps)

    def first(self, image: Tensor, noise: Noise) -> ChainState:
        """The input, and moments of zero."""
        return image, torch.zeros_like(image), torch.zeros_like(image)

    def advance(self, state: ChainState, x_in: Tensor, step: Step, noise: Noise) -> tuple[ChainState, Tensor]:
        """One step of Adam (see `IterativePurifier.advance`): the image and its two moments."""
        _, m, v = state

        def descend(z: Tensor) -> tuple[Tensor, ...]:
            x0 = self._denoise(z, noise, step.index)
            gradient = self.direction(Look(z, x0))
            if self.proximity > 0:
                gradient = gradient + 2 * self.proximity / z[0].numel() * (z - x_in)
            return (*self.optimiser.step(z, m, v, gradient, step.index), x0)

        *after, x0 = recorded(descend, state[0], x_in)
        return tuple(after), x0

    def coarser(self, share: int) -> Optimised:
        """A copy that takes one step for every `share` steps."""
        return self.with_(n_steps=ceil(len(self.steps) / share))

    def one_step(self, where: float) -> Optimised:
        """A copy with a single step."""
        return self.with_(n_steps=1)

    def differential(self, noise: Noise) -> FromEnd:
        """Refused: there is no differential equation."""
        return _check.fail("Adjoint", "steps along a differential equation", "an optimisation", "Use StoredState.")

    def _denoise(self, z: Tensor, noise: Noise, k: int) -> Tensor:
        """D(z + sigma n; sigma), each draw at its own level."""
        n = noise(z, kind=Kind.REVERSE, step=k)
        draws = (noise.draws,) * len(noise) if isinstance(noise.draws, int) else noise.draws
        rows = {d: [b for b in range(len(draws)) if draws[b] == d] for d in dict.fromkeys(draws)}
        order = torch.tensor([b for group in rows.values() for b in group], device=z.device)
        pieces: list[Tensor] = []
        for draw, group in rows.items():
            sigma = self._level(noise.seed, draw, noise.stream, noise.round, k)
            pieces.append(self.denoiser(z[group] + sigma * n[group], sigma))
        return torch.cat(pieces)[order.argsort()]

    def _level(self, seed: int, draw: int, stream: Stream, number: int, k: int) -> float:
        level = Noise(seed, (0,), draws=draw, stream=stream, round=number)
        share = float(level.uniform(torch.empty(1, dtype=torch.float64), kind=Kind.AUGMENT, step=k))
        low, high = self.sigma_range
        return low + share * (high - low)


def through_network(look: Look) -> Tensor:
    """Gradient of the mean squared |D(z + sigma n) - z|^2 by z, through both of its places."""
    return -minus_gradient((look.x0 - look.z).square().flatten(1).mean(1), look.z)


def residual(look: Look) -> Tensor:
    """2 (z - D) / N: the same with the network's output held constant, so that no Jacobian of it is taken."""
    return 2 / look.z[0].numel() * (look.z - look.x0)
