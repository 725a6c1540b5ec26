"""How a walk begins: the first state, from the image being purified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from depura.diffusion.schedules import DiscreteLinear, NoiseSchedule, Step
from depura.noise import Kind, Noise


class Start(Protocol):
    """How the walk begins."""

    def __call__(self, x_in: Tensor, step: Step, noise: Noise, /) -> Tensor:
        """The first state, at step.sigma, from the image being purified (both (B, C, H, W))."""
        ...


def from_input(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
    """The input, noised to the first level: x_in + sigma n."""
    return x_in + step.sigma * noise(x_in, kind=Kind.FORWARD)


def from_noise(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
    """Pure noise, sigma n: the input enters through guidance only."""
    return step.sigma * noise(x_in, kind=Kind.FORWARD)


def from_unit_noise(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
    """Pure noise, x_T ~ N(0, I) as DDPM's formulas have it: n / scale, more than `from_noise` by a factor near 1."""
    return noise(x_in, kind=Kind.FORWARD) / step.scale


@dataclass(frozen=True)
class FromInputUnder:
    """The input, noised by another schedule than the one walked back on.

    x_t = scale (x_in + sigma n) under `schedule` at `t`, read in the first step's coordinates. DiffPure's released code
    noises with the discrete schedule and walks back on the continuous one.

    Attributes:
        schedule: schedule of the noising.
        t: its time.
    """

    schedule: NoiseSchedule
    t: float

    def __call__(self, x_in: Tensor, step: Step, noise: Noise, /) -> Tensor:
        """The first state."""
        x_t = self.schedule.scale(self.t) * (x_in + self.schedule.sigma(self.t) * noise(x_in, kind=Kind.FORWARD))
        return x_t / step.scale


@dataclass(frozen=True)
class FromInputAround:
    """The input, noised to an index drawn for each image from -below .. above around `index`.

    What DiffPure's released code does with its option rand_t (below 15, above 14): the noising varies, while the walk
    back starts from the same level always, so that the two do not fit. `diffpure_random` varies both.

    Attributes:
        index: index of the discrete schedule in the middle.
        below: how far below it at most.
        above: how far above it at most.
        schedule: the discrete schedule.
    """

    index: int
    below: int = 15
    above: int = 14
    schedule: DiscreteLinear = field(default_factory=DiscreteLinear)

    def __call__(self, x_in: Tensor, step: Step, noise: Noise, /) -> Tensor:
        """The first state."""
        share = noise.uniform(x_in[:, :1, :1, :1], kind=Kind.T_STAR)
        choices = range(self.index - self.below, self.index + self.above + 1)
        picked = (share * len(choices)).long().clamp(max=len(choices) - 1)
        scale, sigma = (
            torch.tensor([f(float(i)) for i in choices], dtype=x_in.dtype, device=x_in.device)[picked]
            for f in (self.schedule.scale, self.schedule.sigma)
        )
        return scale * (x_in + sigma * noise(x_in, kind=Kind.FORWARD)) / step.scale


def as_it_is(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
    """The input without noise, taken for a state x_t = scale x of the first step's level."""
    return x_in / step.scale
