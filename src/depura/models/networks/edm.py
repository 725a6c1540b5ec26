"""The two U-Nets of Karras et al. 2022 (arXiv:2206.00364), appendix F.7 and table 5.

Names of the weights are those of the modules in the published pickles (`map_layer0`, `enc.32x32_conv` ...
`dec.32x32_aux_conv` or `out_conv`), so that these load unchanged. Names contain resolutions, so networks have one, yet
images of any size that the levels halve evenly may be passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
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


class _UNet(nn.Module):
    """What both share: the way down and up, and how they are called."""

    eps: float
    rescale: float
    """Factor of every sum of residual paths."""
    adaptive: bool
    """Whether the label scales and shifts normalised features, or is added before."""

    def __init__(
        self,
        *,
        resolution: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        classes: int | None = None,
        augment: int | None = None,
        channels: int = 3,
        outputs: int = 3,
        dropout: float = 0.0,
    ) -> None:
        """Check and keep what both have.

        Args:
            resolution: pixels along a side, which the weights' names contain.
            width: features that the multipliers multiply, a multiple of 4.
            multipliers: a factor of the width per level, the highest resolution first.
            blocks: residual blocks per level on the way down; one more on the way up.
            attention: levels with attention, 0 is the highest resolution.
            classes: number of classes of a class-conditional network.
            augment: numbers that describe an augmentation in training.
            channels: image channels.
            outputs: channels of the result.
            dropout: share of features left out in training, before the second convolution of a block.

        Raises:
            InputError: levels, widths or a resolution that do not go together.
        """
        super().__init__()
        where = type(self).__name__
        check_levels(where, multipliers, attention, blocks=blocks)
        widths = [width * m for m in multipliers]
        wrong = [n for n in widths if n < 4 or n % min(32, n // 4)]
        if wrong:
            advice = "Choose width and multipliers so."
            _check.fail(where, "features that min(32, features // 4) groups divide", f"{wrong}", advice)
        side = 2 ** (len(widths) - 1)
        if resolution < side or resolution % side:
            _check.fail(where, f"a resolution divisible by {side}, for {len(widths)} levels", f"{resolution}")
        self.resolution, self.widths, self.blocks, self.attention = resolution, widths, blocks, attention
        self.classes, self.augment, self.channels, self.outputs = classes, augment, channels, outputs
        self.width, self.embed, self.dropout = width, EMBED * width, dropout

    def _build(
        self,
        block: Callable[..., _Block],
        first: int,
        *,
        heads: Callable[[int], int],
        ends_only: bool = False,
        residual_filter: Sequence[int] = (),
    ) -> None:
        """The blocks.

        Attention is after every block of its levels, on the way up perhaps (`ends_only`) after the last one only; its
        heads depend on the features. The image enters every level by a filtered convolution where there is a filter.
        """
        self.enc = nn.ModuleDict({self._at(0, "conv"): _Conv(self.channels, first, 3)})
        current, side, skips = first, self.channels, [first]
        for level, features in enumerate(self.widths):
            attends = heads(features) if level in self.attention else 0
            if level > 0:
                self.enc[self._at(level, "down")] = block(current, current, down=True)
                if residual_filter:
                    into = _Conv(side, current, 3, filter=residual_filter, down=True, fused=True)
                    self.enc[self._at(level, "aux_residual")] = into
                    side = current
                skips.append(current)
            for k in range(self.blocks):
                self.enc[self._at(level, f"block{k}")] = block(current, features, heads=attends)
                current = features
                skips.append(current)
        self.dec = nn.ModuleDict()
        for level, features in reversed(list(enumerate(self.widths))):
            attends = heads(features) if level in self.attention else 0
            if level == len(self.widths) - 1:
                self.dec[self._at(level, "in0")] = block(current, current, heads=heads(current))
                self.dec[self._at(level, "in1")] = block(current, current)
            else:
                self.dec[self._at(level, "up")] = block(current, current, up=True)
            for k in range(self.blocks + 1):
                here = 0 if ends_only and k < self.blocks else attends
                self.dec[self._at(level, f"block{k}")] = block(current + skips.pop(), features, heads=here)
                current = features

    def _at(self, level: int, name: str) -> str:
        return _at(self.resolution >> level, name)

    def _embedding(self, label: Tensor, shares: Tensor | None, augment: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What blocks see of the label, of shares of the classes and of an augmentation, (B, 4 width)."""
        raise NotImplementedError

    def _end(self) -> tuple[nn.Module, nn.Module]:
        """The last norm and convolution."""
        raise NotImplementedError

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
        where = type(self).__name__
        check_inputs(where, x, label, channels=self.channels, levels=len(self.widths))
        if classes is not None and self.classes is None:
            _check.fail(where, "no classes: the network is unconditional", "some")
        if augment is not None and (self.augment is None or augment.shape[1:] != (self.augment,)):
            n = self.augment
            wanted = f"augmentations of {n} numbers" if n else "no augmentations: the network has no weights for them"
            _check.fail(where, wanted, f"shape {tuple(augment.shape)}")
        shares = None
        if self.classes is not None:
            shares = x.new_zeros(len(x), self.classes) if classes is None else classes
            shares = (shares if shares.ndim == 2 else F.one_hot(shares, self.classes)).to(x.dtype)
        e = self._embedding(label, shares, None if augment is None else augment.to(x.dtype), x.dtype)
        h, side = x, x
        skips: list[Tensor] = []
        for layer in self.enc.values():
            if isinstance(layer, _Conv) and skips:
                h = side = (skips.pop() + layer(side)) * math.sqrt(0.5)
            else:
                h = layer(h, e) if isinstance(layer, _Block) else layer(h)
            skips.append(h)
        for name, layer in self.dec.items():  # blocks that keep the resolution take what the way down left, last first
            if isinstance(layer, _Block):
                h = layer(torch.cat([h, skips.pop()], dim=1) if "_block" in name else h, e)
        norm, convolution = self._end()
        return convolution(F.silu(norm(h)))


