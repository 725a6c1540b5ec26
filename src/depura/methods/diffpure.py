"""DiffPure: diffusion models for adversarial purification (Nie et al., ICML 2022, arXiv:2205.07460), section 3.1:

    x(t*) = sqrt(abar(t*)) x_adv + sqrt(1 - abar(t*)) n                                          (eq. 3)
    x(0)  = sdeint(x(t*), reverse VP-SDE, t* -> 0),   beta(t) = 0.1 + 19.9 t                     (eq. 4-5)

solved by Euler-Maruyama with steps of 1e-3 down to t = 1e-5 (the released solver's settings; the step is not stated in
the paper, it is the default of the SDE library that the released code calls). Beside it the probability-flow ODE and a
random t*. Discrete chains are in diffpure_ddpm.py, Langevin dynamics in diffpure_langevin.py. Deviations are in
docs/deviations.md#diffpure.
"""

from __future__ import annotations

from dataclasses import dataclass

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import VP, DiscreteLinear, IndexLabel, LabelRule, TimeLabel, uniform_steps
from depura.diffusion.solvers import Ancestral, EulerMaruyamaVP, EulerVP, FromInputUnder, Solver, Start, from_input
from depura.gradients import GradientRoute
from depura.methods.entry import Method, Setting
from depura.purifiers.composed import Mixed, Resized
from depura.purifiers.purifier import DiffusionPurifier, Purifier


