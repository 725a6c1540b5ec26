"""Noise schedules, and the one table of numbers that a reverse process follows.

A schedule maps a paper's clock t to a noise level and back. Everything else in depura works in the coordinates

    x = x0 + sigma * n,        x_t = scale(t) * x,        x0 in [-1, 1],  n ~ N(0, I)

(Karras et al. 2022, arXiv:2206.00364, section 2). For variance-preserving schedules scale = sqrt(abar) and
sigma = sqrt((1 - abar) / abar), so scale = 1 / sqrt(1 + sigma^2).
"""

from __future__ import annotations

import bisect
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Protocol

from depura import _check


class NoiseSchedule(Protocol):
    """The map between a paper's clock and the noise level."""

    def sigma(self, t: float) -> float:
        """Noise-to-signal ratio at time t."""
        ...

    def t(self, sigma: float) -> float:
        """Time at which the noise-to-signal ratio is sigma."""
        ...

    def scale(self, t: float) -> float:
        """Factor between the paper's x_t and x = x0 + sigma n."""
        ...


@dataclass(frozen=True)
class VP:
    """Continuous variance-preserving SDE, beta(t) = beta_min + (beta_max - beta_min) t, t in (0, 1].

    abar(t) = exp(-(beta_max - beta_min) t^2 / 2 - beta_min t). Song et al. 2021, arXiv:2011.13456, appendix B;
    DiffPure (arXiv:2205.07460), section 2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check.number("VP", "beta_min", self.beta_min, low=0.0, low_open=True)
        _check.number("VP", "beta_max", self.beta_max, low=self.beta_min, low_open=True)

    def beta(self, t: float) -> float:
        """Rate of the noise at time t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _log_abar(self, t: float) -> float:
        return -(0.5 * (self.beta_max - self.beta_min) * t * t + self.beta_min * t)

    def sigma(self, t: float) -> float:
        """sqrt((1 - abar) / abar) at time t."""
        return math.sqrt(math.expm1(-self._log_abar(t)))

    def t(self, sigma: float) -> float:
        """Inverse of `sigma`, in closed form."""
        slope = self.beta_max - self.beta_min
        return (math.sqrt(self.beta_min**2 + 2 * slope * math.log1p(sigma * sigma)) - self.beta_min) / slope

    def scale(self, t: float) -> float:
        """sqrt(abar) at time t."""
        return math.exp(0.5 * self._log_abar(t))


@dataclass(frozen=True)
class VE:
    """Variance-exploding SDE, sigma(t) = sigma_min (sigma_max / sigma_min)^t. Song et al. 2021, appendix C."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check.number("VE", "sigma_min", self.sigma_min, low=0.0, low_open=True)
        _check.number("VE", "sigma_max", self.sigma_max, low=self.sigma_min, low_open=True)

    def sigma(self, t: float) -> float:
        """Noise level at time t in [0, 1]."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def t(self, sigma: float) -> float:
        """Inverse of `sigma`."""
        return math.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def scale(self, t: float) -> float:
        """Always 1."""
        return 1.0


@dataclass(frozen=True)
class EDM:
    """sigma(t) = t. Karras et al. 2022, table 1."""

    def sigma(self, t: float) -> float:
        """The time itself."""
        return t

    def t(self, sigma: float) -> float:
        """The noise level itself."""
        return sigma

    def scale(self, t: float) -> float:
        """Always 1."""
        return 1.0


class Discrete(ABC):
    """A schedule given by finitely many noise levels. Its clock is the index i = 0 .. n-1; i = -1 means no noise.

    abar_i = prod_{j <= i} (1 - beta_j); between indices log sigma is interpolated. Index i corresponds to
    t = (i + 1) / n of a continuous schedule.
    """

    @abstractmethod
    def betas(self) -> tuple[float, ...]:
        """Noise added at each index."""

    @property
    def size(self) -> int:
        """Number of levels."""
        return len(_abar_table(self))

    def abar(self, index: int) -> float:
        """prod_{j <= index} (1 - beta_j); 1 at index -1."""
        return 1.0 if index == -1 else _abar_table(self)[index]

    def sigma(self, t: float) -> float:
        """sqrt((1 - abar) / abar) at (possibly fractional) index t."""
        return _level(_sigma_table(self), t)

    def t(self, sigma: float) -> float:
        """Fractional index of a noise level; -1 for 0."""
        return _index(_sigma_table(self), sigma)

    def scale(self, t: float) -> float:
        """sqrt(abar) = 1 / sqrt(1 + sigma^2)."""
        return vp_scale(self.sigma(t))


