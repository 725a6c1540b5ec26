"""Small networks for small images: a residual U-Net of two scales and a plain convolutional classifier.

They are sized for the bundled 8x8 digits (in half precision 270 kB for the U-Net and 64 kB for a classifier) but take
any channel count and image size (the U-Net: any even one).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura.models.networks.blocks import Shapes


class SmallUNet(nn.Module):
    """Residual U-Net with two scales, scale-and-shift time conditioning, no attention.

    Blocks after Ho et al. 2020 and Nichol and Dhariwal 2021: GroupNorm, SiLU, 3x3 convolution, twice, with a residual
    path; the label enters between the two through sinusoidal features and a two-layer perceptron.
    """

    def __init__(self, *, channels: int = 1, width: int = 24, inner: int = 48, embed: int = 32) -> None:
        """Build with random weights.

        Args:
            channels: image channels.
            width: features at full resolution, divisible by 8.
            inner: features at half resolution, divisible by 8.
            embed: features of the label.
        """
        super().__init__()
        self.embed = embed
        self.mlp = nn.Sequential(nn.Linear(embed, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU())
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.enter = _Block(width, width, embed)
        self.down = nn.Conv2d(width, inner, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([_Block(inner, inner, embed), _Block(inner, inner, embed)])
        self.up = nn.Conv2d(inner, width, 1)
        self.leave = _Block(2 * width, width, embed)
        self.norm = nn.GroupNorm(8, width)
        self.head = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast(Tensor, self.head.bias))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: (B, C, H, W), H and W even.
            label: (B,), of order 1 (EDM's ln(sigma) / 4).

        Returns:
            (B, C, H, W).
        """
        e = self.mlp(_features(label, self.embed))
        skip = self.enter(self.stem(x), e)
        h = self.down(skip)
        for block in self.middle:
            h = block(h, e)
        h = F.interpolate(self.up(h), scale_factor=2.0, mode="nearest")
        h = self.leave(torch.cat([h, skip], dim=1), e)
        return self.head(F.silu(self.norm(h)))


class _Block(nn.Module):
    """GroupNorm - SiLU - conv - (scale, shift by label) - SiLU - conv, plus the input."""

    def __init__(self, n_in: int, n_out: int, embed: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.film = nn.Linear(embed, 2 * n_out)
        self.norm2 = nn.GroupNorm(8, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv2.bias))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(e)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class SmallClassifier(nn.Module):
    """Three 3x3 convolutions (the last two with stride 2), global average, linear layer; smooth activations.

    Takes images in [0, 1]; the shift to [-1, 1] is inside.
    """

    def __init__(self, *, channels: int = 1, classes: int = 10, width: int = 24) -> None:
        """Build with random weights.

        Args:
            channels: image channels.
            classes: number of classes.
            width: features of the first layer; doubled in the others.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [0, 1]."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """The activations (B, 2 width) before the linear layer, of images (B, C, H, W) in [0, 1]."""
        h = F.silu(self.conv1(2 * images - 1))
        h = F.silu(self.conv2(h))
        h = F.silu(self.conv3(h))
        return h.mean((2, 3))


def _features(label: Tensor, n: int) -> Tensor:
    """Sines and cosines of the label at n / 2 frequencies from 1 to 100 (labels of order 1)."""
    half = n // 2
    frequencies = torch.exp(torch.linspace(0.0, math.log(100.0), half, dtype=label.dtype, device=label.device))
    angles = label[:, None] * frequencies[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def unet_settings(shapes: Shapes) -> dict[str, Any] | None:
    """Settings of a `SmallUNet`, read off the shapes of its weights; None for other names."""
    if not {"stem.weight", "down.weight", "up.weight", "leave.film.weight"} <= set(shapes):
        return None
    width, channels = shapes["stem.weight"][:2]
    return {"channels": channels, "width": width, "inner": shapes["down.weight"][0], "embed": shapes["mlp.0.weight"][0]}


def classifier_settings(shapes: Shapes) -> dict[str, Any] | None:
    """Settings of a `SmallClassifier`, read off the shapes of its weights; None for other names."""
    if set(shapes) != {
        f"{layer}.{part}" for layer in ("conv1", "conv2", "conv3", "head") for part in ("weight", "bias")
    }:
        return None
    width, channels = shapes["conv1.weight"][:2]
    return {"channels": channels, "classes": shapes["head.weight"][0], "width": width}
