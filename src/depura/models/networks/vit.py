"""Vision Transformer for small images: Dosovitskiy et al. 2021 (arXiv:2010.11929), section 3.1, equations 1 to 4.

The image is cut into square patches, each of which becomes a token; pre-norm blocks of self-attention and a perceptron
follow. There is no class token: the head sees the mean of the tokens after the last norm, which the paper finds as good
(appendix D.3).

Attention is `depura.models.networks.blocks.attend`, in every mode: torch's own encoder takes another path without
gradients, which gives other numbers, and its fused attention cannot be differentiated twice. Names of the weights are
those of timm's networks of this kind (class_token=False, global_pool="avg", fc_norm=False).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.models.networks.blocks import Shapes, attend, counted

EPS = 1e-6
"""Added to the variance by the norms."""

EXPANSION = 4
"""Hidden features of a block's perceptron, in multiples of the width."""


class SmallViT(nn.Module):
    """Patches, learned positions, pre-norm blocks, mean of the tokens, linear layer; no dropout.

    Input is normalised; put `Normalised` around it for images in [0, 1]. Nothing couples the images of a batch, and
    training and evaluation compute the same.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch: int = 4,
        channels: int = 3,
        n_classes: int = 10,
        depth: int = 6,
        width: int = 96,
        heads: int = 4,
    ) -> None:
        """Build with random weights.

        Args:
            image_size: pixels of a side of the square images, divisible by `patch`.
            patch: pixels of a side of a patch; an image has (image_size / patch)^2 tokens.
            channels: image channels.
            n_classes: classes.
            depth: blocks.
            width: features of a token, divisible by `heads`.
            heads: of the attention, each with width / heads features.

        Raises:
            InputError: sizes that do not divide, or less than one.
        """
        super().__init__()
        where = "SmallViT"
        sizes = {"patch": patch, "channels": channels, "n_classes": n_classes, "depth": depth, "heads": heads}
        for name, value in sizes.items():
            _check.integer(where, name, value, low=1)
        if _check.integer(where, "image_size", image_size, low=1) % patch:
            _check.fail(where, f"an image_size divisible by the patch, {patch}", f"{image_size}", "Resize the images.")
        if _check.integer(where, "width", width, low=1) % heads:
            _check.fail(where, f"a width divisible by the number of heads, {heads}", f"{width}")
        self.shape = (channels, image_size, image_size)
        self.patch_embed = _Patches(channels, width, patch)
        self.pos_embed = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, n_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, image_size, image_size); an `InputError` for other shapes."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            wanted = f"images (B, {', '.join(map(str, self.shape))})"
            _check.fail("SmallViT", wanted, f"{tuple(x.shape)}", "Its positions are learned for one size; resize them.")
        return self.head(self.norm(self.blocks(self.patch_embed(x) + self.pos_embed)).mean(1))


class _Patches(nn.Module):
    """Tokens (B, T, width) of an image's patches, row by row: one linear map for all of them."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    """Norm and attention, norm and perceptron, each added to its input (equations 2 and 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = _Perceptron(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _Attention(nn.Module):
    """Self-attention of several heads (appendix A); queries, keys and values are one linear layer, in this order."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        return self.proj(attend(query, key, value).flatten(1, 2).transpose(1, 2))


class _Perceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


def vit_settings(shapes: Shapes, *, heads: int = 4) -> dict[str, Any] | None:
    """Arguments of `SmallViT`; shapes do not tell the number of heads."""
    wanted = {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "norm.weight", "head.weight"}
    if not wanted <= shapes.keys() or "cls_token" in shapes:
        return None
    width, channels, patch = shapes["patch_embed.proj.weight"][:3]
    return {
        "image_size": math.isqrt(shapes["pos_embed"][1]) * patch,
        "patch": patch,
        "channels": channels,
        "n_classes": shapes["head.weight"][0],
        "depth": counted(shapes, "blocks."),
        "width": width,
        "heads": heads,
    }
