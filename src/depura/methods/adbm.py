"""ADBM: adversarial diffusion bridge model (Li et al., ICLR 2025, arXiv:2408.00315): few steps of a bridge network.

Training diffuses the adversarial image x + delta and learns to end at the clean one, T being the purification's depth:

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) z + k_t delta,    k_t = abar_T (1 - abar_t) / ((1 - abar_T) sqrt(abar_t))
    target of the noise prediction: z + delta sqrt(1 / abar_t - 1) abar_T / (1 - abar_T)

so that x0(x_t) = x. Purification is DDIM in five steps from index 99 (released settings). The published network is a
fine-tuned score_sde one; any denoiser works, unadapted. Deviations are in docs/deviations.md#adbm.
"""

from __future__ import annotations

import math

from torch import Tensor

from depura.diffusion.denoisers import Clipped, Denoiser
from depura.diffusion.schedules import DiscreteLinear, ddpm_steps
from depura.diffusion.solvers import Euler, FromInputUnder, Start, from_input
from depura.gradients import GradientRoute
from depura.methods.entry import Method, Setting
from depura.purifiers.purifier import DiffusionPurifier

SCHEDULE = DiscreteLinear(beta_first=1e-6)
"""Schedule of the released sampler: beta from 1e-6, not 1e-4."""


def bridge_weight(abar: float, abar_end: float) -> float:
    """k_t, the share of the perturbation in x_t: 0 where abar is 1, sqrt(abar_T) at the end.

    Args:
        abar: at t.
        abar_end: at T.

    Returns:
        The weight.
    """
    return abar_end * (1 - abar) / ((1 - abar_end) * math.sqrt(abar))


def bridge(x0: Tensor, delta: Tensor, z: Tensor, *, abar: float, abar_end: float) -> tuple[Tensor, Tensor]:
    """A training pair of the bridge: x_t and the noise that the network should predict there.

    Args:
        x0: clean images, (B, C, H, W) in [-1, 1].
        delta: adversarial perturbation, like x0.
        z: standard normal, like x0.
        abar: at t.
        abar_end: at T, the depth of the purification.

    Returns:
        x_t and its target, like x0; the estimate of x0 from the two is x0.
    """
    x_t = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * z + bridge_weight(abar, abar_end) * delta
    return x_t, z + math.sqrt(1 / abar - 1) * abar_end / (1 - abar_end) * delta


def adbm(
    denoiser: Denoiser,
    *,
    n_noise: int = 100,
    n_steps: int = 5,
    start: Start = from_input,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """ADBM's sampler around a bridge network, or any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0; its estimate is clipped to [-1, 1].
        n_noise: noising depth in indices.
        n_steps: DDIM steps, a divisor of n_noise.
        start: `released_start(n_noise)` for the released code's.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier; it clamps its result, as released.
    """
    steps = ddpm_steps(SCHEDULE, n_noise=n_noise, n_steps=n_steps)
    return DiffusionPurifier(Clipped(denoiser), steps=steps, solver=Euler(), start=start, gradient=gradient, clamp=True)


def released_start(n_noise: int) -> FromInputUnder:
    """The released code's noising: to index n_noise, one more than the reverse process starts from."""
    return FromInputUnder(SCHEDULE, float(n_noise))


def _named(denoiser: Denoiser, *, t_star: float = 0.1, steps: int = 5) -> DiffusionPurifier:
    return adbm(denoiser, n_noise=round(1000 * t_star), n_steps=steps)


METHOD = Method(
    "adbm",
    "ADBM",
    "Li et al. 2024, arXiv:2408.00315",
    "adbm",
    (Setting("adbm_cifar", "adbm", adbm),),
    "the sampler; its network is fine-tuned",
    _named,
)
