"""Residual networks for CIFAR-sized images: He et al. 2016 (arXiv:1512.03385), section 4.2 and figure 5.

Names of the weights are those of the published PyTorch checkpoints of these families (conv1, bn1, layer1.0.conv1 ...,
linear), so that these load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.models.networks.blocks import Shapes, counted


class CifarResNet(nn.Module):
    """ResNet of depth 6 n + 2: three stages of n blocks with 16, 32 and 64 features, and a global average.

    Shortcuts have no weights (the paper's option A): every second pixel, new features zero, half of them before the old
    ones and half after. Input is normalised; put `Normalised` around it for images in [0, 1].
    """

    def __init__(self, *, n_blocks: int | Sequence[int] = 3, n_classes: int = 10, channels: int = 3) -> None:
        """Build with random weights.

        Args:
            n_blocks: n, blocks per stage, or one number for each of the three; 3 gives ResNet-20.
            n_classes: classes.
            channels: image channels.
        """
        super().__init__()
        depths = [n_blocks] * 3 if isinstance(n_blocks, int) else list(n_blocks)
        _check_depths("CifarResNet", depths, 3)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, depths[0])
        self.layer2 = _stage(16, 32, depths[1])
        self.layer3 = _stage(32, 64, depths[2])
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


def cifar_resnet_settings(shapes: Shapes) -> dict[str, Any] | None:
    """Arguments of `CifarResNet`."""
    wanted = {"conv1.weight", "layer1.0.conv2.weight", "layer3.0.conv2.weight", "linear.weight"}
    if not wanted <= shapes.keys() or "layer1.0.conv3.weight" in shapes or "layer4.0.conv1.weight" in shapes:
        return None
    return {
        "n_blocks": tuple(counted(shapes, f"layer{k}.") for k in (1, 2, 3)),
        "n_classes": shapes["linear.weight"][0],
        "channels": shapes["conv1.weight"][1],
    }


class CifarBottleneckResNet(nn.Module):
    """ResNet of bottlenecks on a 3x3 stem, without pooling before the stages: DiffPure's CIFAR-10 ResNet-50.

    Input is normalised. The published network normalises inside, with constants that are not among the weights: put
    `Normalised(..., CIFAR10)` around it.
    """

    def __init__(
        self,
        *,
        n_blocks: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        n_classes: int = 10,
        channels: int = 3,
    ) -> None:
        """Build with random weights.

        Args:
            n_blocks: blocks of each of the four stages.
            widths: inner features of each stage; it gives four times as many. The stem has as many as the first.
            n_classes: classes.
            channels: image channels.
        """
        super().__init__()
        _check_depths("CifarBottleneckResNet", n_blocks, 4)
        if len(widths) != 4:
            _check.fail("CifarBottleneckResNet", "four widths", str(tuple(widths)))
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _bottlenecks(widths[0], widths[0], n_blocks[0], 1)
        self.layer2 = _bottlenecks(4 * widths[0], widths[1], n_blocks[1], 2)
        self.layer3 = _bottlenecks(4 * widths[1], widths[2], n_blocks[2], 2)
        self.layer4 = _bottlenecks(4 * widths[2], widths[3], n_blocks[3], 2)
        self.linear = nn.Linear(4 * widths[3], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, H, W)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(h)))).mean((2, 3)))


class _Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions; the shortcut has weights where shapes change."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.shortcut(x))


def _bottlenecks(before: int, width: int, n: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Bottleneck(before, width, stride), *(_Bottleneck(4 * width, width, 1) for _ in range(n - 1)))


def cifar_bottleneck_settings(shapes: Shapes) -> dict[str, Any] | None:
    """Arguments of `CifarBottleneckResNet`."""
    if not {"conv1.weight", "layer1.0.conv3.weight", "layer4.0.conv3.weight", "linear.weight"} <= shapes.keys():
        return None
    stages = ("layer1.", "layer2.", "layer3.", "layer4.")
    if any(f"{stage}0.conv1.weight" not in shapes for stage in stages):
        return None
    return {
        "n_blocks": tuple(counted(shapes, stage) for stage in stages),
        "widths": tuple(shapes[f"{stage}0.conv1.weight"][0] for stage in stages),
        "n_classes": shapes["linear.weight"][0],
        "channels": shapes["conv1.weight"][1],
    }


def _check_depths(where: str, n_blocks: Sequence[int], n_stages: int) -> None:
    if len(n_blocks) != n_stages:
        _check.fail(where, f"n_blocks of {n_stages} stages", f"{len(n_blocks)}")
    for n in n_blocks:
        _check.integer(where, "n_blocks", n, low=1)
