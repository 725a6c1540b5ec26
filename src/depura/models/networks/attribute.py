"""Attribute network of CelebA faces: the discriminator of Karras et al. 2018 (arXiv:1710.10196) as a classifier.

Names of the weights are those of the attribute networks that DiffPure uses, which load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.models.networks.blocks import Shapes, counted, halved

GROUP = 4
"""Images whose spread makes one feature, where there are batch statistics (the paper's appendix A.1 and its code)."""


class AttributeNet(nn.Module):
    """One logit of images in [-1, 1]: two convolutions at each resolution down to 4x4, then two linear layers.

    Weights are scaled when they are used (the paper's section 4.1). For two classes put `TwoLogits` around it; for
    images in [0, 1] `Normalised(..., mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))` around that.
    """

    lod_in: Tensor

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 512, 512, 512),
        hidden: int = 512,
        fade: bool = False,
        batch_statistics: bool = False,
        channels: int = 3,
    ) -> None:
        """Build with random weights, of PyTorch's scale: meant to be loaded into, not trained from.

        Args:
            widths: features at each resolution, from that of the images, 4 * 2^(len(widths) - 1), down to 4x4.
            hidden: features between the two linear layers.
            fade: whether images enter at every resolution, weighted by the entry `lod_in` (the paper's figure 2): below
                0 the full resolution alone counts, from k on nothing above level k does. Published ones: no.
            batch_statistics: whether the standard deviation over groups of 4 images is a feature at 4x4 (the paper's
                section 3); then logits depend on the other images of a batch. Published ones: no.
            channels: image channels.
        """
        super().__init__()
        if not widths:
            _check.fail("AttributeNet", "widths of at least one resolution", "none")
        self.sizes = [4 * 2**k for k in reversed(range(len(widths)))]
        self.fade = fade
        self.batch_statistics = batch_statistics
        self.register_buffer("lod_in", torch.zeros((), dtype=torch.float64))
        for level, (size, width) in enumerate(zip(self.sizes, widths, strict=True)):
            if level == 0 or fade:
                self.add_module(f"fromrgb_lod{level}", _Entry(channels, width))
            if size > 4:
                self.add_module(f"{size}x{size}", _Down(width, widths[level + 1]))
        self.add_module("4x4", _Head(widths[-1], hidden, batch_statistics))

    def forward(self, x: Tensor) -> Tensor:
        """The logit (B, 1) of images (B, C, H, W).

        Args:
            x: in [-1, 1], of the network's resolution.

        Returns:
            (B, 1).

        Raises:
            InputError: another resolution, or, with batch statistics, a batch of more than 4 that 4 does not divide.
        """
        if tuple(x.shape[2:]) != (self.sizes[0], self.sizes[0]):
            advice = "Put ResizedInput around the network."
            _check.fail("AttributeNet", f"images of {self.sizes[0]}x{self.sizes[0]}", str(tuple(x.shape[2:])), advice)
        h = self.get_submodule("fromrgb_lod0")(x)
        for level, size in enumerate(self.sizes[:-1]):
            h = self.get_submodule(f"{size}x{size}")(h)
            if self.fade:
                x = halved(x)
                entered = self.get_submodule(f"fromrgb_lod{level + 1}")(x)
                weight = (self.lod_in - level).clamp(0, 1).to(h.dtype)
                h = h + (entered - h) * weight
        if self.batch_statistics:
            h = torch.cat([h, _spread(h)], dim=1)
        return self.get_submodule("4x4")(h)


def _spread(h: Tensor) -> Tensor:
    """One feature: the standard deviation within groups of images, averaged over features and pixels."""
    n = min(GROUP, len(h))
    if len(h) % n:
        _check.fail("AttributeNet", f"a batch that {n} divides (batch statistics)", f"{len(h)} images")
    groups = h.reshape(n, -1, *h.shape[1:])
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.repeat(n)[:, None, None, None].expand(-1, 1, *h.shape[2:])


class _Bias(nn.Module):
    """A gain, which is no weight, and a bias."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.b.reshape(-1, *[1] * (x.ndim - 2))


class _Conv(nn.Module):
    """A convolution with weights of variance 1, scaled by sqrt(2 / inputs), and a bias."""

    def __init__(self, before: int, after: int, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
        self.wscale = _Bias(after, math.sqrt(2 / (before * size**2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.wscale(self.conv(x))


class _Linear(nn.Module):
    """The same of a linear layer, scaled by gain / sqrt(inputs)."""

    def __init__(self, before: int, after: int, gain: float) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after, bias=False)
        self.wscale = _Bias(after, gain / math.sqrt(before))

    def forward(self, x: Tensor) -> Tensor:
        return self.wscale(self.linear(x))


class _Entry(nn.Module):
    """From image channels to features."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return _active(self.conv(x))


class _Down(nn.Module):
    """Two convolutions; the mean of 2x2 pixels is taken before the second activation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv0 = _Conv(before, before)
        self.conv1 = _Conv(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return _active(halved(self.conv1(_active(self.conv0(x)))))


class _Head(nn.Module):
    """A convolution at 4x4 and two linear layers."""

    def __init__(self, width: int, hidden: int, batch_statistics: bool) -> None:
        super().__init__()
        self.conv = _Conv(width + int(batch_statistics), width)
        self.dense0 = _Linear(16 * width, hidden, math.sqrt(2))
        self.dense1 = _Linear(hidden, 1, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = _active(self.conv(x)).flatten(1)
        return self.dense1(_active(self.dense0(h)))


def _active(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def settings_of(shapes: Shapes) -> dict[str, Any] | None:
    """Arguments of `AttributeNet`."""
    entry, last = shapes.get("fromrgb_lod0.conv.conv.weight"), shapes.get("4x4.conv.conv.weight")
    hidden = shapes.get("4x4.dense0.linear.weight")
    if entry is None or last is None or hidden is None:
        return None
    ends = [name.partition(".")[0] for name in shapes if name.endswith(".conv0.conv.weight")]
    sizes = sorted((int(end.partition("x")[0]) for end in ends), reverse=True)
    return {
        "widths": (*(shapes[f"{size}x{size}.conv0.conv.weight"][0] for size in sizes), last[0]),
        "hidden": hidden[0],
        "fade": counted(shapes, "fromrgb_lod") > 1,
        "batch_statistics": last[1] == last[0] + 1,
        "channels": entry[1],
    }
