"""The reverse process: how it starts, and one step sigma -> sigma_next, in x = x0 + sigma n coordinates.

A solver is given the denoiser, the state, the row of the step table and the noise; it remembers nothing and does not
know whether it is differentiated. A multistep solver is given the estimate of the step before, too. Kernels are those
of Song et al. 2021 (arXiv:2010.02502 and 2011.13456), Ho et al. 2020, Karras et al. 2022 and Lu et al. 2022
(arXiv:2211.01095), written in these coordinates (a variance-preserving x_t is scale * x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from depura import _check
from depura.diffusion.schedules import VP, DiscreteLinear, NoiseSchedule, Step
from depura.noise import Kind, Noise


class Start(Protocol):
    """How the reverse process begins."""

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
    """The input, noised by another schedule than that of the reverse process.

    x_t = scale (x_in + sigma n) under `schedule` at `t`, read in the first step's coordinates. DiffPure's released code
    noises with the discrete schedule and solves the reverse process of the continuous one.

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

    What DiffPure's released code does with its option rand_t (below 15, above 14): the noising varies, while the
    reverse process starts from the same level always, so that the two do not fit. `diffpure_random` varies both.

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
        variance: of the noise that was added, for guidance that is weighted by it; a tensor where it is learned.
    """

    x_next: Tensor
    x0: Tensor
    variance: Tensor | float = 0.0


class Solver(Protocol):
    """One step of the reverse process."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """Go from step.sigma to step.sigma_next.

        Args:
            denoise: the denoiser.
            x: state at step.sigma, (B, C, H, W).
            step: row of the step table.
            noise: randomness of this purification; addressed by step.index.

        Returns:
            The next state and the estimate of x0.
        """
        ...


class Before(NamedTuple):
    """What a multistep solver is given of the step before.

    Attributes:
        x0: the clean image as estimated at its start, (B, C, H, W), attached to the graph of the reverse process.
        sigma: noise level there, above that of the present step.
    """

    x0: Tensor
    sigma: float


@runtime_checkable
class Multistep(Protocol):
    """A solver that uses the estimate of the step before. Its `step` is what it does where there was none."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """The first step of a reverse process (see `Solver.step`)."""
        ...

    def after(self, before: Before) -> Solver:
        """The solver of the step that follows.

        Args:
            before: of the step before.

        Returns:
            Its `step` uses that estimate.
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
            noise: randomness of this purification.

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
        return StepResult(torch.lerp(x0, x, step.sigma_next / step.sigma), x0)

    def from_end(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> tuple[Tensor, float]:
        """x + (sigma' - sigma) (x - D(x, sigma')) / sigma'."""
        return torch.lerp(x, denoise(x, step.sigma_next), (step.sigma - step.sigma_next) / step.sigma_next), 1.0


@dataclass(frozen=True)
class Heun:
    """Heun's second-order method on the probability-flow ODE; Karras et al. 2022, algorithm 1.

    A step to sigma' = 0 is an Euler step. Two denoiser calls a step otherwise.
    """

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = x + (sigma' - sigma) (d + d~) / 2 with d~ the slope at the Euler prediction."""
        x0 = denoise(x, step.sigma)
        predicted = torch.lerp(x0, x, step.sigma_next / step.sigma)
        if step.sigma_next == 0:
            return StepResult(predicted, x0)
        half = 0.5 * (step.sigma_next - step.sigma)
        halfway = torch.add(x, x - x0, alpha=half / step.sigma)
        corrected = predicted - denoise(predicted, step.sigma_next)
        return StepResult(halfway.add_(corrected, alpha=half / step.sigma_next), x0)


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
        x_next = torch.lerp(x0, x, kept)
        if fresh > 0:
            x_next = _noised(x_next, fresh, noise, step)
        return StepResult(x_next, x0, fresh**2)


@dataclass(frozen=True)
class DpmSolverPP:
    """DPM-Solver++(2M): a second-order exponential integrator, one denoiser call a step.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2, and SDE-DPM-Solver++(2M) of its section on stochastic sampling. With
    lambda = -log sigma, h and h_before the steps' lengths in lambda, the estimate is carried on to the middle of the
    step,

        D' = D + h / (2 h_before) (D - D_before),

    and takes the place of D in Euler's step or, with noise, in that of `Ancestral`:

        x' = D' + r (x - D'),        x' = D' + r^2 (x - D') + sigma' sqrt(1 - r^2) z,        r = sigma' / sigma.

    The first step has D' = D, and so has a step to sigma 0, which is infinitely long in lambda and gives D. A last step
    to a level above 0 is of second order, too: if it is far longer in lambda than the one before (as in `uniform_steps`
    with t_end near 0 and few steps), D' is far from D, so such tables should end at 0. With guidance the process is of
    first order.

    Attributes:
        stochastic: solve the reverse SDE instead of the probability-flow ODE.
    """

    stochastic: bool = False

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """The step of first order: that of `Euler` or `Ancestral`."""
        x0 = denoise(x, step.sigma)
        return self.moved(x0, x0, x, step, noise)

    def after(self, before: Before) -> Solver:
        """The solver of the step that follows: of second order; of first order to sigma 0."""
        return _DpmSolverAfter(self, before)

    def moved(self, ahead: Tensor, x0: Tensor, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """Euler's step or the ancestral one towards the estimate that was carried on; (B, C, H, W) each."""
        ratio = step.sigma_next / step.sigma
        if not self.stochastic:
            return StepResult(torch.lerp(ahead, x, ratio), x0)
        x_next, variance = torch.lerp(ahead, x, ratio**2), posterior_variance(step)
        if variance > 0:
            x_next = _noised(x_next, math.sqrt(variance), noise, step)
        return StepResult(x_next, x0, variance)


@dataclass(frozen=True)
class _DpmSolverAfter:
    """`DpmSolverPP` after a step."""

    solver: DpmSolverPP
    before: Before

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        x0, before = denoise(x, step.sigma), self.before
        if step.sigma_next == 0:
            return self.solver.moved(x0, x0, x, step, noise)
        share = 0.5 * math.log(step.sigma / step.sigma_next) / math.log(before.sigma / step.sigma)
        return self.solver.moved(torch.lerp(before.x0, x0, 1 + share), x0, x, step, noise)


@dataclass(frozen=True)
class AncestralLarge:
    """DDPM's ancestral step with the large variance beta: the mean of `Ancestral`, the noise of the forward process.

    Ho et al. 2020, section 3.2 (sigma_t^2 = beta_t). The last step, to sigma 0, adds none.

    Attributes:
        last: variance that guidance is given at the step to sigma 0 (`DDPM` codes take the posterior variance of the
            step before, see `last_variance`).
    """

    last: float = 0.0

    def __post_init__(self) -> None:
        _check.number("AncestralLarge", "last", self.last, low=0.0)

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = x + (1 - sigma'^2 / sigma^2) (D - x) + sqrt(beta) / scale' z, beta = 1 - scale^2 / scale'^2."""
        x0 = denoise(x, step.sigma)
        x_next = torch.lerp(x0, x, (step.sigma_next / step.sigma) ** 2)
        if step.sigma_next == 0:
            return StepResult(x_next, x0, self.last)
        variance = largest_variance(step)
        return StepResult(_noised(x_next, math.sqrt(variance), noise, step), x0, variance)


@dataclass(frozen=True)
class AncestralLearned:
    """DDPM's ancestral step whose variance the network learned, pixel by pixel, between the small and the large one.

    log Sigma = f log beta + (1 - f) log posterior variance; Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. 15. The
    denoiser must give f in further channels (`EpsVarianceDenoiser`). The last step, to sigma 0, adds no noise.

    Attributes:
        last: small variance at the step to sigma 0, where the posterior's is 0 (`last_variance`); for guidance only.
    """

    last: float = 0.0

    def __post_init__(self) -> None:
        _check.number("AncestralLearned", "last", self.last, low=0.0)

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = x + (1 - sigma'^2 / sigma^2) (D - x) + sqrt(Sigma) z."""
        x0, share = denoise(x, step.sigma).chunk(2, dim=1)
        x_next = torch.lerp(x0, x, (step.sigma_next / step.sigma) ** 2)
        small = posterior_variance(step) if step.sigma_next > 0 else self.last
        if small == 0:
            return StepResult(x_next, x0)
        variance = torch.exp(share * math.log(largest_variance(step)) + (1 - share) * math.log(small))
        if step.sigma_next > 0:
            x_next = torch.addcmul(x_next, variance.sqrt(), noise(x, kind=Kind.REVERSE, step=step.index))
        return StepResult(x_next, x0, variance)


def _noised(x: Tensor, spread: float, noise: Noise, step: Step) -> Tensor:
    """The state with the step's noise added, in place."""
    return x.add_(noise(x, kind=Kind.REVERSE, step=step.index), alpha=spread)


def posterior_variance(step: Step) -> float:
    """Variance of x at the step's end given x at its start and x0: sigma'^2 (1 - sigma'^2 / sigma^2)."""
    return step.sigma_next**2 * (1 - (step.sigma_next / step.sigma) ** 2)


def largest_variance(step: Step) -> float:
    """beta / scale'^2: variance of the forward step, in the coordinates of its start."""
    return (step.sigma**2 - step.sigma_next**2) * (1 + step.sigma_next**2) / (1 + step.sigma**2)


def last_variance(steps: Sequence[Step]) -> float:
    """What DDPM codes put for the variance of the step to sigma 0: the posterior variance of the step before, in x_t.

    Args:
        steps: a step table.

    Returns:
        The variance; 0 for a table of one step.
    """
    return posterior_variance(steps[-2]) * steps[-2].scale_next ** 2 if len(steps) > 1 else 0.0


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE with the variance sigma^2 as its clock.

    The mean is the ancestral one; the noise variance is sigma^2 - sigma'^2 rather than the posterior's.
    """

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = x + (1 - sigma'^2 / sigma^2) (D - x) + sqrt(sigma^2 - sigma'^2) z."""
        x0 = denoise(x, step.sigma)
        x_next = torch.lerp(x0, x, (step.sigma_next / step.sigma) ** 2)
        variance = step.sigma**2 - step.sigma_next**2
        return StepResult(_noised(x_next, math.sqrt(variance), noise, step), x0, variance)

    def from_end(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> tuple[Tensor, float]:
        """x + (sigma^2 - sigma'^2) (D(x, sigma') - x) / sigma'^2 + sqrt(sigma^2 - sigma'^2) z."""
        interval = step.sigma**2 - step.sigma_next**2
        moved = torch.lerp(x, denoise(x, step.sigma_next), interval / step.sigma_next**2)
        return _noised(moved, math.sqrt(interval), noise, step), 1.0


@dataclass(frozen=True)
class _ReverseVP:
    """Euler's method on a reverse VP process in its own coordinates x_t = scale x and time t.

    With h = t - t', s = (D - x) / (scale sigma^2) the score and beta the schedule's rate:

        x_t' = x_t + beta h (x_t / 2 + by_score s) + noisy sqrt(beta h) z

    Attributes:
        schedule: the VP schedule that the step table was made from.
    """

    by_score: ClassVar[float]
    noisy: ClassVar[bool]
    schedule: VP = field(default_factory=VP)

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """One step in x_t, converted at its door and exit."""
        x0 = denoise(x, step.sigma)
        rate = self.schedule.beta(step.t) * (step.t - step.t_next)
        x_next = self._moved(x, x0, rate, step.sigma, step.scale, step, noise)
        return StepResult(x_next, x0, rate / step.scale_next**2 if self.noisy else 0.0)

    def from_end(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> tuple[Tensor, float]:
        """The same step with rate, score and scale at t'."""
        x0 = denoise(x, step.sigma_next)
        rate = self.schedule.beta(step.t_next) * (step.t - step.t_next)
        x_next = self._moved(x, x0, rate, step.sigma_next, step.scale_next, step, noise)
        return x_next, step.scale / step.scale_next

    def _moved(
        self, x: Tensor, x0: Tensor, rate: float, sigma: float, scale: float, step: Step, noise: Noise
    ) -> Tensor:
        grown = (1 + rate / 2) * scale / step.scale_next
        pulled = self.by_score * rate / (scale * sigma**2) / step.scale_next
        x_next = ((grown - pulled) * x).add_(x0, alpha=pulled)
        return _noised(x_next, math.sqrt(rate) / step.scale_next, noise, step) if self.noisy else x_next


@dataclass(frozen=True)
class EulerMaruyamaVP(_ReverseVP):
    """Euler-Maruyama on the reverse VP-SDE in its own coordinates x_t: DiffPure's solver.

    With h = t - t', s the score and beta the schedule's rate:  x_t' = x_t + h (beta / 2 x_t + beta s) + sqrt(beta h) z.
    Nie et al. 2022, eq. 4-5; s = (D - x) / (scale sigma^2). There is no final denoising: the last step adds noise too.

    Attributes:
        schedule: the VP schedule that the step table was made from.
    """

    by_score: ClassVar[float] = 1.0
    noisy: ClassVar[bool] = True


@dataclass(frozen=True)
class EulerVP(_ReverseVP):
    """Euler's method on the probability-flow ODE of the VP process, in its own coordinates x_t and time t.

    x_t' = x_t + h (beta / 2 x_t + beta / 2 s), h = t - t'. Song et al. 2021 (arXiv:2011.13456), eq. 13, as DiffPure
    solves it. `Euler` solves the same equation in x and sigma, to a different error.

    Attributes:
        schedule: the VP schedule that the step table was made from.
    """

    by_score: ClassVar[float] = 0.5
    noisy: ClassVar[bool] = False


@dataclass(frozen=True)
class Langevin:
    """A step of Langevin dynamics at one noise level, in x_t = scale x.

    x_t' = x_t + h rate / 2 s + sqrt(rate h) eta z.

    h = t - t' is the step's length; s = (D - x) / (scale sigma^2) the score. DiffPure's "LDSDE" (its released code)
    with an anchor to the input as guidance (`depura.methods.diffpure.Anchor`).

    Attributes:
        rate: lambda, speed of the dynamics.
        eta: factor of the noise; 1 samples from the density.
    """

    rate: float
    eta: float = 1.0

    def __post_init__(self) -> None:
        _check.number("Langevin", "rate", self.rate, low=0.0, low_open=True)
        _check.number("Langevin", "eta", self.eta, low=0.0)

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """One step, converted at its door and exit."""
        x0 = denoise(x, step.sigma)
        clock = self.rate * (step.t - step.t_next)
        pulled = 0.5 * clock / (step.scale * step.sigma**2) / step.scale_next
        x_next = ((step.scale / step.scale_next - pulled) * x).add_(x0, alpha=pulled)
        spread = self.eta * math.sqrt(clock) / step.scale_next
        return StepResult(_noised(x_next, spread, noise, step), x0, spread**2)


@dataclass(frozen=True)
class Stay:
    """No step at all: the state as it is, the denoiser not asked. For baselines that only start (noise, blur)."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = x."""
        return StepResult(x, x)
