"""Mathematics that the diffusion networks share; each family keeps its own names of weights around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a state dict's entries by name, without a prefix: what a network's settings are read off.

Each family has a function that gives the constructor's arguments, or None where the names are of another family. Its
keyword arguments are what shapes do not tell; they default to what published networks have.
"""


def counted(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules have names that begin so: `counted(shapes, "block1.layer.")`."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})


def sinusoids(label: Tensor, width: int, *, steps: int, sine_first: bool) -> Tensor:
    """Sinusoidal features (B, width) of a noise label (B,): Vaswani et al. 2017, section 3.5.

    Frequencies are 10000^(-k / steps) for k = 0 .. width/2 - 1: steps is width/2 - 1 in DDPM and score_sde (the last
    frequency is 1/10000), width/2 in ADM. The first half are the sines, or the cosines; where the width is odd, the
    last feature is 0. Phases are computed in float64: at labels near 1000 float32 frequencies shift a network's output
    by up to 1e-5.
    """
    half = width // 2
    k = torch.arange(half, dtype=torch.float64, device=label.device)
    phase = label.double()[:, None] * torch.exp(-math.log(10000.0) / steps * k)
    halves = (phase.sin(), phase.cos()) if sine_first else (phase.cos(), phase.sin())
    return F.pad(torch.cat(halves, dim=1), (0, width % 2)).to(label.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of all positions to all: softmax(q^T k / sqrt(C)) v, all of shape (B, heads, C, T).

    It is differentiable any number of times. The softmax is taken in float32 or wider.
    """
    scale = query.shape[2] ** -0.25
    logits = torch.einsum("bhct,bhcs->bhts", query * scale, key * scale)
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(dim=-1, dtype=wide).to(value.dtype)
    return torch.einsum("bhts,bhcs->bhct", weights, value)


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times: nearest-neighbour upsampling by 2, (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halved(x: Tensor) -> Tensor:
    """Means of 2x2 pixels, (B, C, 2H, 2W) -> (B, C, H, W)."""
    return F.avg_pool2d(x, 2)


def check_inputs(where: str, x: Tensor, label: Tensor, *, channels: int, levels: int) -> None:
    """Check that x is (B, channels, H, W), H and W divisible by 2^(levels - 1), and the label (B,)."""
    side = 2 ** (levels - 1)
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % side or x.shape[3] % side:
        _check.fail(
            where,
            f"images (B, {channels}, H, W) with H and W divisible by {side}",
            f"{tuple(x.shape)}",
            "Convert or resize them first.",
        )
    if label.shape != x.shape[:1]:
        _check.fail(where, f"one label per image, ({len(x)},)", f"{tuple(label.shape)}", "Use label.expand(len(x)).")


def check_levels(
    where: str,
    multipliers: Sequence[int],
    attention: Sequence[int],
    *,
    width: int | None = None,
    groups: int = 1,
    blocks: int = 1,
) -> None:
    """Check the levels of a U-Net: at least one, each with a multiplier of at least 1, and attention at levels only.

    Where `width` is given it is to be divisible by `groups`; `blocks` are at least 1.
    """
    if width is not None and _check.integer(where, "width", width, low=groups) % groups:
        norm = "channels / 4" if groups == 4 else f"{groups}"
        _check.fail(where, f"a width divisible by {groups}", f"{width}", f"Group norms take {norm} groups.")
    _check.integer(where, "blocks", blocks, low=1)
    if not multipliers or any(m < 1 for m in multipliers):
        _check.fail(where, "multipliers of at least 1, one per level", f"{tuple(multipliers)}", "Give one per level.")
    if not set(attention) <= set(range(len(multipliers))):
        _check.fail(
            where,
            f"attention at levels 0 .. {len(multipliers) - 1}",
            f"{tuple(attention)}",
            "Levels are counted from 0, the highest resolution; image sizes are not levels.",
        )
