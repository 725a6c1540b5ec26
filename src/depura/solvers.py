"""One step of the reverse process, sigma -> sigma_next, in x = x0 + sigma n coordinates.

A solver is told the denoiser, the state, the row of the step table and the noise; it remembers nothing and does not
know whether it is differentiated. Kernels are those of Song et al. 2021 (arXiv:2010.02502 and 2011.13456), Ho et al.
2020 and Karras et al. 2022, written in these coordinates (a variance-preserving x_t is scale * x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from depura import _check
from depura.noise import Kind, Noise
from depura.schedules import VP, Step


class Denoise(Protocol):
    """What a solver needs of a denoiser: an estimate of x0 from x at noise level sigma."""

    def __call__(self, x: Tensor, sigma: float, /) -> Tensor:
        """Estimate x0, (B, C, H, W) -> (B, C, H, W)."""
        ...


class StepResult(NamedTuple):
    """Outcome of one step.

    Attributes:
        x_next: state at sigma_next, (B, C, H, W).
        x0: the clean image as estimated at the start of the step.
    """

    x_next: Tensor
    x0: Tensor


class Solver(Protocol):
    """One step of the reverse process."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """Go from step.sigma to step.sigma_next.

        Args:
            denoise: the denoiser.
            x: state at step.sigma, (B, C, H, W).
            step: row of the step table.
            noise: randomness of this walk; addressed by step.index.

        Returns:
            The next state and the estimate of x0.
        """
        ...


@runtime_checkable
class Differential(Protocol):
    """A solver that is Euler's method on a differential equation, and therefore has a continuous adjoint."""

    def from_end(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> tuple[Tensor, float]:
        """Euler's step over the same interval with the same noise, from x, with everything else taken at its later end.

        Args:
            denoise: the denoiser.
            x: state at step.sigma_next > 0, (B, C, H, W).
            step: row of the step table.
            noise: randomness of this walk.

        Returns:
            x + h F(x, t') + g(t') dW in the solver's own coordinates, given in those of x; and by how much these
            coordinates grow over the step (scale / scale_next for a solver on x_t = scale x, else 1).
        """
        ...


@dataclass(frozen=True)
class Euler:
    """Euler's method on the probability-flow ODE dx/dsigma = (x - D) / sigma; the same as DDIM with eta = 0."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = D + (sigma' / sigma) (x - D)."""
        x0 = denoise(x, step.sigma)
        return StepResult(x0 + (step.sigma_next / step.sigma) * (x - x0), x0)

    def from_end(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> tuple[Tensor, float]:
        """x + (sigma' - sigma) (x - D(x, sigma')) / sigma'."""
        slope = (x - denoise(x, step.sigma_next)) / step.sigma_next
        return x + (step.sigma_next - step.sigma) * slope, 1.0


@dataclass(frozen=True)
class Heun:
    """Heun's second-order method on the probability-flow ODE; Karras et al. 2022, algorithm 1.

    A step to sigma' = 0 is an Euler step. Two denoiser calls a step otherwise.
    """

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = x + (sigma' - sigma) (d + d~) / 2 with d~ the slope at the Euler prediction."""
        x0 = denoise(x, step.sigma)
        slope = (x - x0) / step.sigma
        predicted = x + (step.sigma_next - step.sigma) * slope
        if step.sigma_next == 0:
            return StepResult(predicted, x0)
        corrected = (predicted - denoise(predicted, step.sigma_next)) / step.sigma_next
        return StepResult(x + (step.sigma_next - step.sigma) * 0.5 * (slope + corrected), x0)


@dataclass(frozen=True)
class Ancestral:
    """DDPM's ancestral step with the small (posterior) variance; eta scales its noise, as in DDIM.

    Ho et al. 2020, eq. 7; Song et al. 2021 (DDIM), eq. 16. eta = 1 is DDPM, eta = 0 is DDIM (`Euler`).

    Attributes:
        eta: share of the posterior's standard deviation that is drawn afresh, in [0, 1].
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        _check.number("Ancestral", "eta", self.eta, low=0.0, high=1.0)

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = D + sqrt(sigma'^2 - u^2) / sigma (x - D) + u z, u = eta sigma' sqrt(1 - sigma'^2 / sigma^2)."""
        x0 = denoise(x, step.sigma)
        ratio = step.sigma_next / step.sigma
        fresh = self.eta * step.sigma_next * math.sqrt(1 - ratio**2)
        kept = math.sqrt(step.sigma_next**2 - fresh**2) / step.sigma
        x_next = x0 + kept * (x - x0)
        if fresh > 0:
            x_next = x_next + fresh * noise(x, kind=Kind.REVERSE, step=step.index)
        return StepResult(x_next, x0)


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE with the variance sigma^2 as its clock.

    The mean is the ancestral one; the noise variance is sigma^2 - sigma'^2 rather than the posterior's.
    """

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = x + (1 - sigma'^2 / sigma^2) (D - x) + sqrt(sigma^2 - sigma'^2) z."""
        x0 = denoise(x, step.sigma)
        x_next = x + (1 - (step.sigma_next / step.sigma) ** 2) * (x0 - x)
        spread = math.sqrt(step.sigma**2 - step.sigma_next**2)
        return StepResult(x_next + spread * noise(x, kind=Kind.REVERSE, step=step.index), x0)

    def from_end(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> tuple[Tensor, float]:
        """x + (sigma^2 - sigma'^2) (D(x, sigma') - x) / sigma'^2 + sqrt(sigma^2 - sigma'^2) z."""
        interval = step.sigma**2 - step.sigma_next**2
        moved = x + interval / step.sigma_next**2 * (denoise(x, step.sigma_next) - x)
        return moved + math.sqrt(interval) * noise(x, kind=Kind.REVERSE, step=step.index), 1.0


@dataclass(frozen=True)
class EulerMaruyamaVP:
    """Euler-Maruyama on the reverse VP-SDE in its own coordinates x_t: DiffPure's solver.

    With h = t - t', s the score and beta the schedule's rate:  x_t' = x_t + h (beta / 2 x_t + beta s) + sqrt(beta h) z.
    Nie et al. 2022, eq. 4-5; s = (D - x) / (scale sigma^2). There is no final denoising: the last step adds noise too.

    Attributes:
        schedule: the VP schedule that the step table was made from.
    """

    schedule: VP = field(default_factory=VP)

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """One Euler-Maruyama step in x_t, converted at its door and exit."""
        x0 = denoise(x, step.sigma)
        z = noise(x, kind=Kind.REVERSE, step=step.index)
        x_t = self._euler(x, x0, z, t=step.t, sigma=step.sigma, scale=step.scale, h=step.t - step.t_next)
        return StepResult(x_t / step.scale_next, x0)

    def from_end(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> tuple[Tensor, float]:
        """The same step with rate, score and scale at t'."""
        x0 = denoise(x, step.sigma_next)
        z = noise(x, kind=Kind.REVERSE, step=step.index)
        t, sigma, scale = step.t_next, step.sigma_next, step.scale_next
        x_t = self._euler(x, x0, z, t=t, sigma=sigma, scale=scale, h=step.t - step.t_next)
        return x_t / scale, step.scale / scale

    def _euler(self, x: Tensor, x0: Tensor, z: Tensor, *, t: float, sigma: float, scale: float, h: float) -> Tensor:
        """x_t after a step of length h with the coefficients of time t."""
        rate = self.schedule.beta(t) * h
        score = (x0 - x) / (scale * sigma**2)
        return (1 + rate / 2) * scale * x + rate * score + math.sqrt(rate) * z
