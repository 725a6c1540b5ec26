"""Small smooth models, guidances and finite differences that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depura.denoisers import EdmDenoiser, EpsDenoiser
from depura.guidance import State, pull
from depura.noise import Kind
from depura.schedules import VP, TimeLabel


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers in [0, 1) from a generator of their own."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers from a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TanhNet(nn.Module):
    """conv - tanh - conv with the label added before the tanh; smooth everywhere and not linear."""

    def __init__(self, channels: int = 1, width: int = 4, *, seed: int = 0) -> None:
        super().__init__()
        self.enter = nn.Parameter(0.7 * randn(width, channels, 3, 3, seed=seed))
        self.by_label = nn.Parameter(randn(width, seed=seed + 1))
        self.leave = nn.Parameter(0.4 * randn(channels, width, 3, 3, seed=seed + 2))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = torch.nn.functional.conv2d(x, self.enter, padding=1)
        h = torch.tanh(h + (label[:, None] * self.by_label)[:, :, None, None])
        return torch.nn.functional.conv2d(h, self.leave, padding=1)


def tanh_eps(channels: int = 1, *, seed: int = 0) -> EpsDenoiser:
    """A noise predictor of a variance-preserving process, with random weights."""
    return EpsDenoiser(TanhNet(channels, seed=seed), label=TimeLabel(VP(), factor=1.0))


def tanh_edm(channels: int = 1, *, seed: int = 0) -> EdmDenoiser:
    """A preconditioned raw network, with random weights."""
    return EdmDenoiser(TanhNet(channels, seed=seed), sigma_data=0.5)


class TanhClassifier(nn.Module):
    """Two dense layers with a tanh between them."""

    def __init__(self, n_pixels: int, n_classes: int = 3, *, seed: int = 0) -> None:
        super().__init__()
        self.enter = nn.Parameter(randn(n_pixels, 6, seed=seed) / n_pixels**0.5 * 3)
        self.leave = nn.Parameter(randn(6, n_classes, seed=seed + 1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh((images - 0.5).flatten(1) @ self.enter) @ self.leave


@dataclass(frozen=True)
class Toward:
    """Pull the estimate of x0 toward the input: a smooth distance through x0 and x_in."""

    strength: float = 0.3

    def __call__(self, at: State) -> Tensor:
        distance = torch.sqrt(0.1 + (at.x0 - at.x_in).square()).flatten(1).sum(1)
        return self.strength * pull(distance, at.x)


@dataclass(frozen=True)
class TowardNoised:
    """Pull the state toward the input noised to the same level, with noise of its own."""

    strength: float = 0.2

    def __call__(self, at: State) -> Tensor:
        noised = at.x_in + at.step.sigma * at.noise(at.x, kind=Kind.GUIDANCE, step=at.step.index)
        return self.strength * pull(torch.log1p((at.x0 - noised).square()).flatten(1).sum(1), at.x)


def difference_quotients(f: Callable[[Tensor], Tensor], x: Tensor, *, h: float = 3e-5) -> Tensor:
    """Central differences of fourth order of f (batch -> one number per row) by each element of the single image x."""
    n = x.numel()
    offsets = h * torch.eye(n, dtype=x.dtype).reshape(n, *x.shape[1:])
    with torch.no_grad():
        near, far = f(x + offsets) - f(x - offsets), f(x + 2 * offsets) - f(x - 2 * offsets)
    return ((8 * near - far) / (12 * h)).reshape(x.shape)
