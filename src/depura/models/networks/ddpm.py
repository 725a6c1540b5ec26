"""The DDPM U-Net (Ho et al. 2020, arXiv:2006.11239, appendix B) under the names of its published PyTorch checkpoints.

SDEdit and DiffPure read their CelebA-HQ network in this layout, and PyTorch copies of the original CIFAR-10 network
have it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura.models.networks.blocks import Shapes, attend, check_inputs, check_levels, doubled, sinusoids


class DdpmUNet(nn.Module):
    """U-Net with attention after every block of the levels that have it, on both ways, and in the middle.

    The label is the number of a step, 0 .. 999, or any real number between; the output is the predicted noise.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        channels: int = 3,
        dropout: float = 0.1,
    ) -> None:
        """Build with random weights. The defaults are those of the CIFAR-10 network.

        Args:
            width: base width, divisible by 32.
            multipliers: width of each level over the base width, from the highest resolution.
            blocks: residual blocks per level on the way down; one more on the way up.
            attention: levels with attention, 0 is the highest resolution.
            channels: image channels, also of the output.
            dropout: within blocks, in training mode.

        Raises:
            InputError: a width not divisible by 32, or unusable levels.
        """
        super().__init__()
        check_levels("DdpmUNet", multipliers, attention, width=width, groups=32, blocks=blocks)
        self.width, self.channels = width, channels
        widths = [m * width for m in multipliers]
        block = partial(_Block, embedding=4 * width, dropout=dropout)

        def level(takes: list[int], n: int, number: int) -> _Level:
            blocks = [block(before, n) for before in takes]
            return _Level(blocks, [_Attention(n) for _ in takes] if number in attention else [])

        self.temb = _Embedding(width)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        now, skips = width, [width]
        self.down = nn.ModuleList()
        for number, after in enumerate(widths):
            self.down.append(level([now, *[after] * (blocks - 1)], after, number))
            skips += [after] * blocks
            if number < len(widths) - 1:
                self.down[-1].add_module("downsample", _Downsample(after))
                skips.append(after)
            now = after
        self.mid = nn.ModuleDict({"block_1": block(now, now), "attn_1": _Attention(now), "block_2": block(now, now)})
        ups: list[nn.Module] = []
        for number, after in reversed(list(enumerate(widths))):
            ups.append(level([n + skips.pop() for n in [now, *[after] * blocks]], after, number))
            if number > 0:
                ups[-1].add_module("upsample", _Upsample(after))
            now = after
        self.up = nn.ModuleList(reversed(ups))
        self.norm_out = _norm(now)
        self.conv_out = nn.Conv2d(now, channels, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: noisy images (B, C, H, W), range [-1, 1] plus noise, H and W divisible by 2 once per change of level.
            label: (B,), steps' numbers.

        Returns:
            (B, C, H, W), predicted noise.

        Raises:
            InputError: shapes that do not fit.
        """
        check_inputs("DdpmUNet", x, label, channels=self.channels, levels=len(self.down))
        features = sinusoids(label.double(), self.width, steps=self.width // 2 - 1, sine_first=True)
        embedded = self.temb(features.to(x.dtype))
        h: Tensor = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for layers in _steps(level):
                h = _through(layers, h, embedded)
                skips.append(h)
        h = _through(self.mid.values(), h, embedded)
        for level in reversed(self.up):
            for layers in _steps(level):
                if isinstance(layers[0], _Block):
                    h = torch.cat([h, skips.pop()], dim=1)
                h = _through(layers, h, embedded)
        return self.conv_out(F.silu(self.norm_out(h)))


def settings_of(shapes: Shapes, *, dropout: float = 0.1) -> dict[str, Any] | None:
    """Arguments of `DdpmUNet`; a dropout of 0.1 is the CIFAR-10 network's, the CelebA-HQ one has 0."""
    stem = shapes.get("conv_in.weight", ())
    if "temb.dense.0.weight" not in shapes or len(stem) != 4 or not stem[0]:
        return None
    widths: list[int] = []
    while (kernel := f"down.{len(widths)}.block.0.conv1.weight") in shapes:
        widths.append(shapes[kernel][0])
    blocks = 0
    while f"down.0.block.{blocks}.conv1.weight" in shapes:
        blocks += 1
    if not blocks:
        return None
    return {
        "width": stem[0],
        "multipliers": tuple(w // stem[0] for w in widths),
        "blocks": blocks,
        "attention": tuple(n for n in range(len(widths)) if f"down.{n}.attn.0.q.weight" in shapes),
        "channels": stem[1],
        "dropout": dropout,
    }


class _Embedding(nn.Module):
    """Two linear layers with a swish between them; the blocks apply the one after them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])

    def forward(self, features: Tensor) -> Tensor:
        first, second = self.dense
        return second(F.silu(first(features)))


class _Level(nn.Module):
    """Blocks, attention after each of them or none, and perhaps a change of resolution."""

    def __init__(self, blocks: Sequence[nn.Module], attentions: Sequence[nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attentions)


def _steps(level: nn.Module) -> Iterator[list[nn.Module]]:
    """Modules that are run one after another: of each block, then of the change of resolution."""
    assert isinstance(level, _Level)
    for n, block in enumerate(level.block):
        yield [block, *level.attn[n : n + 1]]
    for name, module in level.named_children():
        if name in ("downsample", "upsample"):
            yield [module]


def _through(layers: Iterable[nn.Module], h: Tensor, embedded: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h, embedded) if isinstance(layer, _Block) else layer(h)
    return h


class _Block(nn.Module):
    """Norm, swish, convolution, embedding; norm, swish, dropout, convolution; and the input.

    The input goes through a 1x1 convolution where its width changes.
    """

    def __init__(self, before: int, after: int, *, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.temb_proj = nn.Linear(embedding, after)
        self.norm2 = _norm(after)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(embedded))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class _Attention(nn.Module):
    """Attention of all positions to all with one head, and the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (part(h).flatten(2)[:, None] for part in (self.q, self.k, self.v))
        return x + self.proj_out(attend(query, key, value).reshape(x.shape))


class _Downsample(nn.Module):
    """A strided 3x3 convolution with zeros at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    """Nearest neighbours and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(doubled(x))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)