class SongUNet(_UNet):
    """DDPM++ and NCSN++ of Song et al. 2021 (arXiv:2011.13456, appendix H) in Karras et al.'s version.

    Sums of residual paths are divided by sqrt(2). Attention, with one head, stands after every block of the levels
    named on the way down, after the last one on the way up and after the first block of the lowest level.
    """

    eps = 1e-6
    rescale = math.sqrt(0.5)
    adaptive = False

    def __init__(
        self,
        *,
        fourier: bool = False,
        residual: bool = False,
        filter: Sequence[int] = (1, 1),
        noise_multiplier: int = 1,
        **common: Any,
    ) -> None:
        """Build with torch's initial weights.

        Args:
            fourier: the label's features have random frequencies (NCSN++), or geometric ones (DDPM++).
            residual: the image enters every level once more by a convolution and a filter (NCSN++), or it does not.
            filter: weights along one axis of the filter that changes resolutions: 1, 1 or 1, 3, 3, 1.
            noise_multiplier: features of the label, in widths.
            **common: resolution, width, multipliers, blocks, attention, classes, augment, channels, outputs, dropout.
        """
        super().__init__(**common)
        self.noise = noise = self.width * noise_multiplier
        self.map_noise = _Fourier(noise) if fourier else None
        if self.classes is not None:
            self.map_label = nn.Linear(self.classes, noise)
        if self.augment is not None:
            self.map_augment = nn.Linear(self.augment, noise, bias=False)
        self.map_layer0 = nn.Linear(noise, self.embed)
        self.map_layer1 = nn.Linear(self.embed, self.embed)
        block = partial(_Block, style=self, filter=filter)
        self._build(block, self.width, heads=lambda _: 1, ends_only=True, residual_filter=filter if residual else ())
        self.dec[self._at(0, "aux_norm")] = _norm(self.widths[0], self.eps)
        self.dec[self._at(0, "aux_conv")] = _Conv(self.widths[0], self.outputs, 3)

    def _embedding(self, label: Tensor, shares: Tensor | None, augment: Tensor | None, dtype: torch.dtype) -> Tensor:
        if self.map_noise is not None:
            e = self.map_noise(label.double())
        else:
            e = sinusoids(label.double(), self.noise, steps=self.noise // 2 - 1, sine_first=True)
        e = e.to(dtype)
        if shares is not None:
            e = e + self.map_label(shares * math.sqrt(shares.shape[1]))
        if augment is not None:
            e = e + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def _end(self) -> tuple[nn.Module, nn.Module]:
        return self.dec[self._at(0, "aux_norm")], self.dec[self._at(0, "aux_conv")]


class DhariwalUNet(_UNet):
    """ADM (Dhariwal and Nichol 2021, arXiv:2105.05233) in Karras et al.'s version, with other names than theirs.

    Attention stands after every block of the levels named and after the first block of the lowest level, where a level
    has the features of a head at least: one with fewer has none.
    """

    eps = 1e-5
    rescale = 1.0
    adaptive = True

    def __init__(self, *, head_width: int = 64, **common: Any) -> None:
        """Build with torch's initial weights.

        Args:
            head_width: features per head.
            **common: resolution, width, multipliers, blocks, attention, classes, augment, channels, outputs, dropout.
        """
        super().__init__(**common)
        _check.integer("DhariwalUNet", "head_width", head_width, low=1)
        if self.augment is not None:
            self.map_augment = nn.Linear(self.augment, self.width, bias=False)
        self.map_layer0 = nn.Linear(self.width, self.embed)
        self.map_layer1 = nn.Linear(self.embed, self.embed)
        if self.classes is not None:
            self.map_label = nn.Linear(self.classes, self.embed, bias=False)
        block = partial(_Block, style=self, filter=(1, 1))
        self._build(block, self.widths[0], heads=lambda features: features // head_width)
        self.out_norm = _norm(self.widths[0], self.eps)
        self.out_conv = _Conv(self.widths[0], self.outputs, 3)

    def _embedding(self, label: Tensor, shares: Tensor | None, augment: Tensor | None, dtype: torch.dtype) -> Tensor:
        e = sinusoids(label.double(), self.width, steps=self.width // 2, sine_first=False).to(dtype)
        if augment is not None:
            e = e + self.map_augment(augment)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        return F.silu(e if shares is None else e + self.map_label(shares))

    def _end(self) -> tuple[nn.Module, nn.Module]:
        return self.out_norm, self.out_conv


def song_settings(shapes: Shapes) -> dict[str, Any] | None:
    """Arguments of `SongUNet`.

    Of the filter, shapes tell the length only; it has the published weights of that length. Dropout is 0.
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
    """Arguments of `DhariwalUNet`; heads have 64 features in all published networks. Dropout is 0."""
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

    def __init__(
        self,
        before: int,
        after: int,
        *,
        style: _UNet,
        filter: Sequence[int],
        heads: int = 0,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.rescale, self.adaptive = heads, style.rescale, style.adaptive
        self.norm0 = _norm(before, style.eps)
        self.conv0 = _Conv(before, after, 3, filter=filter, up=up, down=down)
        self.affine = nn.Linear(style.embed, 2 * after if style.adaptive else after)
        self.norm1 = _norm(after, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = _Conv(after, after, 3)
        self.skip: _Conv | None = None
        if before != after or up or down:  # in ADM a shortcut that only changes the resolution has no weights
            kernel = 1 if before != after or not style.adaptive else 0
            self.skip = _Conv(before, after, kernel, filter=filter, up=up, down=down)
        if heads:
            self.norm2 = _norm(after, style.eps)
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
