"""Small smooth models, guidances, purifiers of 4 x 4 images and their step tables, that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depura.diffusion.denoisers import EdmDenoiser, EpsDenoiser
from depura.diffusion.exact import MixtureDenoiser
from depura.diffusion.guidance import Guidance, State, minus_gradient
from depura.diffusion.schedules import VP, DiscreteLinear, Step, TimeLabel, uniform_steps
from depura.diffusion.solvers import (
    Ancestral,
    Denoise,
    DpmSolverPP,
    Euler,
    EulerMaruyama,
    EulerMaruyamaVP,
    FromInputUnder,
    Heun,
    Solver,
    Start,
    StepResult,
    from_input,
    from_noise,
)
from depura.noise import Kind, Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier


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
        return self.strength * minus_gradient(distance, at.x)


@dataclass(frozen=True)
class TowardNoised:
    """Pull the state toward the input noised to the same level, with noise of its own."""

    strength: float = 0.2

    def __call__(self, at: State) -> Tensor:
        noised = at.x_in + at.step.sigma * at.noise(at.x, kind=Kind.GUIDANCE, step=at.step.index)
        return self.strength * minus_gradient(torch.log1p((at.x0 - noised).square()).flatten(1).sum(1), at.x)


def difference_quotients(f: Callable[[Tensor], Tensor], x: Tensor, *, h: float = 3e-5) -> Tensor:
    """Central differences of fourth order of f (batch -> one number per row) by each element of the single image x."""
    n = x.numel()
    offsets = h * torch.eye(n, dtype=x.dtype).reshape(n, *x.shape[1:])
    with torch.no_grad():
        near, far = f(x + offsets) - f(x - offsets), f(x + 2 * offsets) - f(x - 2 * offsets)
    return ((8 * near - far) / (12 * h)).reshape(x.shape)


@dataclass(frozen=True)
class Jittered:
    """A DDPM step after which every pixel is multiplied by 1 + n / 10: noise that the Jacobian depends on."""

    def step(self, denoise: Denoise, x: Tensor, step: Step, noise: Noise) -> StepResult:
        result = Ancestral().step(denoise, x, step, noise)
        return result._replace(x_next=result.x_next * (1 + 0.1 * self.draw(x, step, noise)))

    def draw(self, x: Tensor, step: Step, noise: Noise) -> Tensor:
        """The multiplying noise."""
        return noise(x, kind=Kind.AUGMENT, step=step.index)


STEPS = uniform_steps(VP(), t_start=0.3, n_steps=4, t_end=1e-3)
CLEAN = uniform_steps(VP(), t_start=0.3, n_steps=4)
SOLVERS: dict[str, tuple[Solver, tuple[Step, ...]]] = {
    "Euler": (Euler(), STEPS),
    "Heun": (Heun(), CLEAN),
    "Ancestral": (Ancestral(), CLEAN),
    "Ancestral 0.5": (Ancestral(0.5), STEPS),
    "EulerMaruyama": (EulerMaruyama(), STEPS),
    "EulerMaruyamaVP": (EulerMaruyamaVP(), STEPS),
    "DpmSolverPP": (DpmSolverPP(), CLEAN),
    "DpmSolverPP, stochastic": (DpmSolverPP(stochastic=True), STEPS),
}
GUIDED: dict[str, tuple[Guidance | None, Start]] = {
    "unguided": (None, from_input),
    "toward": (Toward(), from_input),
    "toward noised": (TowardNoised(), from_input),
    "toward from noise": (Toward(), from_noise),
    "toward, released start": (Toward(), FromInputUnder(DiscreteLinear(), 299.0)),
}
DENOISERS: dict[str, Callable[[], nn.Module]] = {
    "eps": tanh_eps,
    "edm": tanh_edm,
    "mixture": lambda: MixtureDenoiser(0.7 * randn(3, 1, 4, 4, seed=9), std=0.3),
    "smooth": lambda: MixtureDenoiser(0.7 * randn(3, 1, 4, 4, seed=9), std=0.5),
}
X, V = rand(1, 1, 4, 4, seed=1), randn(1, 1, 4, 4, seed=2)
"""One image, and the weights of its purified pixels in the number that is differentiated."""
NOISE = Noise(7, images=(3,))
XS, VS = rand(4, 1, 4, 4, seed=21), randn(4, 1, 4, 4, seed=22)
NOISES = Noise(7, images=(3, 9, 3, 5), draws=(0, 1, 2, 0))
"""A batch of four, of which two rows are draws of one image."""


def purifier_of(name: str, guided: str = "unguided", denoiser: str = "eps", /, **changes) -> DiffusionPurifier:
    """A purifier by the names of its solver, guidance and denoiser; `changes` replace its parts or add others."""
    guidance, start = GUIDED[guided]
    solver, steps = SOLVERS[name]
    parts = {"denoiser": DENOISERS[denoiser](), "steps": steps, "solver": solver, "guidance": guidance, "start": start}
    return DiffusionPurifier(**(parts | changes))


def value_and_gradient(
    module: Callable[[Tensor, Noise], Tensor], x: Tensor = X, v: Tensor = V, noise: Noise = NOISE
) -> tuple[Tensor, Tensor]:
    """module(x, noise), and the gradient of its product with v by the module's own route."""
    leaf = x.clone().requires_grad_()
    out = module(leaf, noise)
    (gradient,) = torch.autograd.grad((out * v).sum(), leaf)
    return out.detach(), gradient


def numerical(module: Callable[[Tensor, Noise], Tensor], x: Tensor = X, v: Tensor = V, noise: Noise = NOISE) -> Tensor:
    """The same gradient by differences; all perturbed copies in one batch, with the noise of the one image."""

    def f(batch: Tensor) -> Tensor:
        return (module(batch, noise.take([0] * len(batch))) * v).flatten(1).sum(1)

    return difference_quotients(f, x)


@dataclass(frozen=True)
class Streams:
    """Noise of a study by the names of its streams."""

    seed: int

    def __getattr__(self, name: str) -> Callable[[Sequence[int]], Noise]:
        stream = Stream[name.upper()]
        return lambda ids: Noise(self.seed, tuple(ids), stream=stream)
