"""What one would try without a diffusion model: Gaussian noise, a blur, or JPEG compression before the classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import EDM, Step, steps_at
from depura.diffusion.solvers import Denoise, Stay, StepResult, as_it_is, from_input
from depura.gradients import GradientRoute
from depura.image_ops import Blurred, Jpeg
from depura.methods.entry import Method, Setting
from depura.noise import Noise
from depura.purifiers.purifier import DiffusionPurifier, Purifier


@dataclass(frozen=True)
class FromBlurred:
    """A start: the input, blurred.

    Attributes:
        blur: the filter.
    """

    blur: Blurred

    def __call__(self, x_in: Tensor, step: Step, noise: Noise, /) -> Tensor:
        """The blurred input."""
        return self.blur(x_in)


@dataclass(frozen=True)
class Recoded:
    """A solver whose step is JPEG; the denoiser is not asked.

    Attributes:
        jpeg: the codec.
    """

    jpeg: Jpeg

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        """x' = what a decoder gives back of x."""
        decoded = 2 * self.jpeg((x + 1) / 2) - 1
        return StepResult(decoded, decoded)


def unasked(x: Tensor, sigma: float) -> Tensor:
    """Stands where a denoiser would; the solver `Stay` does not ask it."""
    return x


def noise_only(*, std: float, gradient: GradientRoute | None = None) -> DiffusionPurifier:
    """Gaussian noise and nothing else.

    Args:
        std: its standard deviation, in [0, 1] image units.
        gradient: how it is differentiated.

    Returns:
        The "purifier".
    """
    _check.number("noise_only", "std", std, low=0.0, low_open=True)
    steps = steps_at(EDM(), [2 * std, 0.0])
    return DiffusionPurifier(unasked, steps=steps, solver=Stay(), start=from_input, gradient=gradient)


def blur_only(*, std: float, gradient: GradientRoute | None = None) -> DiffusionPurifier:
    """A Gaussian blur and nothing else.

    Args:
        std: its standard deviation in pixels.
        gradient: how it is differentiated.

    Returns:
        The "purifier".
    """
    steps = steps_at(EDM(), [1.0, 0.0])
    return DiffusionPurifier(unasked, steps=steps, solver=Stay(), start=FromBlurred(Blurred(std)), gradient=gradient)


def jpeg_only(
    *, quality: int = 75, subsampled: bool = True, gradient: GradientRoute | None = None
) -> DiffusionPurifier:
    """JPEG compression and nothing else (Dziugaite et al. 2016, arXiv:1608.00853, try it as a defence).

    Its exact gradient is zero: attack it through `Relaxed` or `StraightThrough`.

    Args:
        quality: of libjpeg's scale, 1 .. 100.
        subsampled: colour at half the resolution.
        gradient: how it is differentiated.

    Returns:
        The "purifier".
    """
    steps = steps_at(EDM(), [1.0, 0.0])
    solver = Recoded(Jpeg(quality, subsampled))
    return DiffusionPurifier(unasked, steps=steps, solver=solver, start=as_it_is, gradient=gradient)


def _around_any(purifier: Purifier) -> Callable[[Denoiser], Purifier]:
    return lambda denoiser: purifier


METHOD = Method(
    "baseline",
    "baseline",
    "",
    "",
    (
        Setting("noise", "noise_only(std=...)", _around_any(noise_only(std=0.1))),
        Setting("blur", "blur_only(std=...)", _around_any(blur_only(std=1.0))),
        Setting("jpeg", "jpeg_only(quality=...)", _around_any(jpeg_only())),
    ),
    "no diffusion model",
)
