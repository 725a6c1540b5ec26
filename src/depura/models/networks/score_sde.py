"""Networks of score_sde (Song et al. 2021, arXiv:2011.13456): NCSN++ and DDPM++ in one class, and its DDPM.

Names and order of the weights are those of the published checkpoints: one flat list `all_modules`, in which entries are
counted in the order of execution, whether they have weights or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.models.networks.blocks import Shapes, attend, check_inputs, check_levels, doubled, halved, sinusoids

Resample = Callable[[Tensor], Tensor]


class NcsnPP(nn.Module):
    """NCSN++ and DDPM++: Song et al. 2021, appendix H, with BigGAN-type blocks as in all published models.

    A U-Net: between two levels a residual block halves or doubles the resolution. Each level has attention after every
    block on the way down and once on the way up, or none. What a block or attention adds to its input, and the residual
    input branch, make sums that are divided by sqrt(2); the copies of the image and the images of `skip_output` are
    added as they are.

    DDPM++ (`vp/cifar10_ddpmpp_*`) is the default; its label is 999 t and its output the predicted noise. With `fourier`
    (`ve/*_ncsnpp_continuous`) the label is the noise level sigma itself and the output, divided by sigma, the score.
    The discrete VE networks (`ve/cifar10_ncsnpp`), which look sigma up by a step's number, are not covered; their
    shapes are those of networks that are, so a file of one would load and give outputs that are not divided by sigma.
    """

    sigmas: Tensor

    def __init__(
        self,
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (1,),
        channels: int = 3,
        fourier: bool = False,
        fir: bool = False,
        residual_input: bool = False,
        skip_input: bool = False,
        skip_output: bool = False,
        unit_range: bool = False,
        dropout: float = 0.1,
        scales: int = 1000,
        plain: bool = False,
        convolve: bool = True,
    ) -> None:
        """Build with random weights.

        Args:
            width: base width, divisible by 4.
            multipliers: width of each level over the base width, from the highest resolution.
            blocks: residual blocks per level on the way down; one more on the way up.
            attention: levels with attention, 0 is the highest resolution.
            channels: image channels, also of the output.
            fourier: whether the label is sigma: Fourier features of ln(sigma), and an output divided by sigma.
            fir: whether resampling filters with (1, 3, 3, 1) / 8 per axis; else nearest neighbours and 2x2 means.
            residual_input: whether a branch of strided convolutions from the image is averaged in on the way down.
            skip_input: whether smaller copies of the image are added in on the way down.
            skip_output: whether the output is the sum of one image per level, the smaller ones upsampled.
            unit_range: whether images come in [0, 1] (the network maps them to [-1, 1]), else in [-1, 1].
            dropout: within blocks, in training mode.
            scales: length of the published table of noise levels, which nothing here uses.
            plain: the DDPM's blocks: 32 groups, sums that are not divided, and no residual blocks between levels.
            convolve: whether a plain network's changes of resolution are learned, else nearest neighbours and means.

        Raises:
            InputError: a width not divisible by 4 (plain: 32), unusable levels, or pyramids that do not go together.
        """
        super().__init__()
        where = type(self).__name__
        check_levels(where, multipliers, attention, width=width, groups=32 if plain else 4, blocks=blocks)
        if residual_input and (skip_input or not fir):
            got = f"skip_input={skip_input}, fir={fir}"
            _check.fail(where, "residual_input with fir and without skip_input", got, "Take one input pyramid.")
        self.width, self.channels, self.blocks, self.levels = width, channels, blocks, len(multipliers)
        self.attention = frozenset(attention)
        self.unit_range, self.fourier = unit_range, fourier
        self.residual_input, self.skip_input, self.skip_output = residual_input, skip_input, skip_output
        self.up, self.down = (_filtered_up, _filtered_down) if fir else (doubled, halved)
        block = partial(_Block, embedding=4 * width, dropout=dropout, plain=plain)

        def change(n: int, *, up: bool) -> nn.Module:
            if not plain:
                return block(n, n, resample=self.up if up else self.down)
            if convolve:
                return _ConvolvedUp(n) if up else _ConvolvedDown(n)
            return nn.Upsample(scale_factor=2.0, mode="nearest") if up else nn.AvgPool2d(2)

        parts: list[nn.Module] = [_Fourier(width)] if fourier else []
        parts += [nn.Linear(2 * width if fourier else width, 4 * width), nn.Linear(4 * width, 4 * width)]
        parts.append(nn.Conv2d(channels, width, 3, padding=1))
        now, skips, branch = width, [width], channels
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                parts.append(block(now, multiplier * width))
                now = multiplier * width
                if level in self.attention:
                    parts.append(_Attention(now, plain=plain))
                skips.append(now)
            if level < self.levels - 1:
                parts.append(change(now, up=False))
                skips.append(now)
                if residual_input:
                    parts.append(_Strided(branch, now))
                    branch = now
                if skip_input:
                    parts.append(_Copy(channels, now))
        parts += [block(now, now), _Attention(now, plain=plain), block(now, now)]
        for level in reversed(range(self.levels)):
            for _ in range(blocks + 1):
                parts.append(block(now + skips.pop(), multipliers[level] * width))
                now = multipliers[level] * width
            if level in self.attention:
                parts.append(_Attention(now, plain=plain))
            if skip_output or level == 0:
                parts += [_norm(now, plain), nn.Conv2d(now, channels, 3, padding=1)]
            if level > 0:
                parts.append(change(now, up=True))
        self.all_modules = nn.ModuleList(parts)
        self.register_buffer("sigmas", _noise_levels(scales))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: noisy images (B, C, H, W), H and W divisible by 2 once per change of level.
            label: (B,); 999 t, or with Fourier features sigma > 0 in the range of the images.

        Returns:
            (B, C, H, W): predicted noise, or with Fourier features the score.

        Raises:
            InputError: shapes that do not fit.
        """
        check_inputs(type(self).__name__, x, label, channels=self.channels, levels=self.levels)
        parts = iter(self.all_modules)
        if self.fourier:
            features = next(parts)(label.double())
        else:
            features = sinusoids(label.double(), self.width, steps=self.width // 2 - 1, sine_first=True)
        first, second = next(parts), next(parts)
        embedded = second(F.silu(first(features.to(x.dtype))))

        def run(h: Tensor) -> Tensor:
            part = next(parts)
            return part(h, embedded) if isinstance(part, _Block) else part(h)

        branch = 2 * x - 1 if self.unit_range else x
        h = run(branch)
        skips = [h]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = run(h)
                if level in self.attention:
                    h = run(h)
                skips.append(h)
            if level < self.levels - 1:
                h = run(h)
                if self.residual_input:
                    branch = h = (run(branch) + h) / math.sqrt(2)
                if self.skip_input:
                    branch = self.down(branch)
                    h = run(branch) + h
                skips.append(h)

        h = run(run(run(h)))

        y = None
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = run(torch.cat([h, skips.pop()], dim=1))
            if level in self.attention:
                h = run(h)
            if self.skip_output or level == 0:
                image = run(F.silu(run(h)))
                y = image if y is None else self.up(y) + image
            if level > 0:
                h = run(h)
        assert y is not None
        return y / label.to(y.dtype)[:, None, None, None] if self.fourier else y


class ScoreSdeDdpm(NcsnPP):
    """The U-Net of Ho et al. 2020 (arXiv:2006.11239) as score_sde has it (`vp/ddpm/*`): `NcsnPP` of plain blocks.

    Unlike the original it has attention only once per level on the way up. The label is 999 t, or a step's number, and
    the output the predicted noise.
    """

    def __init__(self, *, blocks: int = 2, convolve: bool = True, **settings: Any) -> None:
        """Build with random weights; arguments as of `NcsnPP`, without pyramids and filters.

        Args:
            blocks: residual blocks per level on the way down; one more on the way up.
            convolve: whether changes of resolution are learned, else nearest neighbours and 2x2 means.
            **settings: width, multipliers, attention, channels, unit_range, dropout and scales.
        """
        super().__init__(blocks=blocks, plain=True, convolve=convolve, **settings)


def ncsnpp_settings(
    shapes: Shapes, *, fir: bool | None = None, unit_range: bool | None = None, dropout: float = 0.1
) -> dict[str, Any] | None:
    """Arguments of `NcsnPP`, all but the three that are keywords here.

    By default these are as published: networks with Fourier features or a pyramid filter, and those with Fourier
    features take images in [0, 1].
    """
    blocks = [n for n in _indices(shapes, "Dense_0.weight") if f"all_modules.{n}.Conv_2.weight" in shapes]
    read = _read(shapes, first=4 if "all_modules.0.W" in shapes else 3)
    if not blocks or read is None:
        return None
    fourier = "all_modules.0.W" in shapes
    residual_input = bool(_indices(shapes, "Conv2d_0.weight"))
    plain = set(_indices(shapes, "Conv_0.weight")) - set(_indices(shapes, "Dense_0.weight"))
    outputs = [n for n in _indices(shapes, "weight") if len(shapes[f"all_modules.{n}.weight"]) == 4]
    return {
        **read,
        "fourier": fourier,
        "fir": (fourier or residual_input or bool(plain)) if fir is None else fir,
        "residual_input": residual_input,
        "skip_input": bool(plain),
        "skip_output": len(outputs) > 2,
        "unit_range": fourier if unit_range is None else unit_range,
        "dropout": dropout,
    }


def ddpm_settings(shapes: Shapes, *, unit_range: bool = False, dropout: float = 0.1) -> dict[str, Any] | None:
    """Arguments of `ScoreSdeDdpm`, all but the two that are keywords here."""
    blocks = [n for n in _indices(shapes, "Dense_0.weight") if f"all_modules.{n}.NIN_0.W" in shapes]
    read = _read(shapes, first=3)
    if not blocks or read is None:
        return None
    convolved = set(_indices(shapes, "Conv_0.weight")) - set(_indices(shapes, "Dense_0.weight"))
    convolve = bool(convolved) or len(read["multipliers"]) == 1
    return {**read, "convolve": convolve, "unit_range": unit_range, "dropout": dropout}


def _indices(shapes: Shapes, name: str) -> list[int]:
    """Numbers of the entries that have a weight of this name, ascending."""
    split = [key.split(".", 2) for key in shapes]
    return sorted(int(s[1]) for s in split if s[0] == "all_modules" and s[1:2] and s[1].isdigit() and s[2:] == [name])


def _read(shapes: Shapes, first: int) -> dict[str, Any] | None:
    """What both classes have in common; `first` is the number of the first residual block."""
    stem = shapes.get(f"all_modules.{first - 1}.weight", ())
    blocks_down = _way_down(shapes, first, *stem[:1]) if len(stem) == 4 else []
    widths, counts, attention = [0], [0], set[int]()
    for kind, gives in blocks_down:
        if kind == "block":
            widths[-1] = gives
            counts[-1] += 1
        elif kind == "attention":
            attention.add(len(counts) - 1)
        else:
            widths.append(gives)
            counts.append(0)
    if not counts[0] or not stem[0]:
        return None
    return {
        "width": stem[0],
        "multipliers": tuple(w // stem[0] for w in widths),
        "blocks": counts[0],
        "attention": tuple(sorted(attention)),
        "channels": stem[1],
        "scales": shapes.get("sigmas", (1000,))[0],
    }


def _way_down(shapes: Shapes, first: int, now: int) -> list[tuple[str, int]]:
    """Kind (block, attention or change of level) and width of every entry on the way down, without the pyramids.

    The first block on the way up is the first one that takes more than its predecessor gave; the three entries before
    it are the middle.
    """
    found: list[tuple[str, int]] = []
    for n in range(first, max(_indices(shapes, "Dense_0.weight"), default=-1) + 1):
        entry = f"all_modules.{n}."
        kernel = shapes.get(entry + "Conv_0.weight", ())
        if entry + "NIN_3.W" in shapes:
            found.append(("attention", now))
        elif entry + "Dense_0.weight" in shapes and len(kernel) == 4:
            if kernel[1] != now:
                return found[:-3]
            resampled = kernel[0] == now and entry + "Conv_2.weight" in shapes
            now = kernel[0]
            found.append(("change" if resampled else "block", now))
        elif entry + "Conv2d_0.weight" not in shapes and kernel[2:] != (1, 1):
            found.append(("change", now))
    return []


class _Block(nn.Module):
    """Norm, swish, resampling, convolution, embedding; norm, swish, dropout, convolution; and the input, over sqrt(2).

    The input goes through a 1x1 convolution where its width changes or it is resampled. The plain block of the DDPM
    has 32 groups and does not divide the sum.
    """

    def __init__(
        self,
        before: int,
        after: int,
        *,
        embedding: int,
        dropout: float,
        resample: Resample | None = None,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.plain = resample, plain
        self.GroupNorm_0 = _norm(before, plain)
        self.Conv_0 = nn.Conv2d(before, after, 3, padding=1)
        self.Dense_0 = nn.Linear(embedding, after)
        self.GroupNorm_1 = _norm(after, plain)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = nn.Conv2d(after, after, 3, padding=1)
        changes = before != after or resample is not None
        self.NIN_0 = _Nin(before, after) if changes and plain else None
        self.Conv_2 = nn.Conv2d(before, after, 1) if changes and not plain else None

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h) + self.Dense_0(F.silu(embedded))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        shortcut = self.NIN_0 if self.plain else self.Conv_2
        total = (x if shortcut is None else shortcut(x)) + h
        return total if self.plain else total / math.sqrt(2)


class _Attention(nn.Module):
    """Attention of all positions to all with one head, and the input; the sum is divided by sqrt(2) unless plain."""

    def __init__(self, channels: int, *, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.GroupNorm_0 = _norm(channels, plain)
        self.NIN_0 = _Nin(channels, channels)
        self.NIN_1 = _Nin(channels, channels)
        self.NIN_2 = _Nin(channels, channels)
        self.NIN_3 = _Nin(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        query, key, value = (part(h).flatten(2)[:, None] for part in (self.NIN_0, self.NIN_1, self.NIN_2))
        total = x + self.NIN_3(attend(query, key, value).reshape(x.shape))
        return total if self.plain else total * math.sqrt(0.5)


class _Nin(nn.Module):
    """A 1x1 convolution whose weight is stored as a matrix (in, out)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(before, after))
        self.b = nn.Parameter(torch.zeros(after))
        nn.init.xavier_uniform_(self.W)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class _Fourier(nn.Module):
    """Sines and cosines of 2 pi W ln(sigma), W being fixed: Tancik et al. 2020, with frequencies of scale 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(width), requires_grad=False)
        nn.init.trunc_normal_(self.W, std=16.0, a=-64.0, b=64.0)

    def forward(self, sigma: Tensor) -> Tensor:
        phase = 2 * math.pi * sigma.log()[:, None] * self.W.double()
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class _Strided(nn.Module):
    """Filtered by (1, 3, 3, 1) per axis, then a 3x3 convolution of every second pixel: one level of the input branch.

    The filter's border of two zeros makes up for the convolution's missing one.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(before, after, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(_filtered(x, stride=1, padding=2))


class _Copy(nn.Module):
    """A 1x1 convolution from a small copy of the image to a level's width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.Conv_0(image)


class _ConvolvedDown(nn.Module):
    """A strided 3x3 convolution with zeros at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(F.pad(x, (0, 1, 0, 1)))


class _ConvolvedUp(nn.Module):
    """Nearest neighbours and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(doubled(x))


def _norm(channels: int, plain: bool) -> nn.GroupNorm:
    return nn.GroupNorm(32 if plain else min(channels // 4, 32), channels, eps=1e-6)


def _noise_levels(n: int) -> Tensor:
    """The published table: n noise levels from 50 down to 0.01, geometrically, in float64."""
    # In Python: the first computation of a process on the meta device takes seconds.
    return torch.tensor([50 * 5000 ** (-k / max(n - 1, 1)) for k in range(n)], dtype=torch.float64)


def _filtered(x: Tensor, *, stride: int, padding: int) -> Tensor:
    """Each channel filtered by (1, 3, 3, 1) / 8 along both axes, with zeros outside."""
    flat = F.conv2d(x.flatten(0, 1)[:, None], _kernel(x), stride=stride, padding=padding)
    return flat.reshape(*x.shape[:2], *flat.shape[2:])


def _filtered_down(x: Tensor) -> Tensor:
    """Filtered, every second pixel: (B, C, 2H, 2W) -> (B, C, H, W)."""
    return _filtered(x, stride=2, padding=1)


def _filtered_up(x: Tensor) -> Tensor:
    """Zeros put between pixels, filtered, times 4: (B, C, H, W) -> (B, C, 2H, 2W)."""
    flat = F.conv_transpose2d(x.flatten(0, 1)[:, None], 4 * _kernel(x), stride=2, padding=1)
    return flat.reshape(*x.shape[:2], *flat.shape[2:])


def _kernel(x: Tensor) -> Tensor:
    one = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return (one[:, None] * one)[None, None]
