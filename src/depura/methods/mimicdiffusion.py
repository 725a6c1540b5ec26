"""MimicDiffusion (Song, Lai, Pan and Yin, CVPR 2024, arXiv:2312.04802): generate from noise, toward the input:

    x_T ~ N(0, I),   x_{t-1} = DDPM(x_t) - kappa / 2 grad_{x_t} (|x0(x_t) - x_adv|_1 + |U x0(x_t) - U x_adv|_1)

inside a window of noise levels. The first term is the long-range guidance, the second, through the up-sampling U, the
short-range one. The input enters through signs only, so the exact gradient by it is zero
(docs/deviations.md#mimicdiffusion): attack it through `Relaxed`. kappa = 6000 / (16 H W) and the window are the
released code's at its batch of 16; the paper's own values and its U are not public.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from depura.diffusion.denoisers import Denoiser
from depura.diffusion.guidance import State, minus_gradient
from depura.diffusion.schedules import DiscreteLinear, Step, ddpm_steps, vp_scale
from depura.diffusion.solvers import Ancestral, Solver, Start, from_noise, from_unit_noise
from depura.gradients import GradientRoute
from depura.image_ops import Upsampled
from depura.methods.entry import Method, Setting
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.describe import added_later
from depura.records.names import recorded_as

Projection = Callable[[Tensor], Tensor]
"""U: a linear map of images, such as `Upsampled` or `Blurred`."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of x0 and the input, (B, C, H, W) twice -> (B,)."""

WINDOW = (DiscreteLinear().sigma(109), DiscreteLinear().sigma(789))
"""Noise levels that are guided, 0.373 to 23.6: steps 21 to 89 of the released 100."""


def manhattan(x0: Tensor, x_in: Tensor) -> Tensor:
    """|x0 - x_in|_1 per image, (B, C, H, W) twice -> (B,)."""
    return (x0 - x_in).abs().flatten(1).sum(1)


def euclidean(x0: Tensor, x_in: Tensor) -> Tensor:
    """sqrt(N) |x0 - x_in|_2 per image of N values, (B, C, H, W) twice -> (B,): a gradient as long as `manhattan`'s."""
    squares = (x0 - x_in).square().flatten(1)
    return (squares.shape[1] * squares.sum(1).clamp_min(1e-12)).sqrt()


def unprojected(images: Tensor) -> Tensor:
    """U = 1: no super-resolution, the short-range term repeats the long-range one."""
    return images


@recorded_as("depura.mimicdiffusion.through_network")
def through_network(at: State, distance: Callable[[Tensor], Tensor]) -> Tensor:
    """Minus the gradient of distance(x0) by x, with the network's Jacobian: the paper's formula."""
    return minus_gradient(distance(at.x0), at.x)


def constant(at: State, distance: Callable[[Tensor], Tensor]) -> Tensor:
    """Minus the gradient of distance(x0) by x with the predicted noise held constant, dx0/dx = 1: the released code."""
    return minus_gradient(distance(at.x0), at.x0)


@dataclass(frozen=True)
class Mimic:
    """-kappa / 2 times the gradients of the long- and the short-range distance, kappa = 2 rho / (batch_ref H W).

    Attributes:
        jacobian: `through_network` or `constant`.
        projection: U of the short-range term; None leaves that term out (its half of kappa too).
        rho: the released code's factor of either term.
        batch_ref: the released code divides by the batch; this is the batch whose strength every image gets.
        window: lowest and highest noise level that is guided.
        distance: of both terms, `manhattan` or `euclidean`.
        long_range: whether the term without U is there; without it, and without U, nothing guides.
    """

    jacobian: Callable[[State, Callable[[Tensor], Tensor]], Tensor] = through_network
    projection: Projection | None = None
    rho: float = 3000.0
    batch_ref: int = 16
    window: tuple[float, float] = WINDOW
    distance: Distance = added_later(manhattan)  # noqa: RUF009
    long_range: bool = added_later(True)

    def strength(self, height: int, width: int) -> float:
        """Step of x_t per guided step and pixel where all signs agree: kappa, 0.3662 at 32 x 32."""
        terms = self.long_range + (self.projection is not None)
        return terms * self.rho / (self.batch_ref * height * width)

    def __call__(self, at: State, /) -> Tensor:
        """The displacement; zero outside the window."""
        low, high = self.window
        if not low <= at.step.sigma <= high:
            return torch.zeros_like(at.x)
        unit = self.rho / (self.batch_ref * math.prod(at.x.shape[2:]))
        # A step of x_t is 1 / scale(sigma') as long in x: of a variance-preserving x_t, also along EDM's steps.
        return self.jacobian(at, lambda x0: self._distance(x0, at.x_in)) * (unit / vp_scale(at.step.sigma_next))

    def _distance(self, x0: Tensor, x_in: Tensor) -> Tensor:
        total = self.distance(x0, x_in) if self.long_range else 0 * x0.flatten(1).sum(1)
        if self.projection is None:
            return total
        finer, target = self.projection(x0), self.projection(x_in)
        return total + self.distance(finer, target) * (x0[0].numel() / finer[0].numel())


def mimicdiffusion(
    denoiser: Denoiser,
    *,
    steps: Sequence[Step] | None = None,
    solver: Solver | None = None,
    projection: Projection | None = None,
    released: bool = False,
    rho: float = 3000.0,
    batch_ref: int = 16,
    window: tuple[float, float] = WINDOW,
    start: Start | None = None,
    gradient: GradientRoute | None = None,
) -> DiffusionPurifier:
    """MimicDiffusion around any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0.
        steps: step table from pure noise; default 100 DDPM steps at indices 999, 989 .. 9. For EDM's steps
            `karras_steps(sigma_max=80, n_steps=...)`.
        solver: default `Ancestral()`; `Heun()` for EDM's steps.
        projection: U: `Upsampled`, `Blurred`, `unprojected` or any linear map; default bilinear x4, or with `released`
            nearest x4, which repeats the long-range term.
        released: the guidance's Jacobian as the released code has it (constant) instead of the paper's.
        rho: factor of either term.
        batch_ref: the batch whose strength every image gets, 16 in the released script.
        window: noise levels that are guided.
        start: default x_T ~ N(0, I) for the default steps, sigma n (`from_noise`) along others.
        gradient: how the reverse process is differentiated; the exact gradient is zero.

    Returns:
        The purifier.
    """
    u = (Upsampled("nearest") if released else Upsampled("bilinear")) if projection is None else projection
    default_start = from_unit_noise if steps is None else from_noise
    return DiffusionPurifier(
        denoiser,
        steps=ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=100) if steps is None else steps,
        solver=Ancestral() if solver is None else solver,
        guidance=Mimic(constant if released else through_network, u, rho, batch_ref, window),
        start=default_start if start is None else start,
        gradient=gradient,
    )


def _named(denoiser: Denoiser, *, steps: int = 100) -> DiffusionPurifier:
    table = ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=steps)
    return mimicdiffusion(denoiser, steps=table, start=from_unit_noise)


METHOD = Method(
    "mimicdiffusion",
    "MimicDiffusion",
    "Song et al. 2024, arXiv:2312.04802",
    "mimicdiffusion",
    (
        Setting("mimic_cifar", "mimicdiffusion", mimicdiffusion),
        Setting("mimic_released", "mimicdiffusion(released=True)", partial(mimicdiffusion, released=True)),
    ),
    "its exact gradient is zero: attack it through Relaxed",
    _named,
)