@dataclass(frozen=True)
class DiscreteLinear(Discrete):
    """Ho et al. 2020 (arXiv:2006.11239): beta_i linear from beta_first to beta_last."""

    n: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        _check.integer("DiscreteLinear", "n", self.n, low=2)
        for name in ("beta_first", "beta_last"):
            _check.number("DiscreteLinear", name, getattr(self, name), low=0.0, high=0.999, low_open=True)

    def betas(self) -> tuple[float, ...]:
        """Noise added at each index."""
        span = self.beta_last - self.beta_first
        return tuple(self.beta_first + span * i / (self.n - 1) for i in range(self.n))


@dataclass(frozen=True)
class Cosine(Discrete):
    """Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. 17: abar by cos^2((u + s) / (1 + s) * pi / 2), beta <= 0.999.

    The improved-diffusion CIFAR-10 networks use n = 4000.
    """

    n: int = 1000
    s: float = 0.008
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        _check.integer("Cosine", "n", self.n, low=2)
        _check.number("Cosine", "s", self.s, low=0.0)
        _check.number("Cosine", "max_beta", self.max_beta, low=0.0, high=0.9999, low_open=True)

    def betas(self) -> tuple[float, ...]:
        """Noise added at each index."""
        curve = [math.cos((i / self.n + self.s) / (1 + self.s) * math.pi / 2) ** 2 for i in range(self.n + 1)]
        return tuple(min(1 - curve[i + 1] / curve[i], self.max_beta) for i in range(self.n))


@lru_cache(maxsize=8)
def _abar_table(schedule: Discrete) -> tuple[float, ...]:
    return tuple(accumulate((1.0 - beta for beta in schedule.betas()), operator.mul))


@lru_cache(maxsize=8)
def _sigma_table(schedule: Discrete) -> tuple[float, ...]:
    return tuple(math.sqrt((1 - abar) / abar) for abar in _abar_table(schedule))


def _level(table: tuple[float, ...], index: float) -> float:
    if index == -1:
        return 0.0
    if not 0 <= index <= len(table) - 1:
        _check.fail("sigma", f"an index from 0 to {len(table) - 1}, or -1 for no noise", f"{index}")
    low = min(int(index), len(table) - 2)
    weight = index - low
    if weight in (0, 1):
        return table[low + int(weight)]
    return math.exp((1 - weight) * math.log(table[low]) + weight * math.log(table[low + 1]))


def _index(table: tuple[float, ...], sigma: float) -> float:
    if sigma == 0:
        return -1.0
    high = bisect.bisect_left(table, sigma)
    if high < len(table) and table[high] == sigma:
        return float(high)
    if not table[0] <= sigma <= table[-1]:
        _check.fail("t", f"a noise level from {table[0]:.4g} to {table[-1]:.4g}", f"{sigma:.4g}")
    a, b = math.log(table[high - 1]), math.log(table[high])
    return high - 1 + (math.log(sigma) - a) / (b - a)


def vp_scale(sigma: float) -> float:
    """1 / sqrt(1 + sigma^2): the signal factor of a variance-preserving process at noise level sigma."""
    return 1.0 / math.sqrt(1.0 + sigma * sigma)


def unit_scale(sigma: float) -> float:
    """1: the signal factor of a variance-exploding process."""
    return 1.0


LabelRule = Callable[[float], float]
"""From a noise level to the number that a network takes as its time."""


