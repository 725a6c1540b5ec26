"""U-Nets of guided-diffusion (ADM) and improved-diffusion.

Dhariwal and Nichol 2021 (arXiv:2105.05233), section 3 and appendix I; Nichol and Dhariwal 2021 (arXiv:2102.09672). The
two agree wherever the first multiplier is 1. Names of the weights are those of the published files (`time_embed.0` ...
`out.2`), so that these load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, cat, nn

from depura import _check
from depura.models.networks.blocks import Shapes, attend, check_inputs, doubled, halved, sinusoids

GROUPS = 32


class AdmUNet(nn.Module):
    """U-Net that predicts noise, and a variance where it has twice as many outputs as channels.

    Attention stands after every residual block of the levels named, on the way down and up, and in the middle. Features
    of the label are cosines, then sines of 10000^(-k / (width/2)) label.
    """

    def __init__(
        self,
        *,
        width: int,
        multipliers: Sequence[float],
        blocks: int,
        attention: Sequence[int],
        heads: int = 4,
        head_width: int | None = None,
        classes: int | None = None,
        scale_shift: bool = True,
        residual_resampling: bool = False,
        channels: int = 3,
        outputs: int = 6,
        dropout: float = 0.0,
    ) -> None:
        """Build with torch's initial weights.

        Args:
            width: features that the multipliers multiply.
            multipliers: a factor of the width per level, the highest resolution first; every product is a multiple of
                32.
            blocks: residual blocks per level on the way down; one more on the way up.
            attention: levels with attention, 0 is the highest resolution.
            heads: heads of attention, if `head_width` is not given.
            head_width: features per head; their number then grows with the level's features.
            classes: number of classes of a class-conditional network.
            scale_shift: the label scales and shifts normalised features (ADM's "adaptive group normalisation"), or it
                is added before they are normalised.
            residual_resampling: resolutions change inside residual blocks, without weights (`resblock_updown`), or by
                convolutions.
            channels: image channels.
            outputs: channels of the result; 2 * channels with learned variances.
            dropout: share of features left out in training, before the second convolution of a block.

        Raises:
            InputError: no levels, or features that 32 groups or the heads do not divide.
        """
        super().__init__()
        _check.integer("AdmUNet", "blocks", blocks, low=1)
        widths = [int(width * m) for m in multipliers]
        _check_widths(widths, attention, heads, head_width)
        embed = 4 * width

        def residual(before: int, after: int, resample: str = "") -> _Residual:
            return _Residual(before, after, embed, scale_shift=scale_shift, resample=resample, dropout=dropout)

        def attends(features: int) -> _Attention:
            return _Attention(features, heads if head_width is None else features // head_width)

        self.width, self.channels, self.levels = width, channels, len(widths)
        self.time_embed = nn.Sequential(nn.Linear(width, embed), nn.SiLU(), nn.Linear(embed, embed))
        if classes is not None:
            self.label_emb = nn.Embedding(classes, embed)
        self.classes = classes
        self.conditional = classes is not None
        current = widths[0]
        self.input_blocks = nn.ModuleList([_Step(nn.Conv2d(channels, current, 3, padding=1))])
        skips = [current]
        for level, features in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(
                    _Step(residual(current, features), *([attends(features)] if level in attention else []))
                )
                current = features
                skips.append(current)
            if level < len(widths) - 1:
                down = residual(current, current, "down") if residual_resampling else _Down(current)
                self.input_blocks.append(_Step(down))
                skips.append(current)
        self.middle_block = _Step(residual(current, current), attends(current), residual(current, current))
        self.output_blocks = nn.ModuleList()
        for level, features in reversed(list(enumerate(widths))):
            for k in range(blocks + 1):
                step: list[nn.Module] = [residual(current + skips.pop(), features)]
                current = features
                if level in attention:
                    step.append(attends(current))
                if level > 0 and k == blocks:
                    step.append(residual(current, current, "up") if residual_resampling else _Up(current))
                self.output_blocks.append(_Step(*step))
        self.out = nn.Sequential(_norm(current), nn.SiLU(), nn.Conv2d(current, outputs, 3, padding=1))

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: (B, C, H, W) of unit variance, H and W divisible by 2^(levels - 1).
            label: (B,), steps of a thousand: any real numbers.
            classes: (B,) int64, for a class-conditional network.

        Returns:
            (B, outputs, H, W): the noise in the first C channels.

        Raises:
            InputError: other shapes; classes are lacking, or given to an unconditional network.
        """
        check_inputs("AdmUNet", x, label, channels=self.channels, levels=self.levels)
        if self.conditional != (classes is not None):
            wanted = "classes: the network is conditional" if self.conditional else "no classes: it is unconditional"
            _check.fail("AdmUNet", wanted, "none" if classes is None else "some", "Class indices are (B,) int64.")
        features = sinusoids(label.double(), self.width, steps=self.width // 2, sine_first=False)
        e = self.time_embed(features.to(x.dtype))
        if classes is not None:
            e = e + self.label_emb(classes)
        h = x
        skips: list[Tensor] = []
        for step in self.input_blocks:
            h = step(h, e)
            skips.append(h)
        h = self.middle_block(h, e)
        for step in self.output_blocks:
            h = step(cat([h, skips.pop()], dim=1), e)
        return self.out(h)


def settings_of(shapes: Shapes, *, heads: int = 4, head_width: int | None = None) -> dict[str, Any] | None:
    """Arguments of `AdmUNet`. Shapes do not tell the heads.

    Where resolutions change inside residual blocks, as in the networks published with ADM, heads of 64 features are
    taken; where by convolutions, as in those of improved-diffusion, 4 heads.
    """
    if not {"time_embed.2.weight", "input_blocks.0.0.weight", "input_blocks.1.0.emb_layers.1.weight"} <= shapes.keys():
        return None
    if not {"middle_block.1.qkv.weight", "out.2.weight"} <= shapes.keys():
        return None
    total = len({key.split(".")[1] for key in shapes if key.startswith("output_blocks.")})
    above = {key.split(".", 3)[3] for key in shapes if _is_above(key)}
    levels = 1 + sum(key.endswith((".conv.weight", ".in_layers.0.weight")) for key in shapes if _is_above(key))
    if total == 0 or total % levels:
        return None
    per_level = total // levels
    firsts = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    width = shapes["time_embed.0.weight"][1]
    features = [shapes.get(f"{first}.0.in_layers.2.weight", (0,))[0] for first in firsts]
    residual_resampling = "in_layers.0.weight" in above
    if head_width is None and residual_resampling:
        head_width = 64
    return {
        "width": width,
        "multipliers": tuple(n // width if n % width == 0 else n / width for n in features),
        "blocks": per_level - 1,
        "attention": tuple(level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes),
        "heads": heads,
        "head_width": head_width,
        "classes": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        "scale_shift": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * features[0],
        "residual_resampling": residual_resampling,
        "channels": shapes["input_blocks.0.0.weight"][1],
        "outputs": shapes["out.2.weight"][0],
    }


class _Step(nn.Sequential):
    """Layers in a row, the residual ones of which see the label."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            x = layer(x, e) if isinstance(layer, _Residual) else layer(x)
        return x


class _Residual(nn.Module):
    """GroupNorm - SiLU - [resample] - conv - label - GroupNorm - SiLU - conv, plus the input, resampled likewise."""

    def __init__(
        self, before: int, after: int, embed: int, *, scale_shift: bool, resample: str, dropout: float
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = {"up": doubled, "down": halved}.get(resample)
        self.in_layers = nn.Sequential(_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, 2 * after if scale_shift else after))
        self.out_layers = nn.Sequential(
            _norm(after), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(after, after, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = convolution(h)
        shift = self.emb_layers(e)[:, :, None, None]
        norm, activation, dropout, convolution = self.out_layers
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        return self.skip_connection(x) + convolution(dropout(activation(h)))


class _Attention(nn.Module):
    """Attention among all pixels, plus the input. Channels of `qkv` are head by head; in a head q, then k, then v."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(features)
        self.qkv = nn.Conv1d(features, 3 * features, 1)
        self.proj_out = nn.Conv1d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1)).unbind(2)
        return (flat + self.proj_out(attend(q, k, v).flatten(1, 2))).view_as(x)


class _Down(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(features, features, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Up(nn.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(doubled(x))


def _norm(features: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, features)


def _is_above(key: str) -> bool:
    """Whether an entry belongs to what follows the first layer of a step on the way up."""
    parts = key.split(".")
    return parts[0] == "output_blocks" and len(parts) > 3 and parts[2] != "0"


def _check_widths(widths: list[int], attention: Sequence[int], heads: int, head_width: int | None) -> None:
    if not widths or any(n < 1 or n % GROUPS for n in widths):
        advice = "Choose width and multipliers so."
        _check.fail("AdmUNet", f"one or more levels of a multiple of {GROUPS} features", f"{widths}", advice)
    if any(level not in range(len(widths)) for level in attention):
        _check.fail("AdmUNet", f"attention at levels of 0 to {len(widths) - 1}", f"{tuple(attention)}")
    divisor = heads if head_width is None else head_width
    wrong = [n for n in {*(widths[level] for level in attention), widths[-1]} if divisor < 1 or n % divisor]
    if wrong:
        _check.fail("AdmUNet", f"features that heads divide ({divisor})", f"{wrong}", "Give heads or head_width.")