def diffpure(
    denoiser: Denoiser,
    *,
    t_star: float = 0.1,
    n_steps: int = 100,
    t_end: float = 1e-5,
    schedule: VP | None = None,
    label: LabelRule | None = None,
    solver: Solver | None = None,
    start: Start = from_input,
    gradient: GradientRoute | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> DiffusionPurifier:
    """DiffPure's reverse VP-SDE, around any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0.
        t_star: how far to noise the input, in (0, 1].
        n_steps: Euler-Maruyama steps; the published setting is 1000 t*.
        t_end: time at which the reverse process ends, below t_star / n_steps.
        schedule: default beta(t) = 0.1 + 19.9 t.
        label: from noise level to network label, for the step table's record.
        solver: default `EulerMaruyamaVP`; with few steps `Ancestral` or `DpmSolverPP` and t_end = 0 are better choices.
        start: default the paper's; `released_start(t_star)` for the released code's.
        gradient: how the reverse process is differentiated.
        image_shape: (C, H, W) that the denoiser takes.

    Returns:
        The purifier.

    Raises:
        InputError: t_star outside (0, 1], no steps, or t_end too late.
    """
    _check.number("diffpure", "t_star", t_star, low=0.0, high=1.0, low_open=True)
    schedule = VP() if schedule is None else schedule
    return DiffusionPurifier(
        denoiser,
        steps=uniform_steps(schedule, t_start=t_star, n_steps=n_steps, t_end=t_end, label=label),
        solver=EulerMaruyamaVP(schedule) if solver is None else solver,
        start=start,
        gradient=gradient,
        image_shape=image_shape,
    )


def diffpure_ode(
    denoiser: Denoiser,
    *,
    t_star: float = 0.1,
    n_steps: int = 100,
    start: Start = from_input,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """DiffPure with the probability-flow ODE in place of the SDE: Euler's method in x_t and t, down to 1e-5.

    Args:
        denoiser: D(x, sigma) -> x0.
        t_star: how far to noise the input, in (0, 1].
        n_steps: steps.
        start: default the paper's; `released_start(t_star)` for the released code's.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier; the noising is its only randomness.
    """
    return diffpure(denoiser, t_star=t_star, n_steps=n_steps, solver=EulerVP(), start=start, gradient=gradient)


def diffpure_random(
    denoiser: Denoiser,
    *,
    t_star: float = 0.1,
    n_steps: int = 100,
    below: int = 15,
    above: int = 14,
    gradient: GradientRoute | None = None,
) -> Mixed:
    """DiffPure with a random t*, drawn for each image and purification: noising and reverse process use the same one.

    Args:
        denoiser: D(x, sigma) -> x0.
        t_star: the middle.
        n_steps: steps of every reverse process.
        below: how far below t* at most, in thousandths.
        above: how far above.
        gradient: how the reverse processes are differentiated.

    Returns:
        The purifiers, one for each thousandth, equally likely.
    """
    times = [t_star + k / 1000 for k in range(-below, above + 1)]
    return Mixed(*(diffpure(denoiser, t_star=t, n_steps=n_steps, gradient=gradient) for t in times))


def released_start(t_star: float) -> FromInputUnder:
    """The released code's noising: the discrete schedule at index 1000 t* - 1; it samples on the continuous one."""
    return FromInputUnder(DiscreteLinear(), float(round(1000 * t_star) - 1))


@dataclass(frozen=True)
class Preset:
    """A published setting; scripts in the released repository's run_scripts folder.

    Attributes:
        t_star: noising time.
        label: how the published network gets the noise level: hand it to the network's adapter.
        size: resolution of the denoiser where it is not the classifier's.
    """

    t_star: float
    label: LabelRule
    size: int | None = None

    @property
    def n_steps(self) -> int:
        """Steps of 1e-3."""
        return round(1000 * self.t_star)

    def purifier(self, denoiser: Denoiser) -> Purifier:
        """The purifier of this setting around a denoiser."""
        built = diffpure(denoiser, t_star=self.t_star, n_steps=self.n_steps, label=self.label)
        return built if self.size is None else Resized(built, size=self.size)


CIFAR10_LINF = Preset(0.1, TimeLabel(VP()))
"""WideResNet-28-10 and 70-16 at linf 8/255, and the BPDA+EOT table; score_sde network."""
CIFAR10_L2 = Preset(0.075, TimeLabel(VP()))
"""WideResNet-28-10 and 70-16 at l2 0.5; score_sde network."""
CIFAR10_RESNET50 = Preset(0.125, TimeLabel(VP()))
"""ResNet-50 under linf, l2 and StAdv; score_sde network."""
IMAGENET = Preset(0.15, IndexLabel(DiscreteLinear()), size=256)
"""ResNet-50, WideResNet-50-2 and DeiT-S at linf 4/255; ADM network of 256x256 pixels. Labels follow the network's
training (index 1000 t - 1); the released code hands it `TruncatedLabel(VP())`, about one index more."""


T_STAR, N_STEPS = 0.09, 5
"""Of the demo and the command line: sigma 0.31 keeps a digit readable and hides a perturbation of 0.2 in [0, 1]."""


def few_steps(denoiser: Denoiser, *, t_star: float = T_STAR, steps: int = N_STEPS) -> DiffusionPurifier:
    """DiffPure's noising and a few ancestral steps down to sigma 0, as the demo and the command line have it.

    Args:
        denoiser: D(x, sigma) -> x0.
        t_star: how far to noise the input, in (0, 1].
        steps: ancestral steps.

    Returns:
        The purifier.
    """
    return diffpure(denoiser, t_star=t_star, n_steps=steps, t_end=0.0, solver=Ancestral())


ODE = Setting("diffpure_ode", "diffpure_ode", diffpure_ode)
RANDOM = Setting("diffpure_random", "diffpure_random", diffpure_random)
METHOD = Method(
    "diffpure",
    "DiffPure",
    "Nie et al. 2022, arXiv:2205.07460",
    "diffpure",
    (
        Setting("diffpure_cifar_linf", "diffpure.CIFAR10_LINF", CIFAR10_LINF.purifier),
        Setting("diffpure_cifar_l2", "diffpure.CIFAR10_L2", CIFAR10_L2.purifier),
        Setting("diffpure_cifar_rn50", "diffpure.CIFAR10_RESNET50", CIFAR10_RESNET50.purifier),
        Setting("diffpure_imagenet", "diffpure.IMAGENET", IMAGENET.purifier),
    ),
    build=few_steps,
)