@dataclass(frozen=True)
class TimeLabel:
    """factor * t(sigma). score_sde networks take 999 t as a real number (factor 999)."""

    schedule: NoiseSchedule
    factor: float = 999.0

    def __call__(self, sigma: float) -> float:
        """The label of a noise level."""
        return self.factor * self.schedule.t(sigma)


@dataclass(frozen=True)
class IndexLabel:
    """The index of a noise level in a discrete schedule, as DDPM and ADM networks take it.

    Fractional for levels between two indices (the sinusoidal features accept them), clamped to the schedule's ends:
    a level below the first is given index 0. Networks of improved-diffusion count their 4000 levels in steps of 1/4
    (factor 0.25), as if there were 1000.
    """

    schedule: Discrete
    factor: float = 1.0

    def __call__(self, sigma: float) -> float:
        """The label of a noise level."""
        first, last = self.schedule.sigma(0), self.schedule.sigma(self.schedule.size - 1)
        return self.factor * self.schedule.t(min(max(sigma, first), last))


@dataclass(frozen=True)
class SigmaLabel:
    """factor * sigma, for networks that take the noise level itself; 1/2 where their images are in [0, 1]."""

    factor: float = 1.0

    def __call__(self, sigma: float) -> float:
        """The label of a noise level."""
        return self.factor * sigma


@dataclass(frozen=True)
class TruncatedLabel:
    """floor(n t(sigma)): what DiffPure's released code hands to ADM networks, one index too noisy for most steps.

    n t is rounded to 9 decimals first, so that the label does not hang on the last bit of t.
    """

    schedule: NoiseSchedule
    n: int = 1000

    def __call__(self, sigma: float) -> float:
        """The label of a noise level."""
        return float(math.floor(round(self.n * self.schedule.t(sigma), 9)))


@dataclass(frozen=True)
class TableLabel:
    """The labels of a step table, looked up by noise level; a level that is not in the table is refused."""

    steps: tuple[Step, ...]

    def __call__(self, sigma: float) -> float:
        """The label of a noise level."""
        found = [step.label for step in self.steps if step.sigma == sigma]
        if found:
            return found[0]
        levels = f"{self.steps[-1].sigma:.4g} to {self.steps[0].sigma:.4g}"
        return _check.fail("TableLabel", f"one of the table's {len(self.steps)} noise levels ({levels})", f"{sigma!r}")


@dataclass(frozen=True)
class Step:
    """One step of a reverse process, sigma -> sigma_next: plain numbers, never recomputed on the way.

    Attributes:
        index: position in the table, from 0; it addresses the noise of the step.
        t: time at the start, on the schedule's clock.
        t_next: time at the end.
        sigma: noise level at the start.
        sigma_next: noise level at the end; 0 means clean.
        scale: factor to the paper's coordinates at the start, x_t = scale * x.
        scale_next: the same at the end.
        label: what a network is given for the start level.
    """

    index: int
    t: float
    t_next: float
    sigma: float
    sigma_next: float
    scale: float
    scale_next: float
    label: float


def steps_at(
    schedule: NoiseSchedule, times: Sequence[float], *, label: LabelRule | None = None, end: float | None = None
) -> tuple[Step, ...]:
    """The step table through the given times.

    Args:
        schedule: noise schedule.
        times: at least two times on the schedule's clock, from noisy to clean.
        label: from noise level to network label; default: the time itself.
        end: noise level after the last step, where it is not sigma(times[-1]) (0 for a clean end).

    Returns:
        len(times) - 1 steps.

    Raises:
        InputError: fewer than two times, or noise that does not fall from one to the next.
    """
    if len(times) < 2:
        _check.fail("steps_at", "at least two times (one step)", f"{len(times)}")
    sigmas = [schedule.sigma(t) for t in times]
    scales = [schedule.scale(t) for t in times]
    if end is not None:
        sigmas[-1] = end
        scales[-1] = 1.0 if end == 0 else scales[-1]
    for a, b in pairwise(sigmas):
        if not 0 <= b < a:
            _check.fail("steps_at", "times from noisy to clean", f"noise levels {a:.6g} then {b:.6g}")
    return tuple(
        Step(
            index=k,
            t=times[k],
            t_next=times[k + 1],
            sigma=sigmas[k],
            sigma_next=sigmas[k + 1],
            scale=scales[k],
            scale_next=scales[k + 1],
            label=times[k] if label is None else label(sigmas[k]),
        )
        for k in range(len(times) - 1)
    )


