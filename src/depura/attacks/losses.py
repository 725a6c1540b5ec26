"""Losses that attacks maximise: logits (B, K) and labels (B,) to one number per image, (B,)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K), labels (B,)) -> (B,), larger is worse for the classifier."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax_y."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive where the prediction is wrong. Carlini and Wagner 2017, without a floor."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf)
    return others.amax(1) - logits.gather(1, labels[:, None])[:, 0]
