"""DiffPure on discrete chains, as its released code runs them for CelebA-HQ (DDPM network) and ImageNet (ADM network):

    x_t = sqrt(abar) x_adv + sqrt(1 - abar) n,   then x_{t-1} ~ N(mu_theta(x_t), Sigma_t) down to index 0

with DDPM's small or large variance and no clipping, or with the variance that the network learned and x0 clipped. The
released code does not differentiate these; here every route works. Deviations are in docs/deviations.md#diffpure.
"""

from __future__ import annotations

from dataclasses import dataclass

from depura.diffusion.denoisers import Clipped, Denoiser
from depura.diffusion.schedules import DiscreteLinear, IndexLabel, LabelRule, ddpm_steps
from depura.diffusion.solvers import Ancestral, AncestralLearned, Solver
from depura.gradients import GradientRoute
from depura.methods.entry import Setting
from depura.purifiers.purifier import DiffusionPurifier


def diffpure_ddpm(
    denoiser: Denoiser,
    *,
    n_noise: int = 500,
    n_steps: int | None = None,
    solver: Solver | None = None,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """DiffPure with DDPM's ancestral steps, no clipping of x0, as released for CelebA-HQ.

    Args:
        denoiser: D(x, sigma) -> x0.
        n_noise: noising depth in indices, 1000 t*.
        n_steps: reverse steps, a divisor of n_noise; default n_noise.
        solver: default `Ancestral()`, the small variance; `AncestralLarge()` for the large one.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier.
    """
    steps = ddpm_steps(DiscreteLinear(), n_noise=n_noise, n_steps=n_steps)
    return DiffusionPurifier(denoiser, steps=steps, solver=Ancestral() if solver is None else solver, gradient=gradient)


def diffpure_adm(denoiser: Denoiser, *, n_noise: int = 150, gradient: GradientRoute | None = None) -> DiffusionPurifier:
    """DiffPure with ADM's steps of learned variance, x0 clipped to [-1, 1] (the released guided-diffusion runner).

    Args:
        denoiser: an `EpsVarianceDenoiser`.
        n_noise: noising depth in indices, 1000 t*.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier.
    """
    steps = ddpm_steps(DiscreteLinear(), n_noise=n_noise)
    return DiffusionPurifier(Clipped(denoiser), steps=steps, solver=AncestralLearned(), gradient=gradient)


@dataclass(frozen=True)
class Preset:
    """A published setting.

    Attributes:
        n_noise: noising depth in indices.
        label: how the published network gets the noise level: hand it to the network's adapter.
    """

    n_noise: int
    label: LabelRule

    def purifier(self, denoiser: Denoiser) -> DiffusionPurifier:
        """The purifier of this setting around a denoiser."""
        return diffpure_ddpm(denoiser, n_noise=self.n_noise)


CELEBA = Preset(500, IndexLabel(DiscreteLinear()))
"""CelebA-HQ attribute classifiers at linf 16/255; DDPM network of 256x256 pixels."""
CELEBA_SETTING = Setting("diffpure_celeba", "diffpure_ddpm.CELEBA", CELEBA.purifier)
ADM = Setting("diffpure_adm", "diffpure_adm", diffpure_adm, learned=True)