def uniform_steps(
    schedule: VP | VE | EDM, *, t_start: float, n_steps: int, t_end: float = 0.0, label: LabelRule | None = None
) -> tuple[Step, ...]:
    """n steps of equal length t_start / n, the last one ending at t_end instead of 0.

    With t_start = n_steps * 1e-3 and t_end = 1e-5 this is the grid of DiffPure's solver (steps of 1e-3, the last one
    0.99e-3).

    Args:
        schedule: noise schedule.
        t_start: time of the noised input, t*.
        n_steps: number of steps.
        t_end: time at which the reverse process stops, below t_start / n_steps.
        label: from noise level to network label.

    Returns:
        The step table.

    Raises:
        InputError: t_start not positive, no steps, or t_end at or above the last step's start.
    """
    _check.number("uniform_steps", "t_start", t_start, low=0.0, low_open=True)
    _check.integer("uniform_steps", "n_steps", n_steps, low=1, high=65535)
    _check.number("uniform_steps", "t_end", t_end, low=0.0)
    if t_end >= t_start / n_steps:
        _check.fail(
            "uniform_steps", f"t_end below t_start / n_steps = {t_start / n_steps:.3g}", f"{t_end}", "Use fewer steps."
        )
    times = [t_start * (1 - k / n_steps) for k in range(n_steps)] + [t_end]
    return steps_at(schedule, times, label=label)


def karras_steps(
    *, sigma_max: float, n_steps: int, sigma_min: float = 0.002, rho: float = 7.0, label: LabelRule | None = None
) -> tuple[Step, ...]:
    """Karras et al. 2022, eq. 5: sigma^(1/rho) falls linearly from sigma_max to sigma_min, then one step to 0.

    Args:
        sigma_max: noise level of the noised input.
        n_steps: number of steps, the last one to 0 included.
        sigma_min: level before the last step.
        rho: larger means shorter steps at low noise.
        label: from noise level to network label.

    Returns:
        The step table on the EDM clock.

    Raises:
        InputError: levels that do not fall, or no steps.
    """
    _check.integer("karras_steps", "n_steps", n_steps, low=1, high=65535)
    _check.number("karras_steps", "sigma_min", sigma_min, low=0.0, low_open=True)
    _check.number("karras_steps", "sigma_max", sigma_max, low=sigma_min, low_open=True)
    a, b = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    times = [sigma_max] + [(a + k / (n_steps - 1) * (b - a)) ** rho for k in range(1, n_steps)]
    return steps_at(EDM(), [*times, 0.0], label=label)


def log_snr_steps(
    schedule: VP | EDM | Discrete,
    *,
    t_start: float,
    n_steps: int,
    sigma_min: float = 0.02,
    label: LabelRule | None = None,
) -> tuple[Step, ...]:
    """Noise levels in a geometric series from sigma(t_start) to sigma_min, then one step to 0.

    The logarithm of the signal-to-noise ratio, -2 log sigma, grows by the same amount in each step but the last: the
    grid of Lu et al. 2022 (arXiv:2206.00927), section 3.3. (For `VE`, `uniform_steps` is such a grid.)

    Args:
        schedule: noise schedule.
        t_start: time of the noised input on its clock (for a discrete schedule an index, fractional or not).
        n_steps: number of steps, the last one to 0 included.
        sigma_min: level before the last step, below sigma(t_start).
        label: from noise level to network label; default: the time itself.

    Returns:
        The step table; it ends at sigma 0.

    Raises:
        InputError: a start outside the schedule, levels that do not fall, or no steps.
    """
    _check.integer("log_snr_steps", "n_steps", n_steps, low=1, high=65535)
    _check.number("log_snr_steps", "t_start", t_start, low=0.0)
    _check.number("log_snr_steps", "sigma_min", sigma_min, low=0.0, low_open=True)
    first = schedule.sigma(t_start)
    _check.number("log_snr_steps", "sigma(t_start)", first, low=sigma_min, low_open=True)
    times = [schedule.t(first * (sigma_min / first) ** (k / (n_steps - 1))) for k in range(1, n_steps)]
    return steps_at(schedule, [t_start, *times, schedule.t(0.0)], label=label)


