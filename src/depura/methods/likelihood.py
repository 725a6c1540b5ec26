"""Purification by optimising the image under a diffusion model; there is no reverse process.

Likelihood maximisation (Chen et al. 2023, arXiv:2305.15241), section 3.2:  minimise over z, from z = x_adv,

    E_{sigma, n} |D(z + sigma n; sigma) - z|^2         five Adam steps of 0.1, sigma ~ U(0.4, 0.6) afresh in each

ScoreOpt (Zhang, Luo and Zhang, NeurIPS 2023): the same family, following the residual z - D (no Jacobian of the
network) with a pull to the input; reconstructed from others' accounts. Constants of the first: its released code.
Deviations are in docs/deviations.md#likelihood-maximisation.
"""

from __future__ import annotations

from depura.diffusion.denoisers import Denoiser
from depura.gradients import GradientRoute
from depura.methods.entry import Method, Setting
from depura.purifiers.optimisation import Adam, Optimised, residual, through_network


def likelihood(
    denoiser: Denoiser,
    *,
    n_steps: int = 5,
    rate: float = 0.1,
    sigma_range: tuple[float, float] = (0.4, 0.6),
    gradient: GradientRoute | None = None,
) -> Optimised:
    """Likelihood maximisation around any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0.
        n_steps: Adam steps.
        rate: their size, in [-1, 1] units.
        sigma_range: noise levels.
        gradient: how the steps are differentiated; of second order in the network.

    Returns:
        The purifier; it clamps its result, as released.
    """
    return Optimised(
        denoiser,
        direction=through_network,
        n_steps=n_steps,
        sigma_range=sigma_range,
        optimiser=Adam(rate),
        gradient=gradient,
    )


def scoreopt(
    denoiser: Denoiser,
    *,
    n_steps: int = 5,
    rate: float = 0.1,
    sigma_range: tuple[float, float] = (0.4, 0.6),
    proximity: float = 0.0,
    gradient: GradientRoute | None = None,
) -> Optimised:
    """ScoreOpt with fresh noise in each step (its variant N), around any denoiser; a reconstruction.

    Args:
        denoiser: D(x, sigma) -> x0.
        n_steps: Adam steps; 5 to 20 in the literature.
        rate: their size, in [-1, 1] units.
        sigma_range: noise levels.
        proximity: weight of the mean squared distance to the input.
        gradient: how the steps are differentiated.

    Returns:
        The purifier; it clamps its result.
    """
    return Optimised(
        denoiser,
        direction=residual,
        n_steps=n_steps,
        sigma_range=sigma_range,
        optimiser=Adam(rate),
        proximity=proximity,
        gradient=gradient,
    )


def _likelihood(denoiser: Denoiser, *, steps: int = 5) -> Optimised:
    return likelihood(denoiser, n_steps=steps)


def _scoreopt(denoiser: Denoiser, *, steps: int = 5) -> Optimised:
    return scoreopt(denoiser, n_steps=steps)


SECTION = "likelihood-maximisation"
LIKELIHOOD = Method(
    "likelihood",
    "likelihood",
    "Chen et al. 2023, arXiv:2305.15241",
    SECTION,
    (Setting("lm_cifar_edm", "likelihood", likelihood),),
    build=_likelihood,
)
SCOREOPT = Method(
    "scoreopt",
    "ScoreOpt",
    "Zhang et al. 2023",
    SECTION,
    (Setting("scoreopt", "scoreopt", scoreopt),),
    "reconstruction",
    _scoreopt,
)
