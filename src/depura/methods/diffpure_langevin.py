"""Langevin dynamics on the input, the process "LDSDE" of DiffPure's released code (Nie et al. 2022); no noising:

    dx = -lambda / 2 (-s(x, t0) + (x - x_adv) / sigma^2) dtau + sqrt(lambda) eta dw,    x(0) = x_adv

s is the score at one time t0 = 0.01. Constants: the released code. Deviations are in docs/deviations.md#diffpure.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import State
from depura.diffusion.schedules import VP, Step
from depura.diffusion.solvers import Langevin, as_it_is
from depura.gradients import GradientRoute
from depura.methods.entry import Setting
from depura.purifiers.purifier import DiffusionPurifier


@dataclass(frozen=True)
class Anchor:
    """Pull of Langevin dynamics to the input: -h rate / (2 variance) (x_t - x_in).

    Attributes:
        rate: lambda of the dynamics.
        variance: sigma^2 of the anchor.
    """

    rate: float
    variance: float

    def __call__(self, at: State, /) -> Tensor:
        """The displacement."""
        clock = self.rate * (at.step.t - at.step.t_next)
        return -0.5 * clock / self.variance * (at.step.scale * at.x - at.x_in) / at.step.scale_next


def diffpure_langevin(
    denoiser: Denoiser,
    *,
    t_star: float = 0.1,
    n_steps: int = 10,
    level: float = 0.01,
    rate: float = 0.01,
    eta: float = 5.0,
    variance: float = 1e-3,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """DiffPure's Langevin dynamics on the input ("LDSDE"): no noising, the score at one level, an anchor to the input.

    With the released constants its noise is near 0.16 in all and its drift tiny: almost plain additive noise.

    Args:
        denoiser: D(x, sigma) -> x0.
        t_star: length of the dynamics.
        n_steps: its steps; the last one ends at 1e-5.
        level: time of the score.
        rate: lambda.
        eta: factor of the noise.
        variance: sigma^2 of the anchor.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier.
    """
    sigma, scale = VP().sigma(level), VP().scale(level)
    times = [t_star * (1 - k / n_steps) for k in range(n_steps)] + [1e-5]
    rows = [Step(k, times[k], times[k + 1], sigma, sigma, scale, scale, level) for k in range(n_steps)]
    return DiffusionPurifier(
        denoiser,
        steps=rows,
        solver=Langevin(rate, eta),
        guidance=Anchor(rate, variance),
        start=as_it_is,
        gradient=gradient,
    )


LANGEVIN = Setting("diffpure_ldsde", "diffpure_langevin", diffpure_langevin)
