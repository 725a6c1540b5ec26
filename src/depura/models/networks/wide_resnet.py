"""Wide residual networks: Zagoruyko and Komodakis 2016 (arXiv:1605.07146), in the two layouts of published weights.

Both are pre-activation networks of depth 6 n + 4: a 3x3 convolution to 16 features, three stages of n blocks with 16,
32 and 64 times the width, a norm, an activation, the mean over the image and a linear layer. (The published codes take
the mean of 8x8 positions, which is the same for images of 32x32.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.models.networks.blocks import Shapes, counted


class WideResNet(nn.Module):
    """The layout of most RobustBench checkpoints ("Standard" is 28-10), and of DiffPure's WRN-28-10 and 70-16.

    It does not normalise. RobustBench's take images in [0, 1] as they are; DiffPure's normalise inside, with constants
    that are not among the weights: put `Normalised(..., CIFAR10)` around the network.
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        width: int = 10,
        n_classes: int = 10,
        dropout: float = 0.0,
        sub_block: bool = False,
        bias: bool = True,
        channels: int = 3,
    ) -> None:
        """Build with random weights.

        Args:
            depth: 6 n + 4.
            width: factor of the 16, 32 and 64 features.
            n_classes: classes.
            dropout: probability between the two convolutions of a block, in training.
            sub_block: whether there is a second first stage, `sub_block1`. Many published files carry one; nothing is
                ever computed with it.
            bias: of the last layer.
            channels: image channels.
        """
        super().__init__()
        n = _blocks_of("WideResNet", depth)
        _check.number("WideResNet", "dropout", dropout, low=0.0, high=1.0)
        wide = [k * _check.integer("WideResNet", "width", width, low=1) for k in (16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        stage = partial(_stage, "layer", partial(_Block, dropout=dropout), n=n)
        self.block1 = stage(16, wide[0], 1)
        if sub_block:
            self.sub_block1 = stage(16, wide[0], 1)
        self.block2 = stage(wide[0], wide[1], 2)
        self.block3 = stage(wide[1], wide[2], 2)
        self.bn1 = nn.BatchNorm2d(wide[2])
        self.fc = nn.Linear(wide[2], n_classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        h = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(h)).mean((2, 3)))


def _stage(
    name: str, block: Callable[[int, int, int], nn.Module], before: int, after: int, stride: int, n: int
) -> nn.Module:
    """n blocks in a row under a name, the first of which changes width and resolution."""
    rest = (block(after, after, 1) for _ in range(n - 1))
    return nn.Sequential(OrderedDict({name: nn.Sequential(block(before, after, stride), *rest)}))


class _Block(nn.Module):
    """Norm, ReLU, convolution, twice; where the width changes, the shortcut starts after the first ReLU."""

    def __init__(self, before: int, after: int, stride: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        h = F.relu(self.bn2(self.conv1(active)))
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return h + (x if self.convShortcut is None else self.convShortcut(active))


def wide_resnet_settings(shapes: Shapes, *, dropout: float = 0.0) -> dict[str, Any] | None:
    """Arguments of `WideResNet`; dropout matters in training only, and DiffPure's WRN-70-16 has 0.3."""
    if not {"conv1.weight", "block1.layer.0.conv1.weight", "fc.weight"} <= shapes.keys():
        return None
    return {
        "depth": 6 * counted(shapes, "block1.layer.") + 4,
        "width": shapes["block1.layer.0.conv1.weight"][0] // 16,
        "n_classes": shapes["fc.weight"][0],
        "dropout": dropout,
        "sub_block": "sub_block1.layer.0.conv1.weight" in shapes,
        "bias": "fc.bias" in shapes,
        "channels": shapes["conv1.weight"][1],
    }


class DmWideResNet(nn.Module):
    """The layout of DeepMind's robust networks in RobustBench (Gowal, Rebuffi, Pang, Wang ...): 28-10 and 70-16.

    It differs from `WideResNet` in names, in the activation, and in that convolutions of stride 2 see a border of zeros
    at the bottom and at the right only. It does not normalise; the published constants are not among the weights: put
    `Normalised(..., CIFAR10)` around the network, and `Padded` around that where the published one pads.
    """

    def __init__(
        self, *, depth: int = 28, width: int = 10, n_classes: int = 10, swish: bool = True, channels: int = 3
    ) -> None:
        """Build with random weights.

        Args:
            depth: 6 n + 4.
            width: factor of the 16, 32 and 64 features.
            n_classes: classes.
            swish: whether activations are x sigmoid(x), as in the published robust ones, or ReLU.
            channels: image channels.
        """
        super().__init__()
        n = _blocks_of("DmWideResNet", depth)
        wide = [k * _check.integer("DmWideResNet", "width", width, low=1) for k in (16, 32, 64)]
        self.activation = F.silu if swish else F.relu
        self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        stage = partial(_stage, "block", partial(_DmBlock, activation=self.activation), n=n)
        self.layer = nn.Sequential(stage(16, wide[0], 1), stage(wide[0], wide[1], 2), stage(wide[1], wide[2], 2))
        self.batchnorm = nn.BatchNorm2d(wide[2])
        self.logits = nn.Linear(wide[2], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, H, W)."""
        h = self.layer(self.init_conv(x))
        return self.logits(self.activation(self.batchnorm(h)).mean((2, 3)))


class _DmBlock(nn.Module):
    """As `_Block`; the first convolution pads on one side only where it has stride 2."""

    def __init__(self, before: int, after: int, stride: int, *, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.border = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
        self.batchnorm_0 = nn.BatchNorm2d(before)
        self.conv_0 = nn.Conv2d(before, after, 3, stride=stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(after)
        self.conv_1 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.batchnorm_0(x))
        h = self.activation(self.batchnorm_1(self.conv_0(F.pad(active, self.border))))
        return self.conv_1(h) + (x if self.shortcut is None else self.shortcut(active))


def dm_wide_resnet_settings(shapes: Shapes, *, swish: bool = True) -> dict[str, Any] | None:
    """Arguments of `DmWideResNet`; shapes do not tell the activation."""
    if not {"init_conv.weight", "layer.0.block.0.conv_0.weight", "logits.weight"} <= shapes.keys():
        return None
    return {
        "depth": 6 * counted(shapes, "layer.0.block.") + 4,
        "width": shapes["layer.0.block.0.conv_0.weight"][0] // 16,
        "n_classes": shapes["logits.weight"][0],
        "swish": swish,
        "channels": shapes["init_conv.weight"][1],
    }


def _blocks_of(where: str, depth: int) -> int:
    if _check.integer(where, "depth", depth, low=10) % 6 != 4:
        _check.fail(where, "a depth of 6 n + 4, such as 28 or 70", str(depth))
    return (depth - 4) // 6
