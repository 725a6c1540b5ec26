"""The purifiers of the command line: a method by name around a denoiser, with the settings that were given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import DiscreteLinear, ddpm_steps
from depura.diffusion.solvers import Ancestral, from_unit_noise
from depura.evaluation.demo import N_STEPS, T_STAR
from depura.methods.adbm import adbm
from depura.methods.diffpure import diffpure
from depura.methods.gdmp import gdmp
from depura.methods.gradual import gradual
from depura.methods.likelihood import likelihood, scoreopt
from depura.methods.mimicdiffusion import mimicdiffusion
from depura.methods.smoothing import one_step
from depura.models.by_name import denoiser as denoiser_named
from depura.purifiers.purifier import Purifier

DIGITS = "digits"
"""What stands for the bundled data set, denoiser and classifier."""


def _diffpure(denoiser: Denoiser, *, t_star: float = T_STAR, steps: int = N_STEPS) -> Purifier:
    return diffpure(denoiser, t_star=t_star, n_steps=steps, t_end=0.0, solver=Ancestral())


def _mimicdiffusion(denoiser: Denoiser, *, steps: int = 100) -> Purifier:
    table = ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=steps)
    return mimicdiffusion(denoiser, steps=table, start=from_unit_noise)


def _gdmp(denoiser: Denoiser, *, t_star: float = 0.036, steps: int = 36) -> Purifier:
    return gdmp(denoiser, n_noise=round(1000 * t_star), n_steps=steps)


def _gradual(denoiser: Denoiser) -> Purifier:
    return gradual(denoiser)


def _likelihood(denoiser: Denoiser, *, steps: int = 5) -> Purifier:
    return likelihood(denoiser, n_steps=steps)


def _scoreopt(denoiser: Denoiser, *, steps: int = 5) -> Purifier:
    return scoreopt(denoiser, n_steps=steps)


def _one_step(denoiser: Denoiser, *, t_star: float = 0.1) -> Purifier:
    return one_step(denoiser, std=0.5 * DiscreteLinear().sigma(round(1000 * t_star) - 1))


def _adbm(denoiser: Denoiser, *, t_star: float = 0.1, steps: int = 5) -> Purifier:
    return adbm(denoiser, n_noise=round(1000 * t_star), n_steps=steps)


class Method(str, Enum):
    """Purification methods of the command line."""

    diffpure = "diffpure"
    mimicdiffusion = "mimicdiffusion"
    gdmp = "gdmp"
    gradual = "gradual"
    likelihood = "likelihood"
    scoreopt = "scoreopt"
    one_step = "one-step"
    adbm = "adbm"


METHODS: Mapping[Method, Callable[..., Purifier]] = {
    Method.diffpure: _diffpure,
    Method.mimicdiffusion: _mimicdiffusion,
    Method.gdmp: _gdmp,
    Method.gradual: _gradual,
    Method.likelihood: _likelihood,
    Method.scoreopt: _scoreopt,
    Method.one_step: _one_step,
    Method.adbm: _adbm,
}
"""How each is built; the settings that it has are the function's, with their defaults."""


def purifier_of(
    denoiser: str,
    method: Method,
    *,
    where: str,
    t_star: float | None = None,
    steps: int | None = None,
    steps_option: str = "--steps",
) -> Purifier:
    """The method around the denoiser; a setting that it does not have is refused.

    Args:
        denoiser: its name, as `depura.models.by_name.denoiser` takes it.
        method: which.
        where: the command, for messages.
        t_star: how far to noise; default the method's.
        steps: of a walk; default the method's.
        steps_option: how the command calls `steps`.

    Returns:
        The purifier.

    Raises:
        InputError: a denoiser that is not there, or a setting that the method does not have.
    """
    options: dict[str, tuple[str, float | None]] = {"t_star": ("--t-star", t_star), "steps": (steps_option, steps)}
    given = {name: value for name, (_, value) in options.items() if value is not None}
    for name in given:
        having = [m for m, build in METHODS.items() if name in inspect.signature(build).parameters]
        if method not in having:
            those = ", ".join(m.value for m in having)
            what = f"{options[name][0]} for a method that has it ({those})"
            _check.fail(where, what, f"--method {method.value}", "Leave it out.")
    if "t_star" in given:
        _check.number(where, "--t-star", given["t_star"], low=0.0, high=1.0, low_open=True)
    return METHODS[method](denoiser_named(denoiser, where="--denoiser"), **given)
