"""Purifiers as other people write them: none knows of depura's noise, routes or records. Images of 1 x 8 x 8 in [0, 1].

`depura judge tests/foreign.py:NAME` takes them as they are; each function makes one.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchsde
from diffusers import UNet2DModel
from torch import Tensor, nn

import depura


def small_unet() -> UNet2DModel:
    """A network of diffusers with random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        ).eval()


class Digits(nn.Module):
    """The bundled denoiser as a network of a signature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = depura.digits_denoiser()

    def forward(self, x: Tensor, *, noise_level: float) -> dict[str, Tensor]:
        return {"clean": self.inner(x, noise_level)}


class Loop(nn.Module):
    """A DDPM chain of its own: noise, then ancestral steps around the digits' denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = Digits()

    def forward(self, x: Tensor, n_steps: int = 4) -> Tensor:
        x = 2 * x - 1
        levels = [0.5 * (1 - k / n_steps) for k in range(n_steps + 1)]
        x = x + levels[0] * torch.randn_like(x)
        for high, low in itertools.pairwise(levels):
            clean = self.unet(x, noise_level=high)["clean"]
            x = clean + (x - clean) * (low / high) ** 2
            x += low * (1 - (low / high) ** 2) ** 0.5 * torch.randn(x.shape)
        return (x + 1) / 2


class Diffusers(nn.Module):
    """A DDPM loop over a network of diffusers, images in [-1, 1], in few steps of a linear schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = small_unet()

    def forward(self, x: Tensor, n_steps: int = 5) -> Tensor:
        betas = torch.linspace(1e-3, 0.05, n_steps)
        abar = torch.cumprod(1 - betas, 0)
        x = abar[-1].sqrt() * x + (1 - abar[-1]).sqrt() * torch.randn_like(x)
        for k in reversed(range(n_steps)):
            eps = self.unet(x, torch.full((len(x),), 10 * k)).sample
            x = (x - betas[k] / (1 - abar[k]).sqrt() * eps) / (1 - betas[k]).sqrt()
            if k > 0:
                x = x + betas[k].sqrt() * torch.randn(x.size())
        return x


class _Reverse(nn.Module):
    """A reverse SDE as torchsde takes it, flattened."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        sigma = 0.5 - float(t)
        x = y.reshape(-1, *self.shape)
        return (2 * (self.network(x, noise_level=sigma)["clean"] - x) / sigma).flatten(1)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, (2 * (0.5 - float(t))) ** 0.5)


class Sde(nn.Module):
    """In the manner of score_sde's users: Euler steps of torchsde, whose Brownian motion has generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Digits()

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x - 1
        x = x + 0.5 * torch.randn_like(x)
        sde = _Reverse(self.model, tuple(x.shape[1:]))
        times = torch.tensor([0.0, 0.4])
        end = torchsde.sdeint(sde, x.flatten(1), times, dt=0.1, method="euler")[-1]
        return (end.reshape(x.shape) + 1) / 2


class _ReverseVp(_Reverse):
    """The reverse VP-SDE in the clock 1 - t, beta(t) = 0.1 + 19.9 t."""

    def _at(self, clock: Tensor) -> tuple[float, float]:
        t = 1 - float(clock)
        return 0.1 + 19.9 * t, math.exp(-(0.1 * t + 9.95 * t * t))  # beta, abar

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        beta, abar = self._at(t)
        clean = self.network(y.reshape(-1, *self.shape) / abar**0.5, noise_level=(1 / abar - 1) ** 0.5)["clean"]
        score = (abar**0.5 * clean.flatten(1) - y) / (1 - abar)
        return beta / 2 * y + beta * score

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, self._at(t)[0] ** 0.5)


class VpSde(nn.Module):
    """DiffPure as its users write it: noise to t*, then the reverse VP-SDE by torchsde."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Digits()

    def forward(self, x: Tensor, t: float = 0.1, n: int = 5) -> Tensor:
        abar = math.exp(-(0.1 * t + 9.95 * t * t))
        x_t = abar**0.5 * (2 * x - 1) + (1 - abar) ** 0.5 * torch.randn_like(x)
        sde = _ReverseVp(self.model, tuple(x.shape[1:]))
        end = torchsde.sdeint(sde, x_t.flatten(1), torch.tensor([1 - t, 1 - 1e-5]), dt=t / n, method="euler")[-1]
        return (end.reshape(x.shape) + 1) / 2


