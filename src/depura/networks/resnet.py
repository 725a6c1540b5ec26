"""Residual networks for CIFAR-sized images: He et al. 2016 (arXiv:1512.03385), section 4.2.

Names of the weights are those of the published PyTorch checkpoints of this family (conv1, bn1, layer1.0.conv1 ...,
linear), so that these load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check


class CifarResNet(nn.Module):
    """ResNet of depth 6 n + 2: three stages of n blocks with 16, 32 and 64 features, and a global average.

    Shortcuts have no weights (the paper's option A): every second pixel, new features zero, half of them before the old
    ones and half after. Input is normalised; put `Normalised` around it for images in [0, 1].
    """

    def __init__(self, *, n_blocks: int = 3, n_classes: int = 10, channels: int = 3) -> None:
        """Build with random weights.

        Args:
            n_blocks: n, blocks per stage; 3 gives ResNet-20.
            n_classes: classes.
            channels: image channels.
        """
        super().__init__()
        _check.integer("CifarResNet", "n_blocks", n_blocks, low=1)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n_blocks)
        self.layer2 = _stage(16, 32, n_blocks)
        self.layer3 = _stage(32, 64, n_blocks)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, H, W)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(h))).mean((2, 3)))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.added = (after - before) // 2
        self.conv1 = nn.Conv2d(before, after, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(h + F.pad(short, (0, 0, 0, 0, self.added, self.added)))


def _stage(before: int, after: int, n_blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(before, after), *(_Block(after, after) for _ in range(n_blocks - 1)))


class Normalised(nn.Module):
    """A network for images in [0, 1] made of one for (x - mean) / std; the normalisation is in the gradient."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap the network.

        Args:
            network: takes normalised images.
            mean: one number per channel.
            std: one number per channel, > 0.
        """
        super().__init__()
        if len(mean) != len(std):
            _check.fail("Normalised", "as many means as standard deviations", f"{len(mean)} and {len(std)}")
        for value in std:
            _check.number("Normalised", "std", value, low=0.0, low_open=True)
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """What the network says of images (B, C, H, W) in [0, 1]."""
        return self.network((images - self.mean) / self.std)
