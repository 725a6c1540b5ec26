"""What one would try without a diffusion model: Gaussian noise, or a blur, before the classifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from depura import _check
from depura.filters import Blurred
from depura.gradients import GradientRoute
from depura.noise import Noise
from depura.purifier import Purifier
from depura.schedules import EDM, Step, steps_at
from depura.solvers import Stay
from depura.starts import from_input


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


def unasked(x: Tensor, sigma: float) -> Tensor:
    """Stands where a denoiser would; the solver `Stay` does not ask it."""
    return x


def noise_only(*, std: float, gradient: GradientRoute | None = None) -> Purifier:
    """Gaussian noise and nothing else.

    Args:
        std: its standard deviation, in [0, 1] image units.
        gradient: how it is differentiated.

    Returns:
        The "purifier".
    """
    _check.number("noise_only", "std", std, low=0.0, low_open=True)
    steps = steps_at(EDM(), [2 * std, 0.0])
    return Purifier(unasked, steps=steps, solver=Stay(), start=from_input, gradient=gradient)


def blur_only(*, std: float, gradient: GradientRoute | None = None) -> Purifier:
    """A Gaussian blur and nothing else.

    Args:
        std: its standard deviation in pixels.
        gradient: how it is differentiated.

    Returns:
        The "purifier".
    """
    steps = steps_at(EDM(), [1.0, 0.0])
    return Purifier(unasked, steps=steps, solver=Stay(), start=FromBlurred(Blurred(std)), gradient=gradient)
