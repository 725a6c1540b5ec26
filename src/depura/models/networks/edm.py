"""The two U-Nets of Karras et al. 2022 (arXiv:2206.00364), appendix F.7 and table 5.

Names of the weights are those of the modules in the published pickles (`map_layer0`, `enc.32x32_conv` ...
`dec.32x32_aux_conv` or `out_conv`), so that these load unchanged. Names contain resolutions, so networks have one, yet
images of any size that the levels halve evenly may be passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.models.networks.blocks import Shapes, attend, check_inputs, check_levels, sinusoids

EMBED = 4
"""Features of the embedded label, in widths."""

FOURIER_SCALE = 16.0
"""Standard deviation of Fourier frequencies, in periods per unit of the label."""


class SongUNet(nn.Module):
    """DDPM++ and NCSN++ of Song et al. 2021 (arXiv:2011.13456, appendix H) in Karras et al.'s version.

    Sums of residual paths are divided by sqrt(2). Attention, with one head, stands after every block of the levels
    named on the way down, after the last one on the way up and after the first block of the lowest level.
    """

    def __init__(
        self,
        *,
        resolution: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        fourier: bool = False,
        residual: bool = False,
        filter: Sequence[int] = (1, 1),
        noise_multiplier: int = 1,
        classes: int | None = None,
        augment: int | None = None,
        channels: int = 3,
        outputs: int = 3,
        dropout: float = 0.0,
    ) -> None:
        """Build with torch's initial weights.

        Args:
            resolution: pixels along a side, which the weights' names contain.
            width: features that the multipliers multiply, a multiple of 4.
            multipliers: a factor of the width per level, the highest resolution first.
            blocks: residual blocks per level on the way down; one more on the way up.
            attention: levels with attention, 0 is the highest resolution.
            fourier: the label's features have random frequencies (NCSN++), or geometric ones (DDPM++).
            residual: the image enters every level once more by a convolution and a filter (NCSN++), or it does not.
            filter: weights along one axis of the filter that changes resolutions: 1, 1 or 1, 3, 3, 1.
            noise_multiplier: features of the label, in widths.
            classes: number of classes of a class-conditional network.
            augment: numbers that describe an augmentation in training.
            channels: image channels.
            outputs: channels of the result.
            dropout: share of features left out in training, before the second convolution of a block.
        """
        super().__init__()
        check_levels("SongUNet", multipliers, attention)
        _check_widths("SongUNet", resolution, [width * m for m in multipliers])
        _check.integer("SongUNet", "blocks", blocks, low=1)
        noise, embed = width * noise_multiplier, EMBED * width
        self.noise, self.channels, self.levels = noise, channels, len(multipliers)
        self.classes, self.augment = classes, augment
        self.map_noise = _Fourier(noise) if fourier else None
        if classes is not None:
            self.map_label = nn.Linear(classes, noise)
        if augment is not None:
            self.map_augment = nn.Linear(augment, noise, bias=False)
        self.map_layer0 = nn.Linear(noise, embed)
        self.map_layer1 = nn.Linear(embed, embed)

        def block(before: int, after: int, *, heads: int = 0, up: bool = False, down: bool = False) -> _SongBlock:
            return _SongBlock(before, after, embed, heads=heads, filter=filter, up=up, down=down, dropout=dropout)

        self.enc = nn.ModuleDict({_at(resolution, "conv"): _Conv(channels, width, 3)})
        current, side, skips = width, channels, [width]
        for level, m in enumerate(multipliers):
            here = resolution >> level
            if level > 0:
                self.enc[_at(here, "down")] = block(current, current, down=True)
                if residual:
                    self.enc[_at(here, "aux_residual")] = _Conv(side, current, 3, filter=filter, down=True, fused=True)
                    side = current
                skips.append(current)
            for k in range(blocks):
                self.enc[_at(here, f"block{k}")] = block(current, width * m, heads=int(level in attention))
                current = width * m
                skips.append(current)
        self.dec = nn.ModuleDict()
        for level, m in reversed(list(enumerate(multipliers))):
            here = resolution >> level
            if level == len(multipliers) - 1:
                self.dec[_at(here, "in0")] = block(current, current, heads=1)
                self.dec[_at(here, "in1")] = block(current, current)
            else:
                self.dec[_at(here, "up")] = block(current, current, up=True)
            for k in range(blocks + 1):
                heads = int(level in attention and k == blocks)
                self.dec[_at(here, f"block{k}")] = block(current + skips.pop(), width * m, heads=heads)
                current = width * m
        self.dec[_at(resolution, "aux_norm")] = _norm(current, _SongBlock.eps)
        self.dec[_at(resolution, "aux_conv")] = _Conv(current, outputs, 3)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: (B, C, H, W), H and W divisible by 2^(levels - 1).
            label: (B,), any real numbers.
            classes: (B,) int64, or (B, classes) shares of them; None stands for no class.
            augment: (B, augment) of an augmentation; None stands for no augmentation.

        Returns:
            (B, outputs, H, W).

        Raises:
            InputError: other shapes; classes or augmentations, and the network has no weights for them.
        """
        check_inputs("SongUNet", x, label, channels=self.channels, levels=self.levels)
        if self.map_noise is not None:
            e = self.map_noise(label.double())
        else:
            e = sinusoids(label.double(), self.noise, steps=self.noise // 2 - 1, sine_first=True)
        e = e.to(x.dtype)
        shares = _shares("SongUNet", classes, self.classes, x)
        if shares is not None:
            e = e + self.map_label(shares * math.sqrt(shares.shape[1]))
        _check_augment("SongUNet", augment, self.augment)
        if augment is not None:
            e = e + self.map_augment(augment.to(x.dtype))
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        h, side = x, x
        skips: list[Tensor] = []
        for layer in self.enc.values():
            if isinstance(layer, _Conv) and skips:
                h = side = (skips.pop() + layer(side)) * math.sqrt(0.5)
            else:
                h = layer(h, e) if isinstance(layer, _Block) else layer(h)
            skips.append(h)
        *layers, norm, convolution = self.dec.items()
        h = _decoded(h, layers, skips, e)
        return convolution[1](F.silu(norm[1](h)))


class DhariwalUNet(nn.Module):
    """ADM (Dhariwal and Nichol 2021, arXiv:2105.05233) in Karras et al.'s version, with other names than theirs.

    Attention stands after every block of the levels named and after the first block of the lowest level, where a level
    has the features of a head at least: one with fewer has none.
    """

    def __init__(
        self,
        *,
        resolution: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        head_width: int = 64,
        classes: int | None = None,
        augment: int | None = None,
        channels: int = 3,
        outputs: int = 3,
        dropout: float = 0.0,
    ) -> None:
        """Build with torch's initial weights.

        Args:
            resolution: pixels along a side, which the weights' names contain.
            width: features that the multipliers multiply, a multiple of 4.
            multipliers: a factor of the width per level, the highest resolution first.
            blocks: residual blocks per level on the way down; one more on the way up.
            attention: levels with attention, 0 is the highest resolution.
            head_width: features per head.
            classes: number of classes of a class-conditional network.
            augment: numbers that describe an augmentation in training.
            channels: image channels.
            outputs: channels of the result.
            dropout: share of features left out in training, before the second convolution of a block.
        """
        super().__init__()
        widths = [width * m for m in multipliers]
        check_levels("DhariwalUNet", multipliers, attention)
        _check_widths("DhariwalUNet", resolution, widths)
        _check.integer("DhariwalUNet", "blocks", blocks, low=1)
        _check.integer("DhariwalUNet", "head_width", head_width, low=1)
        embed = EMBED * width
        self.noise, self.channels, self.levels = width, channels, len(multipliers)
        self.classes, self.augment = classes, augment
        if augment is not None:
            self.map_augment = nn.Linear(augment, width, bias=False)
        self.map_layer0 = nn.Linear(width, embed)
        self.map_layer1 = nn.Linear(embed, embed)
        if classes is not None:
            self.map_label = nn.Linear(classes, embed, bias=False)

        def block(before: int, after: int, *, attends: bool, up: bool = False, down: bool = False) -> _DhariwalBlock:
            heads = after // head_width if attends else 0
            return _DhariwalBlock(before, after, embed, heads=heads, filter=(1, 1), up=up, down=down, dropout=dropout)

        current = widths[0]
        self.enc = nn.ModuleDict({_at(resolution, "conv"): _Conv(channels, current, 3)})
        skips = [current]
        for level, features in enumerate(widths):
            here = resolution >> level
            if level > 0:
                self.enc[_at(here, "down")] = block(current, current, attends=False, down=True)
                skips.append(current)
            for k in range(blocks):
                self.enc[_at(here, f"block{k}")] = block(current, features, attends=level in attention)
                current = features
                skips.append(current)
        self.dec = nn.ModuleDict()
        for level, features in reversed(list(enumerate(widths))):
            here = resolution >> level
            if level == len(widths) - 1:
                self.dec[_at(here, "in0")] = block(current, current, attends=True)
                self.dec[_at(here, "in1")] = block(current, current, attends=False)
            else:
                self.dec[_at(here, "up")] = block(current, current, attends=False, up=True)
            for k in range(blocks + 1):
                before = current + skips.pop()
                self.dec[_at(here, f"block{k}")] = block(before, features, attends=level in attention)
                current = features
        self.out_norm = _norm(current, _DhariwalBlock.eps)
        self.out_conv = _Conv(current, outputs, 3)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: (B, C, H, W), H and W divisible by 2^(levels - 1).
            label: (B,), any real numbers.
            classes: (B,) int64, or (B, classes) shares of them; None stands for no class.
            augment: (B, augment) of an augmentation; None stands for no augmentation.

        Returns:
            (B, outputs, H, W).

        Raises:
            InputError: other shapes; classes or augmentations, and the network has no weights for them.
        """
        check_inputs("DhariwalUNet", x, label, channels=self.channels, levels=self.levels)
        e = sinusoids(label.double(), self.noise, steps=self.noise // 2, sine_first=False).to(x.dtype)
        _check_augment("DhariwalUNet", augment, self.augment)
        if augment is not None:
            e = e + self.map_augment(augment.to(x.dtype))
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        shares = _shares("DhariwalUNet", classes, self.classes, x)
        if shares is not None:
            e = e + self.map_label(shares)
        e = F.silu(e)
        h = x
        skips: list[Tensor] = []
        for layer in self.enc.values():
            h = layer(h, e) if isinstance(layer, _Block) else layer(h)
            skips.append(h)
        h = _decoded(h, self.dec.items(), skips, e)
        return self.out_conv(F.silu(self.out_norm(h)))


def song_settings(shapes: Shapes) -> dict[str, Any] | None:
    """Constructor arguments of the `SongUNet` that has these weights.

    Of the filter, shapes tell the length only; it has the published weights of that length. Dropout is 0.

    Args:
        shapes: shapes of a state dict without prefix.

    Returns:
        The arguments; None if the weights are of another family.
    """
    top = _top(shapes)
    if top is None or f"dec.{top}_aux_conv.weight" not in shapes:
        return None
    width = shapes[f"enc.{top}_conv.weight"][0]
    lengths = {shape[-1] for key, shape in shapes.items() if key.endswith(".resample_filter")}
    return {
        **_common_settings(shapes, top, width),
        "fourier": "map_noise.freqs" in shapes,
        "residual": any(key.endswith("_aux_residual.weight") for key in shapes),
        "filter": (1, 3, 3, 1) if lengths == {4} else (1, 1),
        "noise_multiplier": shapes["map_layer0.weight"][1] // width,
        "outputs": shapes[f"dec.{top}_aux_conv.weight"][0],
    }


def dhariwal_settings(shapes: Shapes, *, head_width: int = 64) -> dict[str, Any] | None:
    """Constructor arguments of the `DhariwalUNet` that has these weights.

    Args:
        shapes: shapes of a state dict without prefix.
        head_width: features per head, which shapes do not tell; 64 in all published networks. Dropout is 0.

    Returns:
        The arguments; None if the weights are of another family.
    """
    top = _top(shapes)
    if top is None or "out_conv.weight" not in shapes:
        return None
    return {
        **_common_settings(shapes, top, shapes["map_layer0.weight"][1]),
        "head_width": head_width,
        "outputs": shapes["out_conv.weight"][0],
    }


class _Conv(nn.Module):
    """A convolution that keeps the size, or first changes it by a filter; without weights where kernel is 0."""

    resample_filter: Tensor

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        *,
        filter: Sequence[int] = (1, 1),
        up: bool = False,
        down: bool = False,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.up, self.down, self.fused = kernel, up, down, fused
        if kernel:
            like = nn.Conv2d(before, after, kernel)
            self.weight, self.bias = like.weight, like.bias
        if up or down:
            row = torch.tensor(filter, dtype=torch.float32) / sum(filter)
            self.register_buffer("resample_filter", torch.outer(row, row)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel // 2
        if self.fused:
            # Filtered after the convolution, which is wider by as much as the filter needs.
            h = F.conv2d(x, self.weight, padding=pad + self._margin())
            h = self._filtered(h, padding=0)
            return h if self.bias is None else h + self.bias[:, None, None]
        if self.up:
            taps = 4 * self.resample_filter.expand(x.shape[1], -1, -1, -1)
            x = F.conv_transpose2d(x, taps, stride=2, padding=self._margin(), groups=x.shape[1])
        if self.down:
            x = self._filtered(x, padding=self._margin())
        return F.conv2d(x, self.weight, self.bias, padding=pad) if self.kernel else x

    def _margin(self) -> int:
        return (self.resample_filter.shape[-1] - 1) // 2

    def _filtered(self, x: Tensor, *, padding: int) -> Tensor:
        taps = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


class _Block(nn.Module):
    """A residual block and, where it has heads, attention with a residual path of its own."""

    eps: float
    rescale: float
    """Factor of every sum of residual paths."""
    adaptive: bool
    """Whether the label scales and shifts normalised features, or is added before."""
    projects: bool
    """Whether a shortcut that changes the resolution has weights."""

    def __init__(
        self,
        before: int,
        after: int,
        embed: int,
        *,
        heads: int,
        filter: Sequence[int],
        up: bool,
        down: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm0 = _norm(before, self.eps)
        self.conv0 = _Conv(before, after, 3, filter=filter, up=up, down=down)
        self.affine = nn.Linear(embed, 2 * after if self.adaptive else after)
        self.norm1 = _norm(after, self.eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = _Conv(after, after, 3)
        self.skip: _Conv | None = None
        if before != after or up or down:
            kernel = 1 if before != after or self.projects else 0
            self.skip = _Conv(before, after, kernel, filter=filter, up=up, down=down)
        if heads:
            self.norm2 = _norm(after, self.eps)
            self.qkv = _Conv(after, 3 * after, 1)
            self.proj = _Conv(after, after, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        shift = self.affine(e)[:, :, None, None]
        if self.adaptive:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + shift)
        h = self.conv1(self.dropout(F.silu(h)))
        h = (h + (x if self.skip is None else self.skip(x))) * self.rescale
        return (h + self._attended(h)) * self.rescale if self.heads else h

    def _attended(self, h: Tensor) -> Tensor:
        # Channels of qkv: head by head, then feature by feature, and of a feature q, k, v.
        q, k, v = self.qkv(self.norm2(h)).flatten(2).unflatten(1, (self.heads, -1, 3)).unbind(3)
        return self.proj(attend(q, k, v).reshape(h.shape))


class _SongBlock(_Block):
    eps = 1e-6
    rescale = math.sqrt(0.5)
    adaptive = False
    projects = True


class _DhariwalBlock(_Block):
    eps = 1e-5
    rescale = 1.0
    adaptive = True
    projects = False


class _Fourier(nn.Module):
    """Sines, then cosines of 2 pi f label. Before weights are loaded, frequencies are quantiles of a normal law."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        shares = (torch.arange(half, dtype=torch.float64) + 0.5) / half
        self.register_buffer("freqs", (FOURIER_SCALE * math.sqrt(2) * torch.erfinv(2 * shares - 1)).float())

    def forward(self, label: Tensor) -> Tensor:
        phase = 2 * math.pi * label[:, None] * self.freqs.to(label.dtype)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


def _norm(features: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, features // 4), features, eps=eps)


def _at(resolution: int, name: str) -> str:
    return f"{resolution}x{resolution}_{name}"


def _decoded(h: Tensor, layers: Iterable[tuple[str, nn.Module]], skips: list[Tensor], e: Tensor) -> Tensor:
    """The way up. Blocks that keep the resolution take what the way down left, last first."""
    for name, layer in layers:
        h = layer(torch.cat([h, skips.pop()], dim=1) if "_block" in name else h, e)
    return h


def _shares(where: str, classes: Tensor | None, n: int | None, x: Tensor) -> Tensor | None:
    """Shares of the classes, (B, n), in the dtype of x; zeros where no class is given; None without classes."""
    if n is None:
        if classes is not None:
            _check.fail(where, "no classes: the network is unconditional", "some")
        return None
    if classes is None:
        return x.new_zeros(len(x), n)
    return (classes if classes.ndim == 2 else F.one_hot(classes, n)).to(x.dtype)


def _check_augment(where: str, augment: Tensor | None, n: int | None) -> None:
    if augment is not None and (n is None or augment.shape[1:] != (n,)):
        wanted = f"augmentations of {n} numbers" if n else "no augmentations: the network has no weights for them"
        _check.fail(where, wanted, f"shape {tuple(augment.shape)}")


def _check_widths(where: str, resolution: int, widths: list[int]) -> None:
    wrong = [n for n in widths if n < 4 or n % min(32, n // 4)]
    if wrong:
        advice = "Choose width and multipliers so."
        _check.fail(where, "features that min(32, features // 4) groups divide", f"{wrong}", advice)
    side = 2 ** (len(widths) - 1)
    if resolution < side or resolution % side:
        _check.fail(where, f"a resolution divisible by {side}, for {len(widths)} levels", f"{resolution}")


def _top(shapes: Shapes) -> str | None:
    """The highest resolution as names have it, "32x32"; None if the weights are of another family."""
    found = [m[1] for key in shapes if (m := re.fullmatch(r"enc\.(\d+x\d+)_conv\.weight", key))]
    if len(found) != 1 or not {"map_layer0.weight", "map_layer1.weight"} <= shapes.keys():
        return None
    return found[0] if f"enc.{found[0]}_block0.conv0.weight" in shapes else None


def _common_settings(shapes: Shapes, top: str, width: int) -> dict[str, Any]:
    """What both networks have."""
    resolution = int(top.partition("x")[0])
    firsts: list[str] = []
    while (first := f"enc.{_at(resolution >> len(firsts), 'block0')}") + ".conv0.weight" in shapes:
        firsts.append(first)
    return {
        "resolution": resolution,
        "width": width,
        "multipliers": tuple(shapes[f"{first}.conv0.weight"][0] // width for first in firsts),
        "blocks": sum(re.fullmatch(rf"enc\.{top}_block\d+\.conv0\.weight", key) is not None for key in shapes),
        "attention": tuple(level for level, first in enumerate(firsts) if f"{first}.qkv.weight" in shapes),
        "classes": shapes["map_label.weight"][1] if "map_label.weight" in shapes else None,
        "augment": shapes["map_augment.weight"][1] if "map_augment.weight" in shapes else None,
        "channels": shapes[f"enc.{top}_conv.weight"][1],
    }