def ddpm_steps(
    schedule: Discrete, *, n_noise: int, n_steps: int | None = None, label: LabelRule | None = None
) -> tuple[Step, ...]:
    """Indices n_noise - 1, n_noise - 1 - s, .., s - 1, then clean, with stride s = n_noise / n_steps.

    Args:
        schedule: a discrete schedule.
        n_noise: depth of the forward noising in indices; the noised input is at index n_noise - 1.
        n_steps: number of reverse steps, a divisor of n_noise; default: every index.
        label: from noise level to network label; default: the index.

    Returns:
        The step table; it ends at sigma 0.

    Raises:
        InputError: a depth outside the schedule, or steps that do not divide it.
    """
    _check.integer("ddpm_steps", "n_noise", n_noise, low=1, high=schedule.size)
    n_steps = n_noise if n_steps is None else n_steps
    _check.integer("ddpm_steps", "n_steps", n_steps, low=1, high=n_noise)
    if n_noise % n_steps:
        _check.fail(
            "ddpm_steps",
            f"n_steps that divides n_noise = {n_noise}",
            f"{n_steps}",
            "Otherwise the first step would not start at the noised input's level.",
        )
    times = [float(i) for i in range(n_noise - 1, -1, -(n_noise // n_steps))]
    return steps_at(schedule, [*times, -1.0], label=label)


def respaced_steps(
    schedule: Discrete, *, n_kept: int, n_noise: int, label: LabelRule | None = None
) -> tuple[Step, ...]:
    """The last n_noise of n_kept indices spread evenly over a schedule, then clean: a respaced DDPM chain.

    Kept are round(k (size - 1) / (n_kept - 1)), k = 0 .. n_kept - 1; Nichol and Dhariwal 2021 (arXiv:2102.09672),
    section 4. Labels are indices of the full schedule.

    Args:
        schedule: a discrete schedule.
        n_kept: how many of its indices are kept.
        n_noise: depth of the forward noising, counted in kept indices.
        label: from noise level to network label; default: the index.

    Returns:
        The step table; it ends at sigma 0.

    Raises:
        InputError: more kept than there are, or a depth beyond them.
    """
    _check.integer("respaced_steps", "n_kept", n_kept, low=2, high=schedule.size)
    _check.integer("respaced_steps", "n_noise", n_noise, low=1, high=n_kept)
    stride = (schedule.size - 1) / (n_kept - 1)
    times = [float(round(k * stride)) for k in range(n_noise - 1, -1, -1)]
    return steps_at(schedule, [*times, -1.0], label=label)


def coarser(steps: Sequence[Step], n_steps: int) -> tuple[Step, ...]:
    """The same reverse process in fewer steps: consecutive rows merged into one, as evenly as possible.

    A purifier `with_(steps=coarser(...))` is the surrogate of Lee and Kim 2023 (arXiv:2303.09051): a function of its
    own, cheap to differentiate, whose gradient is used to attack the full process.

    Args:
        steps: a step table, in order.
        n_steps: rows of the new one, at most as many; all of them give the same table.

    Returns:
        A row from the start of the first merged row to the end of the last, under the first one's index and label.

    Raises:
        InputError: more rows than there are, or none.
    """
    n = len(steps)
    _check.integer("coarser", "n_steps", n_steps, low=1, high=n)
    bounds = [round(k * n / n_steps) for k in range(n_steps + 1)]
    pairs = [(steps[first], steps[last - 1]) for first, last in pairwise(bounds)]
    return tuple(replace(a, t_next=b.t_next, sigma_next=b.sigma_next, scale_next=b.scale_next) for a, b in pairs)