class Langevin(nn.Module):
    """Descends an energy by its gradient, with a graph of the gradient, and adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = depura.digits_classifier()

    def forward(self, x: Tensor, n_steps: int = 4) -> Tensor:
        with torch.enable_grad():
            wanted = x.requires_grad
            x = x if wanted else x.clone().requires_grad_()
            for _ in range(n_steps):
                energy = -torch.logsumexp(self.energy(x), dim=1).sum()
                (slope,) = torch.autograd.grad(energy, x, create_graph=wanted)
                x = x - 0.01 * slope + 0.02 * torch.randn_like(x)
        return x if wanted else x.detach()


class RandomDepth(nn.Module):
    """Depth and noise drawn by numpy, a sign by Python."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Digits()

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x - 1
        for _ in range(np.random.randint(1, 4)):
            noise = torch.as_tensor(np.random.normal(size=tuple(x.shape)), dtype=x.dtype)
            x = self.net(x + random.choice((-0.2, 0.2)) * noise, noise_level=0.2)["clean"]
        return (x + 1) / 2


class Chatty(nn.Module):
    """Prints, writes pictures, counts its calls, and returns three results for each image, stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Digits()
        self.calls = 0

    def image_editing_sample(self, x: Tensor, tag: str = "run") -> Tensor:
        self.calls += 1
        print(f"purifying {len(x)} images")
        Path("out").mkdir(exist_ok=True)
        Path(f"out/{tag}-{self.calls}.txt").write_text("a picture")
        x = torch.cat([x] * 3)
        x = self.model(x + 0.3 * torch.randn_like(x), noise_level=0.3)["clean"]
        return self.model(x + 0.1 * torch.randn_like(x), noise_level=0.1)["clean"]


class Guided(nn.Module):
    """Holds a classifier and differentiates it: noise where its saliency is small, along its own prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.classifier = Digits(), depura.digits_classifier()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            seen = x.detach().clone().requires_grad_()
            logits = self.classifier(seen)
            (map_,) = torch.autograd.grad(logits.max(1).values.sum(), seen)
        threshold = map_.abs().flatten(1).topk(16).values[:, -1]
        mask = (map_.abs() < threshold[:, None, None, None]).to(x.dtype)
        noisy = 2 * x - 1 + (0.2 + 0.3 * mask) * torch.randn_like(x)
        return (self.net(noisy, noise_level=0.5)["clean"] + 1) / 2


class Dropped(nn.Module):
    """A small network whose dropout is left on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = Digits(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(self.dropout(2 * x - 1), noise_level=0.3)["clean"] + 1) / 2


class NoGradient(Loop):
    """The chain under no_grad, as released code often has it."""

    @torch.no_grad()
    def forward(self, x: Tensor, n_steps: int = 4) -> Tensor:
        return super().forward(x, n_steps)


class Whole(nn.Module):
    """A whole defence: purifies and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.purifier, self.classifier = Loop(), depura.digits_classifier()

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.purifier(x)), "and something else"


class Runner:
    """No module at all: an object that holds one, as released code does."""

    def __init__(self, n: int = 4) -> None:
        self.model, self.args = Digits(), {"n": n}

    def purify(self, img: Tensor) -> Tensor:
        x = 2 * img - 1
        for k in range(self.args["n"]):
            x = self.model(x + 0.1 * torch.empty_like(x).normal_(), noise_level=0.1 + 0.01 * k)["clean"]
        return (x + 1) / 2


def loop() -> Loop:
    return Loop().eval()


def diffusers() -> Diffusers:
    return Diffusers().eval()


def sde() -> Sde:
    return Sde().eval()


def vp_sde() -> VpSde:
    return VpSde().eval()


def langevin() -> Langevin:
    return Langevin().eval()


def random_depth() -> RandomDepth:
    return RandomDepth().eval()


def chatty() -> Chatty:
    return Chatty().eval()


def guided() -> Guided:
    return Guided().eval()


def dropped() -> Dropped:
    return Dropped().train()


def no_gradient() -> NoGradient:
    return NoGradient().eval()


def whole() -> Whole:
    return Whole().eval()


def runner() -> Runner:
    return Runner()
