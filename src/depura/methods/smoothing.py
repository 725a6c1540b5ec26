"""One-step denoising, the purifier of denoised smoothing (Carlini, Tramer et al. 2022, arXiv:2206.10550), algorithm 1:

    t* with (1 - abar_t*) / abar_t* = sigma^2;   x <- clip(x0(x_adv + sigma n), -1, 1)

where sigma is twice the smoothing level, as images are in [-1, 1] there. t* is the first index whose level is at least
that, as released. Deviations are in docs/deviations.md#one-step-denoising.
"""

from __future__ import annotations

from depura import _check
from depura.diffusion.denoisers import Clipped, Denoiser
from depura.diffusion.schedules import Discrete, DiscreteLinear, steps_at
from depura.diffusion.solvers import Euler
from depura.gradients import GradientRoute
from depura.methods.entry import Method, Setting
from depura.purifiers.purifier import DiffusionPurifier


def smoothing_index(std: float, schedule: Discrete) -> int:
    """The first index with a noise level of at least 2 std.

    Args:
        std: standard deviation of the smoothing noise, in [0, 1] image units.
        schedule: the network's schedule.

    Returns:
        The index.

    Raises:
        InputError: no level of the schedule is as high.
    """
    _check.number("smoothing_index", "std", std, low=0.0, low_open=True)
    highest = schedule.sigma(schedule.size - 1)
    if 2 * std > highest:
        _check.fail("smoothing_index", f"a std of at most {highest / 2:.4g}", f"{std:.4g}")
    return next(i for i in range(schedule.size) if schedule.sigma(i) >= 2 * std)


def one_step(
    denoiser: Denoiser, *, std: float = 0.25, schedule: Discrete | None = None, gradient: GradientRoute | None = None
) -> DiffusionPurifier:
    """Noise once, denoise once.

    Args:
        denoiser: D(x, sigma) -> x0; its estimate is clipped to [-1, 1].
        std: standard deviation of the noise, in [0, 1] image units.
        schedule: the network's; default `DiscreteLinear()`. Improved-diffusion networks: `Cosine(4000)`.
        gradient: how the step is differentiated.

    Returns:
        The purifier, of one evaluation.
    """
    schedule = DiscreteLinear() if schedule is None else schedule
    index = float(smoothing_index(std, schedule))
    return DiffusionPurifier(
        Clipped(denoiser), steps=steps_at(schedule, [index, -1.0]), solver=Euler(), gradient=gradient
    )


def _named(denoiser: Denoiser, *, t_star: float = 0.1) -> DiffusionPurifier:
    return one_step(denoiser, std=0.5 * DiscreteLinear().sigma(round(1000 * t_star) - 1))


METHOD = Method(
    "one-step",
    "one step",
    "Carlini et al. 2022, arXiv:2206.10550",
    "one-step-denoising",
    (Setting("dds", "one_step", one_step),),
    build=_named,
)
