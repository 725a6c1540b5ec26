"""GDMP: guided diffusion model for purification (Wang et al. 2022, arXiv:2205.14969), algorithm 1:

    x_{t-1} ~ N(mu_theta(x_t) + s_t Sigma_t grad_{x_t} S(x_t, ref_t), Sigma_t),     ref_t = x_adv diffused to t

S is minus the mean squared error or the structural similarity, s_t = sigma_t / m with m = 2 ptb / (3 * 255 *
guide_scale), where ptb is the attack's radius in pixel values: the defence is given it. Noising to 36 of 1000
indices and the reverse process, four times, toward the same input; DDPM's large variance. Constants: the
released repository's configuration files. Deviations are in docs/deviations.md#gdmp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from depura.diffusion.denoisers import Clipped, Denoiser
from depura.diffusion.guidance import State, mean_shift, minus_gradient
from depura.diffusion.schedules import DiscreteLinear, ddpm_steps, respaced_steps
from depura.diffusion.solvers import AncestralLarge, AncestralLearned, FromInputUnder, Start, from_input, last_variance
from depura.gradients import GradientRoute
from depura.image_ops import minus_mse, ssim
from depura.methods.entry import Method, Setting
from depura.noise import Kind
from depura.purifiers.purifier import DiffusionPurifier

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Two images, (B, C, H, W) each, to one number per image, larger for more alike."""


def diffused(at: State) -> Tensor:
    """The input diffused to the state's level with fresh noise, in x_t coordinates (released for CIFAR-10)."""
    return at.step.scale * (at.x_in + at.step.sigma * at.noise(at.x, kind=Kind.GUIDANCE, step=at.step.index))


def undiffused(at: State) -> Tensor:
    """The input itself (released for ImageNet)."""
    return at.x_in


@dataclass(frozen=True)
class TowardInput:
    """s_t Sigma_t grad_{x_t} S(x_t, ref_t), in x0 + sigma n coordinates.

    Attributes:
        m: s_t = sigma_t / m.
        similarity: S, per image.
        reference: ref_t.
        batch_ref: the released code averages S over the batch too; this is the batch whose strength every image gets.
    """

    m: float
    similarity: Similarity = minus_mse
    reference: Callable[[State], Tensor] = diffused
    batch_ref: int = 100

    def __call__(self, at: State, /) -> Tensor:
        """The displacement."""
        alike = self.similarity(at.step.scale * at.x, self.reference(at)) / self.batch_ref
        return mean_shift(at) * (at.step.sigma / self.m) * -minus_gradient(alike, at.x)


def guide_m(guide_scale: float, ptb: float) -> float:
    """m of the released code from its guide_scale and the attack's radius in pixel values."""
    return 2 * ptb / (3 * 255 * guide_scale)


def gdmp(
    denoiser: Denoiser,
    *,
    n_noise: int = 36,
    n_steps: int | None = None,
    rounds: int = 4,
    similarity: Similarity = minus_mse,
    guide_scale: float = 6e4,
    ptb: float = 8.0,
    batch_ref: int = 100,
    start: Start = from_input,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """GDMP as for CIFAR-10, around any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0; its estimate is clipped to [-1, 1].
        n_noise: noising depth in indices.
        n_steps: reverse steps of a round, a divisor of n_noise; default n_noise.
        rounds: how often.
        similarity: S: `minus_mse` or `ssim` (then guide_scale 1000).
        guide_scale: strength.
        ptb: attack radius in pixel values that the strength is divided by.
        batch_ref: batch of the released strength, 100 there.
        start: default the paper's; `released_start(n_noise)` for the released code's.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier; it clamps its result, as released.
    """
    steps = ddpm_steps(DiscreteLinear(), n_noise=n_noise, n_steps=n_steps)
    return DiffusionPurifier(
        Clipped(denoiser),
        steps=steps,
        solver=AncestralLarge(last_variance(steps)),
        guidance=TowardInput(guide_m(guide_scale, ptb), similarity, diffused, batch_ref),
        start=start,
        rounds=rounds,
        gradient=gradient,
        clamp=True,
    )


def gdmp_imagenet(
    denoiser: Denoiser,
    *,
    n_noise: int = 45,
    n_kept: int = 250,
    similarity: Similarity = ssim,
    guide_scale: float = 1000.0,
    ptb: float = 4.0,
    batch_ref: int = 60,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """GDMP as for ImageNet: one round on a respaced chain, learned variance, the reference not diffused.

    Args:
        denoiser: an `EpsVarianceDenoiser`; its estimate is clipped to [-1, 1].
        n_noise: noising depth in kept indices.
        n_kept: indices that respacing keeps of 1000.
        similarity: S.
        guide_scale: strength.
        ptb: attack radius in pixel values.
        batch_ref: batch of the released strength, 60 there.
        gradient: how the reverse process is differentiated.

    Returns:
        The purifier, at the denoiser's resolution (wrap it in `Resized(..., size=256)`).
    """
    steps = respaced_steps(DiscreteLinear(), n_kept=n_kept, n_noise=n_noise)
    return DiffusionPurifier(
        Clipped(denoiser),
        steps=steps,
        solver=AncestralLearned(last_variance(steps)),
        guidance=TowardInput(guide_m(guide_scale, ptb), similarity, undiffused, batch_ref),
        gradient=gradient,
        clamp=True,
    )


def released_start(n_noise: int) -> FromInputUnder:
    """The released CIFAR-10 code's noising: to index n_noise, one more than the reverse process starts from."""
    return FromInputUnder(DiscreteLinear(), float(n_noise))


def _named(denoiser: Denoiser, *, t_star: float = 0.036, steps: int = 36) -> DiffusionPurifier:
    return gdmp(denoiser, n_noise=round(1000 * t_star), n_steps=steps)


METHOD = Method(
    "gdmp",
    "GDMP",
    "Wang et al. 2022, arXiv:2205.14969",
    "gdmp",
    (
        Setting("gdmp_cifar", "gdmp", gdmp, predictions=10),
        Setting("gdmp_imagenet", "gdmp_imagenet", gdmp_imagenet, learned=True),
    ),
    "its strength depends on the attack's radius",
    _named,
)
